"""``dualforce relax``: optimise a geometry."""

import sys
from typing import Any

import ase
import ase.io
import click
from ase.optimize import FIRE, LBFGS
from tqdm import tqdm

from ..engines import ModelReference
from ..forces import ForceSource
from ..md import Relaxation
from ..md import relax as relax_atoms
from ..md.structures import check_output_file
from .common import model_options, read_structure


@click.command()
@model_options
@click.option("--fmax", default=0.01, help="Largest force on an atom, in eV/Å.")
@click.option("--cell", is_flag=True, help="Relax the cell too.")
@click.option("--steps", default=1000, help="Steps at most.")
@click.option(
    "--compare",
    is_flag=True,
    help="Relax with conservative forces alone too, by LBFGS and by FIRE.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False),
    required=True,
    help="File for the relaxed structure, in a format of ASE.",
)
def relax(
    model: ModelReference,
    structure: str,
    fmax: float,
    cell: bool,
    steps: int,
    compare: bool,
    output: str,
) -> None:
    """Relax STRUCTURE with MODEL.

    Direct forces lead towards the minimum while they are large against their error;
    conservative forces take over, and decide when it is reached.
    """
    check_output_file(output)
    atoms = read_structure(structure)
    forces = model.load()
    options = {"fmax": fmax, "cell": cell, "steps": steps}
    name = "direct, then conservative" if forces.has_direct else "conservative LBFGS"
    result = _relax(name, forces, atoms, options)
    ase.io.write(output, result.atoms)
    if compare:
        for optimizer in (LBFGS, FIRE):
            name = f"conservative {optimizer.__name__}"
            only = options | {"use_direct": False, "optimizer": optimizer}
            _relax(name, forces, atoms, only)
    if not result.converged:
        click.echo(
            f"Not converged: {output} holds the best structure so far. Give more "
            "--steps, or a larger --fmax.",
            err=True,
        )
        sys.exit(1)


def _relax(
    name: str, forces: ForceSource, atoms: ase.Atoms, options: dict[str, Any]
) -> Relaxation:
    with tqdm(total=options["steps"], unit=" steps", disable=None, leave=False) as bar:

        def progress(kind: str, step: int, force: float) -> None:
            bar.set_description(f"{kind} forces, largest {force:.3g} eV/Å", False)
            bar.update(step - bar.n)

        result = relax_atoms(forces, atoms, progress=progress, **options)
    outcome = "converged" if result.converged else "NOT converged"
    click.echo(
        f"{name}: {outcome}, largest force {result.largest_force:.2g} eV/Å, energy "
        f"{result.energy:.4f} eV; evaluations: {result.n_direct} direct, "
        f"{result.n_conservative} with energy; {result.seconds:.1f} s"
    )
    return result
