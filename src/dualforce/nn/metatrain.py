"""Networks of metatrain's own architectures as backbones."""

import copy
from typing import Any, Dict, List, Optional

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import ModelOutput, NeighborListOptions, System
from metatrain.utils.architectures import import_architecture
from metatrain.utils.data import DatasetInfo
from metatrain.utils.data.target_info import get_generic_target_info
from torch import Tensor, nn

from .base import Backbone, Graph, edge_vectors


NAMES = ("pet", "soap_bpnn")
"""Architectures offered as backbones. Another one needs its name here, its hypers in
:class:`dualforce.training.options.ModelHypers` and an entry in
``EQUIVARIANT`` if it is; it must predict per-atom vectors."""

EQUIVARIANT = ("soap_bpnn",)

TARGET_TYPES: Dict[str, Any] = {
    "scalar": "scalar",
    "vector": {"cartesian": {"rank": 1}},
    "force": {"cartesian": {"rank": 1}},
    "stress": {"cartesian": {"rank": 2}},
}


class _NoScaling(nn.Module):
    """Stands where the wrapped model has its scaler: scaling is done outside."""

    def forward(self, outputs: Dict[str, TensorMap]) -> Dict[str, TensorMap]:
        return outputs

    @torch.jit.export
    def apply_scales(
        self,
        systems: List[System],
        outputs: Dict[str, TensorMap],
        remove: bool = False,
        selected_atoms: Optional[Labels] = None,
        use_per_target_scales: bool = True,
        use_per_property_scales: bool = True,
    ) -> Dict[str, TensorMap]:
        return outputs


def inner_name(name: str, kind: str) -> str:
    """Name of a target inside the wrapped model. A stress is renamed because SOAP-BPNN
    divides outputs with ``non_conservative_stress`` in their name by the volume, and
    PET those of exactly that name."""
    if kind == "stress":
        variant = name.removeprefix("non_conservative_stress").replace("/", "_")
        return f"mtt::virial{variant}"
    return name


class MetatrainBackbone(Backbone):
    """A model of metatrain, without its baseline and scaling.

    Its networks make vectors between atoms themselves, from positions, so distances
    inside the wall are not saturated: their layers are normalised, and what they
    predict there is bounded without that.

    :param name: name of the architecture.
    :param hypers: its model hypers.
    :param atomic_types: atomic numbers the network knows.
    :param length_unit: length unit of the data.
    """

    zero_net_force = False

    def __init__(
        self,
        name: str,
        hypers: Dict[str, Any],
        atomic_types: List[int],
        length_unit: str,
    ) -> None:
        super().__init__(atomic_types)
        if hypers.get("zbl", False):
            raise ValueError(
                f"set `zbl` in the `model` section, not inside `model.{name}`: the "
                "repulsion belongs to all forces of the model"
            )
        self.name = name
        self.equivariant = name in EQUIVARIANT
        self._info = DatasetInfo(
            length_unit=length_unit, atomic_types=sorted(atomic_types), targets={}
        )
        self.model = import_architecture(name).__model__(hypers, self._info)
        self.interaction_range = self._declared_range()
        self.model.additive_models = nn.ModuleList()
        self.model.scaler = _NoScaling()
        self._request_gradients()
        self.neighbor_list = self.model.requested_neighbor_lists()[0]
        self.inner_names: Dict[str, str] = {}

    def __deepcopy__(self, memo: Dict[int, Any]) -> "MetatrainBackbone":
        # SOAP-BPNN holds compiled functions, which cannot be copied and need not be:
        # they have no state.
        for module in self.modules():
            for value in vars(module).values():
                if isinstance(value, torch.jit.ScriptFunction):
                    memo[id(value)] = value
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__dict__, memo))
        return twin

    def _declared_range(self) -> float:
        # `export` knows the range for every architecture, but freezes parameters.
        interaction_range = self.model.export().capabilities().interaction_range
        self.model.train()
        # PET declares one cutoff for each layer, but after the last layer an edge still
        # receives what its reverse, at the other atom, has learnt from the neighbours
        # there. An adaptive cutoff depends on one more shell.
        if self.name == "pet":
            shells = 1 if self.model.hypers["num_neighbors_adaptive"] is None else 2
            interaction_range += shells * self.model.hypers["cutoff"]
        return float(interaction_range)

    def _request_gradients(self) -> None:
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)

    def requested_neighbor_lists(self) -> List[NeighborListOptions]:
        return [self.neighbor_list]

    def add_output(self, name: str, kind: str, n_properties: int) -> None:
        inner = inner_name(name, kind)
        info = get_generic_target_info(
            inner,
            {
                "quantity": "",
                "unit": "",
                "type": TARGET_TYPES[kind],
                "num_subtargets": n_properties,
                "sample_kind": "atom",
            },
        )
        self.model._add_output(inner, info)
        if inner not in self.model.dataset_info.targets:
            self.model.dataset_info.targets[inner] = info
        names = getattr(self.model, "target_names", None)
        if names is not None and inner not in names:
            names.append(inner)
        self.inner_names[name] = inner

    def head_parameters(self, names: List[str]) -> List[nn.Parameter]:
        return super().head_parameters([self.inner_names[name] for name in names])

    def _system(self, graph: Graph, index: int, vectors: Tensor) -> System:
        atoms = torch.nonzero(graph.system == index).reshape(-1)
        first, n_atoms = int(atoms[0]), atoms.shape[0]
        start, stop = torch.searchsorted(
            graph.centers, torch.tensor([first, first + n_atoms], device=atoms.device)
        ).tolist()
        system = System(
            types=graph.types[first : first + n_atoms].to(torch.int32),
            positions=graph.positions[first : first + n_atoms],
            cell=graph.cells[index],
            pbc=graph.pbc[index],
        )
        samples = torch.cat(
            [
                (graph.centers[start:stop] - first).unsqueeze(1),
                (graph.neighbors[start:stop] - first).unsqueeze(1),
                graph.shifts[start:stop].round().to(torch.long),
            ],
            dim=1,
        ).to(torch.int32)
        block = TensorBlock(
            values=vectors[start:stop].unsqueeze(-1),
            samples=Labels(
                [
                    "first_atom",
                    "second_atom",
                    "cell_shift_a",
                    "cell_shift_b",
                    "cell_shift_c",
                ],
                samples,
                assume_unique=True,
            ),
            components=[Labels.range("xyz", 3).to(samples.device)],
            properties=Labels.range("distance", 1).to(samples.device),
        )
        system.add_neighbor_list(self.neighbor_list, block)
        return system

    def predict(self, graph: Graph, outputs: List[str]) -> Dict[str, Tensor]:
        vectors = edge_vectors(graph)
        systems = [
            self._system(graph, index, vectors) for index in range(graph.cells.shape[0])
        ]
        return self.forward(systems, outputs)

    def forward(self, systems: List[System], outputs: List[str]) -> Dict[str, Tensor]:
        request: Dict[str, ModelOutput] = {}
        for name in outputs:
            if name == "feature":
                request["feature"] = ModelOutput(sample_kind="atom")
            else:
                request[self.inner_names[name]] = ModelOutput(sample_kind="atom")
        dtype = self.dtype_reference.dtype
        if systems[0].positions.dtype != dtype:
            systems = [system.to(dtype=dtype) for system in systems]
        predictions = self.model(systems, request, None)
        results: Dict[str, Tensor] = {}
        for name in outputs:
            if name == "feature":
                results[name] = predictions[name].block().values
            else:
                results[name] = predictions[self.inner_names[name]].block().values
        return results
