"""``dualforce difference``: what a cheap method lacks."""

import click
from tqdm.contrib.logging import logging_redirect_tqdm

from ..distillation import difference as subtract
from .common import resumable


@click.command()
@click.argument("teacher")
@click.argument("data", type=click.Path(exists=True, dir_okay=False))
@click.option("--energy-key", default="energy", help="Where DATA has energies.")
@click.option("--forces-key", default="forces", help="Where DATA has forces.")
@click.option(
    "--stress-key", default="stress", help="Where DATA has stresses, if it has any."
)
@click.option("--virial-key", help="Where DATA has virials, in place of stresses.")
@click.option("--device", help="Torch device of metatomic models: cpu, cuda, ...")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False),
    required=True,
    help="New extended XYZ file; the same command goes on where it was interrupted.",
)
def difference(
    teacher: str,
    data: str,
    energy_key: str,
    forces_key: str,
    stress_key: str,
    virial_key: str | None,
    device: str | None,
    output: str,
) -> None:
    """Write the energies, forces and stresses of DATA minus those of TEACHER.

    TEACHER is a cheap method, gfn1-xtb or gfn2-xtb, or any model that `dualforce
    accelerate` takes. A model that is trained on the difference, MODEL.pt, makes
    TEACHER+MODEL.pt a name of the sum, for `dualforce sample` and all other commands.
    """
    with resumable(), logging_redirect_tqdm():
        found = subtract(
            teacher,
            data,
            output,
            energy_key=energy_key,
            forces_key=forces_key,
            stress_key=stress_key,
            virial_key=virial_key,
            device=device,
        )
    click.echo(f"Written: {output} ({len(found)} frames, {data} minus {teacher})")
