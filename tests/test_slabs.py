"""Stresses of slabs: structures that are periodic in two directions, in a cell with a
vector through the vacuum."""

import warnings
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
import torch
from ase import Atoms
from helpers import STRESS, as_system, energy_of, evaluate, make_model, random_cell
from train_helpers import (
    PAINN,
    clusters,
    message_of,
    options,
    prepare,
    run_cli,
    train,
    write,
)

from dualforce.forces.metatomic import MetatomicForces
from dualforce.training.data import make_frames
from dualforce.training.fitting import fit_calibration, remove_pair_terms, to_raw_units
from dualforce.training.model import DualForce


F64 = torch.float64
EXPLICIT: Dict[str, Any] = {
    STRESS: {
        "key": "stress",
        "quantity": "pressure",
        "unit": "eV/A^3",
        "type": {"cartesian": {"rank": 2}},
        "sample_kind": "system",
    }
}


def slab(seed: int = 0, vacuum: float = 20.0) -> Atoms:
    """A slab in the plane of x and y, with vacuum along z."""
    atoms = random_cell(12, 6.0, seed)
    atoms.cell[2] = [0.0, 0.0, vacuum]
    atoms.positions[:, 2] += 3.0
    atoms.pbc = [True, True, False]
    return atoms


def periodic(atoms: Atoms) -> Atoms:
    """The same atoms, periodic across the vacuum as well."""
    atoms = atoms.copy()
    atoms.pbc = True
    return atoms


def labelled_slabs(number: int) -> List[Atoms]:
    """Water on a lattice in two directions, with energies, forces and stresses."""
    frames = clusters(number)
    for atoms in frames:
        atoms.set_cell([7.0, 8.0, 25.0])
        atoms.pbc = [True, True, False]
    return frames


@pytest.fixture(scope="module")
def forces(tmp_path_factory: pytest.TempPathFactory) -> MetatomicForces:
    """Both forces of a model with random weights and pair potentials."""
    path = tmp_path_factory.mktemp("slab") / "model.pt"
    make_model("painn").export().save(str(path))
    return MetatomicForces(path)


def test_both_stresses_are_those_with_vacuum(forces: MetatomicForces) -> None:
    """A slab has the stresses that the same atoms have in a cell with vacuum: virials
    divided by the volume of the cell."""
    atoms = slab()
    for found, expected in zip(
        forces.both(atoms, True), forces.both(periodic(atoms), True), strict=True
    ):
        assert found.stress is not None and expected.stress is not None
        assert np.abs(expected.stress).max() > 1e-4
        assert found.stress == pytest.approx(expected.stress, rel=1e-10, abs=1e-15)
        assert found.forces == pytest.approx(expected.forces, rel=1e-10, abs=1e-12)
    alone = forces.direct(atoms, True)
    (batch,) = forces.evaluate_batch("direct", [atoms], True)
    for other in (alone, batch):
        assert other.stress == pytest.approx(forces.both(atoms, True)[1].stress)


def test_conservative_stress_by_finite_differences(forces: MetatomicForces) -> None:
    """The derivative of the energy with respect to strain in the plane, over the volume
    of the cell."""
    atoms, step = slab(), 1e-4
    stress = forces.conservative(atoms, True).stress
    assert stress is not None
    energies = []
    for sign in (1.0, -1.0):
        moved = atoms.copy()
        strain = np.diag([1.0 + sign * step, 1.0, 1.0])
        moved.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        energies.append(forces.conservative(moved).energy)
    slope = (energies[0] - energies[1]) / (2.0 * step)
    assert stress[0, 0] == pytest.approx(slope / atoms.cell.volume, rel=1e-5)


def test_stress_shrinks_with_the_vacuum(forces: MetatomicForces) -> None:
    """As a stress in the convention of ASE does."""
    for index in (0, 1):
        thin, thick = (
            forces.both(slab(vacuum=v), True)[index].stress for v in (20.0, 40.0)
        )
        assert thin is not None and thick is not None
        assert thin == pytest.approx(2.0 * thick, rel=1e-9)


def test_asymmetry_of_periodic_directions(forces: MetatomicForces) -> None:
    """Whichever directions are periodic, and with atoms across their boundaries."""
    for pbc in ([True, False, True], [False, False, True]):
        atoms = random_cell(12, 6.0)
        atoms.pbc = pbc
        direct, conservative = forces.both(atoms, True)
        assert direct.stress is not None and np.isfinite(direct.stress).all()
        assert conservative.stress is not None
        # With a period of 6 Å and a cutoff of 4 Å, atoms would see their neighbours
        # in directions without a period, if there were one.
        whole = forces.both(periodic(atoms), True)[0]
        assert whole.stress is not None
        assert np.abs(whole.stress - direct.stress).max() > 1e-6


def test_structures_without_a_volume(forces: MetatomicForces) -> None:
    """There is a sentence; energies and forces are computed."""
    atoms = slab()
    atoms.cell[2] = 0.0
    for evaluate_ in (forces.both, forces.direct, forces.conservative):
        message = message_of(lambda evaluate_=evaluate_: evaluate_(atoms, True))
        assert "the structure has no volume, and so no stress" in message
    assert np.isfinite(forces.both(atoms)[1].forces).all()


