"""Reversible RESPA at constant energy."""

from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.constraints import (
    FixAtoms,
    FixBondLengths,
    FixCartesian,
    FixCom,
    FixedLine,
    FixedPlane,
    FixInternals,
    Hookean,
)
from ase.io import read
from ase.md.verlet import VelocityVerlet
from potentials import (
    Bare,
    Counting,
    LennardJones,
    Linear,
    argon,
    chain,
    set_momenta,
    slope,
    two_calculators,
)

from dualforce.md import Guard, RespaVelocityVerlet


FREE = Guard(max_drift=np.inf)


def phase(atoms: Atoms) -> Any:
    """Positions and momenta, one after the other."""
    return np.concatenate([atoms.positions.ravel(), atoms.get_momenta().ravel()])


# ---------------------------------------------------------------- equality with ASE

CONSTRAINTS: Dict[str, Any] = {
    "none": lambda: [],
    "FixAtoms": lambda: [FixAtoms([0, 5])],
    "FixCartesian": lambda: [FixCartesian([1, 2], mask=(True, False, True))],
    "FixedPlane": lambda: [FixedPlane([3], (1, 1, 0))],
    "FixedLine": lambda: [FixedLine([3], (0, 1, 1))],
    "FixCom": lambda: [FixCom()],
    "FixBondLengths": lambda: [FixBondLengths([(0, 1), (4, 5)])],
}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_one_inner_step_is_velocity_verlet(name: str) -> None:
    """The trajectory of ASE, bitwise identical where ASE solves no equations."""
    ours, forces = argon()
    theirs = ours.copy()
    theirs.calc = LennardJones(0.0104, 3.4, 5.0)
    for atoms in (ours, theirs):
        atoms.set_constraint(CONSTRAINTS[name]())
        atoms.set_momenta(atoms.get_momenta())
    timestep = 4.0 * units.fs
    RespaVelocityVerlet(ours, timestep, forces, 1).run(25)
    VelocityVerlet(theirs, timestep).run(25)
    if name in ("none", "FixAtoms", "FixCartesian"):
        np.testing.assert_array_equal(phase(ours), phase(theirs))
    np.testing.assert_allclose(phase(ours), phase(theirs), atol=1e-10)
    assert ours.get_potential_energy() == pytest.approx(
        theirs.get_potential_energy(), abs=1e-12
    )


def test_equal_forces_give_velocity_verlet() -> None:
    """If the direct force is the conservative one, every trajectory is that of ASE."""
    for n_inner in (2, 5):
        ours, _ = argon()
        theirs = ours.copy()
        theirs.calc = LennardJones(0.0104, 3.4, 5.0)
        forces = two_calculators(LennardJones(0.0104, 3.4, 5.0), theirs.calc)
        RespaVelocityVerlet(ours, 4.0 * units.fs, forces, n_inner).run(4)
        VelocityVerlet(theirs, 4.0 * units.fs).run(4 * n_inner)
        np.testing.assert_allclose(phase(ours), phase(theirs), atol=1e-12)


@pytest.mark.parametrize("n_inner", [1, 2, 4])
def test_the_splitting_is_that_of_the_paper(n_inner: int) -> None:
    """For linear forces a step is a product of matrices."""
    atoms, forces = chain()
    timestep = 0.1
    conservative, direct = forces.potentials
    size = 3 * len(atoms)
    mass = np.repeat(atoms.get_masses(), 3)
    shares = atoms.get_masses() / atoms.get_masses().sum()
    net = np.kron(np.outer(shares, np.ones(len(atoms))), np.eye(3))
    inner = direct.matrix - net @ direct.matrix  # without net force
    identity, zero = np.eye(size), np.zeros((size, size))

    def kick(matrix: Any, time: float) -> Any:
        return np.block([[identity, zero], [-time * matrix, identity]])

    drift = np.block([[identity, timestep * np.diag(1.0 / mass)], [zero, identity]])
    outer = kick(conservative.matrix - inner, 0.5 * n_inner * timestep)
    half = kick(inner, 0.5 * timestep)
    step = outer @ np.linalg.matrix_power(half @ drift @ half, n_inner) @ outer
    start = phase(atoms)
    start[:size] -= conservative.reference.ravel()
    RespaVelocityVerlet(atoms, timestep, forces, n_inner, guard=FREE).run(7)
    end = np.linalg.matrix_power(step, 7) @ start
    end[:size] += conservative.reference.ravel()
    np.testing.assert_allclose(phase(atoms), end, atol=1e-12)


