"""The choice of the number of inner steps."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Optional

import ase.io
import numpy as np
import pytest
from ase import units
from click.testing import CliRunner
from helpers import make_model, random_cell
from potentials import argon

from dualforce.cli import main
from dualforce.md import equilibrate
from dualforce.md.acceptance import is_drifting, judge, judge_all, largest_good
from dualforce.md.constant_energy import PICOSECOND, Candidate, ConstantEnergyRun
from dualforce.md.statistics import Estimate
from dualforce.md.tuning import (
    CANDIDATES,
    MAX_FLUCTUATION,
    Costs,
    Prediction,
    Tuning,
    _lengths,
    _measure_costs,
    _Search,
    next_candidate,
    promising,
    tune,
)
from dualforce.md.tuning_report import advice, table, write


def test_limit_of_a_rough_force_is_found() -> None:
    """A direct force with a strong curl tolerates fewer inner steps than one that is
    close to the conservative force, and what is recommended does not drift."""
    limits = {}
    for curl in (0.0002, 0.5):
        atoms, forces = argon(curl=curl)
        result = tune(
            forces,
            atoms,
            timestep=5.0 * units.fs,
            temperature_K=60.0,
            tolerance=0.05,
            seconds=8.0,
        )
        assert result.candidates[0].n_inner == 1
        assert result.recommended is not None
        limits[curl] = result.recommended
        chosen = next(
            row for row in result.candidates if row.n_inner == result.recommended
        )
        assert chosen.is_good
        difference = chosen.drift[0] - result.candidates[0].drift[0]
        assert abs(difference) <= 0.05
    assert limits[0.5] <= 4 < limits[0.0002]


def test_machine_that_becomes_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run with the conservative force leaves time for the others."""
    measured_costs = _Search.run_reference

    def too_optimistic(search: Any) -> None:
        search._step_costs = Costs(*(cost / 5.0 for cost in search._step_costs))
        measured_costs(search)

    monkeypatch.setattr(_Search, "run_reference", too_optimistic)
    atoms, forces = argon(curl=0.0002)
    step = 5.0 * units.fs
    result = tune(forces, atoms, timestep=step, temperature_K=60.0, seconds=6.0)
    first, *others = result.candidates
    assert others and others[0].n_inner > 1
    assert first.length_ps >= 1.0


def cheap_direct_force(search: Any, timestep: float, n_inner: int) -> float:
    """Speed if the conservative force costs three times more."""
    return predicted(timestep / search._timesteps[0], n_inner).speed


def test_time_for_another_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate that is no longer good once its run has been continued is followed by
    one with a shorter outer step, and not the end of the search."""
    judged = _Search._verdict

    def doubtful(search: Any, run: ConstantEnergyRun) -> str:
        is_continued = run.run.get_time() > 1.01 * search._length
        if run is search._runs[1] and is_continued:
            return "unclear"
        return judged(search, run)

    monkeypatch.setattr(_Search, "_verdict", doubtful)
    monkeypatch.setattr(_Search, "_speed", cheap_direct_force)
    atoms, forces = argon(curl=0.0002)
    result = tune(
        forces,
        atoms,
        timestep=5.0 * units.fs,
        temperature_K=60.0,
        seconds=8.0,
        candidates=(2, 4, 8),  # which do not drift
    )
    _, second, first = result.candidates
    assert 1 < second.n_inner < first.n_inner
    assert first.length_ps > result.candidates[0].length_ps


@pytest.mark.parametrize("cost", [0.6, 0.9])
def test_only_what_pays_is_run(cost: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates that are slower than the conservative force alone with its longest
    timestep are left out where there are faster ones."""

    def speed(search: Any, timestep: float, n_inner: int) -> float:
        steps = timestep / search._timesteps[0]
        return steps / (cost + 1.0 / n_inner)  # of a conservative force

    monkeypatch.setattr(_Search, "_speed", speed)
    atoms, forces = argon(curl=0.0002)
    result = tune(
        forces,
        atoms,
        timestep=[5.0 * units.fs, 10.0 * units.fs],
        temperature_K=60.0,
        seconds=6.0,
        candidates=(2, 3),
    )
    assert [each.is_too_long for each in result.timesteps] == [False, False]
    assert result.longest_fs == pytest.approx(10.0)
    chosen = result.candidates[1]
    # 0.6: M = 3 with 10 fs is 2.1 times as fast, and twice is the conservative force.
    # 0.9: nothing is faster, and the fastest is run nevertheless.
    assert (chosen.n_inner, chosen.timestep_fs) == (3, pytest.approx(10.0))
    if cost == 0.6:
        assert len(result.candidates) == 2


