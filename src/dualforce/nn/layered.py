"""What the networks of this package share: layers of messages, then heads."""

from abc import abstractmethod
from typing import Dict, List, Optional

import torch
from metatomic.torch import NeighborListOptions, System
from torch import Tensor, nn

from .base import Backbone, Graph, edge_vectors, system_edges
from .heads import DIRECT_HEADS, NodeFeatures
from .neighbors import EdgeRows, RowPlan
from .radial import RadialBasis


class LayeredBackbone(Backbone):
    """Layers of messages between neighbours, each head reading one of them.

    Energies are read from the last layer, direct forces and stresses possibly from an
    earlier one, so that they need no others.

    Weights are made, and stand, in one order: radial basis, embedding, layers, heads.
    The state of an optimiser counts on it. A subclass makes its layers when this class
    has made the rest, and hands them to :meth:`set_layers`.

    :param basis: functions of distances, which know the cutoff: how far a message
        reaches, in the length unit of the model.
    :param n_layers: how many layers there are.
    :param n_channels: scalar features of an atom.
    :param atomic_types: atomic numbers the network knows.
    """

    equivariant = True
    zero_net_force = True

    type_index: Tensor
    layers: nn.ModuleList
    depths: Dict[str, int]
    """Layer that each head reads."""

    direct: Dict[str, bool]
    """Whether each head is one of a direct force or stress."""

    def __init__(
        self,
        basis: RadialBasis,
        n_layers: int,
        n_channels: int,
        atomic_types: List[int],
    ) -> None:
        super().__init__(atomic_types)
        self.cutoff = basis.cutoff
        self.n_layers = n_layers
        self.n_channels = n_channels
        self.interaction_range = (n_layers + 1) * self.cutoff
        self.neighbor_list = NeighborListOptions(
            self.cutoff, full_list=True, strict=True
        )
        self.basis = basis
        index = torch.full((max(atomic_types) + 1,), -1, dtype=torch.long)
        index[atomic_types] = torch.arange(len(atomic_types))
        self.register_buffer("type_index", index)
        self.embedding = nn.Embedding(len(atomic_types), n_channels)

    def set_layers(self, layers: List[nn.Module], n_direct_layers: int) -> None:
        """Take the layers, and make room for heads.

        :param layers: as many as were announced.
        :param n_direct_layers: see :meth:`read_direct_from`.
        :raises ValueError: if there is no such layer.
        """
        self.layers = nn.ModuleList(layers)
        self.heads = nn.ModuleDict()
        self.depths = {}
        self.direct = {}
        self.read_direct_from(n_direct_layers)

    @abstractmethod
    def make_head(self, kind: str, n_properties: int) -> nn.Module:
        """A module from rows and features to predictions; see :meth:`add_output`."""

    @abstractmethod
    def make_rows(
        self,
        vectors: Tensor,
        distances: Tensor,
        centers: Tensor,
        neighbors: Tensor,
        n_atoms: int,
        plan: Optional[RowPlan],
    ) -> EdgeRows:
        """Edges and what layers need of them.

        :param vectors: from centers to neighbours, shape ``[n_edges, 3]``.
        :param distances: their lengths, shape ``[n_edges]``.
        :param centers: first atom of each edge, shape ``[n_edges]``.
        :param neighbors: second atom of each edge, shape ``[n_edges]``.
        :param n_atoms: number of atoms.
        :param plan: where edges go in rows, if that is known.
        """

    @abstractmethod
    def features(
        self, rows: EdgeRows, species: Tensor, needed: int
    ) -> List[NodeFeatures]:
        """Features before the first layer and after each layer.

        :param rows: the edges.
        :param species: index of the element of each atom, shape ``[n_atoms]``.
        :param needed: how many layers to evaluate.
        """

    def read(
        self, rows: EdgeRows, after: List[NodeFeatures], outputs: List[str]
    ) -> Dict[str, Tensor]:
        """Outputs, from the features after each layer.

        :param rows: the edges.
        :param after: features before the first layer and after each layer.
        :param outputs: names.
        """
        results: Dict[str, Tensor] = {}
        for name, head in self.heads.items():
            if name in outputs:
                results[name] = head(rows, after[self.depths[name]])
        return results

    def requested_neighbor_lists(self) -> List[NeighborListOptions]:
        return [self.neighbor_list]

    def add_output(self, name: str, kind: str, n_properties: int) -> None:
        self.heads[name] = self.make_head(kind, n_properties)
        self.direct[name] = kind in DIRECT_HEADS
        self.depths[name] = self.n_direct_layers if self.direct[name] else self.n_layers

    def read_direct_from(self, layer: int) -> None:
        """Read direct forces and stresses from a layer, so that they need no others.

        :param layer: counted from 1.
        :raises ValueError: if there is no such layer.
        """
        if not 1 <= layer <= self.n_layers:
            raise ValueError(
                f"direct forces cannot be read from layer {layer} of {self.n_layers}"
            )
        self.n_direct_layers = layer
        for name in self.depths:
            if self.direct[name]:
                self.depths[name] = layer

    def _rows(
        self,
        vectors: Tensor,
        centers: Tensor,
        neighbors: Tensor,
        n_atoms: int,
        plan: Optional[RowPlan],
    ) -> EdgeRows:
        distances = torch.linalg.vector_norm(vectors, dim=1)
        # Frames that have a plan were checked when they were read.
        if plan is None and bool((distances < 1e-6).any()):
            pair = int(torch.argmin(distances))
            raise ValueError(
                f"atoms {int(centers[pair])} and {int(neighbors[pair])} lie at the "
                "same place; forces between them are not defined"
            )
        return self.make_rows(vectors, distances, centers, neighbors, n_atoms, plan)

    def _evaluate(
        self,
        types: Tensor,
        vectors: Tensor,
        centers: Tensor,
        neighbors: Tensor,
        outputs: List[str],
        plan: Optional[RowPlan] = None,
    ) -> Dict[str, Tensor]:
        results: Dict[str, Tensor] = {}
        if len(outputs) == 0:
            return results
        vectors = self.wall(vectors, types, centers, neighbors)
        rows = self._rows(vectors, centers, neighbors, types.shape[0], plan)
        after = self.features(rows, self.type_index[types], self._needed(outputs))
        results = self.read(rows, after, outputs)
        if "feature" in outputs:
            results["feature"] = after[-1].scalars
        return results

    def _needed(self, outputs: List[str]) -> int:
        needed = 0
        for name in outputs:
            needed = max(needed, self.depths.get(name, self.n_layers))
        return needed

    def predict(self, graph: Graph, outputs: List[str]) -> Dict[str, Tensor]:
        return self._evaluate(
            graph.types,
            edge_vectors(graph),
            graph.centers,
            graph.neighbors,
            outputs,
            graph.plan,
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
