"""Langevin dynamics and stochastic velocity rescaling."""

from types import SimpleNamespace
from typing import Any, List, Tuple

import numpy as np
import pytest
from ase import Atoms, units
from ase.constraints import FixAtoms, FixBondLengths, FixCom
from ase.md.bussi import Bussi
from ase.md.langevinbaoab import LangevinBAOAB
from potentials import LennardJones, argon, chain, slope
from scipy.stats import gamma, kstest

from dualforce.md import Guard, RespaLangevin, RespaSVR


KT = 0.01
TEMPERATURE = KT / units.kB
LONG = 4.0 * units.fs


def free() -> Guard:
    """A guard that lets everything pass."""
    return Guard(max_drift=np.inf)


# ---------------------------------------------------------------- equality with ASE


@pytest.mark.parametrize("constraint", [None, FixAtoms([0, 3]), FixCom()])
def test_svr_with_one_inner_step_is_that_of_ase(constraint: Any) -> None:
    """The same random numbers give the same trajectory, but for the order in which
    factors are multiplied."""
    ours, forces = argon()
    theirs = ours.copy()
    theirs.calc = LennardJones(0.0104, 3.4, 5.0)
    for atoms in (ours, theirs):
        atoms.set_constraint(constraint)
        atoms.set_momenta(atoms.get_momenta())
    arguments = {"temperature_K": 150.0, "rng": np.random.default_rng(3)}
    RespaSVR(ours, LONG, forces, tau=30.0 * units.fs, **arguments).run(30)
    arguments["rng"] = np.random.default_rng(3)
    bussi = Bussi(theirs, LONG, taut=30.0 * units.fs, **arguments)
    bussi.run(30)
    np.testing.assert_allclose(ours.positions, theirs.positions, atol=1e-11)
    np.testing.assert_allclose(ours.get_momenta(), theirs.get_momenta(), atol=1e-11)


@pytest.mark.parametrize("constraint", [None, FixAtoms([0, 3])])
def test_langevin_with_one_inner_step_is_that_of_ase(constraint: Any) -> None:
    """Likewise."""
    ours, forces = argon()
    theirs = ours.copy()
    theirs.calc = LennardJones(0.0104, 3.4, 5.0)
    for atoms in (ours, theirs):
        atoms.set_constraint(constraint)
        atoms.set_momenta(atoms.get_momenta())
    tau = 50.0 * units.fs
    rng = np.random.default_rng(3)
    run = RespaLangevin(
        ours, LONG, forces, temperature_K=150.0, friction=1.0 / tau, rng=rng
    )
    run.run(30)
    rng = np.random.default_rng(3)
    baoab = LangevinBAOAB(theirs, LONG, temperature_K=150.0, T_tau=tau, rng=rng)
    baoab._update_accel()  # at the first step it would otherwise use none
    baoab.run(30)
    np.testing.assert_allclose(ours.positions, theirs.positions, atol=1e-11)
    np.testing.assert_allclose(ours.get_momenta(), theirs.get_momenta(), atol=1e-11)


# -------------------------------------------------- stationary state, to all digits


class Chosen:
    """Random numbers that are not."""

    def __init__(self, numbers: Any) -> None:
        self.numbers = list(numbers)
        self.bit_generator = SimpleNamespace(state=None)

    def standard_normal(self, shape: Tuple[int, ...]) -> Any:
        """The next of them."""
        return np.asarray(self.numbers.pop(0)).reshape(shape)


def stationary(timestep: float, n_inner: int, friction: Any, fixed: bool) -> Any:
    """Covariance of positions and of momenta of a chain of two atoms, whose step is a
    linear map of state and noise."""
    atoms, forces = chain(2)
    sites = forces.potentials[0].reference
    if fixed:
        atoms.set_constraint(FixCom())
    zeros = np.zeros((n_inner, 6))

    def step(state: Any, noise: Any) -> Any:
        atoms.positions = sites + state[:6].reshape(2, 3)
        atoms.set_momenta(state[6:].reshape(2, 3))
        run = RespaLangevin(
            atoms,
            timestep,
            forces,
            n_inner,
            temperature_K=TEMPERATURE,
            friction=friction,
            guard=free(),
        )
        run.rng = Chosen(noise)  # type: ignore[assignment]
        run.step()
        moved = (atoms.positions - sites).ravel()
        return np.concatenate([moved, atoms.get_momenta().ravel()])

    matrix = np.array([step(state, zeros) for state in np.eye(12)]).T
    units_of_noise = np.eye(6 * n_inner).reshape(-1, n_inner, 6)
    noise = np.array([step(np.zeros(12), unit) for unit in units_of_noise]).T
    covariance = noise @ noise.T
    for _ in range(25):  # each time, of twice as many steps
        covariance = matrix @ covariance @ matrix.T + covariance
        matrix = matrix @ matrix
    return covariance