class Lopsided(LennardJones):
    """A pair force that breaks Newton's third law."""

    def evaluate(self, atoms: Atoms) -> Any:
        """Energy, forces and stress."""
        energy, forces, stress = super().evaluate(atoms)
        return (
            energy,
            forces * (1.0 + 0.5 * (np.arange(len(atoms)) % 3))[:, None],
            stress,
        )


def test_net_force_moves_the_centre_of_mass_only() -> None:
    """Engines that leave a net direct force in and remove the momentum of the centre of
    mass after every outer step (LAMMPS) follow the same trajectory in its frame."""
    atoms, _ = argon()
    atoms.set_masses(np.linspace(20.0, 60.0, len(atoms)))
    set_momenta(atoms, 0.005)
    timestep, n_inner = 4.0 * units.fs, 4
    masses = atoms.get_masses()[:, None]
    theirs, momenta = atoms.positions.copy(), atoms.get_momenta()
    conservative = LennardJones(0.0104, 3.4, 5.0)
    direct = Lopsided(0.0104, 3.4, 5.0)
    forces = Bare(conservative, direct)

    def force_of(potential: Any) -> Any:
        moved = atoms.copy()
        moved.positions = theirs
        return potential.evaluate(moved)[1]

    assert np.abs(force_of(direct).sum(0)).max() > 2e-3
    RespaVelocityVerlet(atoms, timestep, forces, n_inner, guard=FREE).run(9)
    for _ in range(9):
        outer = 0.5 * n_inner * timestep
        momenta = momenta + outer * (force_of(conservative) - force_of(direct))
        for _ in range(n_inner):
            momenta = momenta + 0.5 * timestep * force_of(direct)
            theirs = theirs + timestep * momenta / masses
            momenta = momenta + 0.5 * timestep * force_of(direct)
        momenta = momenta + outer * (force_of(conservative) - force_of(direct))
        momenta = momenta - masses / masses.sum() * momenta.sum(0)

    def centred(positions: Any) -> Any:
        return positions - (masses * positions).sum(0) / masses.sum()

    np.testing.assert_allclose(centred(atoms.positions), centred(theirs), atol=1e-12)


# ---------------------------------------------------------------------- convergence


