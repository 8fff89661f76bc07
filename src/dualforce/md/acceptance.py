"""The rule by which a number of inner steps is accepted: a run at constant energy is
compared with that of the conservative force."""

from collections.abc import Sequence
from dataclasses import replace
from typing import List, Optional

from .constant_energy import MAX_DRIFT, Candidate
from .statistics import Estimate, difference


TOLERANCE = 0.2
"""Accepted difference in drift, in meV/atom/ps: it heats by less than 1 K/ps."""

MAX_GROWTH = 1.5
"""Correction at the end of a stable run, relative to the start, at most."""

MIN_HEATING = 20.0
"""In K/ps: less cannot be told from the exchange of kinetic and potential energy."""

SIGMAS = 2.0
"""Standard errors beyond which a difference counts."""

AGAINST = 3.0
"""Standard errors of the slope beyond which it counts against a spread that tells that
the drift is accepted: of the slopes of random walks one in twenty exceeds two."""


def judge(
    candidate: Candidate,
    conservative: Optional[Candidate],
    tolerance: float = TOLERANCE,
) -> str:
    """The rule by which a number of inner steps is accepted.

    It compares a run with that of the conservative force: the same start, the same
    length. Where the conservative force is too slow for that, the run is compared with
    exact conservation, drift and heating of zero. Differences count if they exceed two
    standard errors. A run whose own drift is not known well enough is good where the
    spread of its energy tells that the drift to expect is accepted
    (:func:`.statistics.power_from_spread`), unless the difference in drift exceeds
    :data:`AGAINST` standard errors. Energy that has changed by :data:`MAX_DRIFT` is a
    failure by itself.

    :param candidate: the run.
    :param conservative: the run with the conservative force alone; none if
        ``candidate`` is that run.
    :param tolerance: accepted difference in drift, in meV/atom/ps.
    :return: ``good``; ``unclear`` if the run is too short to tell; otherwise the first
        thing that is wrong: ``fails after ...``, ``drifts``, ``drift grows``,
        ``correction grows``, ``heats``.
    """
    if candidate.failed is not None:
        return f"fails after {candidate.length_ps:.2f} ps"
    if abs(candidate.drift[0]) * candidate.length_ps > 1000.0 * MAX_DRIFT:
        return "drifts"
    if candidate.is_short:
        return "unclear"
    if conservative is None:
        return "good" if candidate.drift[1] <= tolerance else "unclear"
    if conservative.is_short:
        exact = (0.0, 0.0)
        conservative = replace(
            conservative, drift=exact, late_drift=exact, heating=exact
        )
    drift, error = difference(candidate.drift, conservative.drift)
    late, late_error = difference(candidate.late_drift, conservative.late_drift)
    heating, heating_error = difference(candidate.heating, conservative.heating)
    growth = candidate.growth
    # Comparisons with an error that is not known (NaN) are false.
    is_told = most_drift(candidate) <= tolerance
    if abs(drift) > tolerance and abs(drift) > (AGAINST if is_told else SIGMAS) * error:
        return "drifts"
    if abs(late) > tolerance + SIGMAS * late_error:
        return "drift grows"
    if growth is not None and growth > MAX_GROWTH:
        return "correction grows"
    if heating > MIN_HEATING and heating > 2.0 * SIGMAS * heating_error:
        return "heats"
    is_known = abs(drift) <= tolerance and error <= tolerance
    return "good" if is_known or is_told else "unclear"


def most_drift(candidate: Candidate) -> float:
    """Largest drift to expect of a run from the spread of its energy, in
    meV/atom/ps; NaN if that is not known."""
    value, error = candidate.mean_drift
    return value + SIGMAS * error


def judge_all(
    candidates: Sequence[Candidate], tolerance: float = TOLERANCE
) -> List[Candidate]:
    """Candidates with their verdicts.

    :param candidates: the first one is that of the conservative force alone.
    :param tolerance: accepted difference in drift, in meV/atom/ps.
    """
    return [
        replace(
            each,
            verdict=judge(each, candidates[0] if index else None, tolerance),
        )
        for index, each in enumerate(candidates)
    ]


def largest_good(candidates: Sequence[Candidate]) -> Optional[Candidate]:
    """The last candidate up to which all are good.

    :param candidates: judged, in rising order of outer steps, that of the conservative
        force first.
    :return: none if not even the first one is good, or only too short to tell and no
        other one is.
    """
    best = None
    for candidate in candidates:
        if candidate.n_inner == 1 and candidate.is_short and not candidate.is_bad:
            continue
        if not candidate.is_good:
            break
        best = candidate
    return best


def is_drifting(drift: Estimate, tolerance: float = TOLERANCE) -> bool:
    """Whether energy changes by more than the tolerance, compared with nothing but its
    conservation.

    :param drift: in meV/atom/ps.
    :param tolerance: accepted drift, in meV/atom/ps.
    """
    return abs(drift[0]) > tolerance + SIGMAS * drift[1]
