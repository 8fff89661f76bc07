"""Distances below those of the training data, which a network must not see.

What a network makes of distances that it has never met is anything at all, and several
layers multiply it. So distances are saturated below the shortest ones of the training
data; :class:`dualforce.nn.repulsion.WallRepulsion` takes over there.
"""

from typing import List, Tuple

import torch
from torch import Tensor, nn


SHARE = 0.1
"""Distances saturate at this share of the start of the wall below it."""

COINCIDENT = 1e-6
"""Atoms closer than this lie at the same place, and are left there to be found."""


def saturated_lengths(
    lengths: Tensor, starts: Tensor, share: float = SHARE, least: float = COINCIDENT
) -> Tuple[Tensor, Tensor]:
    r"""Distances as a network sees them, and their derivatives.

    Below the start :math:`s` of the wall, :math:`\tilde r = s - h \tanh((s - r) / h)`
    with :math:`h = s / 10`: value and two derivatives are continuous at the start.
    Above it the distance is returned bitwise unchanged.

    :param lengths: distances, shape ``[n_edges]``.
    :param starts: where the wall of each edge starts, zero where there is none.
    :param share: :math:`h / s`.
    :param least: least :math:`h`, where there is no wall.
    :return: :math:`\tilde r` and :math:`d \tilde r / d r`, both ``[n_edges]``.
    """
    depths = (starts - lengths).clamp(min=0.0)
    widths = (share * starts).clamp(min=least)
    bent = torch.tanh(depths / widths)
    return lengths + (depths - widths * bent), 1.0 - bent * bent


def saturate(vectors: Tensor, starts: Tensor, least: float = COINCIDENT) -> Tensor:
    """Vectors whose lengths are saturated, with unchanged directions.

    :param vectors: shape ``[n_edges, 3]``.
    :param starts: where the wall of each edge starts, shape ``[n_edges]``.
    :param least: vectors shorter than this stay as they are.
    """
    lengths = torch.linalg.vector_norm(vectors, dim=1)
    changed = (lengths.detach() < starts) & (lengths.detach() >= least)
    ones = torch.ones_like(lengths)
    lengths = torch.where(changed, lengths, ones)  # without gradients that are NaN
    seen, _ = saturated_lengths(lengths, starts)
    # Exactly one outside the wall, where a quotient might be rounded.
    factors = torch.where(changed, seen / lengths, ones)
    return vectors * factors.unsqueeze(1)


class Wall(nn.Module):
    """Where the wall of each pair of elements starts; saturates vectors below.

    :param atomic_types: atomic numbers that the model knows.
    """

    starts: Tensor
    """By atomic numbers of both atoms, symmetric, in the length unit of the model;
    zero where there is no wall. Representable in single precision, so that it is the
    same in networks of both precisions."""

    def __init__(self, atomic_types: List[int]) -> None:
        super().__init__()
        shape = (max(atomic_types) + 1,) * 2
        self.register_buffer("starts", torch.zeros(shape, dtype=torch.float64))

    @torch.jit.unused
    def set_starts(self, starts: Tensor) -> None:
        """
        :param starts: table as :attr:`starts`.
        """
        self.starts.copy_(starts.to(torch.float32))

    def of_edges(self, types: Tensor, centers: Tensor, neighbors: Tensor) -> Tensor:
        """Where the wall of each edge starts, shape ``[n_edges]``.

        :param types: atomic numbers, shape ``[n_atoms]``, integers of any precision.
        :param centers: first atom of each edge.
        :param neighbors: second atom of each edge.
        """
        types = types.to(torch.long)
        rows = (types * self.starts.shape[1]).index_select(0, centers)
        pairs = rows + types.index_select(0, neighbors)
        return self.starts.flatten().index_select(0, pairs)

    def forward(
        self, vectors: Tensor, types: Tensor, centers: Tensor, neighbors: Tensor
    ) -> Tensor:
        """Vectors whose lengths are saturated (:func:`saturate`); without an edge
        inside the wall the vectors as they are.

        :param vectors: shape ``[n_edges, 3]``.
        :param types: atomic numbers, shape ``[n_atoms]``.
        :param centers: first atom of each edge.
        :param neighbors: second atom of each edge.
        """
        starts = self.of_edges(types, centers, neighbors).to(vectors.dtype)
        # A GPU takes less time for it than the host for asking.
        on_host = vectors.device.type == "cpu"
        squares = vectors.detach().square().sum(1)
        if on_host and not bool((squares < starts * starts).any()):
            return vectors
        return saturate(vectors, starts)
