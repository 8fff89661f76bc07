"""Work around closed loops."""

from typing import Any, List, Tuple

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from potentials import Analytic, LennardJones, Linear, argon

from dualforce.diagnostics.measures.loops import (
    LoopWork,
    NoMoleculeError,
    find_molecules,
    plane_loop,
    rotation_loop,
)
from dualforce.forces import CalculatorForces


C = "conservative"


class Recorded(Analytic):
    """A potential that remembers where it was evaluated."""

    def __init__(self, potential: Analytic) -> None:
        super().__init__()
        self.potential = potential
        self.places: List[Any] = []

    def evaluate(self, atoms: Atoms) -> Tuple[float, Any, Any]:
        """Energy, forces and stress."""
        self.places.append(atoms.positions.copy())
        return self.potential.evaluate(atoms)


class Vortex(Analytic):
    """Forces at right angles to a direction and to the position, and a potential that
    is not harmonic."""

    def __init__(self, direction: Any) -> None:
        super().__init__()
        self.direction = np.array(direction)

    def evaluate(self, atoms: Atoms) -> Tuple[float, Any, Any]:
        """Energy, forces and stress."""
        forces = np.cross(self.direction, atoms.positions) - np.sin(atoms.positions)
        return 0.0, forces, None


def check_curve(result: LoopWork) -> None:
    """The curve ends with the work."""
    assert result.angles[0] == 0.0 and result.angles[-1] == pytest.approx(360.0)
    assert result.cumulative[0] == 0.0
    assert result.cumulative[-1] == pytest.approx(result.work, abs=1e-12)
    assert len(result.angles) == len(result.cumulative) == result.n_points + 1


def water_pair() -> Atoms:
    """Two molecules, one across the boundary of the cell."""
    water = molecule("H2O")
    water.positions -= water.positions[0]
    other = water.copy()
    other.rotate(70, "x")
    other.positions += [0.1, 2.2, 2.2]
    atoms = water + other
    atoms.set_cell([7.0, 7.5, 8.0])
    atoms.pbc = True
    atoms.wrap()
    return atoms


def test_plane_encloses_the_curl() -> None:
    """By the theorem of Stokes: twice the curl's component times the area."""
    n_atoms, radius = 5, 0.1 * np.sqrt(5)
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(15, 15))
    atoms = Atoms("C5", positions=rng.normal(size=(5, 3)))
    potential = Recorded(Linear(matrix, np.zeros((5, 3))))
    result = plane_loop(
        CalculatorForces(potential, "linear"), C, atoms, displacement=0.1
    )
    # The first points are evenly spaced: the start, and a quarter of the way.
    start, quarter = potential.places[0], potential.places[2]
    first, second = (
        (place - atoms.positions).ravel() / radius for place in (start, quarter)
    )
    assert first @ second == pytest.approx(0.0, abs=1e-12)
    curl = second @ -matrix @ first - first @ -matrix @ second
    assert result.work == pytest.approx(curl * np.pi * radius**2, rel=1e-10)
    assert result.numerical_error < 1e-10
    assert result.length == pytest.approx(2.0 * np.pi * radius)
    assert result.kind == C and result.loop == "plane"
    check_curve(result)
    for place in potential.places:
        squares = ((place - atoms.positions) ** 2).sum() / n_atoms
        assert np.sqrt(squares) == pytest.approx(0.1)


def test_conservative_force_does_no_work() -> None:
    """Beyond the numerical error; a curl does, and the sign follows it."""
    atoms, _ = argon()
    works = {}
    for curl in (-1e-3, 0.0, 1e-3):
        force = CalculatorForces(LennardJones(0.0104, 3.4, 5.0, curl), "argon")
        works[curl] = plane_loop(force, C, atoms, seed=1)
        check_curve(works[curl])
    assert abs(works[0.0].work) <= works[0.0].numerical_error + 1e-12 < 1e-6
    assert works[1e-3].work == pytest.approx(-works[-1e-3].work, rel=1e-2)
    assert abs(works[1e-3].work) > 100.0 * works[1e-3].numerical_error


