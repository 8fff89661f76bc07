"""``dualforce inputs``: folders that run, and refusals."""

import runpy
from pathlib import Path
from typing import Any, List

import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms, FixBondLength
from click.testing import CliRunner, Result
from helpers import make_model, random_cell
from test_engine_openmm import present

from dualforce.cli import main
from dualforce.engines import ModelReference, ase_script
from dualforce.md import MDSettings


SHORT = ["--timestep", "0.25", "--inner", "2", "--steps", "12", "--interval", "2"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> List[str]:
    """A small untrained model, and a structure with velocities and results."""
    folder = tmp_path_factory.mktemp("files")
    make_model().export().save(str(folder / "small.pt"))
    atoms = random_cell(12, 6.0, seed=1)
    atoms.calc = LennardJones()
    atoms.get_potential_energy()
    ase.io.write(folder / "structure.xyz", atoms, format="extxyz")
    return [str(folder / "small.pt"), str(folder / "structure.xyz")]


def call(*arguments: str) -> Result:
    """Run ``dualforce inputs``."""
    return CliRunner().invoke(main, ["inputs", *arguments])


def write(engine: str, files: List[str], folder: Path, *options: str) -> Path:
    """Write a folder, which must work."""
    result = call(engine, *files, *SHORT, *options, "-o", str(folder))
    assert result.exit_code == 0, result.output
    assert str(folder) in result.output
    assert (folder / "README.txt").exists() and (folder / "model.pt").exists()
    return folder


def test_all_engines_agree(
    files: List[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders from the same command run as they are, to the same structure."""
    pytest.importorskip("openmm")
    scripting = pytest.importorskip("ipi.utils.scripting")
    monkeypatch.chdir(write("ase", files, tmp_path / "ase"))
    expected = runpy.run_path("run.py")["dynamics"].atoms
    monkeypatch.chdir(write("openmm", files, tmp_path / "openmm"))
    simulation = runpy.run_path("run.py")["simulation"]
    finals = [present(simulation, expected)]
    for name, options in (("ours", []), ("stock", ["--stock"])):
        monkeypatch.chdir(write("ipi", files, tmp_path / name, *options))
        text = Path("input.xml").read_text()
        simulation = scripting.InteractiveSimulation(text)
        simulation.run(6)
        finals.append(simulation.get_structures())
    start = ase.io.read("structure.extxyz")
    assert isinstance(start, ase.Atoms)
    for final in finals:
        # files hold eight decimals
        np.testing.assert_allclose(final.positions, expected.positions, atol=1e-6)
    assert np.abs(start.positions - expected.positions).max() > 0.01


@pytest.mark.parametrize("ensemble", ["nvt-langevin", "nvt-svr", "npt"])
def test_script_runs(
    ensemble: str, files: List[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The script for ASE is that of its ensemble, and repeats itself."""
    monkeypatch.setattr(
        "dualforce.forces.MetatomicForces.warm_up", lambda *_, **__: 0.0
    )
    options = ("--ensemble", ensemble, "--temperature", "250", "--seed", "3")
    monkeypatch.chdir(write("ase", files, tmp_path / "run", *options))
    with torch.jit.optimized_execution(False):  # compiling takes longer than running
        first, second = (runpy.run_path("run.py")["dynamics"] for _ in range(2))
    np.testing.assert_array_equal(first.atoms.positions, second.atoms.positions)
    kind = {"nvt-langevin": "RespaLangevin", "nvt-svr": "RespaSVR", "npt": "RespaNPT"}
    assert type(first).__name__ == kind[ensemble]
    assert (first.n_inner, first.nsteps) == (2, 6)
    assert len(ase.io.read("md.traj", ":")) == 1 + 6


def test_structure_is_kept(files: List[str], tmp_path: Path) -> None:
    """Velocities of a structure are used, and drawn where there are none; masses of
    hydrogen move; constraints go to ASE."""
    atoms = ase.Atoms(
        "OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], cell=[6, 6, 6], pbc=True
    )
    ase.io.write(tmp_path / "water.xyz", atoms, format="extxyz")
    water = [files[0], str(tmp_path / "water.xyz")]
    folder = write("ase", water, tmp_path / "a", "--hydrogen-mass", "3")
    drawn: Any = ase.io.read(folder / "structure.extxyz")
    np.testing.assert_allclose(drawn.get_masses(), [12.015, 3.0, 3.0], atol=1e-3)
    assert drawn.get_kinetic_energy() > 0.0
    drawn.set_constraint(FixAtoms([0]))
    ase.io.write(tmp_path / "moving.xyz", drawn, format="extxyz")
    moving = [files[0], str(tmp_path / "moving.xyz")]
    kept: Any = ase.io.read(write("ase", moving, tmp_path / "b") / "structure.extxyz")
    assert list(kept.constraints[0].index) == [0]
    momenta = drawn.get_momenta()
    np.testing.assert_allclose(kept.get_momenta()[1:], momenta[1:], atol=1e-7)
    result = call("lammps", *moving, "-o", str(tmp_path / "c"))
    assert "has constraints" in result.output
    atoms.set_constraint(FixBondLength(0, 1))
    with pytest.raises(ValueError, match="FixBondLengths cannot be written"):
        ase_script.input_files(atoms, MDSettings(), ModelReference("x.pt"))


def test_model_options(files: List[str], tmp_path: Path) -> None:
    """A second model and the device are passed on."""
    options = ("--direct-model", files[0], "--device", "cpu")
    folder = write("ase", files, tmp_path / "a", *options)
    assert (
        'load_forces("model.pt", "direct-model.pt", device="cpu")'
        in (folder / "run.py").read_text()
    )
    assert (folder / "direct-model.pt").exists()
    text = (write("ipi", files, tmp_path / "b", *options) / "input.xml").read_text()
    assert "direct_model: direct-model.pt, device: cpu" in text


def test_refusals(files: List[str], tmp_path: Path) -> None:
    """A sentence, and no folder; nothing is overwritten."""
    folder = tmp_path / "run"
    helium = tmp_path / "helium.xyz"
    ase.io.write(helium, ase.Atoms("He"), format="extxyz")
    for arguments, message in [
        (["openmm", *files, "--ensemble", "nvt-svr"], "use nvt-langevin"),
        (["openmm", *files, "--stock"], "--stock is for ipi"),
        (["ipi", *files, "--inner", "0"], "n_inner must be 1, 2, 3"),
        (["ipi", *files, "--timestep", "-1"], "timestep must be positive"),
        (["ase", files[0], str(helium)], "does not know He"),
    ]:
        result = call(*arguments, "-o", str(folder))
        assert result.exit_code == 1
        assert message in result.output and "Traceback" not in result.output
        assert not folder.exists()
    folder.mkdir()
    write("ase", files, folder)  # empty: fine
    content = (folder / "run.py").read_text()
    result = call("ipi", *files, "-o", str(folder))
    assert result.exit_code == 1 and "exists already" in result.output
    assert (folder / "run.py").read_text() == content
    assert not (folder / "input.xml").exists()
