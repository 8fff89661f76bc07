"""What integrators and diagnostics see of a model."""

from dataclasses import dataclass, replace
from typing import Optional, Protocol, Tuple

import ase
import numpy as np
from ase.calculators.calculator import Calculator
from numpy.typing import NDArray


Array = NDArray[np.float64]


@dataclass(frozen=True)
class Evaluation:
    """Forces of one kind, with what else was asked for."""

    forces: Array
    """In eV/Å, shape ``[n_atoms, 3]``."""
    energy: Optional[float] = None
    """In eV; none where only direct forces were computed."""
    stress: Optional[Array] = None
    """In eV/Å^3, shape ``[3, 3]``, positive under tension as in ASE; none where it was
    not asked for or the model has none of this kind."""


class TwoForces(Protocol):
    """A source of conservative and direct forces."""

    @property
    def has_direct_stress(self) -> bool:
        """Whether direct evaluations can give a stress."""

    def direct(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        """Direct forces, and nothing of the energy."""

    def conservative(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        """Energy and conservative forces."""

    def both(
        self, atoms: ase.Atoms, stress: bool = False
    ) -> Tuple[Evaluation, Evaluation]:
        """Conservative and direct evaluation, in this order."""

    def reset(self) -> None:
        """Forget what was kept from earlier evaluations. The same evaluations after it
        give the same bits, whatever came before."""


class CalculatorForces:
    """Two calculators of ASE as conservative and direct force.

    For potentials that are no metatomic models, and for analytic tests.

    :param conservative: calculator with energy and forces.
    :param direct: calculator with the forces to integrate with.
    """

    def __init__(self, conservative: Calculator, direct: Calculator) -> None:
        self._conservative = conservative
        self._direct = direct

    @property
    def has_direct_stress(self) -> bool:
        """Whether direct evaluations can give a stress."""
        return "stress" in self._direct.implemented_properties

    def direct(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        """Direct forces, without net force."""
        forces = check_finite(self._direct.get_property("forces", atoms), "direct")
        stress = stress and self.has_direct_stress
        return Evaluation(
            forces=forces - forces.mean(0),
            stress=_stress(self._direct, atoms) if stress else None,
        )

    def conservative(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        """Energy and conservative forces."""
        forces = self._conservative.get_property("forces", atoms)
        return Evaluation(
            energy=float(self._conservative.get_property("energy", atoms)),
            forces=check_finite(forces, "conservative"),
            stress=_stress(self._conservative, atoms) if stress else None,
        )

    def both(
        self, atoms: ase.Atoms, stress: bool = False
    ) -> Tuple[Evaluation, Evaluation]:
        """Conservative and direct evaluation, in this order."""
        return self.conservative(atoms, stress), self.direct(atoms, stress)

    def reset(self) -> None:
        """Forget the results of both calculators."""
        for calculator in (self._conservative, self._direct):
            calculator.reset()


class DirectOnly:
    """Direct forces in the place of the conservative ones, to see what they do alone.

    The energy is reported as zero.

    :param forces: the model.
    """

    def __init__(self, forces: TwoForces) -> None:
        self._forces = forces

    @property
    def has_direct_stress(self) -> bool:
        """Whether direct evaluations can give a stress."""
        return self._forces.has_direct_stress

    def direct(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        """Direct forces, without net force."""
        return self._forces.direct(atoms, stress)

    def conservative(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        """Direct forces again, and an energy of zero."""
        return replace(self._forces.direct(atoms, stress), energy=0.0)

    def both(
        self, atoms: ase.Atoms, stress: bool = False
    ) -> Tuple[Evaluation, Evaluation]:
        """Direct forces twice, from one evaluation."""
        evaluation = self.conservative(atoms, stress)
        return evaluation, evaluation

    def reset(self) -> None:
        """Forget what was kept from earlier evaluations."""
        self._forces.reset()


def check_finite(forces: Array, kind: str) -> Array:
    """
    :param forces: in eV/Å, shape ``[n_atoms, 3]``.
    :param kind: of force, for the message.
    :return: the forces.
    :raises FloatingPointError: naming the atoms whose force is not finite.
    """
    wrong = np.flatnonzero(~np.isfinite(forces).all(1))
    if len(wrong):
        raise FloatingPointError(
            f"the {kind} force is not finite on atoms {list_atoms(wrong)}"
        )
    return forces


def list_atoms(indices: NDArray[np.integer]) -> str:
    """The first indices, for a message."""
    listed = ", ".join(str(index) for index in indices[:10])
    return listed + (", ..." if len(indices) > 10 else "")


def _stress(calculator: Calculator, atoms: ase.Atoms) -> Array:
    xx, yy, zz, yz, xz, xy = calculator.get_property("stress", atoms)
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
