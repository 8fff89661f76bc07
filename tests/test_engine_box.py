"""Cells in standard form."""

from typing import Any, Dict

import ase
import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.lj import LennardJones
from hypothesis import given, settings
from hypothesis import strategies as st
from potentials import set_momenta, two_calculators
from scipy.spatial.transform import Rotation

from dualforce.engines.box import VACUUM, in_box
from dualforce.md import MDSettings, RespaVelocityVerlet


SETTINGS = MDSettings()


@st.composite
def crystals(draw: Any) -> ase.Atoms:
    """Atoms with momenta in a cell of any handedness, skew and orientation."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = [draw(st.floats(4.0, 9.0)) for _ in range(3)]
    skew = np.array([[0, 0, 0], *(draw(_tilts()) for _ in range(2))])
    cell = (np.eye(3) + np.tril(skew, -1)) @ np.diag(lengths)
    if draw(st.booleans()):
        cell = cell[[1, 0, 2]]
    atoms = ase.Atoms("Ar5", cell=cell, pbc=True)
    atoms.set_scaled_positions(rng.random((5, 3)))
    atoms.set_momenta(rng.normal(size=(5, 3)))
    atoms.rotate(rng.uniform(0.0, 360.0), rng.normal(size=3), rotate_cell=True)
    return atoms


def _tilts() -> Any:
    tilt = st.sampled_from([-3.0, -0.5, 0.0, 0.3, 0.5, 2.2]) | st.floats(-3.0, 3.0)
    return st.tuples(tilt, tilt, tilt).map(list)


@settings(max_examples=60, deadline=None)
@given(crystals())
def test_standard_form(atoms: ase.Atoms) -> None:
    """A positive diagonal and short tilts; the same crystal in motion, turned; and the
    way back."""
    box = in_box(atoms, SETTINGS, "an engine")
    cell = box.atoms.cell.array
    np.testing.assert_array_equal(cell, np.tril(cell))
    assert (np.diag(cell) > 0.0).all()
    limit = 0.5 + 1e-12
    assert abs(cell[1, 0]) <= limit * cell[0, 0]
    assert abs(cell[2, 0]) <= limit * cell[0, 0]
    assert abs(cell[2, 1]) <= limit * cell[1, 1]
    assert np.linalg.det(box.rotation) == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(
        box.atoms.get_all_distances(mic=True),
        atoms.get_all_distances(mic=True),
        atol=1e-9,
    )
    turned = Rotation.from_matrix(box.rotation).apply(atoms.get_momenta())
    np.testing.assert_allclose(box.atoms.get_momenta(), turned, atol=1e-12)
    again = box.back(box.atoms)
    for name in ("positions", "momenta"):
        expected = getattr(atoms, f"get_{name}")()
        np.testing.assert_allclose(getattr(again, f"get_{name}")(), expected, atol=1e-9)
    np.testing.assert_allclose(again.cell.array, atoms.cell.array, atol=1e-9)


def test_a_cell_in_standard_form_is_left_alone() -> None:
    """Bitwise."""
    atoms = ase.Atoms("Ar", cell=[[5, 0, 0], [1.7, 6, 0], [-2, 2.5, 7]], pbc=True)
    box = in_box(atoms, SETTINGS, "an engine")
    np.testing.assert_array_equal(box.atoms.cell.array, atoms.cell.array)
    np.testing.assert_array_equal(box.rotation, np.eye(3))


def test_molecule() -> None:
    """In the middle of a box; and out of it."""
    atoms = ase.Atoms("ArNe", [[1.0, 2.0, 3.0], [0.0, 4.0, 3.5]])
    box = in_box(atoms, SETTINGS, "an engine")
    assert box.atoms.positions.min() == pytest.approx(VACUUM)
    again = box.back(box.atoms)
    np.testing.assert_allclose(again.positions, atoms.positions, atol=1e-12)
    assert again.cell.rank == 0


@pytest.mark.parametrize(
    "multiples",
    [
        np.eye(3),
        [[0, 1, 0], [1, 0, 0], [0, 0, 1]],
        [[1, 0, 0], [2, 1, 0], [-3, 1, 1]],
        [[1, 0, 0], [-1, -1, 0], [3, 2, 1]],
    ],
    ids=["as it is", "left-handed", "skewed", "left-handed and skewed"],
)
def test_trajectories_are_the_same(multiples: Any) -> None:
    """What an engine computes in the box is what happens in the original frame."""
    atoms = bulk("Ar", a=5.3).repeat((3, 3, 3))
    atoms.set_cell(np.array(multiples) @ atoms.cell.array)
    atoms.rattle(0.05, seed=1)
    set_momenta(atoms, 0.005)
    atoms.rotate(40.0, (1.0, 0.5, -0.3), rotate_cell=True)
    box = in_box(atoms, SETTINGS, "an engine")
    options = {"epsilon": 0.0104, "sigma": 3.4, "smooth": True}
    forces = two_calculators(
        LennardJones(rc=6.0, **options), LennardJones(rc=5.5, **options)
    )
    ends = []
    for start in (atoms, box.atoms):
        run = RespaVelocityVerlet(start.copy(), 4.0 * units.fs, forces, 3)
        run.run(5)
        ends.append(run.atoms)
    assert ends[0].get_potential_energy() == pytest.approx(
        ends[1].get_potential_energy(), abs=1e-9
    )
    again = box.back(ends[1])
    np.testing.assert_allclose(again.positions, ends[0].positions, atol=1e-8)
    np.testing.assert_allclose(again.get_momenta(), ends[0].get_momenta(), atol=1e-8)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"pbc": [True, True, False]}, "some directions only"),
        ({"pbc": True, "cell": [5.0, 5.0, 0.0]}, "its cell has no volume"),
    ],
)
def test_refusals(changes: Dict[str, Any], message: str) -> None:
    """What no engine can run."""
    atoms = ase.Atoms("Ar", cell=[5.0, 5.0, 5.0])
    atoms.set_cell(changes.get("cell", atoms.cell))
    atoms.pbc = changes["pbc"]
    with pytest.raises(ValueError, match=message):
        in_box(atoms, SETTINGS, "an engine")
