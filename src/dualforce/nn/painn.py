"""The ``painn`` backbone: equivariant message passing with scalars and vectors.

After Schuett, Unke and Gastegger, arXiv:2102.03150 (the structure of messages and
updates), with sums over neighbours taken per radial basis function (see
:mod:`dualforce.nn.neighbors`) and pairwise readouts of forces.
"""

from typing import Dict, List, NamedTuple

import torch
from metatomic.torch import NeighborListOptions, System
from torch import Tensor, nn

from .base import Backbone, Graph, edge_vectors, system_edges
from .hypers import PaiNNHypers
from .neighbors import EdgeRows, make_rows, neighbor_sums
from .radial import RadialBasis


SOFTENING = 3.0
"""Square of the length below which a vector counts as short."""


LIMITS = (16.0, 8.0)
"""Scalars, and lengths of vectors, up to which features are what they are. In data they
stay below 5 and 3; products of features in one layer after another reach hundreds in
structures unlike any data."""


class NodeFeatures(NamedTuple):
    """State of the atoms."""

    scalars: Tensor
    """Shape ``[n_atoms, n_channels]``."""
    vectors: Tensor
    """Shape ``[n_atoms, 3, n_channels]``."""


def limited(x: NodeFeatures, limits: Tensor) -> NodeFeatures:
    r"""Features that do not exceed one and a half times their limits.

    A scalar, or the length of a vector, :math:`s > l` becomes :math:`l + h \tanh((s -
    l) / h)` with :math:`h = l / 2`: two derivatives are continuous. Features below
    their limits are returned unchanged.

    :param x: features.
    :param limits: of scalars and of vectors, shape ``[2]``.
    """
    scalars, vectors = x.scalars, x.vectors
    if bool((scalars.detach().abs() > limits[0]).any()):
        limit = limits[0].to(scalars.dtype)
        excess = (scalars.abs() - limit).clamp(min=0.0)
        bent = 0.5 * limit * torch.tanh(2.0 * excess / limit)
        scalars = scalars + torch.sign(scalars) * (bent - excess)
    squares = (vectors * vectors).detach().sum(1)
    if bool((squares > limits[1] * limits[1]).any()):
        limit = limits[1].to(vectors.dtype)
        lengths = (vectors * vectors).sum(1).clamp(min=1e-12).sqrt()
        excess = (lengths - limit).clamp(min=0.0)
        bent = 0.5 * limit * torch.tanh(2.0 * excess / limit)
        vectors = vectors * (1.0 + (bent - excess) / lengths).unsqueeze(1)
    return NodeFeatures(scalars, vectors)


def _mlp(n_in: int, n_hidden: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(n_in, n_hidden), nn.SiLU(), nn.Linear(n_hidden, n_out)
    )


def _filters(n_filters: int, n_radial: int, n_channels: int) -> nn.ParameterList:
    # One matrix each, as the optimiser treats them.
    return nn.ParameterList(
        torch.randn(n_radial, n_channels) / n_radial**0.5 for _ in range(n_filters)
    )


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
        self.gates = _mlp(n_channels, n_channels, n_channels * (1 if first else 2))
        self.filters = _filters(2 if first else 3, n_radial, n_channels)

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
        self.gates = _mlp(2 * n_channels, n_channels, 3 * n_channels)

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


class ScalarHead(nn.Module):
    """Scalars from the scalars of each atom."""

    def __init__(self, n_channels: int, n_properties: int) -> None:
        super().__init__()
        self.mlp = _mlp(n_channels, n_channels, n_properties)

    def forward(self, rows: EdgeRows, x: NodeFeatures) -> Tensor:
        return self.mlp(x.scalars)


class VectorHead(nn.Module):
    """Vectors from the vectors of each atom."""

    def __init__(self, n_channels: int, n_properties: int) -> None:
        super().__init__()
        self.gates = _mlp(n_channels, n_channels, n_channels)
        self.project = nn.Linear(n_channels, n_properties, bias=False)

    def forward(self, rows: EdgeRows, x: NodeFeatures) -> Tensor:
        return self.project(x.vectors * self.gates(x.scalars).unsqueeze(1))


