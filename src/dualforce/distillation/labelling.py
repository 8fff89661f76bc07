"""Labels from a teacher: computed once, kept in a file, resumed after an interrupt."""

import hashlib
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import ase
import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from tqdm import tqdm

from ..batches import BATCH_ATOMS
from ..forces import Evaluation
from .teacher import Teacher


DIGEST, ORIGIN = "structure_digest", "origin"
FILE = "file"
"""Origin of structures from a file of the user."""

RUN_LENGTH = "frames_of_run"
CORRECTION = "correction"
"""RMS of conservative minus direct force on a structure, in eV/Å."""


@dataclass(frozen=True)
class Label:
    """What a teacher says about a structure."""

    energy: float
    """In eV."""
    forces: np.ndarray
    """In eV/Å, shape ``[n_atoms, 3]``."""
    stress: Optional[np.ndarray] = None
    """In eV/Å^3, shape ``[3, 3]``; none without a volume."""


@dataclass
class Labelling:
    """Labels of some structures, in their order."""

    labels: List[Optional[Label]]
    """None where the teacher failed."""
    failures: List[Tuple[int, str]] = field(default_factory=list)
    """Frames it failed on, and why."""


def digest(atoms: ase.Atoms) -> str:
    """Equal for structures that are bitwise identical, and for no others."""
    content = hashlib.sha256()
    for array in (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc):
        content.update(np.ascontiguousarray(array).tobytes())
    return content.hexdigest()[:24]


