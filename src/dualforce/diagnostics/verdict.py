"""Conclusions about one model."""

from typing import List

from .content import BAD, CAUTION, GOOD, Sentence
from .findings import CONSERVATIVE, DIRECT, MTS, Findings
from .measures import MEASURES
from .measures.gradient import GradientCheck
from .measures.jacobian import Asymmetry
from .measures.nve import (
    find_run,
    inner_steps,
    is_undecided,
    level_of,
    verdict_of,
)
from .measures.speed import speed_up


TOPIC = "In short"

_ALONE = {
    GOOD: " The direct force alone conserves energy too, as far as this run tells.",
    CAUTION: " Whether the direct force alone is safe was not decided.",
    BAD: " The direct force alone is not safe.",
}


def verdict(findings: Findings) -> List[Sentence]:
    """Sentences of all measures, each with the number it rests on.

    :param findings: results of a model.
    """
    return [x for measure in MEASURES for x in measure.sentences(findings)]


def headline(findings: Findings) -> Sentence:
    """The verdict in one sentence.

    :param findings: results of a model.
    """
    if findings.n_done == 0:
        return Sentence(BAD, TOPIC, "Nothing could be measured.")
    if any(check.wrong for check in findings.of_type(GradientCheck)):
        text = (
            "The forces are not the derivative of the energy: something is wrong in "
            "the model or its interface. Correct that first."
        )
        return Sentence(BAD, TOPIC, text)
    if findings.has_both:
        return _headline_of_both(findings)
    return _headline_of_one(findings)


def _headline_of_one(findings: Findings) -> Sentence:
    run = find_run(findings, findings.kinds[0])
    levels = [CAUTION] if run is None else [level_of(findings, run)]
    levels += [BAD for x in findings.of_type(Asymmetry) if not x.is_symmetric]
    if BAD in levels:
        text = (
            "These forces do not conserve energy, and there is no conservative force "
            "in the model to correct them with: do not run dynamics with them, and do "
            "not rely on a thermostat to repair it."
        )
        return Sentence(BAD, TOPIC, text)
    if run is None:
        text = "Whether these forces may drive dynamics was not measured."
        return Sentence(CAUTION, TOPIC, text)
    if CAUTION in levels:
        text = "Whether these forces conserve energy was not decided: run for longer."
        return Sentence(CAUTION, TOPIC, text)
    text = "These forces conserve energy: use them for any kind of simulation."
    return Sentence(GOOD, TOPIC, text)


def _headline_of_both(findings: Findings) -> Sentence:
    control, direct = find_run(findings, CONSERVATIVE), find_run(findings, DIRECT)
    if control is None:
        text = "Whether to run dynamics was not measured."
        return Sentence(CAUTION, TOPIC, text)
    if level_of(findings, control) == BAD:
        text = (
            "Even the conservative force does not conserve energy with this timestep: "
            "shorten it, or train the model further."
        )
        return Sentence(BAD, TOPIC, text)
    alone = "" if direct is None else _ALONE[level_of(findings, direct)]
    n_inner = inner_steps(findings)
    run = n_inner and find_run(findings, MTS, n_inner)
    if not n_inner or not run:
        text = "Use the conservative force. " + (
            "Whether the direct force can speed up dynamics was not decided: run for "
            "longer."
            if is_undecided(findings)
            else "The direct force is too far from it to speed up dynamics."
        )
        return Sentence(CAUTION, TOPIC, text + alone)
    result = verdict_of(findings, run)
    if result == "unclear":
        text = (
            f"Whether M = {n_inner} inner steps work was not decided: run for longer."
        )
        return Sentence(CAUTION, TOPIC, text + alone)
    if result != "good":
        text = (
            f"M = {n_inner} inner steps are too many: take fewer, or the conservative "
            "force."
        )
        return Sentence(BAD, TOPIC, text + alone)
    factor = speed_up(findings, n_inner)
    speed = "" if factor is None else f" and {factor:.1f} times as fast"
    text = (
        f"Run dynamics with both forces and M = {n_inner} inner steps: it is like the "
        f"conservative force{speed}."
    )
    return Sentence(GOOD, TOPIC, text + alone)
