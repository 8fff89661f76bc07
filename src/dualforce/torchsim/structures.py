"""From structures of ASE to states of torch-sim."""

from collections.abc import Sequence
from typing import Any, List, Optional, Union

import ase
import numpy as np
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms as AseFixAtoms

from .dependency import FixAtoms, MDState, SimState, atoms_to_state


def state_from_atoms(
    frames: Union[ase.Atoms, Sequence[ase.Atoms]],
    device: Optional[Union[str, torch.device]] = None,
) -> SimState:
    """Structures of ASE as one state, in double precision.

    Unlike ``torch_sim.initialize_state`` it keeps velocities and fixed atoms, and
    numbers the replicas (system extra ``replica``), so that messages name the right one
    after autobatching too.

    :param frames: structures; the same directions must be periodic in all.
    :param device: torch device of the state.
    :return: an ``MDState`` if any of the structures has velocities (energies and forces
        are to be computed by an init function), otherwise a ``SimState``.
    :raises ValueError: if a structure has another constraint than fixed atoms.
    """
    structures = [frames] if isinstance(frames, ase.Atoms) else list(frames)
    state = atoms_to_state(structures, torch.device(device or "cpu"), torch.float64)
    numbers = torch.arange(len(structures), device=state.device)
    state.system_extras["replica"] = numbers
    fixed = _fixed_atoms(structures)
    if fixed:
        indices = torch.tensor(fixed, device=state.device)
        state.constraints = [FixAtoms(atom_idx=indices)]
    momenta = np.concatenate([atoms.get_momenta() for atoms in structures])
    if not momenta.any():
        return state
    return MDState.from_state(
        state,
        momenta=torch.as_tensor(momenta, device=state.device),
        energy=torch.zeros_like(numbers, dtype=torch.float64),
        forces=torch.zeros_like(state.positions),
    )


def atoms_from_state(state: SimState) -> List[ase.Atoms]:
    """Structures of ASE, with masses and velocities.

    :param state: systems; energies and forces of an ``MDState`` come along as results.
    """
    frames: List[ase.Atoms] = state.to_atoms()
    sizes = state.n_atoms_per_system.tolist()
    columns = {"masses": state.masses}
    if isinstance(state, MDState):
        columns |= {"momenta": state.momenta, "forces": state.forces}
    parts = {name: values.cpu().split(sizes) for name, values in columns.items()}
    for index, atoms in enumerate(frames):
        atoms.set_masses(parts["masses"][index].numpy())
        if isinstance(state, MDState):
            atoms.set_momenta(parts["momenta"][index].numpy())
            atoms.calc = SinglePointCalculator(
                atoms,
                energy=float(state.energy[index]),
                forces=parts["forces"][index].numpy(),
            )
    return frames


def _fixed_atoms(structures: Sequence[ase.Atoms]) -> List[int]:
    """Fixed atoms of all structures, counted through."""
    fixed: List[int] = []
    first = 0
    for atoms in structures:
        for constraint in atoms.constraints:
            fixed += [first + index for index in _indices(constraint)]
        first += len(atoms)
    return fixed


def _indices(constraint: Any) -> List[int]:
    if not isinstance(constraint, AseFixAtoms):
        raise ValueError(
            f"the constraint {type(constraint).__name__} is not carried over to "
            "torch-sim; of those of ASE, FixAtoms is"
        )
    return [int(index) for index in constraint.index]
