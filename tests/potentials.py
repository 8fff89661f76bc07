"""Analytic potentials, with direct forces that are set by hand."""

from typing import Any, List, Optional, Tuple

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from dualforce.forces import (
    CalculatorForces,
    CombinedForces,
    Evaluation,
    ForceSource,
    without_net_force,
)


class Analytic(Calculator):
    """A calculator whose subclasses compute everything at once."""

    implemented_properties = ["energy", "forces", "stress"]

    def calculate(
        self,
        atoms: Optional[Atoms] = None,
        properties: Optional[List[str]] = None,
        system_changes: List[str] = all_changes,
    ) -> None:
        """Fill the results."""
        super().calculate(atoms, properties, system_changes)
        energy, forces, stress = self.evaluate(self.atoms)
        self.results = {"energy": energy, "forces": forces}
        if stress is not None:
            self.results["stress"] = full_3x3_to_voigt_6_stress(stress)

    def evaluate(self, atoms: Atoms) -> Tuple[float, Any, Any]:
        """Energy, forces and stress."""
        raise NotImplementedError


class Linear(Analytic):
    """Forces ``-matrix @ (x - x0)``, with a curl if the matrix is not symmetric."""

    def __init__(self, matrix: Any, reference: Any) -> None:
        super().__init__()
        self.matrix, self.reference = matrix, reference

    def evaluate(self, atoms: Atoms) -> Tuple[float, Any, Any]:
        """Energy, forces and stress."""
        shift = (atoms.positions - self.reference).ravel()
        forces = -self.matrix @ shift
        return float(-0.5 * shift @ forces), forces.reshape(-1, 3), None


class LennardJones(Analytic):
    """Lennard-Jones times ``(1 - r^2 / rc^2)^4``, smooth at the cutoff, between nearest
    images; ``curl`` adds a force at right angles to each pair."""

    def __init__(
        self, epsilon: float, sigma: float, cutoff: float, curl: float = 0.0
    ) -> None:
        super().__init__()
        self.epsilon, self.sigma, self.cutoff = epsilon, sigma, cutoff
        self.turn = curl * np.array([[0.0, 1, -1], [-1, 0, 1], [1, -1, 0]])

    def evaluate(self, atoms: Atoms) -> Tuple[float, Any, Any]:
        """Energy, forces and stress."""
        i, j = np.triu_indices(len(atoms), 1)
        vectors = atoms.positions[j] - atoms.positions[i]
        if atoms.pbc.any():
            cell = atoms.cell.array
            vectors -= np.round(vectors @ np.linalg.inv(cell)) @ cell
        squared = np.einsum("ij,ij->i", vectors, vectors)
        near = squared < self.cutoff**2
        i, j, vectors, squared = i[near], j[near], vectors[near], squared[near]
        with np.errstate(all="ignore"):
            sixth = (self.sigma**2 / squared) ** 3
            well = 4.0 * self.epsilon * (sixth**2 - sixth)
            slope = -12.0 * self.epsilon * (2.0 * sixth**2 - sixth) / squared
            fade = 1.0 - squared / self.cutoff**2
            # derivative by the squared distance
            slope = slope * fade**4 - 4.0 * well * fade**3 / self.cutoff**2
            energy = float((well * fade**4).sum())
            pairs = 2.0 * slope[:, None] * vectors  # on the first atom
        pairs += fade[:, None] ** 4 * vectors @ self.turn
        forces = np.zeros((len(atoms), 3))
        np.add.at(forces, i, pairs)
        np.subtract.at(forces, j, pairs)
        stress = None
        if atoms.pbc.all():
            stress = pairs.T @ vectors / atoms.get_volume()
            stress = 0.5 * (stress + stress.T)
        return energy, forces, stress


class ElasticCell(Analytic):
    """An ideal gas in a cell with the energy ``k/2 tr E^2`` of its Hencky strain ``E``
    from a reference; ``pull`` is a constant stress on top, times the volume."""

    def __init__(self, constant: float, reference: Any, pull: float = 0.0) -> None:
        super().__init__()
        self.constant, self.inverse = constant, np.linalg.inv(reference)
        self.pull = pull

    def evaluate(self, atoms: Atoms) -> Tuple[float, Any, Any]:
        """Energy, forces and stress."""
        gradient = self.inverse @ atoms.cell.array
        squares, axes = np.linalg.eigh(gradient.T @ gradient)
        strain = (axes * (0.5 * np.log(squares))) @ axes.T
        energy = 0.5 * self.constant * np.sum(strain**2)
        stress = (self.constant * strain + self.pull * np.eye(3)) / atoms.get_volume()
        return float(energy), np.zeros((len(atoms), 3)), stress


