"""Learning direct forces from a teacher: labels, trainings, combined models."""

from pathlib import Path
from typing import Any, Dict, List

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.lj import LennardJones
from metatrain.utils.io import load_model as load_checkpoint
from test_finetune import PET
from train_helpers import PAINN, cluster, clusters, message_of, options, run_cli, write

from dualforce.distillation.dataset import labelled_dataset
from dualforce.distillation.labelling import LabelStore, label_frames, label_one
from dualforce.distillation.sampling import extend
from dualforce.distillation.teacher import Teacher, load_teacher
from dualforce.forces import CalculatorForces, MetatomicForces, load_forces
from dualforce.md import RespaVelocityVerlet
from dualforce.training.model import DualForce


class Counting(LennardJones):
    """Counts evaluations; fails, or returns NaN, where it is told to."""

    def __init__(self, fail: Dict[int, Any] | None = None) -> None:
        super().__init__(epsilon=0.1, sigma=1.0, rc=3.0, smooth=True)
        self.calls, self.fail = 0, fail or {}

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: List[str] | None = None,
        system_changes: List[str] = all_changes,
    ) -> None:
        """Evaluate, or fail."""
        number = self.calls
        self.calls += 1
        super().calculate(atoms, properties, system_changes)
        what = self.fail.get(number)
        if isinstance(what, BaseException):
            raise what
        if what == "nan":
            self.results["forces"] = np.full((len(self.atoms), 3), np.nan)


def teacher_of(calculator: Calculator) -> Teacher:
    """A calculator as a teacher."""
    forces = CalculatorForces(calculator, "a calculator", "0123")
    return Teacher(forces.name, forces, None)


def section(path: Path, **energy: Any) -> Dict[str, Any]:
    """Options of a data set as metatrain expands them."""
    target = {"quantity": "energy", "unit": "eV", "forces": {"key": "forces"}}
    return {
        "systems": {"read_from": str(path), "length_unit": "angstrom"},
        "targets": {"energy": target | energy},
    }


def settings(folder: Path, **changes: Any) -> Dict[str, Any]:
    """Options of a teacher."""
    default = {"labels": str(folder), "keep_labels": False, "extend": {"frames": 0}}
    return default | changes


def direct_labels(dataset: Any) -> List[np.ndarray]:
    """Forces of all frames."""
    blocks = (sample["non_conservative_force"].block() for sample in dataset)
    return [block.values[:, :, 0].numpy() for block in blocks]


# ----------------------------------------------------------------------------- labels


def test_labels_are_those_of_the_teacher(tmp_path: Path) -> None:
    """Energy, forces and stress; computed once, and read back."""
    frames, calculator = clusters(4), Counting()
    store = LabelStore(tmp_path / "labels.extxyz")
    first = label_frames(frames, teacher_of(calculator), store, "here")
    assert calculator.calls == 4
    again = label_frames(
        frames,
        teacher_of(calculator),
        LabelStore(tmp_path / "labels.extxyz"),
        "here",
    )
    assert calculator.calls == 4
    for atoms, label, stored in zip(frames, first.labels, again.labels, strict=True):
        atoms.calc = LennardJones(epsilon=0.1, sigma=1.0, rc=3.0, smooth=True)
        assert label.energy == pytest.approx(atoms.get_potential_energy(), rel=1e-12)
        np.testing.assert_allclose(label.forces, atoms.get_forces(), atol=1e-10)
        expected = atoms.get_stress(voigt=False)
        np.testing.assert_allclose(label.stress, expected, atol=1e-12)
        assert stored.energy == pytest.approx(label.energy, abs=1e-7)
        np.testing.assert_allclose(stored.forces, label.forces, atol=1e-7)
        np.testing.assert_allclose(stored.stress, label.stress, atol=1e-7)