def test_choice_of_the_timestep() -> None:
    """A longer one is chosen where it conserves energy, one that does not is left out,
    and the run with the shortest tells how large the error of the longer ones is."""
    atoms, forces = argon(curl=0.0002)
    result = tune(
        forces,
        atoms,
        timestep=[step * units.fs for step in (10.0, 5.0, 60.0)],
        temperature_K=60.0,
        seconds=10.0,
        candidates=(2, 3, 4),
    )
    assert [each.fs for each in result.timesteps] == pytest.approx([5.0, 10.0, 60.0])
    assert [each.is_too_long for each in result.timesteps] == [False, False, True]
    assert result.candidates[0].timestep_fs == pytest.approx(5.0)
    assert result.timestep_fs == pytest.approx(10.0)
    assert len(result.predictions) == 9
    start = equilibrate(forces, atoms, 5.0 * units.fs, temperature_K=60.0)
    run = ConstantEnergyRun(start, 10.0 * units.fs, forces)
    run.advance(2.0 * PICOSECOND)
    found = run.candidate()
    spread = found.drift[0] / found.relative_drift[0]
    assert result.timesteps[1].fluctuation == pytest.approx(
        found.fluctuation / spread, rel=0.3
    )
    assert found.fluctuation / spread < MAX_FLUCTUATION


def test_timestep_that_is_too_long() -> None:
    """Where even conservative forces fail, nothing is recommended."""
    atoms, forces = argon()
    result = tune(
        forces,
        atoms,
        timestep=60.0 * units.fs,
        temperature_K=300.0,
        tolerance=0.01,
        seconds=4.0,
    )
    assert result.recommended is None
    assert len(result.candidates) == 1


def measured(
    drift: Estimate = (0.0, 0.02),
    late: Estimate = (0.0, 0.04),
    heating: Estimate = (0.0, 1.0),
    n_inner: int = 4,
    growth: Optional[float] = 1.0,
    failed: Optional[str] = None,
    length_ps: float = 5.0,
    mean: Estimate = (float("nan"), float("nan")),
) -> Candidate:
    """A run that nobody has made."""
    return Candidate(
        n_inner=n_inner,
        outer_step_fs=0.5 * n_inner,
        length_ps=length_ps,
        failed=failed,
        drift=drift,
        late_drift=late,
        mean_drift=mean,
        relative_drift=(drift[0] / 10.0, drift[1] / 10.0),
        fluctuation=0.1,
        heating=heating,
        correction=50.0,
        growth=growth,
        ms_per_step=10.0,
    )


NAN = float("nan")


@pytest.mark.parametrize(
    ("options", "verdict"),
    [
        ({}, "good"),
        ({"drift": (0.55, 0.30)}, "unclear"),
        ({"drift": (0.55, 0.10)}, "drifts"),
        ({"drift": (-0.55, 0.10)}, "drifts"),
        ({"drift": (0.1, 0.3)}, "unclear"),
        # The spread of the energy knows more than the slope does, but no better.
        ({"drift": (0.55, 0.30), "mean": (0.05, 0.02)}, "good"),
        ({"drift": (0.55, 0.30), "mean": (0.15, 0.05)}, "unclear"),
        ({"drift": (0.55, 0.10), "mean": (0.05, 0.02)}, "drifts"),
        ({"drift": (-0.64, 0.28), "mean": (0.05, 0.02)}, "good"),
        ({"drift": (-0.64, 0.28)}, "drifts"),
        ({"late": (0.9, 0.1), "mean": (0.05, 0.02)}, "drift grows"),
        ({"length_ps": 0.1, "mean": (0.05, 0.02)}, "unclear"),
        ({"late": (0.9, 0.1)}, "drift grows"),
        ({"growth": 1.6}, "correction grows"),
        ({"heating": (50.0, 5.0)}, "heats"),
        ({"heating": (50.0, 20.0)}, "good"),
        ({"heating": (15.0, 1.0)}, "good"),
        ({"failed": "atoms 3 would move"}, "fails after 5.00 ps"),
        # A change of 10 meV/atom is a failure, whatever the error.
        ({"drift": (2.1, 3.0)}, "drifts"),
        ({"length_ps": 0.1, "drift": (120.0, NAN)}, "drifts"),
        # Short runs decide nothing, unless they fail.
        ({"length_ps": 0.1}, "unclear"),
        ({"length_ps": 0.1, "drift": (0.507, 0.096)}, "unclear"),
        ({"length_ps": 0.1, "failed": "atoms 3"}, "fails after 0.10 ps"),
        # Errors that are not known decide nothing.
        ({"drift": (0.507, NAN)}, "unclear"),
        ({"drift": (0.1, NAN)}, "unclear"),
        ({"drift": (NAN, NAN)}, "unclear"),
    ],
)
def test_rule(options: Dict[str, Any], verdict: str) -> None:
    """Excess drift within the tolerance, clearly beyond it, or neither; late drift,
    growth of the correction, heating."""
    conservative = measured(n_inner=1, growth=None)
    assert judge(measured(**options), conservative, 0.2) == verdict
    rows = judge_all([conservative, measured(**options)], 0.2)
    assert [row.verdict for row in rows] == ["good", verdict]
    assert largest_good(rows) is rows[1 if verdict == "good" else 0]
    assert rows[1].is_good == (verdict == "good")
    assert rows[1].is_bad == (verdict not in ("good", "unclear"))


