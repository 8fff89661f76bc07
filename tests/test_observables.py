"""Autocorrelation, spectrum, diffusion and distances, against closed forms."""

from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

from dualforce.diagnostics.observables import (
    PER_CM,
    autocorrelation,
    diffusion_coefficient,
    radial_distributions,
    spectrum,
)


def relaxing_velocities(rate: float, n_samples: int, n_atoms: int, seed: int) -> Any:
    """An Ornstein-Uhlenbeck process: correlations decay as ``exp(-rate n)``."""
    rng = np.random.default_rng(seed)
    decay = np.exp(-rate)
    noise = rng.normal(size=(n_samples, n_atoms, 3))
    values = [noise[0]]
    for kick in noise[1:]:
        values.append(decay * values[-1] + np.sqrt(1.0 - decay**2) * kick)
    return np.array(values)


def test_autocorrelation_is_the_sum_it_stands_for() -> None:
    """Fast transforms give what loops over origins, atoms and directions give."""
    velocities = np.random.default_rng(0).normal(size=(40, 3, 3))
    expected = []
    for lag in range(15):
        products = [
            velocities[t, atom] @ velocities[t + lag, atom]
            for t in range(40 - lag)
            for atom in range(3)
        ]
        expected.append(np.mean(products))
    np.testing.assert_allclose(
        autocorrelation(velocities, 15), np.array(expected) / expected[0], atol=1e-12
    )
    with pytest.raises(ValueError, match="40 samples do not have 41 lags"):
        autocorrelation(velocities, 41)


def test_spectrum_of_two_vibrations() -> None:
    """Lines appear at their frequencies, with the areas of their energies."""
    times = 2.0 * np.arange(5000)
    rng = np.random.default_rng(1)
    lines = {500.0: 1.0, 3000.0: 2.0}  # 1/cm, amplitude
    velocities = np.zeros((5000, 8, 3))
    for wavenumber, amplitude in lines.items():
        phases = rng.uniform(0.0, 2.0 * np.pi, (8, 3))
        angle = 2.0 * np.pi * wavenumber / PER_CM * times[:, None, None]
        velocities += amplitude * np.cos(angle + phases)
    frequencies, density = spectrum(velocities, 2.0, 1000)
    step = frequencies[1] - frequencies[0]
    assert step == pytest.approx(33356.4 / 2000.0, rel=1e-4)
    assert density.sum() * step == pytest.approx(1.0, rel=1e-3)
    for wavenumber, share in ((500.0, 0.2), (3000.0, 0.8)):
        near = abs(frequencies - wavenumber) < 100.0
        peak = frequencies[near][np.argmax(density[near])]
        assert peak == pytest.approx(wavenumber, abs=step)
        assert density[near].sum() * step == pytest.approx(share, rel=0.02)


def test_spectrum_of_friction() -> None:
    """An exponential decay has a Lorentzian spectrum, also at frequency zero."""
    velocities = relaxing_velocities(0.1, 20000, 20, seed=2)
    frequencies, density = spectrum(velocities, 1.0, 1000)
    angle = 2.0 * np.pi * frequencies / PER_CM
    # Of the sampled process; windows shift the first bins.
    lorentzian = 1.0 / (np.cosh(0.1) - np.cos(angle))
    lorentzian *= density[5:100].sum() / lorentzian[5:100].sum()
    np.testing.assert_allclose(density[:60], lorentzian[:60], rtol=0.15)
    lags = autocorrelation(velocities, 30)
    np.testing.assert_allclose(lags, np.exp(-0.1 * np.arange(30)), atol=0.01)


def test_diffusion_of_a_random_walk() -> None:
    """The coefficient is within its error as often as a normal error says, and
    vibrations do not change it."""
    rng = np.random.default_rng(3)
    interval, exact = 0.02, 0.3
    width = np.sqrt(2.0 * exact * interval)
    deviations = []
    for _ in range(200):
        walk = np.cumsum(rng.normal(0.0, width, (600, 10, 3)), axis=0)
        vibration = rng.normal(0.0, 0.1, walk.shape)
        value, error = diffusion_coefficient(walk + vibration, interval)
        deviations.append((value - exact) / error)
    assert abs(np.median(deviations)) < 0.3
    assert 0.5 < np.mean(np.abs(deviations) < 1.0) < 0.8


def test_diffusion_from_too_little() -> None:
    """Nothing is known, and nothing is made up."""
    for n_samples in (1, 4, 90):
        estimate = diffusion_coefficient(np.zeros((n_samples, 2, 3)), 0.02)
        assert np.isnan(estimate).all()


@pytest.mark.parametrize("cubic", [True, False])
def test_shells_of_a_crystal(cubic: bool) -> None:
    """Cesium chloride: 8 unlike neighbours, 6 and 12 like ones, whatever the cell."""
    edge = 3.52
    atoms = bulk("CsCl", "cesiumchloride", a=edge).repeat(4)
    if not cubic:
        shear = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]])
        atoms.set_cell(shear @ atoms.cell.array)
        atoms.positions += 100.0  # wrapping does not matter
    distances, functions = radial_distributions(atoms)
    assert sorted(functions) == ["Cl-Cl", "Cl-Cs", "Cs-Cs"]
    width = distances[1] - distances[0]
    assert distances[-1] <= 2.0 * edge
    density = 0.5 * len(atoms) / atoms.get_volume()
    shells = density * ((distances + width / 2) ** 3 - (distances - width / 2) ** 3)
    for pair, expected in {
        "Cl-Cs": {np.sqrt(0.75) * edge: 8},
        "Cs-Cs": {edge: 6, np.sqrt(2.0) * edge: 12},
    }.items():
        counts = 4.0 / 3.0 * np.pi * shells * functions[pair]
        for distance, number in expected.items():
            if distance > distances[-1] - 0.1:  # in the sheared cell
                continue
            near = abs(distances - distance) < 0.1
            assert counts[near].sum() == pytest.approx(number, rel=1e-6)
        assert counts[distances < min(expected) - 0.1].sum() == 0.0


def test_ideal_gas_has_no_structure() -> None:
    """The function is one, but for the atom itself."""
    rng = np.random.default_rng(4)
    n_atoms, total = 200, 0.0
    atoms = Atoms(numbers=[18] * n_atoms, cell=[10.0, 11.0, 12.0], pbc=True)
    for _ in range(20):
        atoms.positions = 30.0 * rng.uniform(size=(n_atoms, 3)) @ np.diag([1, 1.1, 1.2])
        distances, functions = radial_distributions(atoms)
        total = total + functions["Ar-Ar"] / 20
    far = distances > 1.5
    weights = distances[far] ** 2
    mean = np.average(total[far], weights=weights)
    assert mean == pytest.approx(1.0 - 1.0 / n_atoms, abs=0.005)
    assert np.average((total[far] - mean) ** 2, weights=weights) < 0.02


def test_no_distribution_without_a_cell() -> None:
    """Molecules and slabs have no density."""
    atoms = bulk("Ar", a=5.3, cubic=True)
    atoms.pbc = [True, True, False]
    distances, functions = radial_distributions(atoms)
    assert len(distances) == 0 and functions == {}
