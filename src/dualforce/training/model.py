"""The model: a network, its scales and baselines, and the outputs engines ask for."""

import logging
import math
from typing import Any, Dict, List, Literal, Optional, Tuple

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import (
    AtomisticModel,
    ModelCapabilities,
    ModelMetadata,
    ModelOutput,
    NeighborListOptions,
    System,
    unit_conversion_factor,
)
from metatrain.utils.abc import ModelInterface
from metatrain.utils.architectures import get_default_hypers
from metatrain.utils.data import DatasetInfo, TargetInfo
from metatrain.utils.dtype import dtype_to_str
from metatrain.utils.hypers import raise_if_hypers_mismatch
from metatrain.utils.metadata import merge_metadata
from torch import Tensor, nn

from ..nn import Backbone, make_backbone
from ..nn.calibration import Calibration
from ..nn.pair_potential import PairPotential
from ..nn.pairs import Edges, NoPairTerm
from ..nn.repulsion import Repulsion, WallRepulsion
from . import upgrades
from .options import ModelHypers
from .targets import (
    FORCE,
    FORCES_GRADIENT,
    STRESS,
    check_unit_of_kept,
    energy_targets,
    target_kind,
    with_direct_targets,
)


NAME = "experimental.dualforce"


class DualForce(ModelInterface[ModelHypers]):
    """Energies with conservative forces, and direct forces, from one network.

    :param hypers: see :class:`dualforce.training.options.ModelHypers`.
    :param dataset_info: atomic types and targets, as the user declared them. Direct
        targets are derived from energies with force (and stress) labels.
    :raises ValueError: if a target cannot be predicted.
    """

    __checkpoint_version__ = 6
    __supported_devices__ = ["cuda", "cpu"]
    __supported_dtypes__ = [torch.float32, torch.float64]
    __default_metadata__ = ModelMetadata(
        references={
            "architecture": [
                "Hybrid conservative and direct forces: "
                "https://arxiv.org/abs/2412.11569",
                "PaiNN: https://arxiv.org/abs/2102.03150",
                "ACE: https://doi.org/10.1103/PhysRevB.99.014104",
                "MACE: https://arxiv.org/abs/2206.07697",
            ]
        }
    )

    # TorchScript takes the types of attributes from here.
    output_names: List[str]
    kinds: Dict[str, str]
    repelled: List[str]
    walled: List[str]
    paired: List[str]
    names_per_atom: List[str]
    key_labels: Dict[str, Labels]
    component_labels: Dict[str, List[Labels]]
    property_labels: Dict[str, Labels]
    dataset_info: DatasetInfo

    def __init__(self, hypers: ModelHypers, dataset_info: DatasetInfo) -> None:
        super().__init__(hypers, dataset_info, self.__default_metadata__)
        self.atomic_types = dataset_info.atomic_types
        self.backbone: Backbone = make_backbone(
            hypers, self.atomic_types, dataset_info.length_unit
        )
        self.repulsion: NoPairTerm | Repulsion = NoPairTerm()
        if hypers["zbl"]:
            self.repulsion = Repulsion(self.atomic_types, dataset_info)
        self.pair_potential: NoPairTerm | PairPotential = NoPairTerm()
        if hypers["pair_potential"] is not False:
            self.pair_potential = PairPotential(
                self.atomic_types, self.backbone.requested_neighbor_lists()[0]
            )
        self.wall_repulsion = WallRepulsion(
            self.atomic_types,
            self.backbone.requested_neighbor_lists()[0],
            dataset_info.length_unit,
        )
        # Engines exchange data in the precision of this buffer. It stays in double
        # precision when the network computes in single: a total of many thousand eV
        # would otherwise be rounded.
        self.register_buffer("interface", torch.zeros(1, dtype=torch.float64))
        index = torch.full((max(self.atomic_types) + 1,), -1, dtype=torch.long)
        index[self.atomic_types] = torch.arange(len(self.atomic_types))
        self.register_buffer("type_index", index)

        self.fitted: List[str] = []
        self.targets: Dict[str, TargetInfo] = {}
        self.output_names = []
        self.kinds = {}
        self.repelled = []
        self.walled = []
        self.paired = []
        self.names_per_atom = []
        self.key_labels = {}
        self.component_labels = {}
        self.property_labels = {}
        self.calibrations = nn.ModuleDict()
        self.outputs: Dict[str, ModelOutput] = {
            "feature": ModelOutput(
                sample_kind="atom", description="scalar features of the atoms"
            )
        }
        self._add_targets()

    def _add_targets(self) -> None:
        """Add what ``dataset_info`` holds and the model does not have yet."""
        targets = with_direct_targets(self.dataset_info, self.hypers["forces"])
        for name, info in targets.items():
            if name not in self.targets:
                self._add_target(name, info)
        self.energies = energy_targets(self.dataset_info, self.hypers["forces"])
        self.names_per_atom = [
            name for name, info in self.targets.items() if info.sample_kind == "atom"
        ] + [energy.name + FORCES_GRADIENT for energy in self.energies]
        if isinstance(self.repulsion, Repulsion):
            self.repulsion.add_energies(self.dataset_info)
            for energy in self.energies:
                if energy.name in self.repulsion.energy_names:
                    names = (energy.name, energy.force, energy.stress)
                    self.repelled += [n for n in names if n and n not in self.repelled]

        if isinstance(self.pair_potential, PairPotential):
            for group in self.force_groups():
                self.pair_potential.add(group)
            self.use_pair_potential()
        for group in self.force_groups():
            factor = self._electronvolt(group[0])
            if factor is not None:
                self.wall_repulsion.add(group, factor)
        self.use_wall()

    def _electronvolt(self, target: str) -> Optional[float]:
        """1 eV in the unit of energy of a target, or None where that is not known.

        :param target: an energy or a direct force.
        """
        unit = self.targets[target].unit
        if not unit:
            return None
        if self.kinds[target] == "scalar":
            return float(unit_conversion_factor("eV", unit))
        angstrom = 1.0 / self.wall_repulsion.to_angstrom
        return float(unit_conversion_factor("eV/angstrom", unit)) * angstrom

    @torch.jit.unused
    def force_groups(self) -> List[List[str]]:
        """Targets that belong to the same forces: an energy with its direct targets, or
        a direct force on its own."""
        groups = [
            [n for n in (e.name, e.force, e.stress) if n is not None]
            for e in self.energies
        ]
        grouped = {name for group in groups for name in group}
        for name, kind in self.kinds.items():
            if kind == "force" and name not in grouped:
                stress = name.replace(FORCE, STRESS)
                groups.append([n for n in (name, stress) if n in self.targets])
        return groups

    @torch.jit.unused
    def use_pair_potential(self) -> None:
        """Add the pair potential to what it has been fitted for."""
        if isinstance(self.pair_potential, PairPotential):
            self.paired = self.pair_potential.fitted()

    @torch.jit.unused
    def use_wall(self) -> None:
        """Repel inside the wall, if there is one."""
        starts = self.backbone.wall.starts
        if bool(starts.any()):
            self.wall_repulsion.set_starts(starts)
            self.walled = list(self.wall_repulsion.factors)

    @torch.jit.unused
    def set_wall(self, starts: Tensor) -> None:
        """Let the wall start elsewhere.

        :param starts: by atomic numbers of both atoms, in the length unit of the
            model, zero where there is no wall.
        """
        self.backbone.wall.set_starts(starts)
        self.use_wall()

    def _add_target(self, name: str, info: TargetInfo) -> None:
        kind = target_kind(name, info)
        block = info.layout.block()
        n_properties = len(block.properties)
        self.backbone.add_output(name, kind, n_properties)
        self.calibrations[name] = Calibration(len(self.atomic_types), n_properties)
        self.targets[name] = info
        self.output_names.append(name)
        self.kinds[name] = kind
        self.key_labels[name] = info.layout.keys
        self.component_labels[name] = block.components
        self.property_labels[name] = block.properties
        self.outputs[name] = ModelOutput(
            unit=info.unit, sample_kind="atom", description=info.description
        )

    @torch.jit.unused
    def per_atom(self) -> List[str]:
        """Targets and gradients with one row for each atom."""
        return self.names_per_atom

    def supported_outputs(self) -> Dict[str, ModelOutput]:
        return self.outputs

    def requested_neighbor_lists(self) -> List[NeighborListOptions]:
        """Neighbour lists needed; the first one is that of the network."""
        lists = self.backbone.requested_neighbor_lists()
        if isinstance(self.repulsion, Repulsion):
            lists = lists + [self.repulsion.neighbor_list]
        return lists

    # ------------------------------------------------------------------ evaluation

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels] = None,
    ) -> Dict[str, TensorMap]:
        """Compute the requested outputs, and nothing for those not requested.

        :param systems: structures, with the requested neighbour lists.
        :param outputs: outputs to compute. ``non_conservative_stress`` per atom is the
            contribution of the atom; it is zero for molecules and NaN for structures
            that are periodic in one or two directions, which have no volume.
        :param selected_atoms: atoms to compute outputs for; all atoms of the structures
            count as neighbours.
        :raises ValueError: if two atoms lie at the same place.
        """
        results: Dict[str, TensorMap] = {}
        names: List[str] = []
        for name in outputs:
            if name in self.kinds or name == "feature":
                names.append(name)
        if len(names) == 0:
            return results

        dtype, device = systems[0].positions.dtype, systems[0].positions.device
        raw = self.backbone(systems, names)
        sizes: List[int] = []
        for system in systems:
            sizes.append(len(system))
        n_atoms = torch.tensor(sizes, device=device)
        system_of_atom = torch.repeat_interleave(
            torch.arange(len(sizes), device=device), n_atoms
        )
        types = torch.cat([system.types for system in systems]).to(torch.long)
        selection, samples = self._samples(n_atoms, system_of_atom, selected_atoms)

        if "feature" in raw:
            kind = outputs["feature"].sample_kind
            results["feature"] = self._to_map(
                "feature", raw["feature"], kind, selection, samples, dtype
            )
        starts = self.backbone.wall.starts
        edges: Optional[Edges] = None  # of the network's neighbour list
        for name in names:
            if edges is None and (name in self.walled or name in self.paired):
                edges = self.wall_repulsion.edges(systems, starts)
        for name, calibration in self.calibrations.items():
            if name in raw:
                # Totals are summed in double precision whatever the engine uses.
                wide = torch.float64 if self.kinds[name] == "scalar" else dtype
                values = calibration(raw[name].to(wide), self.type_index[types])
                kind = self.kinds[name]
                if name in self.repelled:
                    reach = self.repulsion.edges(systems, starts)
                    values = values + self.repulsion.contribution(name, kind, reach)
                if edges is not None:
                    if name in self.paired:
                        values = values + self.pair_potential.contribution(
                            name, kind, edges
                        )
                    if name in self.walled and edges.inside.shape[0] > 0:
                        values = values + self.wall_repulsion.contribution(
                            name, kind, edges
                        )
                if kind == "stress":
                    values = self._per_volume(values, systems, system_of_atom)
                results[name] = self._to_map(
                    name, values, outputs[name].sample_kind, selection, samples, dtype
                )
        return results

    def _samples(
        self, n_atoms: Tensor, system_of_atom: Tensor, selected_atoms: Optional[Labels]
    ) -> Tuple[Tensor, Tensor]:
        """Indices of the atoms to return, and their ``(system, atom)`` labels."""
        offsets = torch.cumsum(n_atoms, 0) - n_atoms
        everything = torch.arange(system_of_atom.shape[0], device=n_atoms.device)
        selection = everything
        if selected_atoms is not None:
            chosen = selected_atoms.values.to(torch.long)
            inside = chosen[:, 0] < n_atoms.shape[0]
            chosen = chosen[inside]
            selection = torch.unique(offsets[chosen[:, 0]] + chosen[:, 1])
        systems = system_of_atom[selection]
        atoms = selection - offsets[systems]
        return selection, torch.stack([systems, atoms], dim=1)

    def _per_volume(
        self, values: Tensor, systems: List[System], system_of_atom: Tensor
    ) -> Tensor:
        """Symmetric stress from virials of atoms.

        Structures of metatomic have no cell vector in directions that are not periodic.
        A molecule has no stress, which is given as zero; that of a slab cannot be known
        here, and NaN says so.
        """
        cells = torch.stack([system.cell for system in systems])
        volumes = torch.abs(torch.det(cells))
        periodic = torch.stack([system.pbc for system in systems]).any(dim=1)
        without = torch.where(periodic, math.nan, 0.0).to(volumes)
        inverse = torch.where(volumes > 0, 1.0 / volumes.clamp(min=1e-12), without)
        values = 0.5 * (values + values.transpose(1, 2))
        return values * inverse[system_of_atom].reshape(-1, 1, 1, 1)

    def _to_map(
        self,
        name: str,
        values: Tensor,
        sample_kind: str,
        selection: Tensor,
        samples: Tensor,
        dtype: torch.dtype,
    ) -> TensorMap:
        device = values.device
        values = values[selection]
        labels = Labels(["system", "atom"], samples.to(torch.int32), assume_unique=True)
        if sample_kind == "system":
            present, inverse = torch.unique(samples[:, 0], return_inverse=True)
            total = torch.zeros(
                [present.shape[0]] + list(values.shape[1:]),
                dtype=values.dtype,
                device=device,
            )
            values = total.index_add(0, inverse, values)
            labels = Labels(["system"], present.to(torch.int32).unsqueeze(1))
        if name == "feature":
            key = Labels(["_"], torch.zeros(1, 1, dtype=torch.int32, device=device))
            components: List[Labels] = []
            # `Labels.range` cannot be saved by TorchScript.
            numbers = torch.arange(values.shape[1], dtype=torch.int32, device=device)
            properties = Labels(["feature"], numbers.unsqueeze(1))
        else:
            key = self.key_labels[name].to(device)
            components = [labels.to(device) for labels in self.component_labels[name]]
            properties = self.property_labels[name].to(device)
        block = TensorBlock(values.to(dtype), labels, components, properties)
        return TensorMap(key, [block])

    # ---------------------------------------------------- checkpoints and exporting

    def restart(
        self,
        dataset_info: DatasetInfo,
        model_hypers: Optional[Dict[str, Any]] = None,
    ) -> "DualForce":
        """Prepare for more training: new targets get new heads, and a conservative
        model may become a hybrid one.

        :raises ValueError: if the data have other atomic types or the options another
            network.
        """
        if model_hypers is not None:
            added = self.hypers["forces"], model_hypers.get("forces")
            if added == ("conservative", "hybrid"):
                self.hypers["forces"] = "hybrid"
            defaults = get_default_hypers(NAME)["model"]
            raise_if_hypers_mismatch(self.hypers, model_hypers, default_hypers=defaults)
        merged = self.dataset_info.union(dataset_info)
        new_targets = with_direct_targets(dataset_info, self.hypers["forces"])
        for name in new_targets.keys() - dataset_info.targets.keys():
            # Earlier data may have declared it; in these it is that of the energy.
            check_unit_of_kept(name, merged.targets.pop(name, None), new_targets[name])
        unknown = sorted(set(merged.atomic_types) - set(self.atomic_types))
        if unknown:
            raise ValueError(
                f"the data contain atomic types {unknown}, the model knows "
                f"{self.atomic_types}; list all types in `architecture.atomic_types` "
                "when the first training starts"
            )
        self.dataset_info = merged
        self._add_targets()
        self.backbone.to(dtype=self.network_dtype())  # new heads too
        return self

    @torch.jit.unused
    def network_dtype(self) -> torch.dtype:
        """Precision of the network."""
        reference = self.backbone.dtype_reference
        assert isinstance(reference, Tensor)
        return reference.dtype

    def network_to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the model; only the network changes its precision."""
        self.to(device=device)
        self.backbone.to(dtype=dtype)

    def get_checkpoint(self) -> Dict[str, Any]:
        state = self.state_dict()
        return {
            "architecture_name": NAME,
            "model_ckpt_version": self.__checkpoint_version__,
            "metadata": self.metadata,
            "model_data": {
                "model_hypers": self.hypers,
                "dataset_info": self.dataset_info.to(device="cpu"),
            },
            "epoch": None,
            "best_epoch": None,
            "model_state_dict": state,
            "best_model_state_dict": state,
        }

    @classmethod
    def load_checkpoint(
        cls,
        checkpoint: Dict[str, Any],
        context: Literal["restart", "finetune", "export"],
    ) -> "DualForce":
        if context == "restart":
            state = checkpoint["model_state_dict"]
            logging.info(f"Using latest model from epoch {checkpoint['epoch']}")
        else:
            state = checkpoint["best_model_state_dict"]
            if state is None:
                state = checkpoint["model_state_dict"]
            logging.info(f"Using best model from epoch {checkpoint['best_epoch']}")
        data = checkpoint["model_data"]
        model = cls(hypers=data["model_hypers"], dataset_info=data["dataset_info"])
        model.backbone.to(dtype=state["backbone.dtype_reference"].dtype)
        model.load_state_dict(state)
        model.use_pair_potential()
        model.use_wall()
        model.fitted = list(model.targets)
        model.metadata = merge_metadata(model.metadata, checkpoint.get("metadata"))
        return model

    @classmethod
    def upgrade_checkpoint(cls, checkpoint: Dict[str, Any]) -> Dict[str, Any]:
        return upgrades.upgrade(checkpoint, "model", cls.__checkpoint_version__)

    def export(self, metadata: Optional[ModelMetadata] = None) -> AtomisticModel:
        """Export for simulation engines.

        The network computes in the precision it was trained in; positions go in and
        energies and forces come out in that of the buffer ``interface``.
        """
        capabilities = ModelCapabilities(
            outputs=self.outputs,
            atomic_types=self.atomic_types,
            interaction_range=max(
                self.backbone.interaction_range, self.repulsion.interaction_range
            ),
            length_unit=self.dataset_info.length_unit,
            supported_devices=self.__supported_devices__,
            dtype=dtype_to_str(self.interface.dtype),
        )
        merged = merge_metadata(self.metadata, metadata)
        return AtomisticModel(self.eval(), merged, capabilities)
