"""What is judged: exported models, and calculators of ASE."""

import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional, Protocol, Tuple

import ase
import numpy as np
import torch
from ase.calculators.calculator import Calculator
from metatomic.torch import ModelEvaluationOptions, ModelOutput
from torch import Tensor

from ..dynamics.evaluation import Array, Evaluation, TwoForces, check_finite
from ..dynamics.forces import DIRECT_FORCE, HybridForces, LoadedModel
from .results import CONSERVATIVE, DIRECT, FORCES


SKIN = 1.0
"""Of neighbour lists, in Å."""

DERIVATIVE_TOLERANCE = 0.02
"""Largest relative deviation of an automatic derivative from a difference: one that is
wrong, because a network left something out of its graph, is off by more."""


class Linearization(Protocol):
    """Products with the Jacobian ``J[ia, jb] = d f_ia / d r_jb`` of a force at one
    structure."""

    @property
    def has_forward(self) -> bool:
        """Whether there are products with the Jacobian itself."""

    @property
    def n_evaluations(self) -> int:
        """Evaluations so far, forward or backward."""

    def forward(self, direction: Array) -> Array:
        """``J v``, from and to shape ``[n_atoms, 3]``, in eV/Å^2 times the unit of
        ``v``."""

    def transposed(self, direction: Array) -> Array:
        """``J^T v``, likewise."""


class ForceField(Protocol):
    """A force as the model predicts it: a net force is not taken out."""

    @property
    def kind(self) -> str:
        """``conservative``, ``direct`` or ``forces``."""

    @property
    def has_energy(self) -> bool:
        """Whether evaluations come with an energy."""

    def evaluate(self, atoms: ase.Atoms) -> Evaluation:
        """Forces, and the energy where there is one.

        :param atoms: structure; its calculator is not used.
        :raises ValueError: if the model does not know an element.
        :raises RuntimeError: if the model fails, with its own words.
        :raises FloatingPointError: if a result is not finite.
        """

    def linearize(self, atoms: ase.Atoms) -> Optional[Linearization]:
        """Products with the Jacobian by automatic differentiation, if there are."""


# ---------------------------------------------------------------------- exported models


class ModelForce:
    """One of the forces of an exported model.

    :param model: the model.
    :param kind: ``conservative`` or ``direct``.
    :param output: name of the energy or of the direct force.
    """

    def __init__(self, model: LoadedModel, kind: str, output: str) -> None:
        self.kind, self.has_energy = kind, kind == CONSERVATIVE
        self._model, self._output = model, output
        unit = "eV" if self.has_energy else "eV/Angstrom"
        # Sums over atoms are taken in double precision, whatever the model computes in.
        sample_kind = model.outputs[output].sample_kind if self.has_energy else "atom"
        self._options = ModelEvaluationOptions(
            "Angstrom", {output: ModelOutput(unit=unit, sample_kind=sample_kind)}
        )

    def evaluate(self, atoms: ase.Atoms) -> Evaluation:
        """Forces as predicted, and the energy of the conservative ones."""
        positions = self._model.positions(atoms)
        forces, energy = self._forces(atoms, positions, differentiable=False)
        if energy is not None and not torch.isfinite(energy):
            raise FloatingPointError(f"the energy is {energy.item()}")
        return Evaluation(
            check_finite(forces.detach().to("cpu", torch.float64).numpy(), self.kind),
            None if energy is None else energy.item(),
        )

    def _forces(
        self, atoms: ase.Atoms, positions: Tensor, differentiable: bool
    ) -> Tuple[Tensor, Optional[Tensor]]:
        with torch.set_grad_enabled(differentiable or self.has_energy):
            if self.has_energy and not differentiable:
                positions = positions.clone().requires_grad_(True)
            # A graph that is kept must not share memory with later neighbour lists.
            system = self._model.system(atoms, positions, None, copy=differentiable)
            values = self._model.run(system, self._options)[self._output]
            if not self.has_energy:
                return values.reshape(-1, 3), None
            energy = values.sum(dtype=torch.float64)
            (gradient,) = torch.autograd.grad(
                energy, positions, create_graph=differentiable, materialize_grads=True
            )
            return -gradient, energy.detach()

    def linearize(self, atoms: ase.Atoms) -> Optional[Linearization]:
        """Products with the Jacobian; none where the model cannot be differentiated
        often enough, or its derivatives are wrong."""
        try:
            positions = self._model.positions(atoms).clone().requires_grad_(True)
            forces, _ = self._forces(atoms, positions, differentiable=True)
            products = AutomaticProducts(forces, positions, self.kind == CONSERVATIVE)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            logging.info(f"no automatic derivatives of the {self.kind} force: {reason}")
            return None
        return products if self._is_right(products, atoms) else None

    def _is_right(self, products: "AutomaticProducts", atoms: ase.Atoms) -> bool:
        """Compare one number of the Jacobian, and of its transpose, with a
        difference."""
        rng = np.random.default_rng(0)
        direction = rng.choice([-1.0, 1.0], size=(len(atoms), 3))
        step = 1e-3
        ends = []
        for sign in (1.0, -1.0):
            moved = atoms.copy()
            moved.positions = atoms.positions + sign * step * direction
            ends.append(self.evaluate(moved).forces)
        expected = (ends[0] - ends[1]) / (2.0 * step)
        products.n_evaluations += 2
        deviation = products.deviation(direction, expected)
        if deviation <= DERIVATIVE_TOLERANCE:
            return True
        logging.warning(
            f"automatic derivatives of the {self.kind} force differ from differences "
            f"by {deviation:.0%}; differences are used"
        )
        return False