class PairForceHead(nn.Module):
    r"""Forces from antisymmetric contributions of pairs.

    .. math::

        f_i = \sum_j \sum_c b_{ic} b_{jc}
              [W^1_c(r_{ij}) \hat r_{ij} + W^0_c(r_{ij}) (v_{ic} - v_{jc})]

    Exchanging ``i`` and ``j`` changes the sign of every term, so forces sum to zero
    exactly, also when an engine splits the atoms over domains: the two halves of a pair
    are then computed in different places, from the same features.

    :param n_channels: channels of scalars and of vectors.
    :param n_radial: radial basis functions.
    :param n_neighbors: typical number of neighbours; sums are divided by its root.
    """

    def __init__(self, n_channels: int, n_radial: int, n_neighbors: float) -> None:
        super().__init__()
        self.scale = n_neighbors**-0.5
        self.gates = _mlp(n_channels, n_channels, n_channels)
        self.project = nn.Linear(n_channels, n_channels, bias=False)
        self.filters = _filters(2, n_radial, n_channels)

    def forward(self, rows: EdgeRows, x: NodeFeatures) -> Tensor:
        gates = self.gates(x.scalars).unsqueeze(1)
        vectors = self.project(x.vectors)
        filters = [weights for weights in self.filters]  # noqa: C416, for TorchScript
        filters.append(filters[0])
        sums = neighbor_sums(rows, gates[:, 0], vectors * gates, filters)
        total, made, moved = sums.split([1, 3, 3], dim=1)
        pairs = made + vectors * total - moved
        return self.scale * (pairs * gates).sum(-1, keepdim=True)


class StressHead(nn.Module):
    r"""Symmetric virial contributions of atoms,
    :math:`\sum_c p_c \mathbb{1} + q_c (u_c \otimes v_c + v_c \otimes u_c)`."""

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.isotropic = _mlp(n_channels, n_channels, 1)
        self.gates = _mlp(n_channels, n_channels, n_channels)
        self.project = nn.Linear(n_channels, 2 * n_channels, bias=False)
        self.register_buffer("unit", torch.eye(3, dtype=torch.float64))

    def forward(self, rows: EdgeRows, x: NodeFeatures) -> Tensor:
        u, v = self.project(x.vectors).chunk(2, dim=-1)
        outer = torch.bmm(u * self.gates(x.scalars).unsqueeze(1), v.transpose(1, 2))
        unit = self.unit.to(x.scalars.dtype)
        virial = self.isotropic(x.scalars).unsqueeze(-1) * unit
        return (virial + outer + outer.transpose(1, 2)).unsqueeze(-1)


DIRECT_HEADS = (PairForceHead, StressHead)


def _make_head(
    kind: str, n_properties: int, n_channels: int, n_radial: int, n_neighbors: float
) -> nn.Module:
    if kind == "scalar":
        return ScalarHead(n_channels, n_properties)
    if kind == "vector":
        return VectorHead(n_channels, n_properties)
    if kind == "force":
        return PairForceHead(n_channels, n_radial, n_neighbors)
    if kind == "stress":
        return StressHead(n_channels)
    raise ValueError(f"the painn backbone has no head for a target of kind '{kind}'")


