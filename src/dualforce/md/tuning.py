"""Which timestep and how many inner steps (M) suit a model: a prediction from a run
with conservative forces, and runs at constant energy that confirm it."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import List, NamedTuple, Optional, Tuple, Union

import ase
import numpy as np
from ase import units

from ..forces import CountedForces, ForceSource
from .acceptance import TOLERANCE, judge_all, largest_good, most_drift
from .constant_energy import (
    MIN_LENGTH_PS,
    PICOSECOND,
    Candidate,
    ConstantEnergyRun,
    ReferenceRun,
)
from .extrapolation import Extrapolation
from .preparation import EQUILIBRATION, equilibrate
from .statistics import Estimate
from .thermostats import check_positive


CANDIDATES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 24, 32)

FEW_STEPS = 320
"""Steps of the run with the conservative force where that is too slow for a run of
:data:`MIN_LENGTH_PS`; enough for a prediction."""

FEW_SHARE = 0.4
"""Of the time, at most, for these."""

N_TIMINGS = 3
"""Evaluations of each kind that are timed."""

N_TESTS = 2
"""Candidates whose runs there is time for, where that allows runs of
:data:`MIN_LENGTH_PS`; mostly the first one is good, and is tested for longer."""

EXCESS = 3.0
"""Where the largest drift to expect of an undecided run is not known: it, relative to
what is accepted."""

PROMISING = 0.5
"""Part of the tolerance that a predicted drift may take: predictions are right within a
factor of two."""

MAX_FLUCTUATION = 0.015
"""Fluctuation of the total energy over that of the kinetic energy with velocity Verlet,
at most, for a timestep to be chosen that is longer than the shortest. It is 0.009 for
an organic molecule with 0.5 fs, whose stretches of C-H have a twentieth of a period."""

Progress = Callable[[str, float], None]
"""Receives what is being done and the part of the time that has been used."""


@dataclass(frozen=True)
class Prediction:
    """What the run with conservative forces tells of a timestep and a number of inner
    steps."""

    timestep_fs: float
    n_inner: int
    drift: Estimate
    """In meV/atom/ps, beyond that of the conservative force; NaN where the run is too
    short."""
    speed: float
    """Relative to the conservative force with the shortest timestep, from the costs of
    single evaluations."""
    is_rough: bool = False
    """Whether the drift is due to fast parts of the conservative force alone."""

    @property
    def outer_step_fs(self) -> float:
        """Outer step, in fs."""
        return self.n_inner * self.timestep_fs


@dataclass(frozen=True)
class Timestep:
    """What the run with conservative forces tells of a timestep."""

    fs: float
    fluctuation: float
    """RMS deviation of the total energy from its drift with velocity Verlet, over the
    standard deviation of the kinetic energy."""
    is_too_long: bool
    """Whether that is more than :data:`MAX_FLUCTUATION`; never true of the shortest."""
    best: Optional[Prediction]
    """The largest number of inner steps whose predicted drift is acceptable; none where
    that of no number is known to be."""


@dataclass(frozen=True)
class Tuning:
    """All candidates that were measured, what was predicted, and the best one."""

    candidates: List[Candidate]
    """In rising order of outer steps; the first is the conservative force alone."""
    direct_ms_per_step: float
    """Wall time of a step with the direct force alone, in ms."""
    predictions: List[Prediction]
    """In rising order of timesteps and inner steps; empty if the conservative force has
    failed."""
    timesteps: List[Timestep]
    """Likewise."""

    @property
    def best(self) -> Optional[Candidate]:
        """The run with the longest outer step up to which all are good; none if not
        even the conservative force alone is."""
        return largest_good(self.candidates)

    @property
    def recommended(self) -> Optional[int]:
        """Number of inner steps of the best one."""
        return None if self.best is None else self.best.n_inner

    def speed(self, candidate: Candidate) -> float:
        """Simulated time for a time of the computer, relative to the conservative force
        alone with the shortest timestep."""
        if candidate.n_inner == 1:
            return candidate.timestep_fs / self.candidates[0].timestep_fs
        alone = candidate.conservative_ms / self.candidates[0].timestep_fs
        return alone / candidate.ms_per_fs

    @property
    def timestep_fs(self) -> float:
        """Timestep of the best one, or else the shortest, in fs."""
        return (self.best or self.candidates[0]).timestep_fs

    @property
    def longest_fs(self) -> float:
        """The longest timestep that suits the conservative force alone, in fs."""
        suits = [each.fs for each in self.timesteps if not each.is_too_long]
        return max(suits, default=self.candidates[0].timestep_fs)

    def gain(self, candidate: Candidate) -> float:
        """Its speed relative to the conservative force alone with the longest timestep
        that suits that."""
        return self.speed(candidate) * self.candidates[0].timestep_fs / self.longest_fs

    def limit(self, tolerance: float) -> Optional[Prediction]:
        """With the timestep of the best one, the smallest number of inner steps beyond
        the promising ones whose predicted drift is too large; none where there is none.

        :param tolerance: accepted difference in drift, in meV/atom/ps.
        """
        own = [
            each
            for each in self.predictions
            if math.isclose(each.timestep_fs, self.timestep_fs)
        ]
        good = promising(own, tolerance)
        beyond = own[own.index(good[-1]) + 1 :] if good else own
        large = (each for each in beyond if each.drift[0] > PROMISING * tolerance)
        return next(large, None)

    @property
    def correction(self) -> Optional[float]:
        """RMS of conservative minus direct force of the best one, or else with the
        shortest outer step that was tried, in meV/Å."""
        runs = [self.best, *self.candidates]
        found = (each.correction for each in runs if each is not None)
        return next((each for each in found if each is not None), None)


def promising(predictions: Sequence[Prediction], tolerance: float) -> List[Prediction]:
    """Those whose predicted drift is small, up to the first whose drift is larger than
    that by more than its error: of many predictions that are right within a factor of
    two some are too large by chance, and runs confirm what is chosen.

    :param predictions: for a timestep, in rising order of inner steps.
    :param tolerance: accepted difference in drift, in meV/atom/ps.
    """
    limit, found = PROMISING * tolerance, []
    for prediction in predictions:
        drift, error = prediction.drift
        # Comparisons with a prediction that is not known (NaN) are false.
        if not drift - error <= limit:
            break
        if drift <= limit:
            found.append(prediction)
    return found


def next_candidate(
    failed: Prediction,
    verdict: str,
    candidates: Sequence[Prediction],
    excess: float = EXCESS,
) -> Optional[Prediction]:
    """What to try after a run that is not good: the fastest with a shorter outer step.

    A run that is undecided would be followed by another one if the next pair promised
    about the same: its predicted drift must be smaller by what this one had too much,
    if there is such a one.
    A run that is bad, not only undecided, means that the prediction has failed (the
    direct force is too different for linear response): then the outer step is half as
    long or shorter.

    :param failed: what was run.
    :param verdict: of :func:`.acceptance.judge`.
    :param candidates: what to choose from.
    :param excess: largest drift to expect of an undecided run, relative to what is
        accepted.
    :return: none if there is nothing with so short an outer step.
    """
    longest = failed.outer_step_fs * (1.0 if verdict == "unclear" else 0.5)
    margin = 1e-6 if verdict == "unclear" else -1e-6
    shorter = [c for c in candidates if c.outer_step_fs < longest - margin]
    quieter = [c for c in shorter if c.drift[0] <= failed.drift[0] / excess]
    return _fastest(quieter if verdict == "unclear" and quieter else shorter)


def _fastest(candidates: Sequence[Prediction]) -> Optional[Prediction]:
    return max(candidates, key=lambda c: (c.speed, c.outer_step_fs), default=None)


def tune(
    forces: ForceSource,
    atoms: ase.Atoms,
    *,
    timestep: Union[float, Sequence[float]],
    temperature_K: float = 300.0,
    tolerance: float = TOLERANCE,
    seconds: float = 150.0,
    seed: int = 0,
    candidates: Sequence[int] = CANDIDATES,
    progress: Progress = lambda task, share: None,
) -> Tuning:
    """Find out which timestep and how many inner steps (M) a model tolerates on a
    structure.

    The structure is equilibrated with the conservative force. A run with that force and
    the shortest timestep predicts the drift of every candidate with every timestep
    (:mod:`dualforce.md.prediction`), and how well velocity Verlet itself conserves
    energy. The fastest one predicted to be within the tolerance is confirmed by a run
    from the same start, judged by :func:`.acceptance.judge`, and continued while it is
    good and time is left; if it is not, the fastest one with a shorter outer step
    follows. All runs are at constant energy. Where the conservative force is too slow
    for a run of :data:`MIN_LENGTH_PS`, :data:`FEW_STEPS` of its steps predict the
    drift.

    :param forces: source of both forces.
    :param atoms: structure; its velocities are replaced.
    :param timestep: inner step, in ASE's unit of time, or several to choose from.
    :param temperature_K: temperature, in K.
    :param tolerance: accepted difference in drift from that with one inner step, in
        meV/atom/ps.
    :param seconds: wall time to use.
    :param seed: seed of the velocities.
    :param candidates: numbers of inner steps, from 2.
    :param progress: told how far it is.
    :raises ValueError: if an argument makes no sense.
    :raises MissingForceError: if there is no direct or no conservative force.
    :raises RunFailedError: if the structure cannot be equilibrated.
    """
    timesteps = sorted({float(each) for each in np.atleast_1d(timestep)})
    if not timesteps:
        raise ValueError("give at least one timestep")
    shortest = timesteps[0]
    check_positive(
        timestep=shortest,
        tolerance=tolerance,
        seconds=seconds,
        temperature_K=temperature_K,
    )
    begin = time.perf_counter()

    def report(task: str, share: float = 0.0) -> None:
        progress(task, (time.perf_counter() - begin) / seconds)

    report("preparing the model")
    forces.warm_up(atoms)
    cost = _measure_costs(forces, atoms).both
    limit = max(1, round(0.1 * seconds / cost))
    length, before = min(EQUILIBRATION, limit * shortest), time.perf_counter()
    counted = CountedForces(forces)
    start = equilibrate(
        counted,
        atoms,
        shortest,
        temperature_K=temperature_K,
        seed=seed,
        length=length,
        progress=lambda share: report("equilibration"),
    )
    model = counted.direct_cost.seconds + counted.conservative_cost.seconds
    passed = time.perf_counter() - before
    overhead = max(0.0, passed - model) / max(1, round(length / shortest))
    # A warm structure may have more neighbours than the one that was given.
    costs = _measure_costs(forces, start)
    costs_of_steps = Costs(*(cost + overhead for cost in costs))
    search = _Search(
        forces,
        start,
        timesteps,
        tolerance,
        costs_of_steps,
        begin + seconds,
        report,
    )
    search.run_reference()
    if not search.candidates[0].is_bad:
        search.predict(sorted(candidates))
        search.test()
    return Tuning(
        search.candidates,
        1000.0 * search.direct_seconds(costs.direct),
        search.predictions,
        search.timesteps,
    )


class Costs(NamedTuple):
    """Seconds of an evaluation, or of a step with it."""

    direct: float
    both: float
    conservative: float


def _measure_costs(forces: ForceSource, atoms: ase.Atoms) -> Costs:
    """Medians of some evaluations, made in turn."""
    moved, seconds = atoms.copy(), np.zeros((N_TIMINGS, 3))
    for row in seconds:
        for place, evaluate in enumerate(
            (forces.direct, forces.both, forces.conservative)
        ):
            # Calculators keep what they found for the same positions.
            moved.positions = moved.positions + 1e-3
            begin = time.perf_counter()
            evaluate(moved)
            row[place] = time.perf_counter() - begin
    return Costs(*np.median(seconds, axis=0).tolist())


class _Search:
    """A run with conservative forces, and runs with multiple time steps.

    :param start: equilibrated structure, from which all runs start.
    :param timesteps: inner steps in rising order, in ASE's unit of time.
    :param costs: seconds of a step with each evaluation.
    :param deadline: reading of :func:`time.perf_counter` at which to stop.
    """

    def __init__(
        self,
        forces: ForceSource,
        start: ase.Atoms,
        timesteps: Sequence[float],
        tolerance: float,
        costs: Costs,
        deadline: float,
        report: Callable[[str, float], None],
    ) -> None:
        self._forces, self._start, self._timesteps = forces, start, timesteps
        self._tolerance, self._deadline = tolerance, deadline
        self._step_costs, self._report = costs, report
        self._length = 0.0
        self._extrapolation = Extrapolation(forces)
        self._runs: List[ConstantEnergyRun] = []
        self._costs: List[CountedForces] = []
        self.predictions: List[Prediction] = []
        self.timesteps: List[Timestep] = []

    @property
    def candidates(self) -> List[Candidate]:
        """What the runs have shown, judged, in rising order of outer steps, that of the
        conservative force first."""
        found = [
            replace(run.candidate(), conservative_ms=1000.0 * self._alone(run))
            for run in self._sorted()
        ]
        return judge_all(found, self._tolerance)

    def _alone(self, run: ConstantEnergyRun) -> float:
        """Seconds that a step with the conservative force alone takes while the machine
        is as fast as it was during a run."""
        cost = self._costs[self._runs.index(run)].conservative_cost
        costs = self._step_costs
        if not cost.calls:
            return costs.conservative
        both = cost.mean + float(np.median(self._overheads()))
        return both * costs.conservative / costs.both

    def _sorted(self) -> List[ConstantEnergyRun]:
        return sorted(self._runs, key=lambda run: (run.n_inner > 1, run.run.dt))

    def run_reference(self) -> None:
        """Run with conservative forces alone and the shortest timestep, as long as the
        others will where there is time for that.

        A machine that has become slower since the costs were measured shortens the run,
        down to :data:`MIN_LENGTH_PS`, so that there is time for the others.
        """
        begin, timestep = time.perf_counter(), self._timesteps[0]
        left, costs = self._deadline - begin, self._step_costs
        length, self._length = _lengths(costs, timestep, left)
        self._extrapolation.watch(self._start, "after the equilibration")
        counted = CountedForces(self._forces)
        run = ReferenceRun(self._start, timestep, counted)
        least = min(length, MIN_LENGTH_PS * PICOSECOND)
        self._add(run, counted, least)
        planned = begin + length * costs.both / timestep
        if length > least and run.failed is None:
            self._advance(run, length - least, min(planned, self._deadline))
            self._length = run.run.get_time()

    def predict(self, candidates: Sequence[int]) -> None:
        """Predict the drift with each timestep and each number of inner steps."""
        reference = self._runs[0]
        assert isinstance(reference, ReferenceRun)
        for timestep in self._timesteps:
            found = [
                Prediction(
                    timestep / units.fs,
                    n_inner,
                    reference.predict(n_inner, timestep),
                    self._speed(timestep, n_inner),
                    reference.is_rough(n_inner, timestep),
                )
                for n_inner in candidates
            ]
            fluctuation = reference.relative_fluctuation(timestep)
            is_too_long = (
                timestep > self._timesteps[0] and not fluctuation <= MAX_FLUCTUATION
            )
            good = promising(found, self._tolerance)
            self.predictions += found
            self.timesteps.append(
                Timestep(
                    timestep / units.fs,
                    fluctuation,
                    is_too_long,
                    good[-1] if good else None,
                )
            )

    def _speed(self, timestep: float, n_inner: int) -> float:
        costs = self._step_costs
        per_step = costs.direct + max(0.0, costs.both - costs.direct) / n_inner
        return (costs.conservative / self._timesteps[0]) / (per_step / timestep)

    def test(self) -> None:
        """Run candidates, from the fastest with a good prediction downwards, until one
        is good as long as there is time."""
        choice = self._worth_a_run()
        chosen = _fastest(choice)
        while chosen is not None and time.perf_counter() < self._deadline:
            run = self._run(chosen)
            self._confirm(run)
            verdict = self._verdict(run)
            if verdict == "good":
                return
            chosen = next_candidate(chosen, verdict, choice, self._excess(run))

    def _run(self, chosen: Prediction) -> ConstantEnergyRun:
        """Run a candidate; twice as long where that is not clear and leaves time for
        another."""
        counted = CountedForces(self._forces)
        timestep = chosen.timestep_fs * units.fs
        run = ConstantEnergyRun(self._start, timestep, counted, chosen.n_inner)
        self._add(run, counted, self._length)
        left = self._deadline - time.perf_counter()
        if self._verdict(run) == "unclear" and left > 3.0 * run.seconds:
            self._advance(run, self._length, self._deadline)
        return run

    def _confirm(self, run: ConstantEnergyRun) -> None:
        """Continue a candidate while it is good and time is left: for half of that each
        time, so that another one can be tried should it turn out not to be good."""
        while self._verdict(run) == "good":
            speed = run.run.get_time() / run.seconds
            left = speed * (self._deadline - time.perf_counter())
            if left < 0.2 * run.run.get_time():
                return
            self._advance(run, 0.5 * left, self._deadline)

    def _worth_a_run(self) -> List[Prediction]:
        """Those with a good prediction, and of these the ones that are faster than the
        conservative force with the longest timestep, if there are any; the smallest
        number of inner steps where no prediction is good, or the run was too short to
        predict anything."""
        allowed = [each.fs for each in self.timesteps if not each.is_too_long]
        found = [
            prediction
            for timestep in allowed
            for prediction in promising(
                [each for each in self.predictions if each.timestep_fs == timestep],
                self._tolerance,
            )
        ]
        alone = max(allowed) * units.fs / self._timesteps[0]
        faster = [prediction for prediction in found if prediction.speed > alone]
        return faster or found or self.predictions[:1]

    def _add(
        self, run: ConstantEnergyRun, counted: CountedForces, length: float
    ) -> None:
        self._advance(run, length, self._deadline)
        self._runs.append(run)
        self._costs.append(counted)

    def _advance(self, run: ConstantEnergyRun, length: float, deadline: float) -> None:
        task = f"{run.run.timestep / units.fs:g} fs, M = {run.n_inner}"
        run.advance(length, deadline, partial(self._report, task))
        self._watch(run)

    def _verdict(self, run: ConstantEnergyRun) -> str:
        rows = judge_all([self._runs[0].candidate(), run.candidate()], self._tolerance)
        return rows[1].verdict

    def _excess(self, run: ConstantEnergyRun) -> float:
        excess = most_drift(run.candidate()) / self._tolerance
        return excess if excess > 1.0 else EXCESS  # also where it is NaN

    def _watch(self, run: ConstantEnergyRun) -> None:
        where = f"at step {run.n_steps} with M = {run.n_inner}"
        self._extrapolation.watch(run.run.atoms, where)

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


def _lengths(costs: Costs, timestep: float, seconds: float) -> Tuple[float, float]:
    """Simulated time of the run with conservative forces and of the others, in ASE's
    unit of time.

    :param costs: seconds of a step with each evaluation.
    :param timestep: inner step, in ASE's unit of time.
    :param seconds: wall time for all of them.
    """
    wanted = MIN_LENGTH_PS * PICOSECOND
    reference = costs.both / timestep
    test = (costs.direct + costs.both) / (2.0 * timestep)
    longest = seconds / (reference + N_TESTS * test)
    # Shorter runs decide nothing: rather leave out the second test.
    length = max(longest, min(wanted, seconds / (reference + test)))
    few = min(FEW_STEPS * timestep, FEW_SHARE * seconds / reference)
    return (length, length) if length >= wanted or few > length else (few, wanted)