def test_exported_model_does_not_pretend() -> None:
    """Engines that ask it for the direct stress of a slab get NaN, not zeros: metatomic
    gives models no cell vector through the vacuum. Molecules have none, zero."""
    model = make_model("painn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        slab_, molecule = slab(), slab()
        molecule.pbc = False
        systems = [as_system(model, atoms) for atoms in (slab_, molecule)]
    found = evaluate(model, systems)
    assert torch.isnan(found[STRESS][0]).all()
    assert (found[STRESS][1] == 0.0).all()
    assert torch.isfinite(found["energy"]).all()
    assert energy_of(model, molecule) == pytest.approx(float(found["energy"][1]))


# -------------------------------------------------------------------------- training


def _frames(path: Path, targets: Dict[str, Any], stress: bool = True) -> Any:
    given = options(path, energy={} if stress else {"stress": False})
    given["training_set"]["targets"].update(targets)
    model, _, dataset = prepare(given)
    return model, make_frames([dataset], "training", model, False)


@pytest.mark.parametrize("targets", [{}, EXPLICIT], ids=["derived", "declared"])
def test_labels_are_stresses_times_the_volume(
    targets: Dict[str, Any], tmp_path: Path
) -> None:
    """Of the cell in the file, whatever is periodic."""
    frames = labelled_slabs(4)
    path = write(tmp_path / "slab.xyz", frames)
    model, made = _frames(path, targets)
    for atoms, frame in zip(frames, made, strict=True):
        virial = atoms.info["stress"] * atoms.cell.volume
        for name in (STRESS, "energy_strain_gradients"):
            label = frame.labels[name].numpy().reshape(3, 3)
            assert label == pytest.approx(virial, rel=1e-6)
    fit_calibration(model, made, {}, True)
    spread = np.sqrt(np.mean([frame.labels[STRESS] ** 2 for frame in made])) / 6
    assert model.calibrations[STRESS].scale.tolist() == pytest.approx([spread] * 2)
    assert spread > 0.1


def test_slab_and_vacuum_train_alike(tmp_path: Path) -> None:
    """The same weights, and the same direct stress, to rounding."""
    found = []
    for change in (lambda atoms: atoms, periodic):
        frames = [change(atoms) for atoms in labelled_slabs(4)]
        path = write(tmp_path / "data.xyz", frames)
        given = options(path, {"num_epochs": 3})
        given["training_set"]["targets"].update(EXPLICIT)
        _, trainer = train(given, tmp_path)
        trainer.best_model().export().save(str(tmp_path / "model.pt"))
        forces = MetatomicForces(tmp_path / "model.pt")
        found.append(forces.direct(labelled_slabs(1)[0], True).stress)
    assert np.abs(found[0]).max() > 1e-6
    assert found[0] == pytest.approx(found[1], rel=1e-7)


def test_pairs_are_removed_from_the_stress_of_a_slab(tmp_path: Path) -> None:
    """What is subtracted from labels is what the model adds to its predictions."""
    path = write(tmp_path / "slab.xyz", labelled_slabs(4))
    given = options(
        path, model={"painn": dict(PAINN), "zbl": True, "pair_potential": False}
    )
    model, _, dataset = prepare(given)
    frames = make_frames([dataset], "training", model, False)
    fit_calibration(model, frames, {}, True)
    model.eval()
    atoms = labelled_slabs(1)[0]
    stresses = []
    for repelled in (model.repelled, []):
        model.repelled = repelled
        model.export().save(str(tmp_path / "model.pt"))
        stresses.append(
            MetatomicForces(tmp_path / "model.pt").direct(atoms, True).stress
        )
    model.repelled = ["energy", "non_conservative_force", STRESS]
    rest = remove_pair_terms(model, frames[:1])[0]
    removed = (frames[0].labels[STRESS] - rest.labels[STRESS]).numpy().reshape(3, 3)
    added = (stresses[0] - stresses[1]) * atoms.cell.volume
    assert np.abs(removed).max() > 1e-3
    assert added == pytest.approx(removed, rel=1e-6, abs=1e-9)


def test_stress_label_without_a_volume(tmp_path: Path) -> None:
    """It is refused with file and frame, also for a declared direct stress."""
    frames = labelled_slabs(4)
    frames[2].cell[2] = 0.0
    path = write(tmp_path / "slab.xyz", frames)
    message = message_of(lambda: _frames(path, {}))
    assert f"file '{path}', frame 2 (counted from 0): it has a stress" in message
    message = message_of(lambda: _frames(path, EXPLICIT, stress=False))
    assert "frame 2 (counted from 0): it has a stress" in message
    assert "one through the vacuum" in message


def test_raw_units_of_a_loaded_model(tmp_path: Path) -> None:
    """A checkpoint of a model of slabs predicts their virials on."""
    path = write(tmp_path / "slab.xyz", labelled_slabs(4))
    model, trainer = train(options(path), tmp_path)
    loaded = DualForce.load_checkpoint(trainer._checkpoint(model), "restart")
    _, made = _frames(path, {})
    for one, two in zip(
        to_raw_units(model, made), to_raw_units(loaded, made), strict=True
    ):
        assert torch.equal(one.labels[STRESS], two.labels[STRESS])


def test_final_evaluation_of_slabs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """metatrain's evaluation cannot know volumes, and is skipped with a sentence."""
    path = write(tmp_path / "slab.xyz", labelled_slabs(4))
    given = options(path, {"num_epochs": 1}, final_eval=True)
    given["training_set"]["targets"].update(EXPLICIT)
    run_cli(tmp_path, given, output=tmp_path / "model.pt")
    assert "the volumes of slabs, which their direct stresses need" in caplog.text
    assert (tmp_path / "model.pt").exists()
