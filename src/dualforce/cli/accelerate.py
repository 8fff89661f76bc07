"""``dualforce accelerate``: from a model to a pair that runs faster."""

import signal
import sys
from typing import Any, Optional

import click
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..distillation import accelerate as make_faster
from ..distillation.results import REPORT, summary
from ..md.acceptance import TOLERANCE


@click.command()
@click.argument("teacher")
@click.argument("structures", type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--temperature",
    "temperatures",
    type=float,
    multiple=True,
    default=(300.0,),
    help="At which the pair is to run, in K; may be given several times.",
)
@click.option("--minutes", default=60.0, help="Wall time of everything.")
@click.option(
    "--rounds", default=3, help="Of runs and training; from the second on of the pair."
)
@click.option(
    "--epochs",
    type=int,
    help="Train for so many epochs in each round, whatever the clock says.",
)
@click.option(
    "--tolerance",
    default=TOLERANCE,
    help="Accepted difference in drift from the teacher alone, in meV/atom/ps.",
)
@click.option("--seed", default=0, help="Seed of everything random.")
@click.option("--device", help="Torch device of metatomic models: cpu, cuda, ...")
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False),
    required=True,
    help="Folder for all of it; the same command goes on where it was interrupted.",
)
def accelerate(
    teacher: str,
    structures: str,
    temperatures: tuple[float, ...],
    minutes: float,
    rounds: int,
    epochs: int | None,
    tolerance: float,
    seed: int,
    device: str | None,
    output: str,
) -> None:
    """Make TEACHER faster on STRUCTURES: a small network learns its forces.

    TEACHER is an exported model (model.pt), a checkpoint of metatrain (model.ckpt),
    module:callable (file.py:callable) for what returns a calculator of ASE, or the name
    of a package's model: sevennet-0, chgnet, mace:FILE, gfn1-xtb, gfn2-xtb. The
    structures need no labels. Afterwards `dualforce md FOLDER` runs the pair, whose
    energy is that of TEACHER.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with logging_redirect_tqdm(), _Bar() as bar:
            result = make_faster(
                teacher,
                structures,
                output,
                temperatures=temperatures,
                minutes=minutes,
                rounds=rounds,
                epochs=epochs,
                tolerance=tolerance,
                seed=seed,
                device=device,
                progress=bar.show,
            )
    except KeyboardInterrupt:
        click.echo("Interrupted. The same command goes on from here.", err=True)
        sys.exit(130)
    for line in summary(result):
        click.echo(line)
    click.echo(f"Written: {result.folder / REPORT}")


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


class _Bar:
    """A bar for the part that is being done; each gets a line of its own."""

    def __init__(self) -> None:
        self._part = ""
        self._bar: Optional[tqdm[Any]] = None

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, part: str, share: float, left: float) -> None:
        """Show how far a part is, and the time it still takes."""
        if part != self._part:
            if self._bar is not None:
                self._bar.close()
            self._part = part
            self._bar = tqdm(total=100, desc=part, bar_format=_FORMAT, disable=None)
            if self._bar.disable:  # no terminal
                click.echo(part, err=True)
        assert self._bar is not None
        if left == left:
            self._bar.set_postfix_str(tqdm.format_interval(left), refresh=False)
        self._bar.update(100.0 * share - self._bar.n)


_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix} left"
