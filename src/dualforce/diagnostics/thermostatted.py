"""Runs with a thermostat: which temperatures the elements have, and how they move."""

import tempfile
from pathlib import Path
from typing import Any, Dict, List

import ase
import numpy as np
from ase import units
from numpy.typing import NDArray

from ..dynamics import Guard, RespaLangevin, RespaSVR, RespaVelocityVerlet, TwoForces
from ..dynamics.evaluation import Array
from ..dynamics.preparation import (
    degrees_of_freedom,
    fix_center_of_mass,
    temperatures,
)
from ..dynamics.statistics import mean_with_error
from ..dynamics.thermostats import check_positive
from .observables import (
    autocorrelation,
    diffusion_coefficient,
    radial_distributions,
    spectrum,
)
from .results import LANGEVIN, SVR, Estimate, NVTRun
from .runs import Progress, followed, sample, silent, steps_between


INTERVAL = 2.0
"""Between samples of velocities, in fs: bonds with hydrogen swing in 9 fs."""

POSITION_INTERVAL = 20.0
DISTANCE_INTERVAL = 100.0
"""Between samples of positions and of all distances, in fs."""

MAX_NUMBERS = 20_000_000
"""Velocities and positions that are kept; of large systems, those of some atoms."""

SEGMENT = 2000.0
"""Of the spectrum, in fs: resolves 17/cm."""

MAX_LAG = 1000.0
"""Of the autocorrelation, in fs."""


def run_nvt(
    forces: TwoForces,
    start: ase.Atoms,
    *,
    kind: str,
    n_inner: int = 1,
    thermostat: str,
    tau_fs: float,
    temperature_K: float,
    timestep_fs: float,
    length_fs: float,
    equilibration_fs: float,
    seed: int = 0,
    progress: Progress = silent,
) -> NVTRun:
    """Run with a thermostat and measure temperatures and motion.

    Momenta are those in the middle of a step: for an integrator of this family they
    obey equipartition whatever the step, where those at its end are too small for stiff
    bonds (3 K for hydrogen in water at 0.5 fs). Velocities are taken every 2 fs, or at
    the outer points where those are farther apart: from 4 fs on, the spectrum folds
    back the vibrations of hydrogen. Errors are those of block averages.

    :param forces: the model.
    :param start: equilibrated structure with momenta
        (:func:`~dualforce.diagnostics.runs.prepare`), which is not changed.
    :param kind: ``conservative``, ``direct``, ``forces`` or ``MTS``.
    :param n_inner: inner steps of ``MTS``.
    :param thermostat: ``langevin`` or ``svr``.
    :param tau_fs: inverse friction, or relaxation time of the kinetic energy, in fs.
    :param temperature_K: target, in K.
    :param timestep_fs: length of an inner step, in fs.
    :param length_fs: time to measure for, in fs.
    :param equilibration_fs: time to run before, in fs.
    :param seed: of the thermostat.
    :param progress: told the part that is done.
    :raises ValueError: if an argument makes no sense.
    """
    check_positive(tau_fs=tau_fs, timestep_fs=timestep_fs, length_fs=length_fs)
    if not equilibration_fs >= 0.0:
        raise ValueError(f"equilibration_fs must not be negative: {equilibration_fs}")
    with tempfile.TemporaryDirectory() as folder:
        run = _make_run(
            thermostat,
            tau_fs * units.fs,
            atoms=start.copy(),
            timestep=timestep_fs * units.fs,
            forces=followed(forces, kind, n_inner),
            n_inner=n_inner,
            temperature_K=temperature_K,
            rng=seed,
            # Thermostats carry off whatever heat the force makes.
            guard=Guard(factor=float("inf"), max_drift=float("inf")),
            last_good=Path(folder) / "last-good.extxyz",
        )
        watch = _Watch(run, temperature_K, equilibration_fs, length_fs, seed)
        whole = equilibration_fs + length_fs
        outcome = sample(run, whole, INTERVAL, watch.record, progress)
    return NVTRun(
        forces=kind,
        n_inner=n_inner,
        thermostat=thermostat,
        tau_fs=tau_fs,
        target=temperature_K,
        failed=outcome.failed,
        ms_per_step=outcome.ms_per_step,
        **watch.results(),
    )


def _make_run(thermostat: str, tau: float, **arguments: Any) -> RespaVelocityVerlet:
    fix_center_of_mass(arguments["atoms"])
    if thermostat == LANGEVIN:
        return RespaLangevin(friction=1.0 / tau, **arguments)
    if thermostat == SVR:
        return RespaSVR(tau=tau, **arguments)
    raise ValueError(
        f"the thermostat must be '{LANGEVIN}' or '{SVR}', not '{thermostat}'"
    )


