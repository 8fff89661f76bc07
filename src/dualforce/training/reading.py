"""Reading energies, forces and stresses from files, strictly.

metatrain's reader drops the forces of a whole file, with a warning, where one frame
lacks them. This one keeps what is there, marks what is not as NaN, which metatrain
takes for missing, and refuses what is wrong, with file, frame and key.
"""

import logging
import os
from functools import lru_cache
from typing import Any, Callable, List, Optional, Tuple

import numpy as np
import torch
from ase import Atoms
from ase.stress import voigt_6_to_full_3x3_stress
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatrain.utils.data import TargetInfo
from metatrain.utils.data.readers.ase import read
from metatrain.utils.data.target_info import get_energy_target_info

from .option_checks import nearest


STRESS_NAMES = ("stress", "virial")
"""What keys of stresses and virials contain."""


@lru_cache(maxsize=4)
def _read_file(filename: str, changed: int, size: int) -> List[Atoms]:
    frames = read(filename, ":")
    for atoms in frames:
        for key, value in getattr(atoms.calc, "results", {}).items():
            if key in atoms.info or key in atoms.arrays:
                continue
            per_atom = np.ndim(value) > 0 and len(value) == len(atoms) > 1
            (atoms.arrays if per_atom else atoms.info)[key] = value
    return frames


def read_frames(filename: str) -> List[Atoms]:
    """Frames of a file, with all results of calculators among ``info`` and ``arrays``.
    What was read is kept: energies, forces and stresses need not read it again.

    :param filename: name of the file.
    :raises ValueError: if there is no such file, or ASE cannot read it.
    """
    if not os.path.exists(filename):
        raise ValueError(f"there is no file '{filename}'")
    status = os.stat(filename)
    return _read_file(filename, status.st_mtime_ns, status.st_size)


def forget_files() -> None:
    """Free the memory of files read."""
    _read_file.cache_clear()


def _where(filename: str, index: int) -> str:
    return f"file '{filename}', frame {index} (counted from 0)"


def _check_finite(values: np.ndarray, filename: str, index: int, key: str) -> None:
    if not np.isfinite(values).all():
        place = np.argwhere(~np.isfinite(values))[0].tolist()
        raise ValueError(
            f"{_where(filename, index)}: '{key}' is NaN or infinite"
            + (f" at index {place}" if values.ndim else "")
            + "; correct or remove the frame"
        )


def _numbers(value: Any, filename: str, index: int, key: str) -> np.ndarray:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{_where(filename, index)}: '{key}' is {value!r}, not numbers"
        ) from error


def _missing_key(
    key: str, frames: List[Atoms], filename: str, what: str, option: str
) -> ValueError:
    known = {str(name) for atoms in frames for name in (*atoms.arrays, *atoms.info)}
    known -= {"numbers", "positions"}
    listed = ", ".join(f"'{name}'" for name in sorted(known)) or "nothing"
    return ValueError(
        f"file '{filename}': no frame has the key '{key}' for {what}."
        f"{nearest(key, sorted(known))} The frames have: {listed}. Data without {what} "
        f"need `{option}: off` in the section of the target."
    )


def _stress_keys(frames: List[Atoms]) -> List[str]:
    """Keys under which a frame seems to have a stress or a virial."""
    return sorted(
        {
            str(key)
            for atoms in frames
            for key, value in atoms.info.items()
            if any(name in str(key).lower() for name in STRESS_NAMES)
            and np.size(value) in (6, 9)
        }
    )


def _refuse_other_stresses(frames: List[Atoms], filename: str) -> None:
    """
    :raises ValueError: if frames have stresses or virials under other keys than the
        usual one, and none under that.
    """
    others = _stress_keys(frames)
    if not others or any("stress" in atoms.info for atoms in frames):
        return
    best = others[0]
    how = f"`stress: {{key: {best}}}`"
    if "virial" in best.lower():
        how = f"`stress: off` and `virial: {{key: {best}}}`"
    raise ValueError(
        f"file '{filename}': no frame has the key 'stress' for stresses, but frames "
        f"have {', '.join(map(repr, others))}. Did you mean '{best}'? Give {how} in "
        "the section of the target to learn from it, or `stress: off` to ignore it"
    )


def _energy(atoms: Atoms, filename: str, index: int, key: str) -> np.ndarray:
    if key not in atoms.info:
        known = sorted(map(str, atoms.info))
        raise ValueError(
            f"{_where(filename, index)}: there is no energy under the key '{key}'."
            f"{nearest(key, known)} The frame has: {', '.join(known) or 'nothing'}."
        )
    value = _numbers(atoms.info[key], filename, index, key)
    if value.size != 1:
        raise ValueError(
            f"{_where(filename, index)}: the energy '{key}' has shape "
            f"{list(value.shape)}, it must be one number"
        )
    _check_finite(value.reshape(()), filename, index, key)
    return value.reshape(1, 1)