class LabelStore:
    """Labelled structures in an extended XYZ file, found by their digest.

    Structures are added at the end, one by one; one that was cut off by an interrupt is
    removed when the file is opened.

    :param path: the file, made when the first structure is added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.frames: Dict[str, ase.Atoms] = {}
        if path.exists():
            _remove_unfinished(path)
        if path.exists() and path.stat().st_size:
            for atoms in ase.io.iread(path, index=":", format="extxyz"):
                self.frames[str(atoms.info[DIGEST])] = atoms

    def __len__(self) -> int:
        return len(self.frames)

    def find(self, atoms: ase.Atoms) -> Optional[Label]:
        """The label of a structure, or none."""
        frame = self.frames.get(digest(atoms))
        return None if frame is None else label_of(frame)

    def add(self, atoms: ase.Atoms, label: Label) -> None:
        """Keep the label of a structure from a file of the user."""
        self._append([with_label(atoms, label, {ORIGIN: FILE})])

    def add_run(
        self, labelled: Sequence[Tuple[ase.Atoms, Label, Dict[str, Any]]], origin: str
    ) -> None:
        """Keep the structures of a run, which :meth:`of_origin` finds if all are there.

        :param labelled: structures, labels, and what else is to be known of them.
        :param origin: name of the run.
        """
        common = {ORIGIN: origin, RUN_LENGTH: len(labelled)}
        self._append(
            [with_label(a, label, common | info) for a, label, info in labelled]
        )

    def of_origin(self, origin: str) -> List[ase.Atoms]:
        """Structures of a run; none if some are missing."""
        found = [a for a in self.frames.values() if a.info.get(ORIGIN) == origin]
        complete = found and len(found) == found[0].info.get(RUN_LENGTH, len(found))
        return found if complete else []

    def _append(self, frames: Sequence[ase.Atoms]) -> None:
        text = io.StringIO()
        for frame in frames:
            ase.io.write(text, frame, format="extxyz")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(text.getvalue())
        self.frames |= {str(frame.info[DIGEST]): frame for frame in frames}


def with_label(atoms: ase.Atoms, label: Label, info: Dict[str, Any]) -> ase.Atoms:
    """A structure with its label, as it is stored."""
    frame = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    frame.info = {DIGEST: digest(atoms), **info}
    stress = None
    if label.stress is not None:
        stress = label.stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    results = {"energy": label.energy, "forces": label.forces, "stress": stress}
    frame.calc = SinglePointCalculator(
        frame, **{k: v for k, v in results.items() if v is not None}
    )
    return frame


def label_of(frame: ase.Atoms) -> Label:
    """The label that a stored structure carries."""
    results = frame.calc.results
    stress = results.get("stress")
    if stress is not None:
        xx, yy, zz, yz, xz, xy = stress
        stress = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    return Label(float(results["energy"]), results["forces"], stress)


def _remove_unfinished(path: Path) -> None:
    """Cut the file after its last whole structure."""
    complete = 0
    with path.open("rb") as file:
        while True:
            lines = [file.readline()]
            if not lines[0].strip().isdigit():
                break
            lines += [file.readline() for _ in range(int(lines[0]) + 1)]
            if not lines[-1].endswith(b"\n"):
                break
            complete = file.tell()
    if complete != path.stat().st_size:
        logging.warning(
            f"{path} ends with an unfinished structure, which will be labelled again"
        )
        with path.open("r+b") as file:
            file.truncate(complete)


def label_one(atoms: ase.Atoms, teacher: Teacher) -> Label:
    """Evaluate the teacher.

    :raises FloatingPointError: if energy or forces are not finite.
    :raises RuntimeError: if the teacher fails.
    """
    return label_together([atoms], teacher)[0]


def label_together(frames: Sequence[ase.Atoms], teacher: Teacher) -> List[Label]:
    """Evaluate the teacher for structures that are periodic alike."""
    stress = teacher.labels_stress_of(frames[0])
    found = teacher.forces.evaluate_batch("conservative", frames, stress)
    return [as_label(result) for result in found]


def as_label(result: Evaluation) -> Label:
    """An evaluation of the teacher as a label.

    :raises FloatingPointError: if the stress is not finite.
    """
    assert result.energy is not None
    if result.stress is not None and not np.isfinite(result.stress).all():
        raise FloatingPointError("the stress is not finite")
    return Label(result.energy, result.forces, result.stress)


def _batches(
    indices: Sequence[int], frames: Sequence[ase.Atoms], teacher: Teacher
) -> Iterator[List[int]]:
    """Frames to evaluate at the same time: with a metatomic model, neighbours in the
    file with the same boundary conditions and not too many atoms."""
    batch: List[int] = []
    for index in indices:
        n_atoms = sum(len(frames[i]) for i in [*batch, index])
        fits = n_atoms <= BATCH_ATOMS and teacher.exported is not None
        if batch and not (fits and (frames[batch[0]].pbc == frames[index].pbc).all()):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def label_frames(
    frames: Sequence[ase.Atoms], teacher: Teacher, store: LabelStore, where: str
) -> Labelling:
    """Label structures; those that have been labelled before are not computed again.

    :param frames: the structures.
    :param teacher: the teacher.
    :param store: where labels are kept.
    :param where: where the structures are from, for messages.
    :raises ValueError: if the teacher does not know an element, or fails on all frames.
    """
    teacher.check_elements(frames, where)
    result = Labelling([store.find(atoms) for atoms in frames])
    missing = [i for i, label in enumerate(result.labels) if label is None]
    logging.info(
        f"{where}: {len(frames) - len(missing)} of {len(frames)} frames are labelled "
        f"in {store.path}, {teacher.name} labels {len(missing)}"
    )
    with tqdm(total=len(missing), desc="labels", unit=" frames", disable=None) as bar:
        for batch in _batches(missing, frames, teacher):
            _label_batch(batch, frames, teacher, store, result)
            bar.update(len(batch))
    _report_failures(result, where)
    return result


def _label_batch(
    batch: List[int],
    frames: Sequence[ase.Atoms],
    teacher: Teacher,
    store: LabelStore,
    result: Labelling,
) -> None:
    try:
        labels = label_together([frames[i] for i in batch], teacher)
    except Exception as error:  # calculators raise whatever they like
        if len(batch) > 1:
            # One by one, to find out which it is.
            for index in batch:
                _label_batch([index], frames, teacher, store, result)
            return
        reason = str(error).strip().splitlines() or [type(error).__name__]
        result.failures.append((batch[0], reason[-1]))
        return
    for index, label in zip(batch, labels, strict=True):
        store.add(frames[index], label)
        result.labels[index] = label


def _report_failures(result: Labelling, where: str) -> None:
    if not result.failures:
        return
    listed = "; ".join(f"frame {i}: {reason}" for i, reason in result.failures[:5])
    if len(result.failures) > 5:
        numbers = ", ".join(str(i) for i, _ in result.failures[5:])
        listed += f"; and frames {numbers}"
    if len(result.failures) == len(result.labels):
        raise ValueError(f"{where}: the teacher fails on every frame ({listed})")
    logging.warning(
        f"{where}: the teacher fails on {len(result.failures)} of {len(result.labels)} "
        f"frames, which are left out ({listed})"
    )
