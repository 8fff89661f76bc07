"""Reports: what they say, and that they need nothing else."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Dict, List, Optional, Tuple

import made_up
import pytest

from dualforce.diagnostics.report import check_folder, render


class Parser(HTMLParser):
    """Text, opened elements, and whether they nest."""

    EMPTY = {"meta", "link", "br", "img", "input", "hr"}

    def __init__(self) -> None:
        super().__init__()
        self.open: List[str] = []
        self.elements: List[Tuple[str, Dict[str, Optional[str]]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: List[Tuple[str, Optional[str]]]) -> None:
        """Take down."""
        self.elements.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(
        self, tag: str, attrs: List[Tuple[str, Optional[str]]]
    ) -> None:
        """Take down."""
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Close the last."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Collect what is seen."""
        if "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def page() -> str:
    """A report on two models."""
    return render(made_up.report(made_up.good(), made_up.bad()))


@pytest.fixture(scope="module")
def parsed(page: str) -> Parser:
    """The same, parsed."""
    parser = Parser()
    parser.feed(page)
    parser.close()
    assert not parser.open
    return parser


def test_contains_the_numbers(parsed: Parser) -> None:
    """Figures of all measures are on the page, with units."""
    text = re.sub(r"\s+", " ", parsed.text)
    for number in (
        "0.00437 ± 0.00010",  # asymmetry
        "H 0.037",  # by element
        "+77.7000 ± 0.0010",  # loop, meV
        "20.2 meV/Å",  # error against labels
        "0.59 meV/atom",
        "+1.830 ± 0.050",  # drift
        "+7.08 ± 0.19",  # heating
        "O +9.90 ± 0.50, H −4.40 ± 0.40",  # temperatures
        "5.0 ± 2.0",  # slower diffusion
        "3 of 10",
        "0.1830 ± 0.0050",  # drift over the fluctuation of kinetic energy
        "O − H +13.80 ± 0.91",  # less the control
        "fails after 0.12 ps: the energy is not finite",
    ):
        assert number in text, number
    assert "good.pt" in text and "bad.pt" in text
    assert "nan" not in text.lower().replace("finance", "")


def test_reasons_are_shown_and_harmless(page: str, parsed: Parser) -> None:
    """What failed is told as it was said, and is no HTML."""
    assert "EMT has no <script>alert(1)</script> & so on" in parsed.text
    assert "script" not in {tag for tag, _ in parsed.elements}
    assert "<script" not in page


def test_loads_nothing(page: str, parsed: Parser) -> None:
    """Nothing comes from elsewhere; the only address is one to click on."""
    for tag, attributes in parsed.elements:
        assert tag not in ("script", "link", "img", "iframe", "object", "image")
        assert "src" not in attributes and "srcset" not in attributes
        for name, value in attributes.items():
            if name in ("href", "xlink:href") and tag != "a":
                assert value is not None and value.startswith("#")
    assert "@import" not in page
    assert all(address.startswith("#") for address in re.findall(r"url\((.*?)\)", page))
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", page))
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert addresses - namespaces == {"https://arxiv.org/abs/2412.11569"}


def test_plots_do_not_disturb_each_other(parsed: Parser) -> None:
    """Names inside of plots are unique, and exist where they are used."""
    names = [
        attributes["id"] for _, attributes in parsed.elements if "id" in attributes
    ]
    assert len(names) == len(set(names))
    used = {
        attributes["xlink:href"][1:]
        for _, attributes in parsed.elements
        if attributes.get("xlink:href")
    }
    assert used and used <= set(names)
    assert sum(tag == "figure" for tag, _ in parsed.elements) >= 12


def test_numbers_as_json(tmp_path: Path) -> None:
    """The file of numbers is strict JSON with all results and the verdict."""
    made_up.report(made_up.good(), made_up.bad()).write(tmp_path)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "report.json").read_text()
    content = json.loads(text, parse_constant=refuse)
    first, second = content["models"]
    asymmetries = [e["result"] for e in first["entries"] if "floor" in e["result"]]
    assert asymmetries[1]["value"] == 0.00437
    assert first["headline"]["level"] == "good"
    assert any("0.00437" in sentence["text"] for sentence in first["verdict"])
    failed = [entry for entry in second["entries"] if entry["status"] == "failed"]
    assert failed[0]["reason"].startswith("EMT has no")
    assert content["conditions"]["temperature_K"] == 300.0
    assert content["versions"]["torch"]
    assert content["structures"]["frame_indices"] == [0, 2, 4]


def test_other_peoples_files_are_left_alone(tmp_path: Path) -> None:
    """Reports replace reports and nothing else."""
    model = made_up.report(made_up.good())
    model.write(tmp_path)
    model.write(tmp_path)
    (tmp_path / "report.json").write_text('{"mine": 1}')
    with pytest.raises(FileExistsError, match=r"report.json was not written by"):
        model.write(tmp_path)
    assert (tmp_path / "report.json").read_text() == '{"mine": 1}'
    with pytest.raises(NotADirectoryError, match="choose a folder"):
        check_folder(tmp_path / "report.json")


def test_empty_report() -> None:
    """A model of which nothing is known has a page too."""
    page = render(made_up.report(made_up.findings()))
    assert "Nothing could be measured." in page
