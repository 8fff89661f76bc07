"""Constant pressure."""

from typing import Any, Dict, List

import numpy as np
import pytest
from ase import Atoms, units
from ase.constraints import FixAtoms, FixCom
from potentials import (
    Bare,
    ElasticCell,
    LennardJones,
    argon,
    set_momenta,
    slope,
    two_calculators,
)
from scipy.integrate import solve_ivp
from scipy.stats import gamma, kstest, norm

from dualforce.md import Guard, RespaNPT, RunFailedError


SHAPES = ("isotropic", "orthorhombic", "triclinic")
PRESSURE = 0.02 * units.GPa
KT = 0.01


def make(
    atoms: Atoms, timestep: float, forces: Any, n_inner: int, **options: Any
) -> RespaNPT:
    """A run at constant pressure; without a thermostat unless asked for."""
    settings: Dict[str, Any] = {
        "temperature_K": KT / units.kB,
        "pressure": PRESSURE,
        "tau": 20.0,
        "tau_p": 60.0,
        "thermostat": False,
        "rng": 4,
        "guard": Guard(max_drift=np.inf),
    }
    return RespaNPT(atoms, timestep, forces, n_inner, **(settings | options))


def project(shape: str, matrix: Any) -> Any:
    """The part of a matrix that moves the cell."""
    if shape == "isotropic":
        return np.eye(3) * np.trace(matrix) / 3.0
    return np.diag(np.diag(matrix)) if shape == "orthorhombic" else matrix


def state(run: RespaNPT) -> Any:
    """Positions, momenta, cell and its momenta, one after the other."""
    atoms = run.atoms
    parts = (atoms.positions, atoms.get_momenta(), atoms.cell.array, run.cell_momentum)
    return np.concatenate([part.ravel() for part in parts])


# ---------------------------------------------------------------------- convergence


def exact(run: RespaNPT, shape: str, time: float) -> Any:
    """The equations of Martyna, Tobias and Klein, for the conservative force alone,
    by another integrator."""
    atoms = run.atoms.copy()
    n, mass, w = len(atoms), atoms.get_masses()[:, None], run.cell_mass

    def slopes(_: float, y: Any) -> Any:
        x, p = y[: 3 * n].reshape(n, 3), y[3 * n : 6 * n].reshape(n, 3)
        cell, push = y[6 * n : -9].reshape(3, 3), y[-9:].reshape(3, 3)
        atoms.positions, nu = x, push / w
        atoms.set_cell(cell)
        _, forces, stress = LennardJones(0.0104, 3.4, 5.0).evaluate(atoms)
        kinetic = (p / mass).T @ p
        volume = np.linalg.det(cell)
        drag = nu + np.trace(nu) / (3 * n) * np.eye(3)
        inner = kinetic - volume * (stress + PRESSURE * np.eye(3))
        gain = project(shape, inner) + np.trace(kinetic) / (3 * n) * np.eye(3)
        parts = (p / mass + x @ nu, forces - p @ drag, cell @ nu, gain)
        return np.concatenate([part.ravel() for part in parts])

    solution = solve_ivp(
        slopes, (0.0, time), state(run), "DOP853", rtol=1e-10, atol=1e-10
    )
    return solution.y[:, -1]


