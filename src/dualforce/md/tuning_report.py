"""The result of a search for timestep and inner steps: tables, advice and plot."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any, List, Mapping, Sequence, Tuple

from .acceptance import TOLERANCE, is_drifting
from .constant_energy import MIN_LENGTH_PS, Candidate
from .statistics import Estimate
from .tuning import MAX_FLUCTUATION, Timestep, Tuning


TABLE, PLOT = "tune.json", "tune.png"

GOOD, UNCLEAR, BAD = "#2166ac", "#8c8c8c", "#b2182b"
STYLES = ("-", "--", ":", "-.")

HEADER = (
    "step (fs)",
    "M",
    "outer (fs)",
    "length (ps)",
    "drift (meV/atom/ps)",
    "from its spread",
    "RMS (meV/atom)",
    "dT/dt (K/ps)",
    "ms/step",
    "x M=1",
    "x direct",
    "f_C-f_D (meV/Å)",
    "verdict",
)

TIMESTEPS = (
    "step (fs)",
    "std(Etot)/std(Ekin)",
    "M",
    "outer (fs)",
    "drift (meV/atom/ps)",
    "x M=1",
)


def describe(result: Tuning, tolerance: float = TOLERANCE) -> str:
    """All that there is to say, in lines.

    :param result: of :func:`~dualforce.md.tuning.tune`.
    :param tolerance: accepted difference in drift, in meV/atom/ps.
    """
    parts = (table(result), timesteps(result), predictions(result))
    return "\n".join([*filter(None, parts), advice(result, tolerance)])


def table(result: Tuning) -> str:
    """The candidates, one a line.

    :param result: of :func:`~dualforce.md.tuning.tune`.
    """
    return _aligned([HEADER, *(_row(each, result) for each in result.candidates)])


def timesteps(result: Tuning) -> str:
    """What was predicted for each timestep, a line for each: the largest number of
    inner steps with an acceptable drift, and its speed. Nothing where there is one
    timestep.

    :param result: of :func:`~dualforce.md.tuning.tune`.
    """
    if len(result.timesteps) < 2:
        return ""
    rows = [TIMESTEPS, *(_timestep_row(each) for each in result.timesteps)]
    return "Predicted for each timestep:\n" + _aligned(rows)


def _timestep_row(timestep: Timestep) -> Tuple[str, ...]:
    note = f" > {MAX_FLUCTUATION:g}" if timestep.is_too_long else ""
    known = (f"{timestep.fs:g}", f"{timestep.fluctuation:.3f}{note}")
    best = timestep.best
    if best is None:
        return (*known, "", "", "", "")
    return (
        *known,
        f"{best.n_inner}",
        f"{best.outer_step_fs:g}",
        f"{best.drift[0]:.2g} ± {best.drift[1]:.1g}",
        f"{best.speed:.2f}",
    )


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )


def predictions(result: Tuning) -> str:
    """What was predicted for each number of inner steps with the timestep that is
    recommended, in a line; nothing if the run was too short.

    :param result: of :func:`~dualforce.md.tuning.tune`.
    """
    known = [
        each
        for each in result.predictions
        if each.drift[0] == each.drift[0]
        and math.isclose(each.timestep_fs, result.timestep_fs)
    ]
    if not known:
        return ""
    values = ", ".join(f"{each.drift[0]:.2g} (M = {each.n_inner})" for each in known)
    return f"Predicted drift beyond that of M = 1, in meV/atom/ps: {values}"


def _row(candidate: Candidate, result: Tuning) -> Tuple[str, ...]:
    # The run with conservative forces evaluates both.
    is_first = candidate.n_inner == 1
    milliseconds = candidate.conservative_ms if is_first else candidate.ms_per_step
    return (
        f"{candidate.timestep_fs:g}",
        f"{candidate.n_inner}",
        f"{candidate.outer_step_fs:g}",
        f"{candidate.length_ps:.2f}",
        _estimate(candidate.drift, 2),
        _estimate(candidate.mean_drift, 2),
        f"{candidate.fluctuation:.3f}",
        _estimate(candidate.heating, 0),
        f"{milliseconds:.2f}",
        f"{result.speed(candidate):.2f}",
        f"{result.direct_ms_per_step / milliseconds:.2f}",
        "" if candidate.correction is None else f"{candidate.correction:.0f}",
        candidate.verdict,
    )


def _estimate(estimate: Estimate, digits: int) -> str:
    value, error = estimate
    known = f"{error:.{digits}f}" if error == error else "?"
    return f"{value:.{digits}f} ± {known}"


def advice(result: Tuning, tolerance: float = TOLERANCE) -> str:
    """What to do, in a sentence or two.

    :param result: of :func:`~dualforce.md.tuning.tune`.
    :param tolerance: accepted difference in drift, in meV/atom/ps.
    """
    first, best = result.candidates[0], result.best
    lines: List[str] = []
    if best is not None:
        lines.append(
            f"Use M = {best.n_inner} with steps of {best.timestep_fs:g} fs (--timestep "
            f"{best.timestep_fs:g} --inner {best.n_inner}): the fastest found whose "
            f"drift is within {tolerance:g} meV/atom/ps of that of M = 1."
        )
    elif first.is_bad:
        lines.append(
            "Even the conservative force alone (M = 1) fails: use a shorter "
            "--timestep, or a better model."
        )
    else:
        lines.append(_too_short(result.candidates, tolerance))
    if best is not None and best.n_inner > 1 and result.gain(best) <= 1.0:
        lines.append(
            "It is slower than the conservative force alone (M = 1) with steps of "
            f"{result.longest_fs:g} fs: the direct force does not pay."
        )
    if is_drifting(first.drift, tolerance):
        lines.append(
            f"The conservative force itself drifts by {first.drift[0]:.2g} "
            "meV/atom/ps: the timestep is too long for this model."
        )
    undecided = [
        f"M = {each.n_inner} with {each.timestep_fs:g} fs"
        for each in result.candidates[1:]
        if best is not None
        and each.verdict == "unclear"
        and each.outer_step_fs > best.outer_step_fs
    ]
    if undecided:
        lines.append(
            f"Not decided: {', '.join(undecided)}; longer runs (more --minutes) would "
            "tell."
        )
    limit = result.limit(tolerance)
    if limit is not None and limit.is_rough:
        lines.append(
            f"From M = {limit.n_inner} on, what heats are fast parts of the "
            "conservative force itself (kinks or noise) that the direct force has not: "
            "a better direct force allows no larger M. Kinks come rarely: a longer run "
            "may drift by several times what was found; where that matters, take half "
            "as many. With a thermostat more drift may be accepted (--tolerance)."
        )
    return "\n".join(lines)


def _too_short(candidates: Sequence[Candidate], tolerance: float) -> str:
    """Which run was too short for a recommendation, and what one takes."""
    first = candidates[0]
    unclear = [each for each in candidates[1:] if each.verdict == "unclear"]
    run = unclear[0] if first.is_short and unclear else first
    name = "the run with the conservative force alone" if run is first else "the run"
    problem = (
        f"shorter than {MIN_LENGTH_PS:g} ps, which decides nothing"
        if run.is_short
        else f"too short to know its drift to {tolerance:g} meV/atom/ps"
    )
    minutes = run.ms_per_fs / 60.0
    bad = [f"M = {each.n_inner}" for each in candidates[1:] if each.is_bad]
    failed = f"{', '.join(bad)} failed, and " if bad else ""
    return (
        f"Nothing can be recommended: {failed}{name} (M = {run.n_inner}, "
        f"{run.length_ps:.2g} ps) is {problem}. Give more --minutes: each ps of it "
        f"takes {minutes:.2g} minutes."
    )


def write(
    result: Tuning, folder: Path, settings: Mapping[str, object]
) -> Tuple[Path, Path]:
    """Write table and plot into a folder, which is made if it does not exist.

    :param result: of :func:`~dualforce.md.tuning.tune`.
    :param folder: where to write.
    :param settings: of the runs, for the file.
    :return: paths of ``tune.json`` and ``tune.png``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "settings": dict(settings),
        "recommended": result.recommended,
        "timestep_fs": result.timestep_fs,
        **dataclasses.asdict(result),
    }
    text = json.dumps(_finite(content), indent=2, allow_nan=False)
    (folder / TABLE).write_text(text + "\n", encoding="utf-8")
    _plot(result, folder / PLOT)
    return folder / TABLE, folder / PLOT


