"""From a model to a pair that runs faster, in one folder: :func:`accelerate`."""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Optional, TypeVar, Union

import ase
import ase.io
import numpy as np
from ase import units

from ..engines import ModelReference
from ..engines.tuned import remember
from ..forces import (
    CombinedForces,
    EvaluationError,
    ForceSource,
    Pair,
    load_forces,
    portable_name,
)
from ..md import RunFailedError
from ..md.acceptance import TOLERANCE
from ..md.structures import check_structure
from ..md.thermostats import check_positive
from ..md.timesteps import propose_timesteps
from ..md.tuning import Tuning, tune
from ..md.tuning_report import advice, write
from ..writing import replacing
from .exploration import Exploration, explore
from .labelling import FILE, LabelStore, label_frames, label_one
from .plan import (
    EXPLORING_INNER,
    SPACING,
    Plan,
    Round,
    make_plan,
    plan_from,
    student_options,
)
from .results import (
    FOLLOWS,
    STRUCTURE,
    Acceleration,
    AccelerationError,
    Check,
    RoundResult,
    write_report,
)
from .sampling import Mover, spread
from .student import CHECKPOINT, STRUCTURES, STUDENT, train_student, write_structures
from .teacher import Teacher, load_teacher


DESCRIPTION, PARTS, COMBINED = "accelerate.json", "parts.json", "combined.pt"

THERMAL = 0.05
"""Displacement of warm atoms in each coordinate, in Å, about."""

USER_SHARE = 0.25
"""Of the first evaluations of the teacher, for the structures of the user."""

Progress = Callable[[str, float, float], None]
"""Receives what is being done, the share of it that is done, and the seconds it still
takes, as far as is known (else NaN)."""

T = TypeVar("T")


def accelerate(
    teacher: str,
    structures: Union[str, Path],
    output: Union[str, Path],
    *,
    temperatures: Sequence[float] = (300.0,),
    minutes: float = 60.0,
    rounds: int = 3,
    epochs: Optional[int] = None,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    device: Optional[str] = None,
    progress: Progress = lambda part, share, left: None,
) -> Acceleration:
    """Make a model faster: teach a small network its forces, and see how many inner
    steps the two tolerate together.

    The teacher moves the atoms in short runs at the temperatures and half again above;
    a student learns the forces. In further rounds the pair moves them, by multiple time
    stepping; the outer points of these runs carry the teacher's forces, and the student
    learns from what it has met. It ends when the correction is small at every
    temperature, or with the time. :func:`~dualforce.tune` then finds the inner steps.

    All of it is kept in a folder. Killed, the same call goes on where it was.

    :param teacher: an exported model, a checkpoint of metatrain, ``module:callable``
        for a calculator of ASE, the name of a package's model, or a sum of these
        (``gfn2-xtb+model.pt``).
    :param structures: file of structures, in any format of ASE; they need no labels.
    :param output: the folder; :func:`~dualforce.load_forces` loads it.
    :param temperatures: at which the pair is to run, in K.
    :param minutes: wall time of everything.
    :param rounds: of sampling and training; one is without runs of the pair.
    :param epochs: train for so many epochs in each round, whatever the clock says: the
        student is then the same each time.
    :param tolerance: accepted difference in drift from the teacher alone, in
        meV/atom/ps.
    :param seed: of everything random.
    :param device: torch device of metatomic models.
    :param progress: told how far it is.
    :raises FileExistsError: if the folder holds something else.
    :raises AccelerationError: if the pair is not faster at any temperature, a training
        fails, or another process works in the folder.
    :raises ValueError: if an argument, a structure or the teacher is unusable, or the
        folder was begun with other arguments.
    """
    _check_arguments(temperatures, minutes, tolerance, rounds)
    frames = read_structures(structures)
    folder = Path(output)
    description: Dict[str, Any] = {
        "teacher": portable_name(teacher),
        "structures_sha256": hashlib.sha256(Path(structures).read_bytes()).hexdigest(),
        "temperatures_K": [float(t) for t in temperatures],
        "minutes": float(minutes),
        "rounds": rounds,
        "epochs": epochs,
        "tolerance_meV_per_atom_per_ps": float(tolerance),
        "seed": seed,
    }
    # Before anything is written: a teacher that is not there leaves no folder.
    progress("loading the teacher", 0.0, float("nan"))
    source = load_teacher(description["teacher"], folder / "labels", device)
    source.check_elements(frames, f"file '{structures}'")
    if not source.forces.has_energy:
        raise ValueError(
            f"{teacher} computes no energy, which the pair is to conserve: take "
            "another teacher"
        )
    _take(folder, description)
    with lock(folder):
        return Work(folder, source, frames, description, progress).run()


