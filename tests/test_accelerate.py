"""From a model to a pair that runs faster, in one folder."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Tuple

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from click.testing import CliRunner

import dualforce
from dualforce.cli import main
from dualforce.distillation import AccelerationError, accelerate
from dualforce.distillation.acceleration import _as_check, _why_not, lock
from dualforce.distillation.exploration import explore
from dualforce.distillation.labelling import LabelStore
from dualforce.distillation.plan import cutoff_for, make_plan, student_options
from dualforce.distillation.results import Acceleration, Check
from dualforce.distillation.sampling import Mover
from dualforce.distillation.teacher import Teacher, load_teacher
from dualforce.forces import ForceSource, load_forces
from dualforce.md.constant_energy import Candidate
from dualforce.md.timesteps import propose_timestep, propose_timesteps
from dualforce.md.tuning import Timestep, Tuning


EMT_NAME = "ase.calculators.emt:EMT"
QUICK: Dict[str, Any] = {
    "temperatures": [300.0],
    "minutes": 0.6,
    "rounds": 2,
    "epochs": 2,
}


def copper(folder: Path) -> Path:
    """A file with a cell of copper."""
    path = folder / "cu.xyz"
    ase.io.write(path, bulk("Cu", cubic=True), format="extxyz")
    return path


@pytest.fixture(autouse=True)
def small_students(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what depends on the clock, and few structures."""
    make_small(monkeypatch)


def make_small(patch: pytest.MonkeyPatch) -> None:
    """The same plan and inner steps, however busy the machine is."""
    here = "dualforce.distillation"
    patch.setattr(f"{here}.plan.MAX_FRAMES", 24)
    patch.setattr(f"{here}.acceleration._seconds_of", lambda *_: 0.01)
    patch.setattr(f"{here}.acceleration.tune", tuned)


def tuned(
    forces: ForceSource,
    atoms: Atoms,
    progress: Callable[[str, float], None],
    **_: Any,
) -> Tuning:
    """What `tune` finds for a pair that tolerates eight inner steps."""
    progress("equilibration", 0.1)
    forces.both(atoms)
    return Tuning(list(RUNS), 10.0, [], [])


