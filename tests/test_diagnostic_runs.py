"""Diagnostic runs, on forces whose consequences are known."""

import dataclasses
import logging
from typing import Any, List, Tuple

import numpy as np
import pytest
from ase import Atoms, units
from potentials import Bare, LennardJones, Linear, argon
from scipy.linalg import solve_continuous_lyapunov

from dualforce.diagnostics import observables
from dualforce.diagnostics.findings import CONSERVATIVE, DIRECT, MTS
from dualforce.diagnostics.measures.equilibration import prepare
from dualforce.diagnostics.measures.nve import run_nve
from dualforce.diagnostics.measures.nvt import LANGEVIN, SVR, run_nvt
from dualforce.diagnostics.measures.relaxation import (
    default_fmax,
    perturb,
    relaxation_rate,
)
from dualforce.diagnostics.observables import PER_CM
from dualforce.forces import Evaluation
from dualforce.md import RunFailedError


TURN = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 0]])
"""Of x into y."""


def started(atoms: Atoms, forces: Any, temperature: float = 60.0) -> Atoms:
    """Equilibrated argon."""
    return prepare(
        forces,
        atoms,
        timestep_fs=4.0,
        temperature_K=temperature,
        length_fs=400.0,
    )


class Failing(Bare):
    """Forces of argon that are no numbers from some evaluation on."""

    def __init__(self, after: int) -> None:
        good = LennardJones(0.0104, 3.4, 5.0)
        super().__init__(good, good)
        self.left = after

    def conservative(self, atoms: Atoms, stress: bool = False) -> Evaluation:
        """Energy and forces, as long as they last."""
        self.left -= 1
        if self.left < 0:
            raise FloatingPointError("the conservative force is not finite on atoms 3")
        return super().conservative(atoms, stress)


# ------------------------------------------------------------------ constant energy


def rotor(curl: float) -> Tuple[Atoms, Bare, Any]:
    """Atoms of equal mass tied to their sites, with a force that drives them around.

    Relative displacements in the plane, as complex numbers, obey ``z'' = (i c - w^2) z
    / m``, and so the energy is known at any time.
    """
    n_atoms, spring, mass = 6, 1.0, 2.0
    rng = np.random.default_rng(5)
    sites = 4.0 * np.arange(n_atoms)[:, None] * np.ones(3)
    shifts, momenta = rng.normal(0.0, 0.1, (2, n_atoms, 3))
    shifts, momenta = shifts - shifts.mean(0), momenta - momenta.mean(0)
    atoms = Atoms(numbers=[6] * n_atoms, positions=sites + shifts)
    atoms.set_masses([mass] * n_atoms)
    atoms.set_momenta(momenta)
    matrix = np.kron(np.eye(n_atoms), spring * np.eye(3))
    swirl = np.kron(np.eye(n_atoms), -curl * TURN)
    forces = Bare(Linear(matrix, sites), Linear(matrix + swirl, sites))

    def energy(times: Any) -> Any:
        """In eV, at times in ASE's unit."""
        root = np.sqrt((1j * curl - spring) / mass)
        place = (shifts[:, 0] + 1j * shifts[:, 1])[:, None]
        speed = (momenta[:, 0] + 1j * momenta[:, 1])[:, None] / mass
        cosh, sinh = np.cosh(root * times), np.sinh(root * times)
        now = place * cosh + speed * sinh / root
        velocity = root * place * sinh + speed * cosh
        flat = spring * shifts[:, 2] ** 2 + momenta[:, 2] ** 2 / mass
        plane = spring * abs(now) ** 2 + mass * abs(velocity) ** 2
        return 0.5 * (plane.sum(0) + flat.sum())

    return atoms, forces, energy


