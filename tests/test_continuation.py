"""Pairs that learn from structures their runs have collected."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from click.testing import CliRunner, Result
from test_accelerate import EMT_NAME, QUICK, copper, make_small, tuned

from dualforce.cli import main
from dualforce.distillation import (
    AccelerationError,
    accelerate,
    continue_acceleration,
)
from dualforce.forces import load_forces
from dualforce.md.tuning import Tuning


@pytest.fixture(autouse=True)
def small_students(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what depends on the clock, and few structures."""
    make_small(monkeypatch)


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pair in one round, and what a hot run of it has collected."""
    folder = tmp_path_factory.mktemp("once")
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        accelerate(EMT_NAME, copper(folder), folder / "pair", **(QUICK | {"rounds": 1}))
        result = run_hot(folder / "pair", folder / "hot")
    assert result.exit_code == 0, result.output
    assert (
        f"The pair learns from them: dualforce accelerate --continue "
        f"{folder / 'pair'} {folder / 'hot' / 'collected.extxyz'}"
    ) in result.output
    return folder


def run_hot(pair: Path, output: Path) -> Result:
    """`dualforce md --collect` far above the temperatures of the pair."""
    arguments = ["md", str(pair), "--ensemble", "nvt-langevin", "--temperature", "1200"]
    arguments += ["--steps", "200", "--inner", "2", "--collect", "-o", str(output)]
    return CliRunner().invoke(main, arguments)


@pytest.fixture
def pair(once: Path, tmp_path: Path) -> Path:
    """A copy of the folder."""
    return Path(shutil.copytree(once / "pair", tmp_path / "pair"))


def collected_of(folder: Path) -> List[Atoms]:
    """What the hot run has collected."""
    return list(ase.io.iread(folder / "hot" / "collected.extxyz", ":"))


def direct_force(folder: Path) -> np.ndarray:
    """Of the pair in a folder, on a structure."""
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    return load_forces(folder).direct(atoms).forces


class Interrupted(KeyboardInterrupt):
    """Ctrl-C at a certain part."""


def test_it_learns_from_what_was_collected(once: Path, pair: Path) -> None:
    """From old and new structures; interrupted, the old pair runs, and the same call
    goes on."""
    files = [once / "hot" / "collected.extxyz"]
    # The first is where the run began: the structure of the folder.
    new = collected_of(once)[1:]
    assert len(new) > 2
    old = direct_force(pair)
    student = load_forces(pair / "student.pt")
    errors = [a.get_forces() - student.direct(a).forces for a in new]
    for part in ("round 2: training", "inner steps"):

        def stop(told: str, share: float, left: float, part: str = part) -> None:
            if told.startswith(part) and (share > 0.0 or "inner" in part):
                raise Interrupted

        with pytest.raises(Interrupted):
            continue_acceleration(pair, files, progress=stop)
        np.testing.assert_array_equal(direct_force(pair), old)
    with pytest.raises(ValueError, match="has begun to learn from other structures"):
        continue_acceleration(pair, [pair / "round-1" / "structures.xyz"])
    result = continue_acceleration(pair)
    assert [each.new for each in result.rounds][1:] == [len(new)]
    before = result.rounds[1].correction["collected"]
    assert before == pytest.approx(np.sqrt(np.mean(np.square(errors))), rel=1e-5)
    learnt, first = (
        list(ase.io.iread(pair / f"round-{number}" / "structures.xyz", ":"))
        for number in (2, 1)
    )
    assert len(learnt) == len(first) + len(new) == result.rounds[1].frames
    for atoms, other in zip(learnt, [*first, *new], strict=True):
        np.testing.assert_allclose(atoms.positions, other.positions, atol=1e-7)
        np.testing.assert_allclose(atoms.get_forces(), other.get_forces(), atol=1e-7)
    assert not np.allclose(direct_force(pair), old, atol=1e-3)
    options = (pair / "round-2" / "options.yaml").read_text()
    assert f"read_from: {(pair / 'round-1' / 'student.ckpt').absolute()}" in options
    assert "correction, collected" in (pair / "report.md").read_text()
    again_and_again(pair, files, once)


def again_and_again(pair: Path, files: List[Path], once: Path) -> None:
    """The same call has nothing more to do, and neither has the first one."""
    forces, parts = direct_force(pair), (pair / "parts.json").read_text()
    continue_acceleration(pair, files)
    accelerate(EMT_NAME, once / "cu.xyz", pair, **(QUICK | {"rounds": 1}))
    np.testing.assert_array_equal(direct_force(pair), forces)
    assert (pair / "parts.json").read_text() == parts
    assert not (pair / "round-3").exists()
    with pytest.raises(ValueError, match="nothing to go on with in .* --collect"):
        continue_acceleration(pair)


def test_a_new_pair_of_no_use(
    once: Path, pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one stays; what was not decided is tried again."""
    before = {path: path.read_bytes() for path in pair.iterdir() if path.is_file()}

    def tuned_as(verdict: str) -> Callable[..., Tuning]:
        def of_no_use(*args: Any, **kwargs: Any) -> Tuning:
            one, eight = tuned(*args, **kwargs).candidates
            return Tuning([one, replace(eight, verdict=verdict)], 10.0, [], [])

        return of_no_use

    here = "dualforce.distillation.acceleration"
    given = [once / "hot" / "collected.extxyz"]
    for verdict, message in (
        ("unclear", "Give more --minutes: the same command tries that again"),
        ("drifts", "Remove .*round-2 to try with other structures"),
    ):
        monkeypatch.setattr(f"{here}.tune", tuned_as(verdict))
        with pytest.raises(AccelerationError, match=message):
            continue_acceleration(pair, given, minutes=1.0)
        for path, content in before.items():
            assert path.read_bytes() == content, path
    parts: Dict[str, Any] = json.loads((pair / "round-2" / "parts.json").read_text())
    assert parts["check at 300 K"]["decided"]


