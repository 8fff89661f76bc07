"""Models to learn from, whatever they are."""

import hashlib
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import FrozenSet, Optional

import ase
from ase.calculators.calculator import Calculator
from ase.data import chemical_symbols
from metatomic_ase import MetatomicCalculator
from metatrain.utils.io import load_model as load_checkpoint

from .combine import load_model


HASH_LENGTH = 12


@dataclass(frozen=True)
class Teacher:
    """A model that labels structures."""

    name: str
    """As the user gave it."""
    hash: str
    """Of the file; of a calculator, of the module that makes it."""
    calculator: Calculator
    exported: Optional[Path]
    """The model as a metatomic file; none for calculators."""
    atomic_types: Optional[FrozenSet[int]]
    """Elements it knows; none where it does not say."""

    def check_elements(self, frames: Sequence[ase.Atoms], where: str) -> None:
        """
        :param frames: structures to label.
        :param where: where they are from, for messages.
        :raises ValueError: naming the first frame with an element that the teacher does
            not know.
        """
        for index, atoms in enumerate(frames if self.atomic_types else ()):
            unknown = sorted(set(atoms.numbers.tolist()) - (self.atomic_types or set()))
            if unknown:
                symbols = ", ".join(chemical_symbols[n] for n in unknown)
                raise ValueError(
                    f"{where}, frame {index} (counted from 0): the teacher {self.name} "
                    f"does not know {symbols}; remove such frames or take another "
                    "teacher"
                )


def load_teacher(source: str, folder: Path, device: Optional[str] = None) -> Teacher:
    """Load a teacher.

    :param source: an exported metatomic model, a checkpoint of metatrain (``.ckpt``),
        or ``module:callable``, where the callable takes no arguments and returns a
        calculator of ASE.
    :param folder: where a checkpoint is exported to.
    :param device: torch device of metatomic models, by default the best.
    :raises ValueError: if it is none of these.
    """
    path = Path(source)
    if path.is_file():
        return _load_file(path, folder, device)
    if ":" in source and path.suffix not in (".pt", ".ckpt"):
        return _load_calculator(source)
    raise ValueError(
        f"there is no file '{source}' for the teacher; give an exported model, a "
        "checkpoint, or `module:callable` for a calculator of ASE"
    )


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:HASH_LENGTH]


def _load_file(path: Path, folder: Path, device: Optional[str]) -> Teacher:
    digest = _hash(path.read_bytes())
    exported = path
    if path.suffix == ".ckpt":
        exported = folder / f"teacher-{digest}.pt"
        if not exported.exists():
            folder.mkdir(parents=True, exist_ok=True)
            unfinished = exported.with_suffix(".unfinished")
            load_checkpoint(path).export().save(str(unfinished))
            os.replace(unfinished, exported)
            logging.info(f"Exported the teacher to {exported}")
    capabilities = load_model(exported).capabilities()
    return Teacher(
        name=str(path),
        hash=digest,
        calculator=MetatomicCalculator(str(exported), device=device),
        exported=exported,
        atomic_types=frozenset(capabilities.atomic_types),
    )


def _load_calculator(source: str) -> Teacher:
    module_name, _, name = source.partition(":")
    # As for `python -m`: modules of the working directory count.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
        make = getattr(module, name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"the teacher '{source}' cannot be imported: {error}"
        ) from error
    calculator = make()
    if not isinstance(calculator, Calculator):
        raise ValueError(
            f"the teacher '{source}' returned {type(calculator).__name__}, not a "
            "calculator of ASE"
        )
    file = getattr(module, "__file__", None)
    content = source.encode() + (Path(file).read_bytes() if file else b"")
    return Teacher(source, _hash(content), calculator, None, None)
