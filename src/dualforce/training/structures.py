"""Structures that nothing can be learnt from."""

from typing import Any, Sequence

import numpy as np
from numpy.typing import NDArray


HEAVIEST = 118
"""Largest atomic number."""

FLAT = 1e-6
"""Cell vectors that span less than this share of the product of their lengths are
linearly dependent."""


def check_structure(
    types: NDArray[Any],
    positions: NDArray[Any],
    cell: NDArray[Any],
    pbc: Sequence[bool],
    where: str,
) -> None:
    """Refuse a structure without atoms, with a number that is not finite, an unknown
    element, or periodic directions that its cell vectors do not span.

    :param types: atomic numbers, shape ``[n_atoms]``.
    :param positions: shape ``[n_atoms, 3]``.
    :param cell: rows are cell vectors, shape ``[3, 3]``.
    :param pbc: periodic directions.
    :param where: what to call the structure in messages.
    :raises ValueError: if the structure cannot be used.
    """
    if len(types) == 0:
        raise ValueError(f"{where}: it has no atoms; remove the frame")
    unknown = np.flatnonzero((types < 1) | (types > HEAVIEST))
    if len(unknown):
        raise ValueError(
            f"{where}: atom {unknown[0]} (counted from 0) has the atomic number "
            f"{types[unknown[0]]}, which is no element; correct or remove the frame"
        )
    infinite = np.flatnonzero(~np.isfinite(positions).all(axis=1))
    if len(infinite):
        raise ValueError(
            f"{where}: the position of atom {infinite[0]} (counted from 0) is NaN or "
            "infinite; correct or remove the frame"
        )
    if not np.isfinite(cell).all():
        raise ValueError(
            f"{where}: its cell is NaN or infinite; correct or remove the frame"
        )
    periodic = np.asarray(cell)[np.asarray(pbc, dtype=bool)]
    spanned = np.sqrt(max(0.0, float(np.linalg.det(periodic @ periodic.T))))
    if len(periodic) and spanned <= FLAT * np.linalg.norm(periodic, axis=1).prod():
        directions = " ".join("T" if flag else "F" for flag in pbc)
        raise ValueError(
            f"{where}: it is periodic (pbc '{directions}'), but its cell vectors "
            f"{np.asarray(cell).tolist()} span no cell along these directions; give "
            "the frame its cell, or pbc 'F F F' if it is a molecule"
        )
