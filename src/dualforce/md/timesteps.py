"""Which length of a step suits a structure."""

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
