r"""Whether energies, forces and stresses belong to each other.

A wrong unit or sign of one of the three trains without an error, and no bound on single
labels finds it. Two relations do, where the frames allow it:

- A potential between pairs of atoms, fitted to the forces, has an energy and a virial.
  Over all frames the labels must rise with them in proportion, by a factor near one: a
  factor of 27 is a wrong unit, a negative one a wrong sign.
- Between two close frames of the same atoms, the energy changes by :math:`-\sum_i F_i
  \cdot dr_i + W : \varepsilon`, with the means of forces and virials, displacements
  :math:`dr` and strain :math:`\varepsilon`.

Nothing is said where the correlation is too weak for a factor to mean anything.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from metatomic.torch import System
from metatrain.utils.neighbor_lists import get_system_with_neighbor_lists
from numpy.typing import NDArray

from ..nn.pair_potential import PairPotential
from ..nn.wall import Wall
from .baselines import count_atoms, least_squares
from .data import Frame
from .fitting import angstrom_of, forces_matter
from .model import DualForce
from .pair_fit import MAX_ATOMS, fit_pair_potential, n_coefficients
from .targets import FORCES_GRADIENT, VIRIAL_GRADIENT, EnergyTarget


Array = NDArray[np.float64]

LEAST_FRAMES = 10
"""Fewer frames are not compared."""

CORRELATION, CORRELATION_CLOSE = 0.45, 0.95
"""Least correlation of labels with a pair potential, and between close frames. Right
labels of water, molecules, metals and surfaces gave factors from 0.8 to 1.1 for virials
without their trace, and from 0.5 to 2.3 for energies."""

SIGNIFICANCE = 4.0
"""Least correlation in its own standard deviation, for labels that have nothing to do
with each other."""

TOLERANCE, TOLERANCE_ENERGY = 2.0, 5.0
"""Factors of virials and of energies that are still taken for one, or their inverse."""

CLOSE = 0.2
"""Frames are close if the root mean square displacement of an atom, in Å, plus the
largest element of the strain is below this."""

SHARE = 0.3
"""Least share of the changes of energy between close frames that a term must explain to
be judged."""

MAX_FRAMES, NEXT = 500, 3
"""Frames among which close ones are looked for: for each, among so many that follow it
in the file, and by volume."""


@dataclass(frozen=True)
class Relation:
    """Labels against what they should be, without a constant.

    :param labels: what is compared.
    :param expected: what it should equal.
    :param least_correlation: without sign; of a weaker one nothing is said.
    :param tolerance: largest factor, or inverse of it, that is taken for one.
    :param n_fitted: numbers that were fitted to both.
    """

    labels: Array
    expected: Array
    least_correlation: float
    tolerance: float
    n_fitted: int = 0

    @property
    def correlation(self) -> float:
        """Of the two, about zero."""
        norm = math.sqrt(float((self.labels**2).sum() * (self.expected**2).sum()))
        return float((self.labels * self.expected).sum()) / norm if norm > 0.0 else 0.0

    @property
    def factor(self) -> float:
        """By which the labels are too large."""
        square = float((self.expected**2).sum())
        return float((self.labels * self.expected).sum()) / square if square else 1.0

    @property
    def contradicts(self) -> bool:
        """Whether the factor is clear and is not one."""
        freedom = max(1, self.labels.size - self.n_fitted)
        least = max(self.least_correlation, SIGNIFICANCE / math.sqrt(freedom))
        if abs(self.correlation) < least:
            return False
        return not 1.0 / self.tolerance < self.factor < self.tolerance


Relations = Tuple[Optional[Relation], Optional[Relation]]
"""Of energies with forces, and of virials with energies and forces, where there are
any."""


class _Labels(NamedTuple):
    """Names of the labels that are compared."""

    energy: str
    forces: str
    virial: str


def _labels_of(target: EnergyTarget, frames: Sequence[Frame]) -> _Labels:
    """Forces and virials that frames have: gradients of the energy, or direct
    targets."""
    names = [target.name]
    for suffix, direct in (
        (FORCES_GRADIENT, target.force),
        (VIRIAL_GRADIENT, target.stress),
    ):
        gradient = target.name + suffix
        has_gradient = any(gradient in frame.labels for frame in frames)
        names.append(gradient if has_gradient or direct is None else direct)
    return _Labels(*names)


# ------------------------------------------------------------- with a pair potential


class PairReference:
    """Energies and virials of a pair potential that is fitted to the forces.

    :param model: the model, which knows types and units.
    :param label: name of the forces.
    :param frames: frames, all with forces.
    """

    def __init__(self, model: DualForce, label: str, frames: Sequence[Frame]) -> None:
        self._potential = PairPotential(
            model.atomic_types, model.requested_neighbor_lists()[0]
        )
        self._potential.add([label])
        self._no_wall = Wall(model.atomic_types).starts
        sizes = n_coefficients(
            self._potential, model.atomic_types, model.dataset_info.length_unit
        )
        fit_pair_potential(self._potential, sizes, label, label, frames)
        self.is_fitted = bool(self._potential.fitted())
        self._label = label

    def of(self, frame: Frame) -> Tuple[float, Array]:
        """Energy of a frame, and its virial, shape ``[3, 3]``."""
        system = System(
            types=frame.types.to(torch.int32),
            positions=frame.positions,
            cell=frame.cell,
            pbc=frame.pbc,
        )
        system = get_system_with_neighbor_lists(system, [self._potential.neighbor_list])
        edges = self._potential.edges([system], self._no_wall)
        energies = self._potential.contribution(self._label, "scalar", edges)
        virials = self._potential.contribution(self._label, "stress", edges)
        return float(energies.sum()), virials.sum(0)[:, :, 0].numpy()


def _without_trend(values: Array, trend: Array) -> Array:
    """What a linear function of the columns of ``trend`` does not explain."""
    return values - trend @ least_squares(trend, values)


def _energy_relation(
    model: DualForce, energy: str, frames: Sequence[Frame], pairs: Sequence[float]
) -> Relation:
    """Energies against those of pairs, beyond what composition and volume explain:
    forces say nothing about these."""
    counts = count_atoms(model.atomic_types, frames)
    sizes = counts.sum(1, keepdims=True)
    totals = np.array([[float(frame.labels[energy].sum())] for frame in frames])
    volumes = np.array([[frame.volume] for frame in frames]) / sizes
    trend = np.hstack([counts / sizes, volumes, volumes**2])
    return Relation(
        _without_trend(totals / sizes, trend),
        _without_trend(np.array(pairs)[:, None] / sizes, trend),
        CORRELATION,
        TOLERANCE_ENERGY,
        int(np.linalg.matrix_rank(trend)),
    )


def _virial_relation(
    frames: Sequence[Frame], label: str, pairs: Sequence[Array]
) -> Optional[Relation]:
    """Virials against those of pairs, without their trace: a force that depends on the
    volume alone adds to the trace."""
    chosen = [i for i, frame in enumerate(frames) if label in frame.labels]
    if len(chosen) < LEAST_FRAMES:
        return None

    def deviator(virial: Array, frame: Frame) -> Array:
        return (virial - np.eye(3) * np.trace(virial) / 3.0) / len(frame)

    labels = [frames[i].labels[label].numpy().reshape(3, 3) for i in chosen]
    return Relation(
        np.array([deviator(v, frames[i]) for v, i in zip(labels, chosen, strict=True)]),
        np.array([deviator(pairs[i], frames[i]) for i in chosen]),
        CORRELATION,
        TOLERANCE,
    )


def _pair_relations(
    model: DualForce, labels: _Labels, frames: Sequence[Frame]
) -> Relations:
    """Energies and virials against those of a pair potential."""
    if not forces_matter(model, labels.energy, labels.forces, frames):
        return None, None
    reference = PairReference(model, labels.forces, frames)
    if not reference.is_fitted:
        return None, None
    energies, virials = zip(*map(reference.of, frames), strict=True)
    return (
        _energy_relation(model, labels.energy, frames, energies),
        _virial_relation(frames, labels.virial, virials),
    )


# ------------------------------------------------------------- between close frames


def _close_pairs(
    frames: Sequence[Frame], angstrom: float
) -> Iterator[Tuple[Frame, Frame]]:
    """Close frames of the same atoms in the same order."""
    groups: Dict[Tuple[Tuple[int, ...], Tuple[bool, ...]], List[Frame]] = {}
    for frame in frames:
        key = (tuple(frame.types.tolist()), tuple(frame.pbc.tolist()))
        groups.setdefault(key, []).append(frame)
    for group in groups.values():
        for order in (group, sorted(group, key=lambda frame: frame.volume)):
            for place, frame in enumerate(order):
                others = order[place + 1 : place + 1 + NEXT]
                distances = [_distance(frame, other, angstrom) for other in others]
                if distances and min(distances) < CLOSE:
                    yield frame, others[int(np.argmin(distances))]


def _distance(first: Frame, second: Frame, angstrom: float) -> float:
    moved, strain = _path(first, second)
    distance = float(np.sqrt((moved**2).sum(1).mean())) / angstrom
    distance += float(np.abs(strain).max())
    # Copies tell nothing.
    return distance if distance > 0.0 else math.inf


def _path(first: Frame, second: Frame) -> Tuple[Array, Array]:
    """Displacements of atoms and strain of the cell from one frame to the other."""
    pbc = first.pbc.numpy()
    cells = [_spanning(frame.cell.numpy(), pbc) for frame in (first, second)]
    mean = 0.5 * (cells[0] + cells[1])
    fractions = [
        frame.positions.numpy() @ np.linalg.inv(cell)
        for frame, cell in zip((first, second), cells, strict=True)
    ]
    moved = fractions[1] - fractions[0]
    moved[:, pbc] -= np.round(moved[:, pbc])
    moved = moved @ mean
    strain = np.linalg.inv(mean) @ (cells[1] - cells[0])
    return moved - moved.mean(0), strain


def _spanning(cell: Array, pbc: NDArray[np.bool_]) -> Array:
    """A cell with unit vectors in the directions that are not periodic."""
    if pbc.all():
        return cell
    periodic = cell[pbc]
    others = np.linalg.svd(np.vstack([periodic, np.zeros((1, 3))]))[2][len(periodic) :]
    out = np.array(cell)
    out[~pbc] = others
    return out


def _changes(
    frames: Sequence[Frame], labels: _Labels, angstrom: float
) -> Tuple[Array, Array]:
    """Between close frames, per atom: changes of energy, ``[n_pairs]``, and what forces
    and virials lead to expect, ``[n_pairs, 2]``."""
    changes, works = [], []
    for first, second in _close_pairs(frames, angstrom):
        moved, strain = _path(first, second)
        size, both = len(first), (first.labels, second.labels)
        forces = sum(each[labels.forces].numpy().squeeze(-1) for each in both) / 2.0
        virials = [
            each[labels.virial].numpy().reshape(3, 3)
            for each in both
            if labels.virial in each
        ]
        work = (sum(virials) * strain).sum() / 2.0 if len(virials) == 2 else 0.0
        works.append([-(forces * moved).sum() / size, work / size])
        energies = [float(each[labels.energy]) for each in both]
        changes.append((energies[1] - energies[0]) / size)
    return np.array(changes), np.array(works)


def _close_relations(
    frames: Sequence[Frame], labels: _Labels, angstrom: float
) -> Relations:
    """Changes of energy against work of forces, and work of virials against changes of
    energy, where the respective term matters; each without the part of the other."""
    change, work = _changes(frames, labels, angstrom)
    if len(change) < LEAST_FRAMES:
        return None, None
    factors = least_squares(work, change[:, None])[:, 0]
    shares = np.abs(factors) * np.sqrt((work**2).mean(0))
    judged = shares > SHARE * math.sqrt(float((change**2).mean()))
    by_forces = change - factors[1] * work[:, 1]
    by_virials = change - factors[0] * work[:, 0]
    bounds = (CORRELATION_CLOSE, TOLERANCE)
    return (
        Relation(by_forces, work[:, 0], *bounds) if judged[0] else None,
        Relation(work[:, 1], by_virials, *bounds) if judged[1] else None,
    )


# ------------------------------------------------------------------------- together


def find_contradictions(
    model: DualForce, target: EnergyTarget, frames: Sequence[Frame]
) -> List[str]:
    """Sentences about labels that contradict each other.

    :param model: the model, which knows types and units.
    :param target: an energy of structures.
    :param frames: frames with labels in physical units.
    """
    labels = _labels_of(target, frames)
    known = [
        f for f in frames if labels.energy in f.labels and labels.forces in f.labels
    ]
    chosen = known[:: max(1, sum(map(len, known)) // MAX_ATOMS)]
    if len(chosen) < LEAST_FRAMES:
        return []
    sources = (
        _pair_relations(model, labels, chosen),
        _close_relations(known[:MAX_FRAMES], labels, angstrom_of(model)),
    )
    found: List[str] = []
    for index, (what, than) in enumerate(
        (("energies", "forces"), ("stresses", "energies and forces"))
    ):
        relations = [relation for source in sources if (relation := source[index])]
        wrong = [relation for relation in relations if relation.contradicts]
        if wrong:
            found.append(
                f"the {what} of '{target.name}' do not belong to its {than}: they are "
                f"{wrong[0].factor:.3g} times what these lead to expect (correlation "
                f"{wrong[0].correlation:.2f}, {len(chosen)} frames). Check units and "
                f"signs of {what} and forces"
            )
    return found


def warn_of_contradictions(model: DualForce, frames: Sequence[Frame]) -> None:
    """Warn of labels that contradict each other.

    :param model: the model.
    :param frames: training frames with labels in physical units.
    """
    for energy in model.energies:
        if model.targets[energy.name].sample_kind == "system":
            for sentence in find_contradictions(model, energy, frames):
                logging.warning(f"In the training set, {sentence}")
