"""Asymmetry of Jacobians, exact and estimated."""

from typing import Any, Dict, List, Tuple

import numpy as np
import pytest
import torch
from ase import Atoms
from helpers import make_model, random_cell
from potentials import Analytic, LennardJones, argon

from dualforce.diagnostics.derivatives import (
    DifferenceProducts,
    automatic_products,
    predicted,
)
from dualforce.diagnostics.measures.jacobian import (
    AUTOMATIC,
    DIFFERENCES,
    estimate_asymmetry,
    exact_asymmetry,
)
from dualforce.forces import (
    CalculatorForces,
    Evaluation,
    ForceSource,
    Kind,
    load_forces,
)


C: Kind = "conservative"
D: Kind = "direct"

Force = Tuple[ForceSource, Kind]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, ForceSource]:
    """Small models with random weights."""
    folder = tmp_path_factory.mktemp("models")
    sources = {}
    for name, options in {
        "hybrid": {},
        "single": {"dtype": torch.float32},
        "pet": {"backbone": "pet"},
        "conservative": {"forces": "conservative"},
    }.items():
        path = str(folder / f"{name}.pt")
        make_model(**options).export().save(path)  # type: ignore[arg-type]
        sources[name] = load_forces(path, device="cpu")
    return sources


@pytest.fixture(autouse=True)
def no_compilation() -> Any:
    """Compiling takes longer than running."""
    with torch.jit.optimized_execution(False):
        yield


class Swirl(Analytic):
    """Anharmonic springs to sites, coupled, and a chosen curl."""

    def __init__(self, n_atoms: int, curl: float, seed: int = 0) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        matrix = rng.normal(size=(3 * n_atoms, 3 * n_atoms))
        self.springs = matrix @ matrix.T / len(matrix) + 5.0 * np.eye(len(matrix))
        self.curl = curl * (matrix - matrix.T)
        self.cubic = 4.0

    def evaluate(self, atoms: Atoms) -> Tuple[float, Any, Any]:
        """Energy, forces and stress."""
        x = atoms.positions.ravel()
        forces = -self.springs @ x - self.cubic * x**3 + self.curl @ x
        energy = 0.5 * x @ self.springs @ x + 0.25 * self.cubic * (x**4).sum()
        return float(energy), forces.reshape(-1, 3), None

    def jacobian(self, atoms: Atoms) -> Any:
        """In closed form."""
        x = atoms.positions.ravel()
        return self.curl - self.springs - np.diag(3.0 * self.cubic * x**2)


class Matrix(ForceSource):
    """A force whose Jacobian is given, with automatic derivatives or without."""

    has_energy = False

    def __init__(self, matrix: Any, products: str) -> None:
        self.matrix, self.products = matrix, products

    def conservative(self, atoms: Atoms, stress: bool = False) -> Evaluation:
        """Forces."""
        return Evaluation((self.matrix @ atoms.positions.ravel()).reshape(-1, 3))

    def direct(self, atoms: Atoms, stress: bool = False) -> Evaluation:
        """The same."""
        return self.conservative(atoms)

    def differentiable(self, kind: Kind, atoms: Atoms) -> Any:
        """With a graph."""
        if self.products == "none":
            return super().differentiable(kind, atoms)
        positions = torch.tensor(atoms.positions, requires_grad=True)
        forces = torch.tensor(self.matrix) @ positions.reshape(-1)
        return positions, forces.reshape(-1, 3)


def given(matrix: Any, products: str) -> Force:
    """A source with a given Jacobian and the kind of force of which products of both
    kinds, one or none are taken."""
    return Matrix(matrix, products), C if products == "one" else D


def calculated(calculator: Analytic, name: str) -> Force:
    """The force of a calculator."""
    return CalculatorForces(calculator, name), C


def share(matrix: Any) -> float:
    """The public definition."""
    norm = np.linalg.norm
    return float(norm(matrix - matrix.T) / (2.0 * norm(matrix)))


