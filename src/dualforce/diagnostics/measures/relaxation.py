"""Optimisations of geometries: whether they converge."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, List, Optional, Tuple

import ase
import numpy as np
from ase.optimize import FIRE, LBFGS
from ase.optimize.optimize import Optimizer
from scipy.stats import fisher_exact

from ...forces import Array, ConservativeCalculator, ForceSource, Kind
from ...md import describe_overlap
from ...md.thermostats import check_positive
from ..content import BAD, CAUTION, GOOD, Figure, Sentence
from ..findings import CONSERVATIVE, DIRECT, Findings
from ..measure import Case, Measure, Progress, silent
from ..plotting import COLORS, rows_panel
from ..setup import Setup
from ..text import NOTHING, significant
from .equilibration import forces_of_run


OPTIMIZERS = {"FIRE": FIRE, "LBFGS": LBFGS}

FMAX_MOLECULE, FMAX_BULK = 1e-5, 1e-4
"""In eV/Å: criteria of arXiv:2412.11569, Sec. 3."""

MAX_STEPS = 1000

MAX_DISPLACEMENT = 10.0
"""In Å: an atom that has moved so far has been expelled."""

SIGNIFICANCE = 0.05
"""Probability (Fisher's exact test) below which a rate counts as lower than another."""


@dataclass(frozen=True)
class RelaxationRate:
    """Optimisations from perturbed structures."""

    kind: str
    optimizer: str
    """``FIRE`` or ``LBFGS``."""
    fmax: float
    """In eV/Å."""
    max_steps: int
    converged: int
    n_runs: int
    median_steps: Optional[float]
    """Of the converged runs; none where there are none."""
    final_forces: List[float]
    """Largest force at the end of each run, in eV/Å, sorted; infinite for runs that
    failed."""


def default_fmax(atoms: ase.Atoms) -> float:
    """Bound on forces in arXiv:2412.11569, in eV/Å: tighter for isolated molecules."""
    return FMAX_BULK if atoms.pbc.any() else FMAX_MOLECULE


def perturb(
    atoms: ase.Atoms, count: int, *, width: float = 0.1, seed: int = 0
) -> List[ase.Atoms]:
    """Copies with every coordinate displaced at random.

    :param atoms: structure, which is not changed.
    :param count: number of copies.
    :param width: standard deviation of the displacements, in Å.
    :param seed: seed of the displacements.
    """
    check_positive(count=count, width=width)
    rng = np.random.default_rng(seed)
    copies = [atoms.copy() for _ in range(count)]
    for copy in copies:
        copy.set_positions(copy.positions + rng.normal(0.0, width, (len(copy), 3)))
    return copies


def relaxation_rate(
    source: ForceSource,
    structures: Sequence[ase.Atoms],
    *,
    kind: Kind,
    optimizer: str,
    fmax: Optional[float] = None,
    max_steps: int = MAX_STEPS,
    progress: Progress = silent,
) -> RelaxationRate:
    """Optimise each structure with one kind of force, and count how many converge.

    Convergence is judged by the force that moves the atoms. A run in which the model
    fails or an atom is expelled counts as not converged; the log says why.

    :param source: source of forces.
    :param structures: perturbed structures (:func:`perturb`), which are not changed.
    :param kind: kind of force.
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
    calculator = ConservativeCalculator(forces_of_run(source, kind, 1))
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
        kind=kind,
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


def converges_less(rate: RelaxationRate, control: RelaxationRate) -> bool:
    """Whether significantly fewer runs converge than in the control."""
    counts = [[x.converged, x.n_runs - x.converged] for x in (rate, control)]
    return bool(fisher_exact(counts, alternative="less")[1] < SIGNIFICANCE)


class Relaxations(Measure):
    """Optimisations, for each kind of force and some optimisers."""

    name = "relaxation"
    title = "Relaxation"
    explanation = (
        "Perturbed structures are relaxed until the largest force falls below the "
        "criterion. A force that is not a gradient need not vanish near the minimum of "
        "the energy, and optimisers may not converge. The control is the conservative "
        "force, from the same structures."
    )
    result = RelaxationRate
    min_atoms = 2
    columns = {
        "force": lambda findings, rate: findings.label(rate.kind),
        "optimiser": lambda _, rate: rate.optimizer,
        "converged": lambda _, rate: f"{rate.converged} of {rate.n_runs}",
        "median steps": lambda _, rate: (
            NOTHING if rate.median_steps is None else f"{rate.median_steps:.0f}"
        ),
        "median of largest force / eV/Å": lambda _, rate: significant(
            rate.final_forces[len(rate.final_forces) // 2]
        ),
        "criterion": lambda _, rate: f"{rate.fmax:g} eV/Å in {rate.max_steps} steps",
    }
    sizes = {
        "quick": {
            "optimizers": ("LBFGS",),
            "n_runs": 3,
            "max_steps": 200,
            "fmax": 0.05,
        },
        "full": {
            "optimizers": ("LBFGS", "FIRE"),
            "n_runs": 10,
            "max_steps": MAX_STEPS,
            "fmax": None,
        },
    }

    def cases(self, setup: Setup) -> List[Case]:
        size = dict(setup.size(self))
        optimizers = size.pop("optimizers")
        n_evaluations = size["n_runs"] * size["max_steps"]
        return [
            Case(
                f"{kind}-{optimizer}",
                {
                    "kind": kind,
                    "optimizer": optimizer,
                    "seed": setup.conditions.seed,
                    **size,
                },
                {kind: n_evaluations},
            )
            for optimizer in optimizers
            for kind in setup.source.kinds
        ]

    def measure(
        self,
        setup: Setup,
        progress: Progress,
        *,
        n_runs: int,
        seed: int,
        **settings: Any,
    ) -> RelaxationRate:
        structures = perturb(setup.atoms, n_runs, seed=seed)
        return relaxation_rate(setup.source, structures, progress=progress, **settings)

    def sentence(self, findings: Findings, rate: RelaxationRate) -> Sentence:
        control = findings.find(
            RelaxationRate,
            lambda x: x.optimizer == rate.optimizer and x.kind == CONSERVATIVE,
        )
        text = (
            f"With {findings.phrase(rate.kind)} {rate.converged} of {rate.n_runs} runs "
            f"of {rate.optimizer} converge to {rate.fmax:g} eV/Å within "
            f"{rate.max_steps} steps"
        )
        level = GOOD if rate.converged == rate.n_runs else CAUTION
        if control is not None and control is not rate:
            text += (
                f", {control.converged} of {control.n_runs} with conservative forces"
            )
            level = BAD if converges_less(rate, control) else level
        text += "."
        if level != GOOD and rate.kind == DIRECT and findings.has_both:
            text += " `dualforce relax` ends with the conservative force."
        return Sentence(level, self.title, text)

    def figures(self, findings: Findings) -> List[Figure]:
        if not findings.of_type(RelaxationRate):
            return []
        return [Figure(_plot(findings), "Relaxations that converge.")]


def _plot(findings: Findings) -> str:
    rates = findings.of_type(RelaxationRate)

    def paint(axes: Any) -> None:
        for row, rate in enumerate(rates):
            share = 100.0 * rate.converged / rate.n_runs
            color = COLORS[findings.label(rate.kind)]
            axes.barh(row, share, color=color, height=0.55)
        axes.set_xlim(0.0, 100.0)

    labels = [f"{findings.label(rate.kind)}\n{rate.optimizer}" for rate in rates]
    return rows_panel(paint, labels, "converged runs / %")
