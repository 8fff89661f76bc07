"""LAMMPS: data files against ASE, the input, and a run where there is an ``lmp``."""

import io
import shutil
import subprocess
from pathlib import Path
from typing import Any, Dict

import ase
import ase.io
import numpy as np
import pytest
from ase import units
from ase.calculators.lammps import Prism
from helpers import energy_info, make_model, random_cell
from metatrain.utils.data.target_info import get_energy_target_info

from dualforce.engines import ModelReference, lammps, write_inputs
from dualforce.forces import MetatomicForces, load_model
from dualforce.md import RespaVelocityVerlet, start_structure
from dualforce.md.settings import MDSettings


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelReference:
    """A small model, untrained."""
    path = tmp_path_factory.mktemp("model") / "small.pt"
    make_model().export().save(str(path))
    return ModelReference(str(path))


def texts(
    settings: MDSettings, model: ModelReference, atoms: ase.Atoms
) -> Dict[str, str]:
    """Files for a structure."""
    return lammps.input_files(start_structure(atoms, settings), settings, model)


def commands(text: str) -> Dict[str, str]:
    """Last command of each kind in an input, and all fixes by their names."""
    result = {}
    for line in text.replace("&\n", " ").splitlines():
        words = line.partition("#")[0].split()
        if words:
            named = words[0] in ("fix", "variable")
            name = " ".join(words[:2]) if named else words[0]
            result[name] = " ".join(words).removeprefix(name).strip()
    return result


def test_data_file(model: ModelReference) -> None:
    """ASE reads what was meant: cell, positions, velocities and masses, rotated
    together."""
    atoms = random_cell(14, 6.0, seed=4)
    atoms.rotate(30.0, (1.0, 2.0, -0.5), rotate_cell=True)
    atoms = start_structure(atoms, MDSettings())
    masses = atoms.get_masses()
    masses[atoms.numbers == 1] = 2.0
    masses[np.flatnonzero(atoms.numbers == 8)[0]] = 14.0
    atoms.set_masses(masses)
    data = lammps.input_files(atoms, MDSettings(), model)["structure.data"]
    read = ase.io.read(io.StringIO(data), format="lammps-data", units="metal")
    assert isinstance(read, ase.Atoms)
    prism = Prism(atoms.cell.array)
    np.testing.assert_allclose(read.cell.array, prism.cell, atol=1e-12)
    for name in ("positions", "velocities"):
        expected = prism.vector_to_lammps(getattr(atoms, f"get_{name}")())
        np.testing.assert_allclose(getattr(read, f"get_{name}")(), expected, atol=1e-12)
    np.testing.assert_allclose(read.get_masses(), masses, rtol=1e-8)


def test_types(model: ModelReference) -> None:
    """One type for each element and mass, told to the model by element."""
    atoms = ase.Atoms(
        "OH2OH",
        [[0, 0, 0], [0.96, 0, 0], [0, 0.96, 0], [5, 5, 5], [5.96, 5, 5]],
        cell=[10, 10, 10],
        pbc=True,
    )
    files = texts(MDSettings(hydrogen_mass=3.0), model, atoms)
    text = files["input.lammps"]
    for style in (1, 2, 3):
        assert f"pair_coeff * * metatomic_{style} 1 8 8\n" in text
    assert "dump_modify trajectory element H O O sort id" in text
    rows = files["structure.data"].split("Atoms")[1].split("Velocities")[0]
    kinds = [line.split()[1] for line in rows.splitlines()[2:7]]
    assert kinds == ["2", "1", "1", "3", "1"]