class AutomaticProducts:
    """Products with the Jacobian by automatic differentiation.

    ``J v`` is the derivative of ``J^T w`` by ``w``, which needs the graph of a
    derivative; there is none for a conservative force, whose Jacobian is symmetric as
    soon as it is a second derivative.

    :param forces: shape ``[n_atoms, 3]``, with a graph.
    :param positions: leaf of the graph.
    :param is_gradient: whether the forces are derivatives already.
    """

    def __init__(self, forces: Tensor, positions: Tensor, is_gradient: bool) -> None:
        self._forces, self._positions = forces, positions
        self.n_evaluations = 2 if is_gradient else 1
        self.has_forward = not is_gradient
        self._weights = torch.zeros_like(forces).requires_grad_(True)

    def transposed(self, direction: Array) -> Array:
        """``J^T v``."""
        return self._product(self._forces, self._positions, direction)

    def forward(self, direction: Array) -> Array:
        """``J v``."""
        return self._product(self._transposed_of_weights, self._weights, direction)

    @functools.cached_property
    def _transposed_of_weights(self) -> Tensor:
        (result,) = torch.autograd.grad(
            self._forces, self._positions, self._weights, create_graph=True
        )
        return result

    def deviation(self, direction: Array, expected: Array) -> float:
        """Deviation from what a product should be, relative to it. Products that cannot
        be computed are none from then on.

        :param direction: shape ``[n_atoms, 3]``.
        :param expected: ``J v``, by other means.
        """
        size = float((expected**2).sum())
        # Along the expected change the projection is as large as can be.
        found = [(self.transposed(expected) * direction).sum()]
        if self.has_forward:
            try:
                found.append((self.forward(direction) * expected).sum())
            except RuntimeError:
                self.has_forward = False
        return max(abs(each - size) for each in found) / size if size else 0.0

    def _product(self, result: Tensor, leaf: Tensor, direction: Array) -> Array:
        self.n_evaluations += 1
        weights = torch.as_tensor(direction, dtype=result.dtype, device=result.device)
        (product,) = torch.autograd.grad(
            result, leaf, weights, retain_graph=True, materialize_grads=True
        )
        return product.to("cpu", torch.float64).numpy()


# ------------------------------------------------------------------- other force fields


