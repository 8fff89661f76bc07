"""More structures for a teacher to label, from short runs."""

import hashlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, List, Tuple

import ase
import numpy as np
from ase import units
from tqdm import tqdm

from ..forces import Array, ForceSource, load_forces
from ..md import RunFailedError
from ..md.guard import Guard
from ..md.preparation import set_thermal_momenta
from ..md.thermostats import RespaLangevin, check_positive
from .labelling import ORIGIN, LabelStore, label_one
from .teacher import Teacher


INTERVAL = 20.0 * units.fs
"""Between structures of a run."""

FRAMES_PER_RUN = 10

FRICTION = 0.02 / units.fs
"""Strong, so that the temperature is reached soon."""

STUDENT_INNER = 4
"""Inner steps in an outer step of runs with a student."""

SAME = 0.03
"""In Å: structures whose atoms differ by less (RMS) are taken for duplicates."""


def extend(
    frames: Sequence[ase.Atoms],
    teacher: Teacher,
    store: LabelStore,
    options: Mapping[str, Any],
) -> List[ase.Atoms]:
    """Run from some of the structures, and label what is met on the way.

    Runs that were finished before are not repeated. A run that fails gives what it
    had seen until then.

    :param frames: structures to start from.
    :param teacher: the teacher, which moves the atoms and labels.
    :param store: where labelled structures are kept.
    :param options: see :class:`dualforce.training.options.ExtendHypers`.
    :return: labelled structures, without near-duplicates.
    :raises ValueError: if an option makes no sense.
    """
    n_frames = int(options["frames"])
    if n_frames < 1:
        return []
    temperatures = list(options["temperatures"])
    if not temperatures:
        raise ValueError("`extend: temperatures` is empty; give at least one, in K")
    check_positive(timestep=options["timestep"])
    known = list(frames)
    chosen: List[ase.Atoms] = []
    propagator = _propagator(teacher, options)
    n_runs = max(len(temperatures), -(-n_frames // FRAMES_PER_RUN))
    with tqdm(total=n_frames, desc="runs", unit=" frames", disable=None) as bar:
        for number in range(3 * n_runs):  # more than enough unless all are duplicates
            if len(chosen) >= n_frames:
                break
            temperature = float(temperatures[number % len(temperatures)])
            start = frames[_spread(number, len(frames))]
            name = _name(start, temperature, number, options)
            if not _finished(store, name):
                steps = _steps(start, *propagator, temperature, number, options)
                _label(list(steps), teacher, store, name)
            for atoms in _finished(store, name):
                if len(chosen) < n_frames and not _is_known(atoms, known):
                    known.append(atoms)
                    chosen.append(atoms)
                    bar.update()
    if len(chosen) < n_frames:
        logging.warning(
            f"{len(chosen)} new structures of the {n_frames} asked for were found; the "
            "others are like those that are there, or runs failed"
        )
    return chosen


def _propagator(
    teacher: Teacher, options: Mapping[str, Any]
) -> Tuple[ForceSource, int]:
    """Forces that the atoms follow, and their number of inner steps."""
    if options.get("student"):
        return load_forces(options["student"]), STUDENT_INNER
    return teacher.forces, 1


def _spread(number: int, n_frames: int) -> int:
    """Starts that are spread over all frames, however few runs there are."""
    return int(number * 0.6180339887 % 1.0 * n_frames)


def _name(
    start: ase.Atoms, temperature: float, number: int, options: Mapping[str, Any]
) -> str:
    content = f"{start.positions.tobytes()!r} {options}"
    code = hashlib.sha256(content.encode()).hexdigest()[:8]
    return f"run {number} at {temperature:g} K ({code})"


def _finished(store: LabelStore, name: str) -> List[ase.Atoms]:
    return [a for a in store.frames.values() if a.info.get(ORIGIN) == name]


def _steps(
    start: ase.Atoms,
    forces: ForceSource,
    n_inner: int,
    temperature: float,
    seed: int,
    options: Mapping[str, Any],
) -> Iterator[ase.Atoms]:
    """Structures along one run; fewer if it fails."""
    atoms, rng = start.copy(), np.random.default_rng(seed)
    atoms.calc = None
    set_thermal_momenta(atoms, temperature, rng)
    timestep = float(options["timestep"]) * units.fs
    every = max(1, round(INTERVAL / (n_inner * timestep)))
    with tempfile.TemporaryDirectory() as folder:
        run = RespaLangevin(
            atoms,
            timestep,
            forces,
            n_inner,
            temperature_K=temperature,
            friction=FRICTION,
            rng=rng,
            guard=Guard(factor=float("inf"), max_drift=1.0),
            last_good=Path(folder) / "last-good.extxyz",
        )
        for _ in range(FRAMES_PER_RUN):
            try:
                run.run(every)
            except RunFailedError as error:
                logging.warning(f"A run at {temperature:g} K ended early: {error}")
                return
            yield run.atoms.copy()


def _label(
    found: Sequence[ase.Atoms], teacher: Teacher, store: LabelStore, name: str
) -> None:
    labelled = []
    for atoms in found:
        try:
            labelled.append((atoms, label_one(atoms, teacher)))
        except Exception as error:  # calculators raise whatever they like
            logging.warning(f"The teacher fails on a structure of {name}: {error}")
    # All at once: a run of which a part is stored would count as finished.
    for atoms, label in labelled:
        store.add(atoms, label, origin=name)


def _is_known(atoms: ase.Atoms, known: Sequence[ase.Atoms]) -> bool:
    return any(_distance(atoms, other) < SAME for other in known)


def _distance(first: ase.Atoms, second: ase.Atoms) -> float:
    """RMS displacement between structures that are the same atoms, in Å."""
    if not np.array_equal(first.numbers, second.numbers):
        return float("inf")
    if not np.allclose(first.cell.array, second.cell.array, atol=SAME):
        return float("inf")
    shift: Array = first.positions - second.positions
    if first.pbc.any():
        inverse = np.linalg.pinv(first.cell.array)
        images = np.round(shift @ inverse) * first.pbc
        shift = shift - images @ first.cell.array
    shift = shift - shift.mean(0)
    return float(np.sqrt((shift**2).sum(1).mean()))