def test_respa(model: ModelReference) -> None:
    """The direct force is inside, the correction outside, at the right steps."""
    settings = MDSettings(timestep=0.25, n_inner=8, steps=100, interval=20)
    given = ModelReference(model.model, model.model, "cuda", "pbe")
    found = commands(texts(settings, given, random_cell())["input.lammps"])
    options = "uncertainty_threshold off device cuda variant pbe non_conservative"
    direct = f"${{direct}} {options} on scale"
    conservative = f"${{model}} {options} off scale"
    assert " ".join(found["pair_style"].split()) == (
        f"hybrid/overlay metatomic_1 {direct} 1.0 metatomic_2 {direct} -1.0 "
        f"metatomic_3 {conservative} 1.0"
    )
    assert found["run_style"] == "respa 2 8 hybrid 1 2 2"
    assert float(found["timestep"]) == 0.002  # outer, in ps
    assert found["run"] == "13"
    assert found["thermo"] == "3"
    assert found["fix integrate"] == "all nve"
    assert found["fix momentum"] == "all momentum 1 linear 1 1 1"


def test_plain(model: ModelReference) -> None:
    """Without inner steps the conservative force is enough."""
    found = commands(texts(MDSettings(n_inner=1), model, random_cell())["input.lammps"])
    assert found["pair_style"] == "metatomic ${model} uncertainty_threshold off"
    assert found["variable model"] == "index model-one-process.pt"
    assert found["pair_coeff"] == "* * 1 6 7 8"
    assert found["run_style"] == "verlet"
    assert "fix momentum" not in found


def test_ensembles(model: ModelReference) -> None:
    """Thermostats and barostats, in ps, bar and K, with seeds LAMMPS accepts."""

    def fixes(settings: MDSettings) -> Dict[str, str]:
        files = texts(settings, model, random_cell())
        assert ("xy xz yz" in files["structure.data"]) or settings.cell != "triclinic"
        return commands(files["input.lammps"])

    langevin = fixes(MDSettings("nvt-langevin", 310.0, friction=4.0))
    assert langevin["fix thermostat"] == "all langevin 310.0 310.0 0.25 1 tally yes"
    svr = fixes(MDSettings("nvt-svr", 310.0, tau=50.0, seed=7))
    assert svr["fix thermostat"] == "all temp/csvr 310.0 310.0 0.05 8"
    for cell, style in (("orthorhombic", "aniso"), ("triclinic", "tri")):
        npt = fixes(MDSettings("npt", 310.0, 20.0, tau_p=500.0, cell=cell))
        assert npt["fix integrate"] == (
            f"all npt temp 310.0 310.0 0.1 {style} 20.0 20.0 0.5"
        )
        assert npt["thermo_style"].endswith("press vol")


def test_neighbor_lists(model: ModelReference) -> None:
    """LAMMPS accepts a model only with room for twice the atoms in its range."""
    atoms = random_cell(14, 5.0, min_distance=1.0) * (3, 3, 3)
    found = commands(texts(MDSettings(), model, atoms)["input.lammps"])
    _, one, _, page = found["neigh_modify"].split()
    radius = 8.0 + float(found["neighbor"].split()[0])  # two layers of 4 Å
    needed = 2.0 * 4.0 / 3.0 * np.pi * radius**3 * len(atoms) / atoms.get_volume()
    assert int(one) > needed
    assert int(page) == 10 * int(one)


def test_molecule(model: ModelReference) -> None:
    """A molecule is not periodic, and inside of its box."""
    atoms = random_cell(6, 4.0, pbc=(False, False, False))
    files = texts(MDSettings(), model, atoms)
    assert commands(files["input.lammps"])["boundary"] == "s s s"
    read = ase.io.read(io.StringIO(files["structure.data"]), format="lammps-data")
    assert isinstance(read, ase.Atoms)
    scaled = read.get_scaled_positions(wrap=False)
    assert scaled.min() > 0.0 and scaled.max() < 1.0


def test_refusals(model: ModelReference, tmp_path: Path) -> None:
    """What cannot be done is refused in a sentence."""
    with pytest.raises(ValueError, match="use --device cuda"):
        texts(MDSettings(), ModelReference(model.model, device="cuda:1"), random_cell())
    with pytest.raises(ValueError, match="some directions only"):
        texts(MDSettings(), model, random_cell(pbc=(True, True, False)))
    with pytest.raises(ValueError, match="'ase:Atoms' is a calculator of ASE"):
        texts(MDSettings(), ModelReference("ase:Atoms"), random_cell())


