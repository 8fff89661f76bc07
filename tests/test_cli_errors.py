"""What bad input gets: a sentence, no traceback, and nothing lost."""

import shutil
from pathlib import Path
from typing import Any, List

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from click.testing import CliRunner
from helpers import make_model, random_cell

from dualforce.cli import main


COMMANDS = {
    "md": ["--steps", "8", "-o", "out"],
    "tune": ["--minutes", "0.01"],
    "relax": ["-o", "out.xyz"],
    "inputs": ["-o", "out"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a structure."""
    path = tmp_path_factory.mktemp("errors")
    make_model().export().save(str(path / "model.pt"))
    ase.io.write(path / "good.xyz", random_cell(6, 5.0), format="extxyz")
    return path


def call(command: str, *arguments: Any) -> Any:
    """A command with its usual options."""
    words: List[str] = [command] + ["ase"] * (command == "inputs")
    words += [str(each) for each in arguments] + COMMANDS[command]
    return CliRunner().invoke(main, words)


def is_sentence(result: Any, message: str) -> None:
    """One line that says what is wrong."""
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    errors = [line for line in result.output.splitlines() if "Error: " in line]
    assert len(errors) == 1 and message in result.output, result.output


def structures() -> dict[str, tuple[Atoms, str]]:
    """Structures that cannot be run, and what is said of them."""
    no_cell = random_cell(6, 5.0)
    no_cell.set_cell(None)
    flat = random_cell(6, 5.0)
    flat.set_cell([5.0, 5.0, 0.0])
    nowhere = random_cell(6, 5.0)
    nowhere.positions[2, 1] = np.nan
    overlapping = random_cell(6, 5.0)
    overlapping.positions[3] = overlapping.positions[1] + 1e-5
    across = random_cell(6, 5.0)
    across.positions[3] = across.positions[1] + across.cell.array[0] + 1e-4
    return {
        "no atoms": (Atoms(cell=[5, 5, 5], pbc=True), "no atoms"),
        "no cell": (no_cell, "periodic"),
        "flat cell": (flat, "periodic"),
        "not a number": (nowhere, "not finite"),
        "overlapping": (overlapping, "atoms 1 and 3 are only 0.00 Å apart"),
        "overlapping across": (across, "atoms 1 and 3 are only 0.00 Å apart"),
        "unknown element": (bulk("Cu"), "does not know Cu"),
    }


@pytest.mark.parametrize("command", list(COMMANDS))
@pytest.mark.parametrize("name", list(structures()))
def test_structures(
    name: str, command: str, folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Every command says what is wrong with a structure, and writes nothing."""
    monkeypatch.chdir(tmp_path)
    atoms, message = structures()[name]
    ase.io.write("bad.traj", atoms)
    is_sentence(call(command, folder / "model.pt", "bad.traj"), message)
    assert not Path("out").exists() and not Path("out.xyz").exists()


@pytest.mark.parametrize("command", list(COMMANDS))
def test_models(command: str, folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Files that are no models, and models that do not run here."""
    monkeypatch.chdir(tmp_path)
    good = folder / "good.xyz"
    Path("text.pt").write_text("not a model")
    content = (folder / "model.pt").read_bytes()
    Path("truncated.pt").write_bytes(content[: len(content) // 2])
    Path("run.ckpt").write_bytes(b"")
    for model, message in (
        ("text.pt", "text.pt is not an exported metatomic model"),
        ("truncated.pt", "truncated.pt is not an exported metatomic model"),
        ("run.ckpt", "mtt export"),
        ("missing.pt", "'missing.pt' does not exist"),
        ("no.such:thing", "module 'no.such' cannot be imported"),
        ("ase:Atoms", "no calculator"),
    ):
        is_sentence(call(command, model, good), message)
    if command != "inputs":
        result = call(command, folder / "model.pt", good, "--device", "cuda")
        is_sentence(result, "cannot run on the device 'cuda'")


def test_inputs_are_written_without_the_device(
    folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """On the login node of a machine whose other nodes have GPUs."""
    monkeypatch.chdir(tmp_path)
    result = call(
        "inputs", folder / "model.pt", folder / "good.xyz", "--device", "cuda"
    )
    assert result.exit_code == 0, result.output
    assert 'device="cuda"' in Path("out/run.py").read_text()


@pytest.mark.parametrize(
    "name", ["run.json", "checkpoint.npz", "log.csv", "trajectory.extxyz"]
)
@pytest.mark.parametrize("damage", ["missing", "truncated", "nonsense"])
def test_damaged_runs(
    name: str, damage: str, folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """A run that cannot be resumed says so, and is left as it is."""
    if (name, damage) == ("checkpoint.npz", "missing"):
        pytest.skip("starts anew")
    monkeypatch.chdir(tmp_path)
    given = [folder / "model.pt", folder / "good.xyz", "--timestep", "0.02"]
    finished = tmp_path.parent / "finished"
    if not finished.exists():
        assert call("md", *given, "--guard", "warn").exit_code == 0
        shutil.move("out", finished)
    shutil.copytree(finished, "out")
    path = Path("out") / name
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        half = content[: len(content) // 3]
        path.write_bytes(half if damage == "truncated" else b"nonsense")
    kept = {p.name: p.read_bytes() for p in Path("out").iterdir()}
    result = call("md", *given, "--resume", "--steps", "16")
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert "resume" in result.output
    assert name in result.output or damage == "missing"
    assert {p.name: p.read_bytes() for p in Path("out").iterdir()} == kept


def test_unforeseen_errors(folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """A line, and where the traceback is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def fail(*_: Any, **__: Any) -> None:
        raise KeyError("a mistake")

    monkeypatch.setattr("dualforce.cli.md.run_md", fail)
    result = call("md", folder / "model.pt", folder / "good.xyz")
    is_sentence(result, "KeyError: 'a mistake'. This was not foreseen")
    (report,) = tmp_path.glob("dualforce-error-*.txt")
    assert "in fail" in report.read_text() and str(report) in result.output
