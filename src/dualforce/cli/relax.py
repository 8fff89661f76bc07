"""``dualforce relax``: optimise a geometry."""

import sys
from pathlib import Path
from typing import Any

import ase.io
import click
from ase.optimize import FIRE, LBFGS
from tqdm import tqdm

from ..dynamics import HybridForces
from ..dynamics.guard import describe_overlap
from ..dynamics.relaxation import Relaxation
from ..dynamics.relaxation import relax as relax_atoms
from .common import load_forces, model_options, read_structure


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
    model: str,
    structure: str,
    direct_model: str | None,
    device: str | None,
    variant: str | None,
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
    if Path(output).exists():
        raise FileExistsError(f"{output} exists already: choose another file with -o")
    atoms = read_structure(structure)
    overlap = describe_overlap(atoms)
    if overlap:
        raise ValueError(f"the structure cannot be relaxed{overlap}")
    forces = load_forces(model, direct_model, device, variant)
    click.echo(f"Compiling the model for {len(atoms)} atoms ...", err=True)
    forces.warm_up(atoms, stress=cell)
    options = {"fmax": fmax, "cell": cell, "steps": steps}
    result = _relax("direct, then conservative", forces, atoms, options)
    if compare:
        for optimizer in (LBFGS, FIRE):
            name = f"conservative {optimizer.__name__}"
            only = options | {"use_direct": False, "optimizer": optimizer}
            _relax(name, forces, atoms, only)
    ase.io.write(output, result.atoms)
    if not result.converged:
        click.echo(
            f"Not converged: {output} holds the best structure so far. Give more "
            "--steps, or a larger --fmax.",
            err=True,
        )
        sys.exit(1)


def _relax(
    name: str, forces: HybridForces, atoms: ase.Atoms, options: dict[str, Any]
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
