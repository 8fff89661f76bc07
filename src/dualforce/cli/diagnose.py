"""``dualforce diagnose``: whether forces can be trusted."""

import logging
from pathlib import Path

import click
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..diagnostics import diagnose as judge
from ..diagnostics.findings import FAILED
from ..diagnostics.report import PAGE
from ..diagnostics.setup import PRESETS
from ..md.acceptance import TOLERANCE
from .common import evaluation_options


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.argument("structures", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--direct-model", metavar="MODEL", help="Take direct forces from this model."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False),
    required=True,
    help="Folder for the report; what it holds already is not measured again.",
)
@click.option(
    "--preset",
    type=click.Choice(PRESETS),
    default="quick",
    help="How much to measure: minutes, or hours.",
)
@click.option(
    "--index",
    default=-1,
    help="Which of the structures to run, counted from 0; from the end if negative.",
)
@click.option(
    "--frames", type=int, help="Structures to take errors of.  [default: preset's]"
)
@click.option("--temperature", default=300.0, help="In K.")
@click.option("--timestep", default=0.5, help="(Inner) step in fs.")
@click.option(
    "--inner", type=int, help="Inner steps (M).  [default: the most that work]"
)
@click.option(
    "--tolerance",
    default=TOLERANCE,
    help="Accepted difference in drift from the conservative force, in meV/atom/ps.",
)
@click.option("--seed", default=0, help="Seed of everything random.")
@evaluation_options
def diagnose(
    models: tuple[str, ...],
    structures: str,
    direct_model: str | None,
    output: str,
    preset: str,
    index: int,
    frames: int | None,
    temperature: float,
    timestep: float,
    inner: int | None,
    tolerance: float,
    seed: int,
    device: str | None,
    variant: str | None,
    extensions: str | None,
) -> None:
    """Judge the forces of each MODEL on STRUCTURES, and write a report.

    A MODEL is an exported model (model.pt), a folder of `dualforce accelerate`,
    module:callable (file.py:callable) for what returns a calculator of ASE, the name of
    a package's model (sevennet-0, mace:FILE), or a sum of these. Results are kept
    in the folder as they come: the same command goes on where it was interrupted.
    """
    with (
        logging_redirect_tqdm(),
        tqdm(total=100, unit="%", bar_format=_BAR, disable=None) as bar,
    ):

        def progress(title: str, share: float) -> None:
            bar.set_description(title, refresh=False)
            bar.update(100.0 * share - bar.n)

        report = judge(
            models,
            structures,
            output,
            direct_model=direct_model,
            preset=preset,
            temperature_K=temperature,
            timestep_fs=timestep,
            n_inner=inner,
            tolerance=tolerance,
            index=index,
            n_frames=frames,
            seed=seed,
            device=device,
            variant=variant,
            extensions=extensions,
            progress=progress,
        )
    chosen = report.structures
    click.echo(
        f"Structure {chosen.start_index} of {chosen.n_total} (counted from 0) was run; "
        f"errors are those of {len(chosen.frames)}."
    )
    for name, text in report.headlines.items():
        click.echo(f"{name}: {text}")
    for findings in report.findings:
        n_failed = sum(entry.status == FAILED for entry in findings.missing)
        if n_failed:
            logging.warning(f"{findings.name}: {n_failed} measures failed; see report")
    click.echo(f"Written: {Path(output) / PAGE}")
    if not any(findings.n_done for findings in report.findings):
        raise ValueError("nothing could be measured; the report says why")


_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"