class CalculatorForce:
    """The forces of a calculator of ASE.

    :param calculator: the calculator.
    :param name: for messages.
    """

    kind = FORCES

    def __init__(self, calculator: Calculator, name: str) -> None:
        self._calculator, self._name = calculator, name
        self.has_energy = "energy" in calculator.implemented_properties

    def evaluate(self, atoms: ase.Atoms) -> Evaluation:
        """Forces and, where the calculator has one, the energy."""
        try:
            # Copies, since calculators keep what they are given.
            structure = atoms.copy()
            forces = self._calculator.get_property("forces", structure)
            energy = None
            if self.has_energy:
                energy = float(self._calculator.get_property("energy", structure))
        except Exception as error:  # calculators raise whatever they like
            raise RuntimeError(
                f"{self._name} failed on {atoms.get_chemical_formula()}: "
                f"{type(error).__name__}: {error}"
            ) from error
        forces = np.asarray(forces, dtype=np.float64)
        if forces.shape != (len(atoms), 3):
            raise RuntimeError(
                f"{self._name} gave forces of shape {list(forces.shape)} for "
                f"{len(atoms)} atoms"
            )
        check_finite(forces, "predicted")
        if energy is not None and not np.isfinite(energy):
            raise FloatingPointError(f"the energy is {energy}")
        return Evaluation(forces.copy(), energy)

    def linearize(self, atoms: ase.Atoms) -> Optional[Linearization]:
        """Nothing: calculators give numbers."""
        return None


class OneForce:
    """A single force in the place of two, for dynamics.

    :param force: conservative, direct or of a calculator; the net force of a direct one
        is taken out, as in :class:`~dualforce.dynamics.HybridForces`.
    """

    has_direct_stress = False

    def __init__(self, force: ForceField) -> None:
        self._force = force

    def conservative(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        """The force; an energy of zero where there is none."""
        result = self._force.evaluate(atoms)
        forces = result.forces
        if self._force.kind == DIRECT:
            forces = forces - forces.mean(0)
        return Evaluation(forces, 0.0 if result.energy is None else result.energy)

    def direct(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        """The same force."""
        return self.conservative(atoms)

    def both(
        self, atoms: ase.Atoms, stress: bool = False
    ) -> Tuple[Evaluation, Evaluation]:
        """The force twice, from one evaluation."""
        evaluation = self.conservative(atoms)
        return evaluation, evaluation

    def reset(self) -> None:
        """Nothing is kept."""


# ------------------------------------------------------------------------------ loading


@dataclass(frozen=True)
class Subject:
    """A model that is judged."""

    name: str
    digest: str
    """Changes with the contents of the model file; of a calculator, with what it was
    made from and the version of its package."""
    forces: Mapping[str, ForceField]
    """By kind: ``conservative`` and ``direct``, one of them, or ``forces``."""
    two_forces: TwoForces
    """For dynamics; a model with one force gives it for both."""

    @property
    def has_both(self) -> bool:
        """Whether there is a conservative and a direct force."""
        return CONSERVATIVE in self.forces and DIRECT in self.forces

    @property
    def has_energy(self) -> bool:
        """Whether one of the forces comes with an energy."""
        return any(force.has_energy for force in self.forces.values())


def load_subject(
    spec: str, device: Optional[str] = None, variant: Optional[str] = None
) -> Subject:
    """The model that a text names.

    :param spec: exported model (``model.pt``), or what returns a calculator of ASE when
        it is called without arguments: ``ase.calculators.emt:EMT``,
        ``path/to/file.py:function``.
    :param device: torch device of exported models, by default the best they support;
        calculators choose themselves.
    :param variant: variant of the outputs of exported models, ``pbe`` for
        ``energy/pbe``.
    :raises FileNotFoundError: if there is no such file.
    :raises ImportError: if there is no such module, or nothing of this name in it.
    :raises ValueError: if what is there is no model, or has no forces.
    """
    place, colon, name = spec.rpartition(":")
    if Path(spec).exists() or not colon or spec.endswith(".pt"):
        return _load_model(spec, device, variant)
    return _load_calculator(spec, place, name)


def model_subject(
    model: LoadedModel, name: str, digest: str, variant: Optional[str] = None
) -> Subject:
    """An exported model as what is judged.

    :param model: the model.
    :param name: what to call it.
    :param digest: of its contents.
    :param variant: variant of its outputs.
    :raises ValueError: if it has neither energy nor direct force.
    """
    outputs = {
        CONSERVATIVE: model.find(("energy",), variant),
        DIRECT: model.find(DIRECT_FORCE, variant),
    }
    forces = {
        kind: ModelForce(model, kind, output)
        for kind, output in outputs.items()
        if output is not None
    }
    if not forces:
        raise ValueError(
            f"{name} has neither an energy nor a direct force; it has "
            f"{', '.join(sorted(model.outputs)) or 'nothing'}"
        )
    if len(forces) == 2:
        two_forces: TwoForces = HybridForces(model.module, variant=variant)
    else:
        two_forces = OneForce(*forces.values())
    return Subject(name, digest, forces, two_forces)


def calculator_subject(calculator: Calculator, name: str, digest: str = "") -> Subject:
    """A calculator of ASE as what is judged.

    :param calculator: the calculator.
    :param name: what to call it.
    :param digest: of what it computes.
    :raises ValueError: if it has no forces.
    """
    if "forces" not in calculator.implemented_properties:
        raise ValueError(
            f"{name} computes no forces, only "
            f"{', '.join(calculator.implemented_properties) or 'nothing'}"
        )
    force = CalculatorForce(calculator, name)
    return Subject(name, digest, {FORCES: force}, OneForce(force))


def _load_model(spec: str, device: Optional[str], variant: Optional[str]) -> Subject:
    path = Path(spec)
    if path.is_dir() or not path.exists():
        problem = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"'{spec}' {problem}; give an exported model (model.pt) or what returns a "
            "calculator of ASE (module:name or file.py:name)"
        )
    try:
        model = LoadedModel(spec, device, SKIN, None)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{spec} is no exported model (`mtt export` makes one of a checkpoint): "
            f"{reason}"
        ) from error
    digest = hashlib.sha256(path.read_bytes() + (variant or "").encode()).hexdigest()
    return model_subject(model, path.name, digest, variant)


