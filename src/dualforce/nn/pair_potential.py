"""A potential between pairs of atoms, which the network corrects.

Most of a force between bonded atoms is a function of their distance. Energy and direct
force share that part exactly, so the two heads of the network can only differ in the
rest: what is left of ``f_C - f_D`` along stiff bonds is what limits multiple time
stepping.
"""

import math
from typing import Dict, List, Tuple

import numpy as np
import torch
from metatomic.torch import NeighborListOptions
from torch import Tensor

from .pairs import PairTerm


SPACING = 0.1
"""Distance of the knots, in the unit of length."""


class PairPotential(PairTerm):
    """Cubic splines of the distance, one for each pair of elements, with continuous
    second derivatives, also at the cutoff.

    :param atomic_types: atomic numbers.
    :param neighbor_list: that of the network.
    """

    sets: Dict[str, int]
    pair_index: Tensor
    coefficients: Tensor

    def __init__(
        self, atomic_types: List[int], neighbor_list: NeighborListOptions
    ) -> None:
        super().__init__(neighbor_list, saturates=True)
        n_types = len(atomic_types)
        self.n_intervals = math.ceil(neighbor_list.cutoff / SPACING)
        self.spacing = neighbor_list.cutoff / self.n_intervals
        self.n_pairs = n_types * (n_types + 1) // 2
        pair_index = torch.zeros((max(atomic_types) + 1,) * 2, dtype=torch.long)
        for number, (i, j) in enumerate(np.argwhere(np.tri(n_types))):
            for a, b in ((i, j), (j, i)):
                pair_index[atomic_types[a], atomic_types[b]] = number
        self.register_buffer("pair_index", pair_index)
        self.sets = {}
        shape = (0, self.n_pairs * self.n_intervals, 4)
        self.register_buffer("coefficients", torch.zeros(shape, dtype=torch.float64))

    @torch.jit.unused
    def add(self, names: List[str]) -> None:
        """Let targets share a potential: a new one, unless one of them has one."""
        known = [self.sets[name] for name in names if name in self.sets]
        if not known:
            old = self.coefficients
            self.coefficients = torch.cat([old, old.new_zeros(1, *old.shape[1:])])
            known = [len(old)]
        for name in names:
            self.sets[name] = known[0]

    @torch.jit.unused
    def fitted(self) -> List[str]:
        """Targets whose potential is not zero."""
        nonzero = self.coefficients.abs().sum((1, 2)) > 0.0
        return [name for name, index in self.sets.items() if nonzero[index]]

    @torch.jit.unused
    def reach(self) -> float:
        """See :class:`.pairs.PairTerm`."""
        size = self.coefficients.abs().sum((0, 2)).reshape(-1, self.n_intervals)
        intervals = torch.nonzero(size.sum(0)).reshape(-1)
        return self.spacing * float(intervals[-1] + 1) if len(intervals) else 0.0

    def pair_energies(
        self, name: str, types_i: Tensor, types_j: Tensor, distances: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """See :class:`.pairs.PairTerm`."""
        steps = distances / self.spacing
        interval = steps.detach().to(torch.long).clamp(max=self.n_intervals - 1)
        x = steps - interval
        row = self.pair_index[types_i, types_j] * self.n_intervals + interval
        table = self.coefficients[self.sets[name]].to(distances.dtype)
        c = table.index_select(0, row).unbind(1)
        energies = c[0] + x * (c[1] + x * (c[2] + x * c[3]))
        slopes = (c[1] + x * (2.0 * c[2] + x * (3.0 * c[3]))) / self.spacing
        inside = 0.5 * (distances < self.interaction_range).to(distances.dtype)
        return inside * energies, inside * slopes
