"""Runs at constant energy, as far as they tell how many inner steps are tolerated."""

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, List, Optional, Tuple, Type

import ase
import numpy as np
from ase import units

from ..forces import Array, ForceSource
from .guard import Guard
from .prediction import BothForcesVerlet, predicted_drift
from .respa import RespaVelocityVerlet
from .statistics import UNKNOWN, Estimate, power_from_spread, slope_with_error


PICOSECOND = 1000.0 * units.fs

SMOOTH = 0.1
"""A direct force whose own fast parts have less than so much of the power that heats
has nothing to do with it."""

MIN_LENGTH_PS = 1.0
"""Shorter runs decide nothing, unless they fail: they miss instabilities that take
their time, and slow vibrations look like a drift."""

MAX_DRIFT = 0.01
"""In eV/atom: a run whose energy has changed by so much has failed."""

MIN_RECORDS = 50
"""Outer points a run must have for the growth of its correction to be told from chance.
"""


@dataclass(frozen=True)
class Candidate:
    """What a run at constant energy has shown for one number of inner steps."""

    n_inner: int
    outer_step_fs: float
    length_ps: float
    failed: Optional[str]
    """Why the run ended early."""
    drift: Estimate
    """Of the conserved quantity, in meV/atom/ps; NaN without an energy."""
    late_drift: Estimate
    """The same over the second half."""
    mean_drift: Estimate
    """The drift to expect, told by the spread of the conserved quantity
    (:func:`.statistics.power_from_spread`), in meV/atom/ps."""
    relative_drift: Estimate
    """Drift over the standard deviation of the kinetic energy, in 1/ps."""
    fluctuation: float
    """RMS deviation of the conserved quantity from its drift, in meV/atom."""
    heating: Estimate
    """Slope of the temperature, in K/ps."""
    correction: Optional[float]
    """RMS of conservative minus direct force, in meV/Å; none for one inner step."""
    growth: Optional[float]
    """Correction in the last fifth of the run, relative to the first; none for runs of
    fewer than 50 outer points."""
    ms_per_step: float
    """Wall time of an inner step, in ms."""
    conservative_ms: float = float("nan")
    """Wall time of a step with the conservative force alone while the machine is as
    fast as it was during the run, in ms; NaN where that is not known."""
    verdict: str = ""
    """``good``, ``unclear``, or what is wrong (:func:`.acceptance.judge`)."""

    @property
    def timestep_fs(self) -> float:
        """Inner step, in fs."""
        return self.outer_step_fs / self.n_inner

    @property
    def ms_per_fs(self) -> float:
        """Wall time for a simulated femtosecond, in ms."""
        return self.ms_per_step / self.timestep_fs

    @property
    def known_drift(self) -> Estimate:
        """The drift as the slope or as the spread tells it, whichever is the more
        precise, in meV/atom/ps."""
        return min(
            (self.drift, self.mean_drift),
            key=lambda each: each[1] if math.isfinite(each[1]) else math.inf,
        )

    @property
    def is_good(self) -> bool:
        """Whether this number of inner steps may be used."""
        return self.verdict == "good"

    @property
    def is_bad(self) -> bool:
        """Whether it may not; neither is true where nothing has been decided."""
        return self.verdict not in ("good", "unclear")

    @property
    def is_short(self) -> bool:
        """Whether the run was too short to decide anything."""
        return self.length_ps < 0.9 * MIN_LENGTH_PS


