"""The verdict on results that are made up."""

from dataclasses import replace
from typing import Dict, List, Optional

import made_up
import pytest
from made_up import NAN, asymmetry, candidate, findings, gradient, nve, nvt, relaxation

from dualforce.diagnostics.content import Sentence
from dualforce.diagnostics.findings import CONSERVATIVE, DIRECT, MTS, Findings
from dualforce.diagnostics.measures.nve import inner_steps, verdict_of
from dualforce.diagnostics.measures.nvt import (
    LANGEVIN,
    SVR,
    compare_temperatures,
    control_of,
    temperature_excess,
)
from dualforce.diagnostics.text import significant, with_error
from dualforce.diagnostics.verdict import headline, verdict
from dualforce.md.acceptance import judge_all, largest_good
from dualforce.md.statistics import Estimate


def by_topic(model: Findings) -> Dict[str, List[Sentence]]:
    """The verdict, sorted."""
    topics: Dict[str, List[Sentence]] = {}
    for sentence in verdict(model):
        topics.setdefault(sentence.topic, []).append(sentence)
    return topics


def test_good_model() -> None:
    """A model as in the paper: both forces together are safe, the direct one is not,
    and each sentence names its number."""
    topics = by_topic(made_up.good())
    text = {topic: [x.text for x in sentences] for topic, sentences in topics.items()}
    levels = {topic: [x.level for x in found] for topic, found in topics.items()}
    assert levels == {
        "Force and energy": ["good"],
        "Symmetry of the Jacobian": ["good", "caution"],
        "Closed loops": ["good", "caution"],
        "Ranking structures": ["good"],
        "Constant energy (NVE)": ["good", "bad"],
        "Multiple time steps (M)": ["good"],
        "SVR thermostat, 10 fs": ["good", "bad"],
        "Langevin thermostat, 10 fs": ["caution"],
        "Relaxation": ["good", "bad"],
    }
    assert "0.00437 ± 0.00010" in text["Symmetry of the Jacobian"][1]
    assert "+1.830 ± 0.050" in text["Constant energy (NVE)"][1]
    # A tenth of it over the standard deviation of the kinetic energy.
    assert "+0.1830 ± 0.0050 std" in text["Constant energy (NVE)"][1]
    # 1.83 meV / 3 kB, by hand: 1.83 / 0.25852.
    assert "7.1 K in every ps" in text["Constant energy (NVE)"][1]
    (steps,) = text["Multiple time steps (M)"]
    assert "M = 4 is like" in steps and "M = 8 drifts" in steps
    # 4 x 25 ms against 3 x 10 ms + 25 ms.
    assert "1.8 times as fast" in steps
    # 14.3 K between the elements, less 0.5 K with conservative forces.
    assert "O − H +13.80 ± 0.91 K" in text["SVR thermostat, 10 fs"][1]
    assert "factor of 5.0 ± 2.0" in text["Langevin thermostat, 10 fs"][0]
    assert "3 of 10" in text["Relaxation"][1]
    assert "10 of 10 with conservative forces" in text["Relaxation"][1]
    assert "0.60 meV/atom" in text["Ranking structures"][0]
    top = headline(made_up.good())
    assert top.level == "good" and "M = 4" in top.text and "not safe" in top.text


def test_bad_model() -> None:
    """No number of inner steps works, and the direct run fails."""
    model = made_up.bad()
    assert inner_steps(model) is None
    topics = by_topic(model)
    energy = topics["Constant energy (NVE)"]
    assert [sentence.level for sentence in energy] == ["good", "bad"]
    assert "fails after 0.12 ps: the energy is not finite" in energy[1].text
    (steps,) = topics["Multiple time steps (M)"]
    assert steps.level == "bad" and "M = 2 does not work: it drifts" in steps.text
    assert "+1.45 ± 0.10" in steps.text
    assert headline(model).text.startswith("Use the conservative force. The direct")


@pytest.mark.parametrize(
    ("drifts", "chosen"),
    [
        ({2: (0.1, 0.01), 4: (0.15, 0.01), 8: (0.5, 0.01)}, 4),
        # Not beyond one that does not work, though it looks well.
        ({2: (0.1, 0.01), 4: (0.9, 0.01), 8: (0.1, 0.01)}, 2),
        # A large error does not excuse what it explains: that is not decided.
        ({2: (0.1, 0.01), 4: (0.55, 0.30)}, 2),
        ({2: (0.6, NAN)}, None),
        ({2: (NAN, NAN)}, None),
    ],
)
def test_inner_steps(drifts: Dict[int, Estimate], chosen: Optional[int]) -> None:
    """The number is that which ``dualforce tune`` recommends for the same runs."""
    runs = [nve(MTS, drift, n_inner=m) for m, drift in drifts.items()]
    control = nve(CONSERVATIVE, (0.05, 0.01))
    model = findings(control, *runs)
    assert inner_steps(model) == chosen
    tuned = judge_all([x.candidate for x in (control, *runs)])
    best = largest_good(tuned)
    assert best is not None and best.n_inner == (chosen or 1)
    for run, row in zip((control, *runs), tuned, strict=True):
        assert verdict_of(model, run) == row.verdict


