"""The drift of multiple time stepping, predicted from a run without."""

from pathlib import Path
from typing import Any, Tuple

import numpy as np
import pytest
from ase import Atoms, units
from potentials import Analytic, Bare, LennardJones, argon

from dualforce.md import RespaVelocityVerlet, equilibrate
from dualforce.md.constant_energy import (
    PICOSECOND,
    ConstantEnergyRun,
    ReferenceRun,
)
from dualforce.md.prediction import SEGMENTS, predicted_drift


N_INNER = 10
SPEED = 1.5
"""Of a particle that moves by one wave in an outer step, in thermal velocities."""

KELVIN = 1.0 / units.kB
"""At which the thermal velocity of a particle of unit mass is one."""

WAVE = 10.0
"""Wave number, so large that particles move by less than a length of one in a step."""

TIMESTEP = 2.0 * np.pi / (WAVE * SPEED) / N_INNER


class Wave(Analytic):
    """A force ``a sin(WAVE x)`` on every particle, and no others."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = a

    def evaluate(self, atoms: Atoms) -> Tuple[float, Any, Any]:
        """Energy and forces."""
        phase = WAVE * atoms.positions[:, 0]
        forces = np.zeros((len(atoms), 3))
        forces[:, 0] = self.a * np.sin(phase)
        return float(self.a / WAVE * np.cos(phase).sum()), forces, None


def golden_rule(a: float) -> float:
    """Power that a free particle takes up from a wave switched on in every ``N_INNER``
    -th step: all particles as fast as a harmonic of the outer step are in resonance."""
    speeds = SPEED * np.arange(1, 50)
    density = np.exp(-0.5 * speeds**2) / np.sqrt(2.0 * np.pi)
    return float(np.pi / WAVE * a**2 * (speeds**2 * density).sum())


def free_particles(n: int) -> Atoms:
    """Particles of unit mass, anywhere, with thermal velocities along x."""
    rng = np.random.default_rng(0)
    atoms = Atoms("H" * n, np.zeros((n, 3)), masses=np.ones(n))
    atoms.positions[:, 0] = rng.uniform(0.0, 2.0 * np.pi, n)
    velocities = np.zeros((n, 3))
    velocities[:, 0] = rng.standard_normal(n)
    atoms.set_velocities(velocities)
    return atoms


def test_prediction_of_free_particles() -> None:
    """The spectrum along free flight gives the golden rule."""
    rng = np.random.default_rng(1)
    times = TIMESTEP * np.arange(2 * SEGMENTS[0])
    found = []
    for _ in range(100):
        x, v = rng.uniform(0.0, 2.0 * np.pi, 300), rng.standard_normal(300)
        power = (np.sin(WAVE * (x + v * times[:, None])) * v).sum(1)
        found.append(predicted_drift(power, TIMESTEP, N_INNER, KELVIN)[0] / 300)
    error = np.std(found) / np.sqrt(len(found))
    assert error < 0.1 * golden_rule(1.0)
    assert np.mean(found) == pytest.approx(golden_rule(1.0), abs=3.0 * error)


def test_multiple_time_steps_of_free_particles(tmp_path: Path) -> None:
    """Our integrator heats them as fast as the golden rule says."""
    a, n = 0.04, 200000
    forces = Bare(Wave(0.0), Wave(-a))
    run = RespaVelocityVerlet(
        free_particles(n), TIMESTEP, forces, N_INNER, last_good=tmp_path / "last.xyz"
    )
    energies = []
    for _ in run.irun(9):  # later, resonant particles are caught by the wave
        energies.append(run.conserved / n)
    outer = N_INNER * TIMESTEP
    rate = (energies[-1] - energies[1]) / (outer * (len(energies) - 2))
    assert rate == pytest.approx(golden_rule(a), rel=0.2)


def test_spread_tells_the_power(tmp_path: Path) -> None:
    """Work of our integrator satisfies Jarzynski's equality whatever the direct force
    is, so that its variance tells its mean."""
    atoms = free_particles(200000)
    before = 0.5 * atoms.get_velocities()[:, 0] ** 2
    run = RespaVelocityVerlet(
        atoms,
        TIMESTEP,
        Bare(Wave(0.0), Wave(-0.1)),
        N_INNER,
        last_good=tmp_path / "last.xyz",
    )
    run.run(8)
    work = 0.5 * atoms.get_velocities()[:, 0] ** 2 - before
    error = float(np.exp(-work).std() / np.sqrt(len(work)))
    assert np.exp(-work).mean() == pytest.approx(1.0, abs=3.0 * error)
    assert work.mean() == pytest.approx(0.5 * work.var(), rel=0.1)
    assert work.mean() > 10.0 * error


def test_spread_along_a_run() -> None:
    """Long runs heat as their spread and the prediction say, though by less than the
    error of their slope."""
    step = 4.0 * units.fs
    atoms, forces = argon()
    start = equilibrate(forces, atoms, step, temperature_K=60.0)
    reference = ReferenceRun(start, step, forces)
    run = ConstantEnergyRun(start, step, forces, 24)
    reference.advance(8.0 * PICOSECOND)
    run.advance(40.0 * PICOSECOND)
    predicted, found = reference.predict(24), run.candidate()
    told, error = found.mean_drift
    assert abs(told - predicted[0]) < 2.0 * np.hypot(error, predicted[1])
    assert abs(told - found.drift[0]) < 2.0 * np.hypot(error, found.drift[1])
    assert error < found.drift[1]


def test_white_noise() -> None:
    """Every harmonic has the same share, and the error is that of many repetitions."""
    rng = np.random.default_rng(2)
    series = rng.standard_normal((100, 8 * SEGMENTS[0]))
    found = np.array([predicted_drift(w, 0.5, 6, 300.0) for w in series])
    exact = 5 * 0.5 * 0.5 / (units.kB * 300.0)
    assert found[:, 0].mean() == pytest.approx(exact, rel=0.05)
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.3)


@pytest.mark.parametrize("n_inner", [2, 3, 4])
def test_longer_timesteps(n_inner: int) -> None:
    """They are told by the same run, as if only every second step were known."""
    rng = np.random.default_rng(3)
    white = rng.standard_normal(1024 * SEGMENTS[0])
    series = np.convolve(white, [0.5, 0.3, 0.2], "same")
    told = predicted_drift(series, 0.5, n_inner, 300.0, timestep=1.0)
    thinned = predicted_drift(series[::2], 1.0, n_inner, 300.0)
    assert told[0] == pytest.approx(thinned[0], rel=0.06)
    own = predicted_drift(series, 0.5, n_inner, 300.0)
    assert predicted_drift(series, 0.5, n_inner, 300.0, timestep=0.5) == own


def test_timestep_between_multiples() -> None:
    """A wave in resonance with outer steps of 4.5 steps of the run."""
    steps = np.arange(64 * SEGMENTS[0])
    wave = np.cos(2.0 * np.pi * steps / 4.5)
    drifts = [
        predicted_drift(wave, 0.5, 3, 300.0, timestep=step)[0] for step in (0.75, 1.0)
    ]
    assert drifts[1] < 1e-4 * drifts[0]


def test_slow_and_fast_parts() -> None:
    """A slow change of the difference is harmless, a fast one in resonance is not."""
    steps = np.arange(8 * SEGMENTS[0])
    slow = 100.0 * np.cos(2.0 * np.pi * steps / 100.0)
    fast = np.cos(2.0 * np.pi * steps / 8.0)
    drifts = [predicted_drift(w, 0.5, 8, 300.0)[0] for w in (slow, slow + fast)]
    assert drifts[0] < 1e-4 * drifts[1]
    # no harmonic of 5 steps is near
    assert predicted_drift(slow + fast, 0.5, 5, 300.0)[0] < 1e-4 * drifts[1]


def test_too_short() -> None:
    """Nothing is predicted from a short run."""
    drift, error = predicted_drift(np.ones(SEGMENTS[-1]), 0.5, 4, 300.0)
    assert np.isnan(drift) and np.isnan(error)


def test_reference_run_is_the_conservative_one() -> None:
    """Evaluating the direct force beside it changes nothing."""
    atoms, forces = argon()
    start = equilibrate(forces, atoms, 4.0 * units.fs, temperature_K=60.0)
    reference = ReferenceRun(start, 4.0 * units.fs, forces)
    reference.advance(0.2 * PICOSECOND)
    plain = RespaVelocityVerlet(start.copy(), 4.0 * units.fs, forces)
    plain.run(50)
    np.testing.assert_array_equal(reference.run.atoms.positions, plain.atoms.positions)
    assert reference.candidate().n_inner == 1
    assert reference.candidate().correction is None


class Rippled(Analytic):
    """Another potential and short waves, through which argon at 60 K moves in some 50
    fs."""

    def __init__(self, smooth: Analytic) -> None:
        super().__init__()
        self.smooth, self.ripples = smooth, Wave(0.002)

    def evaluate(self, atoms: Atoms) -> Tuple[float, Any, Any]:
        """Energy and forces."""
        own, there = atoms.copy(), self.smooth.evaluate(atoms)
        own.positions *= 6.0
        waves = self.ripples.evaluate(own)
        return there[0] + waves[0] / 6.0, there[1] + waves[1], None


@pytest.mark.parametrize("rough", ["conservative", "direct", "neither"])
def test_rough_conservative_force(rough: str) -> None:
    """What only the conservative force has of fast parts is told from the errors of a
    direct force."""
    atoms, _ = argon()
    smooth, curly = (LennardJones(0.0104, 3.4, 5.0, curl) for curl in (0.0, 0.005))
    potentials = {
        "conservative": (Rippled(smooth), smooth),
        "direct": (smooth, Rippled(smooth)),
        "neither": (smooth, curly),
    }
    forces = Bare(*potentials[rough])
    start = equilibrate(forces, atoms, 4.0 * units.fs, temperature_K=60.0)
    run = ReferenceRun(start, 4.0 * units.fs, forces)
    run.advance(3.0 * PICOSECOND)
    assert run.is_rough(12) == (rough == "conservative")


def test_short_runs_predict_too() -> None:
    """From shorter segments, without bias, for as many inner steps as they resolve."""
    rng = np.random.default_rng(2)
    series = rng.standard_normal((1000, 300))
    found = np.array([predicted_drift(x, 0.5, 4, 300.0)[0] for x in series])
    # White noise of variance one has the spectral density of a step.
    expected = 3 * 0.5 / (2.0 * units.kB * 300.0)
    assert found.mean() == pytest.approx(expected, rel=0.05)
    assert np.isnan(predicted_drift(series[0], 0.5, 17, 300.0)[0])