def test_without_direct_stress(tmp_path: Path) -> None:
    """LAMMPS then takes direct forces alone."""
    info = energy_info()
    info.targets["energy"] = get_energy_target_info(
        "energy", {"quantity": "energy", "unit": "eV"}, add_position_gradients=True
    )
    path = tmp_path / "model.pt"
    make_model(info=info).export().save(str(path))
    given = texts(MDSettings(), ModelReference(str(path)), random_cell())
    style = commands(given["input.lammps"])["pair_style"].split()
    assert [style[i + 1] for i, word in enumerate(style) if "non_cons" in word] == [
        "forces",
        "forces",
        "off",
    ]


def test_a_conservative_potential_inside(model: ModelReference, tmp_path: Path) -> None:
    """Its gradient is taken, which leaves the centre of mass at rest."""
    path = tmp_path / "short-range.pt"
    make_model(forces="conservative").export().save(str(path))
    given = ModelReference(model.model, str(path))
    found = commands(texts(MDSettings(), given, random_cell())["input.lammps"])
    style = found["pair_style"].split()
    kinds = [style[i + 1] for i, word in enumerate(style) if "non_cons" in word]
    assert kinds == ["off", "off", "off"]
    assert [word for word in style if word.startswith("${")] == [
        "${direct}",
        "${direct}",
        "${model}",
    ]
    assert "fix momentum" not in found


def test_one_process(model: ModelReference, tmp_path: Path) -> None:
    """The copy has an infinite range, and the same forces."""
    atoms = random_cell()
    folder = write_inputs("lammps", model, atoms, tmp_path / "run", MDSettings())
    copy = load_model(folder / "model-one-process.pt")
    assert np.isinf(copy.capabilities().interaction_range)
    assert load_model(folder / "model.pt").capabilities().interaction_range == 12.0
    given, expected = (MetatomicForces(m).both(atoms) for m in (copy, model.model))
    for mine, other in zip(given, expected, strict=True):
        np.testing.assert_allclose(mine.forces, other.forces, atol=1e-12)
    assert "-var model model.pt" in (folder / "README.txt").read_text()


def lmp_with_metatomic() -> Any:
    """Path of an ``lmp`` that knows metatomic models, or none."""
    path = shutil.which("lmp")
    if path is None:
        return None
    known = subprocess.run([path, "-h"], capture_output=True, text=True).stdout
    return path if "metatomic" in known else None


@pytest.mark.skipif(lmp_with_metatomic() is None, reason="no lmp with ML-METATOMIC")
@pytest.mark.parametrize("n_inner", [1, 4])
def test_run(n_inner: int, model: ModelReference, tmp_path: Path) -> None:
    """The same trajectory as in ASE, but for a shift of the whole system."""
    settings = MDSettings(n_inner=n_inner, steps=8 * n_inner, interval=n_inner)
    atoms = start_structure(random_cell(12, 6.0, seed=1), settings)
    folder = write_inputs("lammps", model, atoms, tmp_path / "run", settings)
    subprocess.run(lammps.COMMAND.split(), cwd=folder, check=True)
    final = ase.io.read(
        folder / "trajectory.lammpstrj", index=-1, format="lammps-dump-text"
    )
    assert isinstance(final, ase.Atoms)
    start = ase.io.read(folder / "structure.data", format="lammps-data", units="metal")
    assert isinstance(start, ase.Atoms)
    start.numbers = atoms.numbers
    forces = MetatomicForces(model.model)
    RespaVelocityVerlet(start, 0.5 * units.fs, forces, n_inner).run(8)
    moved = final.positions - final.positions.mean(0)
    expected = start.positions - start.positions.mean(0)
    np.testing.assert_allclose(moved, expected, atol=1e-6)