def test_interrupted_labelling_resumes(tmp_path: Path) -> None:
    """After Ctrl-C, and after a file was cut off in the middle of a structure."""
    frames, path = clusters(5), tmp_path / "labels.extxyz"
    stopped = teacher_of(Counting({3: KeyboardInterrupt()}))
    with pytest.raises(KeyboardInterrupt):
        label_frames(frames, stopped, LabelStore(path), "here")
    path.write_bytes(path.read_bytes()[:-40])
    calculator = Counting()
    store = LabelStore(path)
    assert len(store) == 2
    result = label_frames(frames, teacher_of(calculator), store, "here")
    assert calculator.calls == 3
    assert all(label is not None for label in result.labels)
    assert len(ase.io.read(path, ":")) == 5


def test_failures_are_skipped_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The other frames keep their places."""
    path = write(tmp_path / "a.xyz", clusters(5))
    teacher = teacher_of(Counting({1: RuntimeError("no luck"), 3: "nan"}))
    dataset, infos, _ = labelled_dataset(
        section(path), teacher, settings(tmp_path / "labels"), True
    )
    assert set(infos) == {"non_conservative_force", "non_conservative_stress"}
    missing = [bool(np.isnan(forces).all()) for forces in direct_labels(dataset)]
    assert missing == [False, True, False, True, False]
    assert "fails on 2 of 5 frames, which are left out" in caplog.text
    assert "frame 1: a calculator failed on H4O2: RuntimeError: no luck" in caplog.text
    assert "frame 3: the conservative force is not finite on atoms 0," in caplog.text


def test_teacher_that_always_fails(tmp_path: Path) -> None:
    """Nothing can be learnt from it."""
    teacher = teacher_of(Counting({0: ValueError("a"), 1: ValueError("b")}))
    with pytest.raises(ValueError, match="every frame .frame 0: .* a; frame 1"):
        label_frames(clusters(2), teacher, LabelStore(tmp_path / "l.extxyz"), "here")


def test_frames_may_keep_their_labels(tmp_path: Path) -> None:
    """Labels from elsewhere are mixed with those of the teacher."""
    frames = clusters(4)
    given = [frame.arrays["forces"].copy() for frame in frames]
    for frame in frames[1::2]:
        del frame.arrays["forces"]
    path = write(tmp_path / "a.xyz", frames)
    calculator = Counting()
    dataset, _, _ = labelled_dataset(
        section(path),
        teacher_of(calculator),
        settings(tmp_path / "labels", keep_labels=True),
        True,
    )
    assert calculator.calls == 2
    for index, forces in enumerate(direct_labels(dataset)):
        assert np.allclose(forces, given[index], atol=1e-7) == (index % 2 == 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"systems": {"length_unit": "nm"}}, "its length unit is 'nm'"),
        ({"targets": {"energy": {"quantity": "energy", "unit": "Ha"}}}, "is 'Ha'"),
    ],
)
def test_other_units_are_refused(change: Any, message: str, tmp_path: Path) -> None:
    """Labels are in eV and Å."""
    given = section(write(tmp_path / "a.xyz", clusters(2)))
    for name, values in change.items():
        given[name] = given[name] | values
    with pytest.raises(ValueError, match=message):
        labelled_dataset(given, teacher_of(Counting()), settings(tmp_path), True)


def test_elements_the_teacher_does_not_know(tmp_path: Path) -> None:
    """Named with file and frame, before anything is computed."""
    calculator = Counting()
    teacher = teacher_of(calculator)
    teacher.forces.elements = frozenset({1, 8})
    frames = clusters(3)
    frames[2].numbers[0] = 16
    with pytest.raises(ValueError, match="file a, frame 2 .* does not know S"):
        label_frames(frames, teacher, LabelStore(tmp_path / "l.extxyz"), "file a")
    assert calculator.calls == 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.pt", "'nowhere.pt' does not exist"),
        ("no_such_module:make", "cannot be imported: No module named"),
        ("ase.units:create_units", "cannot be called|create_units"),
        ("ase:Atoms", "returned Atoms, which is no calculator"),
    ],
)
def test_teachers_that_do_not_exist(source: str, message: str, tmp_path: Path) -> None:
    """What was given is said."""
    with pytest.raises((ValueError, OSError, ImportError), match=message):
        load_teacher(source, tmp_path)


# ----------------------------------------------------------------------- short runs


def test_short_runs_give_new_structures(tmp_path: Path) -> None:
    """As many as asked for, all different, labelled; not run again."""
    frames, calculator = clusters(3), Counting()
    store = LabelStore(tmp_path / "labels.extxyz")
    given = {"frames": 12, "temperatures": [200.0, 500.0], "timestep": 0.5}
    new = extend(frames, teacher_of(calculator), store, given)
    assert len(new) == 12
    for number, atoms in enumerate(new):
        for other in [*frames, *new[:number]]:
            assert np.abs(atoms.positions - other.positions).max() > 0.01
        forces = atoms.calc.results["forces"]
        atoms.calc = Counting()
        np.testing.assert_allclose(forces, atoms.get_forces(), atol=1e-5)
    calls = calculator.calls
    store = LabelStore(tmp_path / "labels.extxyz")
    again = extend(frames, teacher_of(calculator), store, given)
    assert calculator.calls == calls
    for atoms, other in zip(new, again, strict=True):
        np.testing.assert_allclose(atoms.positions, other.positions, atol=1e-7)


def test_structures_that_do_not_move_are_duplicates(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At one kelvin nothing new is found, and this is said."""
    frames = [Atoms("Ar4", [[0, 0, 0], [4, 0, 0], [0, 4, 0], [0, 0, 4]])]
    store = LabelStore(tmp_path / "labels.extxyz")
    given = {"frames": 2, "temperatures": [0.01], "timestep": 0.5}
    assert extend(frames, teacher_of(Counting()), store, given) == []
    assert "0 new structures of the 2 asked for" in caplog.text