def differences(
    source: ForceSource, kind: Kind, atoms: Atoms, step: float = 1e-4
) -> Any:
    """The Jacobian by plain central differences."""
    columns = []
    for index in range(3 * len(atoms)):
        ends = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions.reshape(-1)[index] += sign * step
            ends.append(predicted(source, kind, moved).forces.ravel())
        columns.append((ends[0] - ends[1]) / (2.0 * step))
    return np.array(columns).T


def lattice(n_atoms: int, symbols: str = "OHH") -> Atoms:
    """Some atoms."""
    rng = np.random.default_rng(3)
    names = [symbols[index % len(symbols)] for index in range(n_atoms)]
    return Atoms(names, positions=rng.normal(size=(n_atoms, 3)))


# ------------------------------------------------------------------------------- exact


@pytest.mark.parametrize("curl", [0.0, 1e-3, 0.1, 10.0])
def test_closed_form(curl: float) -> None:
    """Of an anharmonic potential with a curl."""
    atoms, potential = lattice(6), Swirl(6, curl)
    matrix = potential.jacobian(atoms)
    result = exact_asymmetry(*calculated(potential, "swirl"), atoms)
    assert result.method == DIFFERENCES and result.error is None
    assert result.value == pytest.approx(share(matrix), abs=1e-6)
    assert result.floor is not None and result.floor < 1e-6

    half = (matrix - matrix.T) / 2.0
    rows = np.arange(18).reshape(6, 3)

    def part(chosen: Any) -> float:
        everything = np.linalg.norm(matrix[chosen]) ** 2
        everything += np.linalg.norm(matrix[:, chosen]) ** 2
        return float(np.sqrt(2.0 / everything) * np.linalg.norm(half[chosen]))

    np.testing.assert_allclose(
        result.per_atom, [part(rows[atom]) for atom in range(6)], atol=1e-6
    )
    for symbol, value in result.per_element.items():
        chosen = rows[np.array(atoms.get_chemical_symbols()) == symbol].ravel()
        assert value == pytest.approx(part(chosen), abs=1e-6)


def test_pairs_by_elements_and_distance() -> None:
    """Every block of a random Jacobian, once more by hand."""
    n_atoms = 9
    matrix = np.random.default_rng(0).normal(size=(3 * n_atoms, 3 * n_atoms))
    atoms = lattice(n_atoms)
    atoms.set_cell([4.0, 4.0, 4.0])
    atoms.pbc = True
    result = exact_asymmetry(*given(matrix, "one"), atoms)
    assert result.method == AUTOMATIC and result.floor is None
    blocks = matrix.reshape(n_atoms, 3, n_atoms, 3).transpose(0, 2, 1, 3)
    half = (blocks - blocks.transpose(1, 0, 3, 2)) / 2.0
    distances = atoms.get_all_distances(mic=True)
    symbols = atoms.get_chemical_symbols()
    found = 0
    for each in result.pairs:
        pairs = [
            (i, j)
            for i in range(n_atoms)
            for j in range(n_atoms)
            if i != j
            and "-".join(sorted([symbols[i], symbols[j]])) == each.elements
            and abs(distances[i, j] - each.distance) < 0.25
        ]
        i, j = np.array(pairs).T
        norm, antisymmetric = np.linalg.norm(blocks[i, j]), np.linalg.norm(half[i, j])
        assert each.n_pairs == len(pairs) // 2
        assert each.asymmetry == pytest.approx(antisymmetric / norm)
        assert each.norm == pytest.approx(norm / np.sqrt(len(pairs)))
        assert each.antisymmetric_norm == pytest.approx(each.asymmetry * each.norm)
        found += each.n_pairs
    assert found == n_atoms * (n_atoms - 1) // 2


# ----------------------------------------------------------------------------- estimate


