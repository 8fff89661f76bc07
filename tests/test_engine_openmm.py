"""OpenMM: trajectories, cost, energies, ensembles and refusals."""

from typing import Any

import ase
import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms
from potentials import two_calculators

from dualforce.engines import openmm as engine
from dualforce.engines.box import VACUUM, in_box
from dualforce.engines.separate import SeparateForces
from dualforce.forces import CountedForces, Evaluation, ForceSource
from dualforce.md import RespaVelocityVerlet
from dualforce.md.preparation import set_thermal_momenta
from dualforce.md.settings import MDSettings


openmm = pytest.importorskip("openmm")


def argon(triclinic: bool = False) -> ase.Atoms:
    """Warm solid argon, in 32 atoms."""
    atoms = bulk("Ar", "fcc", a=5.4, cubic=not triclinic) * (
        (3, 3, 3) if triclinic else (2, 2, 2)
    )
    set_thermal_momenta(atoms, 60.0, np.random.default_rng(0))
    return atoms


def two_forces() -> CountedForces:
    """Lennard-Jones, with a direct force that is somewhat wrong."""
    return CountedForces(
        two_calculators(
            LennardJones(epsilon=0.0103, sigma=3.4, rc=6.0, smooth=True),
            LennardJones(epsilon=0.0113, sigma=3.4, rc=6.0, smooth=True),
        )
    )


