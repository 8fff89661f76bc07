"""A penalty on the difference of conservative and direct force beside the data.

On the frames of the training set both forces match the labels, and so each other. The
dynamics meet other structures, where each has errors of its own, and drift by their
difference (:mod:`dualforce.md.prediction`). No labels are needed to see it: it is
compared on copies of the frames whose atoms are displaced at random.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Dict, List, Optional, Tuple

import torch
from metatomic.torch import unit_conversion_factor
from torch import Tensor

from ..nn.base import to_device
from .baselines import calibration_of
from .batches import StepFrames
from .data import Frame
from .fitting import angstrom_of
from .loss import Term
from .model import DualForce
from .targets import FORCES_GRADIENT
from .units import force_unit


SHARE = 0.5
"""Displaced copies for each frame with conservative forces."""

DISPLACEMENT = 0.05
"""Standard deviation of each coordinate, in Å: that of hydrogen in a bending mode at
300 K. Small against the range over which the network varies, so that a copy has the
edges of its frame."""


def displaced(frame: Frame, width: float, seed: int) -> Frame:
    """A copy of a frame with atoms displaced at random, without labels.

    :param frame: the frame.
    :param width: standard deviation of each coordinate, in the unit of the data.
    :param seed: of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed % 2**63)
    noise = torch.randn(frame.positions.shape, dtype=torch.float64, generator=generator)
    return replace(frame, positions=frame.positions + width * noise, labels={})


@dataclass(frozen=True)
class ForcePair:
    """The two forces of one energy on displaced copies.

    :param term: term of the loss of the conservative force.
    :param direct: term of the loss of its direct force.
    :param rows: atoms of the copies whose frames have labels of these forces, counted
        from the first atom of the first copy.
    :param count: components of forces compared in this step, by all processes.
    """

    term: Term
    direct: Term
    rows: Tensor
    count: int

    def penalty(self, predictions: Mapping[str, Tensor], first: int) -> Tensor:
        """Share of the mean loss of the difference that these copies contribute.

        :param predictions: in raw units, by name, shapes ``[n_atoms, 3, 1]``.
        :param first: first atom of the first copy.
        """
        rows = to_device(self.rows, predictions[self.direct.name].device)
        conservative = predictions[self.term.name][first:][rows]
        direct = predictions[self.direct.name][first:][rows]
        difference = self.term.scale * conservative - self.direct.scale * direct
        spread = self.term.scale * self.term.spread
        return self.term.weight * self.term.penalty(difference / spread) / self.count


@dataclass(frozen=True)
class Comparison:
    """What is compared in a step.

    :param copies: displaced copies of frames of this process.
    :param pairs: forces compared on them.
    :param weight: weight in the loss.
    """

    copies: List[Frame]
    pairs: List[ForcePair]
    weight: float

    def penalty(self, predictions: Mapping[str, Tensor]) -> Tensor:
        """Share of the penalty that the copies contribute, a scalar.

        :param predictions: of a batch that ends with the copies.
        """
        n_atoms = sum(len(copy) for copy in self.copies)
        penalties = [
            pair.penalty(predictions, len(predictions[pair.direct.name]) - n_atoms)
            for pair in self.pairs
        ]
        return self.weight * torch.stack(penalties).sum()


def make_comparison(
    model: DualForce,
    frames: StepFrames,
    places: Sequence[int],
    terms: Sequence[Term],
    weight: float,
    seed: int,
) -> Optional[Comparison]:
    """Displace frames of a step, and find what to compare on them.

    Forces with labels of different origin are not compared.

    :param model: the model.
    :param frames: frames of the step.
    :param places: those to displace, of all processes.
    :param terms: terms of the loss.
    :param weight: weight in the loss.
    :param seed: of the random numbers of the step.
    :return: None where there is nothing to compare in this process.
    """
    width = DISPLACEMENT * angstrom_of(model)
    sources, copies = [], []
    for place in places:
        for frame in frames.here([place]):
            sources.append(frame)
            copies.append(displaced(frame, width, seed + place))
    by_name = {term.name: term for term in terms}
    pairs = []
    for energy in model.energies:
        term = by_name.get(energy.name + FORCES_GRADIENT)
        direct = by_name.get(energy.force or "")
        if term is None or direct is None or direct.name not in energy.derived:
            continue
        labelled = [[term.name in frame.labels] * len(frame) for frame in sources]
        rows = torch.nonzero(torch.tensor(sum(labelled, []))).reshape(-1)
        if not len(rows):
            continue
        count = frames.count(term.name, places)
        pairs.append(ForcePair(term, direct, rows, count))
    return Comparison(copies, pairs, weight) if pairs else None


class DifferenceSums:
    """Root mean squares of conservative minus direct force over a validation set.

    :param model: the model, which knows energies and units.
    :param device: device of the network.
    """

    def __init__(self, model: DualForce, device: torch.device) -> None:
        self._forces: Dict[str, str] = {}
        self._scales: Dict[str, Tuple[float, float]] = {}
        length_unit = model.dataset_info.length_unit
        for energy in model.energies:
            if energy.force is None or energy.force not in energy.derived:
                continue
            unit = force_unit(model.targets[energy.name].unit, length_unit)
            physical = unit_conversion_factor(unit, "eV/angstrom") if unit else 1.0
            scales = [
                physical * float(calibration_of(model, name).scale.mean())
                for name in (energy.name, energy.force)
            ]
            self._forces[energy.name] = energy.force
            self._scales[energy.name] = (scales[0], scales[1])
        shape = (len(self._forces), 2)
        self.values = torch.zeros(shape, dtype=torch.float64, device=device)
        """Sum of squares and number of components, for each energy."""

    def add(self, predictions: Mapping[str, Tensor]) -> None:
        """Take note of a batch.

        :param predictions: in raw units, by name.
        """
        for row, (energy, force) in enumerate(self._forces.items()):
            gradient = energy + FORCES_GRADIENT
            if gradient not in predictions or force not in predictions:
                continue
            conservative, direct = self._scales[energy]
            difference = conservative * predictions[gradient].detach()
            difference = difference - direct * predictions[force].detach()
            self.values[row, 0] += difference.double().square().sum()
            self.values[row, 1] += difference.numel()

    def roots(self) -> Dict[str, float]:
        """By name of the energy, in eV/Å, where both forces were predicted."""
        found = zip(self._forces, self.values.tolist(), strict=True)
        return {
            energy: math.sqrt(squares / count)
            for energy, (squares, count) in found
            if count > 0.0
        }
