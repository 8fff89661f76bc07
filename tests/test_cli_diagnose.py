"""``dualforce diagnose``: models and calculators, interrupts, bad input."""

import json
from pathlib import Path
from typing import Any, Dict, List

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from click.testing import CliRunner, Result
from helpers import make_model, random_cell
from made_up import NAN, nve

from dualforce.cli import main
from dualforce.diagnostics import Report
from dualforce.diagnostics import diagnose as judge
from dualforce.diagnostics.cache import Cache, hash_structures
from dualforce.diagnostics.content import Sentence, Table
from dualforce.diagnostics.findings import DIRECT, MTS, Findings
from dualforce.diagnostics.measure import Case, Measure, Progress
from dualforce.diagnostics.measures import MEASURES
from dualforce.diagnostics.measures import nve as nve_module
from dualforce.diagnostics.measures import nvt as nvt_module
from dualforce.diagnostics.measures.nve import NVERun
from dualforce.diagnostics.measures.nvt import LANGEVIN, SVR
from dualforce.diagnostics.setup import N_FRAMES, Setup


TINY: Dict[str, Dict[str, Any]] = {
    "gradient": {"n_directions": 1, "n_atoms": 1},
    "jacobian": {"max_exact": 6, "n_probes": 4, "n_pair_atoms": 3},
    "loop": {"max_points": 32},
    "start": {"length_fs": 4.0},
    "nve": {"length_fs": 20.0, "inner": (2,)},
    "nvt": {
        "length_fs": 8.0,
        "equilibration_fs": 2.0,
        "runs": ((DIRECT, SVR, 10.0), (MTS, SVR, 10.0), (DIRECT, LANGEVIN, 10.0)),
    },
    "relaxation": {"optimizers": ("LBFGS",), "n_runs": 1, "max_steps": 4, "fmax": 0.01},
}

EMT_SPEC = "ase.calculators.emt:EMT"


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies of seconds."""
    monkeypatch.setitem(N_FRAMES, "quick", 2)
    for measure in MEASURES:
        sizes = {"quick": TINY.get(measure.name, {})}
        monkeypatch.setattr(type(measure), "sizes", sizes)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small untrained model."""
    path = str(tmp_path_factory.mktemp("model") / "small.pt")
    make_model().export().save(path)
    return path


@pytest.fixture
def copper(tmp_path: Path) -> str:
    """Three frames of copper with labels that are off by 1 meV/atom and 2 meV/Å."""
    frames = []
    for seed in range(3):
        atoms = bulk("Cu", cubic=True) * (2, 1, 1)
        atoms.rattle(0.05, seed=seed)
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = SinglePointCalculator(
            atoms, energy=energy + 0.001 * len(atoms), forces=forces + 0.002
        )
        frames.append(atoms)
    ase.io.write(tmp_path / "copper.xyz", frames)
    return str(tmp_path / "copper.xyz")


def diagnose(*arguments: str) -> Result:
    """Run the command."""
    options = ["--temperature", "50", "--timestep", "0.5"]
    return CliRunner().invoke(main, ["diagnose", *arguments, *options])


def numbers(folder: Path) -> Dict[str, Any]:
    """The report, as numbers."""
    content: Dict[str, Any] = json.loads((folder / "report.json").read_text())
    return content


def entries(folder: Path, index: int = 0) -> Dict[str, Dict[str, Any]]:
    """What became of each measure of a model."""
    return {
        entry["task"]: entry for entry in numbers(folder)["models"][index]["entries"]
    }


