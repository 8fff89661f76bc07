"""Structures that are evaluated together."""

from collections.abc import Iterable, Iterator, Sized
from typing import List, TypeVar


Structure = TypeVar("Structure", bound=Sized)

BATCH_ATOMS = 1_000
"""Atoms that are evaluated together, unless one structure has more."""


def batches(
    structures: Iterable[Structure], most: int = BATCH_ATOMS
) -> Iterator[List[Structure]]:
    """Neighbours in a list, with not too many atoms.

    :param structures: the list; the length of a structure is its number of atoms.
    :param most: atoms in a batch of more than one.
    """
    batch: List[Structure] = []
    for structure in structures:
        if batch and sum(map(len, batch)) + len(structure) > most:
            yield batch
            batch = []
        batch.append(structure)
    if batch:
        yield batch
