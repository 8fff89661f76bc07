"""Sources of forces made of other sources."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Tuple, TypeVar

import ase
import numpy as np
from torch import Tensor

from .protocol import (
    Evaluation,
    ForceSource,
    Kind,
    MissingForceError,
    without_net_force,
)


T = TypeVar("T")


class CombinedForces(ForceSource):
    """The energy and conservative force of one source, the direct force of another.

    :param energy: source of energy and conservative force.
    :param direct: source of the direct force: its own direct force where it has one,
        otherwise its conservative force (a cheaper potential, for instance).
    :raises MissingForceError: if the first one has no conservative force.
    """

    def __init__(self, energy: ForceSource, direct: ForceSource) -> None:
        if not energy.has_conservative:
            raise MissingForceError(f"{energy.name} has no energy to combine")
        self.energy_source, self.direct_source = energy, direct
        self.name = f"{energy.name} with the direct force of {direct.name}"
        if energy.digest and direct.digest:
            content = f"{energy.digest} {direct.digest}".encode()
            self.digest = hashlib.sha256(content).hexdigest()
        self.device = energy.device
        known = [s.elements for s in (energy, direct) if s.elements is not None]
        self.elements = frozenset.intersection(*known) if known else None
        self.domain = energy.domain or direct.domain
        self.has_energy, self.has_stress = energy.has_energy, energy.has_stress
        self.has_direct = True
        self._kind: Kind = "direct" if direct.has_direct else "conservative"
        self.has_direct_stress = (
            direct.has_direct_stress if direct.has_direct else direct.has_stress
        )

    def conservative(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        """Energy and conservative forces of the first source."""
        return self.energy_source.conservative(atoms, stress)

    def direct(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        """Direct forces of the second source."""
        if self._kind == "direct":
            return self.direct_source.direct(atoms, stress)
        result = self.direct_source.conservative(atoms, stress)
        return without_net_force(atoms, replace(result, energy=None))

    def differentiable(self, kind: Kind, atoms: ase.Atoms) -> Tuple[Tensor, Tensor]:
        """Forces with a graph; see :meth:`ForceSource.differentiable`."""
        if kind == "conservative":
            return self.energy_source.differentiable(kind, atoms)
        return self.direct_source.differentiable(self._kind, atoms)

    def warm_up(self, atoms: ase.Atoms, stress: bool = False) -> None:
        """Prepare both sources."""
        for source in (self.energy_source, self.direct_source):
            source.warm_up(atoms, stress)

    def reset(self) -> None:
        """Forget what both sources have kept."""
        for source in (self.energy_source, self.direct_source):
            source.reset()


class SummedForces(ForceSource):
    """The sum of energies, conservative forces and stresses of several sources: a cheap
    method and a model of what it lacks.

    :param terms: the sources.
    :raises MissingForceError: if one of them has no energy or no conservative force.
    """

    def __init__(self, terms: Sequence[ForceSource]) -> None:
        for term in terms:
            if not (term.has_conservative and term.has_energy):
                raise MissingForceError(
                    f"{term.name} has no energy with conservative forces to add"
                )
        self.terms = list(terms)
        self.name = " + ".join(term.name for term in terms)
        if all(term.digest for term in terms):
            content = " + ".join(term.digest for term in terms).encode()
            self.digest = hashlib.sha256(content).hexdigest()
        self.device = terms[-1].device
        known = [term.elements for term in terms if term.elements is not None]
        self.elements = frozenset.intersection(*known) if known else None
        self.domain = next((t.domain for t in terms if t.domain is not None), None)
        self.has_stress = all(term.has_stress for term in terms)

    def conservative(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        """Sums of energies, conservative forces and, where all have one, stresses."""
        found = [term.conservative(atoms, stress) for term in self.terms]
        stresses = [one.stress for one in found if one.stress is not None]
        return Evaluation(
            np.sum([one.forces for one in found], axis=0),
            sum(one.energy for one in found if one.energy is not None),
            np.sum(stresses, axis=0) if len(stresses) == len(found) else None,
        )

    def warm_up(self, atoms: ase.Atoms, stress: bool = False) -> None:
        """Prepare all terms."""
        for term in self.terms:
            term.warm_up(atoms, stress)

    def reset(self) -> None:
        """Forget what the terms have kept."""
        for term in self.terms:
            term.reset()


class _Delegate(ForceSource):
    """What is said of a source is said of another one."""

    def __init__(self, source: ForceSource) -> None:
        self.source = source
        self.name, self.digest = source.name, source.digest
        self.device, self.elements = source.device, source.elements
        self.domain = source.domain
        self.usual_correction = source.usual_correction
        self.has_energy = source.has_energy
        self.has_conservative = source.has_conservative
        self.has_stress = source.has_stress
        self.has_direct = source.has_direct
        self.has_direct_stress = source.has_direct_stress

    def warm_up(self, atoms: ase.Atoms, stress: bool = False) -> None:
        """Prepare the source."""
        self.source.warm_up(atoms, stress)

    def reset(self) -> None:
        """Forget what the source has kept."""
        self.source.reset()


class DirectOnly(_Delegate):
    """Direct forces in the place of conservative ones, to see what they do alone.

    The energy is reported as zero.

    :param source: source with a direct force.
    """

    def __init__(self, source: ForceSource) -> None:
        super().__init__(source)
        self.has_energy, self.has_conservative = False, True
        self.has_stress = source.has_direct_stress

    def conservative(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        """Direct forces, and an energy of zero."""
        return replace(self.source.direct(atoms, stress), energy=0.0)

    def direct(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        """Direct forces."""
        return self.source.direct(atoms, stress)

    def both(
        self, atoms: ase.Atoms, stress: bool = False
    ) -> Tuple[Evaluation, Evaluation]:
        """Direct forces twice, from one evaluation."""
        evaluation = self.conservative(atoms, stress)
        return evaluation, evaluation


@dataclass
class Cost:
    """Number of evaluations of one kind and the wall time they took."""

    calls: int = 0
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        """Seconds for one; NaN if there was none."""
        return self.seconds / self.calls if self.calls else float("nan")


class CountedForces(_Delegate):
    """Forces of a source, with the evaluations counted and timed.

    :param source: where the forces come from.
    """

    def __init__(self, source: ForceSource) -> None:
        super().__init__(source)
        self.direct_cost = Cost()
        self.conservative_cost = Cost()
        """Of all passes with an energy, also of those that give both forces."""

    def conservative(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        """Energy and conservative forces."""
        return _timed(
            self.conservative_cost, lambda: self.source.conservative(atoms, stress)
        )

    def direct(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        """Direct forces."""
        return _timed(self.direct_cost, lambda: self.source.direct(atoms, stress))

    def both(
        self, atoms: ase.Atoms, stress: bool = False
    ) -> Tuple[Evaluation, Evaluation]:
        """Conservative and direct evaluation, in this order."""
        return _timed(self.conservative_cost, lambda: self.source.both(atoms, stress))


def _timed(cost: Cost, evaluate: Callable[[], T]) -> T:
    start = time.perf_counter()
    result = evaluate()
    cost.calls += 1
    cost.seconds += time.perf_counter() - start
    return result
