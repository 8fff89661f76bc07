"""Reports: one page of HTML and one file of JSON."""

import json
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Dict, List, Tuple

from .. import __version__
from .cache import plain, write_text
from .content import Section, Sentence, Table
from .findings import FAILED, Findings
from .measure import Measure
from .measures import MEASURES
from .measures.nve import inner_steps
from .setup import Conditions, Structures
from .verdict import headline, verdict


PAGE, NUMBERS = "report.html", "report.json"

MARK = "dualforce diagnose"
"""What our files say they were written by."""

GENERATOR = f"{MARK} {__version__}"

_BADGES = {"good": "✓ safe", "caution": "! care", "bad": "✕ not safe"}


@dataclass(frozen=True)
class Report:
    """All that was found out about some models, and how."""

    findings: List[Findings]
    """One for each model."""
    structures: Structures
    conditions: Conditions
    created: str
    """Date and time."""

    @property
    def headlines(self) -> Dict[str, str]:
        """The verdict in one sentence, by name of the model."""
        return {x.name: headline(x).text for x in self.findings}

    def write(self, folder: Path) -> Tuple[Path, Path]:
        """Write the page and the numbers.

        :param folder: where to write; made if it does not exist.
        :return: paths of ``report.html`` and ``report.json``.
        :raises FileExistsError: as :func:`check_folder`.
        """
        check_folder(folder)
        page, numbers = folder / PAGE, folder / NUMBERS
        write_text(page, render(self))
        text = json.dumps(as_json(self), indent=1, allow_nan=False)
        write_text(numbers, text + "\n")
        return page, numbers


def check_folder(folder: Path) -> None:
    """Refuse to overwrite what was not written by this package.

    :param folder: where a report is to be written.
    :raises FileExistsError: if there is a file of the same name that is no report.
    :raises NotADirectoryError: if it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file: choose a folder with -o")
    for name in (PAGE, NUMBERS):
        path = folder / name
        if path.exists() and MARK not in path.read_text("utf-8", "replace")[:2000]:
            raise FileExistsError(
                f"{path} was not written by `dualforce diagnose`: choose another "
                "folder with -o"
            )


def as_json(report: Report) -> Dict[str, Any]:
    """The report as numbers: everything that was measured, and the verdict."""
    models = []
    for findings in report.findings:
        model = plain(findings)
        model["inner_steps"] = inner_steps(findings)
        model["headline"] = plain(headline(findings))
        model["verdict"] = plain(verdict(findings))
        models.append(model)
    structures = report.structures
    return {
        "generator": GENERATOR,
        "created": report.created,
        "structures": {
            "source": structures.source,
            "n_total": structures.n_total,
            "start_index": structures.start_index,
            "frame_indices": structures.frame_indices,
            "formula": structures.start.get_chemical_formula(),
        },
        "conditions": plain(report.conditions),
        "versions": _versions(),
        "models": models,
    }


def render(report: Report) -> str:
    """The page, with everything it needs inside."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("dualforce.diagnostics"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["badges"] = _BADGES
    environment.filters["prose"] = _prose
    names = ", ".join(findings.name for findings in report.findings)
    atoms = report.structures.start
    kind = "periodic" if atoms.pbc.any() else "not periodic"
    system = f"{atoms.get_chemical_formula()} ({len(atoms)} atoms, {kind})"
    return environment.get_template("page.html.jinja").render(
        generator=GENERATOR,
        title=f"Forces of {names}",
        lead=f"{names}, judged on {system}. {report.created}.",
        cards=[_card(findings) for findings in report.findings],
        sections=sections(report),
        footer=f"Written by {GENERATOR}. The same as numbers: {NUMBERS}.",
    )


def _prose(text: str) -> Any:
    """Text with commands set off, and numbers kept beside what they belong to."""
    from markupsafe import Markup, escape

    text = re.sub(r" (=|±|≤) ", "\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", text)
    return Markup(re.sub("`(.*?)`", r"<code>\1</code>", str(escape(text))))


def _card(findings: Findings) -> Dict[str, Any]:
    """The verdict on a model, by topic."""
    topics: Dict[str, List[Sentence]] = {}
    for sentence in verdict(findings):
        topics.setdefault(sentence.topic, []).append(sentence)
    return {"name": findings.name, "headline": headline(findings), "topics": topics}


# ---------------------------------------------------------------------------- sections


def sections(report: Report) -> List[Section]:
    """Everything after the verdict; parts without content are left out."""
    found = [
        *(_section(report, measure) for measure in MEASURES),
        _missing(report),
        _settings(report),
    ]
    return [section for section in found if section.tables or section.figures]


def _section(report: Report, measure: Measure) -> Section:
    """Results of a measure for all models."""
    return Section(
        measure.title,
        measure.explanation,
        _joined((x.name, measure.tables(x)) for x in report.findings)
        if len(report.findings) > 1
        else measure.tables(report.findings[0]),
        [
            replace(figure, model=findings.name if len(report.findings) > 1 else "")
            for findings in report.findings
            for figure in measure.figures(findings)
        ],
    )


def _joined(tables: Iterable[Tuple[str, List[Table]]]) -> List[Table]:
    """Tables of several models: those with the same header become one."""
    joined: Dict[Tuple[str, ...], Table] = {}
    for name, own in tables:
        for table in own:
            header = ["model", *table.header]
            target = joined.setdefault(tuple(header), Table(header, [], table.wraps))
            target.rows.extend([name, *row] for row in table.rows)
    return list(joined.values())


def _missing(report: Report) -> Section:
    rows = [
        [
            findings.name,
            entry.title,
            "failed" if entry.status == FAILED else "skipped",
            entry.reason or "",
        ]
        for findings in report.findings
        for entry in findings.missing
    ]
    header = ["model", "measure", "", "why"]
    tables = [Table(header, rows, wraps=True)] if rows else []
    return Section("What was not measured, and why", tables=tables)


def _settings(report: Report) -> Section:
    structures, conditions = report.structures, report.conditions
    given = conditions.n_inner
    rows = {
        "structures": f"{structures.source} ({structures.n_total})",
        "run and differentiated": f"structure {structures.start_index}, counted from 0",
        "errors and symmetries": "structures "
        + ", ".join(str(index) for index in structures.frame_indices),
        "temperature": f"{conditions.temperature_K:g} K",
        "timestep": f"{conditions.timestep_fs:g} fs",
        "inner steps": "chosen by runs at constant energy" if given is None else given,
        "tolerance of the drift": f"{conditions.tolerance:g} meV/atom/ps",
        "seed": conditions.seed,
        "preset": conditions.preset,
        **{findings.name: _provenance(findings) for findings in report.findings},
        **_versions(),
    }
    table = Table(["", ""], [[key, str(x)] for key, x in rows.items()], wraps=True)
    return Section("Settings and versions", tables=[table])


def _provenance(findings: Findings) -> str:
    """Which model it was, and how long it took."""
    seconds = sum(entry.seconds for entry in findings.entries)
    digest = f"SHA-256 {findings.digest[:16]}…; " if findings.digest else ""
    return f"{digest}measured in {seconds:.0f} s"


def _versions() -> Mapping[str, str]:
    packages = ("dualforce", "metatomic-torch", "metatrain", "torch", "ase", "numpy")
    return {"python": platform.python_version()} | {
        name: version(name) for name in packages
    }
