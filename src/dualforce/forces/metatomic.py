"""Forces of exported models: :class:`MetatomicForces`."""

import hashlib
import logging
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Dict, List, Optional, Set, Tuple, Union

import ase
import numpy as np
import torch
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

from ..batches import batches
from .domain import TrainingDomain
from .extensions import derivatives_known, register_derivatives
from .protocol import (
    Array,
    Evaluation,
    EvaluationError,
    ForceSource,
    Kind,
    MissingForceError,
    check_finite,
    list_atoms,
    without_net_force,
)


DIRECT_FORCE = ("non_conservative_force", "non_conservative_forces")
"""Names of the direct force; the second one is that of older models."""
DIRECT_STRESS = "non_conservative_stress"

WARM_UP_EVALUATIONS = 20
"""TorchScript compiles anew during about this many evaluations of a new model."""


def load_model(
    path: Union[str, Path], extensions: Optional[Union[str, Path]] = None
) -> AtomisticModel:
    """Load an exported model.

    :param path: the file.
    :param extensions: folder with its compiled extensions.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if the file holds no such model, or derivatives of its
        extensions are in a package that is not installed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no model file '{path}'")
    register_derivatives(path)
    try:
        return load_atomistic_model(str(path), extensions and str(extensions))
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{path} is not an exported metatomic model ({reason}); a checkpoint is "
            "exported by `mtt export`. A model with compiled extensions needs their "
            "folder (`extensions`)"
        ) from error


class MetatomicForces(ForceSource):
    """Both forces of an exported metatomic model, or the one that it has.

    A direct evaluation computes nothing of the energy, and one forward pass gives both
    forces.

    :param model: exported model: a file, or loaded.
    :param device: torch device, by default the best the model supports.
    :param variant: variant of all outputs, ``pbe`` for ``energy/pbe``.
    :param skin: in Å; neighbour lists are searched anew once an atom has moved by half
        of it, and are exact whatever it is.
    :param extensions: folder with compiled extensions of the model.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is no such model, or needs more than positions and a cell.
    :raises MissingForceError: if it has neither an energy nor a direct force.
    """

    def __init__(
        self,
        model: Union[str, Path, AtomisticModel],
        *,
        device: Optional[str] = None,
        variant: Optional[str] = None,
        skin: float = 1.0,
        extensions: Optional[Union[str, Path]] = None,
    ) -> None:
        if isinstance(model, (str, Path)):
            self.name = str(model)
            loaded = load_model(model, extensions)
            content = Path(model).read_bytes() + (variant or "").encode()
            self.digest = hashlib.sha256(content).hexdigest()
            model = loaded
        capabilities = model.capabilities()
        self.outputs: Dict[str, ModelOutput] = capabilities.outputs
        self.length_unit: str = capabilities.length_unit
        """As the model says it; empty where it says none."""
        self.elements = frozenset(capabilities.atomic_types)
        self.domain = TrainingDomain.from_extra(model.metadata().extra)
        self._device = _pick_device(capabilities.supported_devices, device, self.name)
        self.device = str(self._device)
        self.dtype: torch.dtype = getattr(torch, capabilities.dtype)
        """Precision in which the model exchanges data."""
        self._model = model.to(device=self._device)
        self._refuse_inputs()
        self._skin = skin
        self._find_outputs(variant)
        self._options: Dict[Tuple[str, ...], ModelEvaluationOptions] = {}
        self._warm: Set[bool] = set()
        self._differentiated = False
        self.reset()

    def _refuse_inputs(self) -> None:
        inputs = sorted(self._model.requested_inputs(use_new_names=True))
        if inputs:
            raise ValueError(
                f"{self.name} needs more than positions and a cell "
                f"({', '.join(inputs)}); such models are not supported"
            )

    def _find_outputs(self, variant: Optional[str]) -> None:
        self._energy = self._find(("energy",), variant)
        self._force = self._find(DIRECT_FORCE, variant)
        self._stress = self._find((DIRECT_STRESS,), variant)
        self.has_energy = self.has_conservative = self._energy is not None
        self.has_direct = self._force is not None
        self.has_direct_stress = self.has_direct and self._stress is not None
        if self.domain is not None and self.has_direct:
            known = self.domain.force_difference
            self.usual_correction = known.get(self._energy or "")
        if not (self.has_conservative or self.has_direct):
            raise MissingForceError(
                f"{self.name} has neither an energy nor a direct force "
                f"('{DIRECT_FORCE[0]}'); it has {self._listed_outputs()}"
            )

    def _find(self, names: Tuple[str, ...], variant: Optional[str]) -> Optional[str]:
        """Full name of the first output that the model has, or none: a variant of the
        energy need not have direct forces or stresses."""
        for name in names:
            variants = [
                key.partition("/")[2]
                for key in sorted(self.outputs)
                if key.partition("/")[0] == name
            ]
            if variant in variants:
                return f"{name}/{variant}"
            if variant is not None and variants and name == "energy":
                raise ValueError(
                    f"{self.name} has no variant '{variant}' of its energy; it has "
                    f"{', '.join(filter(None, variants)) or 'none'}"
                )
            if variants and variant is None:
                return self._find_default(name, variants)
        return None

    def _find_default(self, name: str, variants: List[str]) -> str:
        if len(variants) > 1 and "" not in variants:
            raise ValueError(
                f"{self.name} has several variants of '{name}': {', '.join(variants)}; "
                "name one of them (`variant`, on the command line --variant)"
            )
        return str(pick_output(name, self.outputs, None))

    def _listed_outputs(self) -> str:
        return ", ".join(sorted(self.outputs)) or "no outputs"

    def reset(self) -> None:
        """Search neighbour lists anew at the next evaluation (on a CPU, results are
        then bitwise identical whatever came before)."""
        self._numbers: Tuple[int, ...] = ()
        self._neighbor_lists = [
            NeighborList(options, "angstrom", skin=self._skin)
            for options in self._model.requested_neighbor_lists()
        ]

    # ------------------------------------------------------------------ evaluation

    def conservative(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        """Energy and its negative gradient; see :meth:`ForceSource.conservative`."""
        return self._differentiate([atoms], stress, [])[0][0]

    def direct(self, atoms: ase.Atoms, stress: bool = False) -> Evaluation:
        """Direct forces, without a backward pass; see :meth:`ForceSource.direct`."""
        names = self._direct_names(stress)
        with torch.no_grad():
            system = self._system(atoms, self._positions(atoms), None, stress=stress)
            return self._direct_results([atoms], self._run([system], names))[0]

    def both(
        self, atoms: ase.Atoms, stress: bool = False
    ) -> Tuple[Evaluation, Evaluation]:
        """Conservative and direct evaluation from one forward pass; see
        :meth:`ForceSource.both`."""
        names = self._direct_names(stress)
        results, values = self._differentiate([atoms], stress, names)
        return results[0], self._direct_results([atoms], values)[0]

    def evaluate_batch(
        self, kind: Kind, frames: Sequence[ase.Atoms], stress: bool = False
    ) -> List[Evaluation]:
        """Forces of several structures, some at a time (:mod:`dualforce.batches`)."""
        results: List[Evaluation] = []
        for batch in batches(frames):
            if kind == "conservative":
                results += self._differentiate(batch, stress, [])[0]
                continue
            names = self._direct_names(stress)
            with torch.no_grad():
                systems = [
                    self._system(atoms, self._positions(atoms), None, True, stress)
                    for atoms in batch
                ]
                results += self._direct_results(batch, self._run(systems, names))
        return results

    def differentiable(self, kind: Kind, atoms: ase.Atoms) -> Tuple[Tensor, Tensor]:
        """Forces with a graph; see :meth:`ForceSource.differentiable`."""
        positions = self._positions(atoms).clone().requires_grad_(True)
        # A graph that is kept must not share memory with later neighbour lists.
        system = self._system(atoms, positions, None, copy=True)
        if kind == "direct":
            (name,) = self._direct_names(stress=False)
            return positions, self._run([system], [name])[name].reshape(-1, 3)
        name = self._energy_name()
        energy = self._run([system], [name])[name].sum(dtype=torch.float64)
        (gradient,) = self._gradients(energy, [positions], create_graph=True)
        return positions, -gradient

    def _differentiate(
        self, frames: Sequence[ase.Atoms], stress: bool, also: List[str]
    ) -> Tuple[List[Evaluation], Dict[str, Tensor]]:
        """Energies and gradients, and values of other outputs from the same pass."""
        name = self._energy_name()
        leaves = [
            self._positions(atoms).clone().requires_grad_(True) for atoms in frames
        ]
        strains: List[Optional[Tensor]] = [None] * len(frames)
        if stress:
            unit = torch.eye(3, dtype=self.dtype, device=self._device)
            strains = [unit.clone().requires_grad_(True) for _ in frames]
        copy = len(frames) > 1
        systems = [
            self._system(atoms, positions, strain, copy, stress)
            for atoms, positions, strain in zip(frames, leaves, strains, strict=True)
        ]
        values = self._run(systems, [name, *also])
        per_atom = self._energy_kind() == "atom"
        sizes = [len(atoms) if per_atom else 1 for atoms in frames]
        energies = [part.sum(dtype=torch.float64) for part in values[name].split(sizes)]
        wanted = leaves + [strain for strain in strains if strain is not None]
        gradients = self._gradients(torch.stack(energies).sum(), wanted)
        strain_gradients = [*gradients[len(frames) :], *([None] * len(frames))]
        results = [
            _evaluation(atoms, energy, gradient, strain)
            for atoms, energy, gradient, strain in zip(
                frames, energies, gradients, strain_gradients, strict=False
            )
        ]
        return results, values

    def _gradients(
        self, energy: Tensor, inputs: List[Tensor], create_graph: bool = False
    ) -> Tuple[Tensor, ...]:
        # Once: looking for warnings makes Python repeat others.
        known = self._differentiated
        with nullcontext() if known else derivatives_known(self.name):
            gradients = torch.autograd.grad(
                energy, inputs, create_graph=create_graph, materialize_grads=True
            )
        self._differentiated = True
        return gradients

    def _direct_results(
        self, frames: Sequence[ase.Atoms], values: Dict[str, Tensor]
    ) -> List[Evaluation]:
        assert self._force is not None
        sizes = [len(atoms) for atoms in frames]
        forces = _to_numpy(values[self._force]).reshape(-1, 3)
        stresses: List[Optional[Array]] = [None] * len(frames)
        if self._stress in values:
            stresses = list(_to_numpy(values[self._stress]).reshape(-1, 3, 3))
        return [
            without_net_force(
                atoms,
                Evaluation(
                    check_finite(part, "direct"),
                    stress=None if stress is None else _symmetric(stress),
                ),
            )
            for atoms, part, stress in zip(
                frames, np.split(forces, np.cumsum(sizes)[:-1]), stresses, strict=True
            )
        ]

    def _energy_name(self) -> str:
        if self._energy is None:
            raise MissingForceError(
                f"{self.name} has no energy, and so no conservative force; it has "
                f"{self._listed_outputs()}"
            )
        return self._energy

    def _direct_names(self, stress: bool) -> List[str]:
        if self._force is None:
            raise MissingForceError(
                f"{self.name} has no direct force ('{DIRECT_FORCE[0]}'): train with "
                "`forces: hybrid`, or take it from a second model. It has "
                f"{self._listed_outputs()}"
            )
        if stress and self._stress is not None:
            return [self._force, self._stress]
        return [self._force]

    # ------------------------------------------------------------ the model itself

    def _positions(self, atoms: ase.Atoms) -> Tensor:
        """Positions as the model takes them.

        :raises FloatingPointError: naming the atoms whose positions are not finite.
        """
        wrong = np.flatnonzero(~np.isfinite(atoms.positions).all(1))
        if len(wrong):
            raise FloatingPointError(
                f"the positions of atoms {list_atoms(wrong)} are not finite"
            )
        return torch.as_tensor(atoms.positions, dtype=self.dtype, device=self._device)

    def _types_of(self, atoms: ase.Atoms) -> Tensor:
        numbers = tuple(atoms.numbers.tolist())
        if numbers != self._numbers:
            self.check_elements(atoms)
            self._numbers = numbers
            self._types = torch.tensor(numbers, dtype=torch.int32, device=self._device)
        return self._types

    def _system(
        self,
        atoms: ase.Atoms,
        positions: Tensor,
        strain: Optional[Tensor],
        copy: bool = False,
        stress: bool = False,
    ) -> System:
        """The structure with its neighbour lists.

        :param positions: positions of the atoms, maybe a leaf of a graph.
        :param strain: deformation of positions and cell, likewise.
        :param copy: for graphs that are still used after the next call of this method:
            without a copy, the pairs lie in memory that the next search reuses.
        :param stress: whether the model is asked for a stress, and needs the volume.
        :raises ValueError: if the volume is needed and the cell has none.
        """
        cell = torch.as_tensor(atoms.cell.array, dtype=self.dtype, device=self._device)
        pbc = torch.as_tensor(atoms.pbc, device=self._device)
        if strain is not None:
            positions, cell = positions @ strain, cell @ strain
        system = System(self._types_of(atoms), positions, cell * pbc.unsqueeze(1), pbc)
        for neighbor_list in self._neighbor_lists:
            neighbor_list.add_neighbor_list(system, copy=copy)
        return _with_volume(system, atoms, cell) if stress else system

    def _run(self, systems: List[System], names: List[str]) -> Dict[str, Tensor]:
        """Values of outputs.

        :raises EvaluationError: if the model fails, with its own words.
        """
        options = self._request(tuple(names))
        try:
            results = self._model(systems, options, check_consistency=False)
        except torch.jit.Error as error:
            # All but the last line are the traceback of TorchScript.
            reason = str(error).strip().splitlines()[-1].split(": ", 1)[-1]
            raise EvaluationError(f"{self.name} failed: {reason}") from error
        return {name: result.block().values for name, result in results.items()}

    def _request(self, names: Tuple[str, ...]) -> ModelEvaluationOptions:
        if names not in self._options:
            kinds = {
                self._energy: ("eV", self._energy_kind()),
                self._force: ("eV/Angstrom", "atom"),
                self._stress: ("eV/Angstrom^3", "system"),
            }
            outputs = {
                name: ModelOutput(unit=kinds[name][0], sample_kind=kinds[name][1])
                for name in names
            }
            self._options[names] = ModelEvaluationOptions("Angstrom", outputs)
        return self._options[names]

    def _energy_kind(self) -> str:
        # Totals in single precision are rounded, sums over atoms in double are not.
        if self._energy is None or self.dtype == torch.float64:
            return "system"
        return "atom" if self.outputs[self._energy].sample_kind == "atom" else "system"

    # --------------------------------------------------------------------- warm-up

    def warm_up(self, atoms: ase.Atoms, stress: bool = False) -> None:
        """Evaluate until TorchScript has compiled what it wants to compile; a second
        call does nothing.

        :param atoms: structure like those that follow.
        :param stress: whether they come with stresses.
        """
        if stress in self._warm:
            return
        start = time.perf_counter()
        moved = atoms.copy()
        rng = np.random.default_rng(0)
        requests = [self.direct] if self.has_direct else []
        if self.has_conservative:
            requests.append(self.both if self.has_direct else self.conservative)  # type: ignore[arg-type]
        for request in requests:
            for _ in range(WARM_UP_EVALUATIONS):
                noise = rng.normal(0.0, 0.01, atoms.positions.shape)
                moved.positions = atoms.positions + noise
                request(moved, stress)
        self._warm.add(stress)
        seconds = time.perf_counter() - start
        logging.info(f"TorchScript compiled the model in {seconds:.1f} s")


def _pick_device(
    supported: List[str], wanted: Optional[str], name: str
) -> torch.device:
    try:
        return torch.device(pick_device(supported, wanted))
    except RuntimeError as error:
        raise ValueError(
            f"{name} cannot run on the device '{wanted}': it is for "
            f"{', '.join(supported)}, and this machine "
            f"{'has a GPU' if torch.cuda.is_available() else 'has no GPU for torch'}"
        ) from error


def _with_volume(system: System, atoms: ase.Atoms, cell: Tensor) -> System:
    """A structure whose stress can be asked for: with the volume that ASE gives it.

    metatomic sets the cell vectors of directions without period to zero, and a model
    cannot know the volume of a slab. It gets the whole cell here, and the neighbours
    that the slab has without a period across the vacuum.
    """
    if atoms.cell.rank < 3:
        raise ValueError(
            "the structure has no volume, and so no stress: give it three cell vectors "
            "(a slab or a molecule: through the vacuum)"
        )
    if atoms.pbc.all():
        return system
    everywhere = torch.ones_like(system.pbc)
    whole = System(system.types, system.positions, cell, everywhere)
    for options in system.known_neighbor_lists():
        whole.add_neighbor_list(options, system.get_neighbor_list(options))
    return whole


def _evaluation(
    atoms: ase.Atoms, energy: Tensor, gradient: Tensor, strain: Optional[Tensor]
) -> Evaluation:
    # Forces first, since they name atoms.
    forces = check_finite(-_to_numpy(gradient), "conservative")
    if not torch.isfinite(energy):
        raise FloatingPointError(f"the energy is {energy.item()}")
    stress = None
    if strain is not None:
        stress = _symmetric(_to_numpy(strain) / atoms.get_volume())
    return Evaluation(forces, energy.item(), stress)


def _symmetric(matrix: Array) -> Array:
    return 0.5 * (matrix + matrix.T)


def _to_numpy(tensor: Tensor) -> Array:
    return tensor.detach().to(device="cpu", dtype=torch.float64).numpy()
