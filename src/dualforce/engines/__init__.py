"""Inputs for other engines: i-PI, LAMMPS, OpenMM, torch-sim, and scripts for ASE."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Dict, Literal, Optional, Union

import ase

from ..forces.extensions import check_without_python
from ..md import MDSettings, start_structure
from ..md.structures import check_structure
from . import ase_script, ipi, lammps, openmm, torchsim
from .files import ModelReference, write_folder


Engine = Literal["ipi", "lammps", "openmm", "torchsim", "ase"]

Writer = Callable[[ase.Atoms, MDSettings, ModelReference], Dict[str, str]]

WRITERS: Dict[Engine, Writer] = {
    "ipi": ipi.input_files,
    "lammps": lammps.input_files,
    "openmm": openmm.input_files,
    "torchsim": torchsim.input_files,
    "ase": ase_script.input_files,
}


def write_inputs(
    engine: Engine,
    model: ModelReference,
    atoms: ase.Atoms,
    output: Union[str, Path],
    settings: MDSettings,
    *,
    stock: bool = False,
    replicas: Optional[int] = None,
) -> Path:
    """Write a folder that runs as it is in another engine.

    :param engine: ``ipi``, ``lammps``, ``openmm``, ``torchsim`` or ``ase``.
    :param model: model, which is copied into the folder.
    :param atoms: structure; velocities are drawn where it has none.
    :param output: folder to write.
    :param settings: settings of the run.
    :param stock: for ``ipi``: use the driver that comes with i-PI.
    :param replicas: for ``torchsim``: structures that run together, which differ in
        velocities; 8 if not given.
    :return: the folder.
    :raises FileExistsError: if the folder is there already and not empty.
    :raises ValueError: if the engine cannot do it, or the model does not fit.
    """
    if engine not in WRITERS:
        raise ValueError(f"there is no engine '{engine}': {', '.join(WRITERS)}")
    write = WRITERS[engine]
    if stock:
        if engine != "ipi":
            raise ValueError(f"--stock is for ipi, not for {engine}")
        write = partial(ipi.input_files, stock=True)
    if replicas is not None:
        if engine != "torchsim":
            raise ValueError(f"--replicas is for torchsim, not for {engine}")
        write = partial(torchsim.input_files, replicas=replicas)
    if stock or engine == "lammps":
        check_without_python(model.files, "LAMMPS" if engine == "lammps" else "i-PI")
    check_structure(atoms)
    start = start_structure(atoms, settings)
    _check_model(model, start, settings)
    folder = write_folder(output, model, write(start, settings, model))
    if engine == "lammps":
        lammps.write_one_process_models(folder, model)
    return folder


def _check_model(model: ModelReference, atoms: ase.Atoms, settings: MDSettings) -> None:
    """Refuse a model that does not fit now, not when the run starts."""
    # The device of the run need not be in the machine on which inputs are written.
    source = replace(model, device="cpu").load()
    if settings.n_inner > 1:
        source.both(atoms)
    else:
        source.conservative(atoms)


__all__ = ["WRITERS", "Engine", "ModelReference", "write_inputs"]
