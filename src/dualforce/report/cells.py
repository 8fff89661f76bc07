"""Numbers as cells of tables."""

from collections.abc import Sequence
from typing import Any, List, Optional

from ..diagnostics.findings import Findings
from ..diagnostics.results import (
    Asymmetry,
    LoopWork,
    NVTRun,
)
from ..diagnostics.wording import force_name, significant, with_error
from . import plots
from .content import Report, Table


NOTHING = "–"

MAX_PANELS = 6
"""Of elements or pairs: more are not looked at."""


def name_cells(report: Report, findings: Findings, kind: str) -> List[str]:
    """The first cells of a row; models are named where there are several."""
    return [findings.name, kind] if len(report.findings) > 1 else [kind]


def name_header(report: Report, what: str = "force") -> List[str]:
    """Headers of the cells of :func:`name_cells`."""
    return ["model", what] if len(report.findings) > 1 else [what]


def run_cell(run: NVTRun) -> str:
    """Forces and thermostat of a run."""
    return plots.run_label(run).replace("\n", ", ")


def title_of(kind: str) -> str:
    """A kind of force, as the beginning of a sentence."""
    return force_name(kind).capitalize()


def model_name(report: Report, findings: Findings) -> str:
    """The name of a model, where there are several."""
    return findings.name if len(report.findings) > 1 else ""


def table(header: List[str], rows: Sequence[List[str]]) -> List[Table]:
    """A table, unless it is empty."""
    return [Table(header, list(rows))] if rows else []


def asymmetry_cell(each: Asymmetry) -> str:
    """An asymmetry with its error."""
    text = significant(each.value)
    if each.error is not None and each.error > 0.0:
        text = with_error((each.value, each.error)).lstrip("+")
    if each.floor is not None and each.value < 2.0 * each.floor:
        text += " (rounding)"
    return text


def work_cell(work: Optional[LoopWork]) -> str:
    """Work in meV."""
    if work is None:
        return NOTHING
    return with_error((1000.0 * work.work, 1000.0 * work.numerical_error))


def milli(value: float) -> str:
    """A number in thousandths."""
    return significant(1000.0 * value)


def first_names(groups: Any) -> List[str]:
    """Names that occur in any of some groups, the first few."""
    names = dict.fromkeys(name for group in groups for name in group)
    return list(names)[:MAX_PANELS]
