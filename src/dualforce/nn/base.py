"""What the model expects of a network."""

from abc import ABC, abstractmethod
from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
from metatomic.torch import NeighborListOptions, System
from torch import Tensor, nn

from .neighbors import RowPlan
from .wall import Wall


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; on a GPU it arrives while the CPU goes on."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    # Only copies from pinned memory do not wait.
    return tensor.pin_memory().to(device, non_blocking=True)


class Graph(NamedTuple):
    """Several structures as one graph of plain tensors.

    Positions may carry a gradient; ``cells`` and ``positions`` then already include the
    strain whose derivative is the virial.
    """

    types: Tensor
    """Atomic numbers, shape ``[n_atoms]``."""
    positions: Tensor
    """Shape ``[n_atoms, 3]``."""
    cells: Tensor
    """Rows are lattice vectors, shape ``[n_systems, 3, 3]``."""
    pbc: Tensor
    """Periodic directions, shape ``[n_systems, 3]``."""
    system: Tensor
    """Structure each atom belongs to, non-decreasing, shape ``[n_atoms]``."""
    centers: Tensor
    """First atom of each edge, non-decreasing, shape ``[n_edges]``."""
    neighbors: Tensor
    """Second atom of each edge, shape ``[n_edges]``."""
    shifts: Tensor
    """Lattice translations of the second atom, shape ``[n_edges, 3]``."""
    plan: Optional[RowPlan] = None
    """Where edges go in rows, if that is known; no two atoms then coincide."""

    def to(self, device: torch.device) -> "Graph":
        """The graph on a device; on a GPU it arrives while the CPU goes on."""
        tensors = {
            name: to_device(value, device)
            for name, value in self._asdict().items()
            if isinstance(value, Tensor)
        }
        plan = self.plan
        if plan is not None:
            plan = plan._replace(
                center=to_device(plan.center, device),
                slot=to_device(plan.slot, device),
            )
        return self._replace(plan=plan, **tensors)


def edge_vectors(graph: Graph) -> Tensor:
    """Vectors from centers to neighbours, shape ``[n_edges, 3]``."""
    cells = graph.cells.index_select(0, graph.system.index_select(0, graph.centers))
    translations = (graph.shifts.unsqueeze(2) * cells).sum(1)
    tips = graph.positions.index_select(0, graph.neighbors)
    return tips - graph.positions.index_select(0, graph.centers) + translations


def system_edges(
    system: System, options: NeighborListOptions
) -> Tuple[Tensor, Tensor, Tensor]:
    """Centers, neighbours and vectors from centers to neighbours of all edges.

    Vectors are made from positions and cell, not taken from the neighbour list:
    gradients then need nothing that whoever made the list has registered.

    :param system: the structure.
    :param options: which of its neighbour lists.
    """
    samples = system.get_neighbor_list(options).samples.values.to(torch.long)
    centers, neighbors = samples[:, 0], samples[:, 1]
    positions = system.positions
    translations = samples[:, 2:].to(positions.dtype) @ system.cell
    tips = positions.index_select(0, neighbors)
    return centers, neighbors, tips - positions.index_select(0, centers) + translations


class Backbone(nn.Module, ABC):
    """A network that predicts properties of atoms.

    ``forward(systems, outputs)`` serves exported models, must compile with TorchScript
    and accepts structures in any precision; ``predict(graph, outputs)`` serves
    training. Both return, for every name in ``outputs``, *raw* predictions for each
    atom: not scaled, without baseline, shape ``[n_atoms, n_properties]`` for scalars,
    ``[n_atoms, 3, n_properties]`` for vectors and ``[n_atoms, 3, 3, n_properties]`` for
    rank-2 tensors (for a stress, the contribution of the atom to the virial).

    A network that makes features from vectors between atoms passes them through
    ``wall`` first.

    :param atomic_types: atomic numbers the network knows.
    """

    equivariant: bool
    """Whether predictions rotate with the structure by construction."""
    zero_net_force: bool
    """Whether direct forces sum to zero by construction."""
    interaction_range: float
    """How far, in the length unit, a prediction for an atom may look."""

    def __init__(self, atomic_types: List[int]) -> None:
        super().__init__()
        self.register_buffer("dtype_reference", torch.zeros(1))
        self.wall = Wall(atomic_types)

    @abstractmethod
    def requested_neighbor_lists(self) -> List[NeighborListOptions]:
        """Neighbour lists needed; training supplies the first one."""

    @abstractmethod
    def add_output(self, name: str, kind: str, n_properties: int) -> None:
        """Add a head.

        :param name: name of the target.
        :param kind: ``"scalar"``, ``"vector"``, ``"force"`` or ``"stress"``.
        :param n_properties: number of properties of the target.
        """

    def head_parameters(self, names: List[str]) -> List[nn.Parameter]:
        """Parameters that belong to some outputs only.

        :param names: names of the targets.
        """
        parts = [f".{name}." for name in names]
        return [
            parameter
            for key, parameter in self.named_parameters()
            if any(part in key for part in parts)
        ]

    @abstractmethod
    def predict(self, graph: Graph, outputs: List[str]) -> Dict[str, Tensor]:
        """Raw predictions for a graph of plain tensors."""
