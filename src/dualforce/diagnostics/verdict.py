"""What the numbers mean for somebody who wants to use the model."""

import math
from typing import List, Optional

from ase import units

from .findings import Findings, Speed
from .results import (
    CONSERVATIVE,
    DIRECT,
    FORCES,
    LANGEVIN,
    MTS,
    SVR,
    Asymmetry,
    EnergyErrors,
    Estimate,
    NVERun,
    NVTRun,
    RelaxationRate,
    Sentence,
)
from .wording import (
    elements_text,
    force_name,
    length_text,
    run_name,
    signed,
    significant,
    with_error,
)


GOOD, CAUTION, BAD = "good", "caution", "bad"

ZERO_ASYMMETRY = 1e-3
"""Asymmetry up to which a force counts as conservative: a quarter of that of the best
direct force of the reference (0.004, arXiv:2412.11569), which heats water visibly;
single precision alone gives some 1e-4."""

LARGE_ASYMMETRY = 0.01
"""Between the direct forces of the reference that heat water by 7 K/ps (0.004) and by
ten times that (0.015)."""

DRIFT_TOLERANCE = 0.2
"""In meV/atom/ps: heats by less than 1 K/ps, and is what ``dualforce tune`` accepts."""

MAX_DRIFT = 1.0
"""In meV/atom/ps: heats a picosecond by 4 K, more than any thermostat should have to
take out unnoticed."""

LONG_ENOUGH = 1.0
"""In ps: shorter runs miss instabilities that take their time."""

MAX_SPLIT = 3.0
"""In K: difference between temperatures of elements that one may live with, 1 % of room
temperature."""

MAX_SLOWING = 1.15
"""Factor of diffusion: more than runs of this length scatter by."""

MIN_DIFFUSION_LENGTH = 5.0
"""In ps: atoms of a liquid need some picoseconds to begin to diffuse."""

SIGMAS = 2.0
"""Errors by which a difference has to exceed zero to be called one."""

SHORT_SIGMAS = 5.0
"""The same for temperatures of short runs, whose blocks are correlated: errors come out
too small."""

FAIR_ENERGY_ERROR = 5.0
"""In meV/atom: about a fifth of the thermal energy at room temperature."""

HEAT_CAPACITY = 3.0 * units.kB * 1000.0
"""Of an atom of a classical solid or liquid, in meV/K."""


def choose_inner(findings: Findings) -> Optional[int]:
    """The largest number of inner steps up to which runs at constant energy are like
    that with the conservative force.

    :param findings: with the runs.
    :return: none if there is none, or nothing to compare with.
    """
    reference = findings.nve(CONSERVATIVE)
    if reference is None or reference.failed:
        return None
    chosen = None
    runs = [run for run in findings.of_type(NVERun) if run.forces == MTS]
    for run in sorted(runs, key=lambda run: run.n_inner):
        if not is_like(run, reference):
            break
        chosen = run.n_inner
    return chosen


def is_like(run: NVERun, reference: NVERun) -> bool:
    """Whether a run at constant energy drifts no more than another one.

    :param run: the run.
    :param reference: with the conservative force.
    """
    if run.failed:
        return False
    excess, error = _minus(run.drift, reference.drift)
    # An error that is not known (few records) excuses nothing.
    allowed = max(DRIFT_TOLERANCE, SIGMAS * error if math.isfinite(error) else 0.0)
    return abs(excess) <= allowed


def speed_up(findings: Findings) -> Optional[float]:
    """How many times faster than the conservative force alone the chosen inner steps
    are, by what evaluations cost; none where there are none.

    :param findings: of one model.
    """
    speeds, n_inner = findings.of_type(Speed), findings.n_inner
    if not speeds or n_inner is None:
        return None
    both, direct = speeds[0].ms[CONSERVATIVE], speeds[0].ms[DIRECT]
    return n_inner * both / ((n_inner - 1) * direct + both)


