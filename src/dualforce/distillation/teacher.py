"""Models to learn from."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import ase
from metatrain.utils.io import load_model as load_checkpoint

from ..forces import ForceSource, MetatomicForces, load_forces, names_calculator
from ..writing import replacing
from .combine import check_length_unit


HASH_LENGTH = 12


@dataclass(frozen=True)
class Teacher:
    """A model that labels structures."""

    name: str
    """As the user gave it."""
    forces: ForceSource
    exported: Optional[Path]
    """The model as a metatomic file; none for calculators."""

    @property
    def hash(self) -> str:
        """Short digest of what the labels depend on."""
        return self.forces.digest[:HASH_LENGTH]

    def labels_stress_of(self, atoms: ase.Atoms) -> bool:
        """Whether labels of a structure have a stress."""
        return bool(atoms.pbc.all()) and self.forces.has_stress

    def check_elements(self, frames: Sequence[ase.Atoms], where: str) -> None:
        """
        :param frames: structures to label.
        :param where: where they are from, for messages.
        :raises ValueError: naming the first frame with an element that the teacher does
            not know.
        """
        for index, atoms in enumerate(frames):
            try:
                self.forces.check_elements(atoms)
            except ValueError as error:
                raise ValueError(
                    f"{where}, frame {index} (counted from 0): the teacher {error}; "
                    "remove such frames or take another teacher"
                ) from error


def load_teacher(source: str, folder: Path, device: Optional[str] = None) -> Teacher:
    """Load a teacher.

    :param source: an exported metatomic model, a checkpoint of metatrain (``.ckpt``),
        ``module:callable``, which returns a calculator of ASE, the name of a package's
        model, or a sum of these (``gfn2-xtb+model.pt``), without checkpoints.
    :param folder: where a checkpoint is exported to.
    :param device: torch device of metatomic models, by default the best.
    :raises FileNotFoundError: if there is no such file.
    :raises ImportError: if there is no such module or callable.
    :raises ValueError: if it is none of these, or does not say its length unit.
    """
    path = Path(source)
    if names_calculator(source):
        return Teacher(source, load_forces(source), None)
    is_checkpoint = path.suffix == ".ckpt" and path.is_file()
    exported = path
    if is_checkpoint:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        exported = _export(path, folder / f"teacher-{digest[:HASH_LENGTH]}.pt")
    forces = load_forces(exported, device=device)
    if isinstance(forces, MetatomicForces):
        # Before hours of labels, not where the models are combined.
        check_length_unit("teacher", forces.length_unit)
    if is_checkpoint:
        # Exporting the same checkpoint again gives another file.
        forces.digest = digest
    return Teacher(source, forces, exported)


def _export(checkpoint: Path, exported: Path) -> Path:
    """The checkpoint as an exported model, made once."""
    if not exported.exists():
        with replacing(exported) as unfinished:
            load_checkpoint(checkpoint).export().save(str(unfinished))
        logging.info(f"Exported the teacher to {exported}")
    return exported