class Bare(ForceSource):
    """Two analytic potentials without the bookkeeping of calculators, for long runs."""

    name = "an analytic potential"
    has_direct = True

    def __init__(self, conservative: Analytic, direct: Analytic) -> None:
        self.potentials = conservative, direct
        self.has_direct_stress = "stress" in direct.implemented_properties

    def direct(self, atoms: Atoms, stress: bool = False) -> Evaluation:
        """Direct forces, without net force."""
        _, forces, virial = self.potentials[1].evaluate(atoms)
        virial = virial if stress and self.has_direct_stress else None
        return without_net_force(atoms, Evaluation(forces, None, virial))

    def conservative(self, atoms: Atoms, stress: bool = False) -> Evaluation:
        """Energy and conservative forces."""
        energy, forces, virial = self.potentials[0].evaluate(atoms)
        return Evaluation(forces, energy, virial if stress else None)


def two_calculators(conservative: Calculator, direct: Calculator) -> CombinedForces:
    """The forces of two calculators as conservative and direct force."""
    return CombinedForces(CalculatorForces(conservative), CalculatorForces(direct))


class Counting(ForceSource):
    """Forwards to a source of both forces and writes down what was asked for."""

    has_direct = True

    def __init__(self, forces: Any) -> None:
        self.forces = forces
        self.calls: List[str] = []
        self.has_direct_stress = bool(forces.has_direct_stress)

    def direct(self, atoms: Atoms, stress: bool = False) -> Evaluation:
        """Direct forces."""
        self.calls.append("direct")
        return self.forces.direct(atoms, stress)

    def conservative(self, atoms: Atoms, stress: bool = False) -> Evaluation:
        """Energy and conservative forces."""
        self.calls.append("conservative")
        return self.forces.conservative(atoms, stress)

    def both(self, atoms: Atoms, stress: bool = False) -> Tuple[Evaluation, Evaluation]:
        """Both."""
        self.calls.append("both")
        return self.forces.both(atoms, stress)

    def reset(self) -> None:
        """Forget."""
        self.calls.append("reset")
        self.forces.reset()


def set_momenta(atoms: Atoms, temperature: float, seed: int = 0) -> None:
    """Thermal momenta without net momentum; ``temperature`` in eV."""
    momenta = np.random.default_rng(seed).normal(size=(len(atoms), 3))
    momenta *= np.sqrt(atoms.get_masses()[:, None] * temperature)
    share = atoms.get_masses()[:, None] / atoms.get_masses().sum()
    atoms.set_momenta(momenta - share * momenta.sum(0))


def chain(n_atoms: int = 6, curl: float = 0.3) -> Tuple[Atoms, Bare]:
    """A harmonic chain tied to its sites, and a direct force that is stiffer and has a
    curl: frequencies are of the order of one."""
    rng = np.random.default_rng(1)
    springs = 2.0 * np.eye(n_atoms) - np.eye(n_atoms, k=1) - np.eye(n_atoms, k=-1)
    matrix = np.kron(springs + 0.5 * np.eye(n_atoms), np.diag([1.0, 0.8, 1.2]))
    turn = rng.normal(size=matrix.shape) / np.sqrt(len(matrix))
    sites = np.zeros((n_atoms, 3))
    sites[:, 0] = 1.5 * np.arange(n_atoms)
    atoms = Atoms(numbers=[6] * n_atoms, positions=sites)
    atoms.set_masses(1.0 + 0.2 * np.arange(n_atoms))
    atoms.positions += 0.1 * rng.normal(size=sites.shape)
    set_momenta(atoms, 0.01)
    direct = 1.1 * matrix + curl * (turn - turn.T)
    return atoms, Bare(Linear(matrix, sites), Linear(direct, sites))


def argon(
    pbc: bool = True, curl: float = 0.002, direct_stress: bool = True
) -> Tuple[Atoms, Bare]:
    """Warm solid argon of 32 atoms, or a cluster; a direct force that is a little off,
    with a curl."""
    atoms = bulk("Ar", a=5.3, cubic=True).repeat((2, 2, 2))
    atoms.pbc = pbc
    rng = np.random.default_rng(2)
    atoms.positions += 0.05 * rng.normal(size=atoms.positions.shape)
    set_momenta(atoms, 0.005)
    direct = LennardJones(0.0105, 3.38, 4.9, curl)
    if not direct_stress:
        direct.implemented_properties = ["energy", "forces"]
    return atoms, Bare(LennardJones(0.0104, 3.4, 5.0), direct)


def slope(steps: Any, errors: Any) -> float:
    """Order of convergence, from a line through logarithms."""
    return float(np.polyfit(np.log(steps), np.log(errors), 1)[0])
