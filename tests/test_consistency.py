"""Labels of wrong unit or sign are noticed, right ones of all kinds are not."""

from pathlib import Path
from typing import Any, Callable, Dict, List

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from metatrain.utils.data.readers.ase import read
from train_helpers import WATER, options, prepare, write

from dualforce.training.consistency import find_contradictions, warn_of_contradictions
from dualforce.training.data import make_frames


SHARED = Path(__file__).parents[2] / "shared" / "data"


def labelled(atoms: Atoms, calculator: Any = None) -> Atoms:
    """A structure with energy, forces and stress."""
    atoms = atoms.copy()
    atoms.calc = EMT() if calculator is None else calculator
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    stress = atoms.get_stress(voigt=False) if atoms.pbc.any() else None
    atoms.calc = None
    atoms.info["energy"], atoms.arrays["forces"] = energy, forces
    if stress is not None:
        atoms.info["stress"] = stress
    return atoms


def strained(atoms: Atoms, size: float, rng: np.random.Generator) -> Atoms:
    """A structure in a cell that is deformed at random."""
    strain = rng.normal(0.0, size, (3, 3))
    atoms = atoms.copy()
    cell = atoms.cell.array @ (np.eye(3) + 0.5 * (strain + strain.T))
    atoms.set_cell(cell, scale_atoms=True)
    return atoms


def metals() -> List[Atoms]:
    """Alloys at many volumes, with displaced atoms."""
    rng = np.random.default_rng(1)
    frames = []
    for _ in range(40):
        atoms = bulk("Cu", cubic=True) * (2, 2, 1)
        atoms.symbols[rng.permutation(16)[: rng.integers(0, 16)]] = "Ni"
        atoms.set_cell(atoms.cell * rng.uniform(0.95, 1.08), scale_atoms=True)
        atoms = strained(atoms, 0.02, rng)
        atoms.rattle(0.08, rng=rng)
        frames.append(labelled(atoms))
    return frames


def aluminium() -> List[Atoms]:
    """Volumes and small displacements, where pairs say nothing about the energy."""
    rng = np.random.default_rng(2)
    frames = []
    for _ in range(40):
        atoms = bulk("Al", cubic=True) * (2, 2, 1)
        atoms.set_cell(atoms.cell * rng.uniform(0.9, 1.15), scale_atoms=True)
        atoms.rattle(0.05, rng=rng)
        frames.append(labelled(atoms))
    return frames


def slabs() -> List[Atoms]:
    """Surfaces, periodic in two directions."""
    rng = np.random.default_rng(3)
    frames = []
    for _ in range(30):
        atoms = fcc111("Al", (2, 2, 3), vacuum=6.0)
        atoms.rattle(0.1, rng=rng)
        frames.append(labelled(atoms))
    return frames


def molecules() -> List[Atoms]:
    """Six molecules, without cells."""
    rng = np.random.default_rng(4)
    names = ["CH3CH2OH", "H2O", "CH4", "CO2", "NH3", "C6H6"]
    frames = []
    for index in range(60):
        atoms = molecule(names[index % 6])
        atoms.rattle(0.08, rng=rng)
        frames.append(labelled(atoms))
    return frames


def argon() -> List[Atoms]:
    """A Lennard-Jones solid."""
    rng = np.random.default_rng(5)
    frames = []
    for _ in range(30):
        atoms = strained(bulk("Ar", cubic=True, a=5.3) * (2, 2, 2), 0.03, rng)
        atoms.rattle(0.25, rng=rng)
        potential = LennardJones(sigma=3.4, epsilon=0.0103, rc=8.0, smooth=True)
        frames.append(labelled(atoms, potential))
    return frames


def equations_of_state() -> List[Atoms]:
    """Cells against volume, without forces."""
    frames = []
    for element in ("Cu", "Al", "Ni"):
        for scale in np.linspace(0.94, 1.1, 15):
            atoms = bulk(element, cubic=True)
            atoms.set_cell(atoms.cell * scale, scale_atoms=True)
            frames.append(labelled(atoms))
    return frames


def together() -> List[Atoms]:
    """All kinds in one file."""
    return metals()[::2] + slabs()[::2] + molecules()[::3] + equations_of_state()[::3]


def water() -> List[Atoms]:
    """The data that come with dualforce."""
    frames = read(str(WATER), ":60")
    for atoms in frames:
        atoms.calc = None
    return frames


