"""Plots, as SVG to be put into a page.

Each is a single panel, so that a page can put them beside each other or, on a phone,
below each other.
"""

import io
import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Dict, List, Optional, Tuple, Union

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..diagnostics.findings import Findings
from ..diagnostics.results import (
    CONSERVATIVE,
    DIRECT,
    FORCES,
    LANGEVIN,
    MTS,
    SVR,
    Asymmetry,
    LoopWork,
    NVERun,
    NVTRun,
    RelaxationRate,
)


COLORS = {
    DIRECT: "#d55e00",
    CONSERVATIVE: "#0072b2",
    MTS: "#009e73",
    FORCES: "#7a4b94",
}
"""Of kinds of force, everywhere: told apart by colour-blind people too (Okabe and Ito;
the last is a darker purple)."""

OTHERS = ["#000000", "#56b4e9", "#e69f00", "#cc79a7", "#8c6d31", "#6b6ecf"]
"""Of what is no kind of force: pairs of elements."""

MARKERS = "osD^vP*X"

STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10.0,
    "axes.labelsize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelcolor": "#222222",
    "axes.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "lines.linewidth": 1.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "dualforce",
}

SIZE = (4.6, 3.1)
"""In inches."""

MAX_POINTS = 600
"""Of a curve: more cannot be seen, and make the page heavy."""

MAX_WAVENUMBER = 4500.0
"""In 1/cm: no bond swings faster."""

_numbers = itertools.count(1)


