"""What a measure is: :class:`Measure`.

A new measure is one file in ``measures/`` with a subclass, and a line in
``measures/__init__.py``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Dict,
    List,
    Literal,
    Optional,
    Type,
)

from .content import Figure, Sentence, Table


if TYPE_CHECKING:
    from .findings import Findings
    from .setup import Setup


Progress = Callable[[float], None]
"""Receives the part that is done."""


def silent(share: float) -> None:
    """Progress that is not shown."""


class NotApplicable(Exception):  # noqa: N818  (not an error: a reason)
    """There is nothing to measure; the message says why."""


@dataclass(frozen=True)
class Case:
    """One result of a measure: a file of the cache, a step of the progress bar."""

    name: str
    """Unique within the measure, and fit for the name of a file."""
    settings: Dict[str, Any]
    """Arguments of :meth:`Measure.measure`: all that the result depends on besides
    model and structures."""
    evaluations: Mapping[str, float]
    """Number of evaluations by kind of force, to estimate the wall time."""


class Measure(ABC):
    """Something that is measured about a model, and what it means.

    One instance serves all models; results are kept in
    :class:`~dualforce.diagnostics.findings.Findings`.
    """

    name: ClassVar[str]
    """In names of files, and in ``report.json``."""
    title: ClassVar[str]
    """Heading of the section in the report."""
    explanation: ClassVar[str] = ""
    """What is measured, and what the numbers mean."""
    result: ClassVar[Type[Any]]
    """Type of the results: a dataclass of plain numbers, texts, lists and dicts."""
    min_atoms: ClassVar[int] = 1
    """Atoms a structure must have."""
    needs: ClassVar[Literal["structure", "start", "frames"]] = "structure"
    """What it is measured on: the structure of the study, the same equilibrated and
    with momenta, or the frames with labels."""
    version: ClassVar[int] = 1
    """To be raised when results of the same settings change."""
    sizes: ClassVar[Mapping[str, Mapping[str, Any]]] = {"quick": {}, "full": {}}
    """How much is measured, by preset."""

    columns: ClassVar[Mapping[str, Callable[..., str]]] = {}
    """Columns of the table of results: header, and the text of a cell as a function of
    findings and result. The first one names the row."""

    measure: ClassVar[Callable[..., Any]]
    """Method that measures one case, ``measure(setup, progress, **settings)``; raises
    :class:`NotApplicable` if it turns out that there is nothing to measure."""

    @abstractmethod
    def cases(self, setup: "Setup") -> List[Case]:
        """What to measure, from what is known so far. Called once before the study, to
        estimate its cost, and again when it is the measure's turn.

        :raises NotApplicable: if there is nothing to measure.
        """

    def sentence(self, findings: "Findings", result: Any) -> Optional[Sentence]:
        """What one result means: a difference from a control (another force, or run of
        the same length) beyond its error, or that there is none."""
        return None

    def sentences(self, findings: "Findings") -> List[Sentence]:
        """What all results mean."""
        found = [self.sentence(findings, x) for x in findings.of_type(self.result)]
        return [sentence for sentence in found if sentence is not None]

    def tables(self, findings: "Findings") -> List[Table]:
        """Results as text. Tables of several models with one header are joined."""
        rows = [
            [cell(findings, result) for cell in self.columns.values()]
            for result in findings.of_type(self.result)
        ]
        return [Table(list(self.columns), rows)] if rows and self.columns else []

    def figures(self, findings: "Findings") -> List[Figure]:
        """Plots (:func:`~dualforce.diagnostics.plotting.panel`)."""
        return []
