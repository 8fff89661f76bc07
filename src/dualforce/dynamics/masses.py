"""Repartitioning of the mass of hydrogen."""

import ase
import numpy as np
from ase.neighborlist import build_neighbor_list, natural_cutoffs


def repartition_hydrogen_mass(atoms: ase.Atoms, mass: float = 3.0) -> None:
    """Make hydrogen heavier at the expense of the atoms it is bound to.

    Slows the fastest vibrations, so that longer steps of time are stable; averages that
    do not depend on masses (structures, free energies) stay exact (Feenstra, Hess,
    Berendsen, J. Comput. Chem. 20, 786 (1999)). Velocities are kept.

    :param atoms: structure to change.
    :param mass: new mass of hydrogen, in u.
    :raises ValueError: if a hydrogen atom has no heavy neighbour, or a neighbour would
        lose more than half of its mass.
    """
    hydrogen = np.flatnonzero(atoms.numbers == 1)
    masses = atoms.get_masses()
    partners = _partners(atoms, hydrogen)
    new = masses.copy()
    new[hydrogen] = mass
    np.subtract.at(new, partners, mass - masses[hydrogen])
    poor = np.flatnonzero(new < 0.5 * masses)
    if mass <= 0.0 or len(poor):
        listed = ", ".join(str(i) for i in poor[:10])
        raise ValueError(
            f"hydrogen cannot have a mass of {mass} u: atoms {listed} would lose more "
            "than half of theirs"
        )
    velocities = atoms.get_velocities()
    atoms.set_masses(new)
    atoms.set_velocities(velocities)


def _partners(atoms: ase.Atoms, hydrogen: np.ndarray) -> np.ndarray:
    """The nearest heavy atom in bonding distance of each hydrogen atom."""
    neighbors = build_neighbor_list(
        atoms, natural_cutoffs(atoms, mult=1.2), bothways=True, self_interaction=False
    )
    partners = []
    for index in hydrogen:
        bonded, _ = neighbors.get_neighbors(index)
        heavy = bonded[atoms.numbers[bonded] != 1]
        if len(heavy) == 0:
            raise ValueError(f"hydrogen atom {index} is bound to no heavier atom")
        distances = atoms.get_distances(index, heavy, mic=True)
        partners.append(heavy[np.argmin(distances)])
    return np.array(partners, dtype=int)