def _speed_text(findings: Findings) -> str:
    factor = speed_up(findings)
    return "" if factor is None else f" and {factor:.1f} times as fast"


def verdict(findings: Findings) -> List[Sentence]:
    """Advice, the most important first.

    :param findings: of one model.
    :return: sentences, each with the number it rests on.
    """
    return [
        *_asymmetry(findings),
        *_constant_energy(findings),
        *_inner_steps(findings),
        *_global_thermostat(findings),
        *_langevin(findings),
        *_relaxation(findings),
        *_ranking(findings),
    ]


def headline(findings: Findings) -> Sentence:
    """The verdict in one sentence.

    :param findings: of one model.
    """
    topic = "In short"
    if findings.n_done == 0:
        return Sentence(BAD, topic, "Nothing could be measured.")
    if findings.has_both:
        return _headline_of_both(findings, topic)
    kind = findings.kinds[0]
    run = findings.nve(kind)
    level = _level_of_forces(findings, kind)
    text = {
        GOOD: "These forces conserve energy: use them for any kind of simulation.",
        CAUTION: "These forces need care: see the figures below.",
        BAD: "These forces do not conserve energy, and there is no conservative force "
        "in the model to correct them with: do not run dynamics with them, and do not "
        "trust a thermostat to repair it.",
    }[level]
    if level == CAUTION and run is None:
        text = "Whether these forces may drive dynamics was not measured."
    return Sentence(level, topic, text)


def _headline_of_both(findings: Findings, topic: str) -> Sentence:
    conservative = findings.nve(CONSERVATIVE)
    if conservative is None:
        return Sentence(CAUTION, topic, "Whether to run dynamics was not measured.")
    if _nve_level(conservative) == BAD:
        return Sentence(
            BAD,
            topic,
            "Even the conservative force does not conserve energy with this timestep: "
            "shorten it, or train the model further.",
        )
    direct = findings.nve(DIRECT)
    alone = (
        "The direct force alone is not safe."
        if direct is None or _nve_level(direct) != GOOD
        else "The direct force alone conserves energy too, as far as this run can tell."
    )
    if findings.n_inner is None:
        return Sentence(
            CAUTION,
            topic,
            "Use the conservative force. The direct force is too far from it to speed "
            f"up dynamics. {alone}",
        )
    run = findings.nve(MTS, findings.n_inner)
    if run is None or not is_like(run, conservative):
        return Sentence(
            BAD,
            topic,
            f"M = {findings.n_inner} inner steps are too many: take fewer, or the "
            f"conservative force. {alone}",
        )
    text = (
        f"Run dynamics with both forces and M = {findings.n_inner} inner steps: it is "
        f"like the conservative force{_speed_text(findings)}. {alone}"
    )
    if run.length_ps >= LONG_ENOUGH:
        return Sentence(GOOD, topic, text)
    text += " These runs were short: confirm with the full preset before long ones."
    return Sentence(CAUTION, topic, text)


def _level_of_forces(findings: Findings, kind: str) -> str:
    run = findings.nve(kind)
    levels = [] if run is None else [_nve_level(run)]
    for asymmetry in findings.of_type(Asymmetry):
        if asymmetry.kind == kind and not is_symmetric(asymmetry):
            levels.append(BAD if asymmetry.value > LARGE_ASYMMETRY else CAUTION)
    if BAD in levels:
        return BAD
    return CAUTION if run is None or CAUTION in levels else GOOD


# ------------------------------------------------------------------------- sentences


def is_symmetric(asymmetry: Asymmetry) -> bool:
    """Whether a force counts as conservative."""
    noise = 0.0 if asymmetry.floor is None else 2.0 * asymmetry.floor
    return asymmetry.value <= max(ZERO_ASYMMETRY, noise)


