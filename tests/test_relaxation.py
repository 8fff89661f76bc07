"""Geometries that are relaxed with direct forces first."""

from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones as AseLennardJones
from ase.constraints import FixAtoms
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE
from click.testing import CliRunner
from helpers import make_model, random_cell
from potentials import Bare, Linear, argon

from dualforce.cli import main
from dualforce.md import RunFailedError
from dualforce.md.relaxation import relax


@pytest.mark.parametrize("optimizer", [None, FIRE])
def test_minimum_is_that_of_the_conservative_energy(optimizer: Any) -> None:
    """A direct force that vanishes elsewhere leads towards the minimum but does not
    decide where it is; fewer evaluations need the energy than without it."""
    atoms, forces = argon(curl=0.0005, pbc=False)
    atoms.rattle(0.3, seed=1)
    options = {"fmax": 1e-4} | ({"optimizer": optimizer} if optimizer else {})
    result = relax(forces, atoms, **options)
    assert result.converged and result.n_direct > 0
    alone = relax(forces, atoms, use_direct=False, **options)
    assert alone.n_direct == 0
    assert result.n_conservative < alone.n_conservative

    independent = result.atoms.copy()
    independent.calc = forces.potentials[0]
    assert np.linalg.norm(independent.get_forces(), axis=1).max() < 1e-4
    assert result.energy == pytest.approx(independent.get_potential_energy())
    assert result.energy == pytest.approx(alone.energy, abs=1e-4)
    direct = forces.direct(result.atoms).forces
    assert np.linalg.norm(direct, axis=1).max() > 5e-4  # no minimum of theirs


def test_direct_forces_that_lead_uphill_are_left() -> None:
    """The conservative energy is looked at; what direct forces spoil is undone."""
    sites = np.zeros((2, 3))
    sites[1, 0] = 2.0
    matrix = np.kron(np.array([[1.0, -1.0], [-1.0, 1.0]]), np.eye(3))
    forces = Bare(Linear(matrix, sites), Linear(-0.1 * matrix, sites))
    atoms = Atoms("Ar2", sites + [[0.0, 0.0, 0.0], [0.5, 0.1, 0.0]])
    result = relax(forces, atoms, fmax=1e-5)
    assert result.converged
    np.testing.assert_allclose(
        np.diff(result.atoms.positions, axis=0)[0], [2, 0, 0], atol=1e-5
    )


@pytest.mark.parametrize("direct_stress", [True, False])
def test_cell(direct_stress: bool) -> None:
    """Cell and positions relax to what ASE finds with the conservative potential."""
    atoms, forces = argon(direct_stress=direct_stress)
    result = relax(forces, atoms, fmax=1e-4, cell=True)
    assert result.converged
    expected = atoms.copy()
    expected.calc = forces.potentials[0]
    BFGS(FrechetCellFilter(expected), logfile=None).run(fmax=1e-4)
    assert result.energy == pytest.approx(expected.get_potential_energy(), abs=1e-4)
    assert result.atoms.get_volume() == pytest.approx(expected.get_volume(), rel=2e-3)
    assert atoms.get_volume() == pytest.approx((2 * 5.3) ** 3)  # not changed


def test_constraints_hold() -> None:
    """Fixed atoms stay, also under direct forces."""
    atoms, forces = argon()
    atoms.set_constraint(FixAtoms([0, 5]))
    result = relax(forces, atoms, fmax=1e-3)
    assert result.converged
    np.testing.assert_array_equal(
        result.atoms.positions[[0, 5]], atoms.positions[[0, 5]]
    )


def test_end_of_steps_is_not_convergence() -> None:
    """Too few steps are reported."""
    atoms, forces = argon()
    result = relax(forces, atoms, fmax=1e-8, steps=3)
    assert not result.converged and result.largest_force > 1e-8


def test_refusals() -> None:
    """Arguments that make no sense, and a model that fails."""
    atoms, forces = argon(pbc=False)
    with pytest.raises(ValueError, match="periodic in all directions"):
        relax(forces, atoms, cell=True)
    with pytest.raises(ValueError, match="fmax must be positive"):
        relax(forces, atoms, fmax=0.0)

    class Broken(Bare):
        def direct(self, atoms: Atoms, stress: bool = False) -> Any:
            raise FloatingPointError("the direct force is not finite on atoms 3")

    broken = Broken(*forces.potentials)
    with pytest.raises(RunFailedError, match="after 0 steps.*atoms 3"):
        relax(broken, atoms, fmax=1e-9)


def test_command(tmp_path: Path) -> None:
    """The command writes a structure whose conservative forces are as small as asked,
    says when they are not, and overwrites nothing."""
    model, structure = tmp_path / "small.pt", tmp_path / "structure.xyz"
    make_model().export().save(str(model))
    atoms = random_cell(8, 6.0, seed=1)
    atoms.calc = AseLennardJones()
    ase.io.write(structure, atoms, format="extxyz")
    output = tmp_path / "relaxed.xyz"
    arguments = ["relax", str(model), str(structure), "-o", str(output)]
    result = CliRunner().invoke(main, [*arguments, "--steps", "1", "--fmax", "1e-6"])
    assert result.exit_code == 1 and "Not converged" in result.output
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1 and "exists already" in result.output
    output.unlink()
    result = CliRunner().invoke(main, [*arguments, "--fmax", "0.05", "--compare"])
    assert result.exit_code == 0, result.output
    assert result.output.count("converged") == 3
    relaxed = ase.io.read(output)
    assert isinstance(relaxed, Atoms)
    assert np.linalg.norm(relaxed.get_forces(), axis=1).max() < 0.05
