"""How many inner steps a model stands, measured on the system at hand."""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import List, Optional, Tuple

import ase
import numpy as np
from ase import units

from .counting import CountedForces
from .evaluation import Array, TwoForces
from .guard import Guard, RunFailedError
from .preparation import EQUILIBRATION, equilibrate
from .respa import RespaVelocityVerlet
from .statistics import slope_with_error
from .thermostats import check_positive


CANDIDATES = (1, 2, 4, 8, 16, 32)
PICOSECOND = 1000.0 * units.fs

WANTED_LENGTH = 1.0 * PICOSECOND
"""Shorter runs miss instabilities that take their time."""

SCAN_SHARE = 0.75
"""Part of the time in which all candidates are compared, where that allows runs of the
wanted length; in the rest the best of them has to hold out for longer."""

MAX_DRIFT = 0.01
"""In eV/atom: a run that has gone so far has failed."""

MAX_GROWTH = 1.5
"""The correction at the end of a run, relative to the start, in one that is stable."""

MIN_HEATING = 20.0
"""In K/ps: less is not told from the exchange of kinetic and potential energy."""

Progress = Callable[[str, float], None]
"""Receives what is being done and the part of the time that has been used."""

Estimate = Tuple[float, float]
"""A value and its standard error."""


@dataclass(frozen=True)
class Candidate:
    """What was measured with one number of inner steps, at constant energy."""

    n_inner: int
    outer_step_fs: float
    length_ps: float
    drift: Estimate
    """Of the conserved quantity, in meV/atom/ps."""
    late_drift: Estimate
    """The same over the second half."""
    fluctuation: float
    """Of the conserved quantity about its drift (RMS), in meV/atom."""
    heating: Estimate
    """Slope of the temperature, in K/ps."""
    correction: Optional[float]
    """RMS of conservative minus direct force, in meV/Å; none for one inner step."""
    growth: Optional[float]
    """Correction in the last fifth of the run, relative to the first."""
    ms_per_step: float
    """Wall time of an inner step, in ms."""
    verdict: str
    """``good``, or what is wrong."""

    @property
    def is_good(self) -> bool:
        """Whether it may be used."""
        return self.verdict == "good"


@dataclass(frozen=True)
class Tuning:
    """All candidates that were measured, and the best one."""

    candidates: List[Candidate]
    recommended: Optional[int]
    """The largest number of inner steps up to which all are good; none if even the
    conservative force alone is not."""
    direct_ms_per_step: float
    """Wall time of a step with the direct force alone, in ms."""


class _Trial:
    """A run at constant energy with one number of inner steps, from the common start.

    Its series are those of the outer points.
    """

    def __init__(
        self,
        start: ase.Atoms,
        timestep: float,
        forces: TwoForces,
        n_inner: int,
        folder: str,
    ) -> None:
        self.forces = CountedForces(forces)
        self.run = RespaVelocityVerlet(
            start.copy(),
            timestep,
            self.forces,
            n_inner,
            # The verdict warns; the guard only has to stop what goes wrong.
            guard=Guard(factor=float("inf"), max_drift=MAX_DRIFT),
            last_good=Path(folder) / "last-good.extxyz",
        )
        self.n_inner = n_inner
        self.seconds = 0.0
        self.failed = False
        self._rows: List[Tuple[float, float, float, float]] = []

    def advance(
        self, length: float, deadline: float, report: Callable[[], None]
    ) -> None:
        """Go on for some simulated time, or until it fails or no time is left."""
        start = time.perf_counter()
        steps = round(length / self.run.dt)
        try:
            for _ in self.run.irun(max(1, steps)):
                self._record()
                report()
                if time.perf_counter() > deadline:
                    break
        except RunFailedError:
            self.failed = True
        self.seconds += time.perf_counter() - start

    def _record(self) -> None:
        run = self.run
        correction = run.point.correction
        row = (
            run.get_time() / PICOSECOND,
            1000.0 * run.conserved / len(run.atoms),
            run.atoms.get_temperature(),
            float("nan") if correction is None else 1000.0 * correction,
        )
        if not self._rows or row[0] > self._rows[-1][0]:
            self._rows.append(row)

    @property
    def series(self) -> Tuple[Array, Array, Array, Array]:
        """Time (ps), conserved quantity (meV/atom), temperature (K) and correction
        (meV/Å)."""
        times, conserved, temperature, correction = np.array(self._rows).T
        return times, conserved, temperature, correction

    @property
    def n_steps(self) -> int:
        """Inner steps that were taken."""
        return self.run.nsteps * self.n_inner

    @property
    def overhead(self) -> float:
        """Seconds of an inner step that are spent outside the model."""
        counted = self.forces
        model = counted.direct_cost.seconds + counted.conservative_cost.seconds
        return max(0.0, self.seconds - model) / max(1, self.n_steps)


