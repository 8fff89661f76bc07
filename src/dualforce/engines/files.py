"""What the folders of all engines have in common."""

import io
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import List, Optional, Union

import ase
import ase.io
from ase import units

from ..forces import (
    DIRECT_FORCE,
    DIRECT_STRESS,
    Array,
    ForceSource,
    is_pair_folder,
    load_forces,
    load_model,
    names_calculator,
    portable_name,
    read_pair,
    split_name,
    split_sum,
)


STRUCTURE = "structure.extxyz"


@dataclass(frozen=True)
class ModelReference:
    """A model as inputs name it, and how to evaluate it."""

    model: str
    """Exported model (a file), ``module:callable`` or ``file.py:callable`` for what
    returns a calculator of ASE, the name of a package's model, or a sum of these."""
    direct_model: Optional[str] = None
    """Likewise; takes direct forces from there."""
    device: Optional[str] = None
    variant: Optional[str] = None
    extensions: Optional[str] = None
    """Folder with compiled extensions of exported models."""
    temperature: Optional[float] = None
    """At which it is to be run unless the user says otherwise, in K."""
    folder: Optional[str] = None
    """Of `dualforce accelerate`, where the models are from one."""

    def of_folder(self) -> "ModelReference":
        """The models in the folder, where ``model`` is one of `dualforce accelerate`.

        :raises ValueError: if the description in the folder is damaged.
        """
        if not is_pair_folder(self.model):
            return self
        pair = read_pair(self.model)
        return replace(
            self,
            model=pair.model,
            direct_model=self.direct_model or pair.direct_model,
            temperature=pair.temperature,
            folder=self.model,
        )

    def load(self) -> ForceSource:
        """The source of forces; see :func:`~dualforce.load_forces`."""
        return load_forces(
            self.model,
            self.direct_model,
            device=self.device,
            variant=self.variant,
            extensions=self.extensions,
        )

    @property
    def files(self) -> List[Path]:
        """Exported models, as files.

        :raises ValueError: naming a model that is none.
        """
        given = [m for m in (self.model, self.direct_model) if m is not None]
        for model in given:
            if names_calculator(model):
                raise ValueError(
                    f"'{model}' is a calculator of ASE or a sum; here an exported "
                    "model is needed (model.pt)"
                )
        return [Path(model) for model in given]

    def direct_outputs(self) -> List[str]:
        """Direct forces and stresses of the model that direct forces are taken from;
        none where the gradient of its energy stands for them.

        :raises ValueError: if it is no exported model.
        """
        known = load_model(self.files[-1], self.extensions).capabilities().outputs
        kinds = (*DIRECT_FORCE, DIRECT_STRESS)
        return sorted(name for name in known if name.partition("/")[0] in kinds)

    def named_in_folder(self) -> "ModelReference":
        """The same, with the names that the files get in the folder of an engine."""
        return replace(
            self,
            model=_name_in_folder(self.model, "model.pt"),
            direct_model=self.direct_model
            and _name_in_folder(self.direct_model, "direct-model.pt"),
            extensions=self.extensions and "extensions",
        )

    def copy_to(self, folder: Path) -> None:
        """Copy the files, under the names of :meth:`named_in_folder`."""
        names = self.named_in_folder()
        pairs = ((self.model, names.model), (self.direct_model, names.direct_model))
        for source, name in pairs:
            if source is None or name is None:
                continue
            place, name = source, name
            if split_name(source) is not None or split_sum(source):
                continue
            if names_calculator(source):
                place, name = (text.rpartition(":")[0] for text in (source, name))
                if not place.endswith(".py"):
                    continue
            shutil.copyfile(place, folder / name)
        if self.extensions is not None:
            shutil.copytree(self.extensions, folder / "extensions")

    @property
    def arguments(self) -> str:
        """Arguments of :func:`~dualforce.load_forces`, as Python code."""
        keywords = {
            "device": self.device,
            "variant": self.variant,
            "extensions": self.extensions,
        }
        parts = [f'"{self.model}"']
        if self.direct_model is not None:
            parts.append(f'"{self.direct_model}"')
        parts += [f'{key}="{value}"' for key, value in keywords.items() if value]
        return ", ".join(parts)


def _name_in_folder(model: str, name: str) -> str:
    if not names_calculator(model):
        return name
    if split_name(model) is not None or split_sum(model):
        return portable_name(model)
    place, _, function = model.rpartition(":")
    return f"{Path(place).name if place.endswith('.py') else place}:{function}"


def write_folder(
    path: Union[str, Path], model: ModelReference, texts: dict[str, str]
) -> Path:
    """Write the folder of an engine.

    :param path: folder to make; it may exist if it is empty.
    :param model: model to copy.
    :param texts: contents of the other files, by name.
    :raises FileExistsError: if something is there already.
    """
    folder = Path(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists already: choose another name for -o")
    folder.mkdir(parents=True, exist_ok=True)
    model.copy_to(folder)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


def as_extxyz(atoms: ase.Atoms) -> str:
    """A structure with masses and momenta, as text."""
    plain = ase.Atoms(
        numbers=atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell,
        pbc=atoms.pbc,
        masses=atoms.get_masses(),
        momenta=atoms.get_momenta(),
        constraint=atoms.constraints,
    )
    columns = ["symbols", "positions", "masses", "momenta"]
    if plain.constraints:
        columns.append("move_mask")
    text = io.StringIO()
    ase.io.write(text, plain, format="extxyz", columns=columns)
    return text.getvalue()


def velocities_per_ps(atoms: ase.Atoms) -> Array:
    """Velocities in Å/ps, shape ``[n_atoms, 3]``."""
    return atoms.get_velocities() * (1000.0 * units.fs)