@pytest.mark.parametrize("n_inner", [1, 2, 4, 8])
def test_second_order(n_inner: int) -> None:
    """At a fixed number of inner steps, trajectory and energy converge as the square
    of the step to those of the conservative force."""
    exact, forces = argon()
    time = 160.0 * units.fs
    reference = RespaVelocityVerlet(exact, time / 1024, forces, 1)
    reference.run(1024)
    steps = np.array([32, 64, 128])
    errors, drifts = [], []
    for n_steps in steps:
        atoms, forces = argon()
        run = RespaVelocityVerlet(atoms, time / n_steps, forces, n_inner, guard=FREE)
        energies: List[float] = []
        run.attach(lambda run=run, into=energies: into.append(run.conserved))
        run.run(n_steps // n_inner)
        errors.append(np.abs(atoms.positions - exact.positions).max())
        drifts.append(np.ptp(energies))
    assert slope(1.0 / steps, errors) == pytest.approx(2.0, abs=0.15)
    assert slope(1.0 / steps, drifts) == pytest.approx(2.0, abs=0.25)


# ------------------------------------------------------ reversibility, phase space


@pytest.mark.parametrize("n_inner", [1, 3, 8])
def test_reversible(n_inner: int) -> None:
    """With momenta turned round the way leads back, for a direct force with curl
    too."""
    atoms, forces = argon()
    start = phase(atoms)
    run = RespaVelocityVerlet(atoms, 4.0 * units.fs, forces, n_inner, guard=FREE)
    run.run(20)
    assert np.abs(phase(atoms) - start).max() > 0.05
    atoms.set_momenta(-atoms.get_momenta())
    run.run(20)
    atoms.set_momenta(-atoms.get_momenta())
    np.testing.assert_allclose(phase(atoms), start, atol=1e-10)


@pytest.mark.parametrize("n_inner", [1, 4])
def test_phase_space_volume(n_inner: int) -> None:
    """The map of a step has determinant one and, with a curl in the direct force, is
    not symplectic: forces depend on positions only, which is enough for the volume."""
    cluster, forces = argon(pbc=False, curl=0.05)
    cluster = cluster[[0, 1, 2, 3]]
    cluster.set_masses([39.95, 20.0, 10.0, 5.0])
    start = phase(cluster)

    def step(x: Any) -> Any:
        atoms = cluster.copy()
        atoms.positions = x[:12].reshape(4, 3)
        atoms.set_momenta(x[12:].reshape(4, 3))
        run = RespaVelocityVerlet(atoms, 15.0 * units.fs, forces, n_inner, guard=FREE)
        run.step()
        return phase(atoms)

    moves = 1e-4 * np.eye(24)
    jacobian = np.array([step(start + d) - step(start - d) for d in moves]).T / 2e-4
    assert np.linalg.det(jacobian) == pytest.approx(1.0, abs=1e-6)
    form = np.kron([[0, 1], [-1, 0]], np.eye(12))
    twist = np.abs(jacobian.T @ form @ jacobian - form).max()
    assert twist < 1e-5 if n_inner == 1 else twist > 1e-2


# ---------------------------------------------------------------------- constraints


@pytest.mark.parametrize("n_inner", [1, 4])
def test_rigid_molecules(n_inner: int) -> None:
    """RATTLE keeps lengths and energy, with two forces as with one."""
    atoms = molecule("H2O")
    atoms.center(vacuum=2.0)
    sites = atoms.positions.copy()
    matrix = np.diag(np.repeat([1.0, 0.5, 0.7], 3))
    turn = np.random.default_rng(0).normal(size=(9, 9))
    forces = two_calculators(
        Linear(matrix, sites), Linear(0.9 * matrix + 0.05 * (turn - turn.T), sites)
    )
    atoms.set_constraint(FixBondLengths([(0, 1), (0, 2), (1, 2)]))
    atoms.set_momenta(0.3 * np.random.default_rng(1).normal(size=(3, 3)))
    before = atoms.get_all_distances()
    errors = []
    start = phase(atoms)
    for n_steps in (20, 40):
        atoms.positions = start[:9].reshape(3, 3)
        atoms.set_momenta(start[9:].reshape(3, 3))
        timestep = 40.0 / n_steps / n_inner
        run = RespaVelocityVerlet(atoms, timestep * units.fs, forces, n_inner)
        energies: List[float] = []
        run.attach(lambda run=run, into=energies: into.append(run.conserved))
        run.run(n_steps)
        errors.append(np.ptp(energies) / atoms.get_kinetic_energy())
        np.testing.assert_allclose(atoms.get_all_distances(), before, atol=1e-9)
    assert errors[0] < 0.02
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.25)


def test_constraints_act_with_two_forces() -> None:
    """Fixed atoms stay, and so does the centre of mass; others move."""
    for constraint in (FixAtoms([0, 5]), FixCom(), FixCartesian([2], (1, 0, 0))):
        atoms, forces = argon()
        atoms.set_constraint(constraint)
        atoms.set_momenta(atoms.get_momenta())
        before = atoms.positions.copy(), atoms.get_center_of_mass()
        run = RespaVelocityVerlet(atoms, 4.0 * units.fs, forces, 4)
        start = run.conserved
        run.run(20)
        moved = np.abs(atoms.positions - before[0])
        assert moved[10].min() > 1e-3
        if isinstance(constraint, FixAtoms):
            assert moved[[0, 5]].max() == 0.0
        elif isinstance(constraint, FixCartesian):
            assert moved[2, 0] == 0.0 and moved[2, 1:].min() > 1e-3
        else:
            shift = atoms.get_center_of_mass() - before[1]
            np.testing.assert_allclose(shift, 0.0, atol=1e-12)
        assert run.conserved == pytest.approx(start, abs=1e-3)


