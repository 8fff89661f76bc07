"""``dualforce tune``: how many inner steps a model tolerates."""

from pathlib import Path

import click
from ase import units
from tqdm import tqdm

from ..engines import ModelReference
from ..engines.tuned import remember
from ..md import repartition_hydrogen_mass
from ..md.structures import check_structure
from ..md.timesteps import propose_timestep
from ..md.tuning import TOLERANCE
from ..md.tuning import tune as tune_inner_steps
from ..md.tuning_report import PLOT, TABLE, advice, predictions, table, write
from .common import model_options, read_structure
from .md_options import setting_option


@click.command()
@model_options
@click.option("--temperature", default=300.0, help="In K.")
@click.option(
    "--timestep",
    type=float,
    help="Inner step in fs.  [default: by the lightest atom: 0.5 with hydrogen, 1 with "
    "other elements up to neon, otherwise 2]",
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
    timestep: float | None,
    tolerance: float,
    hydrogen_mass: float | None,
    minutes: float,
    seed: int,
    output: str | None,
) -> None:
    """Measure how many inner steps (M) MODEL tolerates on STRUCTURE.

    A run with the conservative force (M = 1) predicts the drift with M = 2 to 32, from
    fast changes of the difference of the forces. The largest M with an acceptable one
    is confirmed by a run from the same start. What is recommended becomes the default
    of `dualforce md` and `dualforce inputs`, kept in MODEL.tuned.json.
    """
    if output is not None:
        _check_folder(Path(output))
    atoms = read_structure(structure)
    check_structure(atoms)
    if hydrogen_mass is not None:
        repartition_hydrogen_mass(atoms, hydrogen_mass)
    if timestep is None:
        timestep = propose_timestep(atoms)
        click.echo(f"Inner steps of {timestep:g} fs (--timestep)")
    forces = model.load()
    with tqdm(total=100, unit="%", bar_format=_BAR, disable=None) as bar:

        def progress(task: str, share: float) -> None:
            bar.set_description(task, refresh=False)
            bar.update(min(100.0, 100.0 * share) - bar.n)

        result = tune_inner_steps(
            forces,
            atoms,
            timestep=timestep * units.fs,
            temperature_K=temperature,
            tolerance=tolerance,
            seconds=60.0 * minutes,
            seed=seed,
            progress=progress,
        )
    click.echo(table(result))
    click.echo(predictions(result))
    click.echo(advice(result, tolerance))
    if result.recommended is not None:
        kept = remember(
            model,
            result.recommended,
            timestep=timestep,
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
            "timestep_fs": timestep,
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
