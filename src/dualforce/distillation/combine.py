"""One exported model from two: the energy of one, the direct force of the other."""

import json
import logging
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

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
from torch import nn

from ..forces import list_symbols, load_model
from ..forces.domain import without_difference
from ..writing import replacing


DIRECT = ("non_conservative_force", "non_conservative_stress")
_OLD_NAMES = {"non_conservative_forces": "non_conservative_force"}


class CombinedModel(nn.Module):
    """Two models in one. A request runs only those that answer it.

    :param teacher: module of the model with the energy.
    :param student: module of the model with the direct forces.
    :param direct: names of the student's outputs, by their names in the combined model.
    :param teacher_lists: neighbour lists of the teacher.
    :param student_lists: neighbour lists of the student, in its own length unit.
    :param dtype: precision in which data are exchanged, that of the teacher.
    :param student_dtype: precision of the student.
    :param length: the student's length unit, in that of the teacher, which is the
        combined model's.
    """

    # TorchScript takes the types of attributes from here.
    direct: Dict[str, str]
    shared_lists: List[NeighborListOptions]
    student_lists: List[NeighborListOptions]
    all_lists: List[NeighborListOptions]

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        direct: Dict[str, str],
        teacher_lists: List[NeighborListOptions],
        student_lists: List[NeighborListOptions],
        dtype: torch.dtype,
        student_dtype: torch.dtype,
        length: float,
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self.student = student
        self.direct = direct
        self.dtype, self.student_dtype = dtype, student_dtype
        self.length = length
        self.student_lists = student_lists
        self.shared_lists = [_scaled(options, length) for options in student_lists]
        self.all_lists = [_scaled(options, 1.0) for options in teacher_lists]
        self.all_lists += self.shared_lists

    @torch.jit.export
    def requested_neighbor_lists(self) -> List[NeighborListOptions]:
        """Neighbour lists of both models."""
        return self.all_lists

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels] = None,
    ) -> Dict[str, TensorMap]:
        """Compute the requested outputs; see
        :class:`metatomic.torch.ModelInterface`."""
        of_teacher: Dict[str, ModelOutput] = {}
        of_student: Dict[str, ModelOutput] = {}
        for name, output in outputs.items():
            if name in self.direct:
                of_student[self.direct[name]] = output
            else:
                of_teacher[name] = output
        results: Dict[str, TensorMap] = {}
        if len(of_teacher) > 0:
            results = self.teacher(systems, of_teacher, selected_atoms)
        if len(of_student) > 0:
            own_systems = [self._for_student(system) for system in systems]
            values = self.student(own_systems, of_student, selected_atoms)
            for name, own_name in self.direct.items():
                if own_name in values:
                    results[name] = values[own_name].to(dtype=self.dtype)
        return results

    def _for_student(self, system: System) -> System:
        """The structure in precision and length unit of the student."""
        if self.student_dtype == self.dtype and self.length == 1.0:
            return system
        converted = System(
            system.types,
            (system.positions / self.length).to(self.student_dtype),
            (system.cell / self.length).to(self.student_dtype),
            system.pbc,
        )
        for index, options in enumerate(self.student_lists):
            pairs = system.get_neighbor_list(self.shared_lists[index])
            converted.add_neighbor_list(
                options,
                TensorBlock(
                    (pairs.values / self.length).to(self.student_dtype),
                    pairs.samples,
                    pairs.components,
                    pairs.properties,
                ),
            )
        return converted


def combine(teacher: AtomisticModel, student: AtomisticModel) -> AtomisticModel:
    """Make one model of two.

    Its direct force and stress are those of the student; everything else is bitwise
    identical to the teacher's, whose own direct forces (if it has any) are left out: a
    request for direct forces never runs the teacher. The combined model knows the
    elements that both know, and exchanges data in the teacher's precision.

    :param teacher: exported or loaded model with an ``energy``.
    :param student: exported or loaded model with a ``non_conservative_force``.
    :raises ValueError: if these are missing, if the models have no element or device in
        common, or one of them does not say its length unit or needs more than positions
        and a cell.
    """
    of_teacher, of_student = teacher.capabilities(), student.capabilities()
    kept = {
        name: of_teacher.outputs[name]
        for name in teacher._model_capabilities_outputs_names
        if _base(name) not in DIRECT
    }
    direct = {
        _current(name): name
        for name in student._model_capabilities_outputs_names
        if _base(name) in DIRECT
    }
    _check_outputs(kept, direct, of_teacher, of_student)
    for role, model in (("teacher", teacher), ("student", student)):
        inputs = sorted(model.requested_inputs(use_new_names=True))
        if inputs:
            raise ValueError(
                f"the {role} needs more than positions and a cell "
                f"({', '.join(inputs)}); such models cannot be combined"
            )
    length = _length(of_teacher.length_unit, of_student.length_unit)
    student_module = student.module
    if length != 1.0:
        # Compiled, it does not show its own requests for neighbour lists, whose unit
        # metatomic would refuse.
        student_module = torch.jit.script(student_module)
    module = CombinedModel(
        teacher.module,
        student_module,
        direct,
        teacher.requested_neighbor_lists(),
        student.requested_neighbor_lists(),
        getattr(torch, of_teacher.dtype),
        getattr(torch, of_student.dtype),
        length,
    )
    capabilities = ModelCapabilities(
        outputs=kept | {name: of_student.outputs[own] for name, own in direct.items()},
        atomic_types=_common_types(of_teacher, of_student),
        interaction_range=max(
            of_teacher.interaction_range, length * of_student.interaction_range
        ),
        length_unit=of_teacher.length_unit,
        supported_devices=_common_devices(of_teacher, of_student),
        dtype=of_teacher.dtype,
    )
    metadata = _merge(teacher.metadata(), student.metadata())
    return AtomisticModel(module.eval(), metadata, capabilities)


