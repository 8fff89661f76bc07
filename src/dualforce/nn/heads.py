"""Readouts of scalars, vectors, forces and stresses from the features of atoms."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .neighbors import EdgeRows, neighbor_sums


class NodeFeatures(NamedTuple):
    """State of the atoms."""

    scalars: Tensor
    """Shape ``[n_atoms, n_channels]``."""
    vectors: Tensor
    """Shape ``[n_atoms, 3, n_channels]``; in ``ace`` densities of all degrees,
    ``[n_angular, n_atoms, n_channels]``."""


def finite_limit(limit: Tensor, dtype: torch.dtype, largest: float = 1e30) -> Tensor:
    """A limit for arithmetic: models older than limits have infinite ones.

    :param limit: of any shape.
    :param dtype: precision of what it limits.
    :param largest: in place of infinity.
    """
    return limit.to(dtype).clamp(max=largest)


def limited_scalars(scalars: Tensor, limit: Tensor) -> Tensor:
    r"""Scalars that do not exceed one and a half times their limit.

    An absolute value :math:`s > l` becomes :math:`l + h \tanh((s - l) / h)` with
    :math:`h = l / 2`: two derivatives are continuous. If none is above the limit, they
    are returned unchanged.

    :param scalars: of any shape.
    :param limit: shape ``[]``.
    """
    # A GPU takes less time for it than the host for asking.
    on_host = scalars.device.type == "cpu"
    if on_host and not bool((scalars.detach().abs() > limit).any()):
        return scalars
    limit = finite_limit(limit, scalars.dtype)
    excess = (scalars.abs() - limit).clamp(min=0.0)
    bent = 0.5 * limit * torch.tanh(2.0 * excess / limit)
    return scalars + torch.sign(scalars) * (bent - excess)


def mlp(n_in: int, n_hidden: int, n_out: int) -> nn.Sequential:
    """Two linear maps with an activation between."""
    return nn.Sequential(
        nn.Linear(n_in, n_hidden), nn.SiLU(), nn.Linear(n_hidden, n_out)
    )


def radial_filters(n_filters: int, n_radial: int, n_channels: int) -> nn.ParameterList:
    """Random weights ``[n_radial, n_channels]`` of several radial filters."""
    # One matrix each, as the optimiser treats them.
    return nn.ParameterList(
        torch.randn(n_radial, n_channels) / n_radial**0.5 for _ in range(n_filters)
    )


class ScalarHead(nn.Module):
    """Scalars from the scalars of each atom."""

    def __init__(self, n_channels: int, n_properties: int) -> None:
        super().__init__()
        self.mlp = mlp(n_channels, n_channels, n_properties)

    def forward(self, rows: EdgeRows, x: NodeFeatures) -> Tensor:
        return self.mlp(x.scalars)


class VectorHead(nn.Module):
    """Vectors from the vectors of each atom."""

    def __init__(self, n_channels: int, n_properties: int) -> None:
        super().__init__()
        self.gates = mlp(n_channels, n_channels, n_channels)
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
        self.gates = mlp(n_channels, n_channels, n_channels)
        self.project = nn.Linear(n_channels, n_channels, bias=False)
        self.filters = radial_filters(2, n_radial, n_channels)

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
        self.isotropic = mlp(n_channels, n_channels, 1)
        self.gates = mlp(n_channels, n_channels, n_channels)
        self.project = nn.Linear(n_channels, 2 * n_channels, bias=False)
        self.register_buffer("unit", torch.eye(3, dtype=torch.float64))

    def forward(self, rows: EdgeRows, x: NodeFeatures) -> Tensor:
        u, v = self.project(x.vectors).chunk(2, dim=-1)
        outer = torch.bmm(u * self.gates(x.scalars).unsqueeze(1), v.transpose(1, 2))
        unit = self.unit.to(x.scalars.dtype)
        virial = self.isotropic(x.scalars).unsqueeze(-1) * unit
        return (virial + outer + outer.transpose(1, 2)).unsqueeze(-1)


DIRECT_HEADS = ("force", "stress")
"""Kinds of the heads of direct forces and stresses."""


def make_head(
    kind: str, n_properties: int, n_channels: int, n_radial: int, n_neighbors: float
) -> nn.Module:
    """A head for a target.

    :param kind: see :meth:`dualforce.nn.base.Backbone.add_output`.
    :param n_properties: number of properties of the target.
    :param n_channels: channels of scalars and of vectors.
    :param n_radial: radial basis functions.
    :param n_neighbors: typical number of neighbours.
    :raises ValueError: if there is no head for such a target.
    """
    if kind == "scalar":
        return ScalarHead(n_channels, n_properties)
    if kind == "vector":
        return VectorHead(n_channels, n_properties)
    if kind == "force":
        return PairForceHead(n_channels, n_radial, n_neighbors)
    if kind == "stress":
        return StressHead(n_channels)
    raise ValueError(f"the backbone has no head for a target of kind '{kind}'")
