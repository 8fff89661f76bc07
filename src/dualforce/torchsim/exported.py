"""Exported models, evaluated for many systems at once."""

from typing import Dict, List

import torch
from metatomic.torch import NeighborListOptions, System
from torch import Tensor

from ..forces import MetatomicForces


class ExportedModel(MetatomicForces):
    """An exported model that takes systems of metatomic, and returns tensors.

    Parameters as of :class:`~dualforce.MetatomicForces`.
    """

    def neighbor_list_options(self) -> List[NeighborListOptions]:
        """Neighbour lists that systems carry for :meth:`evaluate_systems`."""
        options: List[NeighborListOptions] = self._model.requested_neighbor_lists()
        return options

    def evaluate_systems(
        self, systems: List[System], *, energy: bool, direct: bool
    ) -> Dict[str, Tensor]:
        """Outputs from one forward pass, with its graph.

        :param systems: in Å, with their neighbour lists, in the precision ``dtype``.
        :param energy: return ``energy`` in eV, in double precision, shape
            ``[n_systems]``.
        :param direct: return ``direct_forces`` as the model predicts them, with their
            net force, in eV/Å, shape ``[n_atoms, 3]``.
        :raises EvaluationError: if the model fails, with its own words.
        :raises MissingForceError: if it has no such output.
        """
        names = [self._energy_name()] if energy else []
        names += self._direct_names(stress=False) if direct else []
        values, results = self._run(systems, names), {}
        if energy:
            results["energy"] = self._totals(values[names[0]], systems)
        if direct:
            results["direct_forces"] = values[names[-1]].reshape(-1, 3)
        return results

    def _totals(self, values: Tensor, systems: List[System]) -> Tensor:
        """Energies of systems, summed over atoms where the model gives those."""
        per_atom = self._energy_kind() == "atom"
        sizes = [len(system) if per_atom else 1 for system in systems]
        return torch.stack([p.sum(dtype=torch.float64) for p in values.split(sizes)])
