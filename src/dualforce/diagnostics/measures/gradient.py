r"""Whether the conservative force is the negative gradient of the energy.

A symmetric Jacobian does not show it: the gradient of another energy is symmetric too.
Here the energy itself is differentiated, by central differences along some directions,

.. math:: \frac{E(x + h u) - E(x - h u)}{2 h} = -f \cdot u + \mathcal{O}(h^2).
"""

from dataclasses import dataclass
from math import sqrt
from typing import Any, Dict, List, Tuple

import ase
import numpy as np

from ...forces import Array, Evaluation, ForceSource, MissingForceError
from ..content import BAD, CAUTION, GOOD, Figure, Sentence, Table
from ..derivatives import displaced, noise
from ..findings import CONSERVATIVE, Findings
from ..measure import Case, Measure, NotApplicable, Progress, silent
from ..plotting import COLORS, panel
from ..setup import Setup
from ..text import milli, signed, significant, with_error


STEPS = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
"""Displacements of an atom, in Å, of which two neighbours give each derivative."""

DISPLACEMENT = 0.03
"""Standard deviation of random displacements before, in Å."""

SIGMAS = 5.0
"""Errors by which a difference must exceed zero to be held against the force."""

NOISE_EVALUATIONS = 24
"""Energies from which their noise is known to a third."""

RESOLUTION = 0.01
"""Error of the differences, relative to the force, with which a check says something.
"""


@dataclass(frozen=True)
class Derivative:
    """The derivative of the energy along one direction."""

    direction: str
    """``all atoms``, or element and index of the atom that moves."""
    force: float
    """Minus the component of the conservative force, in eV/Å."""
    energy: float
    """Central difference of the energy, extrapolated to a step of zero, in eV/Å."""
    error: float
    """Of the difference: what rounding and the length of the step can explain."""
    step: float
    """The shorter one of the two steps, in Å."""

    @property
    def deviation(self) -> float:
        """Difference between both, in eV/Å."""
        return self.energy - self.force


@dataclass(frozen=True)
class GradientCheck:
    """Conservative forces beside differences of the energy."""

    derivatives: List[Derivative]
    noise: float
    """Noise of the energy, in eV; infinite where all energies are the same."""
    rms_force: float
    """RMS component of the force along the directions, in eV/Å."""

    @property
    def deviation(self) -> float:
        """RMS of force minus difference, in eV/Å."""
        return _root_mean_square([each.deviation for each in self.derivatives])

    @property
    def error(self) -> float:
        """What this would be for an exact force, in eV/Å: the control."""
        return _root_mean_square([each.error for each in self.derivatives])

    @property
    def wrong(self) -> List[Derivative]:
        """Directions along which the force is not the derivative of the energy."""
        return [x for x in self.derivatives if abs(x.deviation) > SIGMAS * x.error]

    @property
    def is_sharp(self) -> bool:
        """Whether errors are small enough for the check to say something."""
        return self.error <= RESOLUTION * self.rms_force