def tune(
    forces: TwoForces,
    atoms: ase.Atoms,
    *,
    timestep: float,
    temperature_K: float,
    tolerance: float,
    seconds: float,
    seed: int = 0,
    candidates: Sequence[int] = CANDIDATES,
    progress: Progress = lambda task, share: None,
) -> Tuning:
    """Run with more and more inner steps, and compare with the conservative force.

    The structure is equilibrated with the conservative force; all runs start from the
    result, at constant energy. They end with the second candidate that is no good. What
    time is left is used to try the best one for longer.

    :param forces: the model, warm.
    :param atoms: structure; its velocities are replaced.
    :param timestep: inner step, in ASE's unit of time.
    :param temperature_K: temperature, in K.
    :param tolerance: difference in drift from that with one inner step that is
        accepted, in meV/atom/ps.
    :param seconds: wall time to use.
    :param seed: of the velocities.
    :param candidates: numbers of inner steps in rising order, from 1.
    :param progress: told how far it is.
    :raises ValueError: if an argument makes no sense.
    :raises RunFailedError: if the structure cannot be equilibrated.
    """
    check_positive(tolerance=tolerance, seconds=seconds, temperature_K=temperature_K)
    begin = time.perf_counter()
    deadline = begin + seconds

    def report(task: str) -> None:
        progress(task, (time.perf_counter() - begin) / seconds)

    with tempfile.TemporaryDirectory() as folder:
        costs = _measure_costs(forces, atoms)
        limit = round(0.1 * seconds / costs[1])
        start = equilibrate(
            forces,
            atoms,
            timestep,
            temperature_K=temperature_K,
            seed=seed,
            length=min(EQUILIBRATION, limit * timestep),
            progress=lambda share: report("equilibration"),
        )
        trials = _scan(
            start,
            timestep,
            forces,
            candidates,
            folder,
            costs,
            deadline,
            tolerance,
            report,
        )
        _confirm(trials, deadline, tolerance, report)
    rows = _judge_all(trials, tolerance)
    direct = [t.forces.direct_cost for t in trials if t.forces.direct_cost.calls]
    direct_seconds = (
        sum(c.seconds for c in direct) / sum(c.calls for c in direct)
        if direct
        else costs[0]
    )
    overhead = float(np.median([trial.overhead for trial in trials]))
    return Tuning(rows, _best(rows), 1000.0 * (direct_seconds + overhead))


def _measure_costs(forces: TwoForces, atoms: ase.Atoms) -> Tuple[float, float]:
    """Seconds of a direct evaluation and of one of both forces."""
    counted, moved = CountedForces(forces), atoms.copy()
    for _ in range(3):
        moved.positions = moved.positions + 1e-3
        counted.direct(moved)
        counted.both(moved)
    return counted.direct_cost.mean, counted.conservative_cost.mean


def _scan(
    start: ase.Atoms,
    timestep: float,
    forces: TwoForces,
    candidates: Sequence[int],
    folder: str,
    costs: Tuple[float, float],
    deadline: float,
    tolerance: float,
    report: Callable[[str], None],
) -> List[_Trial]:
    """Runs in rising order of inner steps, up to the second that is no good."""
    steps_per_second = [n / ((n - 1) * costs[0] + costs[1]) for n in candidates]
    length = _length(
        [timestep * rate for rate in steps_per_second],
        deadline - time.perf_counter(),
    )
    trials: List[_Trial] = []
    for n_inner in candidates:
        trial = _Trial(start, timestep, forces, n_inner, folder)
        trial.advance(length, deadline, partial(report, f"M = {n_inner}"))
        # Out of time: too little to judge by.
        if trials and not trial.failed and trial.run.get_time() < 0.5 * length:
            break
        trials.append(trial)
        bad = [row for row in _judge_all(trials, tolerance) if _is_bad(row)]
        if len(bad) == 2 or (bad and n_inner == 1):
            break
    return trials


