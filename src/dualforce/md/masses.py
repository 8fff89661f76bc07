"""Repartitioning of the mass of hydrogen."""

import ase
import numpy as np
from ase.neighborlist import natural_cutoffs, neighbor_list
from numpy.typing import NDArray

from ..forces import list_atoms


BOND_TOLERANCE = 1.2
"""A bond is at most this multiple of the sum of covalent radii."""


def repartition_hydrogen_mass(atoms: ase.Atoms, mass: float = 3.0) -> None:
    """Make hydrogen heavier at the expense of the atoms it is bound to.

    Slows the fastest vibrations, so that longer steps of time are stable; averages that
    do not depend on masses (structures, free energies) stay exact (Feenstra, Hess,
    Berendsen, J. Comput. Chem. 20, 786 (1999)). Velocities are kept.

    :param atoms: structure to change.
    :param mass: new mass of hydrogen, in u.
    :raises ValueError: if the mass is not positive, a hydrogen atom has no heavy
        neighbour, or a neighbour would lose more than half of its mass.
    """
    if not (np.isfinite(mass) and mass > 0.0):
        raise ValueError(f"the mass of hydrogen must be positive, not {mass}")
    hydrogen = np.flatnonzero(atoms.numbers == 1)
    masses = atoms.get_masses()
    partners = _partners(atoms)[hydrogen]
    if (partners < 0).any():
        raise ValueError(
            f"hydrogen atoms {list_atoms(hydrogen[partners < 0])} are bound to no "
            "heavier atom"
        )
    new = masses.copy()
    new[hydrogen] = mass
    np.subtract.at(new, partners, mass - masses[hydrogen])
    poor = np.flatnonzero((new < 0.5 * masses) & (atoms.numbers != 1))
    if len(poor):
        raise ValueError(
            f"hydrogen cannot have a mass of {mass} u: atoms {list_atoms(poor)} would "
            "lose more than half of theirs"
        )
    velocities = atoms.get_velocities() if atoms.has("momenta") else None
    atoms.set_masses(new)
    if velocities is not None:
        atoms.set_velocities(velocities)


def _partners(atoms: ase.Atoms) -> NDArray[np.integer]:
    """The nearest heavy atom in bonding distance of each atom, or -1."""
    first, second, distances = neighbor_list(
        "ijd", atoms, natural_cutoffs(atoms, mult=BOND_TOLERANCE)
    )
    heavy = atoms.numbers[second] != 1
    farthest_first = np.argsort(-distances[heavy], kind="stable")
    partners = np.full(len(atoms), -1)
    partners[first[heavy][farthest_first]] = second[heavy][farthest_first]
    return partners