class Work:
    """All parts of an acceleration, each done once and kept."""

    def __init__(
        self,
        folder: Path,
        teacher: Teacher,
        frames: List[ase.Atoms],
        description: Mapping[str, Any],
        progress: Progress,
    ) -> None:
        self.folder, self.teacher, self.frames = folder, teacher, frames
        self.description, self.progress = description, progress
        self.temperatures: List[float] = description["temperatures_K"]
        self.seed = int(description["seed"])
        self.labels = folder / "labels" / f"labels-{teacher.hash}.extxyz"
        self.parts_file = folder / PARTS
        self.parts: Dict[str, Any] = read_json(self.parts_file) or {}

    def run(self) -> Acceleration:
        """Do what is not done."""
        result = self.result(plan_from(self.part("plan", self._plan)))
        self.finish(result)
        return result

    def result(self, plan: Plan) -> Acceleration:
        """What rounds and checks have given, now or earlier."""
        rounds = self.rounds(plan)
        checks = [
            Check(**self.part(check_at(t), partial(self._check, plan, t)))
            for t in self.temperatures
        ]
        return Acceleration(
            self.folder, self.description["teacher"], plan, rounds, checks
        )

    def part(self, name: str, make: Callable[[], Any]) -> Any:
        """What a part has given, as JSON has it, now or earlier."""
        if name not in self.parts:
            found = make()
            self.parts[name] = asdict(found)
            write_json(self.parts_file, self.parts)
        return self.parts[name]

    # ------------------------------------------------------------------------ parts

    def _plan(self) -> Plan:
        """Measure the teacher on the largest structure, and divide the time."""
        self.progress("timing the teacher", 0.0, float("nan"))
        largest = max(self.frames, key=len)
        seconds = _seconds_of(self.teacher, largest)
        return make_plan(
            self.frames,
            self.temperatures,
            self.description["minutes"],
            self.description["rounds"],
            seconds,
        )

    def rounds(self, plan: Plan) -> List[RoundResult]:
        """Those of the plan, and those that have continued it."""
        results: List[RoundResult] = []
        for number, planned in enumerate(plan.rounds, 1):
            make = partial(self._round, plan, number, planned)
            part = self.part(f"round {number}", make)
            results.append(RoundResult(**part))
            if results[-1].follows:
                break
        while f"round {len(results) + 1}" in self.parts:
            results.append(RoundResult(**self.parts[f"round {len(results) + 1}"]))
        return results

    def _round(self, plan: Plan, number: int, planned: Round) -> RoundResult:
        """Collect structures, and train on all there are."""
        # From the file, as after an interrupt: positions in it are rounded.
        store = LabelStore(self.labels)
        learnt = self.learnt(number - 1)
        calls = planned.calls
        if number == 1:
            calls -= self._label_own(store, int(USER_SHARE * calls))
            learnt = store.of_origin(FILE)
        met = self._explore(plan, number, calls, planned.frames, learnt, store)
        follows = number > 1 and _follows(met)
        minutes = planned.minutes
        if follows:
            minutes = sum(each.minutes for each in plan.rounds[number - 1 :])
        everything = [*learnt, *met.frames]
        self.train(number, everything, minutes)
        return RoundResult(
            frames=len(everything),
            new=len(met.frames),
            calls=met.calls + (planned.calls - calls),
            correction=met.correction,
            forces=met.forces,
            follows=follows,
        )

    def train(self, number: int, frames: List[ase.Atoms], minutes: float) -> None:
        """Train the student of a round, from that of the round before."""
        folder, seconds = self.round_folder(number), 60.0 * minutes
        folder.mkdir(exist_ok=True)
        write_structures(folder / STRUCTURES, frames)
        last = self.round_folder(number - 1) / CHECKPOINT
        options = student_options(
            STRUCTURES,
            frames,
            self.description["teacher"],
            minutes,
            epochs=self.description["epochs"],
            last=str(last.absolute()) if number > 1 else None,
            seed=self.seed,
        )
        train_student(
            folder,
            options,
            lambda t: self.progress(
                f"round {number}: training on {len(frames)} structures",
                min(1.0, t / seconds),
                max(0.0, seconds - t),
            ),
        )

    def _explore(
        self,
        plan: Plan,
        number: int,
        calls: int,
        frames: int,
        known: List[ase.Atoms],
        store: LabelStore,
    ) -> Exploration:
        if number == 1:
            mover = Mover(self.teacher.forces, plan.timestep, interval=SPACING)
            doing = "runs with the teacher"
        else:
            pair = CombinedForces(
                self.teacher.forces,
                load_forces(self.round_folder(number - 1) / STUDENT),
            )
            mover = Mover(pair, plan.timestep, EXPLORING_INNER, interval=SPACING)
            pair.warm_up(known[0], self.teacher.labels_stress_of(known[0]))
            doing = f"runs with the pair, M = {EXPLORING_INNER}"
        part = f"round {number}: {doing}"
        self.progress(part, 0.0, calls * plan.teacher_seconds)
        return explore(
            self.teacher,
            mover,
            known,
            known,
            store,
            title=f"round {number}",
            temperatures=plan.temperatures,
            calls=calls,
            frames=frames,
            seed=self.seed + number,
            report=_with_time_left(lambda s, left: self.progress(part, s, left)),
        )

    def _label_own(self, store: LabelStore, calls: int) -> int:
        """Label structures of the user, spread over the file.

        :return: how many.
        """
        chosen = self._chosen(max(1, calls))
        self.progress(f"labels of {len(chosen)} structures", 0.0, float("nan"))
        label_frames(chosen, self.teacher, store, "the structures")
        return len(chosen)

    def _chosen(self, number: int) -> List[ase.Atoms]:
        n_frames = len(self.frames)
        if n_frames <= number:
            return self.frames
        indices = sorted({spread(i, n_frames) for i in range(number)})
        return [self.frames[i] for i in indices]

    def learnt(self, number: int) -> List[ase.Atoms]:
        """Structures that the student of a round has learnt from."""
        path = self.round_folder(number) / STRUCTURES
        return list(ase.io.iread(path, ":")) if number > 0 else []

    def round_folder(self, number: int) -> Path:
        """Where the student of a round is."""
        return self.folder / f"round-{number}"

    @property
    def _last(self) -> Path:
        """Folder of the last student."""
        return self.round_folder(self.n_rounds)

    @property
    def n_rounds(self) -> int:
        """Rounds that are done."""
        return sum("round" in name for name in self.parts)

    def _pair(self) -> ForceSource:
        return CombinedForces(self.teacher.forces, load_forces(self._last / STUDENT))

    def _check(self, plan: Plan, temperature: float) -> Check:
        """Find timestep and inner steps at a temperature."""
        seconds, atoms = 60.0 * plan.check_minutes, self.frames[0]
        tolerance = self.description["tolerance_meV_per_atom_per_ps"]
        part = f"inner steps at {temperature:g} K"

        def report(task: str, share: float) -> None:
            left = max(0.0, (1.0 - share) * seconds)
            self.progress(f"{part}: {task}", min(1.0, share), left)

        try:
            result = tune(
                self._pair(),
                atoms,
                timestep=[step * units.fs for step in propose_timesteps(atoms)],
                temperature_K=temperature,
                tolerance=tolerance,
                seconds=seconds,
                seed=self.seed,
                progress=report,
            )
        except (RunFailedError, FloatingPointError, EvaluationError) as error:
            return Check(
                temperature, plan.timestep, None, None, None, None, str(error), True
            )
        settings: Dict[str, object] = {"temperature_K": temperature}
        write(result, self.folder / f"tune-{temperature:g}K", settings)
        return _as_check(result, temperature, tolerance)

    # ------------------------------------------------------------------------ result

    def finish(self, result: Acceleration) -> None:
        """Write report and pair, unless it is of no use."""
        write_report(result)
        if result.has_failed:
            (self.folder / "pair.json").unlink(missing_ok=True)
            raise AccelerationError(_why_not(result))
        has_file = (self._last / COMBINED).exists()
        for name in (STUDENT, CHECKPOINT, *([COMBINED] if has_file else [])):
            _replace(self._last / name, self.folder / name)
        ase.io.write(self.folder / STRUCTURE, self.frames[0], format="extxyz")
        pair = Pair(
            COMBINED if has_file else self.description["teacher"],
            None if has_file else STUDENT,
            STRUCTURE,
            result.temperature or max(self.temperatures),
        )
        pair.write(self.folder)
        if result.n_inner is None or result.temperature is None:
            return
        remember(
            ModelReference(str(self.folder)).of_folder(),
            result.n_inner,
            timestep=result.timestep,
            temperature=result.temperature,
            hydrogen_mass=None,
            correction=result.correction,
        )


