"""Plots as SVG for a page: single panels, which a page can put beside each other or, on
a phone, below each other."""

import io
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, List


if TYPE_CHECKING:
    from matplotlib.axes import Axes


COLORS = {
    "direct": "#d55e00",
    "conservative": "#0072b2",
    "MTS": "#009e73",
    "forces": "#7a4b94",
}
"""Colours of kinds of force and run, told apart by colour-blind people too (Okabe and
Ito; the last is a darker purple)."""

OTHER_COLORS = ["#000000", "#56b4e9", "#e69f00", "#cc79a7", "#8c6d31", "#6b6ecf"]
"""Of pairs of elements."""

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

_numbers = itertools.count(1)


def panel(
    paint: "Callable[[Axes], None]", xlabel: str, ylabel: str, height: float = SIZE[1]
) -> str:
    """A plot.

    :param paint: draws into axes.
    :param xlabel: label of the horizontal axis.
    :param ylabel: label of the vertical axis.
    :param height: in inches.
    :return: an SVG element.
    """
    import matplotlib
    from matplotlib.figure import Figure

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


def rows_panel(
    paint: "Callable[[Axes], None]",
    labels: Sequence[str],
    xlabel: str,
    legend: Sequence[str] = (),
) -> str:
    """A plot with a row for each label, and a legend of markers above.

    :param paint: draws into axes; row ``i`` is at height ``i``.
    :param labels: labels of the rows, from the top.
    :param xlabel: label of the horizontal axis.
    :param legend: what the markers mean, in the order of :data:`MARKERS`.
    """

    def draw(axes: "Axes") -> None:
        paint(axes)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        for index, name in enumerate(legend):
            marker = MARKERS[index % len(MARKERS)]
            axes.plot([], [], marker, color="#555555", label=name)
        if legend:
            axes.legend(
                loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(legend)
            )

    return panel(draw, xlabel, "", 1.1 + 0.45 * len(labels))


def thin(values: Sequence[float]) -> List[float]:
    """At most :data:`MAX_POINTS` values, evenly spaced."""
    return list(values[:: max(1, -(-len(values) // MAX_POINTS))])


def dashes() -> Iterator[str]:
    """Line styles to tell curves of one colour apart."""
    return itertools.cycle(["--", ":", "-."])