@pytest.mark.parametrize("products", ["both", "one", "none"])
@pytest.mark.parametrize(
    "n_atoms, curl, n_probes",
    [(30, 0.03, 12), (30, 0.5, 8), (14, 0.1, 10), (10, 0.1, 6)],
)
def test_intervals_hold_the_truth(
    products: str, n_atoms: int, curl: float, n_probes: int
) -> None:
    """In at least 94 of 100 repeats, and they are not much too wide."""
    atoms, potential = lattice(n_atoms), Swirl(n_atoms, curl)
    matrix = potential.jacobian(atoms)
    force, truth = given(matrix, products), share(matrix)
    repeats = 100 if products == "none" else 200
    results = [
        estimate_asymmetry(*force, atoms, n_probes=n_probes, seed=seed)
        for seed in range(repeats)
    ]
    values = np.array([result.value for result in results])
    errors = np.array([result.error for result in results])
    assert (abs(values - truth) <= 1.96 * errors).mean() >= 0.94
    spread = np.sqrt(((values - truth) ** 2).mean())
    assert np.sqrt((errors**2).mean()) < 2.5 * spread
    assert abs(values.mean() - truth) < 0.1 * truth


@pytest.mark.parametrize("products", ["both", "one", "none"])
def test_all_directions_leave_no_error(products: str) -> None:
    """As many as there are coordinates are a basis."""
    atoms, potential = lattice(4), Swirl(4, 0.1)
    matrix = potential.jacobian(atoms)
    result = estimate_asymmetry(*given(matrix, products), atoms, n_probes=50)
    assert result.n_probes == 12
    assert result.value == pytest.approx(share(matrix), abs=1e-8)
    assert result.error == pytest.approx(0.0, abs=1e-8)


def test_cost_does_not_grow(exported: Dict[str, ForceSource]) -> None:
    """With the number of atoms."""
    force = (exported["hybrid"], D)
    counts = [
        estimate_asymmetry(*force, random_cell(n, 7.0), n_probes=5).n_evaluations
        for n in (7, 12)
    ]
    assert counts[0] == counts[1] < 20


@pytest.mark.parametrize("products", ["both", "one", "none"])
def test_pairs_of_all_atoms_are_exact(products: str) -> None:
    """Choosing every atom gives what the whole Jacobian gives."""
    atoms, potential = lattice(7), Swirl(7, 0.1)
    force = given(potential.jacobian(atoms), products)
    exact = exact_asymmetry(*force, atoms)
    result = estimate_asymmetry(*force, atoms, n_pair_atoms=7)
    assert len(result.pairs) == len(exact.pairs)
    for one, other in zip(result.pairs, exact.pairs, strict=True):
        assert one.elements == other.elements and one.n_pairs == other.n_pairs
        assert one.asymmetry == pytest.approx(other.asymmetry, abs=1e-7)
    if products == "both":
        assert result.per_element == pytest.approx(exact.per_element)


def test_some_pairs() -> None:
    """Whole rows and columns where both products exist: the atoms are spread over the
    elements; a neighbourhood where not."""
    atoms = lattice(12, "OHHHHH")
    matrix = Swirl(12, 0.1).jacobian(atoms)
    result = estimate_asymmetry(*given(matrix, "both"), atoms, n_pair_atoms=4)
    assert set(result.per_element) == {"O", "H"}
    assert sum(each.n_pairs for each in result.pairs) == 4 * 8 + 6
    assert sum(e.n_pairs for e in result.pairs if e.elements == "O-O") == 1
    result = estimate_asymmetry(*given(matrix, "one"), atoms, n_pair_atoms=4)
    assert result.per_element == {}
    assert sum(each.n_pairs for each in result.pairs) == 6


# ------------------------------------------------------------------------------- models