# ------------------------------------------------------------------- what is checked


def _check_arguments(
    temperatures: Sequence[float], minutes: float, tolerance: float, rounds: int
) -> None:
    if not temperatures:
        raise ValueError("give at least one temperature, in K")
    for temperature in temperatures:
        check_positive(temperature=temperature)
    check_positive(minutes=minutes, tolerance=tolerance, rounds=rounds)


def read_structures(structures: Union[str, Path]) -> List[ase.Atoms]:
    """Structures of a file, each of which can be run."""
    if not Path(structures).is_file():
        raise FileNotFoundError(f"there is no file '{structures}'")
    try:
        frames = list(ase.io.iread(structures, ":"))
    except Exception as error:  # readers of ASE raise whatever they like
        raise ValueError(
            f"{structures} cannot be read as structures: {error}"
        ) from error
    for index, atoms in enumerate(frames):
        try:
            check_structure(atoms)
        except ValueError as error:
            raise ValueError(
                f"file '{structures}', frame {index} (counted from 0): {error}"
            ) from error
    if not frames:
        raise ValueError(f"file '{structures}' holds no structure")
    return frames


def _take(folder: Path, description: Mapping[str, Any]) -> None:
    """Begin in a folder, or see that it was begun with the same arguments."""
    path = folder / DESCRIPTION
    if not path.exists():
        others = folder.exists() and (
            not folder.is_dir() or any(p.name != "labels" for p in folder.iterdir())
        )
        if others:
            raise FileExistsError(
                f"{folder} exists and is no folder of `dualforce accelerate`: choose "
                "another one with -o"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, description)
        return
    old = read_json(path) or {}
    differences = [
        f"{name} was {old.get(name)}, now {value}"
        for name, value in description.items()
        if old.get(name) != value
    ]
    if differences:
        raise ValueError(
            f"{folder} was begun with other arguments ({'; '.join(differences)}): give "
            "the same ones to go on, or choose another folder with -o"
        )


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep other processes out of the folder. A training that has outlived its parent
    still holds the lock."""
    with (folder / "lock").open("a") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise AccelerationError(
                f"another process works in {folder}, maybe a training that was left "
                "alone: wait until it ends, or end it"
            ) from error
        yield


# ------------------------------------------------------------------------- small parts


def _seconds_of(teacher: Teacher, atoms: ase.Atoms) -> float:
    """Wall time of an evaluation, once the teacher is warm.

    :raises ValueError: if it fails, with its own words.
    """
    moved, seconds, rng = atoms.copy(), [], np.random.default_rng(0)
    try:
        teacher.forces.warm_up(moved)
        for _ in range(3):
            # Warm structures may have more neighbours than an ideal crystal.
            displacements = rng.normal(0.0, THERMAL, atoms.positions.shape)
            moved.positions = atoms.positions + displacements
            begin = time.perf_counter()
            label_one(moved, teacher)
            seconds.append(time.perf_counter() - begin)
    except Exception as error:  # calculators raise whatever they like
        raise ValueError(
            f"the teacher fails on the largest structure: {error}"
        ) from error
    return min(seconds)


def _follows(met: Exploration) -> bool:
    """Whether the student has nothing to learn from what it met."""
    return all(
        met.correction.get(key, float("inf")) <= FOLLOWS * size
        for key, size in met.forces.items()
    )


def _as_check(result: Tuning, temperature: float, tolerance: float) -> Check:
    tested = result.candidates[1:]
    first, best = result.candidates[0], result.best
    return Check(
        temperature,
        result.timestep_fs,
        result.recommended,
        best.known_drift[0] if best else None,
        result.correction,
        result.gain(best) if best else None,
        advice(result, tolerance),
        first.is_bad
        or any(each.is_good for each in tested)
        or (len(tested) > 0 and tested[0].is_bad),
    )


def _why_not(result: Acceleration) -> str:
    """Where the student cannot follow, and what can be done."""
    parts = []
    for check in result.checks:
        size = ""
        if check.correction is not None:
            size = f" (the forces differ by {check.correction:.0f} meV/Å)"
        parts.append(f"at {check.temperature:g} K{size}: {check.advice}")
    return (
        f"the student cannot follow {result.teacher}: no M above 1 conserves energy "
        f"and is faster at any of the temperatures. {' '.join(parts)} Give more "
        "--minutes, more structures, or lower temperatures. No pair was written to "
        f"{result.folder}"
    )


def _with_time_left(report: Callable[[float, float], None]) -> Callable[[float], None]:
    begin = time.perf_counter()

    def report_share(share: float) -> None:
        passed = time.perf_counter() - begin
        report(share, passed * (1.0 - share) / share if share else float("nan"))

    return report_share


def check_at(temperature: float) -> str:
    """Name of the part that finds the inner steps at a temperature, in K."""
    return f"check at {temperature:g} K"


def _replace(source: Path, target: Path) -> None:
    """Copy a file; what runs meanwhile sees the old one or the new one."""
    with replacing(target) as unfinished:
        shutil.copyfile(source, unfinished)


def read_json(path: Path) -> Optional[Dict[str, Any]]:
    """What a file holds, if there is one.

    :raises ValueError: if it is damaged.
    """
    try:
        content: Dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged: remove it to do its parts again"
        ) from error
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file at once or not at all."""
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=2) + "\n")