def test_heating_without_drift() -> None:
    """50 K/ps of heating are refused, as by ``dualforce tune``."""
    hot = nve(MTS, (0.0, 0.02), n_inner=2, heating=(50.0, 5.0))
    model = findings(nve(CONSERVATIVE), hot)
    assert verdict_of(model, hot) == "heats" and inner_steps(model) is None
    (sentence,) = by_topic(model)["Multiple time steps (M)"]
    assert sentence.level == "bad" and "it heats up" in sentence.text


def test_too_many_inner_steps_asked_for() -> None:
    """A number that was given is judged too."""
    model = findings(nve(CONSERVATIVE), nve(MTS, (1.9, 0.1), n_inner=8), n_inner=8)
    assert headline(model).level == "bad" and "M = 8 inner" in headline(model).text
    (steps,) = by_topic(model)["Multiple time steps (M)"]
    assert steps.level == "bad" and "M = 8 does not work" in steps.text


@pytest.mark.parametrize("drift", [(0.1, 0.9), (0.507, 0.096), (0.1, NAN)])
def test_short_runs_decide_nothing(drift: Estimate) -> None:
    """Neither good nor bad."""
    unknown = (4.0, NAN)
    model = findings(
        nve(CONSERVATIVE, drift, length_ps=0.2),
        nve(DIRECT, drift, length_ps=0.2),
        nve(MTS, (0.2, 0.9), n_inner=4, length_ps=0.2),
        nvt(CONSERVATIVE, SVR, 10.0, unknown, (-3.0, NAN), length_ps=0.2),
        nvt(MTS, SVR, 10.0, (40.0, NAN), (-3.0, NAN), length_ps=0.2),
        nvt(DIRECT, LANGEVIN, 10.0, (1.0, 9.0), (0.0, 8.0), length_ps=0.2),
    )
    sentences = verdict(model)
    assert {sentence.level for sentence in sentences} == {"caution"}
    assert all(sentence.text.startswith("Not decided") for sentence in sentences)
    assert headline(model).level == "caution"
    assert "was not decided" in headline(model).text
    assert inner_steps(model) is None


# ------------------------------------------------------------------------ temperatures


def test_equipartition_of_a_control_is_not_judged() -> None:
    """A conservative run whose elements differ by 7.5 ± 3.1 K by chance is the control
    of others, and nothing is said against it."""
    control = nvt(CONSERVATIVE, SVR, 10.0, (-5.0, 2.2), (2.5, 2.2))
    other = nvt(MTS, SVR, 10.0, (3.2, 2.2), (0.0, 2.2))
    model = findings(control, other)
    assert control_of(model, other) is control and control_of(model, control) is None
    (sentence,) = verdict(model)
    assert sentence.level != "bad"
    excess = temperature_excess(other, control)
    assert excess["O − H"][0] == pytest.approx(10.7)
    assert excess["O − H"][1] == pytest.approx(4.4, abs=0.01)
    # Without another force beside it, neither.
    alone = findings(control, kinds=("conservative",), is_calculator=True)
    (sentence,) = verdict(alone)
    assert sentence.level != "bad"


@pytest.mark.parametrize(
    ("oxygen", "hydrogen", "result"),
    [
        ((2.0, 2.0), (0.0, 1.0), "alike"),
        ((9.9, 0.5), (-4.4, 0.4), "differ"),
        ((20.0, 1.0), (20.0, 1.0), "differ"),
        ((10.7, 3.1), (0.0, 3.1), "alike"),
        ((2.0, 9.0), (0.0, 1.0), "unclear"),
        ((30.0, NAN), (0.0, 1.0), "unclear"),
    ],
)
def test_rule_for_temperatures(
    oxygen: Estimate, hydrogen: Estimate, result: str
) -> None:
    """Differences count beyond three errors; small ones are alike if errors are small
    enough to see a large one."""
    assert (
        compare_temperatures(nvt(DIRECT, SVR, 10.0, oxygen, hydrogen), None) == result
    )


@pytest.mark.parametrize(
    ("thermostat", "tau_fs", "length_ps", "result"),
    [
        # A run of 1 ps with conservative forces showed this by chance.
        (SVR, 10.0, 1.0, "unclear"),
        (SVR, 10.0, 5.0, "differ"),
        (LANGEVIN, 1000.0, 1.0, "unclear"),
        (LANGEVIN, 10.0, 1.0, "differ"),
    ],
)
def test_temperatures_of_short_runs(
    thermostat: str, tau_fs: float, length_ps: float, result: str
) -> None:
    """Elements exchange kinetic energy within a ps, or as fast as friction does."""
    values = ((47.8, 6.0), (-18.1, 4.7))
    run = nvt(CONSERVATIVE, thermostat, tau_fs, *values, length_ps=length_ps)
    assert compare_temperatures(run, None) == result


