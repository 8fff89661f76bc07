"""Runs that go wrong, runs that go on, and masses."""

import logging
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.constraints import FixBondLengths
from ase.io import read
from helpers import make_model, random_cell
from potentials import (
    Counting,
    LennardJones,
    argon,
    chain,
    set_momenta,
    two_calculators,
)

from dualforce.forces import (
    Evaluation,
    MetatomicForces,
)
from dualforce.md import (
    Guard,
    RespaLangevin,
    RespaNPT,
    RespaSVR,
    RespaVelocityVerlet,
    RunFailedError,
    repartition_hydrogen_mass,
    restore_run,
    save_run,
)


# ---------------------------------------------------------------------------- guard


class Spoiled(Counting):
    """Direct forces that are worse by a factor while ``bad``."""

    bad = False

    def both(self, atoms: Atoms, stress: bool = False) -> Any:
        """Both."""
        conservative, direct = super().both(atoms, stress)
        if self.bad:
            more = 20.0 * (direct.forces - conservative.forces)
            direct = Evaluation(conservative.forces + more)
        return conservative, direct


def test_guard_shortens_and_lengthens(caplog: pytest.LogCaptureFixture) -> None:
    """The inner loop is conservative at once while the correction is far out of range,
    and has its length again afterwards; a step of ASE stays as long."""
    atoms, forces = argon()
    spoiled = Spoiled(forces)
    guard = Guard(shorten=True, window=4, factor=4.0)
    run = RespaVelocityVerlet(atoms, 0.5 * units.fs, spoiled, 12, guard=guard)
    lengths: List[int] = []
    for step in range(26):
        spoiled.bad = 6 <= step < 9
        spoiled.calls.clear()
        run.run(1)
        lengths.append(run.n_inner_now)
        evaluations = spoiled.calls.count("direct") + spoiled.calls.count("both")
        assert evaluations - (step == 0) == 12
    assert lengths[:6] == [12] * 6
    # Until none of the last three whole steps was out of range.
    assert lengths[6:] == [1] * 5 + [12] * 15
    assert run.get_time() == pytest.approx(26 * 6.0 * units.fs)
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "shortening the inner loop" in warnings[0].getMessage()


def test_guard_warns_only(caplog: pytest.LogCaptureFixture) -> None:
    """Unless it may do more, and again of what is worse by its factor."""
    guard = Guard(window=3)
    for correction in (1.0, 1.2, 0.8, 1.4, 2.0, 2.9, 1.0, 1.0, 1.0, 1.0, 2.0):
        assert guard.watch(correction, 8) == 8
        assert guard.end_step(8) == 8
    assert len(caplog.records) == 1
    assert "by 2000 meV/Å (RMS), usually by 1000" in caplog.text
    guard.watch(3.1, 8)
    assert len(caplog.records) == 2


