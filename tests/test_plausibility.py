"""Labels that cannot be right are named and left out, or refused; labels that carry no
information decide nothing."""

import logging
from pathlib import Path
from typing import Any, Callable, List

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from metatrain.utils.data import DatasetInfo
from metatrain.utils.data.target_info import get_energy_target_info
from train_helpers import clusters, message_of, options, prepare, run_cli, train, write

from dualforce.training.data import make_frames
from dualforce.training.epoch_log import LEAST_ERROR, ErrorSums
from dualforce.training.fitting import fit_calibration, to_raw_units
from dualforce.training.loss import Term
from dualforce.training.plausibility import LabelBounds
from dualforce.training.terms import make_terms


ENERGY, FORCES, VIRIAL = (
    "energy",
    "energy_positions_gradients",
    "energy_strain_gradients",
)


def crystals(noise: float) -> List[Atoms]:
    """Copper and nickel against volume, with forces that vanish but for noise."""
    rng = np.random.default_rng(0)
    frames = []
    for element in ("Cu", "Ni"):
        for scale in np.linspace(0.94, 1.08, 12):
            atoms = bulk(element, cubic=True)
            atoms.set_cell(atoms.cell * scale, scale_atoms=True)
            atoms.calc = EMT()
            atoms.calc = SinglePointCalculator(
                atoms,
                energy=atoms.get_potential_energy(),
                forces=rng.normal(0.0, noise, (len(atoms), 3))
                if noise
                else 0.0 * atoms.positions,
                stress=atoms.get_stress(),
            )
            frames.append(atoms)
    return frames


# --------------------------------------------------------------- forces that are noise


@pytest.mark.parametrize("noise", [0.0, 1e-14, 1e-6, 1e-3])
def test_forces_without_information_scale_nothing(noise: float, tmp_path: Path) -> None:
    """Scales and spreads are those of the energies, whatever the forces are."""
    model, trainer, dataset = prepare(
        options(write(tmp_path / "metal.xyz", crystals(noise)))
    )
    frames = make_frames([dataset], "training", model, False)
    fit_calibration(model, frames, {}, True)
    energies = np.array([float(f.labels[ENERGY]) / len(f) for f in frames])
    spread = float(np.sqrt(np.mean([e.var() for e in energies.reshape(2, -1)])))
    assert spread > 0.03
    assert model.paired == []
    assert model.calibrations[ENERGY].scale.tolist() == pytest.approx([spread] * 2)

    terms = make_terms(model, to_raw_units(model, frames), trainer.hypers)
    sizes = {term.name: term.spread * term.scale for term in terms}
    assert sizes[ENERGY] == pytest.approx(spread)
    assert sizes[FORCES] == pytest.approx(0.1 * spread)
    assert sizes["non_conservative_force"] == pytest.approx(0.1 * spread)
    virials = np.concatenate([f.labels[VIRIAL].reshape(-1) / len(f) for f in frames])
    assert sizes[VIRIAL] == pytest.approx(np.sqrt(np.mean(virials**2)))


