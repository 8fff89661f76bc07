"""Labelled structures of a cheap method, to train on before the data."""

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from click.testing import CliRunner
from train_helpers import PAINN, options, run_cli

import dualforce
from dualforce.cli import main
from dualforce.forces import CalculatorForces


EMT_NAME = "ase.calculators.emt:EMT"


@pytest.fixture
def copper(tmp_path: Path) -> Path:
    """A file with two cells of copper, with labels that are not of EMT."""
    frames = [bulk("Cu", a=a, cubic=True) for a in (3.6, 3.65)]
    for atoms in frames:
        atoms.info["energy"] = 1e6
    path = tmp_path / "cu.xyz"
    ase.io.write(path, frames, format="extxyz")
    return path


def test_labels_are_those_of_the_teacher(copper: Path, tmp_path: Path) -> None:
    """Energy, forces and stress; and where it is hotter atoms move farther."""
    output = tmp_path / "emt.xyz"
    temperatures = (100.0, 800.0)
    found = dualforce.sample(
        EMT_NAME, copper, output, temperatures=temperatures, frames=80
    )
    written = ase.io.read(output, ":")
    assert len(found) == len(written) == 80
    energies: dict[str, list[float]] = {}
    for atoms in written:
        again = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        again.calc = EMT()
        energy = again.get_potential_energy()
        assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-6)
        np.testing.assert_allclose(atoms.get_forces(), again.get_forces(), atol=1e-6)
        np.testing.assert_allclose(atoms.get_stress(), again.get_stress(), atol=1e-6)
        temperature = str(atoms.info["origin"]).split(" at ")[1].split(" K")[0]
        energies.setdefault(temperature, []).append(energy)
    assert [len(values) for values in energies.values()] == [40, 40]
    assert np.mean(energies["800"]) > np.mean(energies["100"]) + 0.05


def test_interrupted_call_goes_on(
    copper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same file at the end; and a call for more adds to it."""
    whole = tmp_path / "whole.xyz"
    dualforce.sample(EMT_NAME, copper, whole, frames=30)

    evaluate, calls = CalculatorForces.conservative, []

    def interrupted(*arguments: object, **others: object) -> object:
        calls.append(None)
        if len(calls) == 35:
            raise KeyboardInterrupt
        return evaluate(*arguments, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(CalculatorForces, "conservative", interrupted)
    parts = tmp_path / "parts.xyz"
    with pytest.raises(KeyboardInterrupt):
        dualforce.sample(EMT_NAME, copper, parts, frames=30)
    assert 0 < len(ase.io.read(parts, ":")) < 30
    parts.write_bytes(parts.read_bytes()[:-40])  # and cut off within a structure
    dualforce.sample(EMT_NAME, copper, parts, frames=30)
    first = {str(a.info["structure_digest"]) for a in ase.io.read(whole, ":")}
    assert {str(a.info["structure_digest"]) for a in ase.io.read(parts, ":")} == first
    before = whole.read_bytes()
    dualforce.sample(EMT_NAME, copper, whole, frames=40)
    assert whole.read_bytes().startswith(before)
    assert len(ase.io.read(whole, ":")) == 40


def test_other_files_stay_as_they_are(copper: Path, tmp_path: Path) -> None:
    """Data of the user, and what another teacher has labelled."""
    own = tmp_path / "own.xyz"
    own.write_bytes(copper.read_bytes().rstrip())  # looks unfinished
    before = own.read_bytes()
    with pytest.raises(FileExistsError, match="own.xyz exists and holds no structures"):
        dualforce.sample(EMT_NAME, copper, own)
    assert own.read_bytes() == before
    output = tmp_path / "emt.xyz"
    dualforce.sample(EMT_NAME, copper, output, frames=10)
    before = output.read_bytes()
    with pytest.raises(FileExistsError, match="labelled with ase.calculators.lj"):
        dualforce.sample("ase.calculators.lj:LennardJones", copper, output)
    assert output.read_bytes() == before


def test_teacher_that_fails(tmp_path: Path) -> None:
    """In every run: that is said, and no file is left."""
    path = tmp_path / "si.xyz"
    ase.io.write(path, bulk("Si", cubic=True), format="extxyz")
    with pytest.raises(ValueError, match="fails in every run"):
        dualforce.sample(EMT_NAME, path, tmp_path / "emt.xyz", frames=10)
    assert not (tmp_path / "emt.xyz").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--frames", "0"], "frames must be positive"),
        (["--temperature", "-5"], "must be positive, not -5"),
    ],
)
def test_arguments_that_make_no_sense(
    given: list[str], message: str, copper: Path, tmp_path: Path
) -> None:
    """A sentence each."""
    arguments = ["sample", EMT_NAME, str(copper), "-o", str(tmp_path / "emt.xyz")]
    result = CliRunner().invoke(main, [*arguments, *given])
    assert result.exit_code == 1
    assert message in result.output


def test_training_reads_what_the_command_wrote(copper: Path, tmp_path: Path) -> None:
    """Energy, forces and stress, and the model is one of that method: after a training
    of seconds its forces are nearer to EMT than none."""
    output = tmp_path / "emt.xyz"
    arguments = ["sample", EMT_NAME, str(copper), "--frames", "40", "-o", str(output)]
    result = CliRunner().invoke(main, [*arguments, "--temperature", "600"])
    assert result.exit_code == 0, result.output
    assert "40 structures labelled by ase.calculators.emt:EMT" in result.output
    given = options(
        output,
        {"num_epochs": 30, "conservative_fraction": 1.0, "learning_rate": 1e-2},
        {"backbone": "painn", "painn": PAINN | {"cutoff": 4.0}},
        base_precision=32,
    )
    run_cli(tmp_path, given, output="model.pt")
    forces = dualforce.load_forces(tmp_path / "model.pt")
    frames = ase.io.read(output, ":")
    errors = [forces.conservative(a).forces - a.get_forces() for a in frames]
    size = np.sqrt(np.mean([a.get_forces() ** 2 for a in frames]))
    assert np.sqrt(np.mean(np.square(errors))) < 0.5 * size
