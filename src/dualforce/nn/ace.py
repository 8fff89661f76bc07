"""The ``ace`` backbone: products of the densities of neighbours, in layers.

After Drautz, Phys. Rev. B 99, 014104 (2019), and Batatia et al., arXiv:2206.07697:
products of densities around an atom describe its surroundings by angles and more, and
the next layer sees densities weighted by what was learnt about each neighbour and, with
tensor messages, the densities of the neighbours themselves. Sums over neighbours are
those of :mod:`dualforce.nn.neighbors`, and everything a layer makes is bounded,
whatever the structure.
"""

from collections.abc import Sequence
from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor, nn

from .edge_forces import EdgeForceHead, EdgeForces, EdgeStressHead
from .harmonics import Harmonics, coupling, degrees, traceless_matrices
from .heads import (
    DIRECT_HEADS,
    NodeFeatures,
    limited_scalars,
    make_head,
    mlp,
    radial_filters,
)
from .hypers import ACEHypers
from .layered import LayeredBackbone
from .neighbors import (
    EdgeRows,
    RowPlan,
    densities,
    element_densities,
    make_rows,
    outer_rows,
    tensor_sums,
)
from .radial import RadialBasis, wave_damping


SOFTENING = 0.02
"""Densities, of order one, are bounded by the inverse root of this."""

LIMIT = 8.0
"""Scalars up to which they are what they are. In data they stay below 4; products of
densities reach hundreds in structures unlike any data."""

MAX_SPECIES = 8
"""With so many elements or fewer the sums of the first layer are taken for each of
them."""


TENSOR_DEGREE = 2
"""Highest degree of the densities that messages carry."""


TRIPLES = ((1, 1), (2, 2), (1, 3), (3, 3))
"""Products of three densities: those of these degrees, coupled to degree 2, times that
of degree 2."""


class Invariants(NamedTuple):
    """What products of densities give."""

    scalars: List[Tensor]
    """Each of shape ``[n_atoms, n_channels]``."""
    density: Tensor
    """Softened, shape ``[(l_max + 1)^2, n_atoms, n_channels]``."""


class TurnedVectors(nn.Module):
    """Densities of degree 1, turned by those of degree 2."""

    matrices: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Scaled such that its product with a vector is as long as the vector.
        matrices = traceless_matrices().reshape(5, 9).T * 0.6**0.5
        self.register_buffer("matrices", matrices, persistent=False)

    def forward(self, density: Tensor) -> Tensor:
        """
        :param density: of degree 0 to 2 at least, shape ``[n_angular, n_atoms,
            n_channels]``.
        :return: shape ``[3, n_atoms, n_channels]``.
        """
        matrix = self.matrices.to(density.dtype) @ density[4:9].flatten(1)
        matrix = matrix.reshape(3, 3, density.shape[1], density.shape[2])
        return (matrix * density[1:4]).sum(1)


class Triples(nn.Module):
    """Products of three densities: of two, coupled to degree 2, with that of degree 2.

    :param paths: degrees of the two.
    """

    first: Tensor
    second: Tensor
    matrix: Tensor

    def __init__(self, paths: Sequence[Tuple[int, int]]) -> None:
        super().__init__()
        self.n_paths = len(paths)
        first: List[int] = []
        second: List[int] = []
        columns: List[Tensor] = []
        for path, (a, b) in enumerate(paths):
            tensor = coupling(a, b, 2)
            for i, j in torch.nonzero(tensor.abs().amax(2) > 1e-9).tolist():
                if a == b and i > j:
                    continue  # each product of two once
                column = torch.zeros(self.n_paths, 5, dtype=torch.float64)
                column[path] = tensor[i, j] * (2.0 if a == b and i < j else 1.0)
                first.append(a * a + i)
                second.append(b * b + j)
                columns.append(column.flatten())
        self.register_buffer("first", torch.tensor(first), persistent=False)
        self.register_buffer("second", torch.tensor(second), persistent=False)
        self.register_buffer("matrix", torch.stack(columns, 1), persistent=False)

    def forward(self, density: Tensor) -> Tensor:
        """
        :param density: shape ``[(l_max + 1)^2, n_atoms, n_channels]``.
        :return: shape ``[n_paths, n_atoms, n_channels]``.
        """
        first = density.index_select(0, self.first)
        pairs = first * density.index_select(0, self.second)
        coupled = self.matrix.to(density.dtype) @ pairs.flatten(1)
        coupled = coupled.reshape(self.n_paths, 5, density.shape[1], density.shape[2])
        return (coupled * density[4:9]).sum(1)


