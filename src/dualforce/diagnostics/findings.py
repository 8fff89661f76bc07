"""What a study has found out about one model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple, Type, TypeVar

from ..forces import Kind


T = TypeVar("T")

CONSERVATIVE, DIRECT = "conservative", "direct"
"""Kinds of force."""

MTS = "MTS"
"""Kind of a run with direct forces inside and conservative ones every few steps."""

DONE, SKIPPED, FAILED = "done", "skipped", "failed"


@dataclass(frozen=True)
class Entry:
    """A case of a measure, and what became of it."""

    task: str
    """Names of measure and case: ``nve/direct``."""
    title: str
    status: str
    """``done``, ``skipped`` or ``failed``."""
    result: Any = None
    reason: Optional[str] = None
    """Why there is no result."""
    seconds: float = 0.0
    """Wall time, when it was measured."""
    settings: Dict[str, Any] = field(default_factory=dict)


@dataclass
class Findings:
    """Everything that is known about one model on one structure."""

    name: str
    digest: str
    """Digest of the model."""
    kinds: Tuple[Kind, ...]
    """Kinds of force it has."""
    has_energy: bool
    is_calculator: bool
    """Whether it is a calculator of ASE alone: its force passes for conservative, and
    whether it is remains to be seen."""
    n_atoms: int
    """Number of atoms of the structure."""
    periodic: bool
    n_inner: Optional[int] = None
    """Inner steps the user has asked for."""
    tolerance: float = 0.2
    """Accepted difference in drift, in meV/atom/ps."""
    entries: List[Entry] = field(default_factory=list)

    @property
    def has_both(self) -> bool:
        """Whether there is a conservative and a direct force."""
        return len(self.kinds) > 1

    def of_type(self, kind: Type[T]) -> List[T]:
        """All results of one type, in the order they were measured in."""
        return [x.result for x in self.entries if isinstance(x.result, kind)]

    def find(self, kind: Type[T], matches: Callable[[T], bool]) -> Optional[T]:
        """The first result of one type that matches, or none."""
        return next((x for x in self.of_type(kind) if matches(x)), None)

    def label(self, kind: str, n_inner: int = 1) -> str:
        """A kind of force or run, in tables and plots."""
        if kind == MTS:
            return f"M = {n_inner}"
        return "forces" if self.is_calculator else kind

    def phrase(self, kind: str, n_inner: int = 1) -> str:
        """The same within a sentence."""
        if kind == MTS:
            return f"both forces and M = {n_inner}"
        return "the force" if self.is_calculator else f"the {kind} force"

    @property
    def missing(self) -> List[Entry]:
        """Cases without a result."""
        return [entry for entry in self.entries if entry.status != DONE]

    @property
    def n_done(self) -> int:
        """Number of cases with a result."""
        return len(self.entries) - len(self.missing)