def test_rotation_in_a_vortex() -> None:
    """In closed form: 2 pi times the vortex along the axis times the squared arms."""
    atoms = water_pair()
    vortex = np.array([0.3, -0.2, 0.5])
    potential = Recorded(Vortex(vortex))
    result = rotation_loop(CalculatorForces(potential, "vortex"), C, atoms, seed=3)
    places = np.array(potential.places[:8])
    moving = np.flatnonzero(np.ptp(places, axis=0).max(1) > 1e-9)
    assert len(moving) == 3  # one molecule
    center = places.mean(0)[moving]  # of the circles of its atoms
    arms = places[:, moving] - center
    radii = np.linalg.norm(arms, axis=2)
    np.testing.assert_allclose(radii, radii[:1].repeat(8, 0), atol=1e-12)
    widest = radii[0].argmax()
    axis = np.cross(arms[0, widest], arms[2, widest]) / radii[0, widest] ** 2
    expected = 2.0 * np.pi * (vortex @ axis) * (radii[0] ** 2).sum()
    assert result.work == pytest.approx(expected, rel=1e-6)
    assert result.length == pytest.approx(
        2.0 * np.pi * np.sqrt((radii[0] ** 2).sum()), rel=1e-9
    )
    assert result.loop == "rotation"
    check_curve(result)


def test_rotation_of_a_conservative_liquid() -> None:
    """No work, though a hard force is met on the way: points are added until then."""
    atoms = water_pair()
    force = CalculatorForces(LennardJones(0.01, 2.0, 3.5), "argon")
    result = rotation_loop(force, C, atoms, max_points=2048)
    assert abs(result.work) <= 2.0 * result.numerical_error + 1e-9
    size = np.abs(np.diff(result.cumulative)).sum()
    assert size > 1e-4 and abs(result.work) < 1e-4 * size


def test_points_that_do_not_suffice() -> None:
    """Leave an error that says so."""
    atoms = Atoms("C", [[0.0, 0.0, 0.0]])
    force = CalculatorForces(Vortex([0.0, 0.0, 0.01]), "vortex")
    fine = plane_loop(force, C, atoms, displacement=15.0, max_points=4096)
    coarse = plane_loop(force, C, atoms, displacement=15.0, max_points=32)
    assert coarse.n_points == 32
    assert coarse.numerical_error > 1e-3 * abs(fine.work) > fine.numerical_error
    assert abs(coarse.work - fine.work) <= coarse.numerical_error


def test_molecules() -> None:
    """In one piece, also across the boundary; no networks and no atoms alone."""
    atoms = water_pair()
    molecules = find_molecules(atoms)
    assert [sorted(indices) for indices, _ in molecules] == [[0, 1, 2], [3, 4, 5]]
    for indices, positions in molecules:
        lone = Atoms(atoms.symbols[indices], positions=positions)
        np.testing.assert_allclose(
            lone.get_all_distances(), molecule("H2O").get_all_distances(), atol=1e-9
        )
    alone = molecule("CH4")
    assert len(find_molecules(alone)[0][0]) == 5
    small = molecule("CH4")
    small.set_cell([3.4, 3.4, 3.4])
    small.pbc = True
    assert len(find_molecules(small)) == 1


@pytest.mark.parametrize(
    "atoms",
    [
        bulk("Cu", cubic=True),
        bulk("Cu"),
        Atoms("Ar2", [[0, 0, 0], [0, 0, 4]]),
        Atoms("O"),
    ],
)
def test_nothing_to_turn(atoms: Atoms) -> None:
    """Is said."""
    force = CalculatorForces(Vortex([0.0, 0.0, 1.0]), "vortex")
    with pytest.raises(NoMoleculeError, match="has no molecule to turn"):
        rotation_loop(force, C, atoms)


def test_arguments() -> None:
    """That make no sense are refused."""
    force, atoms = CalculatorForces(Vortex([0.0, 0.0, 1.0]), "vortex"), water_pair()
    with pytest.raises(ValueError, match="displacement must be positive"):
        plane_loop(force, C, atoms, displacement=0.0)
    with pytest.raises(ValueError, match="max_points must be at least 32, not 8"):
        plane_loop(force, C, atoms, max_points=8)
