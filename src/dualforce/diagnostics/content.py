"""What reports are made of, before anybody thinks of HTML."""

from dataclasses import dataclass, field
from typing import List


GOOD, CAUTION, BAD = "good", "caution", "bad"


@dataclass(frozen=True)
class Sentence:
    """A conclusion, with the number it rests on."""

    level: str
    """``good``, ``caution`` or ``bad``."""
    topic: str
    text: str


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row."""

    header: List[str]
    rows: List[List[str]]
    wraps: bool = False
    """Whether cells may be broken into lines."""


@dataclass(frozen=True)
class Figure:
    """A plot."""

    svg: str
    caption: str
    model: str = ""
    """Name of the model, where there are several."""


@dataclass(frozen=True)
class Section:
    """A part of the report."""

    title: str
    text: str = ""
    tables: List[Table] = field(default_factory=list)
    figures: List[Figure] = field(default_factory=list)
