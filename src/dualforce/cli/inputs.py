"""``dualforce inputs``: folders for other engines."""

from typing import Optional

import click

from ..engines import WRITERS, Engine, ModelReference, write_inputs
from ..md import MDSettings
from .common import model_options, read_structure
from .md_options import settings_options


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
@click.option(
    "--replicas",
    type=int,
    help="torchsim: structures that run together, which differ in velocities (8).",
)
@click.option("-o", "--output", required=True, help="Folder to write.")
def inputs(
    engine: Engine,
    model: ModelReference,
    structure: str,
    settings: MDSettings,
    stock: bool,
    replicas: Optional[int],
    output: str,
) -> None:
    """Write a folder that runs MODEL on STRUCTURE in another ENGINE."""
    atoms = read_structure(structure)
    folder = write_inputs(
        engine, model, atoms, output, settings, stock=stock, replicas=replicas
    )
    click.echo(f"Written: {folder}. How to run it: {folder / 'README.txt'}")
