"""The commands of the README: train, evaluate, export, both forces in ASE."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from metatomic_ase import MetatomicCalculator


ROOT = Path(__file__).parents[1]
HELD_OUT = "data/water-xtb/held-out.xyz"


def mtt(folder: Path, *arguments: str) -> str:
    """Run ``mtt`` as a user does."""
    program = Path(sys.executable).with_name("mtt")
    done = subprocess.run(
        [str(program), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": str(os.cpu_count())},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where the quickstart has run for a few epochs."""
    folder = tmp_path_factory.mktemp("quickstart")
    for name in ("data", "options"):
        shutil.copytree(ROOT / name, folder / name)
    log = mtt(
        folder,
        "train",
        "options/quickstart.yaml",
        *("-o", "water.pt"),
        *("-r", "architecture.training.max_minutes=null"),
        *("-r", "architecture.training.num_epochs=4"),
    )
    assert "min" in log and "left" in log
    return folder


def test_learns(folder: Path) -> None:
    """Four epochs take both forces well below the spread of the labels."""
    atoms = ase.io.read(folder / HELD_OUT, 0)
    reference = atoms.get_forces()
    for direct in (False, True):
        atoms.calc = MetatomicCalculator(folder / "water.pt", non_conservative=direct)
        error = np.abs(atoms.get_forces() - reference).mean()
        assert error < 0.5 * np.abs(reference).mean()


def test_forces_sum_to_zero(folder: Path) -> None:
    """Neither force moves the system as a whole, without help of the engine."""
    atoms = ase.io.read(folder / HELD_OUT, 1)
    calculator = MetatomicCalculator(folder / "water.pt")
    outputs = calculator.model().capabilities().outputs
    name = "non_conservative_force"
    result = calculator.run_model(atoms, {name: outputs[name]})
    assert np.abs(result[name].block().values.sum(0).numpy()).max() < 1e-4
    atoms.calc = calculator
    assert np.abs(atoms.get_forces().sum(0)).max() < 1e-4


def test_eval(folder: Path) -> None:
    """``mtt eval`` reports the errors of both forces."""
    log = mtt(folder, "eval", "water.pt", "options/eval.yaml", "-o", "out.xyz")
    # metatrain's name for minus the conservative forces
    assert "energy_positions_gradients MAE" in log
    assert "non_conservative_force MAE" in log
    assert len(ase.io.read(folder / "out.xyz", ":")) == 50


def test_export(folder: Path) -> None:
    """A checkpoint exports to the model that training left."""
    mtt(folder, "export", "water.ckpt", "-o", "again.pt")
    atoms = ase.io.read(folder / HELD_OUT, 2)
    energies = []
    for name in ("water.pt", "again.pt"):
        atoms.calc = MetatomicCalculator(folder / name)
        energies.append(atoms.get_potential_energy())
    assert energies[0] == pytest.approx(energies[1], abs=1e-9)