class Springs(ForceSource):
    """Atoms on springs; the direct force is a part of it, or there is none.

    :param k: spring constant, in eV/Å^2.
    :param centre: where all springs end, in Å.
    """

    has_direct = True

    def __init__(self, k: float, centre: float = 0.0) -> None:
        self.k, self.centre = k, centre

    def conservative(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        moved = atoms.positions - self.centre
        return Evaluation(-self.k * moved, 0.5 * self.k * float((moved**2).sum()))

    def direct(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        return Evaluation(-0.8 * self.k * (atoms.positions - self.centre))


def present(simulation: Any, like: ase.Atoms) -> ase.Atoms:
    """The present structure of a simulation, in units of ASE."""
    state = simulation.context.getState(getPositions=True, getVelocities=True)
    nanometer = openmm.unit.nanometer
    atoms = like.copy()
    atoms.positions = 10.0 * state.getPositions(asNumpy=True).value_in_unit(nanometer)
    velocities = state.getVelocities(asNumpy=True)
    velocities = velocities.value_in_unit(nanometer / openmm.unit.picosecond)
    atoms.set_velocities(velocities * 10.0 / (1000.0 * units.fs))
    return atoms


def energy_of(simulation: Any) -> float:
    """Potential energy in eV."""
    energy = simulation.context.getState(getEnergy=True).getPotentialEnergy()
    return energy.value_in_unit(openmm.unit.kilojoule_per_mole) * units.kJ / units.mol


@pytest.mark.parametrize("triclinic", [False, True])
@pytest.mark.parametrize("n_inner", [1, 4])
def test_trajectory(n_inner: int, triclinic: bool) -> None:
    """The same trajectory as in ASE, at the same cost."""
    settings = MDSettings(timestep=5.0, n_inner=n_inner)
    atoms, forces = in_box(argon(triclinic), settings, "OpenMM").atoms, two_forces()
    simulation = engine.openmm_simulation(atoms, forces, settings)
    simulation.step(10)
    assert forces.direct_cost.calls == 10 * (n_inner - 1)
    assert forces.conservative_cost.calls == 1 + 10
    run = RespaVelocityVerlet(atoms, 5.0 * units.fs, two_forces(), n_inner)
    start = atoms.positions.copy()
    run.run(10)
    final = present(simulation, atoms)
    assert np.abs(atoms.positions - start).max() > 0.05
    np.testing.assert_allclose(final.positions, atoms.positions, atol=1e-7)
    np.testing.assert_allclose(final.get_momenta(), atoms.get_momenta(), atol=1e-7)
    assert energy_of(simulation) == pytest.approx(atoms.get_potential_energy())
    assert forces.conservative_cost.calls == 1 + 10  # the energy was at hand


def test_energy_is_conserved() -> None:
    """Conservative and kinetic energy, although the direct force is wrong."""
    atoms = argon()
    simulation = engine.openmm_simulation(
        atoms, two_forces(), MDSettings(timestep=4.0, n_inner=4)
    )
    totals = []
    for _ in range(40):
        simulation.step(1)
        kinetic = present(simulation, atoms).get_kinetic_energy()
        totals.append(energy_of(simulation) + kinetic)
    assert np.ptp(totals) / len(atoms) < 1e-4
    assert atoms.get_kinetic_energy() / len(atoms) > 5e-3


def test_langevin() -> None:
    """Equipartition between kinetic energy and springs, at the temperature."""
    atoms = ase.Atoms("Ar64", positions=np.zeros((64, 3)))
    settings = MDSettings(
        "nvt-langevin", 200.0, timestep=10.0, n_inner=4, friction=5.0, seed=3
    )
    simulation = engine.openmm_simulation(atoms, Springs(0.5, VACUUM), settings)
    kinetic, potential = [], []
    for step in range(400):
        simulation.step(1)
        if step >= 50:
            atoms = present(simulation, atoms)
            kinetic.append(atoms.get_temperature())
            potential.append(energy_of(simulation) / (1.5 * 64 * units.kB))
    assert np.mean(kinetic) == pytest.approx(200.0, rel=0.05)
    assert np.mean(potential) == pytest.approx(200.0, rel=0.05)


def test_seeds() -> None:
    """The same seed gives the same noise, also the default one."""

    def final(seed: int) -> Any:
        settings = MDSettings("nvt-langevin", n_inner=2, friction=50.0, seed=seed)
        simulation = engine.openmm_simulation(argon(), two_forces(), settings)
        simulation.step(3)
        return present(simulation, argon()).positions

    np.testing.assert_array_equal(final(0), final(0))
    assert np.abs(final(0) - final(1)).max() > 1e-6


@pytest.mark.parametrize("cell", ["isotropic", "orthorhombic", "triclinic"])
def test_barostat(cell: Any) -> None:
    """An ideal gas has the volume of its pressure, in a box of the right shape."""
    atoms = ase.Atoms("Ar20", cell=[20.0] * 3, pbc=True)
    pressure = 21 * units.kB * 300.0 / atoms.get_volume()
    settings = MDSettings(
        "npt", 300.0, pressure / units.bar, timestep=1.0, n_inner=1, cell=cell
    )
    simulation = engine.openmm_simulation(atoms, Springs(0.0), settings)
    volumes, shapes = [], []
    for _ in range(1500 if cell == "isotropic" else 100):
        simulation.step(engine.BAROSTAT_INTERVAL)
        vectors = simulation.context.getState().getPeriodicBoxVectors(asNumpy=True)
        vectors = vectors.value_in_unit(openmm.unit.angstrom)
        shapes.append(vectors / np.cbrt(np.linalg.det(vectors)))
        volumes.append(np.linalg.det(vectors))
    assert np.ptp(volumes) > 10.0
    if cell == "isotropic":
        assert np.mean(volumes) == pytest.approx(8000.0, rel=0.1)
    shape = np.abs(np.array(shapes) - np.eye(3)).max(0)
    diagonal = np.diag(shape).max()
    assert (diagonal > 1e-3) == (cell != "isotropic")
    assert (np.abs(shape - np.diag(np.diag(shape))).max() > 1e-3) == (
        cell == "triclinic"
    )


def test_separate_forces_in_any_order() -> None:
    """Whoever asks what and when gets the right answer."""
    rng = np.random.default_rng(0)
    atoms, forces, exact = argon(), two_forces(), two_forces()
    separate = SeparateForces(forces, n_inner=3)
    for _ in range(30):
        if rng.random() < 0.7:
            atoms.positions += rng.normal(0.0, 0.01, atoms.positions.shape)
        if rng.random() < 0.2:
            atoms.set_cell(1.001 * atoms.cell.array)
        if rng.random() < 0.5:
            given, expected = separate.direct(atoms), exact.direct(atoms)
        else:
            given, expected = separate.conservative(atoms), exact.conservative(atoms)
            assert given.energy == pytest.approx(expected.energy, rel=1e-12)
        np.testing.assert_allclose(given.forces, expected.forces, atol=1e-12)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be done is refused in a sentence."""
    atoms, forces = argon(), two_forces()
    with pytest.raises(ValueError, match="no stochastic velocity rescaling"):
        engine.openmm_simulation(atoms, forces, MDSettings("nvt-svr"))
    with pytest.raises(ValueError, match="set --friction"):
        engine.openmm_simulation(atoms, forces, MDSettings("npt", tau=50.0))
    fixed = atoms.copy()
    fixed.set_constraint(FixAtoms([0]))
    with pytest.raises(ValueError, match="has constraints"):
        engine.openmm_simulation(fixed, forces, MDSettings())
    monkeypatch.setattr(engine, "openmm", None)
    with pytest.raises(ImportError, match=r"dualforce\[openmm\]"):
        engine.openmm_simulation(atoms, forces, MDSettings())
