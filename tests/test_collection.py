"""Structures that runs collect where their forces know too little."""

from pathlib import Path
from typing import Any, List

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from click.testing import CliRunner
from helpers import make_model
from potentials import Counting, argon
from train_helpers import clusters, options, prepare, write

from dualforce.cli import main
from dualforce.engines import ModelReference
from dualforce.engines.tuned import remember
from dualforce.forces.domain import TrainingDomain
from dualforce.md import Guard, MDSettings, RespaVelocityVerlet, run_md
from dualforce.md.collection import DOUBLING, Collection, collected_steps
from dualforce.md.guard import range_end


SETTINGS = MDSettings(
    "nvt-langevin", temperature=40.0, timestep=2.0, n_inner=4, steps=400, interval=8
)


def correction_of(atoms: Atoms) -> float:
    """RMS of conservative minus direct force of argon, in eV/Å."""
    conservative, direct = argon()[1].both(atoms)
    return float(np.sqrt(np.mean((conservative.forces - direct.forces) ** 2)))


def collect(folder: Path, forces: Any = None, usual: float = 1e-5, **more: Any) -> Any:
    """Run argon in a folder; with this ``usual`` it is out of range throughout."""
    atoms, own = argon()
    return run_md(
        forces or own,
        atoms,
        folder,
        SETTINGS,
        usual_correction=usual,
        collect=True,
        **more,
    )


def frames_of(folder: Path) -> List[Atoms]:
    """What was collected."""
    return list(ase.io.iread(folder / "collected.extxyz", ":"))


def test_structures_out_of_range_are_kept(tmp_path: Path) -> None:
    """Those and no others, with their correction, energy and forces."""
    collect(tmp_path / "all")
    every = [correction_of(atoms) for atoms in frames_of(tmp_path / "all")]
    end = range_end(Guard.factor, len(argon()[0]))
    usual = float(np.median(every)) / end
    outcome = collect(tmp_path / "some", usual=usual)
    frames, forces = frames_of(tmp_path / "some"), argon()[1]
    assert outcome.collected == len(frames) > 1
    for atoms in frames:
        assert set(atoms.info) == {"step", "time_ps", "reason", "correction"}
        assert atoms.info["reason"] == "correction"
        assert atoms.info["correction"] > end * usual
        assert atoms.info["correction"] == pytest.approx(correction_of(atoms), rel=1e-4)
        label, found = forces.conservative(atoms), atoms.calc.results
        assert found["energy"] == pytest.approx(label.energy, abs=1e-7)
        np.testing.assert_allclose(found["forces"], label.forces, atol=1e-7)
        assert not atoms.has("momenta")
    kept = {atoms.info["step"] for atoms in frames}
    written = ase.io.read(tmp_path / "some" / "trajectory.extxyz", ":")
    for atoms in written:
        if correction_of(atoms) < 0.999 * end * usual:
            assert atoms.info["step"] not in kept
    assert collect(tmp_path / "none", usual=1.0).collected == 0
    assert not (tmp_path / "none" / "collected.extxyz").exists()


def test_structures_are_apart_in_time(tmp_path: Path) -> None:
    """By 50 fs at first, and twice as far after each twenty."""
    atoms, forces = argon()
    guard = Guard(usual=1e-6)
    run = RespaVelocityVerlet(atoms, 5.0 * units.fs, forces, 2, guard=guard)
    collection = Collection(run, tmp_path / "collected.extxyz")
    run.attach(collection.watch)
    run.run(320)
    times = 5.0 * np.array(collection.steps)
    assert DOUBLING == 20
    expected = np.concatenate(
        [np.full(19, 50.0), np.full(20, 100.0), np.full(len(times) - 40, 200.0)]
    )
    np.testing.assert_array_equal(np.diff(times), expected)
    assert collected_steps(collection.path, 32) == collection.steps


