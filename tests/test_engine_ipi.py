"""i-PI: trajectories, cost and virials of the driver, and refusals."""

import sys
from pathlib import Path
from typing import Any, List

import ase
import numpy as np
import pytest
from ase import units
from ase.constraints import FixAtoms
from helpers import energy_info, make_model, random_cell
from metatrain.utils.data.target_info import get_energy_target_info

from dualforce.engines import ipi
from dualforce.engines.files import ModelReference, write_folder
from dualforce.forces import CountedForces, MetatomicForces, load_forces
from dualforce.md import RespaVelocityVerlet, start_structure
from dualforce.md.settings import MDSettings


pytest.importorskip("ipi")
from ipi.utils.scripting import InteractiveSimulation  # noqa: E402


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelReference:
    """A small model, untrained."""
    path = tmp_path_factory.mktemp("model") / "small.pt"
    make_model().export().save(str(path))
    return ModelReference(str(path))


def simulate(
    folder: Path,
    atoms: ase.Atoms,
    settings: MDSettings,
    model: ModelReference,
    monkeypatch: pytest.MonkeyPatch,
    stock: bool = False,
) -> Any:
    """A simulation in a new folder, which becomes the current one."""
    texts = ipi.input_files(start_structure(atoms, settings), settings, model, stock)
    monkeypatch.chdir(write_folder(folder, model, texts))
    return InteractiveSimulation(Path("input.xml").read_text())


