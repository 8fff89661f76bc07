"""The state of replicas that run with two forces."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .dependency import MDState


def sum_by_system(values: Tensor, system_idx: Tensor, n_systems: int) -> Tensor:
    """Sums over the atoms of each system, in double precision.

    :param values: shape ``[n_atoms, ...]``.
    :param system_idx: system of each atom, shape ``[n_atoms]``.
    :param n_systems: number of systems.
    :return: shape ``[n_systems, ...]``.
    """
    sums = values.new_zeros((n_systems, *values.shape[1:]), dtype=torch.float64)
    return sums.index_add(0, system_idx, values.to(torch.float64))


def per_atom(value: Any, state: Any) -> Tensor:
    """A number, or one for each system, as a factor of vectors of atoms.

    :param value: scalar or of shape ``[n_systems]``.
    :param state: the systems.
    :return: scalar or of shape ``[n_atoms, 1]``.
    """
    tensor = torch.as_tensor(value, device=state.device, dtype=state.dtype)
    return tensor if tensor.ndim == 0 else tensor[state.system_idx].unsqueeze(-1)


@dataclass(kw_only=True)
class RespaState(MDState):
    """Replicas between two outer steps.

    A state of torch-sim: it can be sliced, split, concatenated and cloned, and
    ``dataclasses.asdict`` holds everything a run needs to go on, bitwise on a CPU:
    ``RespaState(**asdict(state))``. Energies and the quantities of the guard are in
    double precision. The system extra ``replica`` numbers the replicas, for messages;
    it stays with a replica through slicing and autobatching.
    """

    direct_forces: Tensor
    """Without net force, in eV/Å, shape ``[n_atoms, 3]``; NaN where they were not
    evaluated (``n_inner = 1``)."""
    heat: Tensor
    """Energy received from the thermostat, in eV, shape ``[n_systems]``."""
    start_conserved: Tensor
    """The conserved quantity at the start, in eV, shape ``[n_systems]``."""
    outer_steps: Tensor
    """Outer steps that were taken, shape ``[n_systems]``."""
    failed: Tensor
    """Replicas that have stopped at their last good structure, shape ``[n_systems]``.
    """
    corrections: Tensor
    """Root mean squares of the correction at the first outer points, in eV/Å, shape
    ``[n_systems, window]``; NaN where they are still to come."""
    reported: Tensor
    """The largest correction that has been reported, in eV/Å, shape ``[n_systems]``."""

    _atom_attributes = {*MDState._atom_attributes, "direct_forces"}
    _system_attributes = {
        *MDState._system_attributes,
        "heat",
        "start_conserved",
        "outer_steps",
        "failed",
        "corrections",
        "reported",
    }

    def get_number_of_degrees_of_freedom(self) -> Tensor:
        """Of the kinetic energy of each replica: ``3 N - 3``, since forces without net
        force leave the centre of mass at rest, or what constraints leave.

        :return: shape ``[n_systems]``.
        """
        degrees, everything = self._unconstrained_degrees(), 3 * self.n_atoms_per_system
        at_rest = (degrees == everything) & (everything > 3)
        return degrees - 3 * at_rest

    def _unconstrained_degrees(self) -> Tensor:
        degrees: Tensor = super().get_number_of_degrees_of_freedom()
        return degrees

    @property
    def kinetic_energy(self) -> Tensor:
        """In eV, shape ``[n_systems]``."""
        momenta, masses = self.momenta.to(torch.float64), self.masses.to(torch.float64)
        energies = 0.5 * (momenta**2).sum(1) / masses
        return sum_by_system(energies, self.system_idx, len(self.energy))

    @property
    def conserved(self) -> Tensor:
        """The conserved quantity in eV, shape ``[n_systems]``: conservative energy plus
        kinetic energy, less the heat received from the thermostat."""
        return self.energy + self.kinetic_energy - self.heat

    @property
    def correction(self) -> Tensor:
        """Root mean square of conservative minus direct force, in eV/Å, shape
        ``[n_systems]``; NaN where direct forces were not evaluated."""
        squares = ((self.forces - self.direct_forces) ** 2).mean(1)
        sums = sum_by_system(squares, self.system_idx, len(self.energy))
        return (sums / self.n_atoms_per_system).sqrt()


@dataclass(kw_only=True)
class RespaLangevinState(RespaState):
    """Replicas whose centres of mass move, by friction and noise."""

    def get_number_of_degrees_of_freedom(self) -> Tensor:
        """Of the kinetic energy of each replica: ``3 N``, less what constraints remove.

        :return: shape ``[n_systems]``.
        """
        return self._unconstrained_degrees()
