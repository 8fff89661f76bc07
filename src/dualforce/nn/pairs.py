"""Energies that are sums over pairs of atoms, for conservative and direct forces alike.

A direct force contains them as well, and must get them without a backward pass: their
derivative is in closed form.
"""

from typing import List, Tuple

import torch
from metatomic.torch import NeighborListOptions, System
from torch import Tensor, nn

from .base import system_edges


class NoPairTerm(nn.Module):
    """Stands where there is no such term."""

    interaction_range = 0.0

    def forward(self, systems: List[System]) -> Tensor:
        return systems[0].positions.new_zeros(1)

    @torch.jit.export
    def contribution(self, name: str, kind: str, systems: List[System]) -> Tensor:
        return systems[0].positions.new_zeros(1)


class PairTerm(nn.Module):
    """Sum over pairs of atoms.

    :param neighbor_list: a full list that holds every pair.
    """

    neighbor_list: NeighborListOptions

    def __init__(self, neighbor_list: NeighborListOptions) -> None:
        super().__init__()
        self.neighbor_list = neighbor_list
        self.interaction_range = neighbor_list.cutoff

    def pair_energies(
        self, name: str, types_i: Tensor, types_j: Tensor, distances: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """Energy of each directed pair (half of the pair's) and its derivative with
        respect to the distance, both of shape ``[n_edges]``.

        :param name: target that the pairs contribute to.
        """
        raise NotImplementedError

    def _edges(self, systems: List[System]) -> Tuple[Tensor, Tensor, Tensor]:
        """Centers, vectors and types of both atoms of all edges."""
        vectors: List[Tensor] = []
        centers: List[Tensor] = []
        types: List[Tensor] = []
        n_atoms = 0
        for system in systems:
            i, j, edges = system_edges(system, self.neighbor_list)
            of_atom = system.types.to(torch.long)
            vectors.append(edges)
            centers.append(i + n_atoms)
            types.append(torch.stack([of_atom[i], of_atom[j]]))
            n_atoms += len(system)
        return torch.cat(vectors), torch.cat(centers), torch.cat(types, dim=1)

    def _zeros(self, systems: List[System], shape: List[int]) -> Tensor:
        n_atoms = 0
        for system in systems:
            n_atoms += len(system)
        return systems[0].positions.new_zeros([n_atoms] + shape)

    def forward(self, systems: List[System]) -> Tensor:
        return self._zeros(systems, [1])

    @torch.jit.export
    def contribution(self, name: str, kind: str, systems: List[System]) -> Tensor:
        """What the pairs add to a target: energies of atoms ``[n_atoms, 1]``, forces
        ``[n_atoms, 3, 1]``, or, for a stress, contributions of atoms to the virial
        (the stress times the volume) ``[n_atoms, 3, 3, 1]``.

        :param name: name of the target.
        :param kind: ``"scalar"``, ``"force"`` or ``"stress"``.
        """
        vectors, centers, types = self._edges(systems)
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        energies, slopes = self.pair_energies(name, types[0], types[1], lengths)
        if kind == "scalar":
            out = self._zeros(systems, [1])
            return out.index_add(0, centers, energies.unsqueeze(1))
        pulls = (slopes / lengths).unsqueeze(1) * vectors
        if kind == "force":
            # Half of the pair's derivative is that of the opposite edge.
            out = self._zeros(systems, [3, 1])
            return out.index_add(0, centers, 2.0 * pulls.unsqueeze(-1))
        virials = vectors.unsqueeze(2) * pulls.unsqueeze(1)
        out = self._zeros(systems, [3, 3, 1])
        return out.index_add(0, centers, virials.unsqueeze(-1))