@pytest.mark.parametrize("name", ["hybrid", "pet"])
def test_direct_force_of_a_model(name: str, exported: Dict[str, ForceSource]) -> None:
    """Automatic derivatives against plain differences."""
    force, atoms = (exported[name], D), random_cell(6, 5.0)
    matrix = differences(*force, atoms)
    result = exact_asymmetry(*force, atoms)
    assert result.method == AUTOMATIC
    assert result.value == pytest.approx(share(matrix), rel=1e-5)
    products = automatic_products(*force, atoms)
    assert products is not None
    direction = np.random.default_rng(0).normal(size=(6, 3))
    np.testing.assert_allclose(
        products.transposed(direction).ravel(), matrix.T @ direction.ravel(), atol=1e-5
    )
    if products.has_forward:
        np.testing.assert_allclose(
            products.forward(direction).ravel(), matrix @ direction.ravel(), atol=1e-5
        )
    estimate = estimate_asymmetry(*force, atoms, n_probes=18)
    assert estimate.value == pytest.approx(result.value, rel=1e-9)


def test_later_evaluations_do_not_disturb_products(
    exported: Dict[str, ForceSource],
) -> None:
    """The graph does not share memory with neighbour lists of other structures."""
    force, atoms = (exported["hybrid"], D), random_cell(10, 5.0)
    products, direction = automatic_products(*force, atoms), np.ones((10, 3))
    direction[::2] = -0.5
    assert products is not None
    before = products.transposed(direction), products.forward(direction)
    predicted(*force, random_cell(14, 5.0, seed=4))
    after = products.transposed(direction), products.forward(direction)
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    "name, limit", [("hybrid", 1e-13), ("conservative", 1e-13), ("single", 1e-6)]
)
def test_conservative_models_are_symmetric(
    name: str, limit: float, exported: Dict[str, ForceSource]
) -> None:
    """To round-off."""
    force, atoms = (exported[name], C), random_cell(8, 5.0)
    assert exact_asymmetry(*force, atoms).value < limit
    assert estimate_asymmetry(*force, atoms).value < limit


def test_conservative_calculators_are_symmetric() -> None:
    """To what differences can tell, which is said."""
    atoms, forces = argon()
    force = calculated(LennardJones(0.0104, 3.4, 5.0), "argon")
    for result in (exact_asymmetry(*force, atoms), estimate_asymmetry(*force, atoms)):
        assert result.floor is not None
        assert result.value < 3.0 * result.floor < 1e-5
    assert result.error is not None and result.value < 3.0 * result.error


def test_isolated_molecule_and_tiny_cell(exported: Dict[str, ForceSource]) -> None:
    """Are structures like others."""
    force = (exported["hybrid"], D)
    molecule = Atoms("OHH", [[0, 0, 0], [0.9, 0, 0.1], [0, 1.0, 0]])
    for atoms in (molecule, random_cell(3, 3.2, seed=1)):
        # short, since the third derivative of a pair potential has steps
        expected = share(differences(*force, atoms, step=1e-5))
        assert exact_asymmetry(*force, atoms).value == pytest.approx(expected, rel=1e-5)


# -------------------------------------------------------------------------- differences


class Rounded(Analytic):
    """Forces in single precision, computed from exact positions."""

    def __init__(self, potential: Analytic) -> None:
        super().__init__()
        self.potential = potential

    def evaluate(self, atoms: Atoms) -> Tuple[float, Any, Any]:
        """Energy, forces and stress."""
        energy, forces, _ = self.potential.evaluate(atoms)
        return energy, forces.astype(np.float32).astype(float), None


def test_step_fits_the_precision() -> None:
    """Rounded forces take a longer step and say how wrong they may be."""
    atoms, exact = lattice(10), Swirl(10, 0.02)
    trials = np.random.default_rng(0).choice([-1.0, 1.0], size=(1, 10, 3))
    matrix = exact.jacobian(atoms)
    steps = {}
    for name, potential in {"exact": exact, "rounded": Rounded(exact)}.items():
        force = calculated(potential, name)
        products = DifferenceProducts(*force, atoms, trials)
        error = products.forward(trials[0]).ravel() - matrix @ trials[0].ravel()
        relative = np.linalg.norm(error) / np.linalg.norm(matrix @ trials[0].ravel())
        assert relative < 5.0 * products.relative_error < 1e-3
        steps[name] = products.step
    assert steps["rounded"] > 10.0 * steps["exact"]


