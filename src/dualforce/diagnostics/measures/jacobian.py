r"""Symmetry of the Jacobian of a force.

With :math:`J_{ia,jb} = \partial f_{ia} / \partial r_{jb}` and its antisymmetric part
:math:`J^{anti} = (J - J^T) / 2`, the asymmetry :math:`\lambda = \lVert J^{anti}
\rVert_F / \lVert J \rVert_F` is zero for the gradient of an energy and one for a force
without a conservative part (arXiv:2412.11569, Sec. 2).
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Any, Dict, List, Optional, Tuple

import ase
import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from ...forces import Array, ForceSource, Kind
from ..content import BAD, CAUTION, GOOD, Figure, Sentence
from ..derivatives import DifferenceProducts, automatic_products
from ..findings import CONSERVATIVE, Findings
from ..measure import Case, Measure, Progress, silent
from ..plotting import MARKERS, OTHER_COLORS, panel
from ..setup import Setup
from ..text import by_element, significant, with_error


AUTOMATIC, DIFFERENCES = "automatic differentiation", "central differences"

BIN_WIDTH = 0.5
"""Of the distances of pairs, in Å."""

MAX_EXACT = 3000
"""Atoms: the whole Jacobian of so many takes 650 MB."""

MAX_AUTOMATIC = 2000
"""Atoms: above, differences are used, which keep no graph of the network in memory."""

MIN_PROBES = 4

ROUNDING = 1e-4
"""Asymmetry that automatic differentiation in single precision may show for the
gradient of an energy."""

FLOORS = 3.0
"""Multiple of the asymmetry of rounding up to which a Jacobian counts as symmetric."""

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class PairBin:
    """Blocks of the Jacobian for pairs of atoms in one range of distances."""

    elements: str
    """Both elements, in the order of the alphabet: ``H-O``."""
    distance: float
    """Middle of the range, in Å."""
    n_pairs: int
    asymmetry: float
    r""":math:`\sqrt{\sum |J^{anti}_{ij}|^2 / \sum |J_{ij}|^2}` over the pairs."""
    norm: float
    """Root mean square Frobenius norm of a block, in eV/Å^2."""
    antisymmetric_norm: float
    """The same of the antisymmetric part."""


@dataclass(frozen=True)
class Asymmetry:
    r"""Asymmetry :math:`\lambda` of the Jacobian of one kind of force."""

    kind: str
    value: float
    error: Optional[float]
    """Standard error, wide enough for 1.96 of it to hold the truth with a probability
    of 95 %; none where the whole Jacobian was computed."""
    method: str
    """``automatic differentiation`` or ``central differences``."""
    n_probes: int
    """Directions of the estimator, or columns of the whole Jacobian."""
    n_evaluations: int
    """Evaluations of the force, forward or backward."""
    per_element: Dict[str, float]
    """Asymmetry of the rows and columns of each element; empty if not computed."""
    per_atom: List[float]
    """The same for each atom; empty if not computed."""
    pairs: List[PairBin]
    """By elements and distance; empty if not computed."""
    floor: Optional[float] = None
    """Asymmetry that noise and step of central differences alone would show; none for
    automatic differentiation."""

    @property
    def control(self) -> float:
        """What a symmetric Jacobian might show."""
        return max(ROUNDING, FLOORS * (self.floor or 0.0))

    @property
    def is_symmetric(self) -> bool:
        """Whether the force counts as the gradient of an energy."""
        return self.value <= self.control


def exact_asymmetry(
    source: ForceSource, kind: Kind, atoms: ase.Atoms, *, progress: Progress = silent
) -> Asymmetry:
    """Asymmetry from the whole Jacobian: by atom, element and pair.

    :param source: source of forces.
    :param kind: kind of force.
    :param atoms: structure.
    :param progress: told the part that is done.
    :raises ValueError: if the structure is too large, if the force does not depend on
        positions, or if the model does not know an element.
    :raises RuntimeError, FloatingPointError: if the model fails.
    """
    if len(atoms) > MAX_EXACT:
        raise ValueError(
            f"the whole Jacobian of {len(atoms)} atoms does not fit in memory (at most "
            f"{MAX_EXACT} atoms); estimate the asymmetry instead"
        )
    products = _Products(source, kind, atoms)
    everything = np.arange(len(atoms))
    matrix = products.block(everything, progress)
    blocks = _Blocks(atoms)
    for atom in range(len(atoms)):
        blocks.add(atom, everything, matrix[atom], matrix[:, :, atom])
    return Asymmetry(
        kind=kind,
        value=blocks.total(),
        error=None,
        method=products.method,
        n_probes=3 * len(atoms),
        n_evaluations=products.n_evaluations,
        per_element=blocks.per_element(),
        per_atom=blocks.per_atom(),
        pairs=blocks.pairs(products.column_noise),
        floor=products.column_floor,
    )


def estimate_asymmetry(
    source: ForceSource,
    kind: Kind,
    atoms: ase.Atoms,
    *,
    n_probes: int = 10,
    n_pair_atoms: int = 0,
    seed: int = 0,
    progress: Progress = silent,
) -> Asymmetry:
    r"""Asymmetry from products of the Jacobian with random orthonormal directions.

    The directions are drawn without replacement. As many as there are coordinates give
    the exact value; they are all taken if a third of them was asked for. Norms come
    from :math:`|(J - J^T) q_k|^2` if products with both :math:`J` and :math:`J^T` are
    known, otherwise from all pairs, :math:`(q_k J q_l - q_l J q_k)^2`, which is less
    accurate: the relative error is about one over the number of directions.

    1.96 errors hold the truth with a probability of 95 %; for few directions the error
    is therefore larger than the standard deviation. If differences are used it includes
    their error.

    :param source: source of forces.
    :param kind: kind of force.
    :param atoms: structure.
    :param n_probes: number of directions.
    :param n_pair_atoms: atoms for whose pairs blocks of the Jacobian are computed: with
        all other atoms if products with :math:`J^T` are known, otherwise with each
        other.
    :param seed: seed of the directions and of the choice of atoms.
    :param progress: told the part that is done.
    :raises ValueError: if an argument makes no sense, if the force does not depend on
        positions, or if the model does not know an element.
    :raises RuntimeError, FloatingPointError: if the model fails.
    """
    if n_probes < MIN_PROBES:
        raise ValueError(f"n_probes must be at least {MIN_PROBES}, not {n_probes}")
    rng = np.random.default_rng(seed)
    if len(atoms) <= n_probes:
        n_probes = 3 * len(atoms)  # all there are
    products = _Products(source, kind, atoms)
    n_products = n_probes * (2 if products.has_both else 1)
    n_columns = 3 * min(n_pair_atoms, len(atoms)) * (2 if products.has_both else 1)
    share = n_products / (n_products + n_columns)
    value, error = _estimate(products, n_probes, rng, lambda x: progress(share * x))
    pairs: List[PairBin] = []
    per_element: Dict[str, float] = {}
    if n_pair_atoms and len(atoms) > 1:
        blocks = _sample_blocks(
            products, n_pair_atoms, rng, lambda x: progress(share + (1 - share) * x)
        )
        pairs = blocks.pairs(products.column_noise)
        # Pairs of the chosen atoms alone say nothing about whole rows.
        per_element = blocks.per_element() if products.has_both else {}
    return Asymmetry(
        kind=kind,
        value=value,
        # Errors of products change norms by no more than their own norm.
        error=float(np.hypot(error, products.floor or 0.0)),
        method=products.method,
        n_probes=n_probes,
        n_evaluations=products.n_evaluations,
        per_element=per_element,
        per_atom=[],
        pairs=pairs,
        floor=products.floor,
    )


# ----------------------------------------------------------------------------- products


class _Products:
    """Products with the Jacobian at one structure, automatic where possible."""

    def __init__(self, source: ForceSource, kind: Kind, atoms: ase.Atoms) -> None:
        self._source, self._kind, self.atoms = source, kind, atoms
        self._automatic = None
        if len(atoms) <= MAX_AUTOMATIC:
            self._automatic = automatic_products(source, kind, atoms)
        self._differences: Dict[bool, DifferenceProducts] = {}

    @property
    def method(self) -> str:
        """How they are computed."""
        return AUTOMATIC if self._automatic else DIFFERENCES

    @property
    def has_both(self) -> bool:
        """Whether there are products with the Jacobian and with its transpose."""
        return self._automatic is not None and self._automatic.has_forward

    @property
    def n_evaluations(self) -> int:
        """Evaluations of the force, forward or backward."""
        if self._automatic is not None:
            return self._automatic.n_evaluations
        return sum(each.n_evaluations for each in self._differences.values())

    @property
    def floor(self) -> Optional[float]:
        """Asymmetry that the errors of differences along all coordinates show, if there
        were any."""
        return self._floor(of_columns=False)

    @property
    def column_floor(self) -> Optional[float]:
        """The same for differences along one coordinate."""
        return self._floor(of_columns=True)

    def _floor(self, of_columns: bool) -> Optional[float]:
        if of_columns not in self._differences:
            return None
        # Half of the square of a random error is antisymmetric.
        return self._differences[of_columns].relative_error / sqrt(2.0)

    @property
    def column_noise(self) -> float:
        """Noise of an element of the Jacobian, in eV/Å^2."""
        columns = self._differences.get(True)
        return columns.noise if columns else 0.0

    def one(self, direction: Array, of_columns: bool = False) -> Array:
        """``J^T v`` by automatic differentiation, or ``J v`` by differences: norms of
        the antisymmetric part are the same.

        :param direction: shape ``[n_atoms, 3]``.
        :param of_columns: whether the direction is a coordinate.
        """
        if self._automatic is not None:
            return self._automatic.transposed(direction)
        if of_columns not in self._differences:
            trials = _trials(len(self.atoms), of_columns)
            self._differences[of_columns] = DifferenceProducts(
                self._source, self._kind, self.atoms, trials
            )
        return self._differences[of_columns].forward(direction)

    def forward(self, direction: Array) -> Array:
        """``J v``, where there are both."""
        assert self._automatic is not None
        return self._automatic.forward(direction)

    def block(self, chosen: Indices, progress: Progress) -> Array:
        """Rows of the Jacobian or, by differences, of its transpose.

        :param chosen: atoms.
        :return: derivatives between them, shape ``[n_chosen, 3, n_chosen, 3]``.
        """
        rows = self.rows(lambda v: self.one(v, of_columns=True), chosen, progress)
        return rows[:, :, chosen]

    def rows(
        self, multiply: Callable[[Array], Array], chosen: Indices, progress: Progress
    ) -> Array:
        """Products with the coordinates of atoms.

        :param chosen: atoms.
        :return: shape ``[n_chosen, 3, n_atoms, 3]``.
        """
        rows = np.empty((len(chosen), 3, len(self.atoms), 3))
        for index, atom in enumerate(chosen):
            for axis in range(3):
                direction = np.zeros((len(self.atoms), 3))
                direction[atom, axis] = 1.0
                rows[index, axis] = multiply(direction)
            progress((index + 1) / len(chosen))
        return rows


def _trials(n_atoms: int, of_columns: bool) -> Array:
    """Directions like those of differences, to choose their step by."""
    rng = np.random.default_rng(0)
    if not of_columns:
        return rng.choice([-1.0, 1.0], size=(1, n_atoms, 3))
    coordinates = rng.choice(3 * n_atoms, size=min(6, 3 * n_atoms), replace=False)
    return np.eye(3 * n_atoms)[coordinates].reshape(-1, n_atoms, 3)


# ---------------------------------------------------------------------------- estimator


def _estimate(
    products: _Products, n_probes: int, rng: np.random.Generator, progress: Progress
) -> Tuple[float, float]:
    """Asymmetry and its error."""
    n = 3 * len(products.atoms)
    # Entries of one size scatter less than Gaussian ones.
    signs = rng.choice([-1.0, 1.0], size=(n, n_probes))
    probes = np.linalg.qr(signs)[0].T
    first, second = np.empty_like(probes), np.empty_like(probes)
    for index, probe in enumerate(probes):
        direction = probe.reshape(-1, 3)
        first[index] = products.one(direction).ravel()
        if products.has_both:
            second[index] = products.forward(direction).ravel()
        progress((index + 1) / n_probes)
    if products.has_both:
        return _from_both(first, second)
    return _from_pairs(probes, first)


def _from_both(transposed: Array, forward: Array) -> Tuple[float, float]:
    """Asymmetry from products with the Jacobian and its transpose.

    :param transposed: products for each probe, shape ``[n_probes, n]``.
    :param forward: likewise.
    """
    antisymmetric = ((forward - transposed) ** 2).sum(1) / 4.0
    squares = ((forward**2).sum(1) + (transposed**2).sum(1)) / 2.0
    share = _share(antisymmetric.mean(), squares.mean())
    if share == 0.0:
        return 0.0, 0.0
    influence = antisymmetric / antisymmetric.mean() - squares / squares.mean()
    return share, share * _error(influence.var(ddof=1) / len(forward), *forward.shape)


def _from_pairs(probes: Array, products: Array) -> Tuple[float, float]:
    """Asymmetry from products with one matrix.

    :param probes: orthonormal directions, shape ``[n_probes, n]``.
    :param products: with each of them, shape ``[n_probes, n]``.
    """
    n_probes, n = probes.shape
    projected = probes @ products.T
    kernel = (n - 1) * (projected - projected.T) ** 2 / 4.0
    squares = (products**2).sum(1)
    mean = kernel.sum() / (n_probes * (n_probes - 1))
    share = _share(mean, squares.mean())
    if share == 0.0:
        return 0.0, 0.0
    relative = squares / squares.mean()
    influence = kernel / mean - (relative[:, None] + relative[None, :]) / 2.0
    return share, share * _error(_variance_of_pairs(influence), n_probes, n)


def _share(antisymmetric: float, squares: float) -> float:
    if squares == 0.0:
        raise ValueError(
            "the force does not change with the positions (one atom, or none within "
            "the cutoff of another), so it has no asymmetry"
        )
    return float(np.sqrt(antisymmetric / squares))


def _error(variance: float, n_probes: int, n: int) -> float:
    """Error of a share relative to it.

    :param variance: variance of the squared share relative to it, as if drawn with
        replacement.
    """
    # The probes are part of a basis: all of them leave no error.
    variance *= 1.0 - n_probes / n
    # Squares are skewed, so their variance is known less well than that of Gaussian
    # numbers: with half of the degrees of freedom intervals have the coverage of 95 %.
    confidence = student_t.ppf(0.975, (n_probes - 1) / 2) / 1.96
    return float(0.5 * confidence * np.sqrt(variance))


def _variance_of_pairs(kernel: Array) -> float:
    """Variance of the mean over all pairs of independent draws (a U-statistic).

    The value of a pair is a mean, a contribution of each of both draws and a remainder;
    the variances of contributions and remainders follow from the analysis of variance
    (Hoeffding; the jackknife would count the remainders twice).

    :param kernel: values of pairs, symmetric, shape ``[n, n]``; the diagonal is not
        used.
    """
    n = len(kernel)
    off = ~np.eye(n, dtype=bool)
    centred = np.where(off, kernel - kernel[off].mean(), 0.0)
    shares = centred.sum(1) / (n - 2)
    rests = np.where(off, centred - shares[:, None] - shares[None, :], 0.0)
    rest = (rests**2).sum() / 2.0 / (n * (n - 3) / 2.0)
    share = max(0.0, shares.var(ddof=1) - rest / (n - 2))
    return float(4.0 * share / n + 2.0 * rest / (n * (n - 1)))


# ------------------------------------------------------------------------------- blocks


def _sample_blocks(
    products: _Products, n_chosen: int, rng: np.random.Generator, progress: Progress
) -> "_Blocks":
    """Blocks of some atoms."""
    atoms = products.atoms
    blocks = _Blocks(atoms)
    if products.has_both:
        chosen = _stratified(atoms, n_chosen, rng)
        rows = products.rows(products.one, chosen, lambda x: progress(0.5 * x))
        columns = products.rows(
            products.forward, chosen, lambda x: progress(0.5 + 0.5 * x)
        )
        everything = np.arange(len(atoms))
        for index, atom in enumerate(chosen):
            blocks.add(atom, everything, rows[index], columns[index].transpose(1, 2, 0))
        return blocks
    chosen = _neighborhood(atoms, n_chosen, rng)
    matrix = products.block(chosen, progress)
    for index, atom in enumerate(chosen):
        blocks.add(atom, chosen, matrix[index], matrix[:, :, index])
    return blocks


def _stratified(atoms: ase.Atoms, n_chosen: int, rng: np.random.Generator) -> Indices:
    """Random atoms, as evenly of all elements as possible."""
    order = rng.permutation(len(atoms))
    rank = np.empty(len(atoms))
    for number in set(atoms.numbers[order]):
        same = order[atoms.numbers[order] == number]
        rank[same] = np.arange(len(same))
    return np.sort(order[np.argsort(rank[order], kind="stable")][:n_chosen])


def _neighborhood(atoms: ase.Atoms, n_chosen: int, rng: np.random.Generator) -> Indices:
    """A random atom and those nearest to it."""
    return np.argsort(_distances(atoms, int(rng.integers(len(atoms)))))[:n_chosen]


def _distances(atoms: ase.Atoms, center: int) -> Array:
    """To the nearest image of every atom, in Å."""
    indices = np.arange(len(atoms))
    return atoms.get_distances(center, indices, mic=bool(atoms.pbc.any()))


class _Blocks:
    """Sums of squares over blocks of the Jacobian."""

    def __init__(self, atoms: ase.Atoms) -> None:
        self._atoms = atoms
        self._symbols = np.array(atoms.get_chemical_symbols())
        self._sums = np.zeros((len(atoms), 2))
        """Antisymmetric part and all, for each atom."""
        self._known = np.zeros(len(atoms), dtype=bool)
        self._bins: Dict[Tuple[str, int], Array] = {}
        """Number of pairs, antisymmetric part and all, of element pairs and bins."""

    def add(self, atom: int, others: Indices, rows: Array, columns: Array) -> None:
        """Take in the blocks of an atom.

        :param atom: the atom ``i``.
        :param others: atoms ``j``.
        :param rows: ``J[ia, jb]``, shape ``[3, n_others, 3]``.
        :param columns: ``J[jb, ia]``, shape ``[n_others, 3, 3]``.
        """
        rows = rows.transpose(1, 0, 2)
        columns = columns.transpose(0, 2, 1)
        squares = np.stack(
            [
                ((rows - columns) ** 2).sum((1, 2)) / 4.0,
                ((rows**2).sum((1, 2)) + (columns**2).sum((1, 2))) / 2.0,
            ],
            axis=1,
        )
        self._sums[atom] = squares.sum(0)
        self._known[atom] = True
        self._add_pairs(atom, others, squares)

    def _add_pairs(self, atom: int, others: Indices, squares: Array) -> None:
        new = ~self._known[others]  # the rest was counted when the other one came
        index = (_distances(self._atoms, atom)[others] / BIN_WIDTH).astype(int)
        symbol = self._symbols[atom]
        for other in np.unique(self._symbols[others[new]]):
            name = "-".join(sorted([symbol, other]))
            chosen = new & (self._symbols[others] == other)
            for place in np.unique(index[chosen]):
                inside = squares[chosen & (index == place)]
                sums = self._bins.setdefault((name, int(place)), np.zeros(3))
                sums += [len(inside), *inside.sum(0)]

    def total(self) -> float:
        """Asymmetry of all blocks together."""
        return _share(*self._sums.sum(0))

    def per_atom(self) -> List[float]:
        """Asymmetry of each atom; zero where its blocks vanish."""
        return [_ratio(*sums) for sums in self._sums]

    def per_element(self) -> Dict[str, float]:
        """Asymmetry of each element."""
        return {
            str(symbol): _ratio(*self._sums[self._symbols == symbol].sum(0))
            for symbol in np.unique(self._symbols[self._known])
        }

    def pairs(self, noise: float) -> List[PairBin]:
        """By elements and distance, without bins that vanish or are mostly noise.

        :param noise: noise of an element of the Jacobian, in eV/Å^2.
        """
        # Of a block of nine elements the noise has three times the norm; it should be
        # three times smaller than the signal.
        least = 9.0 * noise
        found = []
        for (elements, place), sums in sorted(self._bins.items()):
            n_pairs, antisymmetric, squares = sums
            norm = np.sqrt(squares / n_pairs)
            if norm <= least:
                continue
            found.append(
                PairBin(
                    elements=elements,
                    distance=(place + 0.5) * BIN_WIDTH,
                    n_pairs=int(n_pairs),
                    asymmetry=_ratio(antisymmetric, squares),
                    norm=float(norm),
                    antisymmetric_norm=float(np.sqrt(antisymmetric / n_pairs)),
                )
            )
        return found


def _ratio(antisymmetric: float, squares: float) -> float:
    return float(np.sqrt(antisymmetric / squares)) if squares else 0.0


# ------------------------------------------------------------------------------ measure


class JacobianSymmetry(Measure):
    """Asymmetry of the Jacobian, for each kind of force."""

    name = "jacobian"
    title = "Symmetry of the Jacobian"
    explanation = (
        "For the gradient of an energy, the derivative of the force on atom i by the "
        "position of atom j equals that of the force on j by the position of i. λ is "
        "the norm of the part of the Jacobian that breaks this rule, relative to the "
        "whole: 0 for a gradient, 1 for a force that has nothing of one."
    )
    result = Asymmetry
    min_atoms = 2
    columns = {
        "force": lambda findings, each: findings.label(each.kind),
        "λ": lambda _, each: _value(each),
        "λ by element": lambda _, each: by_element(each.per_element),
        "method": lambda _, each: f"{each.method}, {_extent(each)}",
    }
    sizes = {
        "quick": {"max_exact": 30, "n_probes": 16, "n_pair_atoms": 12},
        "full": {"max_exact": 400, "n_probes": 48, "n_pair_atoms": 48},
    }

    def cases(self, setup: Setup) -> List[Case]:
        return [self._case(setup, kind) for kind in setup.source.kinds]

    def _case(self, setup: Setup, kind: Kind) -> Case:
        size, n_atoms = setup.size(self), len(setup.atoms)
        settings: Dict[str, Any] = {"kind": kind}
        n_products = 3 * n_atoms
        if n_atoms > size["max_exact"]:
            # Pairs of a force that is conservative have no antisymmetric part.
            known = kind == CONSERVATIVE and not setup.findings.is_calculator
            settings["n_probes"] = size["n_probes"]
            settings["n_pair_atoms"] = 0 if known else size["n_pair_atoms"]
            settings["seed"] = setup.conditions.seed
            n_products = size["n_probes"] + 3 * settings["n_pair_atoms"]
        return Case(kind, settings, {kind: 4.0 * n_products})

    def measure(
        self, setup: Setup, progress: Progress, *, kind: Kind, **settings: Any
    ) -> Asymmetry:
        arguments = (setup.source, kind, setup.atoms)
        if settings:
            return estimate_asymmetry(*arguments, progress=progress, **settings)
        return exact_asymmetry(*arguments, progress=progress)

    def sentence(self, findings: Findings, each: Asymmetry) -> Sentence:
        name = findings.phrase(each.kind).capitalize()
        numbers = f"λ = {_value(each)}; rounding: up to {significant(each.control)}"
        if each.is_symmetric:
            text = f"{name} has a symmetric Jacobian ({numbers})."
            return Sentence(GOOD, self.title, text)
        text = f"{name} is not the gradient of any energy ({numbers})."
        # Where there is another force, it can be corrected with that.
        return Sentence(CAUTION if findings.has_both else BAD, self.title, text)

    def figures(self, findings: Findings) -> List[Figure]:
        figures = []
        for each in findings.of_type(Asymmetry):
            if not each.pairs or each.is_symmetric:
                continue
            title = findings.label(each.kind).capitalize()
            caption = f"{title}: asymmetry of pairs of atoms against their distance."
            figures.append(Figure(_plot_asymmetry(each), caption))
            caption = f"{title}: derivatives (solid), and their antisymmetric part."
            figures.append(Figure(_plot_norm(each), caption))
        return figures


def _value(each: Asymmetry) -> str:
    """An asymmetry with its error."""
    text = significant(each.value)
    if each.error:
        text = with_error((each.value, each.error)).lstrip("+")
    if each.floor is not None and each.value < 2.0 * each.floor:
        text += " (rounding)"
    return text


def _extent(each: Asymmetry) -> str:
    whole = each.error is None
    return "whole Jacobian" if whole else f"{each.n_probes} directions"


def _plot_asymmetry(asymmetry: Asymmetry) -> str:
    def paint(axes: Any) -> None:
        for style, bins in _by_pair(asymmetry):
            axes.plot(
                [each.distance for each in bins],
                [each.asymmetry for each in bins],
                label=bins[0].elements,
                **style,
            )
        axes.axhline(1.0, color="#888888", lw=0.8, ls=":")
        axes.set_ylim(0.0, 1.05)
        axes.set_xlim(left=0.0)
        axes.legend(loc="upper left")

    return panel(paint, "distance of the pair / Å", "asymmetry of the pair")


def _plot_norm(asymmetry: Asymmetry) -> str:
    def paint(axes: Any) -> None:
        for style, bins in _by_pair(asymmetry):
            distances = [each.distance for each in bins]
            norms = [each.norm for each in bins]
            axes.plot(distances, norms, label=bins[0].elements, **style)
            # A logarithmic axis has no place for zero.
            parts = [each.antisymmetric_norm or np.nan for each in bins]
            axes.plot(distances, parts, **style | {"ls": "--", "lw": 1.0, "ms": 2.5})
        axes.set_yscale("log")
        axes.set_xlim(left=0.0)
        axes.plot([], [], "-", color="#555555", label="all")
        axes.plot([], [], "--", lw=1.0, color="#555555", label="antisymmetric")
        axes.legend(loc="upper right")

    return panel(paint, "distance of the pair / Å", "derivative of the force / eV Å⁻²")


def _by_pair(asymmetry: Asymmetry) -> Iterator[Tuple[Dict[str, Any], List[PairBin]]]:
    names = dict.fromkeys(each.elements for each in asymmetry.pairs)
    styles = zip(itertools.cycle(OTHER_COLORS), itertools.cycle(MARKERS), strict=False)
    for name, (color, marker) in zip(names, styles, strict=False):
        bins = [each for each in asymmetry.pairs if each.elements == name]
        yield {"color": color, "marker": marker, "ms": 4.0}, bins