class _Watch:
    """What is measured along a run, once it is equilibrated."""

    def __init__(
        self,
        run: RespaVelocityVerlet,
        target: float,
        equilibration_fs: float,
        length_fs: float,
        seed: int,
    ) -> None:
        self._run, self._target = run, target
        every = steps_between(run.dt, INTERVAL)
        self._interval_fs = every * run.dt / units.fs
        self._skip = round(equilibration_fs / self._interval_fs)
        n_samples = round(length_fs / self._interval_fs) + 1
        self._chosen = _choose_atoms(run.atoms.numbers, n_samples, seed)
        self._degrees = degrees_of_freedom(run.atoms)
        self._middle = run.atoms.copy()
        self._temperatures: List[Dict[str, float]] = []
        self._velocities: List[NDArray[np.float32]] = []
        self._positions: List[NDArray[np.float32]] = []
        self._distances: List[Dict[str, Array]] = []
        self._bins = np.zeros(0)

    def record(self) -> None:
        """Take a sample, unless the run is still being equilibrated."""
        if self._skip > 0:
            self._skip -= 1
            return
        middle, n_before = self._middle, len(self._velocities)
        self._set_middle()
        free = temperatures(middle, self._degrees)
        self._temperatures.append({"all": middle.get_temperature()} | free)
        velocities = middle.get_velocities()[self._chosen]
        self._velocities.append(velocities.astype(np.float32))
        if n_before % self._records_in(POSITION_INTERVAL) == 0:
            positions = middle.positions - middle.get_center_of_mass()
            self._positions.append(positions[self._chosen].astype(np.float32))
        if n_before % self._records_in(DISTANCE_INTERVAL) == 0:
            self._bins, functions = radial_distributions(middle)
            self._distances.append(functions)

    def _set_middle(self) -> None:
        """Take back the last half-kick of the force inside."""
        run = self._run
        inside = run.point.direct or run.point.conservative
        self._middle.positions = run.atoms.positions
        kick = 0.5 * run.timestep * inside.forces
        self._middle.set_momenta(run.atoms.get_momenta() - kick)

    def _records_in(self, time_fs: float) -> int:
        return max(1, round(time_fs / self._interval_fs))

    # --------------------------------------------------------------------- results

    def results(self) -> Dict[str, Any]:
        """The measured part of the result, by the names of its fields."""
        n_samples = len(self._velocities)
        return {
            "length_ps": 1e-3 * self._interval_fs * max(0, n_samples - 1),
            "deviation": self._deviations(),
            "diffusion": self._diffusion(),
            "distances": self._bins.tolist(),
            "rdf": {
                pair: np.mean([frame[pair] for frame in self._distances], 0).tolist()
                for pair in (self._distances[0] if self._distances else {})
            },
        } | self._motion()

    def _deviations(self) -> Dict[str, Estimate]:
        names = self._temperatures[0] if self._temperatures else {}
        series = {
            name: np.array([sample[name] for sample in self._temperatures])
            for name in names
        }
        return {
            name: mean_with_error(values - self._target)
            for name, values in series.items()
            if np.isfinite(values).all()
        }

    def _diffusion(self) -> Dict[str, Estimate]:
        if not (self._positions and self._middle.pbc.all()):
            return {}
        positions = np.array(self._positions)
        interval_ps = 1e-3 * self._interval_fs * self._records_in(POSITION_INTERVAL)
        coefficients = {
            symbol: diffusion_coefficient(positions[:, members], interval_ps)
            for symbol, members in self._members().items()
        }
        return {
            symbol: estimate
            for symbol, estimate in coefficients.items()
            if np.isfinite(estimate[0])
        }

    def _motion(self) -> Dict[str, Any]:
        """Autocorrelation and spectrum."""
        elements = self._members() if len(self._velocities) > 1 else {}
        velocities = np.array(self._velocities)
        n_lags = min(len(velocities) // 2, self._records_in(MAX_LAG)) + 1
        correlations, spectra = {}, {}
        frequencies = np.zeros(0)
        for symbol, members in elements.items():
            chosen = velocities[:, members]
            correlations[symbol] = autocorrelation(chosen, n_lags).tolist()
            frequencies, values = spectrum(
                chosen, self._interval_fs, self._records_in(SEGMENT)
            )
            spectra[symbol] = values.tolist()
        lags = 1e-3 * self._interval_fs * np.arange(n_lags if elements else 0)
        return {
            "lags": lags.tolist(),
            "autocorrelation": correlations,
            "frequencies": frequencies.tolist(),
            "spectrum": spectra,
        }

    def _members(self) -> Dict[str, NDArray[np.integer]]:
        """Which of the chosen atoms can move, by element."""
        symbols = np.array(self._middle.get_chemical_symbols())[self._chosen]
        free = self._degrees[self._chosen] > 0.0
        return {
            str(symbol): np.flatnonzero((symbols == symbol) & free)
            for symbol in dict.fromkeys(symbols[free])
        }


def _choose_atoms(
    numbers: NDArray[np.integer], n_samples: int, seed: int
) -> NDArray[np.integer]:
    """All atoms, or of each element as many as memory allows."""
    share = MAX_NUMBERS / (3 * n_samples * len(numbers))
    if share >= 1.0:
        return np.arange(len(numbers))
    rng = np.random.default_rng(seed)
    chosen = [
        rng.permutation(np.flatnonzero(numbers == number))
        for number in np.unique(numbers)
    ]
    return np.sort(
        np.concatenate([some[: max(1, int(share * len(some)))] for some in chosen])
    )
