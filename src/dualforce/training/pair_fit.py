"""Least-squares fit of the potential between pairs of atoms, to forces."""

import math
from collections.abc import Sequence
from typing import List, NamedTuple, Optional, Tuple

import numpy as np
import scipy.linalg
import scipy.sparse
import torch
from ase.data import covalent_radii
from metatomic.torch import unit_conversion_factor
from numpy.typing import NDArray
from scipy.interpolate import BSpline
from torch import Tensor

from ..nn.pair_potential import PairPotential
from .data import Frame


Array = NDArray[np.float64]
Integers = NDArray[np.int64]

REACH = 1.5
"""Where the potential of two elements ends, in sums of their covalent radii. What is
farther is left to the network: those forces depend on what is around, and hundreds of
coefficients fitted to few frames would add a rough noise that it has to undo."""

GAP, MAX_IN_GAP = 1.0 / 6.0, 0.01
"""Bonds stand apart from other distances: in the last part of the range of a potential
there is at most such a share of its pairs. Where pairs come and go at its end, it is a
step in the forces, which the network cannot undo and the forces of another model do not
have."""

SMOOTHNESS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Weights of the roughness that are tried. The roughness of a potential is the sum of
squared second differences of its coefficients. The fit minimises the sum of squared
errors of forces plus the roughness times the weight times the mean diagonal element of
the normal equations. The weight is found by cross-validation between two halves of the
frames: the largest whose error is hardly more than the least one
(:data:`HARDLY_MORE`). Closer than in the data the potential is a straight line; from
the longest bond on its force falls to zero."""

HARDLY_MORE = 1.01
"""Sum of squared errors relative to the least one. Just outside of the data a potential
is determined by the few longest bonds, and by its smoothness: with the weight of the
least error, the force between carbons 0.02 Å farther apart than any in 450 frames of a
molecule was wrong by 7 eV/Å."""

MAX_ATOMS = 30_000
"""Atoms whose forces are fitted; more bring nothing."""

MAX_UNKNOWNS = 6_000
"""There is no pair potential for elements so many that they need more."""


class _Normal(NamedTuple):
    """Normal equations."""

    matrix: Array
    right: Array
    square: float

    def error(self, solution: Array) -> float:
        """Sum of squared errors."""
        change = solution @ (self.matrix @ solution - 2.0 * self.right)
        return max(0.0, self.square + float(change))

    def solve(self, penalty: Array, smoothness: float) -> Array:
        scale = smoothness * np.trace(self.matrix) / len(self.matrix)
        # Pairs that never occur have a potential of zero.
        penalty = scale * (penalty + 1e-6 * np.eye(len(self.matrix)))
        return np.asarray(np.linalg.solve(self.matrix + penalty, self.right))


def n_coefficients(
    potential: PairPotential, atomic_types: Sequence[int], length_unit: str
) -> Integers:
    """How many coefficients are fitted for each pair of elements: those of splines that
    end within the reach of a bond.

    :param atomic_types: atomic numbers.
    :param length_unit: that of the data.
    :return: shape ``[n_pairs]``.
    """
    scale = REACH * unit_conversion_factor("angstrom", length_unit or "angstrom")
    counts = np.zeros(potential.n_pairs, dtype=np.int64)
    for i in atomic_types:
        for j in atomic_types:
            reach = scale * (covalent_radii[i] + covalent_radii[j])
            counts[potential.pair_index[i, j]] = int(reach / potential.spacing)
    return counts.clip(max=potential.n_intervals)


def only_bonds(
    potential: PairPotential,
    counts: Integers,
    frames: Sequence[Frame],
) -> Integers:
    """The same coefficients, none for pairs of elements that are no bonds: whose
    distances have no gap before the end of the potential (:data:`GAP`).

    :param potential: the potential.
    :param counts: see :func:`n_coefficients`.
    :param frames: the frames that are fitted.
    :return: shape ``[n_pairs]``.
    """
    ends = potential.spacing * counts
    inside = np.zeros(len(counts), dtype=np.int64)
    late = inside.copy()
    for frame in _spread(frames):
        lengths, pairs = _lengths_and_pairs(potential, edge_vectors(frame), frame)
        near = lengths < ends[pairs]
        inside += np.bincount(pairs[near], minlength=len(counts))
        near &= lengths >= (1.0 - GAP) * ends[pairs]
        late += np.bincount(pairs[near], minlength=len(counts))
    return np.where(late > MAX_IN_GAP * inside, 0, counts)


def fit_pair_potential(
    potential: PairPotential,
    counts: Integers,
    target: str,
    label: str,
    frames: Sequence[Frame],
    most_left: float = 1.0,
) -> Optional[float]:
    """Fit the potential of a target. It stays zero where it leaves too much of the
    forces of frames that were not fitted, where there would be more than
    :data:`MAX_UNKNOWNS` coefficients, and where there are fewer than two frames.

    :param potential: the potential, changed in place.
    :param counts: see :func:`n_coefficients`.
    :param target: name of an energy, or of a direct force.
    :param label: name of the labels that are its forces.
    :param frames: frames; only those with the label are used.
    :param most_left: what it may leave, as a share of the root mean square.
    :return: root mean square of the forces that remain in frames that were not fitted,
        relative to that of the forces, or None where the potential stays zero.
    """
    chosen = _spread([frame for frame in frames if label in frame.labels])
    if len(chosen) < 2 or not 0 < counts.sum() <= MAX_UNKNOWNS:
        return None
    halves = [_normal_equations(potential, counts, label, chosen[k::2]) for k in (0, 1)]
    if not all(half.square and half.matrix.any() for half in halves):
        return None
    differences = [np.diff(np.eye(count + 2, count), 2, 0) for count in counts]
    penalty = scipy.linalg.block_diag(*(second.T @ second for second in differences))
    errors = {
        smoothness: sum(
            other.error(half.solve(penalty, smoothness))
            for half, other in (halves, halves[::-1])
        )
        for smoothness in SMOOTHNESS
    }
    least = min(errors.values())
    best = max(s for s, error in errors.items() if error <= HARDLY_MORE * least)
    left = math.sqrt(errors[best] / (halves[0].square + halves[1].square))
    if left >= most_left:
        return None
    whole = _Normal(
        halves[0].matrix + halves[1].matrix, halves[0].right + halves[1].right, 0.0
    )
    solution = np.zeros((potential.n_pairs, potential.n_intervals))
    solution[np.arange(potential.n_intervals) < counts[:, None]] = whole.solve(
        penalty, best
    )
    potential.coefficients[potential.sets[target]] = polynomials(potential, solution)
    return left


def edge_vectors(frame: Frame) -> Tensor:
    """Vectors from centers to neighbours, shape ``[n_edges, 3]``."""
    vectors = frame.positions[frame.neighbors] - frame.positions[frame.centers]
    return vectors + frame.shifts @ frame.cell


def _lengths_and_pairs(
    potential: PairPotential, vectors: Tensor, frame: Frame
) -> Tuple[Array, Integers]:
    """Lengths of the edges of a frame, and the numbers of their pairs of elements."""
    types = frame.types[frame.centers], frame.types[frame.neighbors]
    pairs = potential.pair_index.cpu()[types]
    return torch.linalg.vector_norm(vectors, dim=1).numpy(), pairs.numpy()


def _spread(frames: Sequence[Frame]) -> Sequence[Frame]:
    """Frames from everywhere, with about ``MAX_ATOMS`` atoms."""
    n_atoms = sum(len(frame) for frame in frames)
    return frames[:: max(1, n_atoms // MAX_ATOMS)]


def _knots(potential: PairPotential) -> Array:
    return potential.spacing * np.arange(-3, potential.n_intervals + 4)


def _normal_equations(
    potential: PairPotential, counts: Integers, label: str, frames: Sequence[Frame]
) -> _Normal:
    # Without the last three functions the spline ends with two zero derivatives.
    size = potential.n_intervals
    slope = BSpline(_knots(potential), np.eye(size + 3)[:, :size], 3).derivative()
    n_unknowns = int(counts.sum())
    matrix, right = np.zeros((n_unknowns, n_unknowns)), np.zeros(n_unknowns)
    square = 0.0
    for frame in frames:
        forces = frame.labels[label].numpy().reshape(-1)
        columns, design = _design(potential, counts, frame, slope)
        matrix[np.ix_(columns, columns)] += design.T @ design
        right[columns] += design.T @ forces
        square += float(forces @ forces)
    return _Normal(matrix, right, square)


def _design(
    potential: PairPotential, counts: Integers, frame: Frame, slope: BSpline
) -> Tuple[Integers, Array]:
    """Forces of a frame for each coefficient that matters: which these are, and a
    matrix ``[3 * n_atoms, n_columns]``."""
    of_edges = edge_vectors(frame)
    lengths, pairs = _lengths_and_pairs(potential, of_edges, frame)
    vectors = of_edges.numpy()
    inside = lengths < potential.spacing * counts[pairs]
    first = np.cumsum(counts) - counts
    columns: List[Integers] = [np.zeros(0, dtype=np.int64)]
    blocks: List[Array] = [np.zeros((3 * len(frame), 0))]
    for pair in np.unique(pairs[inside]):
        edges = np.flatnonzero(inside & (pairs == pair))
        shape, place = (len(frame), len(edges)), np.arange(len(edges))
        rows = frame.centers.numpy()[edges]
        values = slope(lengths[edges])[:, : counts[pair]]
        units = vectors[edges] / lengths[edges, None]
        block = [
            scipy.sparse.csr_matrix((unit, (rows, place)), shape) @ values
            for unit in units.T
        ]
        blocks.append(np.stack(block, axis=1).reshape(3 * len(frame), -1))
        columns.append(first[pair] + np.arange(counts[pair]))
    return np.concatenate(columns), np.concatenate(blocks, axis=1)


def polynomials(potential: PairPotential, solution: Array) -> Tensor:
    """Convert coefficients of splines, ``[n_pairs, n_intervals]``, to those of powers
    of the fraction of an interval, lowest first, ``[n_pairs * n_intervals, 4]``."""
    size = potential.n_intervals
    padded = np.zeros((size + 3, potential.n_pairs))
    padded[:size] = solution.T
    spline = BSpline(_knots(potential), padded, 3)
    starts = potential.spacing * np.arange(size)
    powers = [
        spline(starts, nu) * potential.spacing**nu / math.factorial(nu)
        for nu in range(4)
    ]
    # [n_intervals, n_pairs] each
    return torch.from_numpy(np.stack(powers, axis=-1).transpose(1, 0, 2).reshape(-1, 4))
