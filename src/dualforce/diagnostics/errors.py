"""Errors against labels and between forces, and symmetries that are broken."""

from typing import Any, List, Optional, Sequence

import ase
import numpy as np
from scipy.spatial.transform import Rotation

from ..dynamics.evaluation import Array, Evaluation
from .results import EnergyErrors, ForceErrors, Symmetries
from .runs import Progress, silent
from .subject import ForceField


LABELS = "labels"


def evaluate_frames(
    force: ForceField,
    frames: Sequence[ase.Atoms],
    progress: Progress = silent,
    numbers: Optional[Sequence[int]] = None,
) -> List[Evaluation]:
    """Forces, and energies where there are any, of structures.

    :param force: the force.
    :param frames: structures; what their calculators hold are labels.
    :param progress: told the part that is done.
    :param numbers: of the frames where they come from, for messages.
    :raises ValueError, RuntimeError, FloatingPointError: as the force does, with the
        number of the frame.
    """
    results = []
    for index, atoms in enumerate(frames):
        try:
            results.append(force.evaluate(atoms))
        except (ValueError, RuntimeError, FloatingPointError) as error:
            number = index if numbers is None else numbers[index]
            raise type(error)(f"frame {number} (counted from 0): {error}") from error
        progress((index + 1) / len(frames))
    return results


def energy_errors(
    frames: Sequence[ase.Atoms], predictions: Sequence[Evaluation]
) -> Optional[EnergyErrors]:
    """Errors of energies per atom against labels.

    Energies are compared as they are: if model and labels count from different zeros
    (energies of free atoms), that difference is the error.

    :param frames: structures; those without an energy are left out.
    :param predictions: for each of them, with energies.
    :return: nothing if no frame has an energy.
    :raises ValueError: if a label is not finite.
    """
    errors = []
    for index, (atoms, prediction) in enumerate(zip(frames, predictions, strict=True)):
        label = energy_label(atoms, index)
        if label is not None and prediction.energy is not None:
            errors.append((prediction.energy - label) / len(atoms))
    if not errors:
        return None
    return EnergyErrors(
        mae=float(np.abs(errors).mean()),
        rmse=float(np.sqrt(np.square(errors).mean())),
        n_frames=len(errors),
    )


def force_errors(
    kind: str, frames: Sequence[ase.Atoms], predictions: Sequence[Evaluation]
) -> Optional[ForceErrors]:
    """Errors of forces against labels.

    :param kind: of force.
    :param frames: structures; those without forces are left out.
    :param predictions: for each of them.
    :return: nothing if no frame has forces.
    :raises ValueError: if a label is not finite or has another shape.
    """
    labels = [force_labels(atoms, index) for index, atoms in enumerate(frames)]
    return _compare(kind, LABELS, frames, [each.forces for each in predictions], labels)


def force_differences(
    kind: str,
    reference_kind: str,
    frames: Sequence[ase.Atoms],
    predictions: Sequence[Evaluation],
    reference: Sequence[Evaluation],
) -> Optional[ForceErrors]:
    """One kind of force against another one.

    :param kind: of force.
    :param reference_kind: of the force to compare with.
    :param frames: structures.
    :param predictions: for each of them.
    :param reference: likewise.
    :return: nothing if there are no frames.
    """
    return _compare(
        kind,
        reference_kind,
        frames,
        [each.forces for each in predictions],
        [each.forces for each in reference],
    )


