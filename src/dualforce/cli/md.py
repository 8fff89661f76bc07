"""``dualforce md``: run here and now."""

import sys
from pathlib import Path

import click

from ..engines.ase import RunFolder, describe, run_md
from ..engines.files import ModelFiles
from ..engines.settings import MDSettings
from .common import load_forces, model_options, read_structure
from .settings import settings_options


@click.command()
@model_options
@settings_options
@click.option(
    "--guard",
    type=click.Choice(["warn", "shorten"]),
    default="warn",
    help="What to do while conservative and direct force differ more than usual.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    required=True,
    help="Folder for trajectory, log and checkpoint.",
)
@click.option("--resume", is_flag=True, help="Continue the run in the folder.")
def md(
    model: str,
    structure: str,
    direct_model: str | None,
    device: str | None,
    variant: str | None,
    settings: MDSettings,
    guard: str,
    output: str,
    resume: bool,
) -> None:
    """Run molecular dynamics of STRUCTURE with MODEL.

    Direct forces act in every step, conservative ones in every M-th (--inner). The
    folder receives trajectory.extxyz, log.csv, final.extxyz and a checkpoint; Ctrl-C
    leaves a run that the same command with --resume continues. With a larger --steps,
    --resume extends a run.
    """
    atoms = read_structure(structure)
    forces = load_forces(model, direct_model, device, variant)
    other = None if direct_model is None else Path(direct_model)
    files = ModelFiles(Path(model), other, device, variant)
    shorten = guard == "shorten"
    description = describe(files, structure, settings, shorten, forces.device)
    folder = RunFolder(output)
    folder.check(description, resume)
    click.echo(f"Compiling the model for {len(atoms)} atoms ...", err=True)
    forces.warm_up(atoms, stress=settings.ensemble == "npt")
    outcome = run_md(atoms, forces, settings, folder, description)
    if not outcome.finished:
        click.echo(
            f"Interrupted. Add --resume to the same command to continue from step "
            f"{outcome.step}.",
            err=True,
        )
        sys.exit(130)
    for line in outcome.lines:
        click.echo(line)
