"""What ``dualforce accelerate`` has found, and its report."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Dict, List, Optional

from .plan import Plan


REPORT, PLOT = "report.md", "corrections.png"

FOLLOWS = 0.04
"""A student follows its teacher where the correction is smaller than this share of the
forces. It meets no more structures then, and learns from those there are in the time
that is left."""

STRUCTURE = "structure.extxyz"
"""The first of the user's structures, in the folder."""

COLLECTED = "collected"
"""In the place of a temperature: structures that runs have collected."""


class AccelerationError(RuntimeError):
    """There is no pair, or no new one; the message says why, and what to do."""


@dataclass(frozen=True)
class RoundResult:
    """What a round has done."""

    frames: int
    """Structures that the student has learnt from."""
    new: int
    """Of these, met in this round."""
    calls: int
    """Evaluations of the teacher."""
    correction: Dict[str, float]
    """RMS of conservative minus direct force of the student before this round, by
    temperature in K or for :data:`COLLECTED` structures, in eV/Å; empty in the first
    round."""
    forces: Dict[str, float]
    """RMS of the forces, likewise."""
    follows: bool
    """Whether the student before this round was good enough, which makes it the last
    one, with all the time that is left for the training."""


@dataclass(frozen=True)
class Check:
    """How many inner steps a pair tolerates at a temperature."""

    temperature: float
    """In K."""
    timestep: float
    """In fs."""
    n_inner: Optional[int]
    """Largest number of inner steps; none where nothing can be recommended."""
    drift: Optional[float]
    """To expect of the recommended run, in meV/atom/ps."""
    correction: Optional[float]
    """RMS of conservative minus direct force there, in meV/Å."""
    speed: Optional[float]
    """Relative to the teacher alone with the longest timestep that suits it."""
    advice: str
    decided: bool
    """Whether the runs were long enough to tell."""

    @property
    def holds(self) -> bool:
        """Whether the pair may be run with more than one inner step, and pays."""
        is_faster = self.speed is None or self.speed > 1.0
        return self.n_inner is not None and self.n_inner > 1 and is_faster


@dataclass(frozen=True)
class Acceleration:
    """A pair, and how it was found."""

    folder: Path
    teacher: str
    plan: Plan
    rounds: List[RoundResult]
    checks: List[Check]
    """One for each temperature."""

    @property
    def timestep(self) -> float:
        """Inner step that holds at every temperature where more than one does, in fs;
        that of the sampling where there is no such temperature."""
        found = [check.timestep for check in self.checks if check.holds]
        return min(found, default=self.plan.timestep)

    @property
    def n_inner(self) -> Optional[int]:
        """Inner steps of that length that hold at every temperature where any above one
        do."""
        outer = [c.n_inner * c.timestep for c in self.checks if c.holds and c.n_inner]
        return math.floor(min(outer) / self.timestep + 1e-6) if outer else None

    @property
    def temperature(self) -> Optional[float]:
        """Highest temperature at which more than one inner step holds, in K."""
        return max((c.temperature for c in self.checks if c.holds), default=None)

    @property
    def correction(self) -> Optional[float]:
        """RMS of conservative minus direct force at that temperature, in meV/Å."""
        found = [c for c in self.checks if c.temperature == self.temperature]
        return found[0].correction if found else None

    @property
    def has_failed(self) -> bool:
        """Whether it is known that no number of inner steps above one holds and pays
        at any temperature."""
        return all(check.decided and not check.holds for check in self.checks)


def write_report(result: Acceleration) -> Path:
    """Write ``report.md`` and its plot into the folder.

    :param result: of :func:`~dualforce.accelerate`.
    :return: the file.
    """
    path = result.folder / REPORT
    if _has_corrections(result):
        _plot_corrections(result, result.folder / PLOT)
    path.write_text("\n\n".join(_parts(result)) + "\n", encoding="utf-8")
    return path


def summary(result: Acceleration) -> List[str]:
    """What to know of a pair, in lines."""
    lines = [_sentence(check) for check in result.checks]
    if not (result.has_failed or all(check.decided for check in result.checks)):
        lines.append(
            "What is not decided is found by `dualforce tune "
            f"{result.folder} --temperature T --minutes N`"
        )
    if result.n_inner is not None:
        lines.append(
            f"Run it: dualforce md {result.folder} (steps of {result.timestep:g} fs, "
            f"M = {result.n_inner})"
        )
    return lines


