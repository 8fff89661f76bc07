"""What a report says, before anybody thinks of HTML."""

import platform
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Dict, List, Tuple

from .. import __version__
from ..diagnostics.cache import plain
from ..diagnostics.conditions import Conditions, Structures
from ..diagnostics.findings import Findings
from ..diagnostics.presets import Preset
from ..diagnostics.results import (
    Sentence,
)
from ..diagnostics.verdict import (
    headline,
    verdict,
)


GENERATOR = f"dualforce diagnose {__version__}"


@dataclass(frozen=True)
class Report:
    """All that was found out, and how."""

    findings: List[Findings]
    """For each model."""
    structures: Structures
    conditions: Conditions
    preset: Preset
    created: str
    """Date and time."""


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row."""

    header: List[str]
    rows: List[List[str]]
    caption: str = ""
    wordy: bool = False
    """Whether cells may be broken into lines."""


@dataclass(frozen=True)
class Picture:
    """A plot."""

    svg: str
    caption: str
    name: str = ""
    """Of what it shows, where there are several."""


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    text: List[str]
    tables: List[Table] = field(default_factory=list)
    figures: List[Picture] = field(default_factory=list)


@dataclass(frozen=True)
class Card:
    """The verdict on one model."""

    name: str
    headline: Sentence
    topics: List[Tuple[str, List[Sentence]]]


def cards(report: Report) -> List[Card]:
    """The verdict on each model, by topic."""
    result = []
    for findings in report.findings:
        topics: Dict[str, List[Sentence]] = {}
        for sentence in verdict(findings):
            topics.setdefault(sentence.topic, []).append(sentence)
        result.append(Card(findings.name, headline(findings), list(topics.items())))
    return result


def lead(report: Report) -> str:
    """What was judged, in a sentence."""
    names = ", ".join(findings.name for findings in report.findings)
    return f"{names}, judged on {describe_system(report)}. {report.created}."


def describe_system(report: Report) -> str:
    """The structure in words."""
    atoms = report.structures.start
    kind = "periodic" if atoms.pbc.any() else "not periodic"
    return f"{atoms.get_chemical_formula()} ({len(atoms)} atoms, {kind})"


def as_json(report: Report) -> Dict[str, Any]:
    """The same as numbers: everything that was measured, and the verdict."""
    models = []
    for findings in report.findings:
        model = plain(findings)
        model["headline"] = plain(headline(findings))
        model["verdict"] = plain(verdict(findings))
        models.append(model)
    return {
        "generator": GENERATOR,
        "created": report.created,
        "structures": {
            "source": report.structures.source,
            "n_total": report.structures.n_total,
            "start_index": report.structures.start_index,
            "frame_indices": report.structures.frame_indices,
            "formula": report.structures.start.get_chemical_formula(),
        },
        "conditions": plain(report.conditions),
        "preset": plain(report.preset),
        "versions": versions(),
        "models": models,
    }


def versions() -> Dict[str, str]:
    """Of what the numbers were made with."""
    packages = ("dualforce", "metatomic-torch", "metatrain", "torch", "ase", "numpy")
    return {"python": platform.python_version()} | {
        name: version(name) for name in packages
    }
