"""Cells, units and layouts of labels, drawn at random, against calculations written out
here."""

import tempfile
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import pytest
from ase import Atoms
from ase.units import Bohr, Hartree, kcal, kJ, mol
from helpers import make_model, random_cell
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from metatrain.utils.data import DatasetInfo
from metatrain.utils.data.target_info import get_energy_target_info
from train_helpers import PAINN, clusters, options, prepare, write

from dualforce.forces.metatomic import MetatomicForces
from dualforce.training.data import Frame, make_frames
from dualforce.training.fitting import energy_spread, fit_calibration
from dualforce.training.model import DualForce
from dualforce.training.plausibility import LabelBounds


ENERGY, FORCES, VIRIAL = (
    "energy",
    "energy_positions_gradients",
    "energy_strain_gradients",
)
SEEDS = st.integers(0, 10**6)
PBC = st.tuples(st.booleans(), st.booleans(), st.booleans())

VOIGT = [0, 4, 8, 5, 2, 1]
LAYOUTS: Dict[str, Tuple[Dict[str, Any], Any]] = {
    "three by three": ({}, lambda stress, volume: stress),
    "nine": ({"stress": {"key": "tension"}}, lambda stress, volume: stress.reshape(9)),
    "Voigt": (
        {"stress": {"key": "tension"}},
        lambda stress, volume: stress.reshape(9)[VOIGT],
    ),
    "virial": ({"virial": True}, lambda stress, volume: -stress * volume),
    "virial in Voigt's order": (
        {"virial": {"key": "w"}},
        lambda stress, volume: -(stress * volume).reshape(9)[VOIGT],
    ),
}

UNITS = {
    "eV": (1.0, "angstrom", 1.0),
    "hartree": (1.0 / Hartree, "bohr", 1.0 / Bohr),
    "kcal/mol": (mol / kcal, "angstrom", 1.0),
    "kJ/mol": (mol / kJ, "nm", 0.1),
}
"""Units of energy and length with their numbers in an eV and an Å."""


