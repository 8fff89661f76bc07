"""``dualforce md``: run here and now."""

import sys
from pathlib import Path

import click

from ..engines import ModelReference
from ..engines.tuned import usual_correction
from ..md import MDSettings, run_md
from ..md.run_folder import GuardAction, RunFolder
from .common import model_options, read_structure
from .md_options import settings_options


@click.command()
@model_options
@settings_options
@click.option(
    "--guard",
    type=click.Choice(["warn", "shorten"]),
    help="What to do while conservative and direct force differ more than usual: more "
    "than half again what `dualforce tune` found, or the first outer points; of few "
    "atoms, which fluctuate, by more. If not given, shorten (M goes down, to "
    "conservative steps if need be) with a folder of `dualforce accelerate`, otherwise "
    "warn.",
)
@click.option(
    "--collect",
    is_flag=True,
    help="Keep structures where the forces differ more than usual or the training data "
    "are left, with energy and conservative forces, in collected.extxyz.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    default="run",
    help="Folder for trajectory, log and checkpoint.",
)
@click.option("--resume", is_flag=True, help="Continue the run in the folder.")
def md(
    model: ModelReference,
    structure: str,
    settings: MDSettings,
    guard: GuardAction | None,
    collect: bool,
    output: str,
    resume: bool,
) -> None:
    """Run molecular dynamics of STRUCTURE with MODEL.

    MODEL is an exported model (model.pt), module:callable (file.py:callable) for what
    returns a calculator of ASE, the name of a package's model (sevennet-0, mace:FILE),
    a sum of these (gfn2-xtb+model.pt), or a folder of `dualforce accelerate`, which
    brings a STRUCTURE, a temperature, timestep and M along. Direct forces act in
    every step, conservative ones in every M-th (--inner). The folder receives
    trajectory.extxyz, log.csv, final.extxyz and a checkpoint; Ctrl-C leaves a run that
    the same command with --resume continues. With a larger --steps, --resume extends a
    run.
    """
    outcome = run_md(
        model.load(),
        read_structure(structure),
        output,
        settings,
        guard=guard or ("warn" if model.folder is None else "shorten"),
        usual_correction=usual_correction(model, hydrogen_mass=settings.hydrogen_mass),
        collect=collect,
        resume=resume,
        structure=Path(structure),
    )
    if not outcome.finished:
        click.echo(
            f"Interrupted. Add --resume to the same command to continue from step "
            f"{outcome.step}.",
            err=True,
        )
        sys.exit(130)
    for line in outcome.lines:
        click.echo(line)
    if collect:
        click.echo(_about_collected(outcome.collected, output, model))


def _about_collected(number: int, output: str, model: ModelReference) -> str:
    """How many structures a run has given, and what to do with them."""
    if number == 0:
        return "No structure collected: the run stayed where the forces are known."
    path, plural = RunFolder(output).collected, "" if number == 1 else "s"
    found = f"Collected in {path}: {number} structure{plural}"
    if model.folder is not None:
        return (
            f"{found}. The pair learns from them: dualforce accelerate --continue "
            f"{model.folder} {path}"
        )
    return (
        f"{found}, with the conservative energy and forces of {model.model}. Its "
        "direct force can learn from them (`mtt train`, `teacher: keep_labels`); to "
        "improve its energy, label them with the reference method"
    )
