"""``dualforce accelerate``: from a model to a pair that runs faster."""

from functools import partial
from typing import Any, Optional

import click
from click.core import ParameterSource
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..distillation import accelerate as make_faster
from ..distillation import continue_acceleration
from ..distillation.results import REPORT, summary
from ..md.acceptance import TOLERANCE
from .common import resumable


KEPT = ("temperatures", "rounds", "epochs", "tolerance", "seed", "output")
"""Options that a folder keeps."""

BY_THE_USER = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)
"""Where options that are given come from; others have their defaults."""


@click.command()
@click.argument(
    "inputs",
    nargs=-1,
    metavar="TEACHER STRUCTURES",
)
@click.option(
    "--continue",
    "folder",
    type=click.Path(file_okay=False),
    help="Let the pair in this folder learn from structures that `dualforce md "
    "--collect` has collected, given in place of TEACHER and STRUCTURES.",
)
@click.option(
    "--temperature",
    "temperatures",
    type=float,
    multiple=True,
    default=(300.0,),
    help="At which the pair is to run, in K; may be given several times.",
)
@click.option(
    "--minutes",
    default=60.0,
    help="Wall time of everything; with --continue by default that of the last "
    "training and of the inner steps before.",
)
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
    help="Folder for all of it; the same command goes on where it was interrupted.",
)
def accelerate(
    inputs: tuple[str, ...],
    folder: str | None,
    device: str | None,
    **options: Any,
) -> None:
    """Make TEACHER faster on STRUCTURES: a small network learns its forces.

    TEACHER is an exported model (model.pt), a checkpoint of metatrain (model.ckpt),
    module:callable (file.py:callable) for what returns a calculator of ASE, the name of
    a package's model (sevennet-0, chgnet, mace:FILE, gfn1-xtb, gfn2-xtb), or a sum of
    these (gfn2-xtb+model.pt). The structures need no labels. Afterwards `dualforce md
    FOLDER` runs the pair, whose energy is that of TEACHER. Where its runs come to
    structures it knows too little of,

    dualforce accelerate --continue FOLDER run/collected.extxyz ...

    learns from them; until that is done the pair in the folder stays as it is.
    """
    context = click.get_current_context()
    given = {
        name for name in options if context.get_parameter_source(name) in BY_THE_USER
    }
    if folder is not None:
        _check_continued(given)
        minutes = options["minutes"] if "minutes" in given else None
        make = partial(continue_acceleration, folder, inputs, minutes=minutes)
    else:
        teacher, structures, output = _check_begun(inputs, options.pop("output"))
        make = partial(make_faster, teacher, structures, output, **options)
    with resumable(), logging_redirect_tqdm(), _Bar() as bar:
        result = make(device=device, progress=bar.show)
    for line in summary(result):
        click.echo(line)
    click.echo(f"Written: {result.folder / REPORT}")


def _check_continued(given: set[str]) -> None:
    """
    :raises click.UsageError: if there is an option that the folder knows.
    """
    names = {"temperatures": "--temperature", "output": "-o"}
    kept = [names.get(name, f"--{name}") for name in KEPT if name in given]
    if kept:
        raise click.UsageError(
            f"with --continue the folder says what {', '.join(kept)} would: leave "
            "that out"
        )


def _check_begun(inputs: tuple[str, ...], output: str | None) -> tuple[str, str, str]:
    """
    :raises click.UsageError: if there are too few or too many arguments.
    """
    for missing, position in (("TEACHER", 0), ("STRUCTURES", 1)):
        if len(inputs) == position:
            raise click.UsageError(f"Missing argument '{missing}'.")
    if len(inputs) > 2:
        raise click.UsageError(f"Got unexpected extra argument ({inputs[2]})")
    if output is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    return inputs[0], inputs[1], output


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