def _forces(atoms: Atoms, filename: str, index: int, key: str) -> Optional[np.ndarray]:
    if key not in atoms.arrays:
        return None
    values = _numbers(atoms.arrays[key], filename, index, key)
    if values.shape != (len(atoms), 3):
        raise ValueError(
            f"{_where(filename, index)}: the forces '{key}' have shape "
            f"{list(values.shape)}, they must have [{len(atoms)}, 3]"
        )
    if np.isnan(values).all():
        return None
    _check_finite(values, filename, index, key)
    return values


def _strain_gradient(
    atoms: Atoms, filename: str, index: int, key: str, is_virial: bool
) -> Optional[np.ndarray]:
    """Derivative of the energy with respect to strain, or None where it is missing."""
    if key not in atoms.info:
        return None
    values = _numbers(atoms.info[key], filename, index, key)
    if values.size == 6:
        values = voigt_6_to_full_3x3_stress(values.reshape(6))
    if values.size != 9:
        raise ValueError(
            f"{_where(filename, index)}: '{key}' has shape {list(values.shape)}, it "
            "must have 3 x 3, 9 or 6 (Voigt) numbers"
        )
    values = values.reshape(3, 3)
    if np.isnan(values).all():
        return None
    _check_finite(values, filename, index, key)
    if is_virial:
        return -values
    return values * _volume(atoms, filename, index, key)


def _volume(atoms: Atoms, filename: str, index: int, key: str) -> float:
    if atoms.cell.rank < 3 or atoms.cell.volume == 0.0:
        raise ValueError(
            f"{_where(filename, index)}: it has a stress or virial '{key}' but no "
            "cell; give the frame a cell (a slab: with a vector through the vacuum), "
            "or remove what is there, in a training with `stress: off`"
        )
    return float(atoms.cell.volume)


def _check_duplicates(atoms: Atoms, filename: str, index: int) -> None:
    # Late: `data` needs the model, which needs the options that are being read here.
    from .data import COINCIDENT, neighbors_of

    i, j, _, distances = neighbors_of(atoms, 0.1)
    if len(distances) and distances.min() < COINCIDENT:
        pair = int(distances.argmin())
        raise ValueError(
            f"{_where(filename, index)}: atoms {i[pair]} and {j[pair]} are at the same "
            "place; remove the duplicate"
        )


Read = Callable[[Atoms, str, int, str], Optional[np.ndarray]]


def _gradient(
    target: Any, option: str, what: str, read_one: Read, required: bool
) -> Optional[List[Optional[np.ndarray]]]:
    """Labels of a gradient for every frame, or None where no frame has any.

    :param target: the section of the target in the options.
    :param option: the option for this gradient.
    :param what: name of the quantity, for messages.
    :param read_one: reads the label of one frame.
    :param required: whether it is an error if no frame has the key.
    """
    section = target[option]
    if not section:
        return None
    filename, key = section["read_from"], section["key"]
    frames, energies = read_frames(filename), read_frames(target["read_from"])
    if [len(atoms) for atoms in frames] != [len(atoms) for atoms in energies]:
        raise ValueError(
            f"file '{filename}' with the {what} and file '{target['read_from']}' with "
            "the energies differ in the number of frames or of atoms in a frame"
        )
    values = [read_one(a, filename, i, key) for i, a in enumerate(frames)]
    absent = [i for i, value in enumerate(values) if value is None]
    if len(absent) == len(values):
        if required:
            raise _missing_key(key, frames, filename, what, option)
        return None
    if absent:
        listed = ", ".join(map(str, absent[:10])) + (", ..." if absent[10:] else "")
        logging.warning(
            f"file '{filename}': {len(absent)} of {len(values)} frames have no {what} "
            f"under '{key}' (frames {listed}); they train on what they have"
        )
    return values


def read_labels(
    filename: str,
    energy_key: str,
    forces_key: str,
    stress_key: str,
    virial_key: Optional[str] = None,
) -> List[Tuple[float, np.ndarray, Optional[np.ndarray]]]:
    """Energies, forces and, where there are any, stresses of the frames of a file, in
    the units of the file.

    :param filename: name of the file.
    :param energy_key: where the energies are.
    :param forces_key: where the forces are.
    :param stress_key: where the stresses are.
    :param virial_key: where virials are, in the place of stresses.
    :raises ValueError: if an energy or forces are missing, no frame has a key of
        stresses or virials that is not the usual one, a label is misshapen or not
        finite, or a frame with a stress or virial has no cell.
    """
    labels = []
    strain_key, frames = virial_key or stress_key, read_frames(filename)
    for index, atoms in enumerate(frames):
        energy = _energy(atoms, filename, index, energy_key)
        forces = _forces(atoms, filename, index, forces_key)
        if forces is None:
            known = sorted(set(map(str, atoms.arrays)) - {"numbers", "positions"})
            raise ValueError(
                f"{_where(filename, index)}: there are no forces under the key "
                f"'{forces_key}'.{nearest(forces_key, known)} The frame has: "
                f"{', '.join(known) or 'nothing'}."
            )
        stress = _strain_gradient(
            atoms, filename, index, strain_key, virial_key is not None
        )
        if stress is not None:
            stress = stress / _volume(atoms, filename, index, strain_key)
        labels.append((float(energy.item()), forces, stress))
    if all(stress is None for _, _, stress in labels):
        _say_what_is_ignored(frames, filename, strain_key)
    return labels


