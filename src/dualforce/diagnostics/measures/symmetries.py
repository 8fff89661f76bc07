"""Symmetries that a force should have: rotation, inversion, no net force or torque."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import List, Optional

import ase
import numpy as np
from scipy.spatial.transform import Rotation

from ...forces import Array, Evaluation, ForceSource, Kind
from ..measure import Case, Measure, Progress, silent
from ..setup import Setup
from ..text import NOTHING, milli
from .errors import evaluate_frames


@dataclass(frozen=True)
class BrokenSymmetries:
    """Deviations from symmetry of one kind of force, all zero for an exact model."""

    kind: str
    net_force: float
    """Norm of the sum over atoms, as the model predicts it, divided by the number of
    atoms, in eV/Å."""
    net_torque: Optional[float]
    """Norm of the sum of torques over atoms, divided by the number of atoms, in eV;
    none for periodic systems."""
    rotation: float
    """RMS change of the force when the structure is turned at random and the force
    turned back, in eV/Å."""
    inversion: float
    """The same for inversion."""
    size: float
    """RMS of the force, in eV/Å."""


def broken_symmetries(
    source: ForceSource,
    kind: Kind,
    frames: Sequence[ase.Atoms],
    *,
    seed: int = 0,
    progress: Progress = silent,
    numbers: Optional[Sequence[int]] = None,
) -> BrokenSymmetries:
    """Net force and torque, and what rotations and inversion do to the force.

    Net force and torque are means over frames, changes root mean squares over frames
    and atoms. Torques are taken around the mean position and without the net force;
    there is none if a frame is periodic.

    :param source: source of forces.
    :param kind: kind of force.
    :param frames: structures, at least one; each is turned once at random, cell and
        all, and inverted.
    :param seed: seed of the rotations.
    :param progress: told the part that is done.
    :param numbers: numbers of the frames in their file, for messages.
    :raises ValueError: if there are no frames.
    :raises RuntimeError, FloatingPointError: if the model fails.
    """
    if not frames:
        raise ValueError("symmetries need at least one structure")

    def evaluate(chosen: Sequence[ase.Atoms], part: int) -> List[Evaluation]:
        def report(share: float) -> None:
            progress((part + share) / 3.0)

        return evaluate_frames(source, kind, chosen, report, numbers)

    rng = np.random.default_rng(seed)
    turns = [Rotation.random(rng=rng).as_matrix() for _ in frames]
    inversions = [-np.eye(3)] * len(frames)
    forces = [each.forces for each in evaluate(frames, 0)]
    changes = []
    for part, matrices in enumerate((turns, inversions)):
        moved = [_transformed(*each) for each in zip(frames, matrices, strict=True)]
        results = evaluate(moved, part + 1)
        back = [
            result.forces @ matrix
            for result, matrix in zip(results, matrices, strict=True)
        ]
        changes.append(_root_mean_square(np.concatenate(back) - np.concatenate(forces)))
    return BrokenSymmetries(
        kind=kind,
        net_force=float(np.mean([np.linalg.norm(f.mean(0)) for f in forces])),
        net_torque=_net_torque(frames, forces),
        rotation=changes[0],
        inversion=changes[1],
        size=_root_mean_square(np.concatenate(forces)),
    )


def _transformed(atoms: ase.Atoms, matrix: Array) -> ase.Atoms:
    """A structure whose positions and cell are multiplied by an orthogonal matrix."""
    moved: ase.Atoms = atoms.copy()
    # An inverted lattice is the same lattice, but left-handed.
    sign = np.sign(np.linalg.det(matrix))
    moved.set_cell(sign * atoms.cell.array @ matrix.T)
    moved.positions = atoms.positions @ matrix.T
    return moved


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


def _root_mean_square(errors: Array) -> float:
    return float(np.sqrt(np.square(errors).mean()))


class Symmetries(Measure):
    """Rotation, inversion, net force and torque, for each kind of force."""

    name = "symmetries"
    title = "Symmetries"
    explanation = (
        "A force should turn with the structure (rotation, inversion), and neither "
        "push nor turn the whole system: net force and torque, per atom, are zero for "
        "a conservative force. The net force of direct forces is removed in runs."
    )
    result = BrokenSymmetries
    needs = "frames"
    columns = {
        "force": lambda findings, x: findings.label(x.kind),
        "RMS of the force / meV/Å": lambda _, x: milli(x.size),
        "change by rotation / meV/Å": lambda _, x: milli(x.rotation),
        "by inversion / meV/Å": lambda _, x: milli(x.inversion),
        "net force / meV/Å": lambda _, x: milli(x.net_force),
        "net torque / meV": lambda _, x: (
            NOTHING if x.net_torque is None else milli(x.net_torque)
        ),
    }

    def cases(self, setup: Setup) -> List[Case]:
        n_evaluations = 3.0 * len(setup.structures.frames)
        return [
            Case(
                kind,
                {"kind": kind, "seed": setup.conditions.seed},
                {kind: n_evaluations},
            )
            for kind in setup.source.kinds
        ]

    def measure(
        self, setup: Setup, progress: Progress, *, kind: Kind, seed: int
    ) -> BrokenSymmetries:
        return broken_symmetries(
            setup.source,
            kind,
            setup.structures.frames,
            seed=seed,
            progress=progress,
            numbers=setup.structures.frame_indices,
        )