def _asymmetry(findings: Findings) -> List[Sentence]:
    sentences = []
    for each in findings.of_type(Asymmetry):
        number = f"λ = {significant(each.value)}"
        name = force_name(each.kind)
        if is_symmetric(each):
            level, text = GOOD, f"The {name} is the gradient of an energy ({number})."
        elif each.value <= LARGE_ASYMMETRY:
            level = CAUTION
            text = (
                f"The {name} is not the gradient of any energy ({number}; 0 would be "
                "one), though not far from it."
            )
        else:
            level = BAD
            text = (
                f"The {name} is not the gradient of any energy ({number}; 0 would be "
                "one). It creates or destroys energy wherever atoms go."
            )
        # No more than a caution where there is another force to correct it with.
        if findings.has_both and level == BAD:
            level = CAUTION
        sentences.append(Sentence(level, "Is it a gradient?", text))
    return sentences


def _constant_energy(findings: Findings) -> List[Sentence]:
    topic = "Constant energy (NVE)"
    sentences = []
    for kind in findings.kinds:
        run = findings.nve(kind)
        if run is not None:
            text = _nve_text(run, f"the {force_name(kind)}")
            sentences.append(Sentence(_nve_level(run), topic, text))
    return sentences


def _nve_level(run: NVERun) -> str:
    if run.failed:
        return BAD
    drift, error = _power(run)
    if not math.isfinite(drift):
        return CAUTION
    error = error if math.isfinite(error) else 0.0
    if abs(drift) <= DRIFT_TOLERANCE:
        return GOOD if error <= DRIFT_TOLERANCE else CAUTION
    if abs(drift) > MAX_DRIFT and abs(drift) > SIGMAS * error:
        return BAD
    return CAUTION


def _power(run: NVERun) -> Estimate:
    """Drift in meV/atom/ps; without an energy, what the heating amounts to."""
    if math.isfinite(run.drift[0]):
        return run.drift
    return HEAT_CAPACITY * run.heating[0], HEAT_CAPACITY * run.heating[1]


def _nve_text(run: NVERun, name: str) -> str:
    if run.failed:
        return f"With {name} the run breaks down {run.failed}."
    drift, error = _power(run)
    if not math.isfinite(drift):
        return f"The run with {name} was too short to see a drift."
    rate = abs(drift) / HEAT_CAPACITY
    number = f"{with_error((drift, error))} meV per atom and ps"
    level = _nve_level(run)
    if level == GOOD:
        return f"Safe with {name}: energy drifts by {number} ({length_text(run)})."
    if abs(drift) <= SIGMAS * error or abs(drift) <= DRIFT_TOLERANCE:
        return (
            f"No drift seen with {name}, but {length_text(run)} cannot exclude one: "
            f"{number}. Use the full preset."
        )
    verb = "gains" if drift > 0.0 else "loses"
    return (
        f"Not safe with {name}: the system {verb} energy, {number}, enough to change "
        f"its temperature by {significant(rate)} K in every ps."
        if level == BAD
        else f"With {name} energy drifts by {number}, up to {significant(10 * rate)} K "
        "in 10 ps: shorten the timestep for long runs."
    )


def _inner_steps(findings: Findings) -> List[Sentence]:
    topic = "Multiple time steps (M)"
    reference = findings.nve(CONSERVATIVE)
    runs = [run for run in findings.of_type(NVERun) if run.forces == MTS]
    if not runs or reference is None:
        return []
    if findings.n_inner is None:
        worst = min(runs, key=lambda run: run.n_inner)
        return [Sentence(BAD, topic, _no_inner_text(worst, reference))]
    run = findings.nve(MTS, findings.n_inner)
    if run is None:
        return []
    excess = with_error(_minus(run.drift, reference.drift))
    number = f"drift beyond that of the conservative force: {excess} meV/atom/ps"
    if not is_like(run, reference):
        text = _no_inner_text(run, reference)
        return [Sentence(BAD, topic, text)]
    text = (
        f"M = {run.n_inner} is like the conservative force ({number})"
        f"{_speed_text(findings)}."
    )
    if run.length_ps < LONG_ENOUGH:
        text += (
            f" {length_text(run).capitalize()} shows gross failures only: confirm with "
            "`dualforce tune` or the full preset."
        )
        return [Sentence(CAUTION, topic, text)]
    return [Sentence(GOOD, topic, text)]