def frames_of(atoms: List[Atoms], **changes: Any) -> Tuple[DualForce, List[Frame]]:
    """Frames as training sees them, and the model they are for."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "data.xyz", atoms)
        model, _, dataset = prepare(options(path, **changes))
        return model, make_frames([dataset], "training", model, False)


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, pbc=PBC, layout=st.sampled_from(sorted(LAYOUTS)), left=st.booleans())
def test_virials(
    seed: int, pbc: Tuple[bool, bool, bool], layout: str, left: bool
) -> None:
    """Of cells of any shape and handedness, periodic in any directions: stress times
    volume, in the order that metatrain wants."""
    rng = np.random.default_rng(seed)
    atoms = random_cell(6, 6.0, seed)
    if left:
        atoms.set_cell(atoms.cell[[1, 0, 2]])
    atoms.pbc = pbc
    atoms.info = {"energy": float(rng.normal())}
    atoms.arrays["forces"] = rng.normal(size=(len(atoms), 3))
    stress = 0.1 * rng.normal(size=(3, 3))
    stress = stress + stress.T
    a, b, c = atoms.cell.array
    volume = abs(float(np.dot(a, np.cross(b, c))))
    section, store = LAYOUTS[layout]
    option = "virial" if "virial" in section else "stress"
    asked = section.get(option)
    key = asked["key"] if isinstance(asked, dict) else option
    atoms.info[key] = store(stress, volume)
    if "virial" in section:
        section = {"stress": False, **section}
    _, (frame,) = frames_of([atoms], energy=section)
    for name in (VIRIAL, "non_conservative_stress"):
        label = frame.labels[name].numpy().reshape(3, 3)
        assert label == pytest.approx(stress * volume, rel=1e-6, abs=1e-7)
    assert frame.volume == pytest.approx(volume, rel=1e-7)


def _in_units(frames: List[Atoms], energy: float, length: float) -> List[Atoms]:
    frames = [atoms.copy() for atoms in frames]
    for atoms in frames:
        atoms.set_cell(atoms.cell * length, scale_atoms=True)
        atoms.info["energy"] *= energy
        atoms.arrays["forces"] *= energy / length
        atoms.info["stress"] = atoms.info["stress"] * energy / length**3
    return frames


@settings(max_examples=12, deadline=None)
@given(
    unit=st.sampled_from(sorted(UNITS)),
    first=st.integers(0, 1000),
    size=st.sampled_from([0.3, 30.0, 70.0, 4000.0]),
)
def test_units(unit: str, first: int, size: float) -> None:
    """The same frames are excluded, and baselines and scales are the same, in whichever
    units the data are."""
    energy, length_unit, length = UNITS[unit]
    frames = [clusters(1, 2 + i % 2)[0] for i in range(8)]
    for index, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=first + index)
        atoms.info["energy"] += 0.1 * ((first + 7 * index) % 11)
    frames[first % 8].arrays["forces"][0] = [0.0, size, 0.0]
    found = []
    for numbers in ((1.0, "eV", "angstrom", 1.0), (energy, unit, length_unit, length)):
        factor, energy_unit, of_length, stretch = numbers
        cutoff = PAINN | {"cutoff": 3.0 * stretch}
        network = {"painn": cutoff, "pair_potential": False}
        given_ = {"model": network}
        with tempfile.TemporaryDirectory() as folder:
            path = write(Path(folder) / "data.xyz", _in_units(frames, factor, stretch))
            settings_ = options(path, **given_)
            settings_["training_set"]["systems"]["length_unit"] = of_length
            model, trainer, dataset = prepare(settings_)
            info = get_energy_target_info(
                ENERGY, {"quantity": "energy", "unit": energy_unit}, True, True
            )
            model = DualForce(
                model.hypers, DatasetInfo(of_length, model.atomic_types, {ENERGY: info})
            )
            made = make_frames([dataset], "training", model, False)
        kept = LabelBounds(model, trainer.hypers, made).exclude(made, "training")
        fit_calibration(model, kept, {}, True)
        calibrations = model.calibrations
        found.append(
            {
                "excluded": [i for i, frame in enumerate(made) if frame not in kept],
                "baseline": calibrations[ENERGY].baseline.numpy() / factor,
                "spread": energy_spread(model, ENERGY, kept) / factor,
                "force": calibrations["non_conservative_force"].scale.numpy()
                * stretch
                / factor,
                "virial": calibrations["non_conservative_stress"].scale.numpy()
                / factor,
            }
        )
    assert (
        found[0].pop("excluded")
        == found[1].pop("excluded")
        == ([first % 8] if size > 50.0 else [])
    )
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, n_wrong=st.integers(1, 5), exponent=st.floats(2.0, 12.0))
def test_wrong_energies_are_found(seed: int, n_wrong: int, exponent: float) -> None:
    """However large, as long as others of the same kind are right: they, and no
    others."""
    rng = np.random.default_rng(seed)
    wrong = sorted(rng.permutation(30)[:n_wrong].tolist())
    # Half of the frames lack a hydrogen, to tell the energies of the atoms apart.
    assume(all(2 * sum(i % 2 == kind for i in wrong) < 15 for kind in (0, 1)))
    frames = []
    for index in range(30):
        (atoms,) = clusters(1, 1 + index % 3)
        if index % 2:
            del atoms[-1]
        counts = [(atoms.numbers == number).sum() for number in (1, 8)]
        energy = np.dot(counts, [-13.6, -2041.0]) + rng.normal(0.0, 0.3)
        if index in wrong:
            size = rng.choice([-1.0, 1.0]) * rng.uniform(1.0, 3.0)
            energy += len(atoms) * size * 10.0**exponent
        atoms.info["energy"] = float(energy)
        frames.append(atoms)
    model, made = frames_of(frames)
    hypers = {"max_force": None, "max_energy": None, "max_stress": None}
    kept = LabelBounds(model, hypers, made).exclude(made, "training")
    assert [i for i, frame in enumerate(made) if frame not in kept] == wrong


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), pbc=PBC, left=st.booleans())
def test_stresses_of_models(
    seed: int, pbc: Tuple[bool, bool, bool], left: bool
) -> None:
    """Finite differences of the energy over the volume of the cell, whatever is
    periodic; the direct stress has the same volume."""
    atoms = random_cell(8, 6.5, seed, min_distance=1.4)
    if left:
        atoms.set_cell(atoms.cell[[1, 0, 2]])
    atoms.pbc = pbc
    conservative, direct = FORCES_OF_A_MODEL.both(atoms, stress=True)
    assert conservative.stress is not None and direct.stress is not None
    step, volume = 1e-4, abs(np.linalg.det(atoms.cell.array))
    for i, j in ((0, 0), (1, 2)):
        strain = np.zeros((3, 3))
        strain[i, j] = strain[j, i] = step
        energies = []
        for sign in (1.0, -1.0):
            moved = atoms.copy()
            moved.set_cell(atoms.cell.array @ (np.eye(3) + sign * strain))
            moved.positions = atoms.positions @ (np.eye(3) + sign * strain)
            energies.append(FORCES_OF_A_MODEL.conservative(moved).energy)
        slope = (energies[0] - energies[1]) / (2.0 * step * (1.0 + (i != j)))
        scale = np.abs(conservative.stress).max()
        assert conservative.stress[i, j] == pytest.approx(
            slope / volume, rel=1e-4, abs=1e-4 * scale
        )
    # Twice the volume, along a direction that is not periodic, is half the stress.
    if not all(pbc):
        free = pbc.index(False)
        large = atoms.copy()
        large.cell[free] = 2.0 * atoms.cell[free]
        half = FORCES_OF_A_MODEL.direct(large, stress=True).stress
        assert half == pytest.approx(0.5 * direct.stress, rel=1e-9, abs=1e-12)


FORCES_OF_A_MODEL = MetatomicForces(make_model("painn").export())