def trajectory() -> List[Atoms]:
    """Frames one after the other: close ones."""
    rng = np.random.default_rng(6)
    start = bulk("Cu", cubic=True) * (2, 2, 2)
    start.rattle(0.1, rng=rng)
    velocity, other = rng.normal(0.0, 0.02, (2, len(start), 3))
    frames = []
    for time in np.linspace(0.0, 3.0, 30):
        atoms = start.copy()
        atoms.positions += np.sin(time) * velocity + np.sin(2.3 * time) * other
        frames.append(labelled(atoms))
    return frames


def contradictions(frames: List[Atoms], directory: Path) -> List[str]:
    """What is found in a file with these frames."""
    path = write(directory / "data.xyz", frames)
    model, _, dataset = prepare(options(path, model={}))
    made = make_frames([dataset], "training", model, False)
    return find_contradictions(model, model.energies[0], made)


SETS: Dict[str, Callable[[], List[Atoms]]] = {
    function.__name__: function
    for function in (
        metals,
        aluminium,
        slabs,
        molecules,
        argon,
        equations_of_state,
        together,
        water,
        trajectory,
    )
}


@pytest.mark.parametrize("name", list(SETS))
def test_right_labels_raise_no_alarm(name: str, tmp_path: Path) -> None:
    """Metals, surfaces, molecules, liquids, mixed sets."""
    assert contradictions(SETS[name](), tmp_path) == []


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the reference data")
@pytest.mark.parametrize(
    "name",
    ["water-pbe0ts", "acetylacetone-300K", "acetylacetone-600K", "3bpa-mixedT"],
)
def test_reference_data_raise_no_alarm(name: str, tmp_path: Path) -> None:
    """Data of quantum chemistry that others computed."""
    frames = ase.io.read(SHARED / f"{name}.xyz", ":60")
    for atoms in frames:
        results = atoms.calc.results
        atoms.info["energy"] = results["energy"]
        atoms.arrays["forces"] = results["forces"]
        atoms.calc = None
    assert contradictions(frames, tmp_path) == []


@pytest.mark.parametrize("name", ["metals", "slabs", "argon", "water"])
@pytest.mark.parametrize("factor", [-1.0, -1602.0, 1.0 / 183.6])
def test_stress_of_wrong_sign_or_unit(name: str, factor: float, tmp_path: Path) -> None:
    """The other sign, kbar with the sign of VASP, hartree/bohr^3."""
    frames = SETS[name]()
    for atoms in frames:
        atoms.info["stress"] = factor * atoms.info["stress"]
    (sentence,) = contradictions(frames, tmp_path)
    assert sentence.startswith("the stresses of 'energy' do not belong to its energies")
    found = float(sentence.split("they are ")[1].split(" times")[0])
    assert found == pytest.approx(factor, rel=0.15)


@pytest.mark.parametrize("factor", [-1.0, 160.2])
def test_stress_against_energy_over_volume(factor: float, tmp_path: Path) -> None:
    """Where there are no forces to compare with."""
    frames = equations_of_state()
    for atoms in frames:
        atoms.info["stress"] = factor * atoms.info["stress"]
    (sentence,) = contradictions(frames, tmp_path)
    assert "the stresses of 'energy' do not belong" in sentence
    found = float(sentence.split("they are ")[1].split(" times")[0])
    assert found == pytest.approx(factor, rel=0.15)


@pytest.mark.parametrize("name", ["metals", "molecules", "argon", "trajectory"])
@pytest.mark.parametrize("factor", [-1.0, 1.0 / 27.2])
def test_forces_of_wrong_sign_or_unit(name: str, factor: float, tmp_path: Path) -> None:
    """Gradients, hartree/Å."""
    frames = SETS[name]()
    for atoms in frames:
        atoms.arrays["forces"] *= factor
        atoms.info.pop("stress", None)
    (sentence,) = contradictions(frames, tmp_path)
    assert sentence.startswith("the energies of 'energy' do not belong to its forces")
    found = float(sentence.split("they are ")[1].split(" times")[0])
    assert 0.3 < found * factor < 3.0


def test_user_is_warned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When a training starts."""
    frames = argon()
    for atoms in frames:
        atoms.info["stress"] *= -1.0
    path = write(tmp_path / "data.xyz", frames)
    model, _, dataset = prepare(options(path))
    warn_of_contradictions(model, make_frames([dataset], "training", model, False))
    assert "In the training set, the stresses of 'energy' do not belong" in caplog.text
    assert "Check units and signs of stresses and forces" in caplog.text
