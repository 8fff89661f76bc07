"""More structures for a teacher to label, from short runs."""

import hashlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, List, NamedTuple, Optional

import ase
import numpy as np
from ase import units
from tqdm import tqdm

from ..forces import Array, ForceSource, load_forces
from ..md import RunFailedError
from ..md.guard import Guard
from ..md.preparation import set_thermal_momenta
from ..md.thermostats import RespaLangevin, check_positive
from .labelling import CORRECTION, Label, LabelStore, as_label, label_one
from .teacher import Teacher


INTERVAL = 20.0
"""Between structures of a run, in fs."""

FRAMES_PER_RUN = 10

FRICTION = 0.02 / units.fs
"""Strong, so that the temperature is reached soon."""

STUDENT_INNER = 4
"""Inner steps in an outer step of runs with a student."""

HEATING = 3.0
"""A run of a pair ends where the conserved quantity has changed by this multiple of
:math:`k_B T` per atom: the correction drives it, by outer steps that are too long for
it, to structures that no heat explains."""

MAX_DRIFT = 1.0
"""In eV/atom, for any run."""

SAME = 0.03
"""In Å: structures whose atoms differ by less (RMS) are taken for duplicates."""


@dataclass(frozen=True)
class Mover:
    """What moves the atoms in short runs."""

    forces: ForceSource
    timestep: float
    """Inner step, in fs."""
    n_inner: int = 1
    is_teacher: bool = True
    """Whether its conservative forces are those of the teacher, and so labels."""
    interval: float = INTERVAL
    """Between structures, in fs."""

    @property
    def outer_steps(self) -> int:
        """Outer steps between structures."""
        return max(1, round(self.interval / (self.n_inner * self.timestep)))

    @property
    def calls_per_frame(self) -> int:
        """Evaluations of the conservative force for a structure of a run."""
        return self.outer_steps + (not self.is_teacher)

    def max_drift(self, temperature: float) -> float:
        """Change of the conserved quantity at which a run ends, in eV/atom.

        :param temperature: in K.
        """
        if self.n_inner == 1:
            return MAX_DRIFT
        return min(MAX_DRIFT, HEATING * units.kB * temperature)


class Visited(NamedTuple):
    """A structure of a short run."""

    atoms: ase.Atoms
    label: Optional[Label]
    """None where the teacher has not been evaluated yet."""
    correction: Optional[float]
    """RMS of conservative minus direct force, in eV/Å; none for one inner step."""


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
    mover = _mover(teacher, options)
    known = list(frames)
    chosen: List[ase.Atoms] = []
    n_runs = max(len(temperatures), -(-n_frames // FRAMES_PER_RUN))
    with tqdm(total=n_frames, desc="runs", unit=" frames", disable=None) as bar:
        for number in range(3 * n_runs):  # more than enough unless all are duplicates
            if len(chosen) >= n_frames:
                break
            temperature = float(temperatures[number % len(temperatures)])
            start = frames[spread(number, len(frames))]
            name = _name(start, temperature, number, options)
            for atoms in short_run(
                start, mover, teacher, store, name, temperature, number
            ):
                if len(chosen) < n_frames and not is_known(atoms, known):
                    known.append(atoms)
                    chosen.append(atoms)
                    bar.update()
    if len(chosen) < n_frames:
        logging.warning(
            f"{len(chosen)} new structures of the {n_frames} asked for were found; the "
            "others are like those that are there, or runs failed"
        )
    return chosen


def _mover(teacher: Teacher, options: Mapping[str, Any]) -> Mover:
    """Forces that the atoms follow, and their number of inner steps."""
    timestep = float(options["timestep"])
    if options.get("student"):
        forces = load_forces(options["student"])
        return Mover(forces, timestep, STUDENT_INNER, is_teacher=False)
    return Mover(teacher.forces, timestep)


def spread(number: int, n_frames: int) -> int:
    """Starts that are spread over all frames, however few runs there are."""
    return int(number * 0.6180339887 % 1.0 * n_frames)


def _name(
    start: ase.Atoms, temperature: float, number: int, options: Mapping[str, Any]
) -> str:
    content = f"{start.positions.tobytes()!r} {options}"
    code = hashlib.sha256(content.encode()).hexdigest()[:8]
    return f"run {number} at {temperature:g} K ({code})"


def short_run(
    start: ase.Atoms,
    mover: Mover,
    teacher: Teacher,
    store: LabelStore,
    name: str,
    temperature: float,
    seed: int,
) -> List[ase.Atoms]:
    """Labelled structures along a run; fewer if it fails.

    :param start: structure to start from.
    :param mover: what moves the atoms.
    :param teacher: what labels, where the mover does not.
    :param store: where labelled structures are kept. A run that is there is not made
        again.
    :param name: of the run in the store.
    :param temperature: in K.
    :param seed: of velocities and noise.
    """
    found = store.of_origin(name)
    if found:
        return found
    # Neighbour lists that are left from other runs decide about the last bits.
    mover.forces.reset()
    visited = list(_visit(start, mover, teacher, temperature, seed))
    _label(visited, teacher, store, name)
    return store.of_origin(name)


def _visit(
    start: ase.Atoms,
    mover: Mover,
    teacher: Teacher,
    temperature: float,
    seed: int,
) -> Iterator[Visited]:
    atoms, rng = start.copy(), np.random.default_rng(seed)
    atoms.calc = None
    set_thermal_momenta(atoms, temperature, rng)
    with tempfile.TemporaryDirectory() as folder:
        run = RespaLangevin(
            atoms,
            mover.timestep * units.fs,
            mover.forces,
            mover.n_inner,
            temperature_K=temperature,
            friction=FRICTION,
            rng=rng,
            guard=Guard(factor=float("inf"), max_drift=mover.max_drift(temperature)),
            last_good=Path(folder) / "last-good.extxyz",
        )
        run.needs_stress = teacher.labels_stress_of(atoms)
        for _ in range(FRAMES_PER_RUN):
            try:
                run.run(mover.outer_steps)
            except RunFailedError as error:
                # With a student that still learns they are many.
                level = logging.WARNING if mover.n_inner == 1 else logging.DEBUG
                logging.log(level, f"A run at {temperature:g} K ended early: {error}")
                return
            point = run.point
            label = as_label(point.conservative) if mover.is_teacher else None
            yield Visited(run.atoms.copy(), label, point.correction)


def _label(
    visited: Sequence[Visited], teacher: Teacher, store: LabelStore, name: str
) -> None:
    labelled = []
    for each in visited:
        try:
            label = each.label or label_one(each.atoms, teacher)
        except Exception as error:  # calculators raise whatever they like
            logging.warning(f"The teacher fails on a structure of {name}: {error}")
            continue
        info = {} if each.correction is None else {CORRECTION: each.correction}
        labelled.append((each.atoms, label, info))
    if labelled:
        store.add_run(labelled, name)


def is_known(atoms: ase.Atoms, known: Sequence[ase.Atoms]) -> bool:
    """Whether a structure is nearly the same as one of those that are known."""
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
