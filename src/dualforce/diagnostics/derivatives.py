"""Forces as models predict them, and products with their Jacobian, ``J[ia, jb] = d f_ia
/ d r_jb``, by automatic differentiation and by central differences."""

import functools
import logging
from collections.abc import Callable
from math import factorial, sqrt
from typing import Optional, Tuple

import ase
import numpy as np
from torch import Tensor, as_tensor, autograd, zeros_like

from ..forces import Array, Evaluation, ForceSource, Kind


STEP_RANGE = (1e-5, 1e-2)
"""Smallest and largest step of differences, in Å."""

NOISE_ORDER = 6
"""Order of the differences that noise is seen in."""

NOISE_SPACING = 1e-4
"""In Å. A smooth function has no share in differences of sixth order, compared with
rounding."""

DERIVATIVE_TOLERANCE = 0.02
"""Largest relative deviation of an automatic derivative from a difference: one that is
wrong, because a network left something out of its graph, is off by more."""


def predicted(source: ForceSource, kind: Kind, atoms: ase.Atoms) -> Evaluation:
    """Forces as the model predicts them: a net force of direct forces, which
    evaluations of a source leave out, is put back (in proportion to the masses, as it
    was removed). Automatic derivatives are those of the same forces.

    :param source: source of forces.
    :param kind: kind of force.
    :param atoms: structure.
    :raises ValueError, RuntimeError, FloatingPointError: as evaluations do.
    """
    return as_predicted(atoms, source.evaluate(kind, atoms))


def as_predicted(atoms: ase.Atoms, result: Evaluation) -> Evaluation:
    """An evaluation of a source with the net force put back, see :func:`predicted`."""
    if result.net_force is None:
        return result
    masses = atoms.get_masses()[:, None]
    total = masses.sum()
    shares = masses / total if total > 0.0 else np.full_like(masses, 1 / len(masses))
    forces = result.forces + shares * result.net_force
    return Evaluation(forces, result.energy, result.stress)


# ---------------------------------------------------------- automatic differentiation


class AutomaticProducts:
    """Products with the Jacobian by automatic differentiation.

    ``J v`` is the derivative of ``J^T w`` by ``w``, which needs the graph of a
    derivative. A conservative force is a derivative already, and its Jacobian is taken
    for a second derivative: there is ``J^T v`` only.

    :param source: source of forces.
    :param kind: kind of force.
    :param atoms: structure.
    :raises NotImplementedError, RuntimeError: if the forces cannot be differentiated.
    """

    def __init__(self, source: ForceSource, kind: Kind, atoms: ase.Atoms) -> None:
        self._positions, self._forces = source.differentiable(kind, atoms)
        is_gradient = kind == "conservative"
        self.n_evaluations = 2 if is_gradient else 1
        self.has_forward = not is_gradient
        self._weights = zeros_like(self._forces).requires_grad_(True)

    def transposed(self, direction: Array) -> Array:
        """``J^T v``, from and to shape ``[n_atoms, 3]``, in eV/Å^2 times the unit of
        ``v``."""
        return self._product(self._forces, self._positions, direction)

    def forward(self, direction: Array) -> Array:
        """``J v``, likewise."""
        return self._product(self._transposed_of_weights, self._weights, direction)

    @functools.cached_property
    def _transposed_of_weights(self) -> Tensor:
        (result,) = autograd.grad(
            self._forces, self._positions, self._weights, create_graph=True
        )
        return result

    def deviation(self, direction: Array, expected: Array) -> float:
        """Relative deviation from a product that is known by other means. If ``J v``
        cannot be computed, :attr:`has_forward` is false from then on.

        :param direction: ``v``, shape ``[n_atoms, 3]``.
        :param expected: ``J v``.
        """
        size = float((expected**2).sum())
        # Along the expected change the projection is as large as can be.
        found = [(self.transposed(expected) * direction).sum()]
        if self.has_forward:
            try:
                found.append((self.forward(direction) * expected).sum())
            except RuntimeError:
                self.has_forward = False
        return max(abs(each - size) for each in found) / size if size else 0.0

    def _product(self, result: Tensor, leaf: Tensor, direction: Array) -> Array:
        self.n_evaluations += 1
        weights = as_tensor(direction, dtype=result.dtype, device=result.device)
        (product,) = autograd.grad(
            result, leaf, weights, retain_graph=True, materialize_grads=True
        )
        return product.double().cpu().numpy()