def _length(speeds: Sequence[float], seconds: float) -> float:
    """Simulated time for each candidate.

    :param speeds: simulated time in a second of wall time, of each candidate.
    :param seconds: wall time for all of them.
    """
    whole = seconds / sum(1.0 / speed for speed in speeds)
    if SCAN_SHARE * whole >= WANTED_LENGTH:
        return SCAN_SHARE * whole
    # The largest candidates mostly fail early, or are left out.
    most_likely = seconds / sum(1.0 / speed for speed in speeds[:4])
    return max(whole, min(WANTED_LENGTH, most_likely))


def _confirm(
    trials: List[_Trial],
    deadline: float,
    tolerance: float,
    report: Callable[[str], None],
) -> None:
    """Continue the best candidate while time is left, and the next best if it fails."""
    best = _best(_judge_all(trials, tolerance))
    while best is not None and best > 1:
        trial = next(trial for trial in trials if trial.n_inner == best)
        speed = trial.run.get_time() / trial.seconds
        left = speed * (deadline - time.perf_counter())
        if left < 0.2 * trial.run.get_time():
            return
        trial.advance(left, deadline, partial(report, f"M = {best} again"))
        after = _best(_judge_all(trials, tolerance))
        if after == best:
            return
        best = after


# ------------------------------------------------------------------------- judgement


def _judge_all(trials: Sequence[_Trial], tolerance: float) -> List[Candidate]:
    rows: List[Candidate] = []
    for trial in trials:
        rows.append(_judge(trial, rows[0] if rows else None, tolerance))
    return rows


def _judge(
    trial: _Trial, conservative: Optional[Candidate], tolerance: float
) -> Candidate:
    times, conserved, temperature, correction = trial.series
    late = slice(len(times) // 2, None)
    drift = slope_with_error(times, conserved)
    trend = drift[0] * (times - times.mean())
    measured: dict[str, Estimate] = {
        "drift": drift,
        "late_drift": slope_with_error(times[late], conserved[late]),
        "heating": slope_with_error(times, temperature),
    }
    has_correction = trial.n_inner > 1
    growth = _growth(correction) if has_correction else None
    return Candidate(
        n_inner=trial.n_inner,
        outer_step_fs=trial.run.dt / units.fs,
        length_ps=float(times[-1]),
        fluctuation=float((conserved - trend).std()),
        correction=float(np.sqrt(np.mean(correction**2))) if has_correction else None,
        growth=growth,
        ms_per_step=1000.0 * trial.seconds / max(1, trial.n_steps),
        verdict=f"fails after {times[-1]:.2f} ps"
        if trial.failed
        else _verdict(measured, growth, conservative, tolerance),
        **measured,
    )


def _verdict(
    measured: dict[str, Estimate],
    growth: Optional[float],
    conservative: Optional[Candidate],
    tolerance: float,
) -> str:
    """``good``, or the first thing that is wrong."""
    excess = {
        name: _minus(value, getattr(conservative, name) if conservative else None)
        for name, value in measured.items()
    }
    drift, error = excess["drift"]
    late, late_error = excess["late_drift"]
    heating, heating_error = excess["heating"]
    if conservative is not None:
        if abs(drift) > max(tolerance, 2.0 * error):
            return "drifts"
        if abs(late) > tolerance + 2.0 * late_error:
            return "drift grows"
        if growth is not None and growth > MAX_GROWTH:
            return "correction grows"
        if heating > max(MIN_HEATING, 4.0 * heating_error):
            return "heats"
        if abs(drift) > tolerance:
            return "unclear"
    if not error <= tolerance:
        return "unclear"
    return "good"


def _minus(value: Estimate, reference: Optional[Estimate]) -> Estimate:
    if reference is None:
        return value
    return value[0] - reference[0], float(np.hypot(value[1], reference[1]))


def _growth(correction: Array) -> float:
    part = max(1, len(correction) // 5)
    return float(np.median(correction[-part:]) / np.median(correction[:part]))


def _is_bad(row: Candidate) -> bool:
    return row.verdict not in ("good", "unclear")


def _best(rows: Sequence[Candidate]) -> Optional[int]:
    best = None
    for row in rows:
        if not row.is_good:
            break
        best = row.n_inner
    return best
