"""``dualforce diagnose``: whether forces can be trusted."""

import dataclasses
import datetime
import logging
from pathlib import Path

import ase
import ase.io
import click
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..diagnostics.cache import Cache
from ..diagnostics.conditions import Conditions, choose_structures
from ..diagnostics.findings import Findings
from ..diagnostics.presets import PRESETS
from ..diagnostics.study import study
from ..diagnostics.subject import Subject, load_subject
from ..diagnostics.verdict import headline
from ..dynamics.guard import describe_overlap
from ..report import Report, check_folder, write_report


CACHE = "cache"


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.argument("structures", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False),
    required=True,
    help="Folder for the report; what it holds already is not measured again.",
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
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
@click.option("--seed", default=0, help="Of everything random.")
@click.option("--device", help="Torch device: cpu, cuda, cuda:1, ...")
@click.option("--variant", help="Variant of the outputs: pbe for energy/pbe.")
def diagnose(
    models: tuple[str, ...],
    structures: str,
    output: str,
    preset: str,
    index: int,
    frames: int | None,
    temperature: float,
    timestep: float,
    inner: int | None,
    seed: int,
    device: str | None,
    variant: str | None,
) -> None:
    """Judge the forces of each MODEL on STRUCTURES, and write a report.

    A MODEL is an exported model (model.pt), or a calculator of ASE as module:name or
    file.py:name of what returns it. Results are kept in the folder as they come: the
    same command goes on where it was interrupted.
    """
    if frames is not None and frames < 1:
        raise ValueError(f"--frames must be at least 1, not {frames}")
    folder, sizes = Path(output), PRESETS[preset]
    check_folder(folder)
    conditions = Conditions(temperature, timestep, inner, seed)
    chosen = choose_structures(
        _read(structures), structures, frames or sizes.n_frames, index
    )
    overlap = describe_overlap(chosen.start)
    if overlap:
        raise ValueError(f"structure {chosen.start_index} cannot be judged{overlap}")
    click.echo(
        f"Structure {chosen.start_index} of {chosen.n_total} (counted from 0) is run; "
        f"errors are those of {len(chosen.frames)}.",
        err=True,
    )
    subjects = _load(models, device, variant)
    cache, found = Cache(folder / CACHE), []
    with (
        logging_redirect_tqdm(),
        tqdm(total=100, unit="%", bar_format=_BAR, disable=None) as bar,
    ):
        for number, subject in enumerate(subjects):

            def progress(title: str, share: float, done: int = number) -> None:
                bar.set_description(f"{subjects[done].name}: {title}", refresh=False)
                bar.update(100.0 * (done + share) / len(subjects) - bar.n)

            found.append(study(subject, chosen, conditions, sizes, cache, progress))
            # After each model, so that an interrupt leaves a report of the others.
            created = datetime.datetime.now().strftime("%d %B %Y, %H:%M")
            report = Report(found, chosen, conditions, sizes, created)
            page, _ = write_report(report, folder)
    _tell(found)
    click.echo(f"Written: {page}")
    if not any(findings.n_done for findings in found):
        raise ValueError("nothing could be measured; the report says why")


_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"


def _load(
    models: tuple[str, ...], device: str | None, variant: str | None
) -> list[Subject]:
    """The models; those of the same name are called by where they come from."""
    subjects = [load_subject(spec, device, variant) for spec in models]
    names = [subject.name for subject in subjects]
    return [
        dataclasses.replace(subject, name=spec)
        if names.count(subject.name) > 1
        else subject
        for spec, subject in zip(models, subjects, strict=True)
    ]


def _read(path: str) -> list[ase.Atoms]:
    try:
        found = ase.io.read(path, index=":")
    except Exception as error:  # readers of ASE raise whatever they like
        raise ValueError(f"{path} cannot be read as structures: {error}") from error
    assert isinstance(found, list)
    return found


def _tell(found: list[Findings]) -> None:
    for findings in found:
        click.echo(f"{findings.name}: {headline(findings).text}")
        n_failed = sum(entry.status == "failed" for entry in findings.missing)
        if n_failed:
            logging.warning(
                f"{findings.name}: {n_failed} measures failed; see the report"
            )