def test_conservative_run_itself() -> None:
    """Its drift must be known to the tolerance; a large one is told apart."""
    assert judge(measured(drift=(1.0, 0.1)), None, 0.2) == "good"
    assert judge(measured(drift=(0.0, 0.3)), None, 0.2) == "unclear"
    assert judge(measured(drift=(0.0, NAN)), None, 0.2) == "unclear"
    assert is_drifting((3.0, 0.1), 0.2) and not is_drifting((0.3, 0.1), 0.2)
    assert not is_drifting((3.0, NAN), 0.2)
    assert largest_good(judge_all([measured(drift=(0.0, NAN)), measured()])) is None


def test_one_prediction_that_is_too_large_by_chance() -> None:
    """Larger numbers of inner steps are promising nevertheless, but not beyond one that
    is too large by more than its error, nor beyond one that is not known."""
    drifts = {2: 0.02, 3: 0.12, 4: 0.06, 5: 0.3, 6: 0.08}
    known = [replace(predicted(2.0, n), drift=(x, 0.4 * x)) for n, x in drifts.items()]
    assert [each.n_inner for each in promising(known, 0.2)] == [2, 4]
    known[2] = replace(known[2], drift=(NAN, NAN))
    assert [each.n_inner for each in promising(known, 0.2)] == [2]
    assert promising(known[4:], 0.2) == known[4:]


def test_next_candidate() -> None:
    """A little less where nothing was decided, half where the prediction has failed."""
    pairs = [predicted(0.5, n_inner) for n_inner in CANDIDATES]
    for n_inner, verdict, expected in (
        (6, "unclear", 5),
        (8, "drifts", 4),
        (3, "fails after 0.1 ps", None),
        (2, "unclear", None),
    ):
        found = next_candidate(predicted(0.5, n_inner), verdict, pairs)
        assert (found and found.n_inner) == expected


def test_next_candidate_promises_more() -> None:
    """After an undecided run, one with a third of its drift; the next if none has."""
    drifts = {8: 0.05, 6: 0.047, 5: 0.013, 4: 0.0007}
    pairs = [replace(predicted(0.5, n), drift=(x, 0.0)) for n, x in drifts.items()]
    for index, expected in ((0, 5), (1, 5), (2, 4)):
        found = next_candidate(pairs[index], "unclear", pairs)
        assert found is not None and found.n_inner == expected
    assert next_candidate(pairs[0], "unclear", pairs[:2]) == pairs[1]


def test_next_candidate_after_a_near_miss() -> None:
    """The drift has to fall by as much as it was too large."""
    drifts = {8: 0.09, 7: 0.054, 6: 0.011}
    pairs = [replace(predicted(0.5, n), drift=(x, 0.0)) for n, x in drifts.items()]
    for excess, expected in ((1.4, 7), (1.7, 6), (100.0, 7)):
        found = next_candidate(pairs[0], "unclear", pairs, excess)
        assert found is not None and found.n_inner == expected


def test_next_candidate_of_several_timesteps() -> None:
    """The fastest of those with a shorter outer step."""
    pairs = [predicted(step, n) for step in (0.5, 1.0) for n in (2, 3, 4, 5)]
    found = next_candidate(predicted(1.0, 3), "unclear", pairs)
    assert found == predicted(1.0, 2)
    found = next_candidate(predicted(1.0, 3), "drifts", pairs)
    assert found == predicted(0.5, 3)