def check_gradient(
    source: ForceSource,
    atoms: ase.Atoms,
    *,
    n_directions: int = 3,
    n_atoms: int = 3,
    seed: int = 0,
    progress: Progress = silent,
) -> GradientCheck:
    """Compare conservative forces with central differences of the energy.

    The atoms are displaced at random by 0.03 Å before, so that there are forces. For
    each direction the energy is evaluated with six steps. Each pair of neighbouring
    steps gives the derivative at a step of zero (Richardson), with an error from their
    difference and from the noise of energy and force; the pair with the least error
    counts.

    :param source: source of energy and conservative force.
    :param atoms: structure.
    :param n_directions: random directions in which all atoms move.
    :param n_atoms: atoms that are moved alone, in a random direction, of all elements
        in turn.
    :param seed: seed of directions and atoms.
    :param progress: told the part that is done.
    :raises MissingForceError: if there is no energy.
    :raises RuntimeError, FloatingPointError: if the model fails.
    """
    if not (source.has_conservative and source.has_energy):
        raise MissingForceError(f"{source.name} has no energy to differentiate")
    rng = np.random.default_rng(seed)
    # At a minimum there would be no force to compare.
    atoms = displaced(atoms, rng.normal(0.0, DISPLACEMENT, (len(atoms), 3)))
    directions = _directions(atoms, n_directions, n_atoms, rng)
    line = _Line(source, atoms)
    forces = source.conservative(atoms).forces
    # The noise is that of the total energy and of all forces, whatever moves.
    everywhere = rng.choice([-1.0, 1.0], size=(len(atoms), 3))
    sigma, force_noise = line.noises(everywhere)
    energies = []
    for index, (_, direction) in enumerate(directions):
        energies.append(
            [[line.energy(sign * h * direction) for sign in (1, -1)] for h in STEPS]
        )
        progress((index + 1) / len(directions))
    sigma = max(sigma, _resolution(np.array(energies)))
    derivatives = []
    for (name, direction), pairs in zip(directions, energies, strict=True):
        value, error, step = _derivative(np.array(pairs), sigma)
        # To unit vectors: a component of the force.
        length = float(np.linalg.norm(direction))
        slope = -float((forces * direction).sum()) / length
        error = float(np.hypot(error / length, force_noise))
        derivatives.append(Derivative(name, slope, value / length, error, step))
    sizes = [each.force for each in derivatives]
    return GradientCheck(derivatives, sigma, _root_mean_square(sizes))


class _Line:
    """Energies near a structure."""

    def __init__(self, source: ForceSource, atoms: ase.Atoms) -> None:
        self._source, self._atoms = source, atoms

    def energy(self, shift: Array) -> float:
        """In eV, with atoms displaced by ``shift``."""
        energy = self._source.conservative(displaced(self._atoms, shift)).energy
        assert energy is not None
        return energy

    def noises(self, direction: Array) -> Tuple[float, float]:
        """Noise of the energy in eV, and of a component of the force in eV/Å."""
        found: Dict[float, Evaluation] = {}

        def at(shift: float) -> Evaluation:
            if shift not in found:
                moved = displaced(self._atoms, shift * direction)
                found[shift] = self._source.conservative(moved)
            return found[shift]

        return (
            noise(lambda shift: np.array(at(shift).energy), NOISE_EVALUATIONS),
            noise(lambda shift: at(shift).forces, NOISE_EVALUATIONS),
        )


def _resolution(energies: Array) -> float:
    """Noise of energies that are multiples of a quantum, as totals in single precision
    are, or energies that were written with a few digits; zero for others."""
    gaps = np.diff(np.unique(energies))
    if len(gaps) == 0:
        return float("inf")
    multiples = gaps / gaps.min()
    is_quantised = (np.abs(multiples - np.round(multiples)) < 0.05).all()
    return float(gaps.min() / sqrt(12.0)) if is_quantised else 0.0


def _directions(
    atoms: ase.Atoms, n_directions: int, n_atoms: int, rng: np.random.Generator
) -> List[Tuple[str, Array]]:
    """Names and directions, in which each atom that moves does so by one."""
    shape = (len(atoms), 3)
    found = [("all atoms", _unit(rng.normal(size=shape))) for _ in range(n_directions)]
    order = rng.permutation(len(atoms))
    symbols = np.array(atoms.get_chemical_symbols())
    # The first atom of each element, then the second one, ...
    rank = np.array(
        [np.sum(symbols[order[:k]] == symbols[atom]) for k, atom in enumerate(order)]
    )
    for atom in order[np.argsort(rank, kind="stable")][:n_atoms]:
        direction = np.zeros(shape)
        direction[atom] = _unit(rng.normal(size=(1, 3)))[0]
        found.append((f"{symbols[atom]} {atom}", direction))
    return found


def _unit(vectors: Array) -> Array:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _derivative(energies: Array, sigma: float) -> Tuple[float, float, float]:
    """Derivative of the energy along a direction, its error, and the shorter step.

    :param energies: at both ends of each of :data:`STEPS`, shape ``[n_steps, 2]``.
    :param sigma: their noise.
    """
    steps = np.array(STEPS)
    slopes = (energies[:, 0] - energies[:, 1]) / (2.0 * steps)
    truncation = (slopes[1:] - slopes[:-1]) / 3.0
    rounding = 1.4 * sigma / (sqrt(2.0) * steps[:-1])  # of the extrapolated value
    # What is left after the extrapolation is smaller than what it changes.
    errors = np.hypot(rounding, truncation)
    best = int(np.argmin(errors))
    value = slopes[best] - truncation[best]
    return float(value), float(errors[best]), float(steps[best])


