"""Arguments that several commands take."""

from collections.abc import Callable
from typing import Any

import ase
import ase.io
import click

from ..dynamics import HybridForces


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add MODEL, STRUCTURE and what says how to evaluate the model."""
    for decorate in reversed(
        [
            click.argument("model", type=click.Path(exists=True, dir_okay=False)),
            click.argument("structure", type=click.Path(exists=True, dir_okay=False)),
            click.option(
                "--direct-model",
                type=click.Path(exists=True, dir_okay=False),
                help="Take direct forces from this model.",
            ),
            click.option("--device", help="Torch device: cpu, cuda, cuda:1, ..."),
            click.option(
                "--variant", help="Variant of the outputs: pbe for energy/pbe."
            ),
        ]
    ):
        command = decorate(command)
    return command


def read_structure(path: str) -> ase.Atoms:
    """The last structure of a file, in any format of ASE.

    :raises ValueError: if the file cannot be read.
    """
    try:
        atoms = ase.io.read(path, index=-1)
    except Exception as error:  # readers of ASE raise whatever they like
        raise ValueError(f"{path} cannot be read as a structure: {error}") from error
    assert isinstance(atoms, ase.Atoms)
    return atoms


def load_forces(
    model: str, direct_model: str | None, device: str | None, variant: str | None
) -> HybridForces:
    """The model as the options say."""
    return HybridForces(model, direct_model, device=device, variant=variant)