def _no_inner_text(run: NVERun, reference: NVERun) -> str:
    if run.failed:
        reason = f"the run breaks down {run.failed}"
    else:
        excess = with_error(_minus(run.drift, reference.drift))
        reason = f"it drifts by {excess} meV/atom/ps more than the conservative force"
    return (
        f"M = {run.n_inner} does not work: {reason}. The direct force differs too much "
        "from the conservative one, or the timestep is too long."
    )


def _global_thermostat(findings: Findings) -> List[Sentence]:
    topic = "Velocity rescaling (SVR)"
    sentences = []
    for run in findings.of_type(NVTRun):
        if run.thermostat != SVR or run.forces == CONSERVATIVE:
            continue
        name, level = run_name(run), GOOD
        if run.failed:
            text = f"With {name} the run breaks down {run.failed}."
            sentences.append(Sentence(BAD, topic, text))
            continue
        temperatures = elements_text(run)
        split = split_of(run)
        if split is None:
            continue
        if is_split(run):
            level = BAD
            text = (
                f"Hides rather than cures with {name}: the mean temperature is off by "
                f"{signed(run.deviation['all'][0])} K, while {temperatures}. "
                "Elements at different temperatures are not in equilibrium."
            )
        elif is_off(run):
            level = BAD
            text = (
                f"Cannot hold the temperature with {name}: it is off by "
                f"{with_error(run.deviation['all'])} K ({temperatures})."
            )
        elif not split[1] <= MAX_SPLIT:
            level = CAUTION
            text = (
                f"Not decided with {name}: {length_text(run)} is too short to tell "
                f"whether elements have the same temperature ({temperatures})."
            )
        else:
            text = (
                f"Safe with {name}: all elements have the same temperature "
                f"({temperatures})."
            )
        sentences.append(Sentence(level, topic, text))
    return sentences


def is_off(run: NVTRun) -> bool:
    """Whether the mean temperature is not the one asked for."""
    value, error = run.deviation.get("all", (math.nan, math.nan))
    return abs(value) > max(MAX_SPLIT, _sigmas(run) * _known(error))


def is_split(run: NVTRun) -> bool:
    """Whether elements have different temperatures."""
    split = split_of(run)
    if split is None:
        return False
    return split[0] > max(MAX_SPLIT, _sigmas(run) * _known(split[1]))


def _sigmas(run: NVTRun) -> float:
    return SIGMAS if run.length_ps >= LONG_ENOUGH else SHORT_SIGMAS


def split_of(run: NVTRun) -> Optional[Estimate]:
    """Difference between the hottest and the coldest element, in K; none for one
    element."""
    elements = [value for name, value in run.deviation.items() if name != "all"]
    if len(elements) < 2:
        return None
    return _minus(max(elements), min(elements))


def _langevin(findings: Findings) -> List[Sentence]:
    topic = "Langevin thermostat"
    sentences = []
    reference = diffusion_reference(findings)
    for run in findings.of_type(NVTRun):
        if run.thermostat != LANGEVIN:
            continue
        name = f"{run_name(run)} and τ = {run.tau_fs:g} fs"
        if run.failed:
            text = f"With {name} the run breaks down {run.failed}."
            sentences.append(Sentence(BAD, topic, text))
            continue
        if not run.deviation:
            continue
        slowing = slowing_of(run, reference)
        off = is_off(run) or is_split(run)
        warm = f"temperature off by {with_error(run.deviation['all'])} K"
        if off:
            level = BAD
            text = f"Too weak with {name}: {warm} ({elements_text(run)})."
        elif not run.deviation["all"][1] <= MAX_SPLIT:
            level = CAUTION
            text = (
                f"Not decided with {name}: {warm}, in {length_text(run)}. Strong "
                "friction holds any temperature, and slows all motion."
            )
        elif slowing is None:
            level = CAUTION
            text = (
                f"Holds the temperature with {name} ({warm}), at a price: strong "
                "friction slows diffusion. By how much needs the full preset."
            )
        elif slowing > MAX_SLOWING:
            level = CAUTION
            text = (
                f"Holds the temperature with {name} ({warm}), but diffusion is "
                f"{slowing:.1f} times slower: for averages over structures only, not "
                "for anything that depends on time."
            )
        else:
            level = GOOD
            text = f"Safe with {name}: {warm}, diffusion as without friction."
        sentences.append(Sentence(level, topic, text))
    return sentences