@pytest.mark.parametrize("curl", [0.0, 0.02, -0.05])
def test_energy_a_curl_makes(curl: float) -> None:
    """The conserved quantity of a run with direct forces follows the closed form."""
    atoms, forces, energy = rotor(curl)
    run = run_nve(forces, atoms, kind=DIRECT, timestep_fs=0.2, length_fs=800.0)
    assert run.candidate.failed is None
    assert run.candidate.length_ps == pytest.approx(0.8)
    times = np.array(run.times)
    np.testing.assert_allclose(np.diff(times), 0.01)
    exact = 1000.0 * energy(times * 1000.0 * units.fs) / len(atoms)
    scale = 1000.0 * energy(np.zeros(1))[0] / len(atoms)
    np.testing.assert_allclose(run.conserved, exact - exact[0], atol=1e-3 * scale)
    slope = np.polyfit(times, exact, 1)[0]
    drift, error = run.candidate.drift
    assert drift == pytest.approx(slope, rel=0.01, abs=1e-3 * scale)
    # Energy that comes or goes exponentially is no straight line with an error, but far
    # more than any drift that is accepted.
    significant = abs(drift) > 2.0 * error or abs(drift) * times[-1] > 10.0
    assert significant == (curl != 0.0)


def test_argon_at_constant_energy() -> None:
    """From one start, direct forces heat; conservative ones and their mixture in time
    do not."""
    atoms, forces = argon(curl=0.01)
    start = started(atoms, forces)
    arguments = {"timestep_fs": 4.0, "length_fs": 4000.0}
    runs = {
        (kind, n): run_nve(forces, start, kind=kind, n_inner=n, **arguments)
        for kind, n in ((CONSERVATIVE, 1), (MTS, 2), (DIRECT, 1))
    }
    assert all(run.candidate.failed is None for run in runs.values())
    assert len({run.temperature[0] for run in runs.values()}) == 1
    direct = runs[DIRECT, 1].candidate
    assert direct.drift[0] > 2.0 * direct.drift[1]
    assert direct.heating[0] > 3.0 * direct.heating[1]
    for key in ((CONSERVATIVE, 1), (MTS, 2)):
        drift, error = runs[key].candidate.drift
        assert abs(drift) < max(0.02 * direct.drift[0], 0.01)
        assert abs(drift) < 4.0 * error


def test_error_of_heating_is_that_of_repeats() -> None:
    """Runs from independent starts scatter by as much as each of them says."""
    atoms, forces = argon(curl=0.01)
    drifts = []
    for seed in range(8):
        start = prepare(
            forces,
            atoms,
            timestep_fs=4.0,
            temperature_K=60.0,
            length_fs=400.0,
            seed=seed,
        )
        run = run_nve(forces, start, kind=DIRECT, timestep_fs=4.0, length_fs=4000.0)
        drifts.append(run.candidate.drift)
    values, errors = np.array(drifts).T
    assert values.mean() > 5.0 * values.std(ddof=1) / np.sqrt(8)
    ratio = np.sqrt(np.mean(errors**2)) / values.std(ddof=1)
    assert 0.6 < ratio < 1.8


def test_heating_without_an_energy() -> None:
    """Only the temperature is known, and what it amounts to."""
    atoms, forces, _ = rotor(0.1)
    forces.has_energy = False
    shares: List[float] = []
    run = run_nve(
        forces,
        atoms,
        kind=DIRECT,
        timestep_fs=0.5,
        length_fs=400.0,
        progress=shares.append,
    )
    heating = run.candidate.heating
    assert np.isnan(run.candidate.drift).all() and run.conserved == []
    assert np.isfinite(heating).all() and len(run.temperature) == 41
    assert run.power[0] == pytest.approx(3000.0 * units.kB * heating[0])
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_force_that_blows_up() -> None:
    """What was measured until then is kept, with the reason for the end."""
    atoms, forces = argon(curl=1.0)
    start = started(atoms, forces)
    run = run_nve(forces, start, kind=DIRECT, timestep_fs=4.0, length_fs=20000.0)
    assert run.candidate.failed is not None
    assert 0.0 < run.candidate.length_ps < 20.0
    assert run.temperature[-1] > run.temperature[0] and len(run.times) > 1


