"""Which length of a step suits a structure."""

from typing import Tuple

import ase


HYDROGEN, LIGHT = 1.5, 20.0
"""In u: the lightest atoms of structures with bonds to hydrogen, and with others of the
second period, are lighter."""


def propose_timestep(atoms: ase.Atoms) -> float:
    """A step for velocity Verlet, in fs, from the lightest atom: 0.5 with hydrogen, 1
    with other elements of the first two periods, otherwise 2.

    That is about a twentieth of the period of the fastest vibration (O-H 9 fs, C-C and
    C=O 20 fs, metals above 100 fs).

    :param atoms: the structure; heavier hydrogen counts by its mass.
    """
    lightest = float(atoms.get_masses().min())
    if lightest < HYDROGEN:
        return 0.5
    return 1.0 if lightest < LIGHT else 2.0


def propose_timesteps(atoms: ase.Atoms) -> Tuple[float, ...]:
    """Steps among which ``dualforce tune`` chooses where the user names none, in fs:
    :func:`propose_timestep`, half as much again, and twice as much.

    :param atoms: the structure.
    """
    shortest = propose_timestep(atoms)
    return shortest, 1.5 * shortest, 2.0 * shortest