# ------------------------------------------------------------------------ trainings


def _structures(path: Path, number: int = 6) -> Path:
    """Structures without labels."""
    frames = clusters(number)
    for atoms in frames:
        atoms.info, atoms.calc = {}, None
        del atoms.arrays["forces"]
    return write(path, frames)


def _with_teacher(
    data: Path, teacher: str, folder: Path, **training: Any
) -> Dict[str, Any]:
    lesson = {
        "model": teacher,
        "labels": str(folder / "labels"),
        "combined": str(folder / "combined.pt"),
        "check_minutes": 0.0,
    }
    return options(data, {"teacher": lesson, **training})


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a conservative model."""
    folder = tmp_path_factory.mktemp("taught")
    data = write(folder / "a.xyz", clusters(6))
    model = {"forces": "conservative", "painn": {**PAINN, "n_layers": 2}}
    run_cli(folder, options(data, {"num_epochs": 3}, model), output=folder / "t.pt")
    return folder


def test_student_of_an_exported_model(taught: Path, tmp_path: Path) -> None:
    """The pair has the energy of the teacher, bitwise, and the direct force of the
    student, which has no energy of its own."""
    data = _structures(tmp_path / "b.xyz")
    given = _with_teacher(data, str(taught / "t.pt"), tmp_path, num_epochs=4)
    run_cli(tmp_path, given, output=tmp_path / "student.pt")
    combined = MetatomicForces(tmp_path / "combined.pt")
    teacher = load_forces(taught / "t.pt", tmp_path / "student.pt")
    with torch.jit.optimized_execution(False):
        for atoms in clusters(4):
            conservative, direct = combined.both(atoms)
            expected = teacher.both(atoms)
            assert conservative.energy == expected[0].energy
            assert np.array_equal(conservative.forces, expected[0].forces)
            np.testing.assert_allclose(direct.forces, expected[1].forces, atol=1e-12)
    names = load_checkpoint(tmp_path / "student.ckpt").supported_outputs()
    assert set(names) == {
        "feature",
        "non_conservative_force",
        "non_conservative_stress",
    }
    (labels,) = (tmp_path / "labels").glob("labels-*.extxyz")
    assert len(ase.io.read(labels, ":")) == 6
    # the combined model itself may look for structures that it will meet
    given = {"frames": 3, "temperatures": [300.0], "timestep": 0.5}
    given["student"] = str(tmp_path / "combined.pt")
    teaching = load_teacher(str(taught / "t.pt"), tmp_path)
    new = extend(clusters(2), teaching, LabelStore(labels), given)
    assert len(new) == 3
    assert len(ase.io.read(labels, ":")) >= 9


def test_labels_of_several_frames_at_a_time(taught: Path, tmp_path: Path) -> None:
    """They are those of each alone, whatever sizes and boundaries come together; one
    that fails is found."""
    frames = clusters(3) + [cluster(7, 1), cluster(8, 2)] + clusters(2)
    frames[3].pbc = False
    frames[5].positions[1] = frames[5].positions[0]
    teacher = load_teacher(str(taught / "t.pt"), tmp_path)
    store = LabelStore(tmp_path / "labels.extxyz")
    result = label_frames(frames, teacher, store, "here")
    assert [index for index, _ in result.failures] == [5]
    for index, (atoms, label) in enumerate(zip(frames, result.labels, strict=True)):
        if index == 5:
            assert label is None
            continue
        assert label is not None
        alone = label_one(atoms, teacher)
        assert label.energy == pytest.approx(alone.energy, abs=1e-5)
        np.testing.assert_allclose(label.forces, alone.forces, atol=1e-5)
        assert (label.stress is None) == (index == 3)
        if label.stress is not None:
            np.testing.assert_allclose(label.stress, alone.stress, atol=1e-6)


def test_student_learns_the_forces_of_the_teacher(
    taught: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Longer training, smaller errors; a check of the combined model follows."""
    data = _structures(tmp_path / "b.xyz", 24)
    given = _with_teacher(
        data, str(taught / "t.pt"), tmp_path, num_epochs=40, ema_decay=0.8
    )
    given["architecture"]["training"]["teacher"]["check_minutes"] = 0.05
    caplog.set_level("INFO")
    run_cli(tmp_path, given, output=tmp_path / "student.pt")
    combined = MetatomicForces(tmp_path / "combined.pt")
    errors, sizes = [], []
    for atoms in clusters(24):
        conservative, direct = combined.both(atoms)
        errors.append(conservative.forces - direct.forces)
        sizes.append(conservative.forces)
    assert np.std(errors) < 0.85 * np.std(sizes)
    assert "drift (meV/atom/ps)" in caplog.text
    assert (tmp_path / "tune.json").exists()


