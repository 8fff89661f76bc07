"""``dualforce tune``: how many inner steps a model stands."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import click
from ase import units
from matplotlib.figure import Figure
from tqdm import tqdm

from ..dynamics import repartition_hydrogen_mass, tuning
from ..dynamics.guard import describe_overlap
from ..dynamics.tuning import Candidate, Tuning
from .common import load_forces, model_options, read_structure
from .settings import setting_option


TABLE, PLOT = "tune.json", "tune.png"


@click.command()
@model_options
@click.option("--temperature", default=300.0, help="In K.")
@click.option("--timestep", default=0.5, help="Inner step in fs.")
@click.option(
    "--tolerance",
    default=0.2,
    help="Accepted difference in drift from the conservative force, in meV/atom/ps.",
)
@setting_option("hydrogen_mass", None)
@click.option("--minutes", default=2.5, help="Wall time to use.")
@click.option("--seed", default=0, help="Of the velocities.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False),
    help="Folder for table and plot.",
)
def tune(
    model: str,
    structure: str,
    direct_model: str | None,
    device: str | None,
    variant: str | None,
    temperature: float,
    timestep: float,
    tolerance: float,
    hydrogen_mass: float | None,
    minutes: float,
    seed: int,
    output: str | None,
) -> None:
    """Measure how many inner steps (M) MODEL stands on STRUCTURE.

    Compares drift and cost of runs at constant energy with M = 1, 2, 4, 8, 16, 32 and
    recommends the largest M whose drift is like that of the conservative force (M = 1).
    """
    begin = time.perf_counter()
    _check_folder(output)
    atoms = read_structure(structure)
    overlap = describe_overlap(atoms)
    if overlap:
        raise ValueError(f"the structure cannot be run{overlap}")
    if hydrogen_mass is not None:
        repartition_hydrogen_mass(atoms, hydrogen_mass)
    if not timestep > 0.0:
        raise ValueError(f"the timestep must be positive, not {timestep}")
    forces = load_forces(model, direct_model, device, variant)
    click.echo(f"Compiling the model for {len(atoms)} atoms ...", err=True)
    forces.warm_up(atoms)
    with tqdm(total=100, unit="%", bar_format=_BAR, disable=None) as bar:

        def progress(task: str, share: float) -> None:
            bar.set_description(task, refresh=False)
            bar.update(min(100.0, 100.0 * share) - bar.n)

        result = tuning.tune(
            forces,
            atoms,
            timestep=timestep * units.fs,
            temperature_K=temperature,
            tolerance=tolerance,
            seconds=60.0 * minutes - (time.perf_counter() - begin),
            seed=seed,
            progress=progress,
        )
    click.echo(table(result))
    click.echo(advice(result, tolerance))
    if output is not None:
        settings = {
            "model": model,
            "structure": structure,
            "temperature_K": temperature,
            "timestep_fs": timestep,
            "tolerance_meV_per_atom_per_ps": tolerance,
            "hydrogen_mass_u": hydrogen_mass,
        }
        write(result, Path(output), settings)


_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"


def _check_folder(output: str | None) -> None:
    for name in (TABLE, PLOT) if output is not None else ():
        if (Path(output or "") / name).exists():
            raise FileExistsError(
                f"{output} holds {name} already: choose another folder with -o"
            )


def _estimate(estimate: tuple[float, float]) -> str:
    return f"{estimate[0]:.2f} ± {estimate[1]:.2f}"


def table(result: Tuning) -> str:
    """The candidates, one a line."""
    first = result.candidates[0].ms_per_step
    header = (
        "M",
        "outer (fs)",
        "length (ps)",
        "drift (meV/atom/ps)",
        "RMS (meV/atom)",
        "dT/dt (K/ps)",
        "ms/step",
        "x M=1",
        "x direct",
        "f_C-f_D (meV/Å)",
        "verdict",
    )
    rows = [header]
    for row in result.candidates:
        rows.append(
            (
                f"{row.n_inner}",
                f"{row.outer_step_fs:g}",
                f"{row.length_ps:.2f}",
                _estimate(row.drift),
                f"{row.fluctuation:.3f}",
                f"{row.heating[0]:.0f} ± {row.heating[1]:.0f}",
                f"{row.ms_per_step:.2f}",
                f"{first / row.ms_per_step:.2f}",
                f"{result.direct_ms_per_step / row.ms_per_step:.2f}",
                "" if row.correction is None else f"{row.correction:.0f}",
                row.verdict,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def advice(result: Tuning, tolerance: float) -> str:
    """What to do, in a sentence or two."""
    rows = result.candidates
    shortest = min(row.length_ps for row in rows if not row.verdict.startswith("fail"))
    lines = []
    if result.recommended is not None:
        lines.append(
            f"Use M = {result.recommended} (--inner {result.recommended}): the largest "
            f"whose drift is within {tolerance:g} meV/atom/ps of that of M = 1."
        )
    elif rows[0].verdict == "unclear":
        lines.append(
            f"The drift of M = 1 is uncertain by {rows[0].drift[1]:.2g} meV/atom/ps, "
            f"more than the tolerance of {tolerance:g}: give more --minutes."
        )
    else:
        lines.append(
            "Even the conservative force alone (M = 1) fails: use a shorter "
            "--timestep, or a better model."
        )
    if abs(rows[0].drift[0]) > tolerance + 2.0 * rows[0].drift[1]:
        lines.append(
            f"The conservative force itself drifts by {rows[0].drift[0]:.2g} "
            "meV/atom/ps: the timestep is too long for this model."
        )
    if shortest < 0.9:
        lines.append(
            f"Runs of {shortest:.2g} ps show gross failures only; more --minutes make "
            "them longer."
        )
    return "\n".join(lines)


def write(result: Tuning, folder: Path, settings: dict[str, object]) -> None:
    """Write table and plot into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"settings": settings} | dataclasses.asdict(result)
    (folder / TABLE).write_text(json.dumps(content, indent=2) + "\n")
    _plot(result, folder / PLOT)
    click.echo(f"Written: {folder / TABLE}, {folder / PLOT}")


