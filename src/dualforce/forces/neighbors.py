"""Pairs of atoms that are close to each other."""

from typing import Tuple

import ase
import numpy as np
import vesin
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray


def pairs_within(
    atoms: ase.Atoms, cutoff: float
) -> Tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """First and second atoms and distances of all pairs within a cutoff, each pair in
    both orders.

    :param atoms: the structure.
    :param cutoff: in Å.
    """
    periodic = atoms.pbc
    # vesin knows no mixed boundary conditions. ASE divides the cell into boxes of the
    # size of the cutoff, empty or not: slow where that is short and the cell is large.
    find = vesin.ase_neighbor_list if periodic.all() or not periodic.any() else None
    i, j, d = (find or neighbor_list)("ijd", atoms, cutoff)
    return i, j, d