def predicted(timestep: float, n_inner: int) -> Prediction:
    """A prediction for forces of which the conservative one costs three times more."""
    per_step = 1.0 + 2.0 / n_inner
    return Prediction(timestep, n_inner, (0.0, 0.0), 3.0 * timestep / per_step)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [measured(n_inner=1), measured()],
            "Use M = 4 with steps of 0.5 fs (--timestep 0.5 --inner 4)",
        ),
        ([measured(n_inner=1, drift=(0.0, 0.5))], "Nothing can be recommended"),
        ([measured(n_inner=1, failed="x")], "Even the conservative force alone"),
        ([measured(n_inner=1, drift=(3.0, 0.1))], "timestep is too long"),
        (
            [measured(n_inner=1), measured(drift=(0.1, NAN))],
            "Not decided: M = 4 with 0.5 fs",
        ),
        ([measured(n_inner=1, length_ps=0.1)], "each ps of it takes 0.33 minutes"),
        (
            [measured(n_inner=1, length_ps=0.1), measured(length_ps=0.5)],
            "the run (M = 4, 0.5 ps) is shorter than 1 ps",
        ),
        (
            [
                measured(n_inner=1, length_ps=0.1),
                measured(n_inner=3, length_ps=0.5),
                measured(n_inner=6, drift=(-0.5, 0.01)),
            ],
            "M = 6 failed, and the run (M = 3, 0.5 ps) is shorter than 1 ps",
        ),
    ],
)
def test_advice(rows: List[Candidate], words: str) -> None:
    """What to do follows from the verdicts."""
    judged = judge_all(rows)
    result = Tuning(judged, 5.0, [], [])
    assert words in advice(result)
    assert len(table(result).splitlines()) == 1 + len(rows)


@pytest.mark.parametrize("is_rough", [True, False])
def test_advice_about_a_rough_conservative_force(is_rough: bool) -> None:
    """It says from which number of inner steps on a better direct force is in vain."""
    known = [
        Prediction(0.5, n_inner, (drift, 0.01), 2.0, is_rough and n_inner > 4)
        for n_inner, drift in ((4, 0.01), (8, 0.3), (16, 0.6))
    ]
    rows = judge_all([measured(n_inner=1), measured()])
    words = advice(Tuning(rows, 5.0, known, []))
    assert ("From M = 8 on, what heats" in words) == is_rough


