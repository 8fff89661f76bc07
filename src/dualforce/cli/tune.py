"""``dualforce tune``: which timestep and how many inner steps a model tolerates."""

from pathlib import Path

import click
from ase import units
from tqdm import tqdm

from ..engines import ModelReference
from ..engines.tuned import remember
from ..md import repartition_hydrogen_mass
from ..md.acceptance import TOLERANCE
from ..md.structures import check_structure
from ..md.timesteps import propose_timesteps
from ..md.tuning import tune as tune_inner_steps
from ..md.tuning_report import PLOT, TABLE, describe, write
from .common import model_options, read_structure
from .md_options import setting_option


@click.command()
@model_options
@click.option("--temperature", default=300.0, help="In K.")
@click.option(
    "--timestep",
    "steps",
    type=float,
    multiple=True,
    help="Inner step in fs; may be given several times, and the fastest good one is "
    "chosen.  [default: by the lightest atom: 0.5, 0.75 and 1 with hydrogen, 1, 1.5 "
    "and 2 with other elements up to neon, otherwise 2, 3 and 4]",
)
@click.option(
    "--tolerance",
    default=TOLERANCE,
    help="Accepted difference in drift from the conservative force, in meV/atom/ps.",
)
@setting_option("hydrogen_mass", None)
@click.option("--minutes", default=2.5, help="Wall time to use.")
@click.option("--seed", default=0, help="Seed of the velocities.")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False),
    help="Folder for table and plot.",
)
def tune(
    model: ModelReference,
    structure: str,
    temperature: float,
    steps: tuple[float, ...],
    tolerance: float,
    hydrogen_mass: float | None,
    minutes: float,
    seed: int,
    output: str | None,
) -> None:
    """Measure which timestep and how many inner steps (M) MODEL tolerates on STRUCTURE.

    A run with the conservative force (M = 1) and the shortest timestep predicts the
    drift with each timestep and M = 2 to 32, from fast changes of the difference of the
    forces, and how well each timestep by itself conserves energy. The fastest pair that
    is acceptable is confirmed by a run from the same start. What is recommended becomes
    the default of `dualforce md` and `dualforce inputs`, kept in MODEL.tuned.json.
    """
    if output is not None:
        _check_folder(Path(output))
    atoms = read_structure(structure)
    check_structure(atoms)
    if hydrogen_mass is not None:
        repartition_hydrogen_mass(atoms, hydrogen_mass)
    steps = steps or propose_timesteps(atoms)
    forces = model.load()
    with tqdm(total=100, unit="%", bar_format=_BAR, disable=None) as bar:

        def progress(task: str, share: float) -> None:
            bar.set_description(task, refresh=False)
            bar.update(min(100.0, 100.0 * share) - bar.n)

        result = tune_inner_steps(
            forces,
            atoms,
            timestep=[step * units.fs for step in steps],
            temperature_K=temperature,
            tolerance=tolerance,
            seconds=60.0 * minutes,
            seed=seed,
            progress=progress,
        )
    click.echo(describe(result, tolerance))
    if result.recommended is not None:
        kept = remember(
            model,
            result.recommended,
            timestep=result.timestep_fs,
            temperature=temperature,
            hydrogen_mass=hydrogen_mass,
            correction=result.correction,
        )
        if kept is not None:
            click.echo(f"Default of `dualforce md` with this model: see {kept}")
    if output is not None:
        settings = {
            "model": str(model.model),
            "structure": structure,
            "temperature_K": temperature,
            "timesteps_fs": sorted(steps),
            "tolerance_meV_per_atom_per_ps": tolerance,
            "hydrogen_mass_u": hydrogen_mass,
        }
        written = write(result, Path(output), settings)
        click.echo(f"Written: {', '.join(map(str, written))}")


_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"


def _check_folder(folder: Path) -> None:
    for name in (TABLE, PLOT):
        if (folder / name).exists():
            raise FileExistsError(
                f"{folder} holds {name} already: choose another folder with -o"
            )