@pytest.mark.parametrize(
    ("n_inner", "conservative_inside"), [(1, False), (3, False), (4, False), (3, True)]
)
def test_trajectory(
    n_inner: int,
    conservative_inside: bool,
    model: ModelReference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Our driver, that of i-PI and ASE give the same trajectory."""
    if conservative_inside:
        path = tmp_path / "short-range.pt"
        make_model("ace", forces="conservative").export().save(str(path))
        model = ModelReference(model.model, str(path))
    settings = MDSettings(n_inner=n_inner, timestep=0.5)
    finals: List[ase.Atoms] = []
    for name in ("ours", "stock"):
        simulation = simulate(
            tmp_path / name,
            random_cell(12, 6.0, seed=1),
            settings,
            model,
            monkeypatch,
            stock=name == "stock",
        )
        start = simulation.get_structures()
        simulation.run(6, write_outputs=False)
        finals.append(simulation.get_structures())
    start.pbc = True
    run = RespaVelocityVerlet(start, 0.5 * units.fs, model.load(), n_inner)
    run.run(6)
    for final in finals:
        # i-PI rounds its constants to eight digits
        np.testing.assert_allclose(final.positions, start.positions, atol=2e-7)
        momenta = start.get_momenta()
        np.testing.assert_allclose(final.get_momenta(), momenta, atol=2e-6)
        assert final.get_potential_energy() == pytest.approx(
            start.get_potential_energy(), abs=1e-6
        )
    np.testing.assert_allclose(finals[0].positions, finals[1].positions, atol=1e-9)


@pytest.mark.parametrize("n_inner", [1, 2, 5])
def test_evaluations(
    n_inner: int, model: ModelReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outer step costs M - 1 direct evaluations and one of both."""
    made: List[CountedForces] = []

    def count(*args: Any, **kwargs: Any) -> CountedForces:
        made.append(CountedForces(load_forces(*args, **kwargs)))
        return made[-1]

    monkeypatch.setattr("dualforce.engines.files.load_forces", count)
    settings = MDSettings(n_inner=n_inner, interval=1)
    simulation = simulate(tmp_path / "run", random_cell(), settings, model, monkeypatch)
    simulation.run(4)
    (forces,) = made
    assert forces.direct_cost.calls == 4 * (n_inner - 1)
    assert forces.conservative_cost.calls == 1 + 4


@pytest.mark.parametrize("cell", ["isotropic", "orthorhombic", "triclinic"])
def test_constant_pressure(
    cell: Any, model: ModelReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changes of the cell is what was asked for."""
    settings = MDSettings(
        ensemble="npt", cell=cell, n_inner=2, timestep=0.2, pressure=1e4, tau_p=50.0
    )
    simulation = simulate(tmp_path / "run", random_cell(), settings, model, monkeypatch)
    start = simulation.get_structures().cell.array
    conserved = simulation.properties("conserved")
    simulation.run(10, write_outputs=False)
    strain = np.linalg.solve(start, simulation.get_structures().cell.array) - np.eye(3)
    stretch, shear = np.diag(strain), strain - np.diag(np.diag(strain))
    assert np.abs(stretch).max() > 1e-6
    assert (np.ptp(stretch) < 1e-10) == (cell == "isotropic")
    assert (np.abs(shear).max() > 1e-7) == (cell == "triclinic")
    assert simulation.properties("conserved") == pytest.approx(conserved, abs=2e-3)


@pytest.mark.parametrize("ensemble", ["nvt-langevin", "nvt-svr"])
def test_thermostats(
    ensemble: Any,
    model: ModelReference,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thermostat exchanges energy, which the conserved quantity knows."""
    settings = MDSettings(ensemble, 600.0, timestep=0.2, n_inner=2, tau=5, friction=200)
    simulation = simulate(tmp_path / "run", random_cell(), settings, model, monkeypatch)
    names = ("conserved", "potential", "kinetic_md")
    before = [simulation.properties(name) for name in names]
    simulation.run(10, write_outputs=False)
    after = [simulation.properties(name) for name in names]
    assert abs(sum(after[1:]) - sum(before[1:])) > 0.02
    assert after[0] == pytest.approx(before[0], abs=2e-3)


@pytest.mark.parametrize("force", ["conservative", "direct"])
def test_virial(
    force: str, model: ModelReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Virials are those of the model, in the units of i-PI."""
    atoms = random_cell(10, 6.0, seed=7)
    monkeypatch.chdir(tmp_path)
    atoms.write("template.xyz", format="extxyz")
    arguments = ("template.xyz", str(model.model), force)
    driver = ipi.IPIDriver(*arguments, stress=True)
    cell, positions = atoms.cell.array.T / units.Bohr, atoms.positions / units.Bohr
    energy, forces, virial, _ = driver(cell, positions)
    expected = getattr(MetatomicForces(model.model), force)(atoms, stress=True)
    assert energy * units.Ha == pytest.approx(expected.energy or 0.0, rel=1e-6)
    forces, virial = forces * units.Ha / units.Bohr, virial * units.Ha
    np.testing.assert_allclose(forces, expected.forces, rtol=1e-5, atol=1e-6)
    pressure = -expected.stress * atoms.get_volume()
    np.testing.assert_allclose(virial, pressure, rtol=1e-5, atol=1e-6)
    unknown = ipi.IPIDriver(*arguments)(cell, positions)[2]
    assert np.isnan(unknown).all()
    both = driver([cell, cell], [positions, positions])
    np.testing.assert_array_equal(both[0][1], both[1][1])


def test_model_without_direct_stress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conservative stress acts alone, at the outer points."""
    info = energy_info()
    info.targets = {
        "energy": get_energy_target_info(
            "energy", {"unit": "eV"}, add_position_gradients=True
        )
    }
    make_model(info=info).export().save(str(tmp_path / "small.pt"))
    model = ModelReference(str(tmp_path / "small.pt"))
    settings = MDSettings("npt", n_inner=2, timestep=0.2, tau_p=50.0)
    simulation = simulate(tmp_path / "run", random_cell(), settings, model, monkeypatch)
    conserved = simulation.properties("conserved")
    virial = simulation.syslist[0].forces.vir
    stress = (
        MetatomicForces(model.model).conservative(random_cell(), stress=True).stress
    )
    expected = -stress * random_cell().get_volume() / units.Ha
    np.testing.assert_allclose(np.triu(virial), np.triu(expected), atol=1e-6)
    simulation.run(10, write_outputs=False)
    assert simulation.properties("conserved") == pytest.approx(conserved, abs=2e-3)


def test_molecule(
    model: ModelReference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A molecule stays one, in the box that i-PI wants."""
    atoms = random_cell(6, 4.0, pbc=(False, False, False))
    settings = MDSettings(n_inner=2)
    simulation = simulate(tmp_path / "run", atoms, settings, model, monkeypatch)
    energy = MetatomicForces(model.model).conservative(atoms).energy
    structure = simulation.get_structures()
    assert structure.cell.lengths().min() > 100.0
    assert structure.get_potential_energy() == pytest.approx(energy, abs=1e-5)


def test_refusals(model: ModelReference, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be done is refused in a sentence."""
    settings, npt = MDSettings(), MDSettings("npt")
    molecule = random_cell(pbc=(False, False, False))
    slab = random_cell(pbc=(True, True, False))
    fixed = random_cell()
    fixed.set_constraint(FixAtoms([0]))
    for atoms, chosen, stock, message in [
        (molecule, settings, True, "takes every structure as periodic"),
        (molecule, npt, False, "constant pressure needs"),
        (slab, settings, False, "some directions only"),
        (fixed, settings, False, "has constraints"),
    ]:
        with pytest.raises(ValueError, match=message):
            ipi.input_files(atoms, chosen, model, stock)
    with pytest.raises(ValueError, match="conservative or direct"):
        ipi.IPIDriver("x", "y", "both")
    monkeypatch.setitem(sys.modules, "ipi.utils.units", None)
    with pytest.raises(ImportError, match=r"dualforce\[ipi\]"):
        ipi.IPIDriver("x", "y", "direct")
