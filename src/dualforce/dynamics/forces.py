"""Both forces of exported models: :class:`HybridForces`."""

import logging
import time
from pathlib import Path
from typing import Dict, List, Optional, Set, Tuple, Union

import ase
import numpy as np
import torch
from ase.data import chemical_symbols
from metatomic.torch import (
    AtomisticModel,
    ModelEvaluationOptions,
    ModelOutput,
    System,
    load_atomistic_model,
    pick_device,
    pick_output,
)
from torch import Tensor
from vesin.metatomic import NeighborList

from .evaluation import Array, Evaluation, check_finite, list_atoms


DIRECT_FORCE = ("non_conservative_force", "non_conservative_forces")
"""Names of the direct force; the second one is that of older models."""
DIRECT_STRESS = "non_conservative_stress"

WARM_UP_EVALUATIONS = 20
"""TorchScript compiles anew during about this many evaluations of a new model."""

Source = Union[str, Path, AtomisticModel]


class MissingOutputError(ValueError):
    """A model lacks an output that is needed."""


class LoadedModel:
    """An exported model on its device, with its neighbour lists.

    :param source: file or loaded model.
    :param device: torch device, by default the best the model supports.
    :param skin: of the neighbour lists, in Å.
    :param extensions: folder with compiled extensions of the model.
    """

    def __init__(
        self,
        source: Source,
        device: Optional[str],
        skin: float,
        extensions: Optional[Union[str, Path]],
    ) -> None:
        self.name = "the model"
        if isinstance(source, (str, Path)):
            self.name = str(source)
            if not Path(source).is_file():
                raise FileNotFoundError(f"there is no model file '{source}'")
            source = load_atomistic_model(
                str(source), extensions_directory=extensions and str(extensions)
            )
        capabilities = source.capabilities()
        self.outputs: Dict[str, ModelOutput] = capabilities.outputs
        self.atomic_types: Set[int] = set(capabilities.atomic_types)
        self.device = torch.device(pick_device(capabilities.supported_devices, device))
        self.dtype: torch.dtype = getattr(torch, capabilities.dtype)
        self.module = source.to(device=self.device)
        inputs = sorted(self.module.requested_inputs(use_new_names=True))
        if inputs:
            raise ValueError(
                f"{self.name} needs more than positions and a cell "
                f"({', '.join(inputs)}); such models are not supported"
            )
        self.skin = skin
        self.reset()

    def reset(self) -> None:
        """Search neighbour lists anew at the next evaluation."""
        self._numbers: Tuple[int, ...] = ()
        self._neighbor_lists = [
            NeighborList(options, "angstrom", skin=self.skin)
            for options in self.module.requested_neighbor_lists()
        ]

    def find(self, names: Tuple[str, ...], variant: Optional[str]) -> Optional[str]:
        """Full name of the first output that the model has, or none."""
        for name in names:
            if any(key.partition("/")[0] == name for key in self.outputs):
                return str(pick_output(name, self.outputs, variant))
        return None

    def _types_of(self, atoms: ase.Atoms) -> Tensor:
        numbers = tuple(atoms.numbers.tolist())
        if numbers != self._numbers:
            unknown = sorted(set(numbers) - self.atomic_types)
            if unknown:
                raise ValueError(
                    f"{self.name} does not know {_symbols(unknown)}; it knows "
                    f"{_symbols(sorted(self.atomic_types))}"
                )
            self._numbers = numbers
            self._types = torch.tensor(numbers, dtype=torch.int32, device=self.device)
        return self._types

    def positions(self, atoms: ase.Atoms) -> Tensor:
        """Positions as the model takes them.

        :raises FloatingPointError: naming the atoms whose positions are not finite.
        """
        wrong = np.flatnonzero(~np.isfinite(atoms.positions).all(1))
        if len(wrong):
            raise FloatingPointError(
                f"the positions of atoms {list_atoms(wrong)} are not finite"
            )
        return torch.as_tensor(atoms.positions, dtype=self.dtype, device=self.device)

    def system(
        self,
        atoms: ase.Atoms,
        positions: Tensor,
        strain: Optional[Tensor],
        copy: bool = False,
    ) -> System:
        """The structure with its neighbour lists.

        :param positions: positions of the atoms, maybe a leaf of a graph.
        :param strain: deformation of positions and cell, likewise.
        :param copy: for graphs that are still used after the next call of this method:
            without a copy, the pairs lie in memory that the next search reuses.
        """
        cell = torch.as_tensor(atoms.cell.array, dtype=self.dtype, device=self.device)
        pbc = torch.as_tensor(atoms.pbc, device=self.device)
        cell = cell * pbc.unsqueeze(1)
        if strain is not None:
            positions, cell = positions @ strain, cell @ strain
        system = System(self._types_of(atoms), positions, cell, pbc)
        for neighbor_list in self._neighbor_lists:
            neighbor_list.add_neighbor_list(system, copy=copy)
        return system

    def run(self, system: System, options: ModelEvaluationOptions) -> Dict[str, Tensor]:
        """Values of the requested outputs.

        :raises RuntimeError: if the model fails, with its own words.
        """
        try:
            results = self.module([system], options, check_consistency=False)
        except torch.jit.Error as error:
            # All but the last line are the traceback of TorchScript.
            reason = str(error).strip().splitlines()[-1].split(": ", 1)[-1]
            raise RuntimeError(f"{self.name} failed: {reason}") from error
        return {name: result.block().values for name, result in results.items()}