@pytest.mark.parametrize("n_atoms", [6, 15, 96, 1000])
def test_range_of_few_atoms_is_wider(n_atoms: int) -> None:
    """Where nothing is wrong few structures leave it: here each molecule of three atoms
    has a correction of its own, and all of them the same distribution."""
    rng = np.random.default_rng(0)
    molecules = rng.chisquare(3, size=(4000, max(1, n_atoms // 3)))
    corrections = np.sqrt(molecules.mean(1) / 3.0)
    guard = Guard(usual=1.0, n_atoms=n_atoms)
    share = np.mean([guard.is_out_of_range(c) for c in corrections])
    assert share < 0.002
    assert guard.is_out_of_range(1.6 if n_atoms >= 96 else 3.1)


def test_integrators_tell_the_number_of_atoms() -> None:
    """On which the range depends."""
    atoms, forces = argon()
    run = RespaVelocityVerlet(atoms, 0.5 * units.fs, forces, 2)
    assert run.guard.n_atoms == len(atoms)


def test_guard_knows_what_is_usual(caplog: pytest.LogCaptureFixture) -> None:
    """A run that is out of range from the start is seen at once, and stays so."""
    atoms, forces = argon()

    def n_inner_with(usual: float) -> int:
        guard = Guard(shorten=True, usual=usual)
        run = RespaVelocityVerlet(atoms, 0.5 * units.fs, forces, 8, guard=guard)
        run.run(6)
        return run.n_inner_now

    conservative, direct = forces.both(atoms)
    size = float(np.sqrt(np.mean((conservative.forces - direct.forces) ** 2)))
    assert n_inner_with(size) == 8 and not caplog.records
    assert n_inner_with(0.5 * size) in (3, 4)  # 8 (1.5 / 2)^2, and less as it grows
    assert n_inner_with(0.2 * size) == 1
    assert "meV/Å (RMS), usually by" in caplog.text


@pytest.mark.parametrize(
    "n_inner, now, parts",
    [
        (5, 3, [3, 2]),
        (5, 2, [2, 2, 1]),
        (5, 4, [3, 2]),
        (12, 8, [6, 6]),
        (7, 1, 7 * [1]),
    ],
)
def test_shortened_steps_are_as_long(n_inner: int, now: int, parts: List[int]) -> None:
    """Whatever the number of inner steps is divisible by."""
    atoms, forces = argon()
    counting = Counting(forces)
    guard = Guard(shorten=True, usual=1.0, allowed=[now])
    run = RespaVelocityVerlet(atoms, 0.5 * units.fs, counting, n_inner, guard=guard)
    run.run(0)
    counting.calls.clear()
    run.n_inner_now = now
    run.run(1)
    expected = [["direct"] * (part - 1) + ["both"] for part in parts]
    assert counting.calls == sum(expected, [])


def test_lengths_follow_the_correction() -> None:
    """By its square, the largest of the last steps counts."""
    guard = Guard(window=3, usual=1.0, factor=1.5, shorten=True)
    expected = {1.5: 16, 1.6: 14, 2.0: 9, 3.0: 4, 4.0: 2, 9.0: 1, 1e6: 1}
    for correction, n_inner in expected.items():
        assert guard.watch(correction, 16) == n_inner
    seen = []
    for correction in (3.0, 2.0, 1.0, 1.0, 1.0, 1.0):
        seen.append(guard.end_step(16))
        guard.watch(correction, 16)
    assert seen == [1, 1, 4, 9, 16, 16]


@pytest.mark.parametrize("options", [{"factor": 1.0}, {"max_drift": 0}, {"window": 0}])
def test_bad_guard(options: Dict[str, Any]) -> None:
    """A sentence says what is wrong."""
    with pytest.raises(ValueError, match="must"):
        Guard(**options)


# -------------------------------------------------------------------------- failures


class Failing(Counting):
    """Fails in a certain evaluation."""

    def __init__(self, forces: Any, after: int, error: Optional[BaseException]) -> None:
        super().__init__(forces)
        self.after, self.error = after, error

    def direct(self, atoms: Atoms, stress: bool = False) -> Evaluation:
        """Direct forces, or an error."""
        result = super().direct(atoms, stress)
        if len(self.calls) >= self.after:
            if self.error is not None:
                raise self.error
            result.forces[7] = np.nan
        return result


def start(kind: str, forces: Any, folder: Path, **options: Any) -> Any:
    """A run of argon."""
    atoms, _ = argon()
    options |= {"last_good": folder / "last.extxyz"}
    settings: Dict[str, Any] = {"temperature_K": 60.0, "rng": 5} | options
    arguments = (atoms, 2.0 * units.fs, forces, 4)
    if kind == "nve":
        return RespaVelocityVerlet(*arguments, **options)
    if kind == "langevin":
        return RespaLangevin(*arguments, friction=0.01, **settings)
    if kind == "svr":
        return RespaSVR(*arguments, tau=5.0, **settings)
    settings |= {"tau": 5.0, "tau_p": 30.0, "pressure": 1e-4, "cell": "triclinic"}
    return RespaNPT(*arguments, **settings)


KINDS = ("nve", "langevin", "svr", "npt")


@pytest.mark.parametrize("kind", KINDS)
def test_not_a_number(kind: str, tmp_path: Path) -> None:
    """The error names step and atoms; the last good structure is on disk and in
    memory, with its energy."""
    run = start(kind, Failing(argon()[1], 14, None), tmp_path)
    frames: List[Atoms] = []
    run.attach(lambda: frames.append(run.atoms.copy()))
    with pytest.raises(RunFailedError, match=r"outer step 4, .* atoms 7 would move"):
        run.run(10)
    assert run.nsteps == 3 and np.isfinite(run.conserved)
    np.testing.assert_array_equal(run.atoms.positions, frames[3].positions)
    np.testing.assert_array_equal(run.atoms.get_momenta(), frames[3].get_momenta())
    kept = read(tmp_path / "last.extxyz")
    np.testing.assert_allclose(kept.positions, frames[3].positions, atol=1e-7)
    energy = run.atoms.get_potential_energy()
    assert kept.get_potential_energy() == pytest.approx(energy, abs=1e-6)
    np.testing.assert_allclose(kept.get_momenta(), run.atoms.get_momenta(), atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_interruption(kind: str, tmp_path: Path) -> None:
    """Ctrl-C in the middle of a step leaves the run where the step began: it goes on
    as if nothing had happened."""
    whole = start(kind, argon()[1], tmp_path)
    whole.run(6)
    run = start(kind, Failing(argon()[1], 14, KeyboardInterrupt()), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run.run(6)
    run.forces.after = 1000
    run.run(3)
    assert_same(run, whole)


def test_drift_ends_the_run(tmp_path: Path) -> None:
    """Long before there are infinities."""
    forces = argon(curl=0.5)[1]
    run = start("nve", forces, tmp_path, guard=Guard(max_drift=1e-6))
    with pytest.raises(RunFailedError, match="more than 1e-06 .* n_inner"):
        run.run(500)
    assert np.isfinite(read(tmp_path / "last.extxyz").positions).all()


def test_overlapping_atoms(tmp_path: Path) -> None:
    """The atoms are named, at the first step or before it."""
    potential = LennardJones(0.0104, 3.4, 5.0)
    forces = two_calculators(potential, potential)
    for distance, message in (
        (0.3, "atoms 4, 9 would move .*; atoms 4 and 9 are only 0.30 Å apart"),
        (0.0, "cannot start .* not finite on atoms 4, 9; atoms 4 and 9 are only 0.00"),
    ):
        atoms, _ = argon()
        atoms.positions[9] = atoms.positions[4] + [0.0, distance, 0.0]
        last = tmp_path / "last.extxyz"
        run = RespaVelocityVerlet(atoms, 2.0 * units.fs, forces, 2, last_good=last)
        with pytest.raises(RunFailedError, match=message):
            run.run(5)


def test_last_good_that_cannot_be_written(tmp_path: Path) -> None:
    """The reason of the failure is not hidden by a second one."""
    run = start("nve", Failing(argon()[1], 5, RuntimeError("no more")), tmp_path / "no")
    with pytest.raises(RunFailedError, match="no more.*could not be written"):
        run.run(5)


# ----------------------------------------------------------------------- checkpoints


def assert_same(one: Any, other: Any) -> None:
    """Two runs are bitwise identical."""
    states = one.state(), other.state()
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        np.testing.assert_equal(value, states[1][name])
    assert one.conserved == other.conserved


@pytest.mark.parametrize("kind", KINDS)
def test_restart(kind: str, tmp_path: Path) -> None:
    """Twice n steps are n, a checkpoint, new objects, and n more, bitwise identical."""
    whole = start(kind, argon()[1], tmp_path)
    whole.run(12)
    first = start(kind, argon()[1], tmp_path)
    first.run(6)
    save_run(first, tmp_path / "checkpoint")
    second = start(kind, argon()[1], tmp_path)
    second.atoms.positions += 1.0
    restore_run(second, tmp_path / "checkpoint")
    assert second.nsteps == 6
    second.run(6)
    first.run(6)
    assert_same(second, whole)
    assert_same(first, whole)


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.MT19937, np.random.SFC64])
def test_any_generator_is_kept(bits: Any, tmp_path: Path) -> None:
    """Whatever its state looks like."""
    runs = []
    for _ in range(2):
        rng = np.random.Generator(bits(3))
        runs.append(start("langevin", argon()[1], tmp_path, rng=rng))
    runs[0].run(2)
    save_run(runs[0], tmp_path / "checkpoint")
    restore_run(runs[1], tmp_path / "checkpoint")
    for run in runs:
        run.run(2)
    assert_same(*runs)


def test_bond_lengths_are_kept(tmp_path: Path) -> None:
    """ASE measures them at the first step, whose structure a restart has not."""
    runs = []
    for _ in range(2):
        atoms, forces = chain()
        atoms.set_constraint(FixBondLengths([(0, 1), (1, 2)]))
        runs.append(RespaVelocityVerlet(atoms, 0.05, forces, 2))
    runs[0].run(5)
    save_run(runs[0], tmp_path / "checkpoint")
    restore_run(runs[1], tmp_path / "checkpoint")
    for run in runs:
        run.run(5)
    assert_same(*runs)


@pytest.mark.parametrize("backbone, kind", [("painn", "npt"), ("pet", "nve")])
def test_restart_with_a_model(backbone: str, kind: str, tmp_path: Path) -> None:
    """Neighbour lists and TorchScript leave no trace either."""
    path = str(tmp_path / "model.pt")
    make_model(backbone).export().save(path)

    def begin() -> Any:
        atoms = random_cell(8, 6.0, seed=4, min_distance=1.5)
        set_momenta(atoms, 0.02)
        run_options = {"guard": Guard(max_drift=np.inf), "last_good": tmp_path / "x"}
        forces = MetatomicForces(path)
        forces.warm_up(atoms, stress=kind == "npt")
        arguments = (atoms, 0.5 * units.fs, forces, 2)
        if kind == "nve":
            return RespaVelocityVerlet(*arguments, **run_options)
        options: Any = {"temperature_K": 300.0, "rng": 1, "tau": 5.0, "tau_p": 50.0}
        return RespaNPT(*arguments, pressure=0.0, **options, **run_options)

    first = begin()
    first.run(6)
    save_run(first, tmp_path / "checkpoint")
    second = begin()
    restore_run(second, tmp_path / "checkpoint")
    for run in (first, second):
        run.run(6)
    assert_same(first, second)


def test_neighbour_lists_are_searched_anew(tmp_path: Path) -> None:
    """On both sides of a checkpoint, and before the next evaluation."""
    runs = [start("nve", Counting(argon()[1]), tmp_path) for _ in range(2)]
    runs[0].run(1)
    save_run(runs[0], tmp_path / "checkpoint")
    restore_run(runs[1], tmp_path / "checkpoint")
    for run in runs:
        run.run(1)
        assert run.forces.calls[-5:] == ["reset", "direct", "direct", "direct", "both"]


def test_checkpoint_of_another_run(tmp_path: Path) -> None:
    """A sentence says what differs."""
    run = start("nve", argon()[1], tmp_path)
    save_run(run, tmp_path / "checkpoint")
    atoms, forces = argon()
    others = [
        (start("svr", forces, tmp_path), "kind is RespaVelocityVerlet, .* RespaSVR"),
        (RespaVelocityVerlet(atoms, 2.0 * units.fs, forces, 2), "its n_inner is 4"),
        (RespaVelocityVerlet(atoms, 1.0, forces, 4), "its timestep is"),
    ]
    smaller, heavier = atoms.copy()[:31], atoms.copy()
    heavier.set_masses(np.full(32, 50.0))
    for other, message in ((smaller, "atoms are others"), (heavier, "other masses")):
        others.append((RespaVelocityVerlet(other, 2 * units.fs, forces, 4), message))
    for other_run, message in others:
        with pytest.raises(ValueError, match=message):
            restore_run(other_run, tmp_path / "checkpoint")


# ---------------------------------------------------------------------------- masses


def test_hydrogen_mass() -> None:
    """Mass moves from the neighbour to hydrogen, across boundaries of the cell too;
    velocities stay."""
    atoms = molecule("CH3OH")
    atoms.cell, atoms.pbc = [6.0, 6.0, 6.0], True
    set_momenta(atoms, 0.02)
    atoms.wrap()
    before, velocities = atoms.get_masses(), atoms.get_velocities()
    repartition_hydrogen_mass(atoms, 2.5)
    change = atoms.get_masses() - before
    assert change.sum() == pytest.approx(0.0, abs=1e-12)
    hydrogen = atoms.numbers == 1
    np.testing.assert_allclose(atoms.get_masses()[hydrogen], 2.5)
    shift = 2.5 - before[hydrogen][0]
    np.testing.assert_allclose(change[atoms.numbers == 6], -3.0 * shift)
    np.testing.assert_allclose(change[atoms.numbers == 8], -shift)
    np.testing.assert_allclose(atoms.get_velocities(), velocities, atol=1e-14)
    cold = molecule("H2O")
    repartition_hydrogen_mass(cold)
    assert not cold.has("momenta")


@pytest.mark.parametrize(
    "name, mass, message",
    [
        ("H2", 3.0, "hydrogen atoms 0, 1 are bound to no heavier atom"),
        ("CH4", 3.0, "atoms 0 would lose more than half"),
        ("H2O", 0.0, "must be positive, not 0.0"),
        ("H2O", np.nan, "must be positive, not nan"),
    ],
)
def test_bad_hydrogen_mass(name: str, mass: float, message: str) -> None:
    """A sentence says what is wrong, and nothing is changed."""
    atoms = molecule(name)
    before = atoms.get_masses()
    with pytest.raises(ValueError, match=message):
        repartition_hydrogen_mass(atoms, mass)
    np.testing.assert_array_equal(atoms.get_masses(), before)