def test_timed_evaluations_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each at positions of its own: calculators keep what they have found."""
    atoms, forces = argon(curl=0.0002)
    seen: List[bytes] = []
    for name in ("direct", "both", "conservative"):
        evaluate = getattr(forces, name)

        def noting(at: Any, *more: Any, act: Any = evaluate) -> Any:
            seen.append(at.positions.tobytes())
            return act(at, *more)

        monkeypatch.setattr(forces, name, noting)
    _measure_costs(forces, atoms)
    alone = [each for each in seen if seen.count(each) == 1]
    assert len(alone) >= 6  # `both` may be made of the two others


def test_speed() -> None:
    """Beside the conservative force alone, which the run that predicts does not have
    alone, and on a machine as fast as during each run."""
    alone = replace(measured(n_inner=1), ms_per_step=30.0, conservative_ms=20.0)
    slowed = replace(measured(n_inner=8), ms_per_step=16.0, conservative_ms=40.0)
    longer = replace(alone, outer_step_fs=1.0)
    result = Tuning(judge_all([alone, slowed]), 5.0, [], [])
    speeds = [result.speed(each) for each in (alone, slowed, longer)]
    assert speeds == pytest.approx([1.0, 2.5, 2.0])
    rows = [line.split() for line in table(result).splitlines()]
    assert [row[-4] for row in rows[1:]] == ["1.00", "2.50"]
    assert "slower than the conservative force alone" not in advice(result)
    slow = replace(slowed, conservative_ms=15.0)
    words = advice(Tuning(judge_all([alone, slow]), 5.0, [], []))
    assert "slower than the conservative force alone (M = 1)" in words


@pytest.mark.parametrize("drift", [0.1, NAN])
def test_numbers_that_json_does_not_have(drift: float, tmp_path: Path) -> None:
    """Errors, and drifts, that are not known are null, and no hindrance to the plot."""
    judged = judge_all([measured(n_inner=1, drift=(drift, NAN))])
    written = write(Tuning(judged, 5.0, [], []), tmp_path, {"model": "none"})
    content = json.loads(written[0].read_text())
    known = None if drift != drift else drift
    assert content["candidates"][0]["drift"] == [known, None]
    assert content["settings"] == {"model": "none"}
    assert written[1].read_bytes().startswith(b"\x89PNG")


def test_short_run_decides_nothing() -> None:
    """The verdict is open, not wrong."""
    atoms, forces = argon(curl=0.002)
    start = equilibrate(forces, atoms, 4.0 * units.fs, temperature_K=60.0)
    rows = []
    for n_inner in (1, 2):
        run = ConstantEnergyRun(start, 4.0 * units.fs, forces, n_inner)
        run.advance(15 * 4.0 * units.fs)
        rows.append(run.candidate())
        assert rows[-1].length_ps == pytest.approx(0.06, abs=0.005)
    assert [row.verdict for row in judge_all(rows)] == ["unclear", "unclear"]


def test_conservative_force_that_is_slow() -> None:
    """It gets the steps that a prediction needs, others the time to be judged."""
    step = 1.0 * units.fs
    for seconds, reference, others in (
        (1800.0, 320 * step, PICOSECOND),
        (600.0, 0.4 * 600.0 / 1.4 * step, PICOSECOND),
    ):
        found = _lengths(Costs(0.01, 1.4, 1.4), step, seconds)
        assert found == pytest.approx((reference, others))
    fast = _lengths(Costs(0.001, 0.002, 0.002), step, 60.0)
    assert fast[0] == fast[1] > PICOSECOND


def test_runs_beside_a_short_one() -> None:
    """They are compared with exact conservation of energy, and may be recommended."""
    drifting = measured(
        n_inner=1, length_ps=0.3, drift=(5.0, 9.0), heating=(90.0, 80.0)
    )
    for drift, expected in (((0.1, 0.02), 8), ((1.0, 0.02), None)):
        rows = judge_all([drifting, measured(n_inner=8, drift=drift, late=drift)])
        assert rows[0].verdict == "unclear"
        best = largest_good(rows)
        assert (best and best.n_inner) == expected


def test_runs_can_be_continued() -> None:
    """Two halves are the whole, and kinetic energy gives the scale of the drift."""
    atoms, forces = argon()
    start = equilibrate(forces, atoms, 4.0 * units.fs, temperature_K=60.0)
    halves, whole = (ConstantEnergyRun(start, 4.0 * units.fs, forces, 2) for _ in "ab")
    for length in (400.0, 400.0):
        halves.advance(length * units.fs)
    whole.advance(800.0 * units.fs)
    np.testing.assert_array_equal(halves.series, whole.series)
    times, conserved, temperature, correction = whole.series
    assert len(times) == 101 and (correction > 0.0).all()
    candidate = whole.candidate()
    kinetic = 1500.0 * units.kB * temperature * (1.0 - 1.0 / len(atoms))
    expected = candidate.drift[0] / kinetic.std()
    assert candidate.relative_drift[0] == pytest.approx(expected)
    assert candidate.correction == pytest.approx(np.sqrt(np.mean(correction**2)))


def test_command(tmp_path: Path) -> None:
    """Table, plot and numbers are written, and not overwritten."""
    model, structure = tmp_path / "small.pt", tmp_path / "structure.xyz"
    make_model().export().save(str(model))
    ase.io.write(structure, random_cell(8, 6.0, seed=1), format="extxyz")
    arguments = ["tune", str(model), str(structure), "--minutes", "0.15"]
    arguments += ["--timestep", "0.1", "--timestep", "0.2"]
    arguments += ["--temperature", "50", "-o", str(tmp_path)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "tune.json").read_text())
    assert content["settings"]["timesteps_fs"] == [0.1, 0.2]
    assert [each["fs"] for each in content["timesteps"]] == pytest.approx([0.1, 0.2])
    assert "Predicted for each timestep" in result.output
    assert content["candidates"][0]["n_inner"] == 1
    assert [row["n_inner"] for row in content["predictions"]][:3] == [2, 3, 4]
    assert (tmp_path / "tune.png").read_bytes().startswith(b"\x89PNG")
    assert "drift (meV/atom/ps)" in result.output
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1 and "holds tune.json already" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--timestep", "-1"], "timestep must be positive"),
        (["--tolerance", "0"], "tolerance must be positive"),
        (["--hydrogen-mass", "-1"], "mass of hydrogen must be positive"),
    ],
)
def test_refusals(options: list[str], message: str, tmp_path: Path) -> None:
    """Options that make no sense."""
    model, structure = tmp_path / "small.pt", tmp_path / "structure.xyz"
    make_model().export().save(str(model))
    ase.io.write(structure, random_cell(8, 6.0, seed=1), format="extxyz")
    result = CliRunner().invoke(main, ["tune", str(model), str(structure), *options])
    assert result.exit_code == 1
    assert message in result.output