def test_hybrid_model(model: str, tmp_path: Path) -> None:
    """All that makes sense for a model with two forces is measured, for both."""
    structure = tmp_path / "structure.xyz"
    ase.io.write(structure, random_cell(10, 7.0, seed=1))
    folder = tmp_path / "report"
    result = diagnose(model, str(structure), "-o", str(folder), "--inner", "2")
    assert result.exit_code == 0, result.output
    found = entries(folder)
    missing = {name for name, entry in found.items() if entry["status"] != "done"}
    # No labels, and every atom alone.
    assert missing <= {
        "errors/frames",
        "loop/rotation-conservative",
        "loop/rotation-direct",
    }
    assert {found[name]["status"] for name in missing} <= {"skipped"}
    assert found["jacobian/conservative"]["result"]["value"] < 1e-9
    assert found["jacobian/direct"]["result"]["value"] > 1e-3
    assert found["nve/MTS-2"]["result"]["candidate"]["n_inner"] == 2
    assert found["nvt/MTS-svr-10"]["result"]["kind"] == "MTS"
    (errors,) = found["errors/frames"]["result"]["forces"]
    assert errors["reference"] == "conservative" and errors["n_frames"] == 1
    assert found["errors/frames"]["result"]["energy"] is None


def test_calculator(copper: str, tmp_path: Path) -> None:
    """A calculator of ASE is judged by the same command, its errors are the known ones,
    and the chosen structures are named."""
    folder = tmp_path / "report"
    result = diagnose(EMT_SPEC, copper, "-o", str(folder), "--index", "1")
    assert result.exit_code == 0, result.output
    assert "Structure 1 of 3" in result.output
    found = entries(folder)
    assert {entry["status"] for entry in found.values()} <= {"done", "skipped"}
    errors = found["errors/frames"]["result"]
    assert errors["energy"]["mae"] == pytest.approx(1e-3)
    assert errors["forces"][0]["mae"] == pytest.approx(2e-3)
    assert found["jacobian/conservative"]["result"]["value"] < 1e-5
    assert found["nvt/conservative-langevin-10"]["status"] == "done"
    assert found["loop/rotation-conservative"]["status"] == "skipped"
    assert numbers(folder)["structures"]["frame_indices"] == [0, 2]


def test_several_models(copper: str, tmp_path: Path) -> None:
    """Each model has rows of its own."""
    lennard_jones = "ase.calculators.lj:LennardJones"
    folder = tmp_path / "report"
    result = diagnose(EMT_SPEC, lennard_jones, copper, "-o", str(folder))
    assert result.exit_code == 0, result.output
    names = [each["name"] for each in numbers(folder)["models"]]
    assert names == [EMT_SPEC, lennard_jones]
    page = (folder / "report.html").read_text()
    assert '<th scope="col">model</th>' in page
    assert page.count(f'<th scope="row">{lennard_jones}</th>') > 3