def symmetries(
    force: ForceField,
    frames: Sequence[ase.Atoms],
    predictions: Sequence[Evaluation],
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> Symmetries:
    """Net force and torque, and what rotations and inversion do to the force.

    Net force and torque are means over frames, changes root mean squares over frames
    and atoms. Torques are taken around the mean position and without the net force;
    there is none if a frame is periodic.

    :param force: the force.
    :param frames: structures, at least one; each is turned once at random, cell and
        all, and inverted.
    :param predictions: for each of them.
    :param seed: of the rotations.
    :param progress: told the part that is done.
    :raises ValueError: if there are no frames.
    :raises RuntimeError, FloatingPointError: if the model fails.
    """
    if not frames:
        raise ValueError("symmetries need at least one structure")
    rng = np.random.default_rng(seed)
    turns = [Rotation.random(rng=rng).as_matrix() for _ in frames]
    cells = [
        atoms.cell.array @ turn.T for atoms, turn in zip(frames, turns, strict=True)
    ]
    rotation = _change(
        force, frames, predictions, turns, cells, lambda x: progress(0.5 * x)
    )
    # An inverted lattice is the same lattice.
    inversion = _change(
        force,
        frames,
        predictions,
        [-np.eye(3)] * len(frames),
        [atoms.cell.array for atoms in frames],
        lambda x: progress(0.5 + 0.5 * x),
    )
    forces = [prediction.forces for prediction in predictions]
    return Symmetries(
        kind=force.kind,
        net_force=float(np.mean([np.linalg.norm(f.mean(0)) for f in forces])),
        net_torque=_net_torque(frames, forces),
        rotation=rotation,
        inversion=inversion,
    )


def energy_label(atoms: ase.Atoms, index: int) -> Optional[float]:
    """The energy a structure was read with, in eV.

    :param atoms: structure.
    :param index: of the frame, for messages.
    :raises ValueError: if it is not finite.
    """
    label = _label(atoms, "energy", atoms.info.get("energy"))
    if label is None:
        return None
    if not np.isfinite(label):
        raise ValueError(f"frame {index} (counted from 0): the energy is {label}")
    return float(label)


def force_labels(atoms: ase.Atoms, index: int) -> Optional[Array]:
    """The forces a structure was read with, in eV/Å, shape ``[n_atoms, 3]``.

    :param atoms: structure.
    :param index: of the frame, for messages.
    :raises ValueError: if one is not finite, or their shape is wrong.
    """
    label = _label(atoms, "forces", atoms.arrays.get("forces"))
    if label is None:
        return None
    forces = np.asarray(label, dtype=np.float64)
    if forces.shape != (len(atoms), 3) or not np.isfinite(forces).all():
        raise ValueError(
            f"frame {index} (counted from 0): the forces must be finite numbers of "
            f"shape [{len(atoms)}, 3]; correct or remove the frame"
        )
    return forces


def _change(
    force: ForceField,
    frames: Sequence[ase.Atoms],
    predictions: Sequence[Evaluation],
    matrices: Sequence[Array],
    cells: Sequence[Array],
    progress: Progress,
) -> float:
    """RMS of what happens to forces when positions are multiplied by matrices, and the
    forces multiplied back."""
    moved = []
    for atoms, matrix, cell in zip(frames, matrices, cells, strict=True):
        moved.append(atoms.copy())
        moved[-1].set_cell(cell)
        moved[-1].positions = atoms.positions @ matrix.T
    results = evaluate_frames(force, moved, progress)
    changes = [
        result.forces @ matrix - before.forces
        for result, matrix, before in zip(results, matrices, predictions, strict=True)
    ]
    return _root_mean_square(changes)


def _label(atoms: ase.Atoms, name: str, otherwise: Any) -> Any:
    """What readers of ASE keep in a calculator, or else under its own name."""
    results = getattr(atoms.calc, "results", {})
    return results.get(name, otherwise)


def _compare(
    kind: str,
    reference: str,
    frames: Sequence[ase.Atoms],
    predicted: Sequence[Array],
    expected: Sequence[Optional[Array]],
) -> Optional[ForceErrors]:
    errors, symbols = [], []
    for atoms, mine, other in zip(frames, predicted, expected, strict=True):
        if other is not None:
            errors.append(mine - other)
            symbols.append(np.array(atoms.get_chemical_symbols()))
    if not errors:
        return None
    every, symbol = np.concatenate(errors), np.concatenate(symbols)
    return ForceErrors(
        kind=kind,
        reference=reference,
        mae=float(np.abs(every).mean()),
        rmse=_root_mean_square(errors),
        per_element={
            str(each): float(np.abs(every[symbol == each]).mean())
            for each in np.unique(symbol)
        },
        n_frames=len(errors),
    )


def _net_torque(
    frames: Sequence[ase.Atoms], forces: Sequence[Array]
) -> Optional[float]:
    if any(atoms.pbc.any() for atoms in frames):
        return None
    torques = []
    for atoms, force in zip(frames, forces, strict=True):
        arms = atoms.positions - atoms.positions.mean(0)
        torques.append(np.linalg.norm(np.cross(arms, force - force.mean(0)).mean(0)))
    return float(np.mean(torques))


def _root_mean_square(errors: Sequence[Array]) -> float:
    """Over all components."""
    return float(np.sqrt(np.square(np.concatenate(errors)).mean()))