_GOOD, _BAD = "#2166ac", "#b2182b"


def _plot(result: Tuning, path: Path) -> None:
    """Drift and speed against the number of inner steps."""
    figure = Figure(figsize=(8.0, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = result.candidates
    for row in rows:
        _draw_drift(left, row)
    left.axhline(rows[0].drift[0], color="gray", lw=0.8, zorder=0)
    left.set(
        ylabel="drift of the conserved quantity\n(meV/atom/ps)",
        yscale="symlog",
    )
    right.plot(
        [row.n_inner for row in rows],
        [rows[0].ms_per_step / row.ms_per_step for row in rows],
        "o-",
        color="black",
    )
    right.axhline(
        rows[0].ms_per_step / result.direct_ms_per_step,
        color="gray",
        ls="--",
        label="direct force alone",
    )
    right.set(ylabel="speed relative to M = 1", ylim=(0.0, None))
    right.legend(loc="lower right", frameon=False)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks([row.n_inner for row in rows])
        axes.set_xticklabels([str(row.n_inner) for row in rows])
        axes.set_xlabel("inner steps M")
        if result.recommended is not None:
            axes.axvline(result.recommended, color=_GOOD, lw=6.0, alpha=0.15)
    figure.savefig(path, dpi=150)


def _draw_drift(axes: Any, row: Candidate) -> None:
    color = _GOOD if row.is_good else _BAD
    axes.errorbar(row.n_inner, row.drift[0], row.drift[1], fmt="o", color=color)
    if not row.is_good:
        axes.annotate(
            row.verdict,
            (row.n_inner, row.drift[0]),
            xytext=(-6, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=8,
            color=color,
        )
