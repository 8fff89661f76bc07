"""Trainings that learn direct forces from a teacher, within ``mtt train``.

Two functions of metatrain are replaced while this architecture trains with the option
``teacher``: the one that checks options, which tells the teacher, and the one that
makes data sets, which then get the teacher's labels. At the end of such a training the
student is combined with its teacher, and the pair is tried.
"""

import logging
from pathlib import Path
from typing import Any, Dict, Optional

import ase
import metatrain.cli.train as cli_train
from ase import units
from metatrain.utils.distributed.logging import is_main_process

from ..architecture.data import Frame
from ..architecture.model import NAME
from ..architecture.trainer import Trainer
from ..dynamics import HybridForces, RunFailedError, TwoForces
from ..dynamics.tuning import tune
from .combine import combine_files
from .dataset import labelled_dataset
from .forces import TeacherAndStudent
from .teacher import Teacher, load_teacher


TIMESTEP, TOLERANCE = 0.5, 0.2
"""Of the check: fs, meV/atom/ps."""


class _Lesson:
    """The training that goes on in this process, if it has a teacher."""

    def __init__(self) -> None:
        self.options: Dict[str, Any] = {}
        self.teacher: Optional[Teacher] = None
        self.n_datasets = 0

    def begin(self, name: str, options: Dict[str, Any]) -> None:
        """Take note of the options of a training."""
        self.options = {}
        if name == NAME:
            self.options = dict(options["training"].get("teacher") or {})
        self.teacher, self.n_datasets = None, 0

    @property
    def is_on(self) -> bool:
        """Whether there is a teacher."""
        return bool(self.options.get("model"))

    def meet_teacher(self) -> Teacher:
        """Load the teacher, once."""
        if self.teacher is None:
            folder = Path(self.options["labels"])
            self.teacher = load_teacher(self.options["model"], folder)
        return self.teacher


_lesson = _Lesson()
_check_options = cli_train.check_architecture_options


def _note_options(name: str, options: Dict[str, Any]) -> None:
    _check_options(name=name, options=options)
    _lesson.begin(name, options)


def install() -> None:
    """Replace the functions, after those of :mod:`dualforce.architecture.hooks`."""
    get_dataset = cli_train.get_dataset

    def make_dataset(section: Any) -> Any:
        if not _lesson.is_on:
            return get_dataset(section)
        if not is_main_process():
            raise ValueError(
                "a teacher labels in one process: run this once with a single task; "
                "then train on the labels it has written"
            )
        _lesson.n_datasets += 1
        first = _lesson.n_datasets == 1
        teacher = _lesson.meet_teacher()
        result = labelled_dataset(section, teacher, _lesson.options, first)
        result[0].read_from = section["systems"]["read_from"]
        return result

    cli_train.check_architecture_options = _note_options
    cli_train.get_dataset = make_dataset
    if finish not in Trainer.after_training:
        Trainer.after_training.append(finish)


# ----------------------------------------------------------------- when it has learnt


def finish(trainer: Trainer) -> None:
    """Combine the student with its teacher, and try the pair.

    :param trainer: a trainer that has ended.
    """
    options = trainer.hypers["teacher"]
    if not options["model"]:
        return
    teacher = _lesson.meet_teacher() if _lesson.is_on else None
    if teacher is None:
        return
    folder = trainer.checkpoint_path.parent
    student = folder / "student.pt"
    trainer.best_model().export().save(str(student))
    if trainer.only_direct_heads:
        # One network: its energy is the teacher's already.
        forces: TwoForces = HybridForces(student)
    elif teacher.exported is None:
        forces = TeacherAndStudent(teacher.calculator, student)
        logging.info(
            f"The teacher {teacher.name} is no metatomic model, so there is no file "
            f"with both. Use dualforce.distillation.TeacherAndStudent with {student}"
        )
    else:
        pair = Path(options["pair"])
        combine_files(teacher.exported, student, pair)
        logging.info(
            f"Energy of {teacher.name} and direct force of the student: "
            f"{pair.absolute()}"
        )
        forces = HybridForces(pair)
    if options["check_minutes"] > 0.0:
        _check(forces, _as_atoms(trainer.val_frames[0]), options, folder)


def _as_atoms(frame: Frame) -> ase.Atoms:
    return ase.Atoms(
        frame.types.numpy(),
        frame.positions.numpy(),
        cell=frame.cell.numpy(),
        pbc=frame.pbc.numpy(),
    )


def _check(
    forces: TwoForces, atoms: ase.Atoms, options: Dict[str, Any], folder: Path
) -> None:
    """``dualforce tune`` on a structure that was held out."""
    # Upwards, see docs/design.md: the command knows how to write its table.
    from ..cli.tune import advice, table, write

    logging.info(
        f"Checking how many inner steps the pair bears ({options['check_minutes']} "
        "minutes; Ctrl-C leaves the check, not the model)"
    )
    try:
        if isinstance(forces, HybridForces):
            forces.warm_up(atoms)
        result = tune(
            forces,
            atoms,
            timestep=TIMESTEP * units.fs,
            temperature_K=options["check_temperature"],
            tolerance=TOLERANCE,
            seconds=60.0 * options["check_minutes"],
        )
    except (RunFailedError, FloatingPointError, KeyboardInterrupt) as error:
        logging.error(f"The check came to no end: {str(error) or 'interrupted'}")
        return
    logging.info("\n" + table(result) + "\n" + advice(result, TOLERANCE))
    if len(result.candidates) > 1 and (result.recommended or 0) < 2:
        holds = result.recommended or 0
        logging.warning(
            "The student is too inaccurate to be of use: "
            + (f"M = {holds} is the largest that holds. " if holds else "no M holds. ")
            + "Train for longer, on more structures (`teacher: extend`), or a larger "
            "student"
        )
    settings = {
        "structure": "validation set, first frame",
        "temperature_K": options["check_temperature"],
        "timestep_fs": TIMESTEP,
        "tolerance_meV_per_atom_per_ps": TOLERANCE,
    }
    write(result, folder, settings)
