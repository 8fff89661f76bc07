"""Whether conservative forces are the derivative of the energy."""

from typing import Any, Dict, Tuple

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from helpers import make_model, random_cell
from potentials import Analytic, LennardJones, argon

from dualforce.diagnostics.measures.gradient import check_gradient
from dualforce.forces import (
    CalculatorForces,
    DirectOnly,
    ForceSource,
    MissingForceError,
    load_forces,
)


class Changed(Analytic):
    """A potential whose forces or energy are spoilt."""

    def __init__(self, potential: Analytic, how: str) -> None:
        super().__init__()
        self.potential, self.how = potential, how

    def evaluate(self, atoms: Atoms) -> Tuple[float, Any, Any]:
        """Energy, forces and stress."""
        energy, forces, _ = self.potential.evaluate(atoms)
        if self.how == "scaled":
            forces = 1.001 * forces
        elif self.how == "another potential":
            # Symmetric Jacobian, but of another energy.
            forces = forces - 0.01 * (atoms.positions - atoms.positions.mean(0))
        elif self.how == "one atom":
            forces = forces.copy()
            forces[3, 0] += 0.003
        elif self.how == "single precision":
            energy = float(np.float32(energy))
        elif self.how == "coarse energy":
            energy = round(energy, 1)
        return energy, forces, None


def changed(how: str) -> Tuple[CalculatorForces, Atoms]:
    """Warm argon with a spoilt potential."""
    source = CalculatorForces(Changed(LennardJones(0.2, 3.4, 5.0), how), how)
    return source, argon()[0]


@pytest.mark.parametrize("how", ["scaled", "another potential"])
def test_wrong_forces_are_seen(how: str) -> None:
    """Also if they are the gradient of something else, or off by a thousandth."""
    source, atoms = changed(how)
    check = check_gradient(source, atoms)
    assert check.wrong and check.is_sharp
    assert check.deviation > 5.0 * check.error


def test_force_on_one_atom() -> None:
    """Is found when this atom is moved alone."""
    source, atoms = changed("one atom")
    check = check_gradient(source, atoms, n_atoms=len(atoms))
    wrong = [x for x in check.wrong if x.direction != "all atoms"]
    assert [x.direction for x in wrong] == ["Ar 3"]
    assert abs(wrong[0].deviation) <= 0.003


def test_right_forces_pass() -> None:
    """Deviations are no larger than their errors say, which are small."""
    source, atoms = changed("not at all")
    for seed in range(5):
        check = check_gradient(source, atoms, seed=seed)
        assert not check.wrong and check.is_sharp
        assert check.error < 1e-4 * check.rms_force
        assert len(check.derivatives) == 6


@pytest.mark.parametrize("how", ["single precision", "coarse energy"])
def test_noisy_energies(how: str) -> None:
    """Rounding makes the error larger, not the force wrong."""
    source, atoms = changed(how)
    exact = check_gradient(changed("not at all")[0], atoms)
    for seed in range(5):
        check = check_gradient(source, atoms, seed=seed)
        assert not check.wrong
        assert check.error > 10.0 * exact.error
        assert check.noise > 1e-9
    assert check.is_sharp == (how == "single precision")


def test_perfect_crystal() -> None:
    """Its forces vanish; the check displaces the atoms before."""
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    check = check_gradient(CalculatorForces(EMT()), atoms)
    assert not check.wrong and check.is_sharp and check.rms_force > 0.01


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, ForceSource]:
    """Small models with random weights."""
    folder, sources = tmp_path_factory.mktemp("models"), {}
    for name, dtype in (("double", torch.float64), ("single", torch.float32)):
        make_model(dtype=dtype).export().save(str(folder / f"{name}.pt"))
        sources[name] = load_forces(folder / f"{name}.pt", device="cpu")
    return sources


@pytest.mark.parametrize("name", ["double", "single"])
def test_exported_models(name: str, exported: Dict[str, ForceSource]) -> None:
    """Gradients by backpropagation are those of the energy, in either precision."""
    with torch.jit.optimized_execution(False):
        check = check_gradient(exported[name], random_cell(10, 6.0), n_atoms=10)
    assert not check.wrong and check.is_sharp
    # Elements take turns.
    symbols = [x.direction.split()[0] for x in check.derivatives[3:7]]
    assert len(set(symbols)) == len(set(random_cell(10, 6.0).symbols))


def test_no_energy(exported: Dict[str, ForceSource]) -> None:
    """There is nothing to differentiate."""
    with pytest.raises(MissingForceError, match="has no energy to differentiate"):
        check_gradient(DirectOnly(exported["double"]), random_cell(6, 6.0))