def test_calculator_that_fails() -> None:
    """In the middle of a run, and before it."""
    atoms, forces = argon()
    start = started(atoms, forces)
    arguments = {"kind": CONSERVATIVE, "timestep_fs": 4.0, "length_fs": 4000.0}
    run = run_nve(Failing(101), start, **arguments)
    assert run.candidate.failed == "the conservative force is not finite on atoms 3"
    assert run.candidate.length_ps == pytest.approx(0.4)
    run = run_nve(Failing(0), start, **arguments)
    assert run.candidate.length_ps == 0.0 and run.times == []
    assert run.candidate.failed is not None and np.isnan(run.candidate.drift[0])
    with pytest.raises(RunFailedError, match="cannot be equilibrated at 60 K.*atoms 3"):
        started(atoms, Failing(20))


def test_refusals() -> None:
    """Arguments that make no sense."""
    atoms, forces = argon()
    usual = {"timestep_fs": 4.0, "length_fs": 40.0}
    with pytest.raises(ValueError, match="one atom"):
        started(Atoms("Ar"), forces)
    with pytest.raises(ValueError, match="must be one of .*, not 'both'"):
        run_nve(forces, atoms, kind="both", **usual)
    with pytest.raises(ValueError, match="'direct' takes one inner step, not 4"):
        run_nve(forces, atoms, kind=DIRECT, n_inner=4, **usual)
    with pytest.raises(ValueError, match="length_fs must be positive"):
        run_nve(forces, atoms, kind=DIRECT, timestep_fs=1.0, length_fs=0.0)
    with pytest.raises(ValueError, match="'langevin' or 'svr', not 'nose'"):
        run_nvt(
            forces,
            atoms,
            kind=DIRECT,
            thermostat="nose",
            tau_fs=10.0,
            temperature_K=60.0,
            equilibration_fs=0.0,
            **usual,
        )


# ------------------------------------------------------------- constant temperature


def test_ideal_gas() -> None:
    """Friction alone: temperature, diffusion, autocorrelation, spectrum and distances
    have closed forms."""
    n_atoms, temperature, tau = 60, 300.0, 50.0
    rng = np.random.default_rng(6)
    atoms = Atoms(
        numbers=[1] * 30 + [8] * 30,
        positions=rng.uniform(0.0, 12.0, (n_atoms, 3)),
        cell=[12.0] * 3,
        pbc=True,
    )
    masses = np.array([4.0] * 30 + [16.0] * 30)
    atoms.set_masses(masses)
    nothing = Linear(np.zeros((3 * n_atoms, 3 * n_atoms)), atoms.positions)
    forces = Bare(nothing, nothing)
    start = prepare(forces, atoms, timestep_fs=4.0, temperature_K=temperature)
    run = run_nvt(
        forces,
        start,
        kind=CONSERVATIVE,
        thermostat=LANGEVIN,
        tau_fs=tau,
        temperature_K=temperature,
        timestep_fs=4.0,
        length_fs=20000.0,
        equilibration_fs=200.0,
        seed=7,
    )
    assert run.failed is None and run.length_ps == pytest.approx(20.0)
    assert set(run.deviation) == {"all", "H", "O"}
    for value, error in run.deviation.values():
        assert abs(value) < 4.0 * error and error < 5.0
    total = masses.sum()
    for symbol, mass in (("H", 4.0), ("O", 16.0)):
        exact = units.kB * temperature * tau * units.fs / mass * (1.0 - mass / total)
        exact *= 1000.0 * units.fs  # Å^2/ps
        value, error = run.diffusion[symbol]
        assert value == pytest.approx(exact, abs=4.0 * error)
        assert error < 0.2 * exact
        lags = 1000.0 * np.array(run.lags)
        np.testing.assert_allclose(
            run.autocorrelation[symbol], np.exp(-lags / tau), atol=0.05
        )
        frequencies = np.array(run.frequencies)
        lorentzian = 1.0 / (1.0 + (2.0 * np.pi * frequencies / PER_CM * tau) ** 2)
        low = frequencies < 500.0
        lorentzian *= (
            np.sum(np.array(run.spectrum[symbol])[low]) / lorentzian[low].sum()
        )
        np.testing.assert_allclose(
            np.array(run.spectrum[symbol])[low], lorentzian[low], rtol=0.35
        )
    for pair, function in run.rdf.items():
        weights = np.array(run.distances) ** 2
        like = pair[0] == pair[-1]
        mean = np.average(function, weights=weights)
        assert mean == pytest.approx(1.0 - like / 30.0, abs=0.03)


