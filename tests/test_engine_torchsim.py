"""``dualforce inputs torchsim``: folders that run, and refusals."""

import importlib
import runpy
import sys
from pathlib import Path
from typing import Any, List

import ase.io
import numpy as np
import pytest
import torch
from ase.constraints import FixAtoms, FixBondLength
from click.testing import CliRunner
from helpers import make_model, random_cell

from dualforce.cli import main
from dualforce.engines import ModelReference, torchsim
from dualforce.md import MDSettings


SHORT = ["--timestep", "0.25", "--inner", "2", "--steps", "10", "--interval", "4"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> List[str]:
    """A small untrained model, and a structure without velocities."""
    folder = tmp_path_factory.mktemp("files")
    make_model().export().save(str(folder / "small.pt"))
    ase.io.write(folder / "structure.xyz", random_cell(12, 6.0, seed=1))
    return [str(folder / "small.pt"), str(folder / "structure.xyz")]


def write(files: List[str], folder: Path, *options: str) -> Any:
    """Call the command."""
    arguments = ["inputs", "torchsim", *files, *SHORT, *options, "-o", str(folder)]
    return CliRunner().invoke(main, arguments)


def run() -> Any:
    """Run the script of the working directory, to the last state."""
    # compiling takes longer than running
    with torch.jit.optimized_execution(False):
        return runpy.run_path("run.py")["final"]


@pytest.mark.parametrize("ensemble", ["nve", "nvt-langevin", "nvt-svr"])
def test_folder_runs(
    ensemble: str, files: List[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And goes on where it has ended, also after it was interrupted."""
    torch_sim = pytest.importorskip("torch_sim")
    options = ("--ensemble", ensemble, "--replicas", "3", "--device", "cpu")
    result = write(files, tmp_path / "run", *options)
    assert result.exit_code == 0, result.output
    monkeypatch.chdir(tmp_path / "run")
    assert 'pip install "dualforce[torchsim]"' in Path("README.txt").read_text()
    start: Any = ase.io.read("replicas.extxyz", ":")
    kinetic = [atoms.get_kinetic_energy() for atoms in start]
    assert len(set(kinetic)) == 3 and min(kinetic) > 0.0
    first = run()
    # 10 inner steps are 6 outer ones in whole intervals of 2
    assert first.outer_steps.tolist() == [6, 6, 6] and not first.failed.any()
    saved = Path("state.pt").read_bytes()
    run()
    Path("state.pt").write_bytes(saved)  # as if it had not come to its end
    second = run()
    assert second.outer_steps.tolist() == [12, 12, 12]
    for number in range(3):
        with torch_sim.TorchSimTrajectory(f"replica-{number}.h5md") as trajectory:
            assert trajectory.get_steps("positions").tolist() == [0, 2, 4, 6, 8, 10, 12]
            conserved = trajectory.get_array("conserved").ravel()
            assert np.ptp(conserved) < 1e-3 * len(start[number])
            last = trajectory.get_array("positions")[-1]
        final: Any = ase.io.read("final.extxyz", number)
        np.testing.assert_allclose(final.positions, last, atol=1e-5)
        assert np.abs(final.positions - start[number].positions).max() > 0.01
        if ensemble != "nvt-langevin":
            np.testing.assert_allclose(final.get_momenta().sum(0), 0.0, atol=1e-5)


def test_structures_are_kept(files: List[str], tmp_path: Path) -> None:
    """Velocities of the structure are those of the first replica; fixed atoms stay."""
    atoms: Any = ase.io.read(files[1])
    atoms.set_constraint(FixAtoms([0, 1]))
    momenta = np.random.default_rng(0).normal(size=(12, 3))
    atoms.set_momenta(momenta)
    moving = str(tmp_path / "moving.xyz")
    ase.io.write(moving, atoms, format="extxyz")
    result = write([files[0], moving], tmp_path / "a", "--replicas", "2")
    assert result.exit_code == 0, result.output
    first, second = ase.io.read(tmp_path / "a" / "replicas.extxyz", ":")
    np.testing.assert_allclose(first.get_momenta()[2:], momenta[2:], atol=1e-7)
    np.testing.assert_array_equal(second.get_momenta()[:2], 0.0)
    assert np.abs(second.get_momenta() - first.get_momenta()).max() > 0.1
    assert list(second.constraints[0].index) == [0, 1]
    assert len(ase.io.read(tmp_path / "a" / "replicas.extxyz", ":")) == 2
    text = torchsim.input_files(atoms, MDSettings(), ModelReference("small.pt"))
    assert text["replicas.extxyz"].count("Lattice") == torchsim.REPLICAS


def test_refusals(files: List[str], tmp_path: Path) -> None:
    """A sentence, and no folder."""
    folder = tmp_path / "run"
    for options, message in [
        (["--ensemble", "npt"], "npt with two forces is not there for torch-sim: use"),
        (["--replicas", "0"], "replicas must be 1, 2, 3"),
    ]:
        result = write(files, folder, *options)
        assert result.exit_code == 1 and message in result.output
        assert not folder.exists()
    calculator = write(["ase.calculators.emt:EMT", files[1]], folder)
    assert calculator.exit_code == 1
    arguments = ["inputs", "ase", *files, "--replicas", "2", "-o", str(folder)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1 and "--replicas is for torchsim" in result.output
    atoms: Any = ase.io.read(files[1])
    atoms.set_constraint(FixBondLength(0, 1))
    with pytest.raises(ValueError, match="FixBondLengths is not carried over"):
        torchsim.input_files(atoms, MDSettings(), ModelReference("small.pt"))
    with pytest.raises(ValueError, match="here an exported model is needed"):
        torchsim.input_files(
            random_cell(4), MDSettings(), ModelReference("ase.calculators.emt:EMT")
        )


def test_without_torch_sim(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is there, and says what to install when it is used."""
    import dualforce

    for name in [n for n in sys.modules if n.startswith("dualforce.torchsim")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [n for n in sys.modules if n.split(".")[0] == "torch_sim"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch_sim", None)  # type: ignore[arg-type]
    package = importlib.import_module("dualforce.torchsim")
    assert "respa_nve_step" in dir(package) and "torchsim" in dir(dualforce)
    with pytest.raises(ImportError, match=r"install \"dualforce\[torchsim\]\".*3\.12"):
        _ = package.respa_nve_step
