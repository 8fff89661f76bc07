"""Models of torch-sim with two forces."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

import ase
import torch
from metatomic.torch import AtomisticModel, System
from torch import Tensor
from vesin.metatomic import NeighborList

from ..forces import MissingForceError, names_calculator
from .dependency import ModelInterface, SimState
from .exported import ExportedModel
from .state import sum_by_system


class TwoForceModel(ModelInterface):
    """A model of torch-sim with a direct force besides energy and conservative force.

    To torch-sim it is a model like any other: called with a state it returns energy
    and conservative forces. Positions and momenta are kept in double precision
    (``dtype``), whatever the network computes in.
    """

    has_direct = True
    """Whether there is a direct force."""
    name = "the model"
    """For messages."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self._device, self._dtype = device, dtype
        self._compute_forces, self._compute_stress = True, False

    @property
    def compute_stress(self) -> bool:
        """Whether conservative evaluations give the stress; not needed by dynamics at
        constant volume."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, value: bool) -> None:
        self._compute_stress = value

    @abstractmethod
    def forward(self, state: SimState, **kwargs: Any) -> Dict[str, Tensor]:
        """Energy and conservative forces.

        :param state: systems.
        :return: ``energy`` in eV, in double precision, shape ``[n_systems]``;
            ``forces`` in eV/Å, shape ``[n_atoms, 3]``; where it is computed, ``stress``
            in eV/Å^3, positive under tension, shape ``[n_systems, 3, 3]``.
        """

    @abstractmethod
    def direct(self, state: SimState) -> Tensor:
        """Direct forces without net force (:func:`without_net_force`), and nothing of
        the energy.

        :param state: systems.
        :return: in eV/Å, shape ``[n_atoms, 3]``.
        :raises MissingForceError: if there is no direct force.
        """

    def both(self, state: SimState) -> Dict[str, Tensor]:
        """What :meth:`forward` returns, and ``direct_forces``; from one pass where the
        model can do it.

        :param state: systems.
        """
        return {**self(state), "direct_forces": self.direct(state)}


class MetatomicTwoForceModel(TwoForceModel):
    """An exported metatomic model with both forces, or one of them.

    A direct evaluation computes nothing of the energy, and one forward pass gives both
    forces. (``MetatomicModel`` of metatomic-torchsim computes the energy with every
    evaluation, in the precision of the model, and removes net forces in equal shares.)

    Neighbours are searched at every evaluation, so that forces depend on the state and
    on nothing else: runs that are continued from a saved state follow the same
    trajectory, bitwise on a CPU.

    :param source: the exported model.
    """

    def __init__(self, source: ExportedModel) -> None:
        super().__init__(torch.device(source.device), torch.float64)
        self.name, self.has_direct = source.name, source.has_direct
        self.has_conservative = source.has_conservative
        self._source = source
        self._checked: Optional[Tensor] = None
        self._neighbor_lists = [
            NeighborList(options, "angstrom", skin=0.0)
            for options in source.neighbor_list_options()
        ]

    def forward(self, state: SimState, **kwargs: Any) -> Dict[str, Tensor]:
        """Energy and conservative forces; see :meth:`TwoForceModel.forward`.

        :raises ValueError: if an element is not known.
        :raises EvaluationError: if the model fails, with its own words.
        """
        return self._differentiate(state, direct=False)

    def direct(self, state: SimState) -> Tensor:
        """Direct forces, without a backward pass; see :meth:`TwoForceModel.direct`.

        :raises ValueError: if an element is not known.
        :raises EvaluationError: if the model fails, with its own words.
        """
        with torch.no_grad():
            systems = self._systems(state, self._positions(state), None)
            values = self._source.evaluate_systems(systems, energy=False, direct=True)
        return without_net_force(values["direct_forces"], state)

    def both(self, state: SimState) -> Dict[str, Tensor]:
        """Energy and both forces from one forward pass; see
        :meth:`TwoForceModel.both`."""
        return self._differentiate(state, direct=True)

    def _differentiate(self, state: SimState, direct: bool) -> Dict[str, Tensor]:
        leaves = [x.clone().requires_grad_(True) for x in self._positions(state)]
        strains = None
        if self._compute_stress:
            unit = torch.eye(3, dtype=self._source.dtype, device=self._device)
            strains = [unit.clone().requires_grad_(True) for _ in leaves]
        systems = self._systems(state, leaves, strains)
        values = self._source.evaluate_systems(systems, energy=True, direct=direct)
        energies = values["energy"]
        gradients = torch.autograd.grad(
            energies.sum(), leaves + (strains or []), materialize_grads=True
        )
        n_systems = len(leaves)
        results = {
            "energy": energies.detach(),
            "forces": -torch.cat(gradients[:n_systems]).to(state.dtype),
        }
        if strains is not None:
            results["stress"] = _stress(torch.stack(gradients[n_systems:]), state)
        if direct:
            results["direct_forces"] = without_net_force(
                values["direct_forces"].detach(), state
            )
        return results

    def _positions(self, state: SimState) -> List[Tensor]:
        """Positions of each system as the model takes them.

        :raises FloatingPointError: if some are not finite.
        """
        if not bool(torch.isfinite(state.positions).all()):
            raise FloatingPointError("the positions are not finite")
        positions = state.positions.detach().to(self._source.dtype)
        return list(positions.split(state.n_atoms_per_system.tolist()))

    def _systems(
        self, state: SimState, positions: List[Tensor], strains: Optional[List[Tensor]]
    ) -> List[System]:
        """Systems with their neighbour lists.

        :param positions: of each system, maybe leaves of a graph.
        :param strains: deformations of positions and cells, likewise.
        """
        self._check_elements(state)
        types = state.atomic_numbers.to(torch.int32).split([len(x) for x in positions])
        pbc = state.pbc
        # metatomic wants no cell vectors in directions without a period
        cells = state.row_vector_cell.to(self._source.dtype) * pbc.unsqueeze(1)
        systems = []
        for index, (numbers, x, cell) in enumerate(
            zip(types, positions, cells, strict=True)
        ):
            if strains is not None:
                x, cell = x @ strains[index], cell @ strains[index]
            system = System(numbers, x, cell, pbc)
            for neighbor_list in self._neighbor_lists:
                neighbor_list.add_neighbor_list(system)
            systems.append(system)
        return systems

    def _check_elements(self, state: SimState) -> None:
        if state.atomic_numbers is not self._checked:
            numbers = state.atomic_numbers.unique().tolist()
            self._source.check_elements(ase.Atoms(numbers=numbers))
            self._checked = state.atomic_numbers


class CombinedModel(TwoForceModel):
    """The energy and conservative force of one model, the direct force of another.

    :param energy: any model of torch-sim.
    :param direct: its direct force is taken where it has one, otherwise its
        conservative force (a cheaper potential, for instance).
    :raises ValueError: if the models are on different devices.
    """

    def __init__(self, energy: ModelInterface, direct: ModelInterface) -> None:
        super().__init__(energy.device, energy.dtype)
        if torch.device(energy.device).type != torch.device(direct.device).type:
            raise ValueError(
                f"the models are on different devices: {energy.device} and "
                f"{direct.device}"
            )
        self.energy_model, self.direct_model = energy, direct
        names = [getattr(m, "name", type(m).__name__) for m in (energy, direct)]
        self.name = f"{names[0]} with the direct force of {names[1]}"

    @property
    def compute_stress(self) -> bool:
        """Whether conservative evaluations give the stress."""
        return bool(self.energy_model.compute_stress)

    @compute_stress.setter
    def compute_stress(self, value: bool) -> None:
        self.energy_model.compute_stress = value

    def forward(self, state: SimState, **kwargs: Any) -> Dict[str, Tensor]:
        """What the first model returns."""
        results: Dict[str, Tensor] = self.energy_model(state, **kwargs)
        return results

    def direct(self, state: SimState) -> Tensor:
        """Direct forces of the second model."""
        model = self.direct_model
        if isinstance(model, TwoForceModel) and model.has_direct:
            return model.direct(state)
        return without_net_force(model(state)["forces"], state)


def load_model(
    model: Union[str, Path, AtomisticModel],
    direct_model: Optional[Union[str, Path, AtomisticModel]] = None,
    *,
    device: Optional[str] = None,
    variant: Optional[str] = None,
    extensions: Optional[Union[str, Path]] = None,
) -> TwoForceModel:
    """Load exported models for torch-sim.

    :param model: exported model (``model.pt``), a file or loaded.
    :param direct_model: likewise; takes direct forces from there.
    :param device: torch device, by default the best the model supports.
    :param variant: variant of the outputs, ``pbe`` for ``energy/pbe``.
    :param extensions: folder with compiled extensions of the models.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is no exported model.
    :raises MissingForceError: if the first model has no energy.
    """

    def load(one: Union[str, Path, AtomisticModel]) -> MetatomicTwoForceModel:
        if isinstance(one, (str, Path)) and names_calculator(one):
            raise ValueError(
                f"'{one}' is a calculator of ASE; torch-sim needs an exported model "
                "(model.pt)"
            )
        exported = ExportedModel(
            one, device=device, variant=variant, extensions=extensions
        )
        return MetatomicTwoForceModel(exported)

    loaded = load(model)
    if not loaded.has_conservative:
        raise MissingForceError(
            f"{loaded.name} has no energy, and so no conservative force, which the "
            "dynamics needs at the outer points"
        )
    return loaded if direct_model is None else CombinedModel(loaded, load(direct_model))


def without_net_force(forces: Tensor, state: SimState) -> Tensor:
    r"""Direct forces that leave the centres of mass at rest.

    .. math:: f_i \leftarrow f_i - \frac{m_i}{M} \sum_j f_j

    with sums over the atoms of the same system; see
    :func:`dualforce.forces.without_net_force`.

    :param forces: as a model predicts them, in eV/Å, shape ``[n_atoms, 3]``.
    :param state: systems, for their masses.
    :return: in the precision of the state.
    """
    index, n_systems = state.system_idx, len(state.cell)
    forces, masses = forces.to(torch.float64), state.masses.to(torch.float64)
    net = sum_by_system(forces, index, n_systems)
    shares = masses / sum_by_system(masses, index, n_systems)[index]
    return (forces - shares.unsqueeze(1) * net[index]).to(state.dtype)


def _stress(strain_gradients: Tensor, state: SimState) -> Tensor:
    """Symmetric stress; NaN where a system has no volume."""
    volumes = torch.det(state.cell).abs().reshape(-1, 1, 1)
    symmetric = 0.5 * (strain_gradients + strain_gradients.mT).to(state.dtype)
    return torch.where(volumes > 0.0, symmetric / volumes, torch.nan)
