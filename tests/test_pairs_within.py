"""Pairs of atoms that are close to each other."""

import numpy as np
import pytest
from ase import Atoms
from ase.neighborlist import neighbor_list

from dualforce.forces import pairs_within
from dualforce.md import describe_overlap


@pytest.mark.parametrize("pbc", [True, False, [True, True, False]])
@pytest.mark.parametrize("cutoff", [0.5, 3.0])
def test_pairs_are_those_of_ase(cutoff: float, pbc: object) -> None:
    """In all boundary conditions, in both orders."""
    rng = np.random.default_rng(1)
    positions = rng.uniform(-3.0, 9.0, (60, 3))
    atoms = Atoms("Ar60", positions, cell=[6.0, 7.0, 8.0], pbc=pbc)
    found = zip(*pairs_within(atoms, cutoff), strict=True)
    expected = zip(*neighbor_list("ijd", atoms, cutoff), strict=True)
    rounded = sorted((int(i), int(j), round(float(d), 6)) for i, j, d in found)
    assert rounded == sorted(
        (int(i), int(j), round(float(d), 6)) for i, j, d in expected
    )
    assert len(rounded) > 0


def test_overlap_in_a_large_box() -> None:
    """Named with its atoms; an image counts, too."""
    atoms = Atoms("H3", [[0, 0, 0], [0, 0, 0.3], [49.9, 0, 0]], cell=[50.0] * 3)
    assert "atoms 0 and 1 are only 0.30 Å apart" in describe_overlap(atoms)
    atoms.pbc = True
    assert "0.10 Å apart" in describe_overlap(atoms)
    assert describe_overlap(atoms[[1]]) == ""