def test_line_of_a_crystal() -> None:
    """All atoms swing at one frequency: so says the spectrum, and the middle of steps
    has the right temperature although they are long."""
    n_atoms, wavenumber = 20, 1200.0
    omega = 2.0 * np.pi * wavenumber / PER_CM / units.fs
    sites = 3.0 * np.arange(n_atoms)[:, None] * np.ones(3)
    atoms = Atoms(numbers=[6] * n_atoms, positions=sites)
    spring = 12.0 * omega**2
    atoms.set_masses([12.0] * n_atoms)
    harmonic = Linear(spring * np.eye(3 * n_atoms), sites)
    forces = Bare(harmonic, harmonic)
    start = prepare(forces, atoms, timestep_fs=2.0, temperature_K=300.0)
    timestep = 4.0
    run = run_nvt(
        forces,
        start,
        kind=CONSERVATIVE,
        thermostat=LANGEVIN,
        tau_fs=300.0,
        temperature_K=300.0,
        timestep_fs=timestep,
        length_fs=40000.0,
        equilibration_fs=400.0,
    )
    half_angle = 0.5 * omega * timestep * units.fs
    bias = 300.0 * half_angle**2  # of momenta at the end of steps
    value, error = run.deviation["all"]
    assert abs(value) < 4.0 * error and error < 0.2 * bias
    # A step of this length swings a little faster.
    exact = wavenumber * np.arcsin(half_angle) / half_angle
    peak = run.frequencies[int(np.argmax(run.spectrum["C"]))]
    step = run.frequencies[1] - run.frequencies[0]
    assert peak == pytest.approx(exact, abs=1.5 * step)
    assert run.rdf == {} and run.distances == [] and run.diffusion == {}