def _say_what_is_ignored(frames: List[Atoms], filename: str, key: str) -> None:
    """
    :param key: under which no frame has a stress or virial.
    :raises ValueError: if it is not the usual one.
    """
    others = _stress_keys(frames)
    if key != "stress":
        raise ValueError(
            f"file '{filename}': no frame has the key '{key}'.{nearest(key, others)}"
        )
    if others:
        logging.warning(
            f"file '{filename}': no frame has the key 'stress'; what is under "
            f"{', '.join(map(repr, others))} is ignored"
        )


def _gradient_block(
    values: Optional[np.ndarray], shape: Tuple[int, ...], samples: Labels, sign: float
) -> TensorBlock:
    if values is None:
        values = np.full(shape, np.nan)
    if len(shape) == 2:
        components = [Labels.range("xyz", 3)]
    else:
        components = [Labels.range("xyz_1", 3), Labels.range("xyz_2", 3)]
        values = values.reshape(1, 3, 3)
    return TensorBlock(
        values=sign * torch.from_numpy(values).unsqueeze(-1),
        samples=samples,
        components=components,
        properties=Labels("energy", torch.tensor([[0]])),
    )


def _tensor_map(
    index: int,
    energy: np.ndarray,
    n_atoms: int,
    forces: Optional[List[Optional[np.ndarray]]],
    virials: Optional[List[Optional[np.ndarray]]],
) -> TensorMap:
    block = TensorBlock(
        values=torch.from_numpy(energy),
        samples=Labels(["system"], torch.tensor([[index]])),
        components=[],
        properties=Labels("energy", torch.tensor([[0]])),
    )
    if forces is not None:
        atoms = torch.arange(n_atoms)
        samples = torch.stack([0 * atoms, 0 * atoms + index, atoms], dim=1)
        labels = Labels(["sample", "system", "atom"], samples, assume_unique=True)
        gradient = _gradient_block(forces[index], (n_atoms, 3), labels, -1.0)
        block.add_gradient("positions", gradient)
    if virials is not None:
        labels = Labels(["sample"], torch.tensor([[0]]))
        gradient = _gradient_block(virials[index], (3, 3, 1), labels, 1.0)
        block.add_gradient("strain", gradient)
    return TensorMap(Labels(["_"], torch.tensor([[0]])), [block])


def read_energy(target_name: str, target: Any) -> Tuple[List[TensorMap], TargetInfo]:
    """Read an energy with its forces and stresses; takes the place of the function of
    this name in metatrain's ASE reader.

    :param target_name: name of the target.
    :param target: its section in the options, expanded by metatrain.
    :raises ValueError: if labels are missing, misspelt, misshapen or not finite, if a
        frame with a stress has no cell, or if atoms coincide.
    """
    filename, key = target["read_from"], target["key"]
    frames = read_frames(filename)
    energies = [_energy(a, filename, i, key) for i, a in enumerate(frames)]
    for index, atoms in enumerate(frames):
        _check_duplicates(atoms, filename, index)
    forces = _gradient(target, "forces", "forces", _forces, required=True)

    is_virial = bool(target["virial"])
    # Stresses are asked for by default under their usual name; another name, or a
    # virial, was written by the user.
    stress = target["stress"]
    required = is_virial or (bool(stress) and stress["key"] != "stress")
    option, what = ("virial", "virials") if is_virial else ("stress", "stresses")
    if stress and not required:
        _refuse_other_stresses(read_frames(stress["read_from"]), stress["read_from"])

    def read_strain(a: Atoms, f: str, i: int, k: str) -> Optional[np.ndarray]:
        return _strain_gradient(a, f, i, k, is_virial)

    virials = _gradient(target, option, what, read_strain, required)
    maps = [
        _tensor_map(i, energy, len(atoms), forces, virials)
        for i, (energy, atoms) in enumerate(zip(energies, frames, strict=True))
    ]
    info = get_energy_target_info(
        target_name, target, forces is not None, virials is not None
    )
    return maps, info
