"""A report as files."""

import json
import re
from pathlib import Path
from typing import List, Tuple

from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape

from ..diagnostics.cache import write_text
from .content import GENERATOR, Report, as_json, cards, lead
from .sections import sections


PAGE, NUMBERS = "report.html", "report.json"

MARK = "dualforce diagnose"
"""What our files say they were made by."""

_BADGES = {"good": "✓ safe", "caution": "! care", "bad": "✕ not safe"}


def check_folder(folder: Path) -> None:
    """Refuse to overwrite what is not ours.

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
                "folder "
                "with -o"
            )


def write_report(report: Report, folder: Path) -> Tuple[Path, Path]:
    """Write the page and the numbers.

    :param report: what was found out.
    :param folder: where to write; made if it does not exist.
    :return: the page and the file of numbers.
    :raises FileExistsError: as :func:`check_folder`.
    """
    check_folder(folder)
    page, numbers = folder / PAGE, folder / NUMBERS
    write_text(page, render(report))
    write_text(numbers, json.dumps(as_json(report), indent=1, allow_nan=False) + "\n")
    return page, numbers


def render(report: Report) -> str:
    """The page, with everything it needs inside.

    :param report: what was found out.
    """
    environment = Environment(
        loader=PackageLoader("dualforce.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["badge"] = _badge
    environment.filters["picture"] = Markup
    environment.filters["prose"] = _prose
    names: List[str] = [findings.name for findings in report.findings]
    return environment.get_template("page.html.jinja").render(
        generator=GENERATOR,
        title=f"Forces of {', '.join(names)}",
        lead=lead(report),
        cards=cards(report),
        sections=sections(report),
        footer=f"Made with {GENERATOR}. The same as numbers: {NUMBERS}.",
    )


def _prose(text: str) -> Markup:
    """Text with commands set off, and numbers kept beside what they belong to."""
    text = re.sub(r" (=|±|≤) ", "\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", text)
    return Markup(re.sub("`(.*?)`", r"<code>\1</code>", str(escape(text))))


def _badge(level: str) -> Markup:
    return Markup('<span class="badge {}">{}</span>').format(level, _BADGES[level])