class ConstantEnergyRun:
    """A run at constant energy with one number of inner steps, which can be continued.

    :param start: equilibrated structure with momenta, which is not changed.
    :param timestep: inner step, in ASE's unit of time.
    :param forces: source of forces.
    :param n_inner: inner steps in an outer step (M).
    :param energies: source of the energy in the conserved quantity, if not ``forces``:
        for runs with direct forces alone.
    :param interval: least time between records, in ASE's unit of time; by default every
        outer point is recorded.
    :param max_drift: change of the conserved quantity at which the run has failed, in
        eV/atom.
    """

    _dynamics: Type[RespaVelocityVerlet] = RespaVelocityVerlet

    def __init__(
        self,
        start: ase.Atoms,
        timestep: float,
        forces: ForceSource,
        n_inner: int = 1,
        *,
        energies: Optional[ForceSource] = None,
        interval: float = 0.0,
        max_drift: float = MAX_DRIFT,
    ) -> None:
        self.run = self._dynamics(
            start.copy(),
            timestep,
            forces,
            n_inner,
            # The rule judges the correction; the guard only stops what goes wrong.
            guard=Guard(factor=float("inf"), max_drift=max_drift),
        )
        self.n_inner = n_inner
        self.seconds = 0.0
        """Wall time of the steps."""
        self.failed: Optional[str] = None
        """Why the run has ended early."""
        self._energies, self._interval = energies, interval
        self._rows: List[Tuple[float, float, float, float]] = []

    def advance(
        self,
        length: float,
        deadline: float = float("inf"),
        report: Callable[[float], None] = lambda share: None,
    ) -> None:
        """Go on until the run fails or its time is over. A failure is not raised but
        kept in :attr:`failed`.

        :param length: time to simulate, in ASE's unit of time.
        :param deadline: reading of :func:`time.perf_counter` at which to stop.
        :param report: told the part of the length that is done.
        """
        n_steps = max(1, round(length / self.run.dt))
        first = self.run.nsteps
        with tempfile.TemporaryDirectory() as folder:
            self.run.last_good = Path(folder) / "last-good.extxyz"
            try:
                for _ in self._timed(self.run.irun(n_steps)):
                    self._record()
                    report((self.run.nsteps - first) / n_steps)
                    if time.perf_counter() > deadline:
                        break
            except (FloatingPointError, RuntimeError) as error:
                self.failed = str(error.__cause__ or error)

    def _timed(self, steps: Iterator[Any]) -> Iterator[None]:
        while True:
            begin = time.perf_counter()
            try:
                next(steps)
            except StopIteration:
                return
            finally:
                self.seconds += time.perf_counter() - begin
            yield

    def _record(self) -> None:
        run, now = self.run, self.run.get_time()
        if self._rows:
            last = self._rows[-1][0] * PICOSECOND
            # Outer points are multiples of a step, up to rounding.
            if now < last + max(self._interval, run.dt) - 1e-6 * run.dt:
                return
        correction = run.point.correction
        row = (
            now / PICOSECOND,
            1000.0 * self._conserved() / len(run.atoms),
            run.atoms.get_temperature(),
            float("nan") if correction is None else 1000.0 * correction,
        )
        self._rows.append(row)

    def _conserved(self) -> float:
        """Total energy, in eV; NaN where there is none."""
        run = self.run
        if self._energies is None:
            return run.conserved if run.forces.has_energy else float("nan")
        energy = self._energies.conservative(run.atoms).energy
        assert energy is not None
        return energy + float(run.atoms.get_kinetic_energy())

    @property
    def series(self) -> Array:
        """Time (ps), conserved quantity (meV/atom), temperature (K) and RMS correction
        (meV/Å) at the records, shape ``[4, n_records]``."""
        return np.array(self._rows, dtype=float).reshape(-1, 4).T

    @property
    def n_steps(self) -> int:
        """Inner steps that were taken."""
        return self.run.nsteps * self.n_inner

    def candidate(self) -> Candidate:
        """What the run has shown so far, not judged yet."""
        times, conserved, temperature, correction = self.series
        late = slice(len(times) // 2, None)
        has_energy = bool(np.isfinite(conserved).any())
        drift = late_drift = mean_drift = UNKNOWN
        if has_energy:
            mean_drift, diffusion = self._spread()
            drift = slope_with_error(times, conserved, diffusion)
            late_drift = slope_with_error(times[late], conserved[late], diffusion)
        spread = _kinetic_spread(self.run, temperature)
        has_correction = self.n_inner > 1 and len(times) > 0
        return Candidate(
            n_inner=self.n_inner,
            outer_step_fs=self.run.dt / units.fs,
            length_ps=self.run.get_time() / PICOSECOND,
            failed=self.failed,
            drift=drift,
            late_drift=late_drift,
            mean_drift=mean_drift,
            relative_drift=(drift[0] / spread, drift[1] / spread),
            fluctuation=_fluctuation(times, conserved, drift[0]),
            heating=slope_with_error(times, temperature),
            correction=float(np.sqrt(np.mean(correction**2)))
            if has_correction
            else None,
            growth=_growth(correction) if len(times) >= MIN_RECORDS else None,
            ms_per_step=1000.0 * self.seconds / max(1, self.n_steps),
        )

    def _spread(self) -> Tuple[Estimate, float]:
        """Drift to expect, in meV/atom/ps, and the variance that the conserved quantity
        gains, in (meV/atom)²/ps."""
        times, conserved, temperature, _ = self.series
        n_atoms = len(self.run.atoms)
        thermal_energy = 1000.0 * units.kB * float(temperature.mean())
        power, error = power_from_spread(times, n_atoms * conserved, thermal_energy)
        gain = 2.0 * thermal_energy * power / n_atoms**2
        # NaN, where nothing is known, compares as false.
        return (power / n_atoms, error / n_atoms), gain if gain > 0.0 else 0.0


def _kinetic_spread(run: RespaVelocityVerlet, temperature: Array) -> float:
    """Standard deviation of the kinetic energy, in meV/atom; NaN for one record."""
    if len(temperature) < 2:
        return float("nan")
    per_kelvin = 0.5 * units.kB * run.n_degrees / len(run.atoms)
    return float(1000.0 * per_kelvin * temperature.std()) or float("nan")


def _fluctuation(times: Array, conserved: Array, drift: float) -> float:
    if len(times) < 2:
        return float("nan")
    return float((conserved - drift * (times - times.mean())).std())


def _growth(correction: Array) -> Optional[float]:
    part = len(correction) // 5
    first = float(np.median(correction[:part]))
    return float(np.median(correction[-part:])) / first if first > 0.0 else None


class ReferenceRun(ConstantEnergyRun):
    """A run with conservative forces that predicts those with multiple time steps.

    Arguments as of :class:`ConstantEnergyRun`.
    """

    _dynamics = BothForcesVerlet

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._power: List[float] = []
        self._power_of_direct: List[float] = []

    def predict(self, n_inner: int, timestep: Optional[float] = None) -> Estimate:
        """Drift with multiple time steps beyond that of the conservative force, in
        meV/atom/ps; NaN where the run is too short.

        :param n_inner: inner steps in an outer step.
        :param timestep: inner step, in ASE's unit of time; by default that of the run.
        """
        return self._predict(self._power, n_inner, timestep)

    def is_rough(self, n_inner: int, timestep: Optional[float] = None) -> bool:
        """Whether what heats is in the conservative force alone: fast parts, of kinks
        or noise, that the direct force has not. False where the run is too short.

        Arguments as of :meth:`predict`.
        """
        drift = self.predict(n_inner, timestep)[0]
        of_direct = self._predict(self._power_of_direct, n_inner, timestep)[0]
        return of_direct < SMOOTH * drift

    def _predict(
        self, power: List[float], n_inner: int, timestep: Optional[float]
    ) -> Estimate:
        temperature = float(np.mean(self.series[2])) if power else 0.0
        value, error = predicted_drift(
            power, self.run.timestep, n_inner, temperature, timestep=timestep
        )
        scale = 1000.0 * PICOSECOND / len(self.run.atoms)
        return scale * value, scale * error

    def relative_fluctuation(self, timestep: float) -> float:
        """RMS deviation of the total energy from its drift, over the standard deviation
        of the kinetic energy: the error of velocity Verlet itself, which grows with the
        square of the step. NaN where the run is too short.

        :param timestep: step, in ASE's unit of time.
        """
        times, conserved, temperature, _ = self.series
        drift = slope_with_error(times, conserved)[0]
        spread = _kinetic_spread(self.run, temperature)
        own = _fluctuation(times, conserved, drift) / spread
        return own * (timestep / self.run.timestep) ** 2

    def _record(self) -> None:
        super()._record()
        assert isinstance(self.run, BothForcesVerlet)
        power, of_direct = self.run.power
        self._power.append(power)
        self._power_of_direct.append(of_direct)
