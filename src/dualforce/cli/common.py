"""Arguments that several commands take."""

import functools
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ase
import ase.io
import click

from ..engines import ModelReference
from ..forces import is_pair_folder, read_pair


def evaluation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how to evaluate a model."""
    for decorate in reversed(
        [
            click.option("--device", help="Torch device: cpu, cuda, cuda:1, ..."),
            click.option(
                "--variant", help="Variant of the outputs: pbe for energy/pbe."
            ),
            click.option(
                "--extensions",
                type=click.Path(exists=True, file_okay=False),
                help="Folder with compiled extensions of the model.",
            ),
        ]
    ):
        command = decorate(command)
    return command


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add MODEL, STRUCTURE and the options of a model; the command takes them as
    ``model``, a :class:`~dualforce.engines.ModelReference`, and ``structure``, which a
    folder of `dualforce accelerate` brings along."""

    @functools.wraps(command)
    def with_model(
        model: str,
        direct_model: str | None,
        device: str | None,
        variant: str | None,
        extensions: str | None,
        structure: str | None,
        **others: Any,
    ) -> Any:
        reference = ModelReference(model, direct_model, device, variant, extensions)
        return command(
            model=reference.of_folder(),
            structure=structure or _structure_of(model),
            **others,
        )

    decorated = evaluation_options(with_model)
    for decorate in (
        click.option(
            "--direct-model",
            metavar="MODEL",
            help="Take direct forces from this model.",
        ),
        click.argument(
            "structure", type=click.Path(exists=True, dir_okay=False), required=False
        ),
        click.argument("model"),
    ):
        decorated = decorate(decorated)
    return decorated


def _structure_of(model: str) -> str:
    """The structure of a folder.

    :raises click.UsageError: if it is none, or has none.
    """
    found = read_pair(model).structure if is_pair_folder(model) else None
    if found is None:
        raise click.UsageError("Missing argument 'STRUCTURE'.")
    return found


def read_structures(path: str | Path, index: str | int = ":") -> list[ase.Atoms]:
    """Structures of a file, in any format of ASE.

    :raises ValueError: if the file cannot be read.
    """
    try:
        found = ase.io.read(path, index=index)
    except Exception as error:  # readers of ASE raise whatever they like
        raise ValueError(f"{path} cannot be read as a structure: {error}") from error
    return found if isinstance(found, list) else [found]


def read_structure(path: str | Path) -> ase.Atoms:
    """The last structure of a file, in any format of ASE.

    :raises ValueError: if the file cannot be read.
    """
    return read_structures(path, index=-1)[0]


@contextmanager
def resumable() -> Iterator[None]:
    """Leave a command that an interrupt or SIGTERM stops with a sentence and the status
    of an interrupt; for commands that go on where they were."""
    interrupt_on_termination()
    try:
        yield
    except KeyboardInterrupt:
        click.echo("Interrupted. The same command goes on from here.", err=True)
        sys.exit(130)


def interrupt_on_termination() -> None:
    """Let SIGTERM do what Ctrl-C does, so that what was begun can be resumed."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