def test_interrupted_study_goes_on(
    copper: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an interrupt only what is missing is measured, and the result is the same
    as without."""
    measured: List[str] = []
    run_nve, run_nvt = nve_module.run_nve, nvt_module.run_nvt

    def counted(*arguments: Any, **options: Any) -> NVERun:
        measured.append("nve")
        return run_nve(*arguments, **options)

    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(nve_module, "run_nve", counted)
    monkeypatch.setattr(nvt_module, "run_nvt", interrupted)
    folder = tmp_path / "report"
    first = diagnose(EMT_SPEC, copper, "-o", str(folder))
    assert first.exit_code == 1 and measured == ["nve"]
    assert not (folder / "report.html").exists()
    monkeypatch.setattr(nvt_module, "run_nvt", run_nvt)
    second = diagnose(EMT_SPEC, copper, "-o", str(folder))
    assert second.exit_code == 0, second.output
    assert measured == ["nve"]
    whole = tmp_path / "whole"
    assert diagnose(EMT_SPEC, copper, "-o", str(whole)).exit_code == 0
    mine, other = entries(folder), entries(whole)
    for name in (
        "jacobian/conservative",
        "nve/conservative",
        "nvt/conservative-svr-10",
    ):
        for field in ("value", "conserved", "temperature", "deviation"):
            a, b = mine[name]["result"].get(field), other[name]["result"].get(field)
            assert a == b, (name, field)


def test_settings_invalidate_what_they_touch(copper: str, tmp_path: Path) -> None:
    """Another timestep changes runs, not the asymmetry; the same command nothing."""
    folder = tmp_path / "report"
    arguments = [EMT_SPEC, copper, "-o", str(folder)]
    assert diagnose(*arguments).exit_code == 0

    def files() -> Dict[str, int]:
        return {p.name: p.stat().st_mtime_ns for p in (folder / "cache").iterdir()}

    before = files()
    assert diagnose(*arguments).exit_code == 0
    assert files() == before
    result = CliRunner().invoke(
        main, ["diagnose", *arguments, "--temperature", "50", "--timestep", "1.0"]
    )
    assert result.exit_code == 0, result.output
    after = files()
    assert before.items() <= after.items()
    new = {name.rpartition("-")[0] for name in set(after) - set(before)}
    assert new == {
        "start-equilibration",
        "nve-conservative",
        "nvt-conservative-svr-10",
        "nvt-conservative-langevin-10",
    }


def test_from_python(copper: str, tmp_path: Path) -> None:
    """Calculators and structures in memory are judged too; nothing is written, and
    nothing kept of what may have changed."""
    frames = ase.io.read(copper, index=":")
    seen: List[float] = []

    def progress(title: str, share: float) -> None:
        seen.append(share)

    report = judge([EMT(), EMT()], frames, temperature_K=50.0, progress=progress)
    assert isinstance(report, Report)
    assert list(report.headlines) == ["EMT", "EMT #2"]
    assert seen == sorted(seen) and seen[-1] == 1.0
    judge(EMT(), frames[0], tmp_path, temperature_K=50.0)
    assert (tmp_path / "report.json").exists()
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ValueError, match="preset must be one of quick, full"):
        judge(EMT(), frames, preset="huge")
    with pytest.raises(ValueError, match="no models"):
        judge([], frames)


def test_two_calculators(copper: str, tmp_path: Path) -> None:
    """The direct force may come from elsewhere."""
    folder = tmp_path / "report"
    options = ["--direct-model", "ase.calculators.lj:LennardJones", "--inner", "2"]
    result = diagnose(EMT_SPEC, copper, "-o", str(folder), *options)
    assert result.exit_code == 0, result.output
    found = entries(folder)
    assert found["nve/MTS-2"]["status"] == "done"
    assert found["jacobian/direct"]["result"]["value"] < 1e-4


class Coordination(Measure):
    """A measure of somebody else: the number of atoms, of all things."""

    name = "count"
    title = "Number of atoms"
    result = int

    def cases(self, setup: Setup) -> List[Case]:
        return [Case("all", {"twice": True}, {"conservative": 1.0})]

    def measure(self, setup: Setup, progress: Progress, *, twice: bool) -> int:
        return len(setup.atoms) * (1 + twice)

    def sentences(self, findings: Findings) -> List[Sentence]:
        (number,) = findings.of_type(int)
        return [Sentence("good", self.title, f"Twice the atoms are {number}.")]

    def tables(self, findings: Findings) -> List[Table]:
        return [Table(["what"], [["atoms"]])]


def test_new_measure(
    copper: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subclass and its place in the list are all a measure needs."""
    monkeypatch.setattr(Coordination, "sizes", {"quick": {}})
    MEASURES.append(Coordination())
    try:
        for _ in range(2):
            result = diagnose(EMT_SPEC, copper, "-o", str(tmp_path / "report"))
            assert result.exit_code == 0, result.output
    finally:
        MEASURES.pop()
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<h2>Number of atoms</h2>" in page and "Twice the atoms are 16." in page
    assert entries(tmp_path / "report")["count/all"]["result"] == 16


def broken() -> EMT:
    """A calculator that gives up after some time."""
    return Broken()


class Broken(EMT):
    """Breaks at displacements that only dynamics reach."""

    def calculate(self, atoms: Any = None, *arguments: Any, **options: Any) -> None:
        """Compute, or not."""
        if atoms is not None and np.abs(atoms.get_momenta()).max() > 0.0:
            raise RuntimeError("out of licences")
        super().calculate(atoms, *arguments, **options)


def test_failure_in_the_middle(copper: str, tmp_path: Path) -> None:
    """What was measured before is kept, and the reason told."""
    folder = tmp_path / "report"
    result = diagnose(f"{__file__}:broken", copper, "-o", str(folder))
    assert result.exit_code == 0, result.output
    found = entries(folder)
    assert found["jacobian/conservative"]["status"] == "done"
    assert found["start/equilibration"]["status"] == "failed"
    assert "out of licences" in found["start/equilibration"]["reason"]
    assert found["nve/conservative"]["status"] == "skipped"
    assert "out of licences" in (folder / "report.html").read_text()


def test_bad_input(copper: str, tmp_path: Path) -> None:
    """Sentences, not tracebacks; and failure only where nothing can be measured."""
    folder = str(tmp_path / "report")
    for arguments, message in (
        (("nothing.pt", copper), "does not exist"),
        ((EMT_SPEC, copper, "--index", "7"), "has no structure 7: it holds 3"),
        ((EMT_SPEC, copper, "--inner", "1"), "at least 2"),
        ((EMT_SPEC, copper, "--frames", "0"), "frames must be at least 1, not 0"),
    ):
        result = diagnose(*arguments, "-o", folder)
        assert result.exit_code == 1
        assert message in result.output and "Traceback" not in result.output
    unknown = tmp_path / "unknown.xyz"
    ase.io.write(unknown, bulk("W", cubic=True))
    result = diagnose(EMT_SPEC, str(unknown), "-o", folder)
    assert result.exit_code == 1 and "nothing could be measured" in result.output
    assert (Path(folder) / "report.html").exists()


def test_one_atom(tmp_path: Path) -> None:
    """One atom has symmetries and no dynamics."""
    path, folder = tmp_path / "atom.xyz", tmp_path / "report"
    ase.io.write(path, Atoms("Cu"))
    result = diagnose(EMT_SPEC, str(path), "-o", str(folder))
    assert result.exit_code == 0, result.output
    found = entries(folder)
    assert found["symmetries/conservative"]["status"] == "done"
    assert found["nve"]["status"] == found["start"]["status"] == "skipped"
    assert "has one atom" in found["start"]["reason"]


def test_isolated_molecule(tmp_path: Path) -> None:
    """A molecule is turned around, and has no diffusion."""
    path, folder = tmp_path / "molecule.xyz", tmp_path / "report"
    ase.io.write(path, molecule("H2O"))
    result = diagnose(EMT_SPEC, str(path), "-o", str(folder))
    assert result.exit_code == 0, result.output
    found = entries(folder)
    assert abs(found["loop/rotation-conservative"]["result"]["work"]) < 1e-6
    assert found["symmetries/conservative"]["result"]["net_torque"] < 1e-9
    assert found["nvt/conservative-svr-10"]["result"]["diffusion"] == {}


def test_cache(tmp_path: Path) -> None:
    """Numbers that are not finite survive; broken files are measured again."""
    cache = Cache(tmp_path / "cache")
    run = nve(DIRECT, (NAN, NAN), heating=(1.0, NAN))
    run.times.append(float("inf"))
    inputs = {"model": "a", "length_fs": 500.0}
    assert cache.load("nve/direct", inputs, NVERun) is None
    cache.store("nve/direct", inputs, run, 1.5)
    stored = cache.load("nve/direct", inputs, NVERun)
    assert stored is not None
    found, seconds = stored
    assert seconds == 1.5 and repr(found) == repr(run)
    assert cache.load("nve/direct", inputs | {"model": "b"}, NVERun) is None
    (path,) = (tmp_path / "cache").iterdir()
    path.write_text(path.read_text()[:-20])
    assert cache.load("nve/direct", inputs, NVERun) is None


def test_hash_of_structures() -> None:
    """Anything that changes results changes the hash; labels where they count."""
    water = molecule("H2O")
    known = hash_structures(water)
    assert hash_structures(water.copy()) == known
    moved, named, isotope = water.copy(), water.copy(), water.copy()
    moved.positions[0, 0] += 1e-9
    named.info["energy"] = 1.0
    isotope.set_masses([16.0, 2.0, 2.0])
    assert hash_structures(moved) != known != hash_structures(isotope)
    assert hash_structures(named) == known
    assert hash_structures(named, with_labels=True) != hash_structures(
        water, with_labels=True
    )