@pytest.mark.parametrize("friction", [0.5, np.array([0.2, 2.0])])
def test_langevin_samples_positions_exactly(friction: Any) -> None:
    """BAOAB gives the exact distribution of positions in a harmonic potential, at any
    step; friction may differ from atom to atom."""
    atoms, forces = chain(2)
    exact = KT * np.linalg.inv(forces.potentials[0].matrix)
    covariance = stationary(0.5, 1, friction, False)[:6, :6]
    np.testing.assert_allclose(covariance, exact, atol=1e-10 * KT)


@pytest.mark.parametrize("friction", [0.5, np.array([0.2, 2.0])])
@pytest.mark.parametrize("n_inner", [1, 2, 4, 8])
def test_langevin_bias_is_of_second_order(n_inner: int, friction: Any) -> None:
    """The direct force, curl and all, biases averages by the square of the step."""
    atoms, forces = chain(2)
    exact = KT * np.linalg.inv(forces.potentials[0].matrix)
    thermal = KT * np.diag(np.repeat(atoms.get_masses(), 3))
    steps = np.array([0.08, 0.04, 0.02]) / n_inner
    found = [stationary(step, n_inner, friction, False) for step in steps]
    momenta = [np.abs(each[6:, 6:] - thermal).max() for each in found]
    assert slope(steps, momenta) == pytest.approx(2.0, abs=0.05)
    positions = [np.abs(each[:6, :6] - exact).max() for each in found]
    if n_inner > 1:
        assert slope(steps, positions) == pytest.approx(2.0, abs=0.05)
    assert positions[-1] < 2e-3 * np.abs(exact).max()


def test_langevin_with_fixed_centre_of_mass() -> None:
    """The noise is projected, and what is left has the temperature."""
    atoms, _ = chain(2)
    masses = np.repeat(atoms.get_masses(), 3)
    # momenta are thermal but for those of the centre of mass
    moving = np.kron(np.outer(atoms.get_masses(), atoms.get_masses()), np.eye(3))
    exact = KT * (np.diag(masses) - moving / atoms.get_masses().sum())
    covariance = stationary(0.005, 2, 0.5, True)[6:, 6:]
    np.testing.assert_allclose(covariance, exact, atol=1e-4 * KT)


# -------------------------------------------------------------------- distributions


def samples(run: Any, atoms: Atoms, every: int, count: int) -> Any:
    """Kinetic and potential energies, in units of the temperature."""
    found: List[Tuple[float, float]] = []

    def note() -> None:
        energies = atoms.get_kinetic_energy(), atoms.get_potential_energy()
        found.append((energies[0] / KT, energies[1] / KT))

    run.attach(note, interval=every)
    run.run(count * every)
    return np.array(found[50:]).T


def mix(atoms: Atoms, rng: np.random.Generator) -> None:
    """Reflect the momenta at a random plane, at the same kinetic energy: rescaling
    alone leaves the modes of a harmonic system where they are."""
    roots = np.sqrt(atoms.get_masses()[:, None])
    normal = rng.normal(size=(len(atoms), 3))
    scaled = atoms.get_momenta() / roots
    scaled -= 2.0 * normal * np.sum(normal * scaled) / np.sum(normal**2)
    atoms.set_momenta(scaled * roots)


