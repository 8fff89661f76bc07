"""Checkpoints of runs: a restarted run goes on as if it had not been interrupted."""

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any, Dict, Tuple, Union

import numpy as np

from ..forces import Array
from ..writing import replacing
from .respa import RespaVelocityVerlet


VERSION = 2


def save_run(run: RespaVelocityVerlet, path: Union[str, Path]) -> None:
    """Write a checkpoint, at the end of an outer step.

    Neighbour lists are searched anew afterwards, as they will be after a restart: their
    order decides about the last bit of a force.

    :param run: the run.
    :param path: file to write; it is replaced at once or not at all.
    """
    state = _identity(run) | run.state()
    arrays: Dict[str, Any] = {
        name: x for name, x in state.items() if isinstance(x, np.ndarray)
    }
    arrays |= {"numbers": run.atoms.numbers, "masses": run.atoms.get_masses()}
    numbers = {name: x for name, x in state.items() if name not in arrays}
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        text = json.dumps(numbers, default=np.ndarray.tolist)
        np.savez(file, state=np.array(text), **arrays)
    run.forces.reset()


def restore_run(run: RespaVelocityVerlet, path: Union[str, Path]) -> None:
    """Continue from a checkpoint.

    The continuation is bitwise identical (on a CPU) if both runs were made with a model
    that had been warmed up: TorchScript compiles another way at first.

    :param run: a run made with the same arguments, for the same atoms.
    :param path: file written by :func:`save_run`.
    :raises ValueError: if the checkpoint is that of another kind of run, or of other
        atoms.
    """
    arrays, state = _read(path)
    _check(run, state, arrays, path)
    run.restore(state | arrays)
    run.forces.reset()


def _read(path: Union[str, Path]) -> Tuple[Dict[str, Array], Dict[str, Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return arrays, json.loads(str(arrays.pop("state")))
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} is no checkpoint of a run, or damaged ({error}): the run cannot "
            "be resumed from it"
        ) from error


def _identity(run: RespaVelocityVerlet) -> Dict[str, Any]:
    return {
        "version": VERSION,
        "kind": type(run).__name__,
        "timestep": run.timestep,
        "n_inner": run.n_inner,
    }


def _check(
    run: RespaVelocityVerlet, state: Dict[str, Any], arrays: Dict[str, Array], path: Any
) -> None:
    for name, value in _identity(run).items():
        if state[name] != value:
            raise ValueError(
                f"{path} belongs to another run: its {name} is {state[name]}, that of "
                f"this run {value}"
            )
    if not np.array_equal(arrays["numbers"], run.atoms.numbers):
        raise ValueError(f"{path} belongs to another run: its atoms are others")
    if not np.array_equal(arrays["masses"], run.atoms.get_masses()):
        raise ValueError(
            f"{path} belongs to another run: its atoms have other masses; repartition "
            "that of hydrogen before the run is made"
        )