def test_floor_of_rounded_forces() -> None:
    """A small asymmetry is seen if it is above the floor, and nothing below is made out
    to be known."""
    atoms = lattice(10)
    for curl in (0.0, 0.01):
        force = calculated(Rounded(Swirl(10, curl)), "rounded")
        truth = share(Swirl(10, curl).jacobian(atoms))
        exact, estimate = (
            exact_asymmetry(*force, atoms),
            estimate_asymmetry(*force, atoms),
        )
        assert exact.floor is not None and estimate.error is not None
        assert abs(exact.value - truth) < 3.0 * exact.floor < 1e-3
        assert abs(estimate.value - truth) < 3.0 * estimate.error


def test_pairs_that_drown_in_noise_are_left_out() -> None:
    """Random errors would look like an asymmetry of 0.7."""
    atoms = argon()[0]
    smooth = LennardJones(0.0104, 3.4, 5.0)
    result = exact_asymmetry(*calculated(Rounded(smooth), "rounded"), atoms)
    assert result.pairs and all(each.asymmetry < 0.3 for each in result.pairs)
    assert max(each.distance for each in result.pairs) < 5.0


# ---------------------------------------------------------------------------- bad input


def test_nothing_to_judge(exported: Dict[str, ForceSource]) -> None:
    """A force that does not depend on positions has no asymmetry."""
    for name, kind in (("hybrid", D), ("conservative", C)):
        force = (exported[name], kind)
        for atoms in (Atoms("O"), Atoms("OO", [[0, 0, 0], [0, 0, 20]])):
            with pytest.raises(ValueError, match="does not change with the positions"):
                exact_asymmetry(*force, atoms)
            with pytest.raises(ValueError, match="does not change with the positions"):
                estimate_asymmetry(*force, atoms)


def test_unknown_elements(exported: Dict[str, ForceSource]) -> None:
    """Are named."""
    with pytest.raises(ValueError, match="does not know Au"):
        exact_asymmetry(*(exported["hybrid"], D), Atoms("AuO"))


def test_too_few_probes_and_too_many_atoms() -> None:
    """Are refused."""
    force, atoms = given(np.eye(9), "both"), lattice(3)
    with pytest.raises(ValueError, match="n_probes must be at least 4, not 2"):
        estimate_asymmetry(*force, atoms, n_probes=2)
    with pytest.raises(ValueError, match="the whole Jacobian of 4000 atoms"):
        exact_asymmetry(*force, Atoms("H4000", np.zeros((4000, 3))))


class Fails(Analytic):
    """Goes wrong after some evaluations."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.count = how, 0

    def evaluate(self, atoms: Atoms) -> Tuple[float, Any, Any]:
        """Energy, forces and stress."""
        self.count += 1
        forces = np.sin(atoms.positions)
        if self.count > 20 and self.how == "raise":
            raise KeyError("out of luck")
        if self.count > 20:
            forces[1, 0] = np.nan
        return 0.0, forces, None


@pytest.mark.parametrize(
    "how, error, message",
    [
        ("raise", RuntimeError, "fails failed on .*: KeyError: 'out of luck'"),
        ("nan", FloatingPointError, "the conservative force is not finite on atoms 1"),
    ],
)
def test_calculators_that_fail(how: str, error: Any, message: str) -> None:
    """Say so, with the reason."""
    with pytest.raises(error, match=message):
        exact_asymmetry(*calculated(Fails(how), "fails"), lattice(5))


@pytest.mark.parametrize("options", [{"n_probes": 4}, {"n_pair_atoms": 2}])
@pytest.mark.parametrize("products", ["both", "one"])
def test_progress(options: Dict[str, int], products: str) -> None:
    """Goes to the end, and never back."""
    seen: List[float] = []
    estimate_asymmetry(
        *given(np.eye(9), products), lattice(3), progress=seen.append, **options
    )
    assert seen == sorted(seen) and seen[-1] == pytest.approx(1.0)
