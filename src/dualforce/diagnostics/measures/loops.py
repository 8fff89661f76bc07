r"""Work around closed loops, :math:`\oint f \cdot dr`: zero for a conservative force.

A loop is a periodic function of an angle, for which the trapezoidal rule converges
exponentially.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

import ase
import numpy as np
from ase.neighborlist import natural_cutoffs, neighbor_list
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, connected_components
from scipy.spatial.transform import Rotation

from ...forces import Array, ForceSource, Kind
from ..content import CAUTION, GOOD, Figure, Sentence
from ..derivatives import predicted
from ..findings import Findings
from ..measure import Case, Measure, NotApplicable, Progress, silent
from ..plotting import COLORS, panel
from ..setup import Setup
from ..text import milli, with_error


FIRST_POINTS = 8

RELATIVE_TOLERANCE = 1e-3
"""Of the work."""

ABSOLUTE_TOLERANCE = 1e-4
r"""Relative to :math:`\oint |f \cdot dr|`, for loops whose work vanishes."""

RESOLUTION = 0.01
"""Likewise: a larger error says nothing about work."""

BOND = 1.25
"""Longest bond, relative to the sum of covalent radii."""

Path = Callable[[float], Tuple[Array, Array]]
"""Positions (Å) and their derivative by the angle (Å per radian), shape ``[n_atoms,
3]``, at an angle in radians."""


class NoMoleculeError(ValueError):
    """The structure has no molecule to turn."""


@dataclass(frozen=True)
class LoopWork:
    """Work of one kind of force around a closed loop."""

    kind: str
    loop: str
    """``plane`` (a circle in a plane of random directions) or ``rotation`` (a molecule
    turned once around)."""
    work: float
    """In eV."""
    numerical_error: float
    """In eV, from half and a quarter of the points."""
    n_points: int
    length: float
    """Path length in configuration space, in Å."""
    angles: List[float]
    """In degrees, for the plot."""
    cumulative: List[float]
    """Work up to there, in eV."""
    path_work: float
    r""":math:`\oint |f \cdot dr|`, in eV."""

    @property
    def accuracy(self) -> float:
        """Work that the error of the integral can explain, in eV."""
        return max(3.0 * self.numerical_error, ABSOLUTE_TOLERANCE * self.path_work)


def plane_loop(
    source: ForceSource,
    kind: Kind,
    atoms: ase.Atoms,
    *,
    displacement: float = 0.05,
    max_points: int = 256,
    seed: int = 0,
    progress: Progress = silent,
) -> LoopWork:
    """Work around a circle in a plane of two random directions.

    :param source: source of forces.
    :param kind: kind of force.
    :param atoms: structure at the centre.
    :param displacement: root mean square distance of an atom from its place in
        ``atoms`` along the loop, in Å.
    :param max_points: most points on the loop; they are doubled until the work is known
        to 1e-3, or to 1e-4 of the integral of its absolute value.
    :param seed: seed of the directions.
    :param progress: told the part of ``max_points`` that is done.
    :raises ValueError: if ``displacement`` is not positive, or if the model does not
        know an element.
    :raises RuntimeError, FloatingPointError: if the model fails.
    """
    if not displacement > 0.0:
        raise ValueError(f"displacement must be positive, not {displacement}")
    n_atoms = len(atoms)
    rng = np.random.default_rng(seed)
    plane = np.linalg.qr(rng.normal(size=(3 * n_atoms, 2)))[0].T
    radius = displacement * np.sqrt(n_atoms)
    first, second = radius * plane.reshape(2, n_atoms, 3)

    def path(angle: float) -> Tuple[Array, Array]:
        cosine, sine = np.cos(angle), np.sin(angle)
        return (
            atoms.positions + cosine * first + sine * second,
            cosine * second - sine * first,
        )

    return _integrate(source, kind, atoms, path, "plane", max_points, progress)


def rotation_loop(
    source: ForceSource,
    kind: Kind,
    atoms: ase.Atoms,
    *,
    max_points: int = 512,
    seed: int = 0,
    progress: Progress = silent,
) -> LoopWork:
    """Work of turning one molecule once around an axis through its centre of mass,
    while all other atoms stay.

    :param source: source of forces.
    :param kind: kind of force.
    :param atoms: structure.
    :param max_points: most points on the loop, as for :func:`plane_loop`.
    :param seed: seed of the choice of molecule and axis.
    :param progress: told the part of ``max_points`` that is done.
    :raises NoMoleculeError: if the structure has no molecule.
    :raises ValueError: if the model does not know an element.
    :raises RuntimeError, FloatingPointError: if the model fails.
    """
    molecules = find_molecules(atoms)
    if not molecules:
        raise NoMoleculeError(
            f"{atoms.get_chemical_formula()} has no molecule to turn: every atom is "
            "alone or part of a network without end"
        )
    rng = np.random.default_rng(seed)
    indices, positions = molecules[rng.integers(len(molecules))]
    masses = atoms.get_masses()[indices]
    center = masses @ positions / masses.sum()
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)

    def path(angle: float) -> Tuple[Array, Array]:
        arms = Rotation.from_rotvec(angle * axis).apply(positions - center)
        place, slope = atoms.positions.copy(), np.zeros((len(atoms), 3))
        place[indices], slope[indices] = center + arms, np.cross(axis, arms)
        return place, slope

    return _integrate(source, kind, atoms, path, "rotation", max_points, progress)


def find_molecules(atoms: ase.Atoms) -> List[Tuple[NDArray[np.intp], Array]]:
    """Groups of bonded atoms that are not bonded to an image of themselves.

    :return: for each molecule of at least two atoms its indices, and its positions in
        one piece, in Å, shape ``[n, 3]``.
    """
    cutoffs = natural_cutoffs(atoms, mult=BOND)
    first, second, vectors = neighbor_list("ijD", atoms, cutoffs, self_interaction=True)
    bonded = np.flatnonzero(np.einsum("ij,ij->i", vectors, vectors) > 1e-12)
    first, second, vectors = first[bonded], second[bonded], vectors[bonded]
    bonds = coo_array(
        (np.ones(len(first)), (first, second)), shape=(len(atoms), len(atoms))
    ).tocsr()
    count, labels = connected_components(bonds, directed=False)
    step: Dict[Tuple[int, int], Array] = {
        (int(i), int(j)): vector
        for i, j, vector in zip(first, second, vectors, strict=True)
    }
    molecules = []
    for label in range(count):
        indices = np.flatnonzero(labels == label)
        if len(indices) < 2:
            continue
        positions = atoms.positions.copy()
        order, parents = breadth_first_order(bonds, indices[0], directed=False)
        for atom in order[1:]:
            parent = int(parents[atom])
            positions[atom] = positions[parent] + step[parent, int(atom)]
        inside = labels[first] == label
        across = positions[second[inside]] - positions[first[inside]] - vectors[inside]
        if np.abs(across).max() < 1e-6:
            molecules.append((indices, positions[indices]))
    return molecules


def _integrate(
    source: ForceSource,
    kind: Kind,
    atoms: ase.Atoms,
    path: Path,
    loop: str,
    max_points: int,
    progress: Progress,
) -> LoopWork:
    """Double the points until the work has converged."""
    if max_points < 4 * FIRST_POINTS:
        raise ValueError(
            f"max_points must be at least {4 * FIRST_POINTS}, not {max_points}"
        )
    moved = atoms.copy()

    def at(share: float) -> Tuple[float, float]:
        moved.positions, slope = path(2.0 * np.pi * share)
        forces = predicted(source, kind, moved).forces
        return float((forces * slope).sum()), float(np.linalg.norm(slope))

    values = np.array([at(k / FIRST_POINTS) for k in range(FIRST_POINTS)])
    works = [2.0 * np.pi * values[:, 0].mean()]
    while True:
        n_points = 2 * len(values)
        between = np.array([at(k / n_points) for k in range(1, n_points, 2)])
        values = np.stack([values, between], axis=1).reshape(n_points, 2)
        works.append(2.0 * np.pi * values[:, 0].mean())
        progress(n_points / max_points)
        # A single change can be small by chance, where forces are not smooth.
        error = np.abs(np.diff(works[-3:])).max()
        size = 2.0 * np.pi * np.abs(values[:, 0]).mean()
        accepted = max(RELATIVE_TOLERANCE * abs(works[-1]), ABSOLUTE_TOLERANCE * size)
        if (error <= accepted and len(works) > 2) or 2 * n_points > max_points:
            break
    progress(1.0)
    power = np.append(values[:, 0], values[0, 0])
    steps = 2.0 * np.pi / n_points * 0.5 * (power[1:] + power[:-1])
    return LoopWork(
        kind=kind,
        loop=loop,
        work=float(works[-1]),
        numerical_error=float(error),
        n_points=n_points,
        length=float(2.0 * np.pi * values[:, 1].mean()),
        angles=np.linspace(0.0, 360.0, n_points + 1).tolist(),
        cumulative=np.append(0.0, np.cumsum(steps)).tolist(),
        path_work=float(size),
    )


LOOPS: Dict[str, Callable[..., LoopWork]] = {
    "plane": plane_loop,
    "rotation": rotation_loop,
}

_TITLES = {
    "plane": "circle in a plane of two random directions",
    "rotation": "one molecule turned once around",
}


class ClosedLoops(Measure):
    """Work around closed loops, for each kind of force."""

    name = "loop"
    title = "Closed loops"
    explanation = (
        "A conservative force does no work around a closed loop; what is left is "
        "energy that is created or destroyed. The control is the error of the "
        "integral, from fewer points."
    )
    result = LoopWork
    sizes = {"quick": {"max_points": 128}, "full": {"max_points": 512}}
    columns = {
        "force": lambda findings, work: findings.label(work.kind),
        "loop": lambda findings, work: _TITLES[work.loop],
        "work / meV": lambda findings, work: _work(work),
        "∮ |f · dr| / meV": lambda _, work: milli(work.path_work),
    }

    def cases(self, setup: Setup) -> List[Case]:
        size, seed = setup.size(self), setup.conditions.seed
        return [
            Case(
                f"{loop}-{kind}",
                {"loop": loop, "kind": kind, "seed": seed, **size},
                {kind: size["max_points"]},
            )
            for kind in setup.source.kinds
            for loop in LOOPS
        ]

    def measure(
        self, setup: Setup, progress: Progress, *, loop: str, kind: Kind, **size: Any
    ) -> LoopWork:
        source, atoms = setup.source, setup.atoms
        try:
            return LOOPS[loop](source, kind, atoms, progress=progress, **size)
        except NoMoleculeError as error:
            raise NotApplicable(str(error)) from error

    def sentence(self, findings: Findings, work: LoopWork) -> Sentence:
        name = findings.phrase(work.kind).capitalize()
        numbers = f"{_TITLES[work.loop]}: {_work(work)} meV"
        if abs(work.work) > work.accuracy:
            text = f"{name} does work around a closed loop ({numbers})."
            return Sentence(CAUTION, self.title, text)
        if work.accuracy > RESOLUTION * work.path_work:
            text = f"Not decided for a closed loop: too few points ({numbers})."
            return Sentence(CAUTION, self.title, text)
        text = f"{name} does no work around a closed loop ({numbers})."
        return Sentence(GOOD, self.title, text)

    def figures(self, findings: Findings) -> List[Figure]:
        figures = []
        for loop, title in _TITLES.items():
            works = [x for x in findings.of_type(LoopWork) if x.loop == loop]
            if works:
                svg = _plot(findings, works)
                figures.append(Figure(svg, f"Work along a closed loop: {title}."))
        return figures


def _work(work: LoopWork) -> str:
    """In meV."""
    return with_error((work.work, work.numerical_error), 1000.0)


def _plot(findings: Findings, works: List[LoopWork]) -> str:
    def paint(axes: Any) -> None:
        for work in works:
            label = findings.label(work.kind)
            values = [1000.0 * value for value in work.cumulative]
            axes.plot(work.angles, values, color=COLORS[label], label=label)
        axes.axhline(0.0, color="#888888", lw=0.8, ls=":")
        axes.set_xticks([0, 90, 180, 270, 360])
        axes.legend()

    return panel(paint, "angle along the loop / degrees", "work so far / meV")
