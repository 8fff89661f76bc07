"""The ``painn`` backbone: equivariant message passing with scalars and vectors.

After Schuett, Unke and Gastegger, arXiv:2102.03150 (the structure of messages and
updates), with sums over neighbours taken per radial basis function (see
:mod:`dualforce.nn.neighbors`) and pairwise readouts of forces.
"""

from typing import Dict, List, Optional

import torch
from torch import Tensor, nn

from .heads import (
    NodeFeatures,
    finite_limit,
    limited_scalars,
    make_head,
    mlp,
    radial_filters,
)
from .hypers import PaiNNHypers
from .layered import LayeredBackbone
from .neighbors import EdgeRows, RowPlan, make_rows, neighbor_sums
from .radial import RadialBasis


SOFTENING = 3.0
"""Square of the length below which a vector counts as short."""

LIMITS = (16.0, 8.0)
"""Scalars, and lengths of vectors, up to which features are what they are. In data they
stay below 5 and 3; products of features in one layer after another reach hundreds in
structures unlike any data."""


def limited(x: NodeFeatures, limits: Tensor) -> NodeFeatures:
    """Features that do not exceed one and a half times their limits: scalars, and
    lengths of vectors, as in :func:`.heads.limited_scalars`. Features below their
    limits are returned unchanged.

    :param x: features.
    :param limits: of scalars and of vectors, shape ``[2]``.
    """
    scalars, vectors = limited_scalars(x.scalars, limits[0]), x.vectors
    squares = (vectors * vectors).detach().sum(1)
    on_host = vectors.device.type == "cpu"
    if not on_host or bool((squares > limits[1] * limits[1]).any()):
        limit = finite_limit(limits[1], vectors.dtype)
        lengths = (vectors * vectors).sum(1).clamp(min=1e-12).sqrt()
        excess = (lengths - limit).clamp(min=0.0)
        bent = 0.5 * limit * torch.tanh(2.0 * excess / limit)
        vectors = vectors * (1.0 + (bent - excess) / lengths).unsqueeze(1)
    return NodeFeatures(scalars, vectors)


class Message(nn.Module):
    """Messages from neighbours (arXiv:2102.03150, Eqs. 7 and 8).

    :param n_channels: channels of scalars and of vectors.
    :param n_radial: radial basis functions.
    :param first: whether this is the first layer, where vectors are still zero.
    :param n_neighbors: typical number of neighbours; sums are divided by its root.
    """

    def __init__(
        self, n_channels: int, n_radial: int, first: bool, n_neighbors: float
    ) -> None:
        super().__init__()
        self.n_channels = n_channels
        self.first = first
        self.scale = n_neighbors**-0.5
        self.gates = mlp(n_channels, n_channels, n_channels * (1 if first else 2))
        self.filters = radial_filters(2 if first else 3, n_radial, n_channels)

    def forward(self, rows: EdgeRows, x: NodeFeatures) -> NodeFeatures:
        gates = self.gates(x.scalars)
        filters = [weights for weights in self.filters]  # noqa: C416, for TorchScript
        if self.first:
            sums = neighbor_sums(rows, gates, x.vectors[:, :0], filters)
            scalars, vectors = (self.scale * sums).split([1, 3], dim=1)
        else:
            own, carried = gates.chunk(2, dim=1)
            sums = neighbor_sums(rows, own, x.vectors * carried.unsqueeze(1), filters)
            scalars, made, moved = (self.scale * sums).split([1, 3, 3], dim=1)
            vectors = made + moved
        return NodeFeatures(x.scalars + scalars.squeeze(1), x.vectors + vectors)


class Update(nn.Module):
    """Mixing of scalars and vectors within an atom (arXiv:2102.03150, Eqs. 9 and 10).

    The norm of a vector has a kink where the vector vanishes, which makes forces rough
    between the frames of a small data set. So norms are ``sqrt(v^2 + softening)``,
    quadratic for short vectors.

    :param n_channels: channels of scalars and of vectors.
    """

    softening: Tensor

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.register_buffer("softening", torch.tensor(SOFTENING))
        self.mix = nn.Linear(n_channels, 2 * n_channels, bias=False)
        self.gates = mlp(2 * n_channels, n_channels, 3 * n_channels)

    def forward(self, x: NodeFeatures) -> NodeFeatures:
        u, v = self.mix(x.vectors).chunk(2, dim=-1)
        norms = torch.sqrt((v * v).sum(1) + self.softening)
        gates = self.gates(torch.cat([x.scalars, norms], dim=-1))
        # Not by `chunk`, whose gradient TorchScript gets wrong where a part is not used
        # (the last one, in models without direct forces).
        gates = gates.unflatten(-1, [3, -1])
        a, b, c = gates[:, 0], gates[:, 1], gates[:, 2]
        return NodeFeatures(
            x.scalars + a + b * (u * v).sum(1), x.vectors + u * c.unsqueeze(1)
        )


class PaiNN(LayeredBackbone):
    """Scalar-vector message passing over sparse edges.

    :param hypers: see :class:`dualforce.training.options.PaiNNHypers`.
    :param atomic_types: atomic numbers the network knows.
    :raises ValueError: if direct forces are to be read from a layer that is not there.
    """

    type_index: Tensor
    limits: Tensor
    depths: Dict[str, int]
    direct: Dict[str, bool]

    def __init__(self, hypers: PaiNNHypers, atomic_types: List[int]) -> None:
        basis = RadialBasis(hypers["cutoff"], hypers["n_radial"])
        n_layers, n_channels = hypers["n_layers"], hypers["n_channels"]
        super().__init__(basis, n_layers, n_channels, atomic_types)
        self.n_radial = hypers["n_radial"]
        self.n_neighbors = float(hypers["n_neighbors"])
        self.register_buffer("limits", torch.tensor(LIMITS))
        layers: List[nn.Module] = [
            nn.ModuleList(
                [
                    Message(n_channels, self.n_radial, i == 0, self.n_neighbors),
                    Update(n_channels),
                ]
            )
            for i in range(n_layers)
        ]
        self.set_layers(layers, hypers.get("n_direct_layers", n_layers))

    def make_head(self, kind: str, n_properties: int) -> nn.Module:
        return make_head(
            kind, n_properties, self.n_channels, self.n_radial, self.n_neighbors
        )

    def make_rows(
        self,
        vectors: Tensor,
        distances: Tensor,
        centers: Tensor,
        neighbors: Tensor,
        n_atoms: int,
        plan: Optional[RowPlan],
    ) -> EdgeRows:
        basis = self.basis(distances)
        directions = torch.cat(
            [torch.ones_like(distances).unsqueeze(1), vectors / distances.unsqueeze(1)],
            dim=1,
        )
        basis = (directions.unsqueeze(2) * basis.unsqueeze(1)).reshape(
            -1, 4 * self.n_radial
        )
        return make_rows(centers, neighbors, basis, n_atoms, plan)

    def features(
        self, rows: EdgeRows, species: Tensor, needed: int
    ) -> List[NodeFeatures]:
        scalars = self.embedding(species)
        x = NodeFeatures(
            scalars, torch.zeros_like(scalars).unsqueeze(1).repeat(1, 3, 1)
        )
        after = [x]
        for index, layer in enumerate(self.layers):  # a message and an update
            if index < needed:
                x = layer[1](layer[0](rows, x))  # type: ignore[index]
                x = limited(x, self.limits)
                after.append(x)
        return after
