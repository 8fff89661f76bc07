"""Results on disk, each under everything it depends on."""

import dataclasses
import hashlib
import json
import logging
import math
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import ase
import numpy as np
from pydantic import TypeAdapter, ValidationError

from .. import __version__
from ..writing import replacing


def plain(value: Any, not_finite_as_text: bool = False) -> Any:
    """A value in the types of JSON, which has no numbers that are not finite.

    :param value: dataclasses, containers, numbers and texts.
    :param not_finite_as_text: write them as ``"nan"`` and ``"inf"``, from which they
        can be restored, instead of ``null``.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {
            each.name: getattr(value, each.name) for each in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {str(key): plain(x, not_finite_as_text) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(x, not_finite_as_text) for x in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value) if not_finite_as_text else None
    return value


def hash_structures(*structures: ase.Atoms, with_labels: bool = False) -> str:
    """A text that changes with elements, masses, positions, cells, momenta and
    constraints.

    :param structures: structures, in order.
    :param with_labels: whether it changes with energies and forces that were read.
    """
    digest = hashlib.sha256()
    for atoms in structures:
        arrays = [atoms.numbers, atoms.get_masses(), atoms.positions, atoms.cell.array]
        arrays += [atoms.pbc, atoms.get_momenta()]
        if with_labels:
            labels = dict(getattr(atoms.calc, "results", {}))
            labels |= {"info": atoms.info.get("energy"), **atoms.arrays}
            numbers = {name: labels.get(name) for name in ("energy", "info", "forces")}
            arrays += [value for value in numbers.values() if value is not None]
        for array in arrays:
            # Adding zero turns -0 into 0.
            digest.update((np.asarray(array, dtype=float) + 0.0).tobytes())
            digest.update(b"|")
        constraints = [constraint.todict() for constraint in atoms.constraints]
        digest.update(repr(constraints).encode())
    return digest.hexdigest()


class Cache:
    """A folder with a JSON file for each result.

    :param folder: where the files are; made when the first is written. None keeps
        nothing.
    """

    def __init__(self, folder: Optional[Path]) -> None:
        self._folder = folder

    def load(
        self, task: str, inputs: Dict[str, Any], returns: Any
    ) -> Optional[Tuple[Any, float]]:
        """A result that was stored.

        :param task: what was measured.
        :param inputs: all it depends on.
        :param returns: type of the result.
        :return: the result and the seconds it took; none if there is none, or it cannot
            be read.
        """
        if self._folder is None:
            return None
        path = self._path(self._folder, task, inputs)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            result = TypeAdapter(returns).validate_python(content["result"])
            return result, float(content["seconds"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            reason = str(error).splitlines()[0]
            logging.warning(f"{path} cannot be read and is measured again: {reason}")
            return None

    def store(
        self, task: str, inputs: Dict[str, Any], result: Any, seconds: float
    ) -> None:
        """Keep a result; the file is written at once or not at all.

        :param task: what was measured.
        :param inputs: all it depends on.
        :param result: what was found, of dataclasses, lists and numbers.
        :param seconds: wall time it took.
        """
        if self._folder is None:
            return
        content = {
            "task": task,
            "inputs": plain(inputs),
            "seconds": round(seconds, 3),
            "result": plain(result, not_finite_as_text=True),
        }
        text = json.dumps(content, allow_nan=False)
        write_text(self._path(self._folder, task, inputs), text)

    def _path(self, folder: Path, task: str, inputs: Dict[str, Any]) -> Path:
        everything = {"task": task, "inputs": plain(inputs), "version": __version__}
        text = json.dumps(everything, sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()[:20]
        return folder / f"{task.replace('/', '-')}-{key}.json"


def write_text(path: Path, text: str) -> None:
    """Write a file at once or not at all.

    :param path: file, whose folder is made.
    :param text: its contents.
    """
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
