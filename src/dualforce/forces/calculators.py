"""Calculators of ASE as sources of forces, and sources of forces as calculators."""

from typing import Any, List, Optional

import ase
import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress

from .protocol import (
    Array,
    Evaluation,
    EvaluationError,
    ForceSource,
    check_finite,
)


class CalculatorForces(ForceSource):
    """The forces of a calculator of ASE, taken for conservative ones.

    To use them as direct forces beside another energy, combine them
    (:class:`~dualforce.forces.CombinedForces`).

    :param calculator: calculator with forces.
    :param name: for messages and reports.
    :param digest: of what it computes.
    :raises ValueError: if it has no forces.
    """

    def __init__(
        self, calculator: Calculator, name: Optional[str] = None, digest: str = ""
    ) -> None:
        self.name = name or type(calculator).__name__
        self.digest = digest
        self.calculator = calculator
        properties = calculator.implemented_properties
        if "forces" not in properties:
            raise ValueError(
                f"{self.name} computes no forces, only "
                f"{', '.join(properties) or 'nothing'}"
            )
        self.has_energy = "energy" in properties
        self.has_stress = "stress" in properties

    def conservative(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        """Forces, and the energy if there is one (else zero); see
        :meth:`ForceSource.conservative`.

        :raises EvaluationError: if the calculator fails, with its own words.
        """
        wanted = ["forces"] + ["energy"] * self.has_energy + ["stress"] * stress
        # A copy, since calculators keep what they are given.
        structure = atoms.copy()
        try:
            found = {n: self.calculator.get_property(n, structure) for n in wanted}
        except Exception as error:  # calculators raise whatever they like
            raise EvaluationError(
                f"{self.name} failed on {atoms.get_chemical_formula()}: "
                f"{type(error).__name__}: {error}"
            ) from error
        forces = np.array(found["forces"], dtype=np.float64)
        if forces.shape != (len(atoms), 3):
            raise EvaluationError(
                f"{self.name} gave forces of shape {list(forces.shape)} for "
                f"{len(atoms)} atoms"
            )
        kind = "conservative" if self.has_energy else "predicted"
        check_finite(forces, kind)
        energy = float(found.get("energy", 0.0))
        if not np.isfinite(energy):
            raise FloatingPointError(f"the energy is {energy}")
        return Evaluation(forces, energy, _full(found.get("stress")))

    def reset(self) -> None:
        """Forget the last results of the calculator."""
        if hasattr(self.calculator, "reset"):
            self.calculator.reset()


def _full(stress: Any) -> Optional[Array]:
    if stress is None:
        return None
    stress = np.asarray(stress, dtype=np.float64)
    return stress if stress.shape == (3, 3) else voigt_6_to_full_3x3_stress(stress)


class ConservativeCalculator(Calculator):
    """Energy, conservative forces and stress of a source, as a calculator of ASE.

    Integrators store what they have computed, so that loggers and trajectories of ASE
    read it without another evaluation.

    :param forces: the source.
    :param always_stress: compute the stress with every evaluation, for optimisers that
        ask for it afterwards.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, forces: ForceSource, always_stress: bool = False) -> None:
        super().__init__()
        self.source = forces
        self.always_stress = always_stress

    def calculate(
        self,
        atoms: Optional[ase.Atoms] = None,
        properties: Optional[List[str]] = None,
        system_changes: List[str] = all_changes,
    ) -> None:
        """Compute the requested properties; see :class:`ase.calculators.calculator`."""
        super().calculate(atoms, properties, system_changes)
        assert isinstance(self.atoms, ase.Atoms)
        stress = self.always_stress or "stress" in (properties or [])
        self.results = _results(self.source.conservative(self.atoms, stress))

    def store(self, atoms: ase.Atoms, evaluation: Evaluation) -> None:
        """Take an evaluation at ``atoms`` as the result of :meth:`calculate`."""
        self.atoms = atoms.copy()
        self.results = _results(evaluation)


def _results(evaluation: Evaluation) -> dict[str, Any]:
    results: dict[str, Any] = {
        "energy": evaluation.energy,
        "free_energy": evaluation.energy,
        "forces": evaluation.forces,
    }
    if evaluation.stress is not None:
        results["stress"] = full_3x3_to_voigt_6_stress(evaluation.stress)
    return results
