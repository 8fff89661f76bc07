"""Trainings that learn direct forces from a teacher, within ``mtt train``.

The structures of the data sets get the teacher's labels. When the training ends, the
student is combined with its teacher, and the numbers of inner steps that the result
tolerates are measured.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Dict, Optional

import ase
from ase import units
from metatrain.utils.distributed.logging import is_main_process

from ..forces import CombinedForces, ForceSource, load_forces
from ..md import RunFailedError
from ..md.acceptance import TOLERANCE
from ..md.timesteps import propose_timesteps
from ..md.tuning import tune
from ..md.tuning_report import describe, write
from ..training.data import Frame
from ..training.trainer import Trainer
from .combine import combine_files
from .dataset import labelled_dataset
from .teacher import Teacher, load_teacher


class TeacherTraining:
    """The teacher of the training in this process, if it has one."""

    def __init__(self) -> None:
        self._options: Mapping[str, Any] = {}
        self._teacher: Optional[Teacher] = None
        self._n_datasets = 0

    def begin(self, options: Mapping[str, Any]) -> None:
        """Start anew.

        :param options: see :class:`dualforce.training.options.TeacherHypers`; empty
            where there is no teacher.
        """
        self._options, self._teacher, self._n_datasets = options, None, 0

    @property
    def is_on(self) -> bool:
        """Whether there is a teacher."""
        return bool(self._options.get("model"))

    def _load(self) -> Teacher:
        """The teacher, loaded once."""
        if self._teacher is None:
            folder = Path(self._options["labels"])
            self._teacher = load_teacher(self._options["model"], folder)
        return self._teacher

    def dataset(self, section: Any) -> Any:
        """A data set with the teacher's labels, in the place of that of metatrain.

        :param section: the section of the data set in the options.
        :raises ValueError: if there are several processes.
        """
        if not is_main_process():
            raise ValueError(
                "a teacher labels in one process: run this once with a single task; "
                "then train on the labels it has written"
            )
        self._n_datasets += 1
        is_training = self._n_datasets == 1
        return labelled_dataset(section, self._load(), self._options, is_training)

    def finish(self, trainer: Trainer) -> None:
        """Combine the student with its teacher, and see what the result tolerates.

        :param trainer: a trainer that has ended.
        """
        if not (self.is_on and trainer.hypers["teacher"]["model"]):
            return
        folder = trainer.checkpoint_path.parent
        student = folder / "student.pt"
        trainer.best_model().export().save(str(student))
        forces = self._combine(student, trainer.only_direct_heads)
        if self._options["check_minutes"] > 0.0:
            _check(forces, _as_atoms(trainer.val_frames[0]), self._options, folder)

    def _combine(self, student: Path, has_energy: bool) -> ForceSource:
        teacher = self._load()
        if has_energy:
            # One network: its energy is the teacher's already.
            return load_forces(student)
        if teacher.exported is None:
            logging.info(
                f"The teacher {teacher.name} is no metatomic model, so there is no "
                f"file with both. Run it with `dualforce md {teacher.name} "
                f"--direct-model {student}`"
            )
            return CombinedForces(teacher.forces, load_forces(student))
        output = Path(self._options["combined"])
        combine_files(teacher.exported, student, output)
        logging.info(
            f"Energy of {teacher.name} and direct force of the student: "
            f"{output.absolute()}"
        )
        return load_forces(output)


def _as_atoms(frame: Frame) -> ase.Atoms:
    return ase.Atoms(
        frame.types.numpy(),
        frame.positions.numpy(),
        cell=frame.cell.numpy(),
        pbc=frame.pbc.numpy(),
    )


def _check(
    forces: ForceSource, atoms: ase.Atoms, options: Mapping[str, Any], folder: Path
) -> None:
    """``dualforce tune`` on a structure that was held out."""
    logging.info(
        f"Measuring how many inner steps the model tolerates "
        f"({options['check_minutes']} minutes; Ctrl-C leaves out this check only)"
    )
    try:
        result = tune(
            forces,
            atoms,
            timestep=[step * units.fs for step in propose_timesteps(atoms)],
            temperature_K=options["check_temperature"],
            tolerance=TOLERANCE,
            seconds=60.0 * options["check_minutes"],
        )
    except (RunFailedError, FloatingPointError, KeyboardInterrupt) as error:
        logging.error(f"The check came to no end: {str(error) or 'interrupted'}")
        return
    logging.info("\n" + describe(result, TOLERANCE))
    tested = result.candidates[1:]
    if tested and tested[0].is_bad:
        logging.warning(
            "The student is too inaccurate to be of use: not even M = "
            f"{tested[0].n_inner} is tolerated. Train for longer, on more "
            "structures (`teacher: extend`), or a larger student"
        )
    settings: Dict[str, object] = {
        "structure": "validation set, first frame",
        "temperature_K": options["check_temperature"],
        "tolerance_meV_per_atom_per_ps": TOLERANCE,
    }
    written = write(result, folder, settings)
    logging.info(f"Written: {', '.join(map(str, written))}")
