"""Structures for a student to learn from: those that it meets."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Dict, List, Tuple

import ase
import numpy as np

from .labelling import CORRECTION, LabelStore, label_of
from .sampling import (
    FRAMES_PER_RUN,
    STUDENT_INNER,
    Mover,
    is_known,
    short_run,
    spread,
)
from .teacher import Teacher


Key = str
"""A temperature in K, as text: keys of JSON are."""

EARLY = 2
"""So many runs that end early show that their outer steps are too long."""


@dataclass(frozen=True)
class Exploration:
    """What runs at some temperatures have met."""

    frames: List[ase.Atoms]
    """Labelled structures that were new."""
    calls: int
    """Evaluations of the teacher."""
    correction: Dict[Key, float]
    """RMS of conservative minus direct force over all structures met at a temperature,
    in eV/Å; empty where the teacher alone has moved the atoms."""
    forces: Dict[Key, float]
    """RMS of the forces of the teacher on them, in eV/Å."""


def explore(
    teacher: Teacher,
    mover: Mover,
    starts: Sequence[ase.Atoms],
    known: Sequence[ase.Atoms],
    store: LabelStore,
    *,
    title: str,
    temperatures: Sequence[float],
    calls: int,
    frames: int,
    seed: int = 0,
    report: Callable[[float], None] = lambda share: None,
) -> Exploration:
    """Run at all temperatures in turn until the calls of the teacher are used up.

    Where runs of a pair end early, further ones take half the inner steps, down to
    :data:`STUDENT_INNER`.

    What was met and is not nearly the same as what is known is new. Where there is more
    than is wanted, structures with the largest correction at their temperature are
    kept: there is most to learn from them.

    :param teacher: the teacher.
    :param mover: what moves the atoms.
    :param starts: structures to start from.
    :param known: structures that are known.
    :param store: where labels are kept. Runs that are there are not made again.
    :param title: of these runs, different from that of others in the store.
    :param temperatures: in K.
    :param calls: evaluations of the teacher, at most (one run at each temperature is
        made in any case).
    :param frames: structures to keep, at most.
    :param seed: of velocities and noise.
    :param report: told the share that is done.
    """
    visited: List[Tuple[float, ase.Atoms]] = []
    number = used = early = recent = 0
    while number < len(temperatures) or used + _cost(mover) <= calls:
        temperature = float(temperatures[number % len(temperatures)])
        start = starts[spread(number, len(starts))]
        name = f"{title}, run {number} at {temperature:g} K"
        run_seed = 10_000 * seed + number
        met = short_run(start, mover, teacher, store, name, temperature, run_seed)
        visited += [(temperature, atoms) for atoms in met]
        used += _cost(mover, min(len(met) + 1, FRAMES_PER_RUN))
        if len(met) < FRAMES_PER_RUN:
            early, recent = early + 1, recent + 1
        if recent == EARLY and mover.n_inner > STUDENT_INNER:
            mover, recent = _shortened(mover), 0
        number += 1
        report(min(1.0, used / max(calls, 1)))
    if early:
        logging.info(f"{early} of {number} runs ended early")
    return Exploration(
        _new(visited, known, frames),
        used,
        _by_temperature(
            [(t, a.info[CORRECTION]) for t, a in visited if CORRECTION in a.info]
        ),
        _by_temperature([(t, _rms(label_of(a).forces)) for t, a in visited]),
    )


def _cost(mover: Mover, frames: int = FRAMES_PER_RUN) -> int:
    """Evaluations of the teacher for a run that meets so many structures."""
    return frames * mover.calls_per_frame


def _shortened(mover: Mover) -> Mover:
    n_inner = max(STUDENT_INNER, mover.n_inner // 2)
    logging.info(
        f"Runs of the pair with M = {mover.n_inner} end early; further ones have "
        f"M = {n_inner}"
    )
    return replace(mover, n_inner=n_inner)


def _new(
    visited: Sequence[Tuple[float, ase.Atoms]],
    known: Sequence[ase.Atoms],
    wanted: int,
) -> List[ase.Atoms]:
    """New structures in the order in which they were met, at most so many."""
    found: List[Tuple[float, ase.Atoms]] = []
    seen = list(known)
    for temperature, atoms in visited:
        if not is_known(atoms, seen):
            seen.append(atoms)
            found.append((temperature, atoms))
    if len(found) <= wanted:
        return [atoms for _, atoms in found]
    usual = _by_temperature([(t, a.info.get(CORRECTION, 1.0)) for t, a in found])
    sizes = [a.info.get(CORRECTION, 1.0) / usual[f"{t:g}"] for t, a in found]
    order = np.argsort(-np.array(sizes), kind="stable")
    return [found[i][1] for i in sorted(order[:wanted])]


def _by_temperature(values: Sequence[Tuple[float, float]]) -> Dict[Key, float]:
    """Root mean squares."""
    groups: Dict[Key, List[float]] = {}
    for temperature, value in values:
        groups.setdefault(f"{temperature:g}", []).append(float(value))
    return {key: _rms(np.array(group)) for key, group in groups.items()}


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
