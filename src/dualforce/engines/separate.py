"""Both forces for engines that ask for one at a time."""

from dataclasses import dataclass, field
from typing import Optional

import ase
import numpy as np

from ..forces import Array, Evaluation, ForceSource


@dataclass(eq=False)
class SeparateForces:
    """Answers requests for one force, without more passes than both together need.

    Engines with force groups ask for the direct force at each structure, and at outer
    points for the conservative one as well, afterwards. Every ``n_inner``-th structure
    is therefore evaluated with both forces in one pass, ahead of the second request:
    an outer step costs ``n_inner - 1`` direct passes and one of both. Where an engine
    asks in another order, the answers are the same and cost more.
    """

    forces: ForceSource
    n_inner: int
    """Inner steps in an outer step."""
    stress: bool = False
    """Whether stresses are wanted."""
    _direct: Optional[Evaluation] = field(default=None, init=False)
    _conservative: Optional[Evaluation] = field(default=None, init=False)
    _positions: Array = field(default_factory=lambda: np.empty((0, 3)), init=False)
    _cell: Array = field(default_factory=lambda: np.empty((0, 3)), init=False)

    def __post_init__(self) -> None:
        self._since_outer = self.n_inner - 1

    def direct(self, atoms: ase.Atoms) -> Evaluation:
        """Direct force at a structure."""
        if self._look_at(atoms):
            self._since_outer += 1
        if self._direct is None:
            if self._since_outer >= self.n_inner:
                self._evaluate_both(atoms)
            else:
                self._direct = self.forces.direct(atoms, self.stress)
        assert self._direct is not None
        return self._direct

    def conservative(self, atoms: ase.Atoms) -> Evaluation:
        """Conservative force at a structure, with the energy."""
        self._look_at(atoms)
        if self._conservative is None:
            if self.n_inner == 1:
                self._conservative = self.forces.conservative(atoms, self.stress)
            else:
                self._evaluate_both(atoms)
        assert self._conservative is not None
        return self._conservative

    def _evaluate_both(self, atoms: ase.Atoms) -> None:
        self._conservative, self._direct = self.forces.both(atoms, self.stress)
        self._since_outer = 0

    def _look_at(self, atoms: ase.Atoms) -> bool:
        """Forget what belongs to another structure; whether it was another."""
        if np.array_equal(self._positions, atoms.positions) and np.array_equal(
            self._cell, atoms.cell.array
        ):
            return False
        self._positions = atoms.positions.copy()
        self._cell = atoms.cell.array.copy()
        self._direct = self._conservative = None
        return True