def write_frame(folder: Path, kind: str) -> Path:
    """A file that cannot be learnt from."""
    atoms = bulk("Au" if kind == "element" else "Cu", cubic=True)
    atoms.rattle(0.1, seed=3)
    if kind == "teacher":
        atoms.calc = LennardJones(epsilon=0.4, sigma=2.3, rc=5.0)
    elif kind != "label":
        atoms.calc = EMT()
    if atoms.calc is not None:
        atoms.get_forces()
    if kind == "NaN":
        atoms.calc.results["forces"][0] = np.nan
    path = folder / "given.extxyz"
    ase.io.write(path, atoms, format="extxyz")
    return path


@pytest.mark.parametrize(
    "kind, message",
    [
        ("label", "frame 0 .* has no energy or no forces"),
        ("element", "frame 0 .*: the student .* does not know Au; it knows Cu"),
        (
            "teacher",
            r"another model than the teacher .*EMT: energy -?\d+\.\d+ eV, the teacher "
            r"says -?\d+\.\d+ eV; forces differ by \d+ meV/Å",
        ),
        ("NaN", "frame 0 .*: a label is not finite"),
    ],
)
def test_structures_that_cannot_be_learnt_from(
    kind: str, message: str, pair: Path, tmp_path: Path
) -> None:
    """File and frame, and nothing is begun."""
    with pytest.raises(ValueError, match=message):
        continue_acceleration(pair, [write_frame(tmp_path, kind)])
    assert not (pair / "round-2").exists()


def call(*arguments: Any) -> Result:
    """Run `dualforce accelerate`."""
    return CliRunner().invoke(main, ["accelerate", *map(str, arguments)])


def test_command(once: Path, pair: Path, tmp_path: Path) -> None:
    """Folders that are none, or not finished; options that a folder knows."""
    file = once / "hot" / "collected.extxyz"
    for arguments, message in (
        (["--continue", tmp_path, file], "is no folder of `dualforce accelerate`"),
        (["--continue", pair, tmp_path / "no.xyz"], "there is no file"),
        (["--continue", pair, file, "--temperature", 9], "says what --temperature"),
        ([EMT_NAME], "Missing argument 'STRUCTURES'"),
        ([EMT_NAME, file], "Missing option '-o'"),
        ([EMT_NAME, file, file, "-o", "x"], "unexpected extra argument"),
        ([EMT_NAME, tmp_path / "no.xyz", "-o", "x"], "there is no file"),
    ):
        result = call(*arguments)
        assert result.exit_code != 0 and message in result.output, result.output
    (pair / "pair.json").unlink()
    result = call("--continue", pair, file)
    assert "there is no pair in" in result.output and result.exit_code == 1
