"""Optimisation of geometries: direct forces far from the minimum, conservative ones to
the end."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional, Type

import ase
import numpy as np
from ase.filters import FrechetCellFilter
from ase.optimize import LBFGS
from ase.optimize.optimize import Optimizer

from ..forces import (
    Array,
    ConservativeCalculator,
    CountedForces,
    DirectOnly,
    Evaluation,
    ForceSource,
    Model,
    load_forces,
)
from .extrapolation import Extrapolation
from .guard import RunFailedError, describe_overlap
from .respa import check_source
from .structures import check_structure, with_results
from .thermostats import check_positive


TRUSTED = 3.0
"""Direct forces are followed while the largest is above this multiple of the largest
correction: nearer to the minimum they point anywhere."""

CHECK_INTERVAL = 10
"""Steps with direct forces between looks at the conservative energy."""

Progress = Callable[[str, int, float], None]
"""Receives the forces in use, the number of steps taken, and the largest force."""


@dataclass(frozen=True)
class Relaxation:
    """How an optimisation ended."""

    atoms: ase.Atoms
    """The last structure, with energy, forces and, for a relaxed cell, stress."""
    converged: bool
    """Whether all conservative forces (and stresses) are below the bound."""
    largest_force: float
    """Largest conservative force on an atom, in eV/Å."""
    energy: float
    """Conservative energy, in eV."""
    n_direct: int
    """Direct evaluations."""
    n_conservative: int
    """Evaluations with an energy, also of both forces in one pass."""
    seconds: float
    """Wall time."""


def relax(
    forces: Model,
    atoms: ase.Atoms,
    *,
    fmax: float = 0.01,
    cell: bool = False,
    steps: int = 1000,
    use_direct: bool = True,
    optimizer: Type[Optimizer] = LBFGS,
    progress: Progress = lambda kind, step, force: None,
) -> Relaxation:
    """Optimise positions, and the cell if asked for.

    Direct forces lead towards the minimum as long as they are large against their
    error, which is known where both forces are (now and then). Convergence is decided
    by conservative forces.

    :param forces: source of forces, or what :func:`~dualforce.load_forces` loads.
    :param atoms: structure, which is not changed; constraints hold.
    :param fmax: largest force on an atom that is accepted, in eV/Å (and of the cell, in
        the units of :class:`ase.filters.FrechetCellFilter`).
    :param cell: optimise the cell too.
    :param steps: steps at most.
    :param use_direct: whether to begin with direct forces, where there are any.
    :param optimizer: an optimiser of ASE that needs forces only.
    :param progress: told how far it is.
    :raises ValueError: if an argument makes no sense, or there is no cell to optimise.
    :raises RunFailedError: if the model fails on the way.
    """
    check_positive(fmax=fmax, steps=steps)
    if cell and not (atoms.pbc.all() and atoms.cell.rank == 3):
        raise ValueError(
            "only a cell that is periodic in all directions can be relaxed"
        )
    check_structure(atoms)
    source = load_forces(forces)
    check_source(source, n_inner=1)
    source.warm_up(atoms, stress=cell)
    start = time.perf_counter()
    counted = CountedForces(source)
    run = _Descent(counted, atoms.copy(), fmax, cell, steps, optimizer, progress)
    try:
        if use_direct and source.has_direct:
            run.descend_by_direct_forces()
        converged = run.descend_by_conservative_forces()
    except (FloatingPointError, RuntimeError) as error:
        raise RunFailedError(
            f"the relaxation failed after {run.n_steps} steps: {error}"
            f"{describe_overlap(run.atoms)}"
        ) from error
    run.extrapolation.watch(run.atoms, "at the end")
    final = source.conservative(run.atoms, stress=cell)
    assert final.energy is not None
    return Relaxation(
        atoms=with_results(run.atoms, final),
        converged=converged,
        largest_force=_largest(run.atoms.get_forces()),
        energy=final.energy,
        n_direct=counted.direct_cost.calls,
        n_conservative=counted.conservative_cost.calls,
        seconds=time.perf_counter() - start,
    )


class _Descent:
    """An optimisation under way."""

    def __init__(
        self,
        forces: CountedForces,
        atoms: ase.Atoms,
        fmax: float,
        cell: bool,
        steps: int,
        optimizer: Type[Optimizer],
        progress: Progress,
    ) -> None:
        self.forces = forces
        self.atoms = atoms
        self.fmax = fmax
        self.cell = cell
        self.steps = steps
        self.optimizer = optimizer
        self.progress = progress
        self.n_steps = 0
        self.extrapolation = Extrapolation(forces)

    def descend_by_direct_forces(self) -> None:
        """Go downhill until direct forces are too small to be trusted, or the
        conservative energy rises."""
        # Without a direct stress, the cell waits for the conservative one.
        cell = self.cell and self.forces.has_direct_stress
        best = self._look()
        optimizer = self._optimizer(DirectOnly(self.forces), cell)
        for _ in optimizer.irun(fmax=self._bound(best), steps=self.steps):
            self._report("direct", optimizer)
            if optimizer.nsteps % CHECK_INTERVAL or optimizer.nsteps == 0:
                continue
            now = self._look()
            if now.energy >= best.energy:
                break
            best = now
            optimizer.fmax = self._bound(now)  # type: ignore[assignment]
        self.n_steps = optimizer.nsteps
        if self._look().energy > best.energy:
            self.atoms.set_cell(best.cell)
            self.atoms.positions = best.positions

    def descend_by_conservative_forces(self) -> bool:
        """Go downhill to the end; whether it was reached."""
        optimizer = self._optimizer(self.forces, self.cell)
        left = max(0, self.steps - self.n_steps)
        reached: Any = False
        for reached in optimizer.irun(fmax=self.fmax, steps=left):  # noqa: B007
            self._report("conservative", optimizer)
        self.n_steps += optimizer.nsteps
        return bool(reached)

    def _optimizer(self, forces: ForceSource, cell: bool) -> Optimizer:
        self.atoms.calc = ConservativeCalculator(forces, always_stress=cell)
        target: Any = FrechetCellFilter(self.atoms) if cell else self.atoms
        return self.optimizer(target, logfile=None)

    def _look(self) -> "_Place":
        conservative, direct = self.forces.both(self.atoms)
        return _Place(
            self.atoms.positions.copy(),
            self.atoms.cell.array.copy(),
            conservative,
            _largest(conservative.forces - direct.forces),
        )

    def _bound(self, place: "_Place") -> float:
        return max(self.fmax, TRUSTED * place.correction)

    def _report(self, kind: str, optimizer: Optimizer) -> None:
        force, step = _largest(self.atoms.get_forces()), self.n_steps + optimizer.nsteps
        self.progress(kind, step, force)
        if step % CHECK_INTERVAL == 0:
            self.extrapolation.watch(self.atoms, f"at step {step}")


@dataclass(frozen=True)
class _Place:
    """A structure on the way where both forces are known."""

    positions: Array
    cell: Array
    conservative: Evaluation
    correction: float
    """Largest difference of conservative and direct force on an atom, in eV/Å."""

    @property
    def energy(self) -> float:
        """Conservative energy, in eV."""
        energy: Optional[float] = self.conservative.energy
        assert energy is not None
        return energy


def _largest(forces: Array) -> float:
    return float(np.linalg.norm(forces, axis=1).max())