class Products(nn.Module):
    r"""Softened densities and their products.

    .. math::

        \tilde A_l = A_l / \sqrt{1 + \epsilon |A_l|^2},
        \quad \tilde A_0, |\tilde A_l|^2, \tilde A_1 T \tilde A_1

    where :math:`|A_l|^2` is the mean over ``m`` and :math:`T` is the density of degree
    2 as a matrix, and further products of three. Densities far below
    :math:`1/\sqrt\epsilon` stay as they are; a product of three stays finite in
    structures that no training set holds.

    :param l_max: highest degree.
    :param n_triples: products of three densities, the first ones of :data:`TRIPLES`;
        those of degrees that are not there are left out.
    """

    softening: Tensor
    degrees: Tensor
    mean: Tensor

    def __init__(self, l_max: int, n_triples: int) -> None:
        super().__init__()
        self.l_max = l_max
        paths = [path for path in TRIPLES[:n_triples] if max(2, *path) <= l_max]
        self.n_invariants = l_max + 1 + len(paths)
        self.turned = TurnedVectors()  # the first of them
        self.triples = nn.ModuleList(Triples(paths[1:]) for _ in paths[1:2])
        self.register_buffer("softening", torch.tensor(SOFTENING))
        degree = torch.tensor(degrees(l_max))
        self.register_buffer("degrees", degree, persistent=False)
        mean = torch.nn.functional.one_hot(degree).double().T
        mean = mean / mean.sum(1, keepdim=True)
        self.register_buffer("mean", mean, persistent=False)

    def forward(self, density: Tensor, gates: Tensor) -> Invariants:
        """
        :param density: shape ``[(l_max + 1)^2, n_atoms, n_channels]``.
        :param gates: factors on the densities of each degree before they are softened,
            shape ``[l_max + 1, n_atoms, n_channels]``.
        """
        n_atoms, n_channels = density.shape[1], density.shape[2]
        squares = self.mean.to(density.dtype) @ (density * density).flatten(1)
        gates = gates.flatten(1)
        shrink = gates * torch.rsqrt(1.0 + self.softening * gates * gates * squares)
        squares = squares * shrink * shrink
        shrink = shrink.reshape(-1, n_atoms, n_channels).index_select(0, self.degrees)
        density = density * shrink
        scalars = [density[0]]
        for square in squares[1:].reshape(-1, n_atoms, n_channels).unbind(0):
            scalars.append(square)
        if self.l_max > 1:
            product = self.turned(density)
            scalars.append((product * density[1:4]).sum(0) * 3.0**-0.5)
        for triples in self.triples:
            for triple in triples(density).unbind(0):
                scalars.append(triple)
        return Invariants(scalars, density)