ALONE = Candidate(
    n_inner=1,
    outer_step_fs=2.0,
    length_ps=1.0,
    failed=None,
    drift=(0.0, 0.01),
    late_drift=(0.0, 0.01),
    mean_drift=(0.0, 0.001),
    relative_drift=(0.0, 0.01),
    fluctuation=0.1,
    heating=(0.0, 1.0),
    correction=None,
    growth=None,
    ms_per_step=85.0,
    conservative_ms=80.0,
    verdict="good",
)
RUNS = (
    ALONE,
    replace(
        ALONE,
        n_inner=8,
        outer_step_fs=16.0,
        drift=(0.3, 0.2),
        mean_drift=(0.1, 0.01),
        correction=20.0,
        ms_per_step=20.0,
    ),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pair."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        parts: List[str] = []
        accelerate(
            EMT_NAME,
            copper(folder),
            folder / "pair",
            progress=lambda part, share, left: parts.append(part),
            **QUICK,
        )
    told = list(dict.fromkeys(part.partition(" on ")[0] for part in parts))
    for expected in (
        "timing the teacher",
        "labels of 1 structures",
        "round 1: runs with the teacher",
        "round 1: training",
        "round 2: runs with the pair, M = 16",
        "round 2: training",
        "inner steps at 300 K: equilibration",
    ):
        assert expected in told
    return folder / "pair"


def test_pair_has_the_energy_of_its_teacher(made: Path) -> None:
    """And the direct force of the student."""
    pair, student = load_forces(made), load_forces(made / "student.pt")
    atoms = ase.io.read(made / "structure.extxyz")
    assert isinstance(atoms, Atoms)
    atoms.rattle(0.05, seed=1)
    conservative, direct = pair.both(atoms, stress=True)
    expected = student.direct(atoms, stress=True)
    np.testing.assert_allclose(direct.forces, expected.forces, atol=1e-6)
    assert direct.stress is not None
    atoms.calc = EMT()
    assert conservative.energy == pytest.approx(atoms.get_potential_energy())
    np.testing.assert_allclose(conservative.forces, atoms.get_forces(), atol=1e-10)


def test_structures_were_labelled_by_the_teacher(made: Path) -> None:
    """All of them, those of the pair's runs too, which cost no evaluation more."""
    frames = list(ase.io.iread(made / "round-2" / "structures.xyz", ":"))
    first = list(ase.io.iread(made / "round-1" / "structures.xyz", ":"))
    parts = json.loads((made / "parts.json").read_text())
    assert len(first) == parts["round 1"]["frames"] < len(frames)
    assert len(frames) == parts["round 2"]["frames"]
    for frame in frames[:: len(frames) // 8]:
        assert frame.calc is not None
        label = dict(frame.calc.results)
        frame.calc = EMT()
        np.testing.assert_allclose(label["forces"], frame.get_forces(), atol=1e-5)
        np.testing.assert_allclose(label["stress"], frame.get_stress(), atol=1e-6)
        assert label["energy"] == pytest.approx(frame.get_potential_energy(), abs=1e-5)
    second = parts["round 2"]
    assert set(second["correction"]) == set(second["forces"]) == {"300", "450"}


def test_the_folder_runs(made: Path, tmp_path: Path) -> None:
    """With the temperature, step and inner steps that were found."""
    output = tmp_path / "run"
    arguments = ["md", str(made), "--steps", "32", "-o", str(output)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    run = json.loads((output / "run.json").read_text())["run"]
    assert (run["n_inner"], run["timestep"], run["temperature"]) == (8, 2.0, 300.0)
    assert run["guard"] == "shorten"
    report = (made / "report.md").read_text()
    assert "At 300 K M = 8 with steps of 2 fs is 4.0 times as fast" in report
    assert "energy drifts by 0.1 meV/atom/ps" in report
    assert "| round | structures | new | teacher calls |" in report
    assert "![corrections](corrections.png)" in report
    assert (made / "corrections.png").exists()
    assert f"dualforce diagnose {made} {made / 'structure.extxyz'}" in report


class Interrupted(KeyboardInterrupt):
    """Ctrl-C at a certain part."""


def test_interrupted_runs_give_the_same(made: Path, tmp_path: Path) -> None:
    """Wherever they were interrupted: while labelling, in the runs, in a training."""
    for part in ("round 1: runs", "round 1: training", "round 2: runs", "inner steps"):

        def stop(told: str, share: float, left: float, part: str = part) -> None:
            if told.startswith(part) and (share > 0.0 or "inner" in part):
                raise Interrupted

        with pytest.raises(Interrupted):
            accelerate(
                EMT_NAME, copper(tmp_path), tmp_path / "pair", progress=stop, **QUICK
            )
    accelerate(EMT_NAME, copper(tmp_path), tmp_path / "pair", **QUICK)
    for number in (1, 2):
        name = f"round-{number}/structures.xyz"
        folders = (tmp_path / "pair", made)
        mine, expected = (list(ase.io.iread(f / name, ":")) for f in folders)
        for atoms, other in zip(mine, expected, strict=True):
            np.testing.assert_allclose(atoms.positions, other.positions, atol=1e-7)
            forces = (x.get_forces() for x in (atoms, other))
            np.testing.assert_allclose(*forces, atol=1e-6)
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.05, seed=1)
    forces = (
        load_forces(folder / "student.pt").direct(atoms).forces
        for folder in (tmp_path / "pair", made)
    )
    np.testing.assert_allclose(*forces, atol=1e-5)


def test_a_folder_is_for_one_task(made: Path, tmp_path: Path) -> None:
    """What differs is said, and nothing is overwritten."""
    structures = made.parent / "cu.xyz"
    with pytest.raises(ValueError, match="begun with other arguments .seed was 0, now"):
        accelerate(EMT_NAME, structures, made, seed=1, **QUICK)
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match="no folder of `dualforce accelerate`"):
        accelerate(EMT_NAME, structures, tmp_path, **QUICK)
    with (
        lock(made),
        pytest.raises(AccelerationError, match="another process works in"),
    ):
        accelerate(EMT_NAME, structures, made, **QUICK)


def test_a_training_that_fails(tmp_path: Path) -> None:
    """Its last words, and where the others are."""
    folder = tmp_path / "pair"
    (folder / "round-1").mkdir(parents=True)
    (folder / "labels").mkdir()
    (folder / "accelerate.json").write_text("")
    with pytest.raises(ValueError, match="accelerate.json is damaged"):
        accelerate(EMT_NAME, copper(tmp_path), folder, **QUICK)
    (folder / "accelerate.json").unlink()
    (folder / "round-1").rmdir()
    given = QUICK | {"epochs": -3}
    with pytest.raises(AccelerationError, match="round-1 failed: .*num_epochs.*train"):
        accelerate(EMT_NAME, copper(tmp_path), folder, **given)


# --------------------------------------------------------------------------- teachers


TEACHERS = """
import numpy as np
from ase.calculators.emt import EMT

class Fails(EMT):
    def calculate(self, *arguments):
        raise RuntimeError("no luck")

class NaN(EMT):
    def calculate(self, *arguments):
        super().calculate(*arguments)
        self.results["forces"] = np.full((len(self.atoms), 3), np.nan)

class NoEnergy(EMT):
    implemented_properties = ["forces"]

class NoStress(EMT):
    implemented_properties = ["energy", "free_energy", "forces"]
"""


@pytest.mark.parametrize(
    "teacher, error, message",
    [
        ("{}/t.py:Fails", ValueError, "every frame .frame 0: .*no luck"),
        ("{}/t.py:NaN", ValueError, "every frame .frame 0: .*not finite on atoms 0"),
        ("{}/t.py:NoEnergy", ValueError, "computes no energy"),
        ("nowhere.pt", FileNotFoundError, "does not exist; give .*sevennet-0, chgnet"),
        ("nowhere.ckpt", FileNotFoundError, "does not exist"),
        ("mace", ValueError, "give a file as 'mace:FILE'"),
        ("mace:no.model", FileNotFoundError, "there is no file 'no.model'"),
        ("chgnet:x", ValueError, "nothing follows 'chgnet'"),
    ],
)
def test_teachers_that_are_of_no_use(
    teacher: str, error: Any, message: str, tmp_path: Path
) -> None:
    """Each is said in a sentence."""
    (tmp_path / "t.py").write_text(TEACHERS)
    with pytest.raises(error, match=message):
        accelerate(
            teacher.format(tmp_path), copper(tmp_path), tmp_path / "pair", **QUICK
        )


def test_killed_with_a_teacher_without_stress(tmp_path: Path) -> None:
    """A process that is killed leaves a folder that goes on. Without stresses of the
    teacher the pair has none, and runs at constant volume."""
    (tmp_path / "t.py").write_text(TEACHERS)
    teacher, output = f"{tmp_path}/t.py:NoStress", tmp_path / "pair"
    command = [sys.executable, "-c", "from dualforce.cli import main; main()"]
    command += ["accelerate", teacher, str(copper(tmp_path)), "-o", str(output)]
    command += ["--temperature", "300", "--minutes", "0.6", "--rounds", "2"]
    process = subprocess.Popen(
        [*command, "--epochs", "2"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    labels = output / "labels"
    while process.poll() is None and not list(labels.glob("*.extxyz")):
        time.sleep(0.05)
    process.kill()
    told = process.communicate()[0].decode()
    assert process.returncode == -signal.SIGKILL, told
    assert list(labels.glob("*.extxyz")) and not (output / "pair.json").exists()
    accelerate(teacher, copper(tmp_path), output, **QUICK)
    pair, atoms = load_forces(output), bulk("Cu", cubic=True)
    assert not pair.has_stress and not pair.has_direct_stress
    conservative, direct = pair.both(atoms)
    assert np.isfinite(direct.forces).all() and conservative.energy is not None


@pytest.mark.parametrize(
    "name, command",
    [
        ("sevennet-0", 'pip install "sevenn"'),
        ("chgnet", 'pip install "chgnet"'),
        ("gfn1-xtb", r'pip install "tblite\[ase\]"'),
    ],
)
def test_packages_that_are_not_installed(
    name: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that installs them."""
    for module in ("sevenn.calculator", "chgnet.model.dynamics", "tblite.ase"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=command):
        accelerate(name, copper(tmp_path), tmp_path / "pair", **QUICK)
    assert not (tmp_path / "pair").exists()


def test_names_from_entry_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other packages add names, with what follows the colon."""
    (tmp_path / "my_models.py").write_text(
        "from ase.calculators.lj import LennardJones\n\n\n"
        "def make(argument):\n"
        "    return LennardJones(sigma=float(argument or 1.0), rc=4.0)\n"
    )
    info = tmp_path / "my_models-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: my-models\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[dualforce.calculators]\nmy-lj = my_models:make\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    atoms = Atoms("Ar2", [[0, 0, 0], [0, 0, 2.3]])
    digests = set()
    for name, sigma in (("my-lj", 1.0), ("my-lj:2.0", 2.0)):
        source = load_forces(name)
        digests.add(source.digest)
        atoms.calc = LennardJones(sigma=sigma, rc=4.0)
        expected = atoms.get_forces()
        np.testing.assert_allclose(source.conservative(atoms).forces, expected)
    assert len(digests) == 2
    with pytest.raises(ValueError, match="'my-lj:x' cannot be loaded: ValueError"):
        load_forces("my-lj:x")


def test_elements_the_teacher_does_not_know(tmp_path: Path) -> None:
    """With file and frame; nothing is written."""
    from helpers import make_model

    make_model().export().save(str(tmp_path / "t.pt"))
    with pytest.raises(ValueError, match="frame 0 .counted from 0.: .* know Cu"):
        accelerate(str(tmp_path / "t.pt"), copper(tmp_path), tmp_path / "pair", **QUICK)
    assert not (tmp_path / "pair").exists()


def test_structures_that_cannot_run(tmp_path: Path) -> None:
    """File and frame."""
    atoms = bulk("Cu", cubic=True)
    atoms.positions[1] = atoms.positions[0]
    ase.io.write(tmp_path / "a.xyz", [bulk("Cu"), atoms], format="extxyz")
    with pytest.raises(ValueError, match="frame 1 .counted from 0.: .*Å apart"):
        accelerate(EMT_NAME, tmp_path / "a.xyz", tmp_path / "pair", **QUICK)


def test_a_student_that_cannot_follow(tmp_path: Path) -> None:
    """Where, how far off, and no pair."""
    plan = make_plan([bulk("Cu")], [300.0], 10.0, 2, 0.01)
    check = Check(600.0, 2.0, 1, 0.0, 431.0, 1.0, "Use M = 1.", True)
    result = Acceleration(tmp_path, "a model", plan, [], [check])
    assert result.has_failed and result.n_inner is None is result.temperature
    assert (
        "cannot follow a model: no M above 1 conserves energy and is faster at any of "
        "the temperatures. at 600 K (the forces differ by 431 meV/Å): Use M = 1."
    ) in _why_not(result)
    check = Check(600.0, 1.0, 2, 0.0, 18.0, 0.95, "Use M = 2.", True)
    assert not check.holds  # it conserves energy, and is no faster


def test_runs_that_decide_nothing() -> None:
    """A larger number that fails says nothing of a smaller one."""
    first, eight = RUNS
    four = replace(eight, n_inner=4, outer_step_fs=8.0, verdict="unclear")
    eight = replace(eight, verdict="drifts")
    found = [
        _as_check(Tuning(runs, 10.0, [], []), 300.0, 0.2)
        for runs in ([first, four, eight], [first, eight], list(RUNS))
    ]
    assert [each.decided for each in found] == [False, True, True]
    assert [each.n_inner for each in found] == [1, 1, 8]


def test_speed_is_that_beside_the_best_timestep_of_the_teacher() -> None:
    """Which alone has longer steps than those of the run that was compared."""
    timesteps = [
        Timestep(2.0, 0.003, False, None),
        Timestep(3.0, 0.006, False, None),
        Timestep(4.0, 0.020, True, None),
    ]
    check = _as_check(Tuning(list(RUNS), 10.0, [], timesteps), 300.0, 0.2)
    assert check.speed == pytest.approx(80.0 / 20.0 / 1.5)
    assert check.drift == 0.1  # which is known better than that by the slope


def test_timesteps_that_differ_between_temperatures(tmp_path: Path) -> None:
    """The shortest is taken, with the shortest outer step."""
    plan = make_plan([bulk("Cu")], [300.0, 600.0], 10.0, 2, 0.01)
    checks = [
        Check(300.0, 4.0, 4, 0.0, 20.0, 3.0, "", True),
        Check(600.0, 2.0, 5, 0.0, 40.0, 2.0, "", True),
        Check(900.0, 2.0, 1, 0.0, 90.0, 1.0, "", True),
    ]
    result = Acceleration(tmp_path, "a model", plan, [], checks)
    assert (result.timestep, result.n_inner, result.temperature) == (2.0, 5, 600.0)
    result = Acceleration(tmp_path, "a model", plan, [], checks[2:])
    assert (result.timestep, result.n_inner) == (2.0, None)


# ------------------------------------------------------------------------------- plan


def test_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is divided, a slow teacher gets fewer calls, and too little time is said."""
    monkeypatch.setattr("dualforce.distillation.plan.MAX_FRAMES", 600)
    frames = [bulk("Cu", cubic=True)]
    fast = make_plan(frames, [300.0, 500.0], 60.0, 3, 0.001)
    slow = make_plan(frames, [300.0, 500.0], 60.0, 3, 1.5)
    assert sum(r.minutes for r in fast.rounds) == pytest.approx(30.0)
    assert fast.check_minutes == pytest.approx(6.0)
    # Three runs of 1 ps with M = 4 and a prediction take a slow teacher longer.
    assert slow.check_minutes == pytest.approx(0.45 * 60.0 / 2)
    for plan in (fast, slow):
        assert plan.temperatures == [300.0, 500.0, 750.0]
        training = sum(r.minutes for r in plan.rounds)
        assert training == pytest.approx(0.625 * (60.0 - 2 * plan.check_minutes))
    for quick, dear in zip(fast.rounds, slow.rounds, strict=True):
        assert dear.calls < quick.calls
        assert dear.calls * 1.5 <= 0.375 * 0.55 * 3600.0 / 3
    with pytest.raises(ValueError, match="takes 9 s, and 5 minutes .* --minutes 110"):
        make_plan(frames, [300.0], 5.0, 3, 9.0)


def test_student_follows_from_the_structures() -> None:
    """Cutoff by the number of neighbours, batches by the number of atoms."""
    dense, loose = bulk("Cu", cubic=True), bulk("Cs", cubic=True)
    assert cutoff_for([dense]) == pytest.approx(4.8, abs=0.1)
    assert cutoff_for([loose]) == 6.0
    # 38 atoms in the sphere, by the density alone
    assert (4 / dense.get_volume() * 4.19 * 4.77**3) == pytest.approx(38.0, rel=0.05)
    small = student_options("a.xyz", [dense], "t.pt", 3.0)["architecture"]["training"]
    large = student_options("a.xyz", [dense * 4], "t.pt", 3.0, epochs=7, last="s.ckpt")
    assert small["batch_size"] == 8 and small["max_minutes"] == 3.0
    training = large["architecture"]["training"]
    assert training["batch_size"] == 2 and training["num_epochs"] == 7
    assert training["finetune"] == {"read_from": "s.ckpt"}


@pytest.mark.parametrize(
    "atoms, expected",
    [
        (molecule("H2O"), 0.5),
        (molecule("CO2"), 1.0),
        (bulk("MgO", "rocksalt", 4.2), 1.0),
        (bulk("Cu"), 2.0),
    ],
)
def test_timesteps(atoms: Atoms, expected: float) -> None:
    """By the lightest atom; heavy hydrogen counts by its mass."""
    assert propose_timestep(atoms) == expected
    assert propose_timesteps(atoms) == (expected, 1.5 * expected, 2.0 * expected)
    if "H" in atoms.symbols:
        masses = atoms.get_masses()
        masses[atoms.numbers == 1] = 4.0
        atoms.set_masses(masses)
        assert propose_timestep(atoms) == 1.0


def test_a_student_that_follows_gets_the_time_that_is_left(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It meets no more structures, and its training is the last."""
    minutes: List[float] = []

    def train(folder: Path, options: Any, report: Any) -> None:
        minutes.append(options["architecture"]["training"]["max_minutes"])
        for name in ("student.pt", "student.ckpt"):
            shutil.copy(made / name, folder / name)

    here = "dualforce.distillation.acceleration"
    monkeypatch.setattr(f"{here}.train_student", train)
    monkeypatch.setattr(f"{here}.FOLLOWS", 1e9)
    settings = QUICK | {"minutes": 6.0, "rounds": 3, "epochs": None}
    result = accelerate(EMT_NAME, copper(tmp_path), tmp_path / "pair", **settings)
    assert [each.follows for each in result.rounds] == [False, True]
    # Half of the time is for training; the first of three rounds has a sixth of it.
    assert minutes == pytest.approx([0.5, 2.5])


# ------------------------------------------------------------------------ exploration


def copper_with_lennard_jones(folder: Path) -> Tuple[Teacher, ForceSource]:
    """EMT, and a pair of it with direct forces that are far off."""
    (folder / "t.py").write_text(
        "from ase.calculators.lj import LennardJones\n\n\n"
        "def make():\n"
        "    return LennardJones(epsilon=0.4, sigma=2.3, rc=5.0, smooth=True)\n"
    )
    teacher = load_teacher(EMT_NAME, folder)
    other = load_forces(f"{folder}/t.py:make")
    return teacher, dualforce.CombinedForces(teacher.forces, other)


def test_the_largest_corrections_are_kept(tmp_path: Path) -> None:
    """At each temperature, where more is met than is wanted."""
    teacher, pair = copper_with_lennard_jones(tmp_path)
    start = bulk("Cu", cubic=True)
    found = {}
    for frames in (8, 100):
        found[frames] = explore(
            teacher,
            Mover(pair, 2.0, 4, interval=8.0),
            [start],
            [start],
            LabelStore(tmp_path / "labels.extxyz"),
            title="runs",
            temperatures=[300.0, 900.0],
            calls=40,
            frames=frames,
        )
    kept = [a.info["correction"] for a in found[8].frames]
    others = [a.info["correction"] for a in found[100].frames]
    assert len(kept) == 8 < len(others) <= 40
    assert np.mean(kept) > np.mean(others)
    for atoms in found[8].frames:
        mine, expected = pair.both(atoms)
        size = np.sqrt(np.mean((mine.forces - expected.forces) ** 2))
        assert atoms.info["correction"] == pytest.approx(size, rel=1e-4)
    assert found[8].correction.keys() == {"300", "900"}
    assert found[8].forces["900"] > found[8].forces["300"]


def test_outer_steps_that_are_too_long(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Runs that heat end early, and further ones take fewer inner steps, as well when
    they are read from the file."""
    teacher, pair = copper_with_lennard_jones(tmp_path)
    start = bulk("Cu", cubic=True)
    found = []
    with caplog.at_level("INFO"):
        for _ in range(2):
            result = explore(
                teacher,
                Mover(pair, 8.0, 16, interval=1.0),
                [start],
                [start],
                LabelStore(tmp_path / "labels.extxyz"),
                title="runs",
                temperatures=[300.0],
                calls=100,
                frames=100,
            )
            found.append(result)
    assert "M = 16 end early; further ones have M = 8" in caplog.text
    assert found[0].calls == found[1].calls <= 100
    assert len(found[0].frames) == len(found[1].frames) > 20
    for first, second in zip(found[0].frames, found[1].frames, strict=True):
        np.testing.assert_allclose(first.positions, second.positions, atol=1e-7)


def test_command(tmp_path: Path) -> None:
    """It is there, and what is wrong is a sentence."""
    command = [sys.executable, "-c", "from dualforce.cli import main; main()"]
    command += ["accelerate", "nowhere.pt", str(copper(tmp_path))]
    result = subprocess.run(
        [*command, "-o", str(tmp_path / "pair")], capture_output=True, text=True
    )
    assert result.returncode == 1
    assert "nowhere.pt' does not exist; give an exported model" in result.stderr
    assert "Traceback" not in result.stderr
