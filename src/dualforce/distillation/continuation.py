"""A pair that learns from structures its runs have collected."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import ase
import ase.io
import numpy as np
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.singlepoint import SinglePointCalculator

from ..forces import ForceSource, is_pair_folder, load_forces
from ..md.thermostats import check_positive
from .acceleration import (
    DESCRIPTION,
    PARTS,
    Progress,
    Work,
    check_at,
    lock,
    read_json,
    read_structures,
    write_json,
)
from .labelling import label_of, label_one
from .plan import CHECKING, Plan, plan_from
from .results import (
    COLLECTED,
    STRUCTURE,
    Acceleration,
    AccelerationError,
    RoundResult,
)
from .sampling import is_known
from .student import STRUCTURES, STUDENT, write_structures
from .teacher import Teacher, load_teacher


SOURCES = "sources"
"""What a continuation learns from."""

SAME_ENERGY, SAME_FORCE = 1e-3, 5e-3
"""Labels that differ from those of the teacher by more, in eV/atom and (RMS) eV/Å, are
not its own. Single precision makes a hundredth of that."""


def continue_acceleration(
    folder: Union[str, Path],
    collected: Sequence[Union[str, Path]] = (),
    *,
    minutes: Optional[float] = None,
    device: Optional[str] = None,
    progress: Progress = lambda part, share, left: None,
) -> Acceleration:
    """Let the pair in a folder of :func:`~dualforce.accelerate` learn from structures
    that its runs have collected (:func:`~dualforce.run_md` with ``collect``).

    The student goes on from its weights, with all structures it has learnt from and the
    new ones, in one more round; :func:`~dualforce.tune` finds the inner steps anew.
    Teacher, temperatures, tolerance and seed are those of the folder. Until all is done
    the old pair stays. Killed, the same call goes on where it was.

    :param folder: the folder, finished.
    :param collected: files with structures and labels of the teacher: energy (eV),
        forces (eV/Å) and, if there is one, stress (eV/Å^3). None to go on with what was
        begun.
    :param minutes: wall time of training and checks; by default that of the last
        training and the checks before.
    :param device: torch device of metatomic models.
    :param progress: told how far it is.
    :raises AccelerationError: if the new pair is of no use (the old one stays), the
        training fails, or another process works in the folder.
    :raises FileNotFoundError: if a file does not exist.
    :raises ValueError: if the folder is none of `accelerate` or not finished, or
        structures or labels are unusable, or not those of the teacher.
    """
    folder = Path(folder)
    description, parts = _finished(folder)
    if minutes is not None:
        check_positive(minutes=minutes)
    files = {str(path): read_structures(path) for path in collected}
    progress("loading the teacher", 0.0, float("nan"))
    teacher = load_teacher(description["teacher"], folder / "labels", device)
    start = ase.io.read(folder / STRUCTURE)
    assert isinstance(start, ase.Atoms)
    with lock(folder):
        work = _Continuation(folder, teacher, [start], description, progress)
        frames = [
            atoms
            for path, found in files.items()
            for atoms in _labelled(found, path, work.student, teacher)
        ]
        if work.has_begun or any(not is_known(a, work.known) for a in frames):
            work.begin(frames, _digests(collected))
            return work.go_on(_with_time(plan_from(parts["plan"]), minutes))
        if not files:
            raise ValueError(
                f"there is nothing to go on with in {folder}: give structures that "
                "`dualforce md --collect` has collected"
            )
        logging.info(
            f"none of the {len(frames)} structures is new: the student has learnt from "
            "them, or from nearly the same ones"
        )
        return Work(folder, teacher, [start], description, progress).run()


class _Continuation(Work):
    """One more round. Its parts are kept in the folder of the round, and become those
    of the whole when all are done."""

    def __init__(self, folder: Path, *args: Any) -> None:
        super().__init__(folder, *args)
        self.number = self.n_rounds + 1
        self.known = self.learnt(self.number - 1)
        self.student = load_forces(self.round_folder(self.number - 1) / STUDENT)
        self.own = self.round_folder(self.number)
        self.parts_file = self.own / PARTS
        self.has_begun = self.parts_file.exists()

    def begin(self, frames: Sequence[ase.Atoms], sources: List[str]) -> None:
        """Keep what is to be learnt from, or see that it is what was kept.

        :param frames: structures with labels.
        :param sources: digests of their files; none to take what was kept.
        :raises ValueError: if another continuation was begun and not finished.
        """
        if not self.has_begun:
            self.own.mkdir(exist_ok=True)
            new: List[ase.Atoms] = []
            for atoms in frames:
                if not is_known(atoms, [*self.known, *new]):
                    new.append(atoms)
            write_structures(self.own / STRUCTURES, [*self.known, *new])
            kept = {k: v for k, v in self.parts.items() if not k.startswith("check")}
            write_json(self.parts_file, {**kept, SOURCES: sources})
        self.parts = read_json(self.parts_file) or {}
        if sources and sources != self.parts[SOURCES]:
            raise ValueError(
                f"{self.folder} has begun to learn from other structures: leave out "
                f"the files to finish that, or remove {self.own} to begin anew"
            )

    def go_on(self, plan: Plan) -> Acceleration:
        """Do what is not done; the old pair stays unless the new one is of use."""
        self.part(f"round {self.number}", lambda: self._learn(plan))
        result = self.result(plan)
        if result.n_inner is None:
            self._forget_undecided(result)
            raise AccelerationError(_why_not(result, self.own))
        parts = {k: v for k, v in self.parts.items() if k != SOURCES}
        write_json(self.folder / PARTS, parts)
        self.finish(result)
        return result

    def _learn(self, plan: Plan) -> RoundResult:
        everything = self.learnt(self.number)
        new = everything[len(self.known) :]
        correction, forces = _correction(self.student, new)
        self.train(self.number, everything, plan.rounds[-1].minutes)
        return RoundResult(
            frames=len(everything),
            new=len(new),
            calls=0,
            correction={COLLECTED: correction},
            forces={COLLECTED: forces},
            follows=False,
        )

    def _forget_undecided(self, result: Acceleration) -> None:
        """With more time they may be decided."""
        for check in result.checks:
            if not check.decided:
                del self.parts[check_at(check.temperature)]
        write_json(self.parts_file, self.parts)


def _finished(folder: Path) -> Tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What a folder was begun with, and what has been found."""
    description = read_json(folder / DESCRIPTION) if folder.is_dir() else None
    if description is None:
        raise ValueError(
            f"{folder} is no folder of `dualforce accelerate`: give one that it has "
            "finished"
        )
    if not is_pair_folder(folder):
        raise ValueError(
            f"there is no pair in {folder}: finish `dualforce accelerate` with the "
            "arguments it was begun with; then it can be continued"
        )
    return description, read_json(folder / PARTS) or {}


