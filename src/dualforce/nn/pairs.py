"""Energies that are sums over pairs of atoms, for conservative and direct forces alike.

A direct force contains them as well, and must get them without a backward pass: their
derivative is in closed form.
"""

from typing import List, NamedTuple, Tuple

import torch
from metatomic.torch import NeighborListOptions, System
from torch import Tensor, nn

from .base import system_edges
from .wall import saturated_lengths


class Edges(NamedTuple):
    """All edges of some structures, in the precision of the positions."""

    vectors: Tensor
    """From centers to neighbours, shape ``[n_edges, 3]``."""
    lengths: Tensor
    """Shape ``[n_edges]``."""
    centers: Tensor
    """First atom of each edge, counted over all structures, shape ``[n_edges]``."""
    types: Tensor
    """Atomic numbers of both atoms, shape ``[2, n_edges]``."""
    starts: Tensor
    """Where the wall of each edge starts, shape ``[n_edges]``."""
    inside: Tensor
    """Indices of the edges shorter than that."""
    n_atoms: int
    """Atoms of all structures."""


def some_edges(edges: Edges, index: Tensor, inside: Tensor) -> Edges:
    """Some of the edges.

    :param edges: all of them.
    :param index: which ones, shape ``[n_chosen]``.
    :param inside: which of these are shorter than where the wall starts.
    """
    return Edges(
        edges.vectors.index_select(0, index),
        edges.lengths.index_select(0, index),
        edges.centers.index_select(0, index),
        edges.types.index_select(1, index),
        edges.starts.index_select(0, index),
        inside,
        edges.n_atoms,
    )


def make_edges(
    systems: List[System], options: NeighborListOptions, starts: Tensor
) -> Edges:
    """Edges of structures.

    :param systems: the structures.
    :param options: which of their neighbour lists.
    :param starts: table of :class:`.wall.Wall`.
    """
    vectors: List[Tensor] = []
    centers: List[Tensor] = []
    types: List[Tensor] = []
    n_atoms = 0
    for system in systems:
        i, j, edges = system_edges(system, options)
        of_atom = system.types.to(torch.long)
        vectors.append(edges)
        centers.append(i + n_atoms)
        types.append(torch.stack([of_atom[i], of_atom[j]]))
        n_atoms += len(system)
    joined, pairs = torch.cat(vectors), torch.cat(types, dim=1)
    lengths = torch.linalg.vector_norm(joined, dim=1)
    row = pairs[0] * starts.shape[1] + pairs[1]
    of_edges = starts.flatten().index_select(0, row).to(lengths.dtype)
    inside = torch.nonzero(lengths.detach() < of_edges).reshape(-1)
    return Edges(joined, lengths, torch.cat(centers), pairs, of_edges, inside, n_atoms)


class NoPairTerm(nn.Module):
    """Stands where there is no such term."""

    interaction_range = 0.0

    def forward(self, systems: List[System]) -> Tensor:
        return systems[0].positions.new_zeros(1)

    @torch.jit.export
    def edges(self, systems: List[System], starts: Tensor) -> Edges:
        none = torch.zeros(0, dtype=torch.long, device=starts.device)
        zeros = systems[0].positions.new_zeros(1)
        return Edges(zeros, zeros, none, none, zeros, none, 0)

    @torch.jit.export
    def contribution(self, name: str, kind: str, edges: Edges) -> Tensor:
        return edges.lengths.new_zeros(1)


class PairTerm(nn.Module):
    """Sum over pairs of atoms.

    :param neighbor_list: a full list that holds every pair.
    :param saturates: whether distances inside the wall are saturated (:mod:`.wall`).
    :param only_inside: whether only pairs inside the wall contribute.
    """

    neighbor_list: NeighborListOptions

    def __init__(
        self,
        neighbor_list: NeighborListOptions,
        saturates: bool = False,
        only_inside: bool = False,
    ) -> None:
        super().__init__()
        self.saturates, self.only_inside = saturates, only_inside
        self.neighbor_list = neighbor_list
        self.interaction_range = neighbor_list.cutoff

    def pair_energies(
        self, name: str, types_i: Tensor, types_j: Tensor, distances: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """Energy of each directed pair (half of the pair's) and its derivative with
        respect to the distance, both of shape ``[n_edges]``.

        :param name: target that the pairs contribute to.
        :param types_i: atomic numbers of the first atoms, shape ``[n_edges]``.
        :param types_j: atomic numbers of the second atoms.
        :param distances: shape ``[n_edges]``, saturated where the term asks for it.
        """
        raise NotImplementedError

    @torch.jit.unused
    def reach(self) -> float:
        """Distance beyond which no pair contributes."""
        return self.interaction_range

    def _zeros(self, edges: Edges, shape: List[int]) -> Tensor:
        return edges.lengths.new_zeros([edges.n_atoms] + shape)

    def forward(self, systems: List[System]) -> Tensor:
        return systems[0].positions.new_zeros(1)

    def _evaluate(self, name: str, edges: Edges) -> Tuple[Tensor, Tensor]:
        """Energies of directed pairs and derivatives, of the edges that count."""
        types = edges.types
        if not self.saturates or edges.inside.shape[0] == 0:
            return self.pair_energies(name, types[0], types[1], edges.lengths)
        seen, stretch = saturated_lengths(edges.lengths, edges.starts)
        energies, slopes = self.pair_energies(name, types[0], types[1], seen)
        return energies, slopes * stretch

    @torch.jit.export
    def edges(self, systems: List[System], starts: Tensor) -> Edges:
        """Edges that all contributions of this term, and of terms with the same
        neighbour list, are made from.

        :param systems: the structures.
        :param starts: table of :class:`.wall.Wall`.
        """
        return make_edges(systems, self.neighbor_list, starts)

    @torch.jit.export
    def contribution(self, name: str, kind: str, edges: Edges) -> Tensor:
        """What the pairs add to a target: energies of atoms ``[n_atoms, 1]``, forces
        ``[n_atoms, 3, 1]``, or, for a stress, contributions of atoms to the virial
        (the stress times the volume) ``[n_atoms, 3, 3, 1]``.

        :param name: name of the target.
        :param kind: ``"scalar"``, ``"force"`` or ``"stress"``.
        :param edges: edges of the term's neighbour list.
        """
        if self.only_inside:
            everything = torch.arange(len(edges.inside), device=edges.inside.device)
            edges = some_edges(edges, edges.inside, everything)
        energies, slopes = self._evaluate(name, edges)
        vectors, centers = edges.vectors, edges.centers
        if kind == "scalar":
            out = self._zeros(edges, [1])
            return out.index_add(0, centers, energies.unsqueeze(1))
        pulls = (slopes / edges.lengths).unsqueeze(1) * vectors
        if kind == "force":
            # Half of the pair's derivative is that of the opposite edge.
            out = self._zeros(edges, [3, 1])
            return out.index_add(0, centers, 2.0 * pulls.unsqueeze(-1))
        virials = vectors.unsqueeze(2) * pulls.unsqueeze(1)
        out = self._zeros(edges, [3, 3, 1])
        return out.index_add(0, centers, virials.unsqueeze(-1))
