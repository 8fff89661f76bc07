"""Runs that are sampled, and whose failure is a finding."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

import ase
from ase import units

from ..dynamics import DirectOnly, RespaVelocityVerlet, TwoForces
from ..dynamics.preparation import EQUILIBRATION, equilibrate
from .results import CONSERVATIVE, DIRECT, FORCES, MTS


PICOSECOND = 1000.0 * units.fs

Progress = Callable[[float], None]
"""Receives the part that is done."""


def silent(share: float) -> None:
    """Progress that nobody wants to see."""


@dataclass(frozen=True)
class Outcome:
    """How far a run got."""

    length_ps: float
    ms_per_step: float
    """Wall time of an inner step, without that of sampling."""
    failed: Optional[str]
    """Why it ended before its time."""


def followed(forces: TwoForces, kind: str, n_inner: int = 1) -> TwoForces:
    """The forces that a run of this kind takes for conservative ones.

    :param forces: the model.
    :param kind: of force, or ``MTS``.
    :param n_inner: inner steps; only ``MTS`` has several.
    :raises ValueError: if there is no such kind, or it has no inner steps.
    """
    kinds = (CONSERVATIVE, DIRECT, FORCES, MTS)
    if kind not in kinds:
        raise ValueError(f"the forces must be one of {', '.join(kinds)}, not '{kind}'")
    if n_inner != 1 and kind != MTS:
        raise ValueError(f"a run with '{kind}' takes one inner step, not {n_inner}")
    return DirectOnly(forces) if kind == DIRECT else forces


def prepare(
    forces: TwoForces,
    atoms: ase.Atoms,
    *,
    kind: str,
    timestep_fs: float,
    temperature_K: float,
    seed: int = 0,
    length_fs: float = EQUILIBRATION / units.fs,
    progress: Progress = silent,
) -> ase.Atoms:
    """The common start of runs that are compared: equilibrated, with momenta.

    :param forces: the model.
    :param atoms: structure, which is not changed; its velocities are not used.
    :param kind: force to equilibrate with, the most trustworthy there is.
    :param timestep_fs: length of a step, in fs.
    :param temperature_K: temperature, in K.
    :param seed: of velocities and noise.
    :param length_fs: time to run, in fs.
    :param progress: told the part that is done.
    :raises ValueError: if there is one atom only, or an argument makes no sense.
    :raises RunFailedError: if the structure cannot be equilibrated.
    """
    if len(atoms) < 2:
        raise ValueError(
            "the structure has one atom, which does not move by itself: dynamics need "
            "at least two"
        )
    return equilibrate(
        followed(forces, kind),
        atoms,
        timestep_fs * units.fs,
        temperature_K=temperature_K,
        seed=seed,
        length=length_fs * units.fs,
        progress=progress,
    )


def sample(
    run: RespaVelocityVerlet,
    length_fs: float,
    interval_fs: float,
    record: Callable[[], None],
    progress: Progress,
) -> Outcome:
    """Go on with a run and record it at even intervals, until it ends or fails.

    :param run: the run.
    :param length_fs: time to go on for, in fs; made a multiple of the interval.
    :param interval_fs: between records, in fs; made a multiple of the outer step.
    :param record: called first at the start.
    :param progress: told the part that is done.
    """
    every = steps_between(run.dt, interval_fs)
    n_records = max(1, round(length_fs * units.fs / (every * run.dt)))
    first, seconds, failed = run.nsteps, 0.0, None
    try:
        record()
        for index in range(n_records):
            start = time.perf_counter()
            run.run(every)
            seconds += time.perf_counter() - start
            record()
            progress((index + 1) / n_records)
    except (FloatingPointError, RuntimeError) as error:
        failed = str(error.__cause__ or error)
    n_steps = run.nsteps - first
    length_ps = n_steps * run.dt / PICOSECOND
    return Outcome(
        length_ps=length_ps,
        ms_per_step=1000.0 * seconds / max(1, n_steps * run.n_inner),
        failed=failed and f"after {length_ps:.3f} ps: {failed}",
    )


def steps_between(outer_step: float, interval_fs: float) -> int:
    """Outer steps in an interval, at least one.

    :param outer_step: in ASE's unit of time.
    :param interval_fs: in fs.
    """
    return max(1, round(interval_fs * units.fs / outer_step))