def _draw(
    paint: Callable[[Axes], None], xlabel: str, ylabel: str, height: float = SIZE[1]
) -> str:
    """A panel.

    :param paint: draws into axes.
    :param xlabel: label of the horizontal axis.
    :param ylabel: label of the vertical axis.
    :param height: in inches.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(SIZE[0], height), layout="constrained")
        axes = figure.subplots()
        axes.set(xlabel=xlabel, ylabel=ylabel)
        paint(axes)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _for_page(buffer.getvalue())


def _for_page(text: str) -> str:
    """A picture that shares a page with others: without head, with names of its own."""
    text = text[text.index("<svg") :]
    prefix = f"plot{next(_numbers)}-"
    for before in ('id="', "url(#", 'href="#'):
        text = text.replace(before, before + prefix)
    # They are the size of paper; the page decides.
    return re.sub(r'(<svg[^>]*?) height="[^"]*"([^>]*?) width="[^"]*"', r"\1\2", text)


# ---------------------------------------------------------------------------- Jacobian


def pair_asymmetry(asymmetry: Asymmetry) -> str:
    """Asymmetry of pairs of atoms against their distance."""

    def paint(axes: Axes) -> None:
        for name, color, marker, bins in _by_pair(asymmetry):
            axes.plot(
                [each.distance for each in bins],
                [each.asymmetry for each in bins],
                marker=marker,
                ms=4.0,
                color=color,
                label=name,
            )
        axes.axhline(1.0, color="#888888", lw=0.8, ls=":")
        axes.set_ylim(0.0, 1.05)
        axes.set_xlim(left=0.0)
        axes.legend(loc="upper left")

    return _draw(paint, "distance of the pair / Å", "asymmetry of the pair")


def pair_norm(asymmetry: Asymmetry) -> str:
    """How strongly the force on one atom depends on another, against distance."""

    def paint(axes: Axes) -> None:
        for name, color, marker, bins in _by_pair(asymmetry):
            distances = [each.distance for each in bins]
            style: Dict[str, Any] = {"color": color, "marker": marker, "ms": 4.0}
            axes.plot(distances, [each.norm for each in bins], label=name, **style)
            style |= {"ls": "--", "lw": 1.0, "ms": 2.5}
            axes.plot(
                distances, [_or_none(x.antisymmetric_norm) for x in bins], **style
            )
        axes.set_yscale("log")
        axes.set_xlim(left=0.0)
        axes.plot([], [], "-", color="#555555", label="all")
        axes.plot([], [], "--", lw=1.0, color="#555555", label="antisymmetric")
        axes.legend(loc="upper right")

    return _draw(paint, "distance of the pair / Å", "derivative of the force / eV Å⁻²")


def _by_pair(asymmetry: Asymmetry) -> Iterable[Tuple[str, str, str, List[Any]]]:
    names = list(dict.fromkeys(each.elements for each in asymmetry.pairs))
    for name, color, marker in zip(
        names, itertools.cycle(OTHERS), itertools.cycle(MARKERS), strict=False
    ):
        bins = [each for each in asymmetry.pairs if each.elements == name]
        yield name, color, marker, bins


def loops(works: Sequence[LoopWork]) -> str:
    """Work along a closed loop, for each kind of force."""

    def paint(axes: Axes) -> None:
        for work in works:
            axes.plot(
                work.angles,
                [1000.0 * value for value in work.cumulative],
                color=COLORS[work.kind],
                label=work.kind,
            )
        axes.axhline(0.0, color="#888888", lw=0.8, ls=":")
        axes.set_xticks([0, 90, 180, 270, 360])
        axes.legend()

    return _draw(paint, "way along the loop / degrees", "work so far / meV")


# --------------------------------------------------------------------- constant energy


def temperatures(runs: Sequence[NVERun], chosen: Optional[int]) -> str:
    """Temperature at constant energy."""
    return _series(runs, chosen, lambda run: run.temperature, "temperature / K")


def conserved(runs: Sequence[NVERun], chosen: Optional[int]) -> str:
    """Conserved quantity at constant energy."""
    label = "total energy / meV per atom"
    return _series(runs, chosen, lambda run: run.conserved, label)


def _series(
    runs: Sequence[NVERun],
    chosen: Optional[int],
    values: Callable[[NVERun], Sequence[float]],
    label: str,
) -> str:
    def paint(axes: Axes) -> None:
        others = itertools.cycle(["--", ":", "-."])
        for run in runs:
            main = run.forces != MTS or run.n_inner == chosen
            times, series = _thin(run.times), _thin(values(run))
            if len(times) != len(series) or not series:
                continue
            axes.plot(
                times,
                series,
                color=COLORS[run.forces],
                ls="-" if main else next(others),
                lw=1.7 if main else 1.1,
                label=f"M = {run.n_inner}" if run.forces == MTS else run.forces,
            )
            if run.failed:
                axes.plot(times[-1], series[-1], "x", color=COLORS[run.forces], ms=8.0)
        axes.set_xlim(left=0.0)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.legend()

    return _draw(paint, "time / ps", label)


# ---------------------------------------------------------------- constant temperature


def deviations(runs: Sequence[NVTRun]) -> str:
    """Temperatures of the elements with each thermostat, relative to the target."""
    elements = list(dict.fromkeys(name for run in runs for name in run.deviation))

    def paint(axes: Axes) -> None:
        spread = 0.5 / max(1, len(elements))
        for row, run in enumerate(runs):
            for index, name in enumerate(elements):
                if name not in run.deviation:
                    continue
                value, error = run.deviation[name]
                axes.errorbar(
                    value,
                    row + spread * (index - 0.5 * (len(elements) - 1)),
                    xerr=error if math.isfinite(error) else None,
                    fmt=MARKERS[index % len(MARKERS)],
                    ms=6.0 if name == "all" else 5.0,
                    mfc="white" if name == "all" else COLORS[run.forces],
                    color=COLORS[run.forces],
                    lw=1.2,
                )
        for index, name in enumerate(elements):
            axes.plot(
                [],
                [],
                MARKERS[index % len(MARKERS)],
                color="#555555",
                mfc="white" if name == "all" else "#555555",
                label="all atoms" if name == "all" else name,
            )
        axes.axvline(0.0, color="#555555", lw=0.9)
        axes.set_yticks(range(len(runs)), [run_label(run) for run in runs])
        axes.set_ylim(len(runs) - 0.5, -0.5)
        axes.set_xscale("symlog", linthresh=10.0)
        axes.set_xticks([-1000, -100, -10, 0, 10, 100, 1000])
        axes.set_xticklabels(["−1000", "−100", "−10", "0", "10", "100", "1000"])
        axes.set_xlim(*_symmetric_limits(runs))
        axes.grid(visible=False, axis="y")
        axes.legend(
            loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=max(1, len(elements))
        )

    height = 1.2 + 0.45 * len(runs)
    return _draw(paint, "temperature minus target / K", "", height)


def _symmetric_limits(runs: Sequence[NVTRun]) -> Tuple[float, float]:
    values = [
        abs(value) + (error if math.isfinite(error) else 0.0)
        for run in runs
        for value, error in run.deviation.values()
    ]
    largest = 1.4 * max([10.0, *values])
    return -largest, largest


def run_label(run: NVTRun) -> str:
    """Thermostat and forces of a run, in two lines."""
    names = {SVR: "SVR", LANGEVIN: "Langevin"}
    forces = f"M = {run.n_inner}" if run.forces == MTS else run.forces
    return f"{forces}\n{names[run.thermostat]} {run.tau_fs:g} fs"


def spectra(runs: Sequence[NVTRun], element: str) -> str:
    """Spectrum of the velocities of an element."""

    def paint(axes: Axes) -> None:
        for run, style in _styled([r for r in runs if element in r.spectrum]):
            shown = [x for x in run.frequencies if x <= MAX_WAVENUMBER]
            values = run.spectrum[element][: len(shown)]
            # The area is one: per 1000/cm the numbers are of order one.
            values = [1000.0 * value for value in values]
            axes.plot(_thin(shown), _thin(values), **style)
        axes.set_xlim(0.0, MAX_WAVENUMBER)
        axes.set_ylim(bottom=0.0)
        axes.legend()

    return _draw(paint, "wavenumber / cm⁻¹", f"spectrum of {element} / 10⁻³ cm")


def autocorrelations(runs: Sequence[NVTRun], element: str) -> str:
    """Velocity autocorrelation of an element."""

    def paint(axes: Axes) -> None:
        for run, style in _styled([r for r in runs if element in r.autocorrelation]):
            series = run.autocorrelation[element]
            axes.plot(_thin(run.lags[: len(series)]), _thin(series), **style)
        axes.axhline(0.0, color="#888888", lw=0.8, ls=":")
        axes.set_xlim(left=0.0)
        axes.legend()

    return _draw(paint, "time / ps", f"velocity autocorrelation of {element}")


def distributions(runs: Sequence[NVTRun], pair: str) -> str:
    """Radial distribution function of a pair of elements."""

    def paint(axes: Axes) -> None:
        for run, style in _styled([r for r in runs if pair in r.rdf]):
            series = run.rdf[pair]
            axes.plot(run.distances[: len(series)], series, **style)
        axes.axhline(1.0, color="#888888", lw=0.8, ls=":")
        axes.set_xlim(left=0.0)
        _limit_first_peak(axes)
        axes.legend()

    return _draw(paint, "distance / Å", f"g(r), {pair}")


def _limit_first_peak(axes: Axes) -> None:
    """Bonds inside molecules are far higher than the rest, which is what is looked
    at."""
    axes.set_ylim(0.0, min(axes.get_ylim()[1], 4.5))


def diffusion(runs: Sequence[NVTRun]) -> str:
    """Diffusion coefficients of the elements."""
    elements = list(dict.fromkeys(name for run in runs for name in run.diffusion))

    def paint(axes: Axes) -> None:
        for row, run in enumerate(runs):
            for index, name in enumerate(elements):
                if name not in run.diffusion:
                    continue
                value, error = run.diffusion[name]
                axes.errorbar(
                    value,
                    row + 0.2 * (index - 0.5 * (len(elements) - 1)),
                    xerr=error if math.isfinite(error) else None,
                    fmt=MARKERS[1 + index % (len(MARKERS) - 1)],
                    color=COLORS[run.forces],
                    ms=5.0,
                )
        for index, name in enumerate(elements):
            marker = MARKERS[1 + index % (len(MARKERS) - 1)]
            axes.plot([], [], marker, color="#555555", label=name)
        axes.set_yticks(range(len(runs)), [run_label(run) for run in runs])
        axes.set_ylim(len(runs) - 0.5, -0.5)
        axes.set_xlim(left=0.0)
        axes.grid(visible=False, axis="y")
        axes.legend(
            loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=max(1, len(elements))
        )

    height = 1.2 + 0.45 * len(runs)
    return _draw(paint, "diffusion coefficient / Å² ps⁻¹", "", height)


def _styled(runs: Sequence[NVTRun]) -> Iterable[Tuple[NVTRun, Dict[str, Any]]]:
    """Runs and how their curves look."""
    dashes = itertools.cycle(["--", ":", "-."])
    for run in runs:
        yield (
            run,
            {
                "color": COLORS[run.forces],
                "ls": "-" if run.thermostat == SVR else next(dashes),
                "lw": 1.4,
                "label": run_label(run).replace("\n", ", "),
            },
        )


# -------------------------------------------------------------------------- relaxation


def relaxations(findings: Findings) -> str:
    """Share of relaxations that converge."""
    rates = findings.of_type(RelaxationRate)

    def paint(axes: Axes) -> None:
        for row, rate in enumerate(rates):
            share = 100.0 * rate.converged / rate.n_runs
            axes.barh(row, share, color=COLORS[rate.forces], height=0.55)
            steps = rate.median_steps
            text = f"{rate.converged} of {rate.n_runs}"
            if steps is not None:
                text += f", {steps:.0f} steps"
            inside = share > 60.0
            axes.annotate(
                text,
                (share, row),
                xytext=(-6 if inside else 6, 0),
                textcoords="offset points",
                ha="right" if inside else "left",
                va="center",
                color="white" if inside else "#222222",
                fontsize=9.0,
            )
        axes.set_yticks(
            range(len(rates)), [f"{rate.forces}\n{rate.optimizer}" for rate in rates]
        )
        axes.set_ylim(len(rates) - 0.5, -0.5)
        axes.set_xlim(0.0, 100.0)
        axes.grid(visible=False, axis="y")

    return _draw(paint, "converged runs / %", "", 1.0 + 0.45 * len(rates))


# ------------------------------------------------------------------------------ helpers


Numbers = Sequence[float]


def _thin(values: Numbers) -> Union[Numbers, List[float]]:
    """At most so many values, evenly spaced."""
    step = -(-len(values) // MAX_POINTS)
    return values[:: max(1, step)]


def _or_none(value: float) -> float:
    """A value for a logarithmic axis, on which zero has no place."""
    return value if value > 0.0 else math.nan
