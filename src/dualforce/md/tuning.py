"""How many inner steps (M) a model tolerates: a prediction from a run with conservative
forces, runs at constant energy that confirm it, and the rule by which they are compared
with that of the conservative force."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, List, Optional, Tuple, Type

import ase
import numpy as np
from ase import units

from ..forces import Array, CountedForces, ForceSource
from .extrapolation import Extrapolation
from .guard import Guard
from .prediction import BothForcesVerlet, predicted_drift
from .preparation import EQUILIBRATION, equilibrate
from .respa import RespaVelocityVerlet
from .statistics import UNKNOWN, Estimate, difference, slope_with_error
from .thermostats import check_positive


CANDIDATES = (2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)
PICOSECOND = 1000.0 * units.fs

TOLERANCE = 0.2
"""Accepted difference in drift, in meV/atom/ps: it heats by less than 1 K/ps."""

FEW_STEPS = 320
"""Steps of the run with the conservative force where that is too slow for a run of
:data:`MIN_LENGTH_PS`; enough for a prediction."""

FEW_SHARE = 0.4
"""Of the time, at most, for these."""

MIN_LENGTH_PS = 1.0
"""Shorter runs decide nothing, unless they fail: they miss instabilities that take
their time, and slow vibrations look like a drift."""

N_TESTS = 2
"""Candidates whose runs there is time for, where that allows runs of
:data:`MIN_LENGTH_PS`; mostly the first one is good, and is tested for longer."""

PROMISING = 0.5
"""Part of the tolerance that a predicted drift may take: predictions are right within a
factor of two."""

MAX_DRIFT = 0.01
"""In eV/atom: a run whose energy has changed by so much has failed."""

MAX_GROWTH = 1.5
"""Correction at the end of a stable run, relative to the start, at most."""

MIN_RECORDS = 50
"""Outer points a run must have for the growth of its correction to be told from chance.
"""

MIN_HEATING = 20.0
"""In K/ps: less cannot be told from the exchange of kinetic and potential energy."""

SIGMAS = 2.0
"""Standard errors beyond which a difference counts."""

Progress = Callable[[str, float], None]
"""Receives what is being done and the part of the time that has been used."""


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
    verdict: str = ""
    """``good``, ``unclear``, or what is wrong (:func:`judge`)."""

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


@dataclass(frozen=True)
class Prediction:
    """What the run with conservative forces tells of a number of inner steps."""

    n_inner: int
    drift: Estimate
    """In meV/atom/ps, beyond that of the conservative force; NaN where the run is too
    short."""


@dataclass(frozen=True)
class Tuning:
    """All candidates that were measured, what was predicted, and the best one."""

    candidates: List[Candidate]
    recommended: Optional[int]
    """Largest number of inner steps up to which all that ran are good; none if not even
    the conservative force alone is."""
    direct_ms_per_step: float
    """Wall time of a step with the direct force alone, in ms."""
    predictions: List[Prediction]
    """In rising order of inner steps; empty if the conservative force has failed."""

    @property
    def correction(self) -> Optional[float]:
        """RMS of conservative minus direct force with the recommended number of inner
        steps, or else the smallest that was tried, in meV/Å."""
        runs = [each for each in self.candidates if each.correction is not None]
        best = [each for each in runs if each.n_inner == self.recommended]
        return (best + runs)[0].correction if runs else None


# ----------------------------------------------------------------------------- the run


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
        drift = slope_with_error(times, conserved) if has_energy else UNKNOWN
        late_drift = (
            slope_with_error(times[late], conserved[late]) if has_energy else UNKNOWN
        )
        spread = _kinetic_spread(self.run, temperature)
        has_correction = self.n_inner > 1 and len(times) > 0
        return Candidate(
            n_inner=self.n_inner,
            outer_step_fs=self.run.dt / units.fs,
            length_ps=self.run.get_time() / PICOSECOND,
            failed=self.failed,
            drift=drift,
            late_drift=late_drift,
            relative_drift=(drift[0] / spread, drift[1] / spread),
            fluctuation=_fluctuation(times, conserved, drift[0]),
            heating=slope_with_error(times, temperature),
            correction=float(np.sqrt(np.mean(correction**2)))
            if has_correction
            else None,
            growth=_growth(correction) if len(times) >= MIN_RECORDS else None,
            ms_per_step=1000.0 * self.seconds / max(1, self.n_steps),
        )


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

    def predict(self, n_inner: int) -> Prediction:
        """Drift with a number of inner steps."""
        temperature = float(np.mean(self.series[2])) if self._power else 0.0
        value, error = predicted_drift(
            self._power, self.run.timestep, n_inner, temperature
        )
        scale = 1000.0 * PICOSECOND / len(self.run.atoms)
        return Prediction(n_inner, (scale * value, scale * error))

    def _record(self) -> None:
        super()._record()
        assert isinstance(self.run, BothForcesVerlet)
        self._power.append(self.run.power)


# ---------------------------------------------------------------------------- the rule


def judge(
    candidate: Candidate,
    conservative: Optional[Candidate],
    tolerance: float = TOLERANCE,
) -> str:
    """The rule by which a number of inner steps is accepted.

    It compares a run with that of the conservative force: the same start, the same
    length. Where the conservative force is too slow for that, the run is compared with
    exact conservation, drift and heating of zero. Differences count if they exceed two
    standard errors. Energy that has changed by :data:`MAX_DRIFT` is a failure by
    itself.

    :param candidate: the run.
    :param conservative: the run with the conservative force alone; none if
        ``candidate`` is that run.
    :param tolerance: accepted difference in drift, in meV/atom/ps.
    :return: ``good``; ``unclear`` if the run is too short to tell; otherwise the first
        thing that is wrong: ``fails after ...``, ``drifts``, ``drift grows``,
        ``correction grows``, ``heats``.
    """
    if candidate.failed is not None:
        return f"fails after {candidate.length_ps:.2f} ps"
    if abs(candidate.drift[0]) * candidate.length_ps > 1000.0 * MAX_DRIFT:
        return "drifts"
    if candidate.is_short:
        return "unclear"
    if conservative is None:
        return "good" if candidate.drift[1] <= tolerance else "unclear"
    if conservative.is_short:
        exact = (0.0, 0.0)
        conservative = replace(
            conservative, drift=exact, late_drift=exact, heating=exact
        )
    drift, error = difference(candidate.drift, conservative.drift)
    late, late_error = difference(candidate.late_drift, conservative.late_drift)
    heating, heating_error = difference(candidate.heating, conservative.heating)
    growth = candidate.growth
    # Comparisons with an error that is not known (NaN) are false.
    if abs(drift) > tolerance and abs(drift) > SIGMAS * error:
        return "drifts"
    if abs(late) > tolerance + SIGMAS * late_error:
        return "drift grows"
    if growth is not None and growth > MAX_GROWTH:
        return "correction grows"
    if heating > MIN_HEATING and heating > 2.0 * SIGMAS * heating_error:
        return "heats"
    return "good" if abs(drift) <= tolerance and error <= tolerance else "unclear"


def judge_all(
    candidates: Sequence[Candidate], tolerance: float = TOLERANCE
) -> List[Candidate]:
    """Candidates with their verdicts.

    :param candidates: the first one is that of the conservative force alone.
    :param tolerance: accepted difference in drift, in meV/atom/ps.
    """
    return [
        replace(
            each,
            verdict=judge(each, candidates[0] if index else None, tolerance),
        )
        for index, each in enumerate(candidates)
    ]


def recommend(candidates: Sequence[Candidate]) -> Optional[int]:
    """The largest number of inner steps up to which all are good.

    :param candidates: judged, in rising order of inner steps, from 1.
    :return: none if not even the first one is good, or only too short to tell and no
        other one is.
    """
    best = None
    for candidate in candidates:
        if candidate.n_inner == 1 and candidate.is_short and not candidate.is_bad:
            continue
        if not candidate.is_good:
            break
        best = candidate.n_inner
    return best


def next_candidate(
    n_inner: int, verdict: str, candidates: Sequence[int]
) -> Optional[int]:
    """What to try after a number of inner steps that is not good.

    Where nothing could be decided it is the next smaller one. A bad one means that the
    prediction has failed (the direct force is too different for linear response): then
    it is the largest one with half as many steps or fewer.

    :param n_inner: inner steps of the run.
    :param verdict: of :func:`judge`.
    :param candidates: numbers of inner steps to choose from.
    :return: none if there is no smaller one.
    """
    most = n_inner - 1 if verdict == "unclear" else n_inner // 2
    return max((each for each in candidates if each <= most), default=None)


def is_drifting(drift: Estimate, tolerance: float = TOLERANCE) -> bool:
    """Whether energy changes by more than the tolerance, compared with nothing but its
    conservation.

    :param drift: in meV/atom/ps.
    :param tolerance: accepted drift, in meV/atom/ps.
    """
    return abs(drift[0]) > tolerance + SIGMAS * drift[1]


# -------------------------------------------------------------------------- the search


def tune(
    forces: ForceSource,
    atoms: ase.Atoms,
    *,
    timestep: float,
    temperature_K: float = 300.0,
    tolerance: float = TOLERANCE,
    seconds: float = 150.0,
    seed: int = 0,
    candidates: Sequence[int] = CANDIDATES,
    progress: Progress = lambda task, share: None,
) -> Tuning:
    """Find out how many inner steps (M) a model tolerates on a structure.

    The structure is equilibrated with the conservative force. A run with that force
    predicts the drift of every candidate (:mod:`dualforce.md.prediction`). The largest
    one predicted to be within the tolerance is confirmed by a run from the same start,
    judged by :func:`judge`; if it is bad, the next smaller one follows. All runs are at
    constant energy. The best one is continued while time is left. Where the
    conservative force is too slow for a run of :data:`MIN_LENGTH_PS`, :data:`FEW_STEPS`
    of its steps predict the drift.

    :param forces: source of both forces.
    :param atoms: structure; its velocities are replaced.
    :param timestep: inner step, in ASE's unit of time.
    :param temperature_K: temperature, in K.
    :param tolerance: accepted difference in drift from that with one inner step, in
        meV/atom/ps.
    :param seconds: wall time to use.
    :param seed: seed of the velocities.
    :param candidates: numbers of inner steps in rising order, from 2.
    :param progress: told how far it is.
    :raises ValueError: if an argument makes no sense.
    :raises MissingForceError: if there is no direct or no conservative force.
    :raises RunFailedError: if the structure cannot be equilibrated.
    """
    check_positive(
        timestep=timestep,
        tolerance=tolerance,
        seconds=seconds,
        temperature_K=temperature_K,
    )
    begin = time.perf_counter()

    def report(task: str, share: float = 0.0) -> None:
        progress(task, (time.perf_counter() - begin) / seconds)

    report("preparing the model")
    forces.warm_up(atoms)
    costs = _measure_costs(forces, atoms)
    limit = max(1, round(0.1 * seconds / costs[1]))
    length, before = min(EQUILIBRATION, limit * timestep), time.perf_counter()
    start = equilibrate(
        forces,
        atoms,
        timestep,
        temperature_K=temperature_K,
        seed=seed,
        length=length,
        progress=lambda share: report("equilibration"),
    )
    per_step = (time.perf_counter() - before) / max(1, round(length / timestep))
    overhead = max(0.0, per_step - costs[1])
    search = _Search(forces, start, timestep, tolerance, begin + seconds, report)
    search.run_reference((costs[0] + overhead, costs[1] + overhead))
    if not search.candidates[0].is_bad:
        search.predict(candidates)
        search.test()
        search.confirm()
    rows = search.candidates
    return Tuning(
        rows,
        recommend(rows),
        1000.0 * search.direct_seconds(costs[0]),
        search.predictions,
    )


def _measure_costs(forces: ForceSource, atoms: ase.Atoms) -> Tuple[float, float]:
    """Seconds of a direct evaluation and of one of both forces."""
    counted, moved = CountedForces(forces), atoms.copy()
    for _ in range(3):
        moved.positions = moved.positions + 1e-3
        counted.direct(moved)
        counted.both(moved)
    return counted.direct_cost.mean, counted.conservative_cost.mean


class _Search:
    """A run with conservative forces, and runs with multiple time steps.

    :param start: equilibrated structure, from which all runs start.
    :param timestep: inner step, in ASE's unit of time.
    :param deadline: reading of :func:`time.perf_counter` at which to stop.
    """

    def __init__(
        self,
        forces: ForceSource,
        start: ase.Atoms,
        timestep: float,
        tolerance: float,
        deadline: float,
        report: Callable[[str, float], None],
    ) -> None:
        self._forces, self._start, self._timestep = forces, start, timestep
        self._tolerance, self._deadline = tolerance, deadline
        self._report = report
        self._length = 0.0
        self._extrapolation = Extrapolation(forces)
        self._runs: List[ConstantEnergyRun] = []
        self._costs: List[CountedForces] = []
        self.predictions: List[Prediction] = []

    @property
    def candidates(self) -> List[Candidate]:
        """What the runs have shown, judged, in rising order of inner steps."""
        runs = sorted(self._runs, key=lambda run: run.n_inner)
        return judge_all([run.candidate() for run in runs], self._tolerance)

    def run_reference(self, costs: Tuple[float, float]) -> None:
        """Run with conservative forces alone, as long as the others will where there is
        time for that.

        A machine that has become slower since the costs were measured shortens the run,
        down to :data:`MIN_LENGTH_PS`, so that there is time for the others.

        :param costs: seconds of a step with the direct force and with both.
        """
        begin = time.perf_counter()
        left = self._deadline - begin
        length, self._length = _lengths(costs, self._timestep, left)
        self._extrapolation.watch(self._start, "after the equilibration")
        counted = CountedForces(self._forces)
        run = ReferenceRun(self._start, self._timestep, counted)
        least = min(length, MIN_LENGTH_PS * PICOSECOND)
        self._add(run, counted, least)
        planned = begin + length * costs[1] / self._timestep
        if length > least and run.failed is None:
            self._advance(run, length - least, min(planned, self._deadline))
            self._length = run.run.get_time()

    def predict(self, candidates: Sequence[int]) -> None:
        """Predict the drift with each number of inner steps."""
        reference = self._runs[0]
        assert isinstance(reference, ReferenceRun)
        self.predictions = [reference.predict(n_inner) for n_inner in candidates]

    def test(self) -> None:
        """Run candidates, from the largest with a good prediction downwards, until one
        is good; twice as long where that is not clear and leaves time for another."""
        n_inner: Optional[int] = self._largest_promising()
        while n_inner is not None and time.perf_counter() < self._deadline:
            counted = CountedForces(self._forces)
            run = ConstantEnergyRun(self._start, self._timestep, counted, n_inner)
            self._add(run, counted, self._length)
            left = self._deadline - time.perf_counter()
            if self._verdict(run) == "unclear" and left > 3.0 * run.seconds:
                self._advance(run, self._length, self._deadline)
            verdict = self._verdict(run)
            if verdict == "good":
                return
            known = [prediction.n_inner for prediction in self.predictions]
            n_inner = next_candidate(n_inner, verdict, known)

    def _largest_promising(self) -> int:
        """The number of inner steps to begin with; the smallest where none is promising
        or the run was too short to predict anything."""
        limit = PROMISING * self._tolerance
        promising = self.predictions[0].n_inner
        for prediction in self.predictions:
            # Comparisons with a prediction that is not known (NaN) are false.
            if not prediction.drift[0] <= limit:
                break
            promising = prediction.n_inner
        return promising

    def _add(
        self, run: ConstantEnergyRun, counted: CountedForces, length: float
    ) -> None:
        self._advance(run, length, self._deadline)
        self._runs.append(run)
        self._costs.append(counted)

    def _advance(self, run: ConstantEnergyRun, length: float, deadline: float) -> None:
        task = f"M = {run.n_inner}"
        run.advance(length, deadline, partial(self._report, task))
        self._watch(run)

    def _verdict(self, run: ConstantEnergyRun) -> str:
        found = [row for row in self.candidates if row.n_inner == run.n_inner]
        return found[0].verdict

    def _watch(self, run: ConstantEnergyRun) -> None:
        where = f"at step {run.n_steps} with M = {run.n_inner}"
        self._extrapolation.watch(run.run.atoms, where)

    def confirm(self) -> None:
        """Continue the best candidate while time is left, and the next best if it turns
        out bad."""
        best = recommend(self.candidates)
        while best is not None and best > 1:
            run = next(run for run in self._runs if run.n_inner == best)
            speed = run.run.get_time() / run.seconds
            left = speed * (self._deadline - time.perf_counter())
            if left < 0.2 * run.run.get_time():
                return
            self._advance(run, left, self._deadline)
            after = recommend(self.candidates)
            if after == best:
                return
            best = after

    def direct_seconds(self, measured: float) -> float:
        """Wall time of a step with the direct force alone.

        :param measured: of one evaluation, where no run has made any.
        """
        costs = [each.direct_cost for each in self._costs if each.direct_cost.calls]
        n_calls = sum(cost.calls for cost in costs)
        model = sum(cost.seconds for cost in costs) / n_calls if n_calls else measured
        return model + float(np.median(self._overheads()))

    def _overheads(self) -> List[float]:
        """Seconds of an inner step that each run spent outside the model."""
        return [
            max(
                0.0,
                run.seconds - cost.direct_cost.seconds - cost.conservative_cost.seconds,
            )
            / max(1, run.n_steps)
            for run, cost in zip(self._runs, self._costs, strict=True)
        ]


def _lengths(
    costs: Tuple[float, float], timestep: float, seconds: float
) -> Tuple[float, float]:
    """Simulated time of the run with conservative forces and of the others, in ASE's
    unit of time.

    :param costs: seconds of a step with the direct force and with both.
    :param timestep: inner step, in ASE's unit of time.
    :param seconds: wall time for all of them.
    """
    wanted = MIN_LENGTH_PS * PICOSECOND
    reference, test = costs[1] / timestep, (costs[0] + costs[1]) / (2.0 * timestep)
    longest = seconds / (reference + N_TESTS * test)
    # Shorter runs decide nothing: rather leave out the second test.
    length = max(longest, min(wanted, seconds / (reference + test)))
    few = min(FEW_STEPS * timestep, FEW_SHARE * seconds / reference)
    return (length, length) if length >= wanted or few > length else (few, wanted)