@pytest.mark.parametrize("shape", SHAPES)
def test_second_order(shape: str) -> None:
    """Trajectory of atoms and cell converge as the square of the step to those of the
    conservative force, with and without direct stress."""
    time, start = 128.0 * units.fs, argon()[0]
    start.set_cell(start.cell.array @ (np.eye(3) + 0.01 * np.tri(3, k=-1)), True)
    solution = exact(make(start.copy(), 1.0, argon()[1], 1, cell=shape), shape, time)
    cell_part = slice(192, 201)
    moved = np.abs(solution[cell_part] - start.cell.array.ravel()).max()
    for n_inner, direct_stress in ((1, True), (4, True), (4, False)):
        steps, errors = np.array([16, 32, 64]), []
        for n_steps in steps:
            atoms, (_, forces) = start.copy(), argon(direct_stress=direct_stress)
            run = make(atoms, time / n_steps, forces, n_inner, cell=shape)
            run.run(n_steps // n_inner)
            errors.append(np.abs(state(run) - solution))
        assert errors[-1][cell_part].max() < 0.02 * moved
        for part in (slice(0, 192), cell_part, slice(201, 210)):
            largest = [error[part].max() for error in errors]
            assert slope(1.0 / steps, largest) == pytest.approx(2.0, abs=0.2)


# ------------------------------------------------------ reversibility, phase space


@pytest.mark.parametrize("n_inner", [1, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_reversible(shape: str, n_inner: int) -> None:
    """With the momenta of atoms and cell turned round the way leads back."""
    atoms, forces = argon()
    run = make(atoms, 4.0 * units.fs, forces, n_inner, cell=shape)
    run.cell_momentum = 2.0 * project(shape, np.ones((3, 3)))
    start = state(run)
    for _ in range(2):
        run.run(15)
        atoms.set_momenta(-atoms.get_momenta())
        run.cell_momentum = -run.cell_momentum
    np.testing.assert_allclose(state(run), start, atol=1e-9)


@pytest.mark.parametrize("n_inner", [1, 3])
@pytest.mark.parametrize("shape, power", list(zip(SHAPES, (0, 0, 2), strict=True)))
def test_phase_space_volume(shape: str, power: int, n_inner: int) -> None:
    """Volumes in phase space change as the metric of the extended system says: with
    the volume as variable not at all, with the nine entries of the cell by V^2."""
    cluster, forces = argon(curl=0.01)
    cluster = cluster[[0, 1, 2, 3]]
    cluster.set_cell([10.6, 11.0, 10.2])
    rows, columns = np.triu_indices(3)
    last: List[Atoms] = []

    def step(y: Any) -> Any:
        atoms = cluster.copy()
        atoms.positions = y[:12].reshape(4, 3)
        atoms.set_momenta(y[12:24].reshape(4, 3))
        cell, push = y[24 : 24 + n_cell], y[24 + n_cell :]
        matrix = np.zeros((3, 3))
        if shape == "triclinic":
            atoms.set_cell(cell.reshape(3, 3))
            matrix[rows, columns] = matrix[columns, rows] = push
        elif shape == "orthorhombic":
            atoms.set_cell(np.diag(cell))
            matrix = np.diag(push)
        else:
            scale = (cell[0] / cluster.get_volume()) ** (1 / 3)
            atoms.set_cell(scale * cluster.cell.array)
            matrix = push[0] * np.eye(3)
        run = make(atoms, 15.0 * units.fs, forces, n_inner, cell=shape, tau_p=30.0)
        run.cell_momentum = matrix
        run.step()
        last.append(atoms)
        cell, push = atoms.cell.array, run.cell_momentum
        if shape == "triclinic":
            parts = (cell.ravel(), push[rows, columns])
        elif shape == "orthorhombic":
            parts = (np.diag(cell), np.diag(push))
        else:
            parts = (np.array([atoms.get_volume()]), push[:1, 0])
        moved = (atoms.positions.ravel(), atoms.get_momenta().ravel())
        return np.concatenate(moved + parts)

    n_cell = {"isotropic": 1, "orthorhombic": 3, "triclinic": 9}[shape]
    cells = {"isotropic": [cluster.get_volume()], "orthorhombic": [10.6, 11.0, 10.2]}
    cell = cells.get(shape, cluster.cell.array.ravel())
    push = 3.0 * project(shape, np.eye(3) + 0.3)
    pushes = {"isotropic": push[:1, 0], "orthorhombic": np.diag(push)}
    push = pushes.get(shape, push[rows, columns])
    momenta = cluster.get_momenta().ravel()
    start = np.concatenate([cluster.positions.ravel(), momenta, cell, push])
    moves = 1e-4 * np.eye(len(start))
    jacobian = np.array([step(start + d) - step(start - d) for d in moves]).T / 2e-4
    step(start)
    ratio = last[-1].get_volume() / cluster.get_volume()
    assert abs(ratio - 1.0) > 0.003
    assert np.linalg.det(jacobian) == pytest.approx(ratio**power, abs=1e-5)


# ---------------------------------------------------------------- conserved quantity


@pytest.mark.parametrize("thermostat", [False, True])
@pytest.mark.parametrize("n_inner", [1, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_conserved_quantity(shape: str, n_inner: int, thermostat: bool) -> None:
    """Enthalpy and energy of the cell, less heat; steady up to the square of the
    step."""
    spread = []
    for timestep in (16.0 * units.fs / n_inner, 4.0 * units.fs / n_inner):
        atoms, forces = argon()
        run = make(atoms, timestep, forces, n_inner, cell=shape, thermostat=thermostat)
        values: List[float] = []
        run.attach(lambda run=run, into=values: into.append(run.conserved))
        run.run(round(800.0 * units.fs / timestep / n_inner))
        cell = np.sum(run.cell_momentum**2) / (2.0 * run.cell_mass)
        enthalpy = atoms.get_total_energy() + PRESSURE * atoms.get_volume()
        assert values[-1] == pytest.approx(enthalpy + cell - run.heat, abs=1e-12)
        assert (run.heat != 0.0) == thermostat
        spread.append(np.std(values))
    assert spread[0] / spread[1] == pytest.approx(16.0, rel=0.5)


# -------------------------------------------------------------------- distributions


@pytest.mark.parametrize("shape", SHAPES)
def test_thermostat_of_the_cell(shape: str) -> None:
    """Each momentum of the cell receives its share of heat: those off the diagonal
    appear twice in the energy."""
    atoms, forces = argon()
    run = make(atoms, 1.0, forces, 1, thermostat=True, cell=shape)
    found = []
    for _ in range(4000):
        run._thermalise(1e4)
        found.append(run.cell_momentum)
    share = {"isotropic": 1 / 3, "orthorhombic": np.eye(3)}
    expected = share.get(shape, 0.5 + 0.5 * np.eye(3))
    variance = np.var(found, axis=0) / (run.cell_mass * KT)
    wanted = expected * project(shape, np.ones((3, 3)))
    np.testing.assert_allclose(variance, wanted, atol=0.09)
    energies = np.sum(np.square(found), axis=(1, 2)) / (2.0 * run.cell_mass * KT)
    degrees = {"isotropic": 1, "orthorhombic": 3, "triclinic": 6}[shape]
    assert kstest(energies, gamma(0.5 * degrees).cdf).pvalue > 1e-3


def volumes(run: RespaNPT, every: int, count: int, redraw: bool = False) -> Any:
    """Cells of a run; ``redraw`` exchanges the momenta now and then, since those of an
    ideal gas never change their direction."""
    found: List[Any] = []
    rng = np.random.default_rng(8)

    def new_momenta() -> None:
        momenta = rng.normal(size=(len(run.atoms), 3)) * np.sqrt(run.masses * KT)
        run.atoms.set_momenta(momenta)

    if redraw:
        run.attach(new_momenta, interval=2)
    run.attach(lambda: found.append(run.atoms.cell.array.copy()), interval=every)
    run.run(every * count)
    return np.array(found[50:])


def gas(n_atoms: int, length: float) -> Atoms:
    """Atoms in a cubic cell, in thermal motion."""
    rng = np.random.default_rng(0)
    atoms = Atoms(["Ar"] * n_atoms, cell=[length] * 3, pbc=True)
    atoms.positions = length * rng.random((n_atoms, 3))
    set_momenta(atoms, KT)
    return atoms


@pytest.mark.parametrize("fixed", [False, True])
def test_volume_of_an_ideal_gas(fixed: bool) -> None:
    """p(V) goes as V^N exp(-PV/kT); a fixed centre of mass takes one from N."""
    n_atoms = 5
    atoms = gas(n_atoms, 10.0)
    atoms.set_constraint([FixCom()] if fixed else [])
    pressure = n_atoms * KT / atoms.get_volume()
    none = ElasticCell(0.0, atoms.cell.array)
    options = {"pressure": pressure, "tau": 10.0, "tau_p": 20.0}
    run = make(atoms, 2.0, Bare(none, none), 2, thermostat=True, **options)
    cells = volumes(run, 10, 350)
    found = np.linalg.det(cells) * pressure / KT
    exponent = n_atoms - 1 if fixed else n_atoms
    assert kstest(found, gamma(exponent + 1.0).cdf).pvalue > 1e-3
    assert np.mean(found) == pytest.approx(exponent + 1.0, rel=0.1)


@pytest.mark.parametrize("shape", SHAPES)
def test_fluctuations_of_an_elastic_cell(shape: str) -> None:
    """Hencky strains of a cell with harmonic energy, filled with a gas, are normally
    distributed; the direct stress is wrong and has no energy."""
    n_atoms, stiffness = 4, 40.0 * KT
    atoms = gas(n_atoms, 20.0)
    reference = atoms.cell.array.copy()
    forces = Bare(
        ElasticCell(stiffness, reference), ElasticCell(0.9 * stiffness, reference, 0.02)
    )
    run = make(
        atoms, 0.75, forces, 4, thermostat=True, pressure=0.0, cell=shape, tau_p=30.0
    )
    cells = volumes(run, 10, 350, redraw=True)
    # V^N, and one more from the measure of logarithmic strains
    shift, width = (n_atoms + 1) / 40.0, 1.0 / 40.0
    logarithm = np.log(np.linalg.det(cells) / 20.0**3)
    expected = norm(3.0 * shift, np.sqrt(3.0 * width))
    assert kstest(logarithm, expected.cdf).pvalue > 1e-3
    strains = cells / 20.0
    if shape == "isotropic":
        np.testing.assert_allclose(strains, strains[:, :1, :1] * np.eye(3), atol=1e-12)
    elif shape == "orthorhombic":
        lengths = np.log(np.diagonal(strains, axis1=1, axis2=2))
        for each in lengths.T:
            assert kstest(each, norm(shift, np.sqrt(width)).cdf).pvalue > 1e-3
    else:
        logs = np.log(np.linalg.svd(strains, compute_uv=False))
        deviator = np.sum((logs - logs.mean(1, keepdims=True)) ** 2, axis=1)
        assert np.mean(deviator) == pytest.approx(deviatoric(40.0), rel=0.12)


def deviatoric(stiffness: float) -> float:
    """Mean square of the traceless strain, by quadrature over principal strains with
    the measure of stretches and rotations."""
    grid = np.linspace(-1.5, 1.5, 301)
    a, b = np.meshgrid(grid, grid)
    c = -a - b
    square = a**2 + b**2 + c**2
    spread = np.abs(np.sinh(a - b) * np.sinh(b - c) * np.sinh(c - a))
    weight = spread * np.exp(-0.5 * stiffness * square)
    return float(np.sum(weight * square) / np.sum(weight))


# ------------------------------------------------------------------------- bad input


def test_bad_cells() -> None:
    """No cell, or one too small, has no pressure."""
    atoms, forces = argon()
    slab = atoms.copy()
    slab.pbc = (True, True, False)
    for structure in (slab, Atoms("Ar")):
        with pytest.raises(ValueError, match="periodic in all directions"):
            make(structure, 1.0, forces, 1)
    thin = Atoms("Ar", cell=[10, 10, 2.5], pbc=True)
    with pytest.raises(ValueError, match="2.50 Å thin, too small .* repeat it"):
        make(thin, 1.0, forces, 1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"pressure": np.nan}, "the pressure must be a number"),
        ({"cell": "cubic"}, "cell must be one of isotropic, orthorhombic, triclinic"),
        ({"tau": 0.0}, "tau must be positive"),
        ({"tau_p": -1.0}, "tau_p must be positive"),
        ({"temperature_K": 0.0}, "temperature_K must be positive"),
    ],
)
def test_bad_settings(options: Dict[str, Any], message: str) -> None:
    """A sentence says what is wrong."""
    atoms, forces = argon()
    with pytest.raises(ValueError, match=message):
        make(atoms, 1.0, forces, 1, **options)


def test_fixed_atoms_are_refused() -> None:
    """Atoms that stay where they are do not go with a cell that moves."""
    atoms, forces = argon()
    atoms.set_constraint(FixAtoms([0]))
    with pytest.raises(
        ValueError, match="does not support .*FixAtoms; supported: FixC"
    ):
        make(atoms, 1.0, forces, 1)


def test_a_potential_without_stress_is_refused() -> None:
    """Without the conservative stress nothing would hold the cell together."""
    atoms, _ = argon()
    potential = LennardJones(0.0104, 3.4, 5.0)
    potential.implemented_properties = ["energy", "forces"]
    run = make(
        atoms,
        1.0,
        two_calculators(potential, potential),
        2,
    )
    with pytest.raises(RunFailedError, match="stress property not implemented"):
        run.run(1)