def diffusion_reference(findings: Findings) -> Optional[NVTRun]:
    """The run whose diffusion the others are compared with: conservative, with a
    thermostat that hardly disturbs it."""
    runs = [
        run
        for run in findings.of_type(NVTRun)
        if run.thermostat == SVR
        and run.forces in (CONSERVATIVE, MTS, FORCES)
        and not run.failed
        and run.length_ps >= MIN_DIFFUSION_LENGTH
    ]
    return runs[0] if runs else None


def slowing_of(run: NVTRun, reference: Optional[NVTRun]) -> Optional[float]:
    """How many times slower the slowest element diffuses than in the reference; none
    where that was not measured.

    :param run: the run.
    :param reference: run to compare with.
    """
    if reference is None or run.length_ps < MIN_DIFFUSION_LENGTH:
        return None
    ratios = [
        value / run.diffusion[name][0]
        for name, (value, _) in reference.diffusion.items()
        if name in run.diffusion and run.diffusion[name][0] > 0.0
    ]
    finite = [ratio for ratio in ratios if math.isfinite(ratio)]
    return max(finite) if finite else None


def _relaxation(findings: Findings) -> List[Sentence]:
    topic = "Relaxation"
    sentences = []
    rates = findings.of_type(RelaxationRate)
    for rate in rates:
        number = f"{rate.converged} of {rate.n_runs} runs with {rate.optimizer}"
        criterion = f"to {rate.fmax:g} eV/Å within {rate.max_steps} steps"
        name = force_name(rate.forces)
        other = [
            each
            for each in rates
            if each.optimizer == rate.optimizer and each.forces == CONSERVATIVE
        ]
        fewer = bool(other) and rate.converged < other[0].converged
        if rate.converged == rate.n_runs:
            level, verb = GOOD, "Safe"
        elif fewer or rate.converged < rate.n_runs / 2:
            level, verb = (BAD if rate.forces == DIRECT else CAUTION), "Unreliable"
        else:
            level, verb = CAUTION, "With care"
        text = f"{verb} with the {name}: {number} converge {criterion}."
        if level != GOOD and rate.forces == DIRECT and findings.has_both:
            text += " `dualforce relax` ends with the conservative force."
        sentences.append(Sentence(level, topic, text))
    return sentences


def _ranking(findings: Findings) -> List[Sentence]:
    topic = "Ranking structures"
    if not findings.has_energy:
        return [
            Sentence(
                BAD,
                topic,
                "There is no energy (0 of the model's outputs), so structures cannot "
                "be "
                "compared.",
            )
        ]
    for errors in findings.of_type(EnergyErrors):
        error = 1000.0 * errors.mae
        fair = error <= FAIR_ENERGY_ERROR
        text = (
            f"Energies of single structures are off by {significant(error)} meV/atom "
            f"on average ({errors.n_frames} labelled frames); they do not depend on "
            "which force moves the atoms. Compare only what differs by more."
        )
        return [Sentence(GOOD if fair else CAUTION, topic, text)]
    return []


def _known(error: float) -> float:
    return error if math.isfinite(error) else 0.0


def _minus(value: Estimate, reference: Estimate) -> Estimate:
    return value[0] - reference[0], math.hypot(value[1], reference[1])