def _finite(value: Any) -> Any:
    """Numbers that JSON does not have as ``null``."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def _plot(result: Tuning, path: Path) -> None:
    """Drift and speed against the outer step, predicted and measured."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = result.candidates
    for row in rows:
        _draw_drift(left, row)
    for timestep, style in zip(result.timesteps, itertools.cycle(STYLES)):
        _draw_predictions(left, right, timestep.fs, style, result)
    left.axhline(rows[0].known_drift[0], color="gray", lw=0.8, zorder=0)
    left.set(ylabel="drift of the conserved quantity\n(meV/atom/ps)")
    left.set_yscale("symlog", linthresh=TOLERANCE)
    right.plot(
        [row.outer_step_fs for row in rows],
        [result.speed(row) for row in rows],
        "o",
        color="black",
        label="runs",
    )
    right.set(ylabel="speed relative to M = 1", ylim=(0.0, None))
    steps = [each.outer_step_fs for each in rows]
    steps += [each.outer_step_fs for each in result.predictions]
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        # also where runs were too short for any drift
        axes.set_xlim(0.8 * min(steps), 1.25 * max(steps))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("outer step (fs)")
        if result.best is not None:
            axes.axvline(result.best.outer_step_fs, color=GOOD, lw=6.0, alpha=0.15)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(loc="upper left", frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def _draw_predictions(
    left: Any, right: Any, timestep: float, style: str, result: Tuning
) -> None:
    found = [each for each in result.predictions if each.timestep_fs == timestep]
    steps = [each.outer_step_fs for each in found]
    own = result.candidates[0].known_drift[0]
    options = {"color": GOOD, "lw": 1.0, "ls": style}
    label = f"predicted, {timestep:g} fs"
    left.plot(steps, [own + each.drift[0] for each in found], label=label, **options)
    right.plot(steps, [each.speed for each in found], label=label, **options)


def _draw_drift(axes: Any, row: Candidate) -> None:
    color = GOOD if row.is_good else BAD if row.is_bad else UNCLEAR
    value, error = row.known_drift
    bar = error if error == error else None
    axes.errorbar(row.outer_step_fs, value, bar, fmt="o", color=color)
    first = row.n_inner == 1  # left of it is the axis, and a line goes through it
    name = f"M = {row.n_inner}" + ("" if row.is_good else f", {row.verdict}")
    axes.annotate(
        name,
        (row.outer_step_fs, value),
        xytext=(6, 2) if first else (-6, 0),
        textcoords="offset points",
        ha="left" if first else "right",
        va="bottom" if first else "center",
        fontsize=8,
        color=color,
    )
