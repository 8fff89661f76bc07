"""Both forces of a teacher that is no metatomic model, and its student."""

from typing import Optional, Tuple

import ase
import torch
from ase.calculators.calculator import Calculator
from metatomic.torch import ModelEvaluationOptions, ModelOutput

from ..dynamics import CalculatorForces, Evaluation, MissingOutputError
from ..dynamics.evaluation import check_finite
from ..dynamics.forces import DIRECT_FORCE, DIRECT_STRESS, LoadedModel, Source


class TeacherAndStudent(CalculatorForces):
    """The energy and conservative force of a calculator of ASE, the direct force of an
    exported model.

    :param teacher: calculator with energy and forces.
    :param student: exported model with a direct force.
    :param device: torch device of the student, by default the best it supports.
    :param skin: of the student's neighbour lists, in Å.
    :raises MissingOutputError: if the student has no direct force.
    """

    def __init__(
        self,
        teacher: Calculator,
        student: Source,
        *,
        device: Optional[str] = None,
        skin: float = 1.0,
    ) -> None:
        super().__init__(teacher, teacher)
        self._student = LoadedModel(student, device, skin, None)
        force = self._student.find(DIRECT_FORCE, None)
        if force is None:
            raise MissingOutputError(
                f"{self._student.name} has no direct force; it has "
                f"{', '.join(sorted(self._student.outputs))}"
            )
        self._force, self._stress = force, self._student.find((DIRECT_STRESS,), None)

    @property
    def has_direct_stress(self) -> bool:
        """Whether direct evaluations can give a stress."""
        return self._stress is not None

    def direct(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        """Direct forces, without net force; see :meth:`HybridForces.direct`."""
        outputs = {self._force: ModelOutput(unit="eV/Angstrom", sample_kind="atom")}
        if stress and self._stress is not None:
            kind = ModelOutput(unit="eV/Angstrom^3", sample_kind="system")
            outputs[self._stress] = kind
        model = self._student
        with torch.no_grad():
            system = model.system(atoms, model.positions(atoms), None)
            values = model.run(system, ModelEvaluationOptions("Angstrom", outputs))
        arrays = {
            name: value.to(device="cpu", dtype=torch.float64).numpy()
            for name, value in values.items()
        }
        forces = check_finite(arrays[self._force].reshape(-1, 3), "direct")
        virial = None
        if self._stress in arrays:
            virial = arrays[self._stress].reshape(3, 3)
            virial = 0.5 * (virial + virial.T)
        return Evaluation(forces - forces.mean(0), stress=virial)

    def both(
        self, atoms: ase.Atoms, stress: bool = False
    ) -> Tuple[Evaluation, Evaluation]:
        """Conservative and direct evaluation, in this order."""
        return self.conservative(atoms, stress), self.direct(atoms, stress)

    def reset(self) -> None:
        """Forget what was kept from earlier evaluations."""
        super().reset()
        self._student.reset()
