"""What evaluations cost."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Tuple, TypeVar

import ase

from .evaluation import Evaluation, TwoForces


T = TypeVar("T")


@dataclass
class Cost:
    """Number of evaluations of one kind and the wall time they took."""

    calls: int = 0
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        """Seconds for one; NaN if there was none."""
        return self.seconds / self.calls if self.calls else float("nan")


class CountedForces:
    """Forces that count and time evaluations.

    :param forces: where the forces come from.
    """

    def __init__(self, forces: TwoForces) -> None:
        self._forces = forces
        self.direct_cost = Cost()
        self.conservative_cost = Cost()
        """Of all passes with an energy, also of those that give both forces."""

    @property
    def has_direct_stress(self) -> bool:
        """Whether direct evaluations can give a stress."""
        return self._forces.has_direct_stress

    def direct(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        """Direct forces, and nothing of the energy."""
        return _timed(self.direct_cost, lambda: self._forces.direct(atoms, stress))

    def conservative(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        """Energy and conservative forces."""
        return _timed(
            self.conservative_cost, lambda: self._forces.conservative(atoms, stress)
        )

    def both(
        self, atoms: ase.Atoms, stress: bool = False
    ) -> Tuple[Evaluation, Evaluation]:
        """Conservative and direct evaluation, in this order."""
        return _timed(self.conservative_cost, lambda: self._forces.both(atoms, stress))

    def reset(self) -> None:
        """Forget what was kept from earlier evaluations."""
        self._forces.reset()


def _timed(cost: Cost, evaluate: Callable[[], T]) -> T:
    start = time.perf_counter()
    result = evaluate()
    cost.calls += 1
    cost.seconds += time.perf_counter() - start
    return result
