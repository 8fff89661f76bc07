"""Trainings of a student by ``mtt train``, in a process and a folder of their own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, List

import ase
import ase.io
from omegaconf import OmegaConf

from .results import AccelerationError


STRUCTURES, OPTIONS = "structures.xyz", "options.yaml"
STUDENT, CHECKPOINT, LOG = "student.pt", "student.ckpt", "train.log"


def write_structures(path: Path, frames: Sequence[ase.Atoms]) -> None:
    """Write labelled structures so that ``teacher: keep_labels`` finds the labels.

    :param path: file to write.
    :param frames: structures of a :class:`~.labelling.LabelStore`.
    """
    plain: List[ase.Atoms] = []
    for frame in frames:
        atoms = frame.copy()
        atoms.info = {}
        atoms.calc = frame.calc
        plain.append(atoms)
    ase.io.write(path, plain, format="extxyz")


def train_student(
    folder: Path,
    options: Mapping[str, Any],
    report: Callable[[float], None] = lambda seconds: None,
) -> Path:
    """Run ``mtt train`` in a folder, or go on with it, unless its student is there.

    :param folder: with the structures.
    :param options: of the training.
    :param report: told the seconds since the start, now and then.
    :return: the exported student.
    :raises AccelerationError: if the training fails, with its last words.
    """
    student = folder / STUDENT
    if student.exists() and (folder / CHECKPOINT).exists():
        return student
    OmegaConf.save(OmegaConf.create(dict(options)), folder / OPTIONS)
    command = [sys.executable, "-m", "metatrain", "train", OPTIONS, "-o", STUDENT]
    # Modules of the working directory count, for teachers named module:callable.
    paths = [os.getcwd(), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    begin = time.perf_counter()
    with (folder / LOG).open("a") as log:
        process = subprocess.Popen(
            [*command, "--restart", "auto"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            # The lock of the folder stays with a training that is left alone.
            close_fds=False,
        )
        try:
            while process.poll() is None:
                report(time.perf_counter() - begin)
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode != 0 or not student.exists():
        raise AccelerationError(
            f"the training in {folder} failed: {_last_words(folder / LOG)}. All that "
            f"it said is in {folder / LOG}"
        )
    return student


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text().splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["it said nothing"])[-1]