def test_energies_are_learnt_though_forces_are_noise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The errors of energies are those of a training on forces that are zero."""
    errors = []
    training = {"num_epochs": 12, "learning_rate": 1e-2, "ema_decay": 0.5}
    for noise in (0.0, 1e-14):
        path = write(tmp_path / "metal.xyz", crystals(noise))
        _, trainer = train(options(path, training), tmp_path)
        names = [term.name for term in trainer.terms]
        trainer.model.backbone.load_state_dict(trainer.average.module.state_dict())
        errors.append(trainer._validate([])[0].mae()[names.index(ENERGY)])
    assert errors[1] == pytest.approx(errors[0], rel=1e-3)
    assert "The forces of 'energy' are small against its energies" in caplog.text


def test_forces_with_information_scale_as_before(tmp_path: Path) -> None:
    """An energy is scaled by its forces."""
    frames = clusters(6)
    model, trainer, dataset = prepare(
        options(write(tmp_path / "water.xyz", frames), model={"pair_potential": False})
    )
    made = make_frames([dataset], "training", model, False)
    fit_calibration(model, made, {}, True)
    size = np.sqrt(np.mean([atoms.arrays["forces"] ** 2 for atoms in frames]))
    assert model.calibrations[ENERGY].scale.tolist() == pytest.approx([size] * 2)
    terms = make_terms(model, to_raw_units(model, made), trainer.hypers)
    sizes = {term.name: term.spread * term.scale for term in terms}
    assert sizes[FORCES] == pytest.approx(size)


def test_errors_that_are_rounding_choose_no_model() -> None:
    """Where forces vanish by symmetry, the product of errors is that of the others."""
    terms = [
        Term(name, "energy", 1.0, 0.5, 1.0, "mse", 1.0, False)
        for name in (ENERGY, FORCES)
    ]
    metrics = []
    for rounding in (1e-17, 1e-13):
        sums = ErrorSums(terms)
        sums.add(0, torch.tensor([0.25]), terms[0])
        sums.add(1, torch.tensor([rounding]), terms[1])
        metrics.append(sums.metric("mae_prod", terms, 1.0))
    assert metrics == pytest.approx([0.25 * 0.5 * LEAST_ERROR] * 2)


# ------------------------------------------------------------------- beyond the bounds


def _bounds(path: Path, **training: Any) -> Any:
    model, trainer, dataset = prepare(options(path, training))
    frames = make_frames([dataset], "training", model, False)
    return LabelBounds(model, trainer.hypers, frames), frames


def _absurd_energy(atoms: Atoms) -> None:
    atoms.info["energy"] = 1e12


def _shifted_energy(atoms: Atoms) -> None:
    atoms.info["energy"] += 30.0 * len(atoms)


def _huge_stress(atoms: Atoms) -> None:
    atoms.info["stress"] = atoms.info["stress"] * 0.0 + np.diag([0.0, -3.5, 0.0])


@pytest.mark.parametrize(
    "change, expected",
    [
        (
            _absurd_energy,
            "the energy 'energy' of 1e+12 eV is 1.67e+11 eV per atom away",
        ),
        (
            _shifted_energy,
            "eV per atom away from that of its atoms in the training set",
        ),
        (_huge_stress, "a stress of 3.5 eV/angstrom^3 exceeds `max_stress` (3)"),
    ],
)
def test_frame_beyond_a_bound_is_left_out(
    change: Callable[[Atoms], None],
    expected: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It alone, with its name, and the baseline is that of the others."""
    frames = clusters(9)
    change(frames[4])
    path = write(tmp_path / "water.xyz", frames)
    bounds, made = _bounds(path)
    kept = bounds.exclude(made, "training")
    assert [frame.name for frame in kept] == [
        frame.name for i, frame in enumerate(made) if i != 4
    ]
    (line,) = [record.getMessage() for record in caplog.records]
    where = f"training set, file '{path}', frame 4 (counted from 0): "
    assert line.startswith(where)
    assert expected in line

    model, _ = train(options(path, {"num_epochs": 1}), tmp_path)
    baseline = model.calibrations[ENERGY].baseline[:, 0].numpy()
    assert baseline @ [4, 2] == pytest.approx(-20.0, abs=3.0)


def test_bounds_are_options(tmp_path: Path) -> None:
    """In the unit of the data."""
    frames = clusters(9)
    _shifted_energy(frames[4])
    path = write(tmp_path / "water.xyz", frames)
    bounds, made = _bounds(path, max_energy=40.0)
    assert len(bounds.exclude(made, "training")) == 9
    bounds, made = _bounds(path, max_energy=2.0)
    assert len(bounds.exclude(made, "training")) == 8


