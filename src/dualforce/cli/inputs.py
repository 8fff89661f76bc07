"""``dualforce inputs``: folders for other engines."""

import functools
from collections.abc import Callable
from pathlib import Path

import ase
import click

from ..engines import ipi, lammps, openmm, script
from ..engines.files import ModelFiles, start_structure, write_folder
from ..engines.settings import MDSettings
from .common import load_forces, model_options, read_structure
from .settings import settings_options


Writer = Callable[[ase.Atoms, MDSettings, ModelFiles], dict[str, str]]

WRITERS: dict[str, Writer] = {
    "ipi": ipi.input_files,
    "lammps": lammps.input_files,
    "openmm": openmm.input_files,
    "ase": script.input_files,
}


@click.command()
@click.argument("engine", type=click.Choice(list(WRITERS)))
@model_options
@settings_options
@click.option(
    "--stock",
    is_flag=True,
    help="ipi: use the driver that comes with i-PI, so that the folder runs without "
    "dualforce.",
)
@click.option("-o", "--output", required=True, help="Folder to write.")
def inputs(
    engine: str,
    model: str,
    structure: str,
    direct_model: str | None,
    device: str | None,
    variant: str | None,
    settings: MDSettings,
    stock: bool,
    output: str,
) -> None:
    """Write a folder that runs MODEL on STRUCTURE in another ENGINE."""
    write = WRITERS[engine]
    if stock:
        if engine != "ipi":
            raise ValueError(f"--stock is for ipi, not for {engine}")
        write = functools.partial(ipi.input_files, stock=True)
    atoms = start_structure(read_structure(structure), settings)
    # A model that does not fit is refused now, not when the run starts.
    load_forces(model, direct_model, device, variant).both(atoms)
    direct = Path(direct_model) if direct_model else None
    files = ModelFiles(Path(model), direct, device, variant)
    texts = write(atoms, settings, files)
    folder = write_folder(output, files, texts)
    click.echo(f"Written: {folder}. How to run it: {folder / 'README.txt'}")