def _parts(result: Acceleration) -> List[str]:
    plan = result.plan
    return [
        f"# {result.teacher}, accelerated",
        "\n".join(f"- {line}" for line in summary(result)),
        "## The student",
        f"An evaluation of the teacher takes {1000.0 * plan.teacher_seconds:.3g} ms. "
        "Structures from runs at "
        f"{', '.join(f'{t:g}' for t in plan.temperatures)} K; the correction is the "
        "RMS of conservative minus direct force on structures the pair has met, by "
        "the student of the round before, in meV/Å and as a share of the forces.",
        _rounds_table(result.rounds, plan.temperatures),
        *([f"![corrections]({PLOT})"] if _has_corrections(result) else []),
        "## Inner steps",
        _checks_table(result.checks),
        *(
            f"{check.temperature:g} K: {check.advice}\n\n"
            f"![drift and speed](tune-{check.temperature:g}K/tune.png)"
            for check in result.checks
        ),
        "## Compared with the teacher",
        "Temperatures of the elements, radial distributions, diffusion and spectra of "
        "longer runs of pair and teacher, side by side: `dualforce diagnose "
        f"{result.folder} {result.folder / STRUCTURE} --temperature "
        f"{result.temperature or plan.temperatures[0]:g} -o diagnosis`.",
    ]


def _sentence(check: Check) -> str:
    where = f"At {check.temperature:g} K"
    if not check.decided:
        return f"{where} the time was too short to tell. {check.advice}"
    if not check.holds:
        return f"{where} no M above 1 conserves energy and is faster. {check.advice}"
    return (
        f"{where} M = {check.n_inner} with steps of {check.timestep:g} fs is "
        f"{check.speed:.1f} times as fast as the teacher alone, and energy drifts by "
        f"{check.drift:.2g} meV/atom/ps."
    )


def _rounds_table(rounds: Sequence[RoundResult], temperatures: Sequence[float]) -> str:
    has_collected = any(COLLECTED in each.correction for each in rounds)
    keys = [f"{t:g}" for t in temperatures] + [COLLECTED] * has_collected
    header = ["round", "structures", "new", "teacher calls"]
    rows = []
    for number, each in enumerate(rounds, 1):
        cells = [f"{number}", f"{each.frames}", f"{each.new}", f"{each.calls}"]
        rows.append(cells + [_correction(each, key) for key in keys])
    header += [f"correction at {t:g} K" for t in temperatures]
    return _table(header + ["correction, collected"] * has_collected, rows)


def _has_corrections(result: Acceleration) -> bool:
    return any(each.correction for each in result.rounds)


def _plot_corrections(result: Acceleration, path: Path) -> None:
    """Share of the forces that the student had wrong, by round and temperature."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.1), layout="constrained")
    axes = figure.subplots()
    keys = dict.fromkeys(key for each in result.rounds for key in each.correction)
    for key in keys:
        known = [
            # learnt from before this round
            (before.frames, 100.0 * each.correction[key] / each.forces[key])
            for before, each in pairwise(result.rounds)
            if key in each.correction
        ]
        label = key if key == COLLECTED else f"{key} K"
        axes.plot(*zip(*known, strict=True), "o-", label=label)
    axes.axhline(100.0 * FOLLOWS, color="gray", lw=0.8, ls="--", label="good enough")
    axes.set(
        xlabel="structures that the student had learnt from",
        ylabel="correction (% of the forces)",
        ylim=(0.0, None),
    )
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def _correction(result: RoundResult, key: str) -> str:
    if key not in result.correction:
        return ""
    size = result.correction[key]
    return f"{1000.0 * size:.0f} ({100.0 * size / result.forces[key]:.0f} %)"


def _checks_table(checks: Sequence[Check]) -> str:
    rows = [
        [
            f"{check.temperature:g}",
            f"{check.timestep:g}",
            f"{check.n_inner or 'none'}",
            _number(check.drift, ".2g"),
            _number(check.correction, ".0f"),
            _number(check.speed, ".2f"),
        ]
        for check in checks
    ]
    header = ["temperature, K", "step, fs", "M", "drift, meV/atom/ps"]
    return _table([*header, "correction, meV/Å", "speed"], rows)


def _number(value: Optional[float], style: str) -> str:
    return "" if value is None else f"{value:{style}}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