def _root_mean_square(values: List[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


class EnergyGradient(Measure):
    """Differences of the energy beside the conservative force."""

    name = "gradient"
    title = "Force and energy"
    explanation = (
        "A conservative force is minus the derivative of the energy. Here the energy "
        "is differentiated by central differences, along directions in which all "
        "atoms move and for single atoms. The error is what rounding of the energy and "
        "the length of the step (from two steps) can explain: an exact force deviates "
        "by no more."
    )
    result = GradientCheck
    min_atoms = 2
    sizes = {
        "quick": {"n_directions": 3, "n_atoms": 4},
        "full": {"n_directions": 8, "n_atoms": 16},
    }

    def cases(self, setup: Setup) -> List[Case]:
        if not (setup.source.has_conservative and setup.source.has_energy):
            raise NotApplicable("there is no energy to differentiate")
        size = setup.size(self)
        n_directions = size["n_directions"] + min(size["n_atoms"], len(setup.atoms))
        evaluations = {CONSERVATIVE: NOISE_EVALUATIONS + 2 * len(STEPS) * n_directions}
        settings = {"seed": setup.conditions.seed, **size}
        return [Case("energy", settings, evaluations)]

    def measure(
        self, setup: Setup, progress: Progress, **settings: Any
    ) -> GradientCheck:
        return check_gradient(setup.source, setup.atoms, progress=progress, **settings)

    def sentence(self, findings: Findings, check: GradientCheck) -> Sentence:
        name = findings.phrase(CONSERVATIVE)
        n_whole = sum(x.direction == "all atoms" for x in check.derivatives)
        numbers = (
            f"RMS deviation {milli(check.deviation)} meV/Å, of which rounding and "
            f"steps explain {milli(check.error)}; {n_whole} directions and "
            f"{len(check.derivatives) - n_whole} single atoms"
        )
        if check.wrong:
            worst = max(check.wrong, key=lambda x: abs(x.deviation))
            text = (
                f"{name.capitalize()} is not the derivative of the energy ({numbers}). "
                f"The largest deviation is {signed(1000 * worst.deviation)} meV/Å "
                f"({worst.direction}), where the force is "
                f"{signed(-1000 * worst.force)}: energy cannot be conserved."
            )
            return Sentence(BAD, self.title, text)
        if not check.is_sharp:
            text = (
                f"Not decided whether {name} is the derivative of the energy, which is "
                f"too noisy ({numbers})."
            )
            return Sentence(CAUTION, self.title, text)
        text = f"{name.capitalize()} is the derivative of the energy ({numbers})."
        return Sentence(GOOD, self.title, text)

    def tables(self, findings: Findings) -> List[Table]:
        rows = [
            [
                each.direction,
                f"{-each.force:+.5f}".replace("-", "−"),
                with_error((each.deviation, each.error), 1000.0),
                significant(each.step),
            ]
            for check in findings.of_type(GradientCheck)
            for each in check.derivatives
        ]
        header = ["what moves", "force / eV/Å", "difference / meV/Å", "step / Å"]
        return [Table(header, rows)] if rows else []

    def figures(self, findings: Findings) -> List[Figure]:
        caption = "Force against differences of the energy; shaded: explained."
        checks = findings.of_type(GradientCheck)
        return [Figure(_plot(check), caption) for check in checks]


def _plot(check: GradientCheck) -> str:
    """Deviations in units of their errors, direction by direction."""

    def paint(axes: Any) -> None:
        values = [x.deviation / x.error if x.error else 0.0 for x in check.derivatives]
        axes.plot(values, "o", ms=4.5, color=COLORS["conservative"])
        axes.axhspan(-SIGMAS, SIGMAS, color="#888888", alpha=0.12)
        axes.set_xticks([])
        largest = 1.3 * max(SIGMAS, *(abs(value) for value in values))
        axes.set_ylim(-largest, largest)

    return panel(paint, "direction", "deviation / its error")
