"""Data sets: what is checked before metatrain makes one, and what is added to it."""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Dict, FrozenSet, List, Optional, Tuple

from ase import Atoms
from metatensor.torch import TensorBlock, TensorMap
from metatrain.utils.data import TargetInfo

from ..training.data import Origin
from ..training.inventory import is_ase_file, report_files
from ..training.ranges import check_cutoff
from ..training.reading import read_frames
from ..training.structures import check_structure
from ..training.targets import STRESS


Made = Tuple[Any, Dict[str, TargetInfo], Dict[str, TargetInfo]]
"""What metatrain's ``get_dataset`` returns: data set, targets and extra data."""

OPTIONS = {"positions": ("forces",), "strain": ("stress", "virial")}
"""Options that ask for a gradient of an energy."""


class DataSets:
    """The data sets of one training.

    :param model: options of the model.
    """

    def __init__(self, model: Optional[Mapping[str, Any]] = None) -> None:
        self._model = model
        self._targets: Dict[str, TargetInfo] = {}

    def make(
        self, section: Any, metatrain: Callable[[Any], Made], is_labelled: bool
    ) -> Made:
        """Make a data set.

        :param section: its section in the options, expanded by metatrain.
        :param metatrain: makes the data set.
        :param is_labelled: whether its labels are those of the file.
        :raises ValueError: if options or frames are unusable.
        """
        systems = section["systems"]
        if self._model is not None:
            check_cutoff(self._model, str(systems["length_unit"] or ""))
        take_readers(section)
        volumes = _check_frames(systems)
        dataset, targets, extra = metatrain(section)
        unused = frozenset(_unused_gradients(section, targets))
        dataset.origin = Origin(
            file=str(systems["read_from"]),
            volumes=volumes if is_labelled else None,
            unused=unused,
        )
        if is_labelled:
            report_files(section)
        for name, gradient in sorted(unused):
            option = OPTIONS[gradient][0]
            logging.info(
                f"File '{systems['read_from']}': the {option} of '{name}' in it are "
                f"not used; `{option}` is off in the options"
            )
        return dataset, self._together(targets, unused), extra

    def _together(
        self, targets: Dict[str, TargetInfo], unused: FrozenSet[Tuple[str, str]]
    ) -> Dict[str, TargetInfo]:
        """Targets with the gradients that any data set so far has. metatrain takes what
        the last training set has for all of them."""
        for name, info in targets.items():
            wanted = [g for g in info.gradients if (name, g) not in unused]
            sources = [(info, gradient) for gradient in wanted]
            if (known := self._targets.get(name)) is not None:
                sources += [(known, g) for g in known.gradients if g not in wanted]
            if sorted(gradient for _, gradient in sources) != info.gradients:
                info = _with_gradients(info, sources)
            self._targets[name] = info
        return {name: self._targets[name] for name in targets}


def has_slab_stresses(dataset: Any, targets: Iterable[str]) -> bool:
    """Whether direct stresses are among targets, and slabs among structures. metatomic
    gives models no volume of slabs, so exported models answer NaN.

    :param dataset: the data set, possibly a subset.
    :param targets: names of targets.
    """
    if not any(name.split("/")[0] == STRESS for name in targets):
        return False
    systems = (dataset[index]["system"] for index in range(len(dataset)))
    return any(0 < int(system.pbc.sum()) < 3 for system in systems)


def take_readers(section: Any) -> None:
    """Let targets be read like the structures, where their section names no reader and
    their file is the same.

    :param section: the section of the data set, which is changed.
    :raises ValueError: if there is no telling how to read another file.
    """
    systems = section["systems"]
    parts = {**section["targets"], **(section.get("extra_data") or {})}
    for name, part in parts.items():
        if part.get("reader") is not None or is_ase_file(part):
            continue
        if part["read_from"] == systems["read_from"]:
            part["reader"] = systems.get("reader")
        elif Path(str(part["read_from"])).suffix != ".mts":
            raise ValueError(
                f"the file '{part['read_from']}' of '{name}' has no reader: add "
                f"`reader: ase` to the section '{name}'"
            )


def _check_frames(systems: Mapping[str, Any]) -> Optional[List[float]]:
    """Check structures that ASE reads.

    :return: their volumes, or None where something else reads them.
    """
    if not is_ase_file(systems):
        return None
    file = str(systems["read_from"])
    frames = read_frames(file)
    for index, atoms in enumerate(frames):
        where = f"file '{file}', frame {index} (counted from 0)"
        check_structure(
            atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc.tolist(), where
        )
    return [_volume(atoms) for atoms in frames]


def _volume(atoms: Atoms) -> float:
    return float(atoms.cell.volume) if atoms.cell.rank == 3 else 0.0


def _unused_gradients(
    section: Mapping[str, Any], targets: Mapping[str, TargetInfo]
) -> Iterable[Tuple[str, str]]:
    """Gradients that a data set has and the options turn off. Readers of files leave
    them out themselves; data sets on disk do not."""
    for name, info in targets.items():
        options = section["targets"].get(name) or {}
        for gradient in info.gradients:
            if not any(options.get(option) for option in OPTIONS[gradient]):
                yield name, gradient


def _with_gradients(
    info: TargetInfo, sources: Iterable[Tuple[TargetInfo, str]]
) -> TargetInfo:
    """A target with these gradients, each taken from the layout of a target."""
    old = info.layout.block()
    block = TensorBlock(old.values, old.samples, old.components, old.properties)
    for source, gradient in sources:
        block.add_gradient(gradient, source.layout.block().gradient(gradient).copy())
    layout = TensorMap(info.layout.keys, [block])
    return TargetInfo(layout, info.quantity, info.unit, info.description)
