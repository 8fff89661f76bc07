"""Products with a Jacobian by central differences, whose step fits the precision."""

from collections.abc import Callable
from math import factorial, sqrt
from typing import Tuple

import ase
import numpy as np

from ..dynamics.evaluation import Array
from .subject import ForceField


STEP_RANGE = (1e-5, 1e-2)
"""Smallest and largest step, in Å."""

NOISE_ORDER = 6
"""Of the differences that noise is seen in."""

NOISE_SPACING = 1e-4
"""In Å. The part of a smooth force in differences of sixth order is far below any
rounding."""


class DifferenceProducts:
    r"""Products :math:`J v` by central differences.

    The step balances what was measured for this force and this structure: the noise of
    rounding, of size :math:`\sigma / \sqrt{2} h`, and the curvature, :math:`C h^2`.

    :param force: the force.
    :param atoms: the structure.
    :param trials: directions like those that follow, shape ``[n_trials, n_atoms, 3]``.
    :raises ValueError, RuntimeError, FloatingPointError: as evaluations do.
    """

    def __init__(self, force: ForceField, atoms: ase.Atoms, trials: Array) -> None:
        self._force, self._atoms = force, atoms
        self.n_evaluations = 0
        noise = _noise(lambda shift: self._at(shift * trials[0]))
        size, curvature = self._sizes(trials)
        best = (noise / (sqrt(8.0) * curvature)) ** (1 / 3) if curvature else np.inf
        self.step = float(np.clip(best, *STEP_RANGE))
        """Root mean square displacement of the coordinates that move, in Å."""
        self.noise = noise / (sqrt(2.0) * self.step)
        """Of an element of a product with a direction whose coordinates that move do so
        by one, in eV/Å^2."""
        error = float(np.hypot(self.noise, curvature * self.step**2))
        self.relative_error = error / size if size else 0.0
        """Of a product, by norms."""

    def forward(self, direction: Array) -> Array:
        """``J v``, from and to shape ``[n_atoms, 3]``."""
        return self._difference(direction, self.step)

    def _difference(self, direction: Array, step: float) -> Array:
        scale = step / sqrt((direction[direction != 0.0] ** 2).mean())
        ends = self._at(scale * direction), self._at(-scale * direction)
        return (ends[0] - ends[1]) / (2.0 * scale)

    def _at(self, shift: Array) -> Array:
        self.n_evaluations += 1
        moved = self._atoms.copy()
        moved.positions = self._atoms.positions + shift
        return self._force.evaluate(moved).forces

    def _sizes(self, trials: Array) -> Tuple[float, float]:
        """Root mean squares of a product and of its curvature ``C``."""
        step = STEP_RANGE[1]
        sizes, curvatures = [], []
        for trial in trials:
            narrow = self._difference(trial, step)
            wide = self._difference(trial, 2.0 * step)
            sizes.append((narrow**2).mean())
            curvatures.append((((wide - narrow) / (3.0 * step**2)) ** 2).mean())
        return sqrt(np.mean(sizes)), sqrt(np.mean(curvatures))


def _noise(force_at: Callable[[float], Array]) -> float:
    """Root mean square noise of a component of the force, in eV/Å.

    From differences of high order, in which a smooth function has no share
    (Moré and Wild, SIAM J. Sci. Comput. 33, 1292, 2011).
    """
    values = [force_at(NOISE_SPACING * index) for index in range(NOISE_ORDER + 1)]
    differences = np.diff(np.array(values), n=NOISE_ORDER, axis=0)
    weight = factorial(NOISE_ORDER) ** 2 / factorial(2 * NOISE_ORDER)
    return sqrt(weight * float((differences**2).mean()))