def test_student_of_a_calculator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``module:callable``; the two work together in dynamics."""
    (tmp_path / "my_teacher.py").write_text(
        "from ase.calculators.lj import LennardJones\n\n\n"
        "def make():\n"
        "    return LennardJones(epsilon=0.1, sigma=1.0, rc=3.0, smooth=True)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = _structures(tmp_path / "b.xyz")
    given = _with_teacher(data, "my_teacher:make", tmp_path, num_epochs=2)
    run_cli(tmp_path, given, output=tmp_path / "student.pt")
    assert not (tmp_path / "combined.pt").exists()
    calculator = LennardJones(epsilon=0.1, sigma=1.0, rc=3.0, smooth=True)
    forces = load_forces(calculator, tmp_path / "student.pt")
    atoms = clusters(1)[0]
    conservative, direct = forces.both(atoms, stress=True)
    atoms.calc = LennardJones(epsilon=0.1, sigma=1.0, rc=3.0, smooth=True)
    assert conservative.energy == atoms.get_potential_energy()
    assert np.array_equal(conservative.forces, atoms.get_forces())
    assert np.abs(direct.forces.sum(0)).max() < 1e-12
    assert direct.stress is not None and forces.has_direct_stress
    run = RespaVelocityVerlet(atoms, 0.2 * units.fs, forces, 2)
    run.run(3)
    assert np.isfinite(run.conserved)


def test_head_leaves_the_energy_alone(taught: Path, tmp_path: Path) -> None:
    """In every bit, also when another precision is asked for; only the head changes,
    which may be on an earlier layer."""
    data = _structures(tmp_path / "b.xyz")
    tune = {
        "read_from": str(taught / "t.ckpt"),
        "train": "direct_head",
        "direct_layers": 1,
    }
    given = _with_teacher(
        data, str(taught / "t.ckpt"), tmp_path, num_epochs=3, finetune=tune
    )
    given["base_precision"] = 32
    del given["architecture"]["model"]
    run_cli(tmp_path, given, output=tmp_path / "hybrid.pt")
    hybrid = MetatomicForces(tmp_path / "hybrid.pt")
    teacher = load_forces(taught / "t.pt", tmp_path / "hybrid.pt")
    with torch.jit.optimized_execution(False):
        for atoms in clusters(4):
            expected = teacher.conservative(atoms)
            conservative, direct = hybrid.both(atoms)
            assert conservative.energy == expected.energy
            assert np.array_equal(conservative.forces, expected.forces)
            assert np.abs(direct.forces).max() > 0.0
    start = load_checkpoint(taught / "t.ckpt")
    end = load_checkpoint(tmp_path / "hybrid.ckpt")
    assert isinstance(end, DualForce)
    assert end.hypers["painn"]["n_direct_layers"] == 1
    mine = end.state_dict()
    for name, value in start.state_dict().items():
        assert torch.equal(mine[name], value), name


def test_head_on_metatrains_pet(tmp_path: Path) -> None:
    """Energies are those of the checkpoint, with those of atoms in double precision."""
    data = write(tmp_path / "a.xyz", clusters(6))
    given = options(data, model=PET)
    given["architecture"]["name"] = "pet"
    given["architecture"]["training"] = {"num_epochs": 1, "batch_size": 2}
    run_cli(tmp_path, given, output=tmp_path / "pet.pt")
    tune = {"read_from": str(tmp_path / "pet.ckpt"), "train": "direct_head"}
    given = _with_teacher(
        data, str(tmp_path / "pet.ckpt"), tmp_path, num_epochs=2, finetune=tune
    )
    del given["architecture"]["model"]
    run_cli(tmp_path, given, output=tmp_path / "hybrid.pt")
    hybrid = MetatomicForces(tmp_path / "hybrid.pt")
    teacher = load_forces(tmp_path / "pet.pt", tmp_path / "hybrid.pt")
    for atoms in clusters(3):
        expected, mine = teacher.conservative(atoms), hybrid.conservative(atoms)
        assert mine.energy == pytest.approx(expected.energy, abs=1e-7)
        np.testing.assert_allclose(mine.forces, expected.forces, atol=1e-7)


def test_head_needs_a_direct_force(taught: Path, tmp_path: Path) -> None:
    """Without a teacher the model must be told to be hybrid."""
    data = write(tmp_path / "a.xyz", clusters(4))
    tune = {"read_from": str(taught / "t.ckpt"), "train": "direct_head"}
    given = options(data, {"finetune": tune, "num_epochs": 1}, {})
    del given["architecture"]["model"]
    message = message_of(lambda: run_cli(tmp_path, given))
    assert "set `forces: hybrid` in `architecture.model`" in message
    given["architecture"]["model"] = {"forces": "hybrid"}
    run_cli(tmp_path, given, output=tmp_path / "hybrid.pt")
    assert MetatomicForces(tmp_path / "hybrid.pt").has_direct_stress
