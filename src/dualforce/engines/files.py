"""What the folders of all engines have in common."""

import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

import ase
import ase.io
import numpy as np
from ase import units

from ..dynamics import repartition_hydrogen_mass
from ..dynamics.evaluation import Array
from ..dynamics.preparation import set_thermal_momenta
from .settings import MDSettings


STRUCTURE = "structure.extxyz"
VACUUM = 50.0
"""In Å, on each side of a molecule in engines that want a box."""


@dataclass(frozen=True)
class ModelFiles:
    """An exported model, and how to evaluate it."""

    model: Path
    direct_model: Optional[Path] = None
    """Takes direct forces from another model."""
    device: Optional[str] = None
    variant: Optional[str] = None

    def named_in_folder(self) -> "ModelFiles":
        """The same, with the names that the files get in the folder of an engine."""
        direct = self.direct_model and Path("direct-model.pt")
        return ModelFiles(Path("model.pt"), direct, self.device, self.variant)

    def copy_to(self, folder: Path) -> None:
        """Copy the files, under the names of :meth:`named_in_folder`."""
        names = self.named_in_folder()
        shutil.copyfile(self.model, folder / names.model)
        if self.direct_model is not None and names.direct_model is not None:
            shutil.copyfile(self.direct_model, folder / names.direct_model)

    @property
    def arguments(self) -> str:
        """Arguments of :class:`~dualforce.dynamics.HybridForces`, as Python code."""
        keywords = {"device": self.device, "variant": self.variant}
        parts = [f'"{self.model}"']
        if self.direct_model is not None:
            parts.append(f'"{self.direct_model}"')
        parts += [f'{key}="{value}"' for key, value in keywords.items() if value]
        return ", ".join(parts)


def write_folder(
    path: Union[str, Path], model: ModelFiles, texts: dict[str, str]
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


def start_structure(atoms: ase.Atoms, settings: MDSettings) -> ase.Atoms:
    """A copy of a structure with the masses of a run and, if it had none, velocities.

    :raises ValueError: if masses cannot be repartitioned.
    """
    start = atoms.copy()
    start.set_masses(start.get_masses())
    if settings.hydrogen_mass is not None:
        repartition_hydrogen_mass(start, settings.hydrogen_mass)
    if not start.get_momenta().any():
        rng = np.random.default_rng(settings.seed)
        set_thermal_momenta(start, settings.temperature, rng)
    return start


def in_box(atoms: ase.Atoms, settings: MDSettings, engine: str) -> ase.Atoms:
    """A structure as other engines want it: in a box along the axes of coordinates
    (lower triangular cell vectors), which a molecule gets with vacuum around it.

    :param atoms: structure; positions and momenta are rotated together with the cell.
    :param settings: settings of the run.
    :param engine: name of the engine.
    :raises ValueError: if the structure has constraints, is periodic in some directions
        only, or has no cell for constant pressure.
    """
    if atoms.constraints:
        raise ValueError(
            f"the structure has constraints, which are not written for {engine}: "
            "remove them, or use `dualforce md`"
        )
    if atoms.pbc.any() and not atoms.pbc.all():
        raise ValueError(
            f"the structure is periodic in some directions only; for {engine} make it "
            "periodic in all, with vacuum"
        )
    if atoms.pbc.all() and atoms.cell.rank < 3:
        raise ValueError("the structure is periodic but its cell has no volume")
    if settings.ensemble == "npt" and not atoms.pbc.all():
        raise ValueError("constant pressure needs a periodic cell")
    boxed = atoms.copy()
    if not atoms.pbc.any():
        boxed.set_cell(np.ptp(atoms.positions, axis=0) + 2.0 * VACUUM)
        boxed.positions += VACUUM - atoms.positions.min(axis=0)
        return boxed
    cell, rotation = atoms.cell.standard_form()
    boxed.set_cell(cell)
    boxed.positions = atoms.positions @ rotation.T
    boxed.set_momenta(atoms.get_momenta() @ rotation.T)
    return boxed


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
