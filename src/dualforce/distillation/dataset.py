"""Data sets of metatrain with the labels of a teacher."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import ase
import numpy as np
import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import systems_to_torch, unit_conversion_factor
from metatrain.utils.data import Dataset, TargetInfo
from metatrain.utils.data.readers.ase import read
from metatrain.utils.data.target_info import get_generic_target_info

from .labelling import Label, LabelStore, label_frames, label_of
from .sampling import extend
from .teacher import Teacher


FORCE, STRESS = "non_conservative_force", "non_conservative_stress"

_LAYOUTS: Dict[str, Dict[str, Any]] = {
    FORCE: {
        "quantity": "force",
        "unit": "eV/angstrom",
        "type": {"cartesian": {"rank": 1}},
        "sample_kind": "atom",
        "num_subtargets": 1,
        "description": "direct force",
    },
    STRESS: {
        "quantity": "pressure",
        "unit": "eV/angstrom^3",
        "type": {"cartesian": {"rank": 2}},
        "sample_kind": "system",
        "num_subtargets": 1,
        "description": "direct stress",
    },
}


def labelled_dataset(
    section: Mapping[str, Any],
    teacher: Teacher,
    options: Mapping[str, Any],
    is_training: bool,
) -> Tuple[Dataset, Dict[str, TargetInfo], Dict[str, TargetInfo]]:
    """Read the structures of a data set and let the teacher label them; in the place of
    :func:`metatrain.utils.data.get_dataset`.

    Frames stay where they are in their file, without labels where the teacher fails;
    structures from short runs follow.

    :param section: the section of the data set in the options, expanded by metatrain.
    :param teacher: the teacher.
    :param options: see :class:`dualforce.training.options.TeacherHypers`.
    :param is_training: whether the data set may be extended.
    :return: the data set, its targets (a direct force, and a stress where there is
        one), and no other information.
    :raises ValueError: if units are not those of ASE, or the teacher fails throughout.
    """
    file = str(section["systems"]["read_from"])
    _check_units(section, file)
    folder = Path(options["labels"])
    store = LabelStore(folder / f"labels-{teacher.hash}.extxyz")
    frames = read(file, ":")
    if options["keep_labels"]:
        labels = _given(frames, section["targets"], file)
        rest = [i for i, label in enumerate(labels) if label is None]
        logging.info(f"{file}: {len(frames) - len(rest)} frames keep their own labels")
        if rest:
            chosen = [frames[i] for i in rest]
            made = label_frames(chosen, teacher, store, f"file '{file}'").labels
            for i, label in zip(rest, made, strict=True):
                labels[i] = label
    else:
        labels = label_frames(frames, teacher, store, f"file '{file}'").labels
    if is_training:
        usable = [a for a, label in zip(frames, labels, strict=True) if label]
        new = extend(usable, teacher, store, options["extend"])
        frames = [*frames, *new]
        labels = [*labels, *(label_of(atoms) for atoms in new)]
    return _as_dataset(frames, labels)


def _check_units(section: Mapping[str, Any], file: str) -> None:
    unit = str(section["systems"]["length_unit"] or "")
    if not unit or unit_conversion_factor(unit, "angstrom") != 1.0:
        raise ValueError(
            f"file '{file}': its length unit is '{unit}'; structures for a teacher "
            "must be in angstrom (and say so: `length_unit: angstrom`)"
        )
    for name, target in section["targets"].items():
        unit = str(target.get("unit") or "")
        if target.get("quantity") == "energy" and unit.lower() not in ("", "ev"):
            raise ValueError(
                f"file '{file}': the unit of '{name}' is '{unit}'; labels of a teacher "
                "are in eV, so the targets must be"
            )


def _given(
    frames: Sequence[ase.Atoms], targets: Mapping[str, Any], file: str
) -> List[Optional[Label]]:
    """Labels that the frames bring along."""
    energies = [t for t in targets.values() if t.get("quantity") == "energy"]
    if len(energies) != 1:
        raise ValueError(
            f"file '{file}': `teacher: keep_labels` needs one energy among the "
            "targets, which says where forces and stresses are"
        )
    force_key = (energies[0].get("forces") or {}).get("key", "forces")
    stress_key = (energies[0].get("stress") or {}).get("key", "stress")
    labels: List[Optional[Label]] = []
    for index, atoms in enumerate(frames):
        forces = atoms.arrays.get(force_key)
        if forces is None or np.isnan(forces).all():
            labels.append(None)
            continue
        if not np.isfinite(forces).all():
            raise ValueError(
                f"file '{file}', frame {index} (counted from 0): '{force_key}' is NaN "
                "or infinite; correct or remove the frame"
            )
        stress = atoms.info.get(stress_key)
        has_stress = stress is not None and np.size(stress) == 9
        stress = np.asarray(stress, float).reshape(3, 3) if has_stress else None
        labels.append(Label(float("nan"), np.asarray(forces, float), stress))
    return labels


# ---------------------------------------------------------------- in metatrain's terms


def _as_dataset(
    frames: Sequence[ase.Atoms], labels: Sequence[Optional[Label]]
) -> Tuple[Dataset, Dict[str, TargetInfo], Dict[str, TargetInfo]]:
    names = [FORCE]
    if any(label is not None and label.stress is not None for label in labels):
        names.append(STRESS)
    infos = {name: get_generic_target_info(name, _LAYOUTS[name]) for name in names}
    columns: Dict[str, List[Any]] = {
        "system": systems_to_torch(
            [ase.Atoms(a.numbers, a.positions, cell=a.cell, pbc=a.pbc) for a in frames],
            dtype=torch.float64,
        )
    }
    for name in names:
        columns[name] = [
            _tensor_map(index, name, _values(name, atoms, label), infos[name])
            for index, (atoms, label) in enumerate(zip(frames, labels, strict=True))
        ]
    return Dataset.from_dict(columns), infos, {}


def _values(name: str, atoms: ase.Atoms, label: Optional[Label]) -> np.ndarray:
    """The label, NaN where it is missing."""
    shape = (len(atoms), 3) if name == FORCE else (1, 3, 3)
    values = None
    if label is not None:
        values = label.forces if name == FORCE else label.stress
    return np.full(shape, np.nan) if values is None else values.reshape(shape)


def _tensor_map(
    index: int, name: str, values: np.ndarray, info: TargetInfo
) -> TensorMap:
    layout = info.layout.block()
    samples = Labels(["system"], torch.tensor([[index]]))
    if name == FORCE:
        atoms = torch.arange(len(values))
        rows = torch.stack([0 * atoms + index, atoms], dim=1)
        samples = Labels(["system", "atom"], rows, assume_unique=True)
    block = TensorBlock(
        torch.from_numpy(values).unsqueeze(-1),
        samples,
        layout.components,
        layout.properties,
    )
    return TensorMap(info.layout.keys, [block])
