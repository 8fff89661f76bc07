"""What integrators, engines and diagnostics see of a model: :class:`ForceSource`."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import FrozenSet, List, Literal, Optional, Tuple

import ase
import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor

from .domain import TrainingDomain


Array = NDArray[np.float64]

Kind = Literal["conservative", "direct"]


class MissingForceError(ValueError):
    """A source lacks the force, energy or stress that is asked for."""


class EvaluationError(RuntimeError):
    """A model or calculator failed on a structure."""


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
    net_force: Optional[Array] = None
    """Sum of the direct forces as the model predicts them, in eV/Å, shape ``[3]``; it
    is no longer contained in ``forces``. None for conservative forces."""


class ForceSource(ABC):
    """A source of conservative forces, direct forces, or both.

    A subclass implements :meth:`conservative`, :meth:`direct` or both of them, and sets
    the attributes that say which. Structures are not changed, and their calculators are
    not used.
    """

    name: str = "the model"
    """For messages and reports."""
    digest: str = ""
    """Changes with everything the forces depend on; empty where that is not known."""
    device: str = "cpu"
    """Torch device on which the forces are computed."""
    elements: Optional[FrozenSet[int]] = None
    """Atomic numbers the source knows; none where it does not say."""
    domain: Optional[TrainingDomain] = None
    """What the training data cover, where that is known."""
    usual_correction: Optional[float] = None
    """Root mean square of conservative minus direct force on structures like those of
    the training data, in eV/Å, where that is known."""
    has_energy: bool = True
    """Whether :meth:`conservative` returns an energy."""
    has_conservative: bool = True
    """Whether there is a conservative force."""
    has_stress: bool = True
    """Whether conservative evaluations can give a stress."""
    has_direct: bool = False
    """Whether there is a direct force."""
    has_direct_stress: bool = False
    """Whether direct evaluations can give a stress."""

    @abstractmethod
    def conservative(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        """Energy and conservative forces.

        :param atoms: structure.
        :param stress: compute the stress too.
        :raises MissingForceError: if there is no conservative force.
        :raises ValueError: if an element is not known.
        :raises FloatingPointError: if energy or a force is not finite.
        """

    def direct(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        """Direct forces without net force (:func:`without_net_force`), and nothing of
        the energy.

        :param atoms: structure; its masses decide how a net force is removed.
        :param stress: compute the direct stress too, where there is one.
        :raises MissingForceError: if there is no direct force.
        :raises ValueError: if an element is not known.
        :raises FloatingPointError: if a force is not finite.
        """
        raise MissingForceError(
            f"{self.name} has no direct force: use M = 1, or take the direct force "
            "from a second model"
        )

    def both(
        self, atoms: ase.Atoms, stress: bool = False
    ) -> Tuple[Evaluation, Evaluation]:
        """Conservative and direct evaluation, in this order; at the price of the
        conservative one where one pass gives both."""
        return self.conservative(atoms, stress), self.direct(atoms, stress)

    def differentiable(self, kind: Kind, atoms: ase.Atoms) -> Tuple[Tensor, Tensor]:
        """Forces as the model predicts them, with a graph, for derivatives of forces.

        :param kind: ``conservative`` or ``direct``.
        :param atoms: structure.
        :return: positions, a leaf of the graph, and forces, of shape ``[n_atoms, 3]``.
        :raises NotImplementedError: if forces are numbers only.
        """
        raise NotImplementedError(f"{self.name} computes numbers, without a graph")

    def warm_up(self, atoms: ase.Atoms, stress: bool = False) -> None:
        """Do now what would slow down the first evaluations."""
        return

    def reset(self) -> None:
        """Forget what was kept from earlier evaluations. The same evaluations after it
        give bitwise identical results, whatever came before."""
        return

    @property
    def kinds(self) -> Tuple[Kind, ...]:
        """Kinds of force that the source has."""
        kinds: Tuple[Kind, ...] = ()
        if self.has_conservative:
            kinds += ("conservative",)
        if self.has_direct:
            kinds += ("direct",)
        return kinds

    def evaluate(
        self, kind: Kind, atoms: ase.Atoms, stress: bool = False
    ) -> Evaluation:
        """Forces of one kind; see :meth:`conservative` and :meth:`direct`."""
        method = self.direct if kind == "direct" else self.conservative
        return method(atoms, stress)

    def evaluate_batch(
        self, kind: Kind, frames: Sequence[ase.Atoms], stress: bool = False
    ) -> List[Evaluation]:
        """Forces of one kind for several structures, together where that is faster."""
        return [self.evaluate(kind, atoms, stress) for atoms in frames]

    def check_elements(self, atoms: ase.Atoms) -> None:
        """
        :param atoms: structure.
        :raises ValueError: naming the elements that the source does not know.
        """
        if self.elements is None:
            return
        unknown = sorted(set(atoms.numbers.tolist()) - self.elements)
        if unknown:
            raise ValueError(
                f"{self.name} does not know {list_symbols(unknown)}; it knows "
                f"{list_symbols(sorted(self.elements))}"
            )


def without_net_force(atoms: ase.Atoms, evaluation: Evaluation) -> Evaluation:
    r"""Direct forces that leave the centre of mass at rest.

    .. math:: f_i \leftarrow f_i - \frac{m_i}{M} \sum_j f_j

    A net force is an error of the model. Removed this way it changes the acceleration
    of the centre of mass alone and no acceleration of one atom relative to another: the
    trajectory is the one that engines follow which keep the centre of mass at rest
    (``fix momentum`` of LAMMPS, ``fixcom`` of i-PI, ``CMMotionRemover`` of OpenMM).

    :param atoms: structure, for its masses.
    :param evaluation: forces as the model predicts them.
    """
    masses = atoms.get_masses()[:, None]
    net = evaluation.forces.sum(0)
    total = masses.sum()
    shares = masses / total if total > 0.0 else np.full_like(masses, 1 / len(masses))
    return Evaluation(
        evaluation.forces - shares * net, evaluation.energy, evaluation.stress, net
    )


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


def list_symbols(numbers: Sequence[int]) -> str:
    """Symbols of elements, for a message."""
    return ", ".join(
        chemical_symbols[number]
        if 0 < number < len(chemical_symbols)
        else f"element {number}"
        for number in numbers
    )
