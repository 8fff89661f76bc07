"""Structures that are read and written: whether they can be run, what they carry."""

from pathlib import Path
from typing import Any, Dict, Optional, Union

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixCom
from ase.io.formats import UnknownFileTypeError, filetype, ioformats
from ase.stress import full_3x3_to_voigt_6_stress

from ..forces import Evaluation, list_atoms
from .guard import describe_overlap


VELOCITY_COLUMNS = ("vel", "vels", "velo", "velocity", "velocities", "momentum")
"""Names under which files have velocities that ASE does not take for such."""


def check_structure(atoms: ase.Atoms) -> None:
    """
    :param atoms: structure to run, relax or judge.
    :raises ValueError: if it has no atoms, positions that are not finite, periodic
        directions without a cell vector, or atoms on top of each other.
    """
    if len(atoms) == 0:
        raise ValueError("the structure has no atoms")
    wrong = np.flatnonzero(~np.isfinite(atoms.positions).all(1))
    if len(wrong):
        raise ValueError(
            f"the positions of atoms {list_atoms(wrong)} (counted from 0) are not "
            "finite numbers: correct the structure"
        )
    if not np.isfinite(atoms.cell.array).all():
        raise ValueError("the cell of the structure is not finite: correct it")
    periodic = atoms.cell.array[atoms.pbc]
    if np.linalg.matrix_rank(periodic) < len(periodic):
        raise ValueError(
            f"the structure is periodic (pbc = {atoms.pbc.tolist()}) in a direction "
            "without a cell vector, or its cell vectors lie in a plane: give it a "
            "cell, or set pbc to false"
        )
    overlap = describe_overlap(atoms)
    if overlap:
        raise ValueError(f"the structure cannot be used{overlap}: correct it")


def describe_velocities(atoms: ase.Atoms, temperature_K: float) -> str:
    """Where the velocities of a run come from, for a message.

    :param atoms: structure as it was read.
    :param temperature_K: temperature of velocities that are drawn, in K.
    """
    if atoms.get_momenta().any():
        return "velocities: those of the structure"
    text = f"velocities: drawn at {temperature_K:g} K"
    ignored = [name for name in atoms.arrays if name.lower() in VELOCITY_COLUMNS]
    if ignored:
        text += (
            f"; the column '{ignored[0]}' of the structure is not used: ASE reads "
            "velocities from a column 'momenta' (mass times velocity, in its own units)"
        )
    return text


def check_output_file(path: Union[str, Path]) -> None:
    """See before long work that its result can be written.

    :param path: file for a structure, in a format of ASE.
    :raises FileExistsError: if it exists.
    :raises FileNotFoundError: if its folder does not exist.
    :raises ValueError: if ASE cannot write files of this name.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists already: choose another file with -o")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {path.parent} for {path.name}: make it first"
        )
    try:
        known = ioformats[filetype(str(path), read=False)]
        writable = known.can_write
    except (UnknownFileTypeError, KeyError):
        writable = False
    if not writable:
        raise ValueError(
            f"ASE cannot write a structure to '{path}': choose a name that ends in "
            ".extxyz, .xyz, .cif, .vasp, .traj, ..."
        )


def with_results(
    atoms: ase.Atoms, result: Evaluation, info: Optional[Dict[str, Any]] = None
) -> ase.Atoms:
    """A copy of a structure with computed results, and with nothing that its file of
    origin said about it: labels of another geometry would be taken for its own.

    :param atoms: structure.
    :param result: energy and forces, and the stress if there is one.
    :param info: what else to write.
    """
    frame = ase.Atoms(
        numbers=atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell,
        pbc=atoms.pbc,
        masses=atoms.get_masses() if atoms.has("masses") else None,
        momenta=atoms.get_momenta() if atoms.has("momenta") else None,
        constraint=[c for c in atoms.constraints if not isinstance(c, FixCom)],
        info=dict(info or {}),
    )
    results: Dict[str, Any] = {"energy": result.energy, "forces": result.forces}
    if result.stress is not None:
        results["stress"] = full_3x3_to_voigt_6_stress(result.stress)
    frame.calc = SinglePointCalculator(frame, **results)
    return frame