class HybridForces:
    """Both forces of an exported metatomic model, or of two.

    A direct evaluation computes nothing of the energy, and one forward pass gives both
    forces at the outer points of a multiple-time-step trajectory.

    :param model: exported model (a file or a loaded model) with an ``energy`` and,
        unless ``direct_model`` is given, a ``non_conservative_force``.
    :param direct_model: exported model to take direct forces and stresses from.
    :param device: torch device, by default the best the model supports.
    :param variant: variant of all outputs, ``pbe`` for ``energy/pbe``.
    :param skin: in Å; neighbour lists are searched anew once an atom has moved by half
        of it, and are exact whatever it is.
    :param extensions: folder with compiled extensions of the model.
    :raises FileNotFoundError: if there is no such file.
    :raises MissingOutputError: if the energy or the direct force is missing.
    """

    def __init__(
        self,
        model: Source,
        direct_model: Optional[Source] = None,
        *,
        device: Optional[str] = None,
        variant: Optional[str] = None,
        skin: float = 1.0,
        extensions: Optional[Union[str, Path]] = None,
    ) -> None:
        self._model = LoadedModel(model, device, skin, extensions)
        self._direct_model = self._model
        if direct_model is not None:
            self._direct_model = LoadedModel(direct_model, device, skin, extensions)
        self._energy, self._force = self._required_outputs(variant)
        self._stress = self._direct_model.find((DIRECT_STRESS,), variant)
        # Totals in single precision are rounded, sums over atoms in double are not.
        single = self._model.dtype != torch.float64
        per_atom = self._model.outputs[self._energy].sample_kind == "atom"
        self._energy_kind = "atom" if single and per_atom else "system"
        self._options: Dict[Tuple[str, ...], ModelEvaluationOptions] = {}
        self._warm: Set[bool] = set()

    def _required_outputs(self, variant: Optional[str]) -> Tuple[str, str]:
        energy = self._model.find(("energy",), variant)
        if energy is None:
            raise MissingOutputError(
                f"{self._model.name} has no energy, and so no conservative force; it "
                f"has {', '.join(sorted(self._model.outputs))}"
            )
        force = self._direct_model.find(DIRECT_FORCE, variant)
        if force is None:
            raise MissingOutputError(
                f"{self._direct_model.name} has no direct force "
                f"('{DIRECT_FORCE[0]}'): train with `forces: hybrid`, or take it from "
                "a second model. It has "
                f"{', '.join(sorted(self._direct_model.outputs))}"
            )
        return energy, force

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self._model.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision in which the model exchanges data."""
        return self._model.dtype

    @property
    def has_direct_stress(self) -> bool:
        """Whether direct evaluations can give a stress."""
        return self._stress is not None

    def reset(self) -> None:
        """Search neighbour lists anew. The same evaluations after it give the same
        bits, whatever came before (on a CPU)."""
        self._model.reset()
        self._direct_model.reset()

    # ------------------------------------------------------------------ evaluation

    def direct(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        """Direct forces: no energy, no backward pass.

        :param atoms: structure; its calculator is not used.
        :param stress: compute the direct stress too, where the model has one.
        :raises ValueError: if the model does not know an element.
        :raises FloatingPointError: if a force is not finite.
        """
        model = self._direct_model
        with torch.no_grad():
            positions = model.positions(atoms)
            system = model.system(atoms, positions, None)
            values = model.run(system, self._request(self._direct_names(stress)))
            return self._direct_result(values)

    def conservative(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        """Energy and its negative gradient.

        :param atoms: structure; its calculator is not used.
        :param stress: compute the stress too.
        :raises ValueError: if the model does not know an element.
        :raises FloatingPointError: if energy or a force is not finite.
        """
        return self._differentiate(atoms, stress, [])[0]

    def both(
        self, atoms: ase.Atoms, stress: bool = False
    ) -> Tuple[Evaluation, Evaluation]:
        """Conservative and direct evaluation, in this order, from one forward pass
        (two models: one of each).

        :param atoms: structure; its calculator is not used.
        :param stress: compute stresses too.
        :raises ValueError: if the model does not know an element.
        :raises FloatingPointError: if energy or a force is not finite.
        """
        if self._direct_model is not self._model:
            return self.conservative(atoms, stress), self.direct(atoms, stress)
        result, values = self._differentiate(atoms, stress, self._direct_names(stress))
        return result, self._direct_result(values)

    def _differentiate(
        self, atoms: ase.Atoms, stress: bool, also: List[str]
    ) -> Tuple[Evaluation, Dict[str, Tensor]]:
        """Energy and gradients, and values of other outputs from the same pass."""
        model = self._model
        leaves = [model.positions(atoms).clone().requires_grad_(True)]
        if stress:
            leaves.append(torch.eye(3, dtype=model.dtype, device=model.device))
            leaves[1].requires_grad_(True)
        system = model.system(atoms, leaves[0], leaves[1] if stress else None)
        values = model.run(system, self._request([self._energy, *also]))
        energy = values[self._energy].sum(dtype=torch.float64)
        gradients = torch.autograd.grad(energy, leaves)
        # Forces first, since they name atoms.
        forces = check_finite(-_to_numpy(gradients[0]), "conservative")
        if not torch.isfinite(energy):
            raise FloatingPointError(f"the energy is {energy.item()}")
        virial = None
        if stress:
            virial = _to_numpy(gradients[1]) / atoms.get_volume()
            virial = 0.5 * (virial + virial.T)
        return Evaluation(forces, energy.item(), virial), values

    def _direct_result(self, values: Dict[str, Tensor]) -> Evaluation:
        forces = check_finite(_to_numpy(values[self._force]).reshape(-1, 3), "direct")
        stress = None
        if self._stress in values:
            stress = _to_numpy(values[self._stress]).reshape(3, 3)
            stress = 0.5 * (stress + stress.T)
        return Evaluation(forces - forces.mean(0), stress=stress)

    def _direct_names(self, stress: bool) -> List[str]:
        if stress and self._stress is not None:
            return [self._force, self._stress]
        return [self._force]

    def _request(self, names: List[str]) -> ModelEvaluationOptions:
        key = tuple(names)
        if key not in self._options:
            kinds = {
                self._energy: ("eV", self._energy_kind),
                self._force: ("eV/Angstrom", "atom"),
                self._stress: ("eV/Angstrom^3", "system"),
            }
            outputs = {
                name: ModelOutput(unit=kinds[name][0], sample_kind=kinds[name][1])
                for name in names
            }
            self._options[key] = ModelEvaluationOptions("Angstrom", outputs)
        return self._options[key]

    # --------------------------------------------------------------------- warm-up

    def warm_up(self, atoms: ase.Atoms, stress: bool = False) -> float:
        """Evaluate until TorchScript has compiled what it wants to compile; a second
        call does nothing.

        :param atoms: structure like those that follow.
        :param stress: whether they come with stresses.
        :return: seconds it took.
        """
        if stress in self._warm:
            return 0.0
        start = time.perf_counter()
        moved = atoms.copy()
        rng = np.random.default_rng(0)
        for evaluate in (self.direct, self.both):
            for _ in range(WARM_UP_EVALUATIONS):
                noise = rng.normal(0.0, 0.01, atoms.positions.shape)
                moved.positions = atoms.positions + noise
                evaluate(moved, stress)
        self._warm.add(stress)
        seconds = time.perf_counter() - start
        logging.info(f"TorchScript compiled the model in {seconds:.1f} s")
        return seconds


def _symbols(numbers: List[int]) -> str:
    return ", ".join(chemical_symbols[number] for number in numbers)


def _to_numpy(tensor: Tensor) -> Array:
    return tensor.detach().to(device="cpu", dtype=torch.float64).numpy()