class PaiNN(Backbone):
    """Scalar-vector message passing over sparse edges.

    :param hypers: see :class:`dualforce.training.options.PaiNNHypers`.
    :param atomic_types: atomic numbers the network knows.
    :raises ValueError: if direct forces are to be read from a layer that is not there.
    """

    equivariant = True
    zero_net_force = True

    type_index: Tensor
    limits: Tensor
    depths: Dict[str, int]

    def __init__(self, hypers: PaiNNHypers, atomic_types: List[int]) -> None:
        super().__init__(atomic_types)
        self.cutoff = float(hypers["cutoff"])
        self.n_channels = hypers["n_channels"]
        self.n_radial = hypers["n_radial"]
        self.n_neighbors = float(hypers["n_neighbors"])
        self.interaction_range = (hypers["n_layers"] + 1) * self.cutoff
        self.neighbor_list = NeighborListOptions(
            self.cutoff, full_list=True, strict=True
        )
        self.basis = RadialBasis(self.cutoff, self.n_radial)
        index = torch.full((max(atomic_types) + 1,), -1, dtype=torch.long)
        index[atomic_types] = torch.arange(len(atomic_types))
        self.register_buffer("type_index", index)
        self.register_buffer("limits", torch.tensor(LIMITS))
        self.embedding = nn.Embedding(len(atomic_types), self.n_channels)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    Message(self.n_channels, self.n_radial, i == 0, self.n_neighbors),
                    Update(self.n_channels),
                ]
            )
            for i in range(hypers["n_layers"])
        )
        self.heads = nn.ModuleDict()
        self.depths = {}
        self.read_direct_from(hypers.get("n_direct_layers", hypers["n_layers"]))

    def requested_neighbor_lists(self) -> List[NeighborListOptions]:
        return [self.neighbor_list]

    def add_output(self, name: str, kind: str, n_properties: int) -> None:
        self.heads[name] = _make_head(
            kind, n_properties, self.n_channels, self.n_radial, self.n_neighbors
        )
        is_direct = isinstance(self.heads[name], DIRECT_HEADS)
        self.depths[name] = self.n_direct_layers if is_direct else len(self.layers)

    def read_direct_from(self, layer: int) -> None:
        """Read direct forces and stresses from a layer, so that they need no others.

        :param layer: counted from 1.
        :raises ValueError: if there is no such layer.
        """
        if not 1 <= layer <= len(self.layers):
            raise ValueError(
                f"direct forces cannot be read from layer {layer} of {len(self.layers)}"
            )
        self.n_direct_layers = layer
        for name, head in self.heads.items():
            if isinstance(head, DIRECT_HEADS):
                self.depths[name] = layer

    def _rows(
        self, vectors: Tensor, centers: Tensor, neighbors: Tensor, n_atoms: int
    ) -> EdgeRows:
        distances = torch.linalg.vector_norm(vectors, dim=1)
        if bool((distances < 1e-6).any()):
            pair = int(torch.argmin(distances))
            raise ValueError(
                f"atoms {int(centers[pair])} and {int(neighbors[pair])} lie at the "
                "same place; forces between them are not defined"
            )
        basis = self.basis(distances)
        directions = torch.cat(
            [torch.ones_like(distances).unsqueeze(1), vectors / distances.unsqueeze(1)],
            dim=1,
        )
        basis = (directions.unsqueeze(2) * basis.unsqueeze(1)).reshape(
            -1, 4 * self.n_radial
        )
        return make_rows(centers, neighbors, basis, n_atoms)

    def _evaluate(
        self,
        types: Tensor,
        vectors: Tensor,
        centers: Tensor,
        neighbors: Tensor,
        outputs: List[str],
    ) -> Dict[str, Tensor]:
        results: Dict[str, Tensor] = {}
        if len(outputs) == 0:
            return results
        vectors = self.wall(vectors, types, centers, neighbors)
        rows = self._rows(vectors, centers, neighbors, types.shape[0])
        scalars = self.embedding(self.type_index[types])
        x = NodeFeatures(
            scalars, torch.zeros_like(scalars).unsqueeze(1).repeat(1, 3, 1)
        )
        needed = self._layers_needed(outputs)
        after = [x]
        for index, layer in enumerate(self.layers):  # a message and an update
            if index < needed:
                x = layer[1](layer[0](rows, x))  # type: ignore[index]
                x = limited(x, self.limits)
                after.append(x)
        if "feature" in outputs:
            results["feature"] = x.scalars
        for name, head in self.heads.items():
            if name in outputs:
                results[name] = head(rows, after[self.depths[name]])
        return results

    def _layers_needed(self, outputs: List[str]) -> int:
        needed = 0
        for name in outputs:
            needed = max(needed, self.depths.get(name, len(self.layers)))
        return needed

    def predict(self, graph: Graph, outputs: List[str]) -> Dict[str, Tensor]:
        return self._evaluate(
            graph.types, edge_vectors(graph), graph.centers, graph.neighbors, outputs
        )

    def forward(self, systems: List[System], outputs: List[str]) -> Dict[str, Tensor]:
        types: List[Tensor] = []
        vectors: List[Tensor] = []
        centers: List[Tensor] = []
        neighbors: List[Tensor] = []
        n_atoms = 0
        dtype = self.embedding.weight.dtype
        for system in systems:
            i, j, edges = system_edges(system, self.neighbor_list)
            types.append(system.types.to(torch.long))
            # Rounded after the difference: positions may be large.
            vectors.append(edges.to(dtype))
            centers.append(i + n_atoms)
            neighbors.append(j + n_atoms)
            n_atoms += len(system)
        return self._evaluate(
            torch.cat(types),
            torch.cat(vectors),
            torch.cat(centers),
            torch.cat(neighbors),
            outputs,
        )