def combine_files(
    teacher: Union[str, Path],
    student: Union[str, Path],
    output: Union[str, Path],
    extensions: Optional[Union[str, Path]] = None,
) -> AtomisticModel:
    """Make one exported model of two files; see :func:`combine`.

    :param teacher: exported model with an ``energy``.
    :param student: exported model with a ``non_conservative_force``.
    :param output: file to write; it is replaced at once or not at all.
    :param extensions: folder with compiled extensions of the models.
    :return: the combined model.
    """
    combined = combine(load_model(teacher, extensions), load_model(student, extensions))
    with replacing(output) as unfinished:
        combined.save(str(unfinished))
    return combined


# ----------------------------------------------------------------------- what is common


def _scaled(options: NeighborListOptions, factor: float) -> NeighborListOptions:
    """Fresh options: those of a model carry its length unit."""
    return NeighborListOptions(
        factor * options.cutoff, options.full_list, options.strict
    )


def _current(name: str) -> str:
    base, slash, variant = name.partition("/")
    return _OLD_NAMES.get(base, base) + slash + variant


def _base(name: str) -> str:
    return _current(name).partition("/")[0]


def _check_outputs(
    kept: Dict[str, ModelOutput],
    direct: Dict[str, str],
    of_teacher: ModelCapabilities,
    of_student: ModelCapabilities,
) -> None:
    if not any(_base(name) == "energy" for name in kept):
        raise ValueError(
            f"the teacher has no energy; it has {', '.join(sorted(of_teacher.outputs))}"
        )
    if not any(_base(name) == DIRECT[0] for name in direct):
        raise ValueError(
            f"the student has no direct force ('{DIRECT[0]}'); it has "
            f"{', '.join(sorted(of_student.outputs))}"
        )
    own = sorted({_current(n) for n in of_teacher.outputs if _base(n) in DIRECT})
    if own:
        logging.info(
            f"The teacher's own {', '.join(own)} are left out: direct "
            "outputs are the student's"
        )


def check_length_unit(role: str, unit: str) -> None:
    """
    :param role: what the model is, for the message.
    :param unit: as the model says it.
    :raises ValueError: if it says none.
    """
    if not unit:
        raise ValueError(
            f"the {role} does not say its length unit: export it again with one"
        )


def _length(teacher_unit: str, student_unit: str) -> float:
    """The student's length unit in those of the teacher."""
    check_length_unit("teacher", teacher_unit)
    check_length_unit("student", student_unit)
    return float(unit_conversion_factor(student_unit, teacher_unit))


def _common_types(
    of_teacher: ModelCapabilities, of_student: ModelCapabilities
) -> List[int]:
    known = set(of_student.atomic_types)
    common = [number for number in of_teacher.atomic_types if number in known]
    missing = sorted(set(of_teacher.atomic_types) - known)
    if not common:
        raise ValueError(
            f"the teacher knows {list_symbols(sorted(of_teacher.atomic_types))}, the "
            f"student {list_symbols(sorted(known))}: they have no element in common"
        )
    if missing:
        logging.warning(
            f"the student does not know {list_symbols(missing)}; the combined model is "
            f"for {list_symbols(common)}"
        )
    return common


def _common_devices(
    of_teacher: ModelCapabilities, of_student: ModelCapabilities
) -> List[str]:
    known = set(of_student.supported_devices)
    common = [device for device in of_teacher.supported_devices if device in known]
    if not common:
        raise ValueError(
            f"the teacher runs on {', '.join(of_teacher.supported_devices)}, the "
            f"student on {', '.join(of_student.supported_devices)}: there is no device "
            "for both"
        )
    return common


def _merge(teacher: ModelMetadata, student: ModelMetadata) -> ModelMetadata:
    """Authors and references of both, each once."""
    own, other = (_content(metadata) for metadata in (teacher, student))
    references = dict(own["references"])
    for kind, listed in other["references"].items():
        references[kind] = _union(references.get(kind, []), listed)
    names = [content["name"] or "another model" for content in (own, other)]
    texts = [
        f"Energy of {names[0]}, direct forces of {names[1]}.",
        own["description"],
        other["description"],
    ]
    return ModelMetadata(
        name=own["name"],
        description=" ".join(text for text in texts if text),
        authors=_union(own["authors"], other["authors"]),
        references=references,
        extra=without_difference(other["extra"] | own["extra"]),
    )


def _content(metadata: ModelMetadata) -> Dict[str, Any]:
    content = json.loads(metadata._get_method("__getstate__")())
    defaults: Dict[str, Any] = {
        "name": "",
        "description": "",
        "authors": [],
        "references": {},
        "extra": {},
    }
    return {key: content.get(key) or value for key, value in defaults.items()}


def _union(first: List[str], second: List[str]) -> List[str]:
    return list(dict.fromkeys([*first, *second]))