class TensorMessages(nn.Module):
    r"""Densities of the neighbours, summed.

    .. math::

        \sum_j \tilde A_{jlmc} f_{lc}(r_{ij}), \quad l = 1, 2

    Scalars tell a layer what surrounds a neighbour, these on which side it is: how a
    bond is twisted depends on it.

    :param n_features: channels of the densities.
    :param n_channels: channels :math:`c`, to which they are mixed before.
    :param n_radial: radial functions of the edges.
    :param l_max: highest degree of the densities.
    """

    degrees: Tensor

    def __init__(
        self, n_features: int, n_channels: int, n_radial: int, l_max: int
    ) -> None:
        super().__init__()
        n_degrees = min(l_max, TENSOR_DEGREE)
        self.n_others = (l_max + 1) ** 2 - (n_degrees + 1) ** 2
        degree = torch.tensor(degrees(n_degrees)[1:]) - 1
        self.register_buffer("degrees", degree, persistent=False)
        # One matrix each, as the optimiser treats them.
        self.leaving = nn.ParameterList(
            torch.randn(n_features, n_channels) / n_features**0.5
            for _ in range(n_degrees)
        )
        self.filters = radial_filters(n_degrees, n_radial, n_channels)
        self.arriving = nn.ParameterList(
            torch.randn(n_channels, n_features) / n_channels**0.5
            for _ in range(n_degrees)
        )

    def forward(self, rows: EdgeRows, density: Tensor, mixing: Tensor) -> Tensor:
        """
        :param rows: edges whose basis is the angular, then the radial part.
        :param density: of the neighbours, shape ``[n_angular, n_atoms, n_features]``.
        :param mixing: radial functions as combinations of those of the edges, shape
            ``[n_waves, n_radial]``.
        :return: shape ``[n_angular, n_atoms, n_features]``, zero where ``l`` is neither
            1 nor 2.
        """
        leaving = [weights for weights in self.leaving]  # noqa: C416, for TorchScript
        filters = [weights for weights in self.filters]  # noqa: C416
        arriving = [weights for weights in self.arriving]  # noqa: C416
        tensors = torch.bmm(
            density[1 : 1 + len(self.degrees)],
            torch.stack(leaving).index_select(0, self.degrees),
        )
        weights = torch.matmul(mixing, torch.stack(filters))
        sums = tensor_sums(rows, tensors, weights.index_select(0, self.degrees))
        sums = torch.bmm(sums, torch.stack(arriving).index_select(0, self.degrees))
        return torch.nn.functional.pad(sums, [0, 0, 0, 0, 1, self.n_others])


class Layer(nn.Module):
    """Densities, their products, and an update of the scalars.

    The update is linear in the invariants, which keeps products of high order smooth,
    with a residual of an MLP that acts on the updated scalars.

    :param n_channels: channels.
    :param n_radial: radial basis functions.
    :param l_max: highest degree.
    :param n_triples: products of three densities, see :class:`Products`.
    :param n_tensor_channels: channels of :class:`TensorMessages`, 0 for none.
    :param n_neighbors: typical number of neighbours; sums are divided by its root.
    """

    degrees: Tensor
    limit: Tensor

    def __init__(
        self,
        n_channels: int,
        n_radial: int,
        l_max: int,
        n_triples: int,
        n_tensor_channels: int,
        n_neighbors: float,
    ) -> None:
        super().__init__()
        self.register_buffer("limit", torch.tensor(LIMIT), persistent=False)
        self.scale = n_neighbors**-0.5
        self.register_buffer("degrees", torch.tensor(degrees(l_max)), persistent=False)
        self.values = nn.Linear(n_channels, n_channels)
        self.filters = radial_filters(l_max + 1, n_radial, n_channels)
        # One matrix each, as the optimiser treats them.
        self.mixing = nn.ParameterList(
            torch.randn(n_channels, n_channels) / n_channels**0.5
            for _ in range(l_max + 1)
        )
        self.gates = nn.Linear(n_channels, (l_max + 1) * n_channels)
        self.products = Products(l_max, n_triples)
        self.update = nn.Linear(
            (1 + self.products.n_invariants) * n_channels, n_channels
        )
        self.residual = mlp(n_channels, n_channels, n_channels)
        self.tensors = nn.ModuleList(
            TensorMessages(n_channels, n_tensor_channels, n_radial, l_max)
            for _ in range(min(n_tensor_channels, 1))
        )

    def _filters(self, mixing: Tensor) -> Tensor:
        """Filters of the Bessel functions, for each degree."""
        filters = [weights for weights in self.filters]  # noqa: C416, for TorchScript
        return torch.matmul(self.scale * mixing, torch.stack(filters))

    def _mixing(self) -> Tensor:
        mixing = [weights for weights in self.mixing]  # noqa: C416, for TorchScript
        return torch.stack(mixing)

    def from_neighbors(
        self, rows: EdgeRows, x: NodeFeatures, radial_mixing: Tensor
    ) -> NodeFeatures:
        """New features from those of the neighbours.

        :param rows: the edges.
        :param x: features; vectors are read by a layer with tensor messages only.
        :param radial_mixing: radial functions as combinations of those of the edges,
            shape ``[n_waves, n_radial]``.
        """
        filters = self._filters(radial_mixing)
        density = densities(rows, self.values(x.scalars), filters).transpose(0, 1)
        for tensors in self.tensors:
            moved = tensors(rows, x.vectors, self.scale * radial_mixing)
            density = density + moved
        mixing = self._mixing().index_select(0, self.degrees)
        return self._features(torch.bmm(density, mixing), x.scalars)

    def from_elements(
        self,
        density: Tensor,
        embedding: Tensor,
        species: Tensor,
        radial_mixing: Tensor,
    ) -> NodeFeatures:
        """The same, where the features of a neighbour depend on its element only.

        :param density: densities of the elements, shape ``[n_atoms, n_angular,
            n_waves, n_species]``.
        :param embedding: features of the elements, shape ``[n_species, n_channels]``.
        :param species: index of the element of each atom, shape ``[n_atoms]``.
        :param radial_mixing: as in :meth:`from_neighbors`.
        """
        weights = self._filters(radial_mixing).unsqueeze(2) * self.values(embedding)
        weights = torch.bmm(weights.flatten(1, 2), self._mixing())
        mixed = torch.bmm(
            density.flatten(2).transpose(0, 1), weights.index_select(0, self.degrees)
        )
        return self._features(mixed, embedding.index_select(0, species))

    def _features(self, density: Tensor, scalars: Tensor) -> NodeFeatures:
        gates = 1.0 + self.gates(scalars).unflatten(-1, [-1, scalars.shape[1]])
        products = self.products(density, gates.transpose(0, 1))
        scalars = self.update(torch.cat([scalars] + products.scalars, dim=-1))
        scalars = scalars + self.residual(scalars)
        return NodeFeatures(limited_scalars(scalars, self.limit), products.density)