def automatic_products(
    source: ForceSource, kind: Kind, atoms: ase.Atoms
) -> Optional[AutomaticProducts]:
    """Products with the Jacobian by automatic differentiation.

    :param source: source of forces.
    :param kind: kind of force.
    :param atoms: structure.
    :return: none if the forces cannot be differentiated, or their derivatives are
        wrong (compared with one difference); the log says so.
    :raises ValueError: if the model does not know an element.
    """
    try:
        products = AutomaticProducts(source, kind, atoms)
        deviation = products.deviation(*_difference(source, kind, atoms))
    except (NotImplementedError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        logging.info(f"no automatic derivatives of the {kind} force: {reason}")
        return None
    products.n_evaluations += 2
    if deviation <= DERIVATIVE_TOLERANCE:
        return products
    logging.warning(
        f"automatic derivatives of the {kind} force differ from differences by "
        f"{deviation:.0%}; differences are used"
    )
    return None


def _difference(
    source: ForceSource, kind: Kind, atoms: ase.Atoms, step: float = 1e-3
) -> Tuple[Array, Array]:
    """A random direction ``v``, and ``J v`` by central differences."""
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(len(atoms), 3))
    plus, minus = (
        predicted(source, kind, displaced(atoms, shift * signs)).forces
        for shift in (step, -step)
    )
    return signs, (plus - minus) / (2.0 * step)


# ---------------------------------------------------------------- central differences


class DifferenceProducts:
    r"""Products :math:`J v` by central differences.

    The step balances the noise of rounding, of size :math:`\sigma / \sqrt{2} h`, and
    the curvature, :math:`C h^2`, both measured for this force and structure.

    :param source: source of forces.
    :param kind: kind of force.
    :param atoms: structure.
    :param trials: directions like those that follow, shape ``[n_trials, n_atoms, 3]``.
    :raises ValueError, RuntimeError, FloatingPointError: as evaluations do.
    """

    def __init__(
        self, source: ForceSource, kind: Kind, atoms: ase.Atoms, trials: Array
    ) -> None:
        self._source, self._kind, self._atoms = source, kind, atoms
        self.n_evaluations = 0
        sigma = noise(lambda shift: self._at(shift * trials[0]))
        size, curvature = self._sizes(trials)
        best = (sigma / (sqrt(8.0) * curvature)) ** (1 / 3) if curvature else np.inf
        self.step = float(np.clip(best, *STEP_RANGE))
        """Root mean square displacement of the coordinates that move, in Å."""
        self.noise = sigma / (sqrt(2.0) * self.step)
        """Noise of an element of a product with a direction whose coordinates are zero
        or one, in eV/Å^2."""
        error = float(np.hypot(self.noise, curvature * self.step**2))
        self.relative_error = error / size if size else 0.0
        """Norm of the error of a product, relative to the norm of the product."""

    def forward(self, direction: Array) -> Array:
        """``J v``, from and to shape ``[n_atoms, 3]``."""
        return self._difference(direction, self.step)

    def _difference(self, direction: Array, step: float) -> Array:
        scale = step / sqrt((direction[direction != 0.0] ** 2).mean())
        ends = self._at(scale * direction), self._at(-scale * direction)
        return (ends[0] - ends[1]) / (2.0 * scale)

    def _at(self, shift: Array) -> Array:
        self.n_evaluations += 1
        return predicted(self._source, self._kind, displaced(self._atoms, shift)).forces

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


def displaced(atoms: ase.Atoms, shift: Array) -> ase.Atoms:
    """A copy with displaced atoms, whatever constraints hold.

    :param atoms: structure.
    :param shift: displacements in Å, shape ``[n_atoms, 3]``.
    """
    moved: ase.Atoms = atoms.copy()
    moved.positions = atoms.positions + shift
    return moved


def noise(value_at: Callable[[float], Array], n_values: int = NOISE_ORDER + 1) -> float:
    """Root mean square noise of a component of a smooth function, from differences of
    high order, in which the function has no share (Moré and Wild, SIAM J. Sci. Comput.
    33, 1292, 2011).

    :param value_at: the function, of a displacement in Å.
    :param n_values: number of evaluations, at least seven; a function of few components
        needs more.
    """
    spacings = NOISE_SPACING * np.arange(n_values)
    values = np.array([value_at(spacing) for spacing in spacings])
    differences = np.diff(values, n=NOISE_ORDER, axis=0)
    weight = factorial(NOISE_ORDER) ** 2 / factorial(2 * NOISE_ORDER)
    return sqrt(weight * float((differences**2).mean()))