@pytest.mark.parametrize("kind", ["langevin", "svr"])
def test_canonical_distribution(kind: str) -> None:
    """Both energies of a chain follow gamma distributions of nine degrees of freedom
    pairs, with a direct force that is wrong by its curl and ten per cent."""
    atoms, forces = chain(6, curl=0.1)
    settings: Any = {"temperature_K": TEMPERATURE, "rng": 5, "guard": free()}
    if kind == "langevin":
        run: Any = RespaLangevin(atoms, 0.05, forces, 4, friction=1.0, **settings)
    else:
        run = RespaSVR(atoms, 0.05, forces, 4, tau=0.5, **settings)
        rng = np.random.default_rng(6)
        run.attach(lambda: mix(atoms, rng), interval=2)
    for energies in samples(run, atoms, 10, 800):
        assert kstest(energies, gamma(9.0).cdf).pvalue > 1e-3
        assert np.mean(energies) == pytest.approx(9.0, abs=0.5)


def test_svr_with_fixed_centre_of_mass() -> None:
    """Removed degrees of freedom are counted."""
    atoms, forces = argon(curl=0.0)
    atoms.set_constraint(FixCom())
    run = RespaSVR(
        atoms, LONG, forces, 4, temperature_K=TEMPERATURE, tau=10 * units.fs, rng=1
    )
    assert run.n_degrees == 93
    kinetic = samples(run, atoms, 2, 450)[0]
    assert kstest(kinetic, gamma(46.5).cdf).pvalue > 1e-3


# ---------------------------------------------------------------- conserved quantity


@pytest.mark.parametrize("n_inner", [1, 4])
@pytest.mark.parametrize("kind", ["langevin", "svr"])
def test_conserved_quantity(kind: str, n_inner: int) -> None:
    """Energy less heat, and steady up to the square of the step; with noise inside the
    outer step, up to a random walk whose width goes as the step."""
    spread = []
    for timestep in (0.16 / n_inner, 0.08 / n_inner, 0.04 / n_inner):
        atoms, forces = chain(6)
        settings: Any = {"temperature_K": TEMPERATURE, "rng": 5, "guard": free()}
        if kind == "langevin":
            run: Any = RespaLangevin(
                atoms, timestep, forces, n_inner, friction=0.3, **settings
            )
        else:
            run = RespaSVR(atoms, timestep, forces, n_inner, tau=3.0, **settings)
        values: List[float] = []
        run.attach(lambda run=run, into=values: into.append(run.conserved))
        run.run(round(32.0 / timestep / n_inner))
        energy = atoms.get_kinetic_energy() + atoms.get_potential_energy()
        assert values[-1] == pytest.approx(energy - run.heat, abs=1e-12)
        assert abs(run.heat) > 1e-3
        spread.append(np.std(values))
    walks = kind == "langevin" and n_inner > 1
    assert spread[0] / spread[2] == pytest.approx(4.0 if walks else 16.0, rel=0.5)


# ------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "friction, constraint, message",
    [
        (-1.0, None, "friction must be a number and not negative"),
        (np.nan, None, "friction must be a number and not negative"),
        (np.ones(3), None, "one for each of 32 atoms, not of shape"),
        (np.arange(32.0), FixCom(), "all atoms must have the same friction"),
        (1.0, FixBondLengths([(0, 1)]), "does not support the constraint FixBond"),
    ],
)
def test_bad_friction(friction: Any, constraint: Any, message: str) -> None:
    """A sentence says what is wrong."""
    atoms, forces = argon()
    atoms.set_constraint(constraint)
    with pytest.raises(ValueError, match=message):
        RespaLangevin(atoms, 1.0, forces, temperature_K=300.0, friction=friction)


@pytest.mark.parametrize("temperature, tau", [(0.0, 1.0), (300.0, -1.0), (np.inf, 1.0)])
def test_bad_temperature_or_tau(temperature: float, tau: float) -> None:
    """Likewise."""
    atoms, forces = argon()
    with pytest.raises(ValueError, match="must be positive"):
        RespaSVR(atoms, 1.0, forces, temperature_K=temperature, tau=tau)


def test_svr_at_rest() -> None:
    """Atoms at rest stay at rest; this is the user's error, not the run's."""
    atoms, forces = argon()
    atoms.set_momenta(np.zeros((32, 3)))
    run = RespaSVR(atoms, LONG, forces, temperature_K=300.0, tau=1.0)
    with pytest.raises(ValueError, match="give them initial velocities"):
        run.run(1)
