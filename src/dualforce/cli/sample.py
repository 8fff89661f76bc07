"""``dualforce sample``: labelled structures of a cheap method."""

import click
from tqdm.contrib.logging import logging_redirect_tqdm

from ..distillation import sample as label_runs
from .common import resumable


@click.command()
@click.argument("teacher")
@click.argument("structures", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--temperature",
    "temperatures",
    type=float,
    multiple=True,
    default=(300.0,),
    help="Of the runs, in K; may be given several times.",
)
@click.option("--frames", default=1000, help="Structures to label.")
@click.option("--seed", default=0, help="Seed of velocities and noise.")
@click.option("--device", help="Torch device of metatomic models: cpu, cuda, ...")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False),
    required=True,
    help="Extended XYZ file; the same command goes on where it was interrupted.",
)
def sample(
    teacher: str,
    structures: str,
    temperatures: tuple[float, ...],
    frames: int,
    seed: int,
    device: str | None,
    output: str,
) -> None:
    """Run TEACHER from STRUCTURES, and write what it meets, with energies and forces.

    TEACHER is a cheap method, gfn1-xtb or gfn2-xtb, or any model that `dualforce
    accelerate` takes. Data for a first training, which makes one on few frames of an
    expensive method much more accurate (options/finetune.yaml).
    """
    with resumable(), logging_redirect_tqdm():
        found = label_runs(
            teacher,
            structures,
            output,
            temperatures=temperatures,
            frames=frames,
            seed=seed,
            device=device,
        )
    click.echo(f"Written: {output} ({len(found)} structures labelled by {teacher})")
