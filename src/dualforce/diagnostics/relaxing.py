"""Optimisations of geometries: do they end where the force vanishes?"""

import logging
from collections.abc import Sequence
from typing import List, Optional, Tuple

import ase
import numpy as np
from ase.optimize import FIRE, LBFGS
from ase.optimize.optimize import Optimizer

from ..dynamics import ConservativeCalculator, TwoForces
from ..dynamics.evaluation import Array
from ..dynamics.guard import describe_overlap
from ..dynamics.thermostats import check_positive
from .results import RelaxationRate
from .runs import Progress, followed, silent


OPTIMIZERS = {"FIRE": FIRE, "LBFGS": LBFGS}

FMAX_MOLECULE, FMAX_BULK = 1e-5, 1e-4
"""In eV/Å: what the reference asks for (arXiv:2412.11569, Sec. 3)."""
MAX_STEPS = 1000

MAX_DISPLACEMENT = 10.0
"""In Å: an atom so far from where it started has been shot off."""


def default_fmax(atoms: ase.Atoms) -> float:
    """Bound on forces of the reference, in eV/Å: tighter for isolated molecules."""
    return FMAX_BULK if atoms.pbc.any() else FMAX_MOLECULE


def perturb(
    atoms: ase.Atoms, count: int, *, width: float = 0.1, seed: int = 0
) -> List[ase.Atoms]:
    """Copies with every coordinate displaced at random.

    :param atoms: structure, which is not changed.
    :param count: number of copies.
    :param width: standard deviation of the displacements, in Å.
    :param seed: of the displacements.
    """
    check_positive(count=count, width=width)
    rng = np.random.default_rng(seed)
    copies = [atoms.copy() for _ in range(count)]
    for copy in copies:
        copy.set_positions(copy.positions + rng.normal(0.0, width, (len(copy), 3)))
    return copies


def relaxation_rate(
    forces: TwoForces,
    structures: Sequence[ase.Atoms],
    *,
    kind: str,
    optimizer: str,
    fmax: Optional[float] = None,
    max_steps: int = MAX_STEPS,
    progress: Progress = silent,
) -> RelaxationRate:
    """Optimise each structure with one kind of force, and count how many converge.

    Convergence is judged by the force that is followed. Where the model fails, or an
    atom is shot off, the run counts as not converged and the log says why.

    :param forces: the model.
    :param structures: perturbed structures (:func:`perturb`), which are not changed.
    :param kind: ``conservative``, ``direct`` or ``forces``.
    :param optimizer: ``FIRE`` or ``LBFGS``.
    :param fmax: largest force on an atom that is accepted, in eV/Å; by default that of
        :func:`default_fmax`.
    :param max_steps: steps at most.
    :param progress: told the part that is done.
    :raises ValueError: if an argument makes no sense.
    """
    if not structures:
        raise ValueError("there are no structures to relax")
    if optimizer not in OPTIMIZERS:
        raise ValueError(
            f"the optimizer must be one of {', '.join(OPTIMIZERS)}, not '{optimizer}'"
        )
    fmax = default_fmax(structures[0]) if fmax is None else fmax
    check_positive(fmax=fmax, max_steps=max_steps)
    calculator = ConservativeCalculator(followed(forces, kind))
    steps: List[int] = []
    largest: List[float] = []
    for index, structure in enumerate(structures):

        def report(share: float, before: int = index) -> None:
            progress((before + share) / len(structures))

        atoms = structure.copy()
        atoms.calc = calculator
        descent = OPTIMIZERS[optimizer](atoms, logfile=None)
        n_steps, force = _relax(descent, f"structure {index}", fmax, max_steps, report)
        largest.append(force)
        if n_steps is not None:
            steps.append(n_steps)
        report(1.0)
    return RelaxationRate(
        forces=kind,
        optimizer=optimizer,
        fmax=fmax,
        max_steps=max_steps,
        converged=len(steps),
        n_runs=len(structures),
        median_steps=float(np.median(steps)) if steps else None,
        final_forces=sorted(largest),
    )


def _relax(
    descent: Optimizer, name: str, fmax: float, max_steps: int, report: Progress
) -> Tuple[Optional[int], float]:
    """Steps that were needed, or none, and the largest force at the end."""
    atoms = descent.atoms
    start, converged = atoms.positions.copy(), False
    try:
        for converged in descent.irun(fmax=fmax, steps=max_steps):  # noqa: B007
            _check_displacements(atoms.positions - start)
            report(descent.nsteps / max_steps)
        force = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
    except (FloatingPointError, RuntimeError) as error:
        logging.warning(
            f"the relaxation of {name} failed after {descent.nsteps} steps: {error}"
            f"{describe_overlap(atoms)}"
        )
        return None, float("inf")
    return (descent.nsteps if converged else None), force


def _check_displacements(displacements: Array) -> None:
    farthest = np.linalg.norm(displacements, axis=1).max()
    # Written so that NaN counts as too far.
    if not farthest < MAX_DISPLACEMENT:
        raise FloatingPointError(
            f"an atom has moved by {farthest:.1f} Å from where it started"
        )
