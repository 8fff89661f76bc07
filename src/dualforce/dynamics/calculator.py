"""Conservative forces for everything in ASE that wants a calculator."""

from typing import Any, List, Optional

import ase
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from .evaluation import Evaluation, TwoForces


class ConservativeCalculator(Calculator):
    """Energy, conservative forces and stress of a model, as a calculator of ASE.

    Integrators store what they have computed, so that loggers and trajectories of ASE
    read it for nothing.

    :param forces: the model.
    :param always_stress: compute the stress with every evaluation, for optimisers that
        ask for it afterwards.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, forces: TwoForces, always_stress: bool = False) -> None:
        super().__init__()
        self.two_forces = forces
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
        self.results = _results(self.two_forces.conservative(self.atoms, stress))

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