def test_there_is_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for runs that are resumed."""
    monkeypatch.setattr("dualforce.md.collection.MOST", 3)
    assert collect(tmp_path / "run").collected == 3
    assert len(frames_of(tmp_path / "run")) == 3


def test_the_training_data_are_left(tmp_path: Path) -> None:
    """What the model knows of them counts as well, without direct forces too."""
    atoms, forces = argon()
    nearest = atoms.get_all_distances(mic=True)[np.triu_indices(32, 1)].min()
    forces.domain = TrainingDomain(
        cutoff=5.0, shortest={("Ar", "Ar"): 1.0001 * nearest / 0.96}
    )
    collect(tmp_path / "run", forces, usual=1.0)
    first = frames_of(tmp_path / "run")[0]
    assert (first.info["reason"], first.info["step"]) == ("distance", 0)


@pytest.mark.parametrize("distance", [0.3, 1.5])
def test_broken_structures_are_not_kept(distance: float, tmp_path: Path) -> None:
    """Overlapping atoms, and forces that no training takes."""
    atoms, forces = argon()
    atoms.positions[9] = atoms.positions[4] + [0.0, distance, 0.0]
    assert np.abs(forces.conservative(atoms).forces).max() > 50.0
    run = RespaVelocityVerlet(atoms, 1.0, forces, 2, guard=Guard(usual=1e-6))
    collection = Collection(run, tmp_path / "collected.extxyz")
    collection.watch()
    assert not collection.steps and not collection.path.exists()


class Interrupting(Counting):
    """Ctrl-C in a certain evaluation."""

    def __init__(self, after: int) -> None:
        super().__init__(argon()[1])
        self.after = after

    def direct(self, atoms: Atoms, stress: bool = False) -> Any:
        """Direct forces, or an interrupt."""
        if len(self.calls) > self.after:
            raise KeyboardInterrupt
        return super().direct(atoms, stress)


@pytest.mark.parametrize("after, is_cut", [(30, False), (195, False), (195, True)])
def test_interrupts_neither_lose_nor_repeat(
    after: int, is_cut: bool, tmp_path: Path
) -> None:
    """Before the first checkpoint but one, after others, and while a structure is being
    written."""
    collect(tmp_path / "whole")
    folder = tmp_path / "broken"
    outcome = collect(folder, Interrupting(after))
    assert not outcome.finished
    path = folder / "collected.extxyz"
    at_checkpoint = [a for a in frames_of(folder) if a.info["step"] <= outcome.step]
    assert len(at_checkpoint) < len(frames_of(folder))
    if is_cut:
        text = path.read_text()
        path.write_text(text + text[:3000])
    assert collect(folder, resume=True).finished
    for name in ("collected.extxyz", "trajectory.extxyz", "log.csv"):
        whole, broken = (tmp_path / "whole" / name), (folder / name)
        assert broken.read_bytes() == whole.read_bytes(), name


def test_command(tmp_path: Path) -> None:
    """Says how many there are, and what they are good for."""
    make_model().export().save(str(tmp_path / "model.pt"))
    model = ModelReference(str(tmp_path / "model.pt"))
    write(tmp_path / "start.xyz", clusters(1))
    arguments = ["md", model.model, str(tmp_path / "start.xyz"), "--collect"]
    arguments += ["--steps", "120", "--temperature", "300", "-o"]
    said = {}
    for usual in (1e6, 1e-6):
        remember(
            model,
            2,
            timestep=0.5,
            temperature=300.0,
            hydrogen_mass=None,
            correction=usual,
        )
        folder = tmp_path / f"{usual:g}"
        result = CliRunner().invoke(main, [*arguments, str(folder)])
        assert result.exit_code == 0, result.output
        said[usual] = result.output
    assert "No structure collected: the run stayed where the forces are" in said[1e6]
    assert f"Collected in {folder / 'collected.extxyz'}: 2 structures, " in said[1e-6]
    assert "to improve its energy, label them with the reference" in said[1e-6]


def test_trainings_read_them(tmp_path: Path) -> None:
    """Without further options, energies in eV."""
    collect(tmp_path / "argon")
    path = tmp_path / "argon" / "collected.extxyz"
    _, _, dataset = prepare(options(path))
    expected = [a.get_potential_energy() for a in frames_of(tmp_path / "argon")]
    found = [float(dataset[i]["energy"].block().values) for i in range(len(dataset))]
    np.testing.assert_allclose(found, expected, atol=1e-8)