class GatedHead(nn.Module):
    """A head that reads vectors mixed from gated ones: densities of degree 1, and these
    turned by those of degree 2.

    :param head: reads scalars and vectors.
    :param n_channels: channels of scalars and of mixed vectors.
    :param l_max: highest degree of the densities.
    """

    def __init__(self, head: nn.Module, n_channels: int, l_max: int) -> None:
        super().__init__()
        self.head = head
        self.turned = TurnedVectors()
        n_vectors = min(l_max, 2)
        self.gates = mlp(n_channels, n_channels, n_vectors * n_channels)
        self.mix = nn.Linear(n_vectors * n_channels, n_channels, bias=False)

    def forward(self, rows: EdgeRows, x: NodeFeatures) -> Tensor:
        vectors = [x.vectors[1:4]]
        if len(x.vectors) > 4:
            vectors.append(self.turned(x.vectors))
        gated = torch.cat(vectors, dim=-1) * self.gates(x.scalars)
        mixed = self.mix(gated.transpose(0, 1))
        return self.head(rows, NodeFeatures(x.scalars, mixed))


class ACE(LayeredBackbone):
    """Message passing with products of densities.

    :param hypers: see :class:`dualforce.training.options.ACEHypers`.
    :param atomic_types: atomic numbers the network knows.
    :raises ValueError: if direct forces are to be read from a layer that is not there,
        or harmonics have a degree that there is not.
    """

    type_index: Tensor
    depths: Dict[str, int]
    direct: Dict[str, bool]
    owners: Dict[str, str]
    """Direct target whose edge forces each is made of."""

    def __init__(self, hypers: ACEHypers, atomic_types: List[int]) -> None:
        n_radial, l_max = hypers["n_radial"], hypers["l_max"]
        n_layers, n_channels = hypers["n_layers"], hypers["n_channels"]
        basis = RadialBasis(hypers["cutoff"], n_radial, n_radial)
        super().__init__(basis, n_layers, n_channels, atomic_types)
        self.n_radial = n_radial
        self._damp_waves()
        self.n_angular = (l_max + 1) ** 2
        self.n_neighbors = float(hypers["n_neighbors"])
        self.n_species = len(atomic_types)
        self.by_element = self.n_species <= MAX_SPECIES
        self.l_max = l_max
        self.n_force_channels = hypers["n_force_channels"]
        self.edge_forces = nn.ModuleDict()
        self.owners = {}
        self.harmonics = Harmonics(l_max)
        layers: List[nn.Module] = [
            Layer(
                n_channels,
                n_radial,
                l_max,
                hypers["n_triples"],
                # There is no density before the first layer.
                hypers["n_tensor_channels"] if index else 0,
                self.n_neighbors,
            )
            for index in range(n_layers)
        ]
        self.set_layers(layers, hypers.get("n_direct_layers", n_layers))

    def _damp_waves(self) -> None:
        """Start with small short waves: what is learnt is then smooth first."""
        with torch.no_grad():
            self.basis.mixing.mul_(wave_damping(self.n_radial).unsqueeze(1))

    def add_output(self, name: str, kind: str, n_properties: int) -> None:
        if self.n_force_channels and kind in DIRECT_HEADS:
            self._share_edge_forces(name)
        super().add_output(name, kind, n_properties)

    def _share_edge_forces(self, name: str) -> None:
        """Let a direct target be made of the edge forces that others of its variant
        are made of."""
        variant = name.partition("/")[2]
        owner = name
        for known, its_owner in self.owners.items():
            if known.partition("/")[2] == variant:
                owner = its_owner
        self.owners[name] = owner
        if owner == name:
            self.edge_forces[name] = EdgeForces(
                self.n_channels, self.n_force_channels, self.n_radial, self.l_max
            )

    def make_head(self, kind: str, n_properties: int) -> nn.Module:
        if self.n_force_channels and kind == "force":
            return EdgeForceHead(self.n_neighbors)
        if self.n_force_channels and kind == "stress":
            return EdgeStressHead(self.n_channels, self.n_neighbors)
        head = make_head(
            kind, n_properties, self.n_channels, self.n_radial, self.n_neighbors
        )
        if kind == "scalar":
            return head
        return GatedHead(head, self.n_channels, self.l_max)

    def make_rows(
        self,
        vectors: Tensor,
        distances: Tensor,
        centers: Tensor,
        neighbors: Tensor,
        n_atoms: int,
        plan: Optional[RowPlan],
    ) -> EdgeRows:
        angular = self.harmonics(vectors / distances.unsqueeze(1))
        # Without weights: what training differentiates is then the network alone.
        waves = self.basis.waves(distances)
        # The distance itself is for stresses, layers do not read it.
        basis = torch.cat([angular, waves, distances.unsqueeze(1)], dim=1)
        return make_rows(centers, neighbors, basis, n_atoms, plan)

    def read(
        self, rows: EdgeRows, after: List[NodeFeatures], outputs: List[str]
    ) -> Dict[str, Tensor]:
        functions, distances = rows.basis.split([rows.basis.shape[1] - 1, 1], 1)
        rows = EdgeRows(rows.center, rows.neighbor, functions)
        vectors = functions[:, 1:4] * (3.0**-0.5 * distances)
        found: Dict[str, EdgeRows] = {}
        for owner, edge_forces in self.edge_forces.items():
            if owner in self.owners_of(outputs):
                forces = edge_forces(rows, after[self.depths[owner]])
                basis = torch.cat([vectors, forces.transpose(1, 2)], 1)
                found[owner] = EdgeRows(rows.center, rows.neighbor, basis)
        results: Dict[str, Tensor] = {}
        for name, head in self.heads.items():
            if name in outputs:
                of_head = rows
                if name in self.owners:
                    of_head = found[self.owners[name]]
                elif self.direct[name]:
                    of_head = outer_rows(rows, self.n_angular, 4, self.basis.mixing)
                results[name] = head(of_head, after[self.depths[name]])
        return results

    def owners_of(self, outputs: List[str]) -> List[str]:
        """Targets whose edge forces some outputs are made of."""
        owners: List[str] = []
        for name in outputs:
            if name in self.owners:
                owners.append(self.owners[name])
        return owners

    def features(
        self, rows: EdgeRows, species: Tensor, needed: int
    ) -> List[NodeFeatures]:
        rows = EdgeRows(rows.center, rows.neighbor, rows.basis[:, :-1])
        scalars = self.embedding(species)
        x = NodeFeatures(scalars, scalars)  # nobody reads vectors before a layer
        after = [x]
        for index, layer in enumerate(self.layers):
            if index < needed:
                if index == 0 and self.by_element:
                    density = element_densities(
                        rows, species, self.n_species, self.n_angular
                    )
                    x = layer.from_elements(  # type: ignore[operator]
                        density, self.embedding.weight, species, self.basis.mixing
                    )
                else:
                    x = layer.from_neighbors(  # type: ignore[operator]
                        rows, x, self.basis.mixing
                    )
                after.append(x)
        return after