@pytest.mark.parametrize(
    "constraints, message",
    [
        (Hookean(0, 1, 1.0, rt=2.0), "does not support the constraint Hookean"),
        (FixInternals(), "does not support the constraint FixInternals"),
        ([FixCom(), FixAtoms([0])], "remove one of the constraints"),
    ],
)
def test_refused_constraints(constraints: Any, message: str) -> None:
    """Constraints that the splitting does not respect are refused."""
    atoms, forces = argon()
    atoms.set_constraint(constraints)
    with pytest.raises(ValueError, match=message):
        RespaVelocityVerlet(atoms, 1.0, forces)


# -------------------------------------------------------------------- shape of ASE


@pytest.mark.parametrize("n_inner", [1, 4])
def test_evaluations_and_loggers(n_inner: int, tmp_path: Path) -> None:
    """Loggers and trajectories read what is there; nothing is computed twice."""
    atoms, forces = argon()
    counting = Counting(forces)
    log, trajectory = tmp_path / "log", tmp_path / "run.traj"
    times: List[float] = []
    with RespaVelocityVerlet(
        atoms,
        2.0 * units.fs,
        counting,
        n_inner,
        logfile=str(log),
        trajectory=str(trajectory),
        loginterval=2,
    ) as run:
        run.attach(lambda: times.append(run.get_time()), interval=3)
        run.attach(lambda: atoms.get_potential_energy() + run.conserved)
        run.run(4)
        for _ in run.irun(2):
            atoms.get_forces()
    at_once = "conservative" if n_inner == 1 else "both"
    step = ["direct"] * (n_inner - 1) + [at_once]
    assert counting.calls == [at_once] + 6 * step
    assert run.nsteps == 6
    np.testing.assert_allclose(times, 2.0 * units.fs * n_inner * np.array([0, 3, 6]))
    frames = read(trajectory, index=":")
    lines = log.read_text().splitlines()
    assert len(frames) == 4 and len(lines) == 5
    last = frames[-1]
    assert last.get_potential_energy() == atoms.get_potential_energy()
    np.testing.assert_array_equal(last.get_forces(), forces.conservative(last).forces)
    assert float(lines[-1].split()[0]) == pytest.approx(0.012 * n_inner, abs=1e-4)
    assert run.todict()["n_inner"] == n_inner


def test_moved_atoms_are_evaluated_anew() -> None:
    """Between runs the user may move atoms or change what they are."""
    atoms, forces = argon()
    run = RespaVelocityVerlet(atoms, 2.0 * units.fs, forces, 4)
    run.run(1)
    atoms.positions[0] += 0.01
    assert run.point.conservative.energy == forces.conservative(atoms).energy
    old = run.point
    atoms.numbers[0] = 36
    assert run.point is not old


@pytest.mark.parametrize("timestep", [0.0, -1.0, np.nan, np.inf])
def test_bad_timestep(timestep: float) -> None:
    """A sentence says what is wrong."""
    atoms, forces = argon()
    with pytest.raises(ValueError, match="the timestep must be positive"):
        RespaVelocityVerlet(atoms, timestep, forces)


@pytest.mark.parametrize("n_inner", [0, -2, 1.5, np.nan, np.inf])
def test_bad_number_of_inner_steps(n_inner: Any) -> None:
    """Likewise."""
    atoms, forces = argon()
    with pytest.raises(ValueError, match="n_inner must be 1, 2, 3, ..., not"):
        RespaVelocityVerlet(atoms, 1.0, forces, n_inner)