def test_control_must_be_of_the_same_kind() -> None:
    """The same thermostat, time constant and length."""
    run = nvt(DIRECT, SVR, 10.0, (9.9, 0.5), (-4.4, 0.4))
    for other in (
        nvt(CONSERVATIVE, LANGEVIN, 10.0, (0.0, 0.5), (0.0, 0.4)),
        nvt(CONSERVATIVE, SVR, 100.0, (0.0, 0.5), (0.0, 0.4)),
        nvt(CONSERVATIVE, SVR, 10.0, (0.0, 0.5), (0.0, 0.4), length_ps=5.0),
        nvt(CONSERVATIVE, SVR, 10.0, (0.0, 0.5), (0.0, 0.4), failed="after 1 ps: x"),
    ):
        assert control_of(findings(other, run), run) is None
        (sentence,) = verdict(findings(run))
        assert sentence.level == "caution"


# --------------------------------------------------------------------------- one force


def test_single_force_of_a_calculator() -> None:
    """Calculators are told whether their force is a gradient."""
    alone = {"kinds": ("conservative",), "is_calculator": True}
    safe = findings(
        gradient(),
        asymmetry(CONSERVATIVE, 2e-7, 1e-8),
        nve(CONSERVATIVE, (0.01, 0.01)),
        **alone,
    )
    assert headline(safe).level == "good"
    assert {sentence.level for sentence in verdict(safe)} == {"good"}
    assert "conservative" not in "".join(x.text for x in verdict(safe))
    unsafe = findings(
        asymmetry(CONSERVATIVE, 0.02, 1e-4),
        nve(CONSERVATIVE, (NAN, NAN)),
        has_energy=False,
        **alone,
    )
    assert headline(unsafe).level == "bad"
    topics = by_topic(unsafe)
    assert topics["Symmetry of the Jacobian"][0].level == "bad"
    assert topics["Ranking structures"][0].level == "caution"


def test_wrong_force_of_a_calculator() -> None:
    """A symmetric Jacobian and a steady run do not excuse a force that is not the
    derivative of the energy."""
    wrong = findings(
        gradient(deviation=0.02),
        asymmetry(CONSERVATIVE, 2e-7, 1e-8),
        nve(CONSERVATIVE, (0.01, 0.01)),
        kinds=("conservative",),
        is_calculator=True,
    )
    assert headline(wrong).level == "bad"
    (sentence,) = by_topic(wrong)["Force and energy"]
    assert sentence.level == "bad" and "+20 meV/Å (H 7)" in sentence.text
    noisy = findings(gradient(deviation=0.02, error=0.02))
    (sentence,) = verdict(noisy)
    assert sentence.level == "caution" and sentence.text.startswith("Not decided")


def test_no_energy_still_shows_heating() -> None:
    """Without an energy the heating is what counts: 77.4 K/ps are 20 meV/atom/ps."""
    run = nve(DIRECT, (NAN, NAN), heating=(77.4, 4.0))
    model = findings(run, kinds=("direct",), has_energy=False)
    (sentence,) = by_topic(model)["Constant energy (NVE)"]
    assert sentence.level == "bad" and "+20.0" in sentence.text
    assert "77 K in every ps" in sentence.text


def test_slow_drift_of_the_conservative_force() -> None:
    """Is a matter of the timestep; a fast one leaves nothing to build on."""
    slow, fast = (
        findings(nve(CONSERVATIVE, (drift, 0.05)), nve(MTS, (drift, 0.05), n_inner=2))
        for drift in (0.5, 1.5)
    )
    assert by_topic(slow)["Constant energy (NVE)"][0].level == "caution"
    assert headline(slow).level == "good"
    assert by_topic(fast)["Constant energy (NVE)"][0].level == "bad"
    assert "Even the conservative force" in headline(fast).text


def test_nothing() -> None:
    """Without results the verdict says so."""
    assert headline(findings()).text == "Nothing could be measured."
    assert headline(findings(asymmetry(DIRECT, 0.1))).level == "caution"


def test_relaxations_of_equal_success() -> None:
    """Failures that the conservative force shares are not held against the direct
    one, nor is one more among ten."""
    for n_direct in (7, 6):
        model = findings(relaxation(CONSERVATIVE, 7), relaxation(DIRECT, n_direct))
        levels = [sentence.level for sentence in by_topic(model)["Relaxation"]]
        assert levels == ["caution", "caution"]


def test_numbers() -> None:
    """As many digits as the error allows."""
    assert with_error((1.23456, 0.0321)) == "+1.235 ± 0.032"
    assert with_error((-0.4, 12.0)) == "+0 ± 12"
    assert with_error((6.4e-8, 4e-9)) == "(6.40 ± 0.40)·10⁻⁸"
    assert with_error((NAN, 1.0)) == "not known"
    assert with_error((3.14, NAN)) == "+3.1 ± ?"
    assert with_error((0.0123, 0.002), 1000.0) == "+12.3 ± 2.0"
    assert significant(0.0) == "0"
    assert significant(6.36e-8) == "6.4·10⁻⁸"
    assert significant(1234.0) == "1200"
    assert significant(float("inf")) == "inf"


def test_candidates_are_those_of_tune() -> None:
    """What is stored of a run is what the rule needs."""
    run = nve(MTS, (0.1, 0.02), n_inner=4)
    assert run.candidate == candidate((0.1, 0.02), n_inner=4)
    assert replace(run.candidate, verdict="good").is_good
