"""The verdict on results that are made up."""

from typing import Dict, List

import made_up
import pytest
from made_up import NAN, asymmetry, findings, nve, nvt, relaxation

from dualforce.diagnostics.findings import Findings
from dualforce.diagnostics.results import (
    CONSERVATIVE,
    DIRECT,
    FORCES,
    LANGEVIN,
    MTS,
    SVR,
    Estimate,
    Sentence,
)
from dualforce.diagnostics.verdict import choose_inner, headline, verdict
from dualforce.diagnostics.wording import significant, with_error


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
    found = {
        topic: [(sentence.level, sentence.text) for sentence in sentences]
        for topic, sentences in topics.items()
    }
    levels = {topic: [x[0] for x in sentences] for topic, sentences in found.items()}
    assert levels == {
        "Is it a gradient?": ["good", "caution"],
        "Constant energy (NVE)": ["good", "bad"],
        "Multiple time steps (M)": ["good"],
        "Velocity rescaling (SVR)": ["good", "bad"],
        "Langevin thermostat": ["caution"],
        "Relaxation": ["good", "bad"],
        "Ranking structures": ["good"],
    }
    assert "0.0044" in found["Is it a gradient?"][1][1]
    assert "+1.830 ± 0.050" in found["Constant energy (NVE)"][1][1]
    # 1.83 meV / 3 kB, by hand: 1.83 / 0.25852.
    assert "7.1 K in every ps" in found["Constant energy (NVE)"][1][1]
    assert "M = 4" in found["Multiple time steps (M)"][0][1]
    # 4 x 25 ms against 3 x 10 ms + 25 ms.
    assert "1.8 times as fast" in found["Multiple time steps (M)"][0][1]
    hides = found["Velocity rescaling (SVR)"][1][1]
    assert hides.startswith("Hides") and "+0.37 K" in hides
    assert "O +9.90 ± 0.50 K" in hides and "H −4.40 ± 0.40 K" in hides
    assert "5.0 times slower" in found["Langevin thermostat"][0][1]
    assert "3 of 10" in found["Relaxation"][1][1]
    assert "0.59 meV/atom" in found["Ranking structures"][0][1]
    top = headline(made_up.good())
    assert top.level == "good" and "M = 4" in top.text and "not safe" in top.text


def test_bad_model() -> None:
    """No number of inner steps works, and the direct run breaks down."""
    model = made_up.bad()
    assert choose_inner(model) is None
    topics = by_topic(model)
    energy = topics["Constant energy (NVE)"]
    assert [sentence.level for sentence in energy] == ["good", "bad"]
    assert "breaks down after 0.123 ps: the energy is not finite" in energy[1].text
    (steps,) = topics["Multiple time steps (M)"]
    assert steps.level == "bad" and "M = 2 does not work" in steps.text
    assert "+12.45 ± 0.60" in steps.text
    assert headline(model).text.startswith("Use the conservative force.")


@pytest.mark.parametrize(
    ("drifts", "chosen"),
    [
        ({2: (0.1, 0.01), 4: (0.15, 0.01), 8: (0.5, 0.01)}, 4),
        # Not beyond one that does not work, though it looks well.
        ({2: (0.1, 0.01), 4: (0.9, 0.01), 8: (0.1, 0.01)}, 2),
        # A large error excuses what it explains.
        ({2: (0.1, 0.01), 4: (0.6, 0.3)}, 4),
        # One that is not known excuses nothing.
        ({2: (0.6, NAN)}, None),
        ({2: (NAN, NAN)}, None),
    ],
)
def test_inner_steps(drifts: Dict[int, Estimate], chosen: int) -> None:
    """The largest number up to which all drift as the conservative force does."""
    runs = [nve(MTS, drift, n_inner=m) for m, drift in drifts.items()]
    assert choose_inner(findings(nve(CONSERVATIVE, (0.05, 0.01)), *runs)) == chosen


def test_too_many_inner_steps_asked_for() -> None:
    """A number that was given is judged too."""
    model = findings(
        nve(CONSERVATIVE, (0.0, 0.01)), nve(MTS, (5.0, 0.1), n_inner=8), n_inner=8
    )
    assert headline(model).level == "bad" and "8 inner" in headline(model).text
    (steps,) = by_topic(model)["Multiple time steps (M)"]
    assert steps.level == "bad" and "M = 8 does not work" in steps.text


def test_short_runs_promise_nothing() -> None:
    """What a short run cannot tell is not called safe."""
    model = findings(
        nve(CONSERVATIVE, (0.1, 0.9), length_ps=0.2),
        nve(MTS, (0.2, 0.9), n_inner=4, length_ps=0.2),
        nvt(MTS, SVR, 10.0, (4.0, 9.0), (-3.0, 8.0), length_ps=0.2),
        nvt(DIRECT, LANGEVIN, 10.0, (1.0, 9.0), (0.0, 8.0), length_ps=0.2),
        n_inner=4,
    )
    assert {sentence.level for sentence in verdict(model)} == {"caution"}
    assert headline(model).level == "caution"
    assert "0.20 ps cannot exclude" in verdict(model)[0].text


def test_single_force_of_a_calculator() -> None:
    """Calculators are told whether their force is a gradient."""
    kinds = [FORCES]
    safe = findings(
        asymmetry(FORCES, 2e-7, 1e-8), nve(FORCES, (0.01, 0.01)), kinds=kinds
    )
    assert headline(safe).level == "good"
    assert {sentence.level for sentence in verdict(safe)} == {"good"}
    unsafe = findings(
        asymmetry(FORCES, 0.02, 1e-4),
        nve(FORCES, (NAN, NAN)),
        kinds=kinds,
        has_energy=False,
    )
    assert headline(unsafe).level == "bad"
    topics = by_topic(unsafe)
    assert topics["Is it a gradient?"][0].level == "bad"
    assert topics["Ranking structures"][0].level == "bad"


def test_no_energy_still_shows_heating() -> None:
    """Without an energy the heating is what counts: 77.4 K/ps are 20 meV/atom/ps."""
    run = nve(DIRECT, (20.0, 1.0))
    run = type(run)(**{**vars(run), "drift": (NAN, NAN), "conserved": []})
    (sentence,) = by_topic(findings(run, kinds=[DIRECT], has_energy=False))[
        "Constant energy (NVE)"
    ]
    assert sentence.level == "bad" and "+20.0" in sentence.text
    assert "77 K in every ps" in sentence.text


def test_nothing() -> None:
    """Without results the verdict says so."""
    assert headline(findings()).text == "Nothing could be measured."
    assert headline(findings(asymmetry(DIRECT, 0.1))).level == "caution"


def test_relaxations_of_equal_success() -> None:
    """Failures that the conservative force shares are not held against the direct
    one."""
    model = findings(relaxation(CONSERVATIVE, 7), relaxation(DIRECT, 7))
    levels = [sentence.level for sentence in by_topic(model)["Relaxation"]]
    assert levels == ["caution", "caution"]


def test_numbers() -> None:
    """As many digits as the error allows."""
    assert with_error((1.23456, 0.0321)) == "+1.235 ± 0.032"
    assert with_error((-0.4, 12.0)) == "+0 ± 12"
    assert with_error((6.4e-8, 4e-9)) == "(6.40 ± 0.40)·10⁻⁸"
    assert with_error((NAN, 1.0)) == "not known"
    assert with_error((3.14, NAN)) == "+3.1"
    assert significant(0.0) == "0"
    assert significant(6.36e-8) == "6.4·10⁻⁸"
    assert significant(1234.0) == "1200"
    assert significant(float("inf")) == "inf"