def driven_chain(curl: float) -> Tuple[Atoms, Bare, Any]:
    """Light and heavy atoms in turn, on springs; direct forces drive the light ones
    around. Also the matrix of the direct force without net force."""
    n_atoms = 12
    springs = 3.0 * np.eye(n_atoms) - np.eye(n_atoms, k=1) - np.eye(n_atoms, k=-1)
    matrix = np.kron(springs, np.diag([1.0, 1.1, 0.9]))
    light = np.diag(np.arange(n_atoms) % 2 == 0).astype(float)
    direct = matrix - curl * np.kron(light, TURN)
    sites = 4.0 * np.arange(n_atoms)[:, None] * np.ones(3)
    atoms = Atoms("HO" * (n_atoms // 2), positions=sites)
    atoms.set_masses([2.0, 8.0] * (n_atoms // 2))
    forces = Bare(Linear(matrix, sites), Linear(direct, sites))
    shares = atoms.get_masses()[:, None] / atoms.get_masses().sum()
    net = np.kron(shares * np.ones(n_atoms), np.eye(3))
    return atoms, forces, (np.eye(3 * n_atoms) - net) @ direct


def stationary_temperatures(
    atoms: Atoms, matrix: Any, friction: float, temperature: float
) -> Any:
    """Kinetic temperature of each element in white noise, from Lyapunov's equation for
    motion relative to the centre of mass."""
    masses = np.repeat(atoms.get_masses(), 3)
    roots = np.sqrt(masses)
    center = np.kron(np.sqrt(atoms.get_masses())[:, None], np.eye(3))
    basis = np.linalg.qr(np.hstack([center, np.eye(len(masses))]))[0][:, 3:]
    dynamical = basis.T @ (matrix / roots[:, None] / roots) @ basis
    n = len(dynamical)
    flow = np.block(
        [[np.zeros((n, n)), np.eye(n)], [-dynamical, -friction * np.eye(n)]]
    )
    assert np.linalg.eigvals(flow).real.max() < 0.0
    noise = np.zeros((2 * n, 2 * n))
    noise[n:, n:] = 2.0 * friction * units.kB * temperature * np.eye(n)
    covariance = solve_continuous_lyapunov(flow, -noise)[n:, n:]
    kinetic = np.diag(basis @ covariance @ basis.T).reshape(-1, 3).sum(1)
    degrees = 3.0 - 3.0 * atoms.get_masses() / atoms.get_masses().sum()
    result = {}
    for symbol in ("H", "O"):
        chosen = np.array(atoms.get_chemical_symbols()) == symbol
        free = degrees[chosen].sum()
        result[symbol] = kinetic[chosen].sum() / units.kB / free
    return result


def test_equipartition_under_white_noise() -> None:
    """Direct forces and friction together have a stationary state that can be
    calculated: the driven element is hotter, by as much as is measured."""
    atoms, forces, matrix = driven_chain(0.3)
    tau = 50.0
    exact = stationary_temperatures(atoms, matrix, 1.0 / (tau * units.fs), 300.0)
    assert exact["H"] - 300.0 > 3.0 * (exact["O"] - 300.0) > 0.0
    run = nvt_of_chain(atoms, forces, DIRECT, LANGEVIN, tau)
    for symbol, temperature in exact.items():
        value, error = run.deviation[symbol]
        assert value == pytest.approx(temperature - 300.0, abs=4.0 * error)
        assert error < 0.2 * (exact["H"] - 300.0)


def nvt_of_chain(
    atoms: Atoms, forces: Bare, kind: str, thermostat: str, tau: float
) -> Any:
    """A run from equilibrium."""
    start = prepare(forces, atoms, timestep_fs=2.0, temperature_K=300.0)
    return run_nvt(
        forces,
        start,
        kind=kind,
        n_inner=2 if kind == MTS else 1,
        thermostat=thermostat,
        tau_fs=tau,
        temperature_K=300.0,
        timestep_fs=2.0,
        length_fs=30000.0,
        equilibration_fs=2000.0,
        seed=8,
    )


def test_rescaling_hides_the_heat_and_breaks_equipartition() -> None:
    """The whole has the temperature that is asked for, the elements have not; with
    conservative forces outside they come closer."""
    atoms, forces, _ = driven_chain(0.1)
    direct = nvt_of_chain(atoms, forces, DIRECT, SVR, 10.0)
    assert abs(direct.deviation["all"][0]) < 15.0
    gap = direct.deviation["H"][0] - direct.deviation["O"][0]
    assert gap > 50.0
    assert gap == pytest.approx(direct.splits["H − O"][0])
    mixed = nvt_of_chain(atoms, forces, MTS, SVR, 10.0)
    assert abs(mixed.deviation["H"][0] - mixed.deviation["O"][0]) < 0.5 * gap


def test_runs_repeat_and_report() -> None:
    """The same seed gives the same numbers; a run that fails while it is equilibrated
    has none."""
    atoms, forces = argon()
    start = started(atoms, forces)
    arguments = {
        "kind": CONSERVATIVE,
        "thermostat": SVR,
        "tau_fs": 100.0,
        "temperature_K": 60.0,
        "timestep_fs": 4.0,
        "length_fs": 400.0,
        "equilibration_fs": 80.0,
    }
    shares: List[float] = []
    first = run_nvt(forces, start, progress=shares.append, **arguments)
    second = run_nvt(forces, start, **arguments)
    other = run_nvt(forces, start, seed=1, **arguments)
    changes = {"ms_per_step": 0.0}
    # As text, since errors that are not known (NaN) equal nothing.
    assert repr(dataclasses.replace(first, **changes)) == repr(
        dataclasses.replace(second, **changes)
    )
    assert first.deviation != other.deviation
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert max(first.distances) < 5.3  # half of the cell
    failed = run_nvt(Failing(11), start, **arguments)
    assert failed.failed is not None and "after 0.040 ps" in failed.failed
    assert failed.length_ps == 0.0
    assert failed.deviation == failed.spectrum == failed.diffusion == failed.rdf == {}
    assert failed.lags == failed.frequencies == failed.distances == []


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of large systems the motion of some atoms is kept, of each element; temperatures
    are those of all."""
    atoms, forces, _ = driven_chain(0.0)
    arguments = {
        "kind": CONSERVATIVE,
        "thermostat": LANGEVIN,
        "tau_fs": 100.0,
        "temperature_K": 300.0,
        "timestep_fs": 2.0,
        "length_fs": 100.0,
        "equilibration_fs": 0.0,
    }
    whole = run_nvt(forces, atoms, **arguments)
    monkeypatch.setattr(observables, "MAX_NUMBERS", 3 * 51 * 4)
    part = run_nvt(forces, atoms, **arguments)
    assert repr(part.deviation) == repr(whole.deviation)
    assert set(part.autocorrelation) == set(part.spectrum) == {"H", "O"}
    assert part.autocorrelation != whole.autocorrelation


# ----------------------------------------------------------------------- relaxation


@pytest.mark.parametrize("optimizer", ["FIRE", "LBFGS"])
def test_cluster_relaxes_without_curl_only(optimizer: str) -> None:
    """A force with a torque vanishes nowhere."""
    atoms, forces = argon(pbc=False, curl=0.002)
    atoms = atoms[:13]
    assert default_fmax(atoms) == 1e-5
    structures = perturb(atoms, 3, width=0.05, seed=1)
    assert np.std(structures[0].positions - atoms.positions) == pytest.approx(
        0.05, rel=0.3
    )
    before = [structure.positions.copy() for structure in structures]
    shares: List[float] = []
    arguments = {"optimizer": optimizer, "max_steps": 600}
    rate = relaxation_rate(
        forces, structures, kind=CONSERVATIVE, progress=shares.append, **arguments
    )
    assert (rate.converged, rate.n_runs, rate.fmax) == (3, 3, 1e-5)
    assert rate.median_steps is not None and 5 < rate.median_steps <= 600
    assert max(rate.final_forces) <= 1e-5
    assert shares == sorted(shares) and shares[-1] == 1.0
    after = [structure.positions for structure in structures]
    np.testing.assert_array_equal(before, after)
    turned = relaxation_rate(forces, structures, kind=DIRECT, **arguments)
    assert turned.converged == 0 and turned.median_steps is None
    assert min(turned.final_forces) > 1e-5


def test_relaxations_that_fail(caplog: pytest.LogCaptureFixture) -> None:
    """They count as not converged, and the log says why."""
    atoms, _ = argon(pbc=False)
    structures = perturb(atoms, 2)
    arguments = {"kind": CONSERVATIVE, "optimizer": "LBFGS"}
    with caplog.at_level(logging.WARNING):
        rate = relaxation_rate(Failing(5), structures, **arguments)
    assert (rate.converged, rate.final_forces) == (0, [np.inf, np.inf])
    assert "structure 0 failed after 5 steps" in caplog.text
    assert "not finite on atoms 3" in caplog.text
    hill = Linear(-np.eye(3 * len(atoms)), atoms.positions)
    with caplog.at_level(logging.WARNING):
        rate = relaxation_rate(
            Bare(hill, hill), structures, kind=CONSERVATIVE, optimizer="FIRE"
        )
    assert rate.converged == 0
    assert "an atom has moved by 10" in caplog.text
    with pytest.raises(ValueError, match="FIRE, LBFGS, not 'BFGS'"):
        relaxation_rate(hill, structures, kind=CONSERVATIVE, optimizer="BFGS")
    with pytest.raises(ValueError, match="no structures"):
        relaxation_rate(hill, [], **arguments)