def _with_time(plan: Plan, minutes: Optional[float]) -> Plan:
    """The plan, whose last round has the time for the training."""
    if minutes is None:
        return plan
    n_checks = len(plan.temperatures) - 1
    checks = min(n_checks * plan.check_minutes, CHECKING[1] * minutes)
    last = replace(plan.rounds[-1], minutes=minutes - checks)
    return replace(
        plan, rounds=[*plan.rounds[:-1], last], check_minutes=checks / n_checks
    )


def _digests(paths: Sequence[Union[str, Path]]) -> List[str]:
    return sorted(hashlib.sha256(Path(p).read_bytes()).hexdigest() for p in paths)


def _labelled(
    frames: Sequence[ase.Atoms], path: str, student: ForceSource, teacher: Teacher
) -> List[ase.Atoms]:
    """Structures of a file with labels of the teacher, and nothing else.

    :raises ValueError: naming the first frame that cannot be used.
    """
    labelled = []
    for index, atoms in enumerate(frames):
        where = f"file '{path}', frame {index} (counted from 0)"
        try:
            student.check_elements(atoms)
        except ValueError as error:
            raise ValueError(
                f"{where}: the student {error}; remove such frames, or accelerate the "
                "teacher anew with structures that contain them"
            ) from error
        labelled.append(_with_label(atoms, where))
    for index in sorted({0, len(labelled) - 1}):
        where = f"file '{path}', frame {index} (counted from 0)"
        _check_label(labelled[index], teacher, where)
    return labelled


def _with_label(atoms: ase.Atoms, where: str) -> ase.Atoms:
    results: Dict[str, Any] = {}
    try:
        results["energy"] = atoms.get_potential_energy()
        results["forces"] = atoms.get_forces(apply_constraint=False)
    except (RuntimeError, PropertyNotImplementedError) as error:
        raise ValueError(
            f"{where} has no energy or no forces: give structures that `dualforce md "
            "--collect` has collected"
        ) from error
    if atoms.calc is not None and "stress" in atoms.calc.results:
        results["stress"] = atoms.calc.results["stress"]
    if not all(np.isfinite(value).all() for value in results.values()):
        raise ValueError(f"{where}: a label is not finite; remove the frame")
    plain = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    plain.calc = SinglePointCalculator(plain, **results)
    return plain


def _check_label(atoms: ase.Atoms, teacher: Teacher, where: str) -> None:
    """See that a label is the teacher's."""
    given, own = label_of(atoms), label_one(atoms, teacher)
    energy = abs(given.energy - own.energy) / len(atoms)
    force = _rms(given.forces - own.forces)
    if energy > SAME_ENERGY or force > SAME_FORCE:
        raise ValueError(
            f"{where}: its labels are those of another model than the teacher "
            f"{teacher.name}: energy {given.energy:.4f} eV, the teacher says "
            f"{own.energy:.4f} eV; forces differ by {1000.0 * force:.0f} meV/Å (RMS). "
            "Give structures that runs of this pair have collected"
        )


def _correction(
    student: ForceSource, frames: Sequence[ase.Atoms]
) -> Tuple[float, float]:
    """RMS of conservative minus direct force and of the former alone, in eV/Å."""
    labels = np.concatenate([label_of(atoms).forces for atoms in frames])
    direct = np.concatenate([student.direct(atoms).forces for atoms in frames])
    return _rms(labels - direct), _rms(labels)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _why_not(result: Acceleration, own: Path) -> str:
    advice = " ".join(f"At {c.temperature:g} K: {c.advice}" for c in result.checks)
    remedy = (
        f"Remove {own} to try with other structures or more --minutes"
        if result.has_failed
        else "Give more --minutes: the same command tries that again"
    )
    return (
        "the student that has learnt from the collected structures cannot be used: no "
        f"M above 1 was found at any temperature. {advice} {remedy}. The pair in "
        f"{result.folder} is as it was"
    )
