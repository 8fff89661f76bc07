"""What a study has found out about one model."""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Type, TypeVar

from .results import NVERun


T = TypeVar("T")

DONE, SKIPPED, FAILED = "done", "skipped", "failed"


@dataclass(frozen=True)
class Speed:
    """Wall time of an evaluation of the structure, by kind of force, in ms."""

    ms: Dict[str, float]


@dataclass(frozen=True)
class Start:
    """The state that all runs start from."""

    positions: List[List[float]]
    """In Å."""
    momenta: List[List[float]]
    """In ASE's unit."""


@dataclass(frozen=True)
class Entry:
    """A measure, and what became of it."""

    task: str
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
    """Of the model."""
    kinds: List[str]
    """Kinds of force it has."""
    has_energy: bool
    n_atoms: int
    """Of the structure that is run."""
    periodic: bool
    n_inner: Optional[int] = None
    """Inner steps of the runs with both forces; none before they were chosen, and for
    models with one force."""
    inner_was_given: bool = False
    """Whether the user chose them."""
    share: float = 1.0
    """Lengths of runs relative to those of the preset: less where evaluations are
    expensive."""
    entries: List[Entry] = field(default_factory=list)

    @property
    def has_both(self) -> bool:
        """Whether there is a conservative and a direct force."""
        return len(self.kinds) > 1

    def of_type(self, kind: Type[T]) -> List[T]:
        """All results of one type, in the order they were measured in."""
        results: List[Any] = []
        for entry in self.entries:
            is_list = isinstance(entry.result, list)
            results += entry.result if is_list else [entry.result]
        return [result for result in results if isinstance(result, kind)]

    def nve(self, forces: str, n_inner: int = 1) -> Optional[NVERun]:
        """The run at constant energy with these forces, if there is one."""
        for run in self.of_type(NVERun):
            if (run.forces, run.n_inner) == (forces, n_inner):
                return run
        return None

    @property
    def missing(self) -> List[Entry]:
        """Measures without a result."""
        return [entry for entry in self.entries if entry.status != DONE]

    @property
    def n_done(self) -> int:
        """Number of measures with a result."""
        return len(self.entries) - len(self.missing)