def _load_calculator(spec: str, place: str, name: str) -> Subject:
    function, version = _find_function(place, name)
    try:
        calculator = function()
    except Exception as error:  # from other people's code
        raise ValueError(
            f"calling {spec} without arguments failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(calculator, Calculator):
        # Also calculators that only look like one.
        missing = [
            attribute
            for attribute in ("get_property", "implemented_properties")
            if not hasattr(calculator, attribute)
        ]
        if missing:
            raise ValueError(
                f"{spec} returned {type(calculator).__name__}, which is no calculator "
                "of ASE"
            )
    digest = hashlib.sha256(f"{spec} {version}".encode()).hexdigest()
    return calculator_subject(calculator, spec, digest)


def _find_function(place: str, name: str) -> Tuple[Callable[[], Any], str]:
    """What is to be called, and the version of the code it lies in."""
    if place.endswith(".py"):
        module, version = _import_file(place)
    else:
        try:
            module = importlib.import_module(place)
        except ImportError as error:
            raise ImportError(
                f"module '{place}' cannot be imported: {error}"
            ) from error
        version = _version(place)
    if not callable(getattr(module, name, None)):
        raise ImportError(f"'{place}' has nothing called '{name}' that can be called")
    return getattr(module, name), version


def _import_file(path: str) -> Tuple[Any, str]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file '{path}'")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # from other people's code
        raise ImportError(
            f"'{path}' cannot be imported: {type(error).__name__}: {error}"
        ) from error
    return module, hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _version(module: str) -> str:
    package = module.partition(".")[0]
    for distribution in importlib.metadata.packages_distributions().get(package, []):
        return importlib.metadata.version(distribution)
    return ""