@pytest.mark.parametrize(
    "energy_unit, length_unit", [("kcal/mol", "angstrom"), ("hartree", "bohr")]
)
def test_default_bounds_follow_the_units(
    energy_unit: str, length_unit: str, tmp_path: Path
) -> None:
    """50 eV/Å are 1153 kcal/mol/Å and 0.97 hartree/bohr."""
    frames = clusters(8)
    factor = {"kcal/mol": 23.0605, "hartree": 1.0 / 27.2114 * 0.529177}[energy_unit]
    for index, size in enumerate([40.0, 60.0]):
        frames[index].arrays["forces"][0] = [0.0, 0.0, size]
    for atoms in frames:
        atoms.arrays["forces"] *= factor
        if length_unit == "bohr":
            atoms.set_cell(atoms.cell / 0.529177, scale_atoms=True)
            del atoms.info["stress"]
    path = write(tmp_path / "water.xyz", frames)
    model, trainer, dataset = prepare(options(path))
    targets = {
        ENERGY: get_energy_target_info(
            ENERGY, {"quantity": "energy", "unit": energy_unit}, True, True
        )
    }
    info = DatasetInfo(length_unit, model.atomic_types, targets)
    model = type(model)(model.hypers, info)
    made = make_frames([dataset], "training", model, False)
    kept = LabelBounds(model, trainer.hypers, made).exclude(made, "training")
    assert [frame.name for frame in made if frame not in kept] == [made[1].name]


def test_labels_in_another_unit_are_refused(tmp_path: Path) -> None:
    """A unit is wrong, not most of the frames."""
    frames = clusters(6)
    for atoms in frames:
        atoms.info["stress"] = atoms.info["stress"] * -1602.18  # kbar, the other sign
    path = write(tmp_path / "water.xyz", frames)
    message = message_of(lambda: run_cli(tmp_path, options(path)))
    assert (
        "3 of 3 frames of the training set have labels that cannot be right" in message
    )
    assert f"file '{path}', frame" in message
    assert "exceeds `max_stress` (3)" in message


def test_validation_frames_are_held_to_the_same_bounds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The best model is not chosen by them."""
    path = write(tmp_path / "train.xyz", clusters(6))
    frames = clusters(12)[6:]
    frames[2].arrays["forces"][0] = [0.0, 0.0, 5000.0]
    _absurd_energy(frames[3])
    other = write(tmp_path / "val.xyz", frames)
    given = options(path, validation_set=options(other)["training_set"])
    run_cli(tmp_path, given)
    where = f"validation set, file '{other}', frame"
    assert f"{where} 2 (counted from 0): a force of 5e+03 eV/angstrom" in caplog.text
    assert f"{where} 3 (counted from 0): the energy 'energy' of 1e+12" in caplog.text


def test_baseline_of_another_method_is_refused(tmp_path: Path) -> None:
    """With what least squares give; that of free atoms is taken."""
    path = write(tmp_path / "water.xyz", clusters(6))
    given = options(path, {"atomic_baseline": {ENERGY: {1: -13.6, 8: -2041.0}}})
    message = message_of(lambda: train(given, tmp_path))
    assert "`atomic_baseline` leaves 686.1 eV per atom of the energies" in message
    assert "frame" in message and "Least squares give H " in message

    given = options(path, {"atomic_baseline": {ENERGY: {1: -1.0, 8: -2.0}}})
    model, _ = train(given, tmp_path)
    assert model.calibrations[ENERGY].baseline[:, 0].tolist() == [-1.0, -2.0]


def test_frames_that_are_all_equal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Equal energies have no spread to divide errors by."""
    path = write(tmp_path / "water.xyz", [clusters(1)[0] for _ in range(4)])
    with caplog.at_level(logging.INFO):
        _, trainer = train(options(path), tmp_path)
    assert "All 4 frames of the training set are the same" in caplog.text
    assert "4 of 4 frames of the validation set are in the training set" in caplog.text
    losses = [float(line.split("loss ")[1].split()[0]) for line in
              caplog.text.splitlines() if "| loss " in line]  # fmt: skip
    assert len(losses) == 2 and max(losses) < 1e3
    assert np.isfinite(trainer.progress.best_metric)


def test_element_of_the_validation_set_alone(tmp_path: Path) -> None:
    """Nothing could be learnt about it."""
    path = write(tmp_path / "train.xyz", clusters(4))
    frames = clusters(6)[4:]
    frames[1].symbols[0] = "S"
    other = write(tmp_path / "val.xyz", frames)
    given = options(path, validation_set=options(other)["training_set"])
    message = message_of(lambda: run_cli(tmp_path, given))
    assert f"validation set, file '{other}', frame 1 (counted from 0)" in message
    assert "it contains S, which no frame of the training set does" in message
