"""Direct forces and stresses made of forces along edges.

The force of an energy that is a function of densities, :math:`E_i(A_i)`, is a sum over
edges of :math:`(\\partial E_i / \\partial A_{ilm}) \\nabla \\phi_{lm}(r_{ij})`. Direct
forces of this module have that form, with factors that the network predicts in place of
the derivatives.
"""

from typing import List

import torch
from torch import Tensor, nn

from .harmonics import degrees, gradient_coefficients
from .heads import NodeFeatures, mlp
from .neighbors import EDGES_PER_BLOCK, EdgeRows
from .radial import wave_damping


L_MAX = 2
"""Highest degree of the densities that forces are made of: a third makes them no more
accurate."""

FORCES_PER_BLOCK = 2 * EDGES_PER_BLOCK
"""Edges handled at a time: there are fewer channels than in densities."""


class EdgeForces(nn.Module):
    r"""A vector for each edge.

    .. math::

        p_{ij} = \sum_{lc} b_{jc} \left[ U_{lc}(r_{ij}) \, \hat r_{ij} \sum_m g_{ilmc}
        Y_{lm}(\hat r_{ij}) + V_{lc}(r_{ij}) \sum_m g_{ilmc} \nabla Y_{lm}(\hat r_{ij})
        \right]

    with gated and mixed densities :math:`g` of the first atom, features :math:`b` of
    the second, and radial functions :math:`U, V` that are learnt.

    :param n_features: channels of scalars and densities.
    :param n_channels: channels :math:`c`.
    :param n_radial: radial functions of the edges.
    :param l_max: highest degree of the harmonics of the edges.
    """

    degrees: Tensor
    linear: Tensor
    quadratic: Tensor

    def __init__(
        self, n_features: int, n_channels: int, n_radial: int, l_max: int
    ) -> None:
        super().__init__()
        self.n_angular = (l_max + 1) ** 2
        self.l_max = min(l_max, L_MAX)
        self.n_channels = n_channels
        self.sizes = [2 * degree + 1 for degree in range(self.l_max + 1)]
        self.gates = mlp(n_features, n_features, len(self.sizes) * n_features)
        # One matrix each, as the optimiser treats them.
        self.mixing = nn.ParameterList(
            torch.randn(n_features, n_channels) / n_features**0.5 for _ in self.sizes
        )
        self.neighbors = nn.Linear(n_features, n_channels)
        # Small short waves: what is learnt is then smooth first.
        damping = 0.5 * n_radial**-0.5 * wave_damping(n_radial).unsqueeze(1)
        # Of U and V; there is no V for degree 0.
        self.filters = nn.ParameterList(
            damping * torch.randn(n_radial, min(size, 2) * n_channels)
            for size in self.sizes
        )
        for name, values in (
            ("degrees", torch.tensor(degrees(self.l_max))),
            ("linear", gradient_coefficients(1).flatten(1)),
            ("quadratic", gradient_coefficients(2).flatten(1)),
        ):
            self.register_buffer(name, values, persistent=False)

    def forward(
        self,
        rows: EdgeRows,
        x: NodeFeatures,
        edges_per_block: int = FORCES_PER_BLOCK,
    ) -> Tensor:
        """
        :param rows: edges whose basis is the angular, then the radial part.
        :param x: features of the atoms; their vectors are the densities.
        :param edges_per_block: edges handled at a time on a CPU, at least a row.
        :return: shape ``[n_rows, length, 3]``.
        """
        gates = self.gates(x.scalars).unflatten(-1, [len(self.sizes), -1])
        gates = gates.transpose(0, 1).index_select(0, self.degrees)
        mixing = [weights for weights in self.mixing]  # noqa: C416, for TorchScript
        mixed = torch.bmm(
            x.vectors[: len(self.degrees)] * gates,
            torch.stack(mixing).index_select(0, self.degrees),
        ).permute(1, 2, 0)
        neighbors = self.neighbors(x.scalars)
        size = max(len(rows.center), 1)
        if mixed.device.type == "cpu":
            size = max(edges_per_block // rows.neighbor.shape[1], 1)
        blocks: List[Tensor] = []
        for center, neighbor, basis in zip(  # noqa: B905, TorchScript has no `strict`
            rows.center.split(size), rows.neighbor.split(size), rows.basis.split(size)
        ):
            of_centers = mixed.index_select(0, center)
            of_neighbors = neighbors.index_select(0, neighbor.reshape(-1))
            blocks.append(self._of_block(basis, of_centers, of_neighbors))
        return torch.cat(blocks)

    def _of_block(self, basis: Tensor, centers: Tensor, neighbors: Tensor) -> Tensor:
        """Forces of a block of rows.

        :param basis: shape ``[n_rows, n_basis, length]``.
        :param centers: densities of the first atoms, shape ``[n_rows, n_channels,
            n_angular]``.
        :param neighbors: features of the second, shape ``[n_rows * length,
            n_channels]``.
        """
        n_rows, length = basis.shape[0], basis.shape[2]
        basis = basis.transpose(1, 2)
        angular = basis[:, :, : centers.shape[2]]
        radial = basis[:, :, self.n_angular :].flatten(0, 1)
        units = angular[:, :, 1:4] * 3.0**-0.5
        neighbors = neighbors.unsqueeze(1)
        along: List[Tensor] = []
        across: List[Tensor] = []
        weights = [weights for weights in self.filters]  # noqa: C416, for TorchScript
        for filters, densities in zip(  # noqa: B905, TorchScript has no `strict`
            weights, centers.split(self.sizes, dim=2)
        ):
            messages = (radial @ filters).unflatten(1, [-1, self.n_channels])
            messages = (messages * neighbors).unflatten(0, [n_rows, length])
            found = torch.bmm(messages.flatten(1, 2), densities)
            found = found.unflatten(1, [length, -1])
            along.append(found[:, :, 0])
            if found.shape[2] > 1:
                across.append(found[:, :, 1])
        out = (torch.cat(along, dim=2) * angular).sum(2, keepdim=True) * units
        out = out + across[0] @ self.linear.to(out.dtype)
        if self.l_max > 1:
            matrices = across[1] @ self.quadratic.to(out.dtype)
            out = out + (matrices.unflatten(2, [3, 3]) * units.unsqueeze(2)).sum(3)
        return out


class EdgeForceHead(nn.Module):
    r"""Forces of atoms, :math:`f_i = \sum_j (p_{ij} - p_{ji})`, which sum to zero.

    :param n_neighbors: typical number of neighbours; sums are divided by its root.
    """

    def __init__(self, n_neighbors: float) -> None:
        super().__init__()
        self.scale = n_neighbors**-0.5

    def forward(self, rows: EdgeRows, x: NodeFeatures) -> Tensor:
        """
        :param rows: edges whose basis is the vector, then the force.
        :param x: features of the atoms.
        :return: shape ``[n_atoms, 3, 1]``.
        """
        forces = self.scale * rows.basis[:, 3:]
        out = forces.new_zeros([len(x.scalars), 3])
        out = out.index_add(0, rows.center, forces.sum(2))
        on_others = forces.transpose(1, 2).reshape(-1, 3)
        return out.index_add(0, rows.neighbor.reshape(-1), -on_others).unsqueeze(-1)


class EdgeStressHead(nn.Module):
    r"""Contributions of atoms to the virial, :math:`q_i \mathbb{1} + a \sum_j (r_{ij}
    \otimes p_{ij} + p_{ij} \otimes r_{ij})`.

    The factor :math:`a`, which is learnt, is one between units. The isotropic part is
    for what the forces do not tell.

    :param n_features: channels of scalars.
    :param n_neighbors: typical number of neighbours; sums are divided by its root.
    """

    def __init__(self, n_features: int, n_neighbors: float) -> None:
        super().__init__()
        self.isotropic = mlp(n_features, n_features, 1)
        self.factor = nn.Parameter(torch.tensor(n_neighbors**-0.5))
        self.register_buffer("unit", torch.eye(3, dtype=torch.float64))

    def forward(self, rows: EdgeRows, x: NodeFeatures) -> Tensor:
        """
        :param rows: edges whose basis is the vector, then the force.
        :param x: features of the atoms.
        :return: shape ``[n_atoms, 3, 3, 1]``.
        """
        vectors, forces = rows.basis.split([3, 3], 1)
        virials = torch.bmm(vectors, forces.transpose(1, 2))
        out = virials.new_zeros([len(x.scalars), 3, 3])
        out = self.factor * out.index_add(0, rows.center, virials)
        unit = self.unit.to(out.dtype)
        out = out + self.isotropic(x.scalars).unsqueeze(-1) * unit
        return (out + out.transpose(1, 2)).unsqueeze(-1)
