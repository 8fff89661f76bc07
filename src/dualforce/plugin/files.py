"""Files that a training starts from and writes, checked before it works."""

import inspect
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Dict, Union

import metatrain.cli.train as cli_train
from metatrain.utils.distributed.logging import is_main_process


def arguments_of_train_model() -> Dict[str, Any]:
    """Arguments of the ``metatrain.cli.train.train_model`` that runs in this process,
    which does not pass them on; empty where none runs."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code is cli_train.train_model.__code__:
            return dict(frame.f_locals)
        frame = frame.f_back
    return {}


def check_files(arguments: Mapping[str, Any], training: Mapping[str, Any]) -> None:
    """Check all files of a training, and make the folders it will write to.

    :param arguments: see :func:`arguments_of_train_model`.
    :param training: training options, with defaults.
    :raises ValueError: if a file cannot be read or written.
    """
    source, option = arguments.get("restart_from"), "--restart"
    if source is None:
        source, option = training["finetune"].get("read_from"), "finetune: read_from"
    if source is not None and not str(source).startswith(("http:", "https:")):
        _check_checkpoint(Path(source), option)
    if not is_main_process():
        return
    if "output" in arguments:
        output = Path(arguments["output"])
        _check_output(output, "-o")
        # metatrain copies a relative path into the folder of the run as well.
        _check_output(Path(arguments["checkpoint_dir"]) / output, "-o")
    teacher = training["teacher"]
    if teacher.get("model"):
        _check_folder(Path(teacher["labels"]), "teacher: labels")
        _check_output(teacher["combined"], "teacher: combined")


def _check_checkpoint(path: Path, option: str) -> None:
    if not path.is_file():
        raise ValueError(f"`{option}`: there is no checkpoint '{path}'")
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"`{option}`: '{path}' is not a whole checkpoint of a training; it is "
            "another kind of file, or was cut off while it was written"
        )


def _check_output(path: Union[str, Path], option: str) -> None:
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"`{option}`: '{path}' is a folder, not a file to write")
    _check_folder(path.absolute().parent, option)
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"`{option}`: the file '{path}' must not be overwritten")


def _check_folder(folder: Path, option: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"`{option}`: the folder '{folder}' is not there and cannot be made "
            f"({error.strerror or error})"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"`{option}`: nothing can be written to the folder '{folder}'")
