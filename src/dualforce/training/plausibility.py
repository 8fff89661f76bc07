"""Frames whose labels cannot be right: forces, energies or stresses beyond what is
physical."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Dict, List, Optional

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .baselines import (
    count_atoms,
    fit_baseline,
    format_energies,
    given_baseline,
    least_squares,
)
from .data import Frame
from .model import DualForce
from .targets import FORCES_GRADIENT, VIRIAL_GRADIENT
from .units import force_unit, in_unit, stress_unit


Array = NDArray[np.float64]

MAX_FORCE = 50.0
"""In eV/Å, on an atom."""

MAX_ENERGY = 20.0
"""In eV per atom, from what the composition of a frame leads to expect. Atoms are bound
by less than 9 eV."""

MAX_STRESS = 3.0
"""In eV/Å^3, which is 480 GPa; the pressure in the centre of the earth is 360 GPa."""

MANY = 0.5
"""If more than this share of the frames exceeds a bound, the unit is wrong, not the
frames."""

ROUNDS = 100
"""Of reweighting, in the search for energies that the others contradict."""


@dataclass(frozen=True)
class Excess:
    """A label beyond its bound.

    :param frame: index of the frame.
    :param message: what it is, after the name of the frame.
    """

    frame: int
    message: str


def _limit(option: Optional[float], default: float, unit: str, wanted: str) -> float:
    """A bound in the unit of the data: as given, or a physical default."""
    return in_unit(default, unit, wanted) if option is None else float(option)


def _size(value: float, unit: str) -> str:
    """A number with its unit, if that is known."""
    return f"{value:.3g} {unit}".strip()


class LabelBounds:
    """Bounds on forces, energies and stresses, and the frames that exceed them.

    :param model: the model, which knows targets and units.
    :param hypers: training options.
    :param frames: training frames, which energies are compared with.
    """

    def __init__(
        self, model: DualForce, hypers: Mapping[str, Any], frames: Sequence[Frame]
    ) -> None:
        self._model = model
        self._options = {
            name: hypers[name] for name in ("max_force", "max_energy", "max_stress")
        }
        self._force_units = self._units(FORCES_GRADIENT, "force", force_unit)
        self._max_forces = self._limits(
            self._force_units, "max_force", MAX_FORCE, "eV/angstrom"
        )
        self._stress_units = self._units(VIRIAL_GRADIENT, "stress", stress_unit)
        self._max_stresses = self._limits(
            self._stress_units, "max_stress", MAX_STRESS, "eV/angstrom^3"
        )
        self._atom_energies: Dict[str, Array] = {}
        for energy in self._energies():
            labelled = [frame for frame in frames if energy in frame.labels]
            if labelled:
                limit = self._energy_limit(energy)
                self._atom_energies[energy] = self._robust_energies(
                    energy, labelled, limit
                )

    def _energies(self) -> List[str]:
        return [
            energy.name
            for energy in self._model.energies
            if self._model.targets[energy.name].sample_kind == "system"
        ]

    # ------------------------------------------------------------------ energies

    def _energy_limit(self, energy: str) -> float:
        unit = self._model.targets[energy].unit
        return _limit(self._options["max_energy"], MAX_ENERGY, "eV", unit)

    def _robust_energies(
        self, energy: str, frames: Sequence[Frame], limit: float
    ) -> Array:
        """Energies of atoms, shape ``[n_types, n_properties]``, from the frames that
        are within the limit of each other.

        Least squares where nothing exceeds the limit; else least absolute errors, which
        a minority of frames does not change.
        """
        counts = count_atoms(self._model.atomic_types, frames)
        sizes = counts.sum(1, keepdims=True)
        totals = torch.cat([frame.labels[energy] for frame in frames]).numpy()
        shares, means = counts / sizes, totals / sizes
        energies = least_squares(shares, means)
        for _ in range(ROUNDS):
            errors = np.abs(means - shares @ energies).max(1, keepdims=True)
            if (errors <= limit).all():
                break
            weights = 1.0 / np.sqrt(np.maximum(errors, 1e-3 * limit))
            energies = least_squares(weights * shares, weights * means)
        return energies

    def _energy_excess(self, frames: Sequence[Frame]) -> List[Excess]:
        found = []
        for energy, expected in self._atom_energies.items():
            limit = self._energy_limit(energy)
            unit = self._model.targets[energy].unit
            counts = count_atoms(self._model.atomic_types, frames)
            for index, frame in enumerate(frames):
                if energy not in frame.labels:
                    continue
                total = frame.labels[energy].numpy()
                error = float(np.abs(total - counts[index] @ expected).max())
                error /= len(frame)
                if error > limit:
                    message = (
                        f"the energy '{energy}' of {_size(total.flat[0], unit)} is "
                        f"{_size(error, unit)} per atom away from that of its atoms in "
                        f"the training set, which exceeds `max_energy` ({limit:g})"
                    )
                    found.append(Excess(index, message))
        return found

    # ---------------------------------------------------------- forces and stresses

    def _force_excess(self, frames: Sequence[Frame]) -> List[Excess]:
        def largest(_: Frame, values: Tensor) -> float:
            return float(values.norm(dim=1).max())

        units, limits = self._force_units, self._max_forces
        return _excess(frames, units, limits, largest, "a force", "max_force")

    def _stress_excess(self, frames: Sequence[Frame]) -> List[Excess]:
        def largest(frame: Frame, virials: Tensor) -> float:
            # Virials of a file with virials may have no volume.
            volume = frame.volume if frame.volume > 0.0 else math.inf
            return float(virials.abs().max()) / volume

        units, limits = self._stress_units, self._max_stresses
        return _excess(frames, units, limits, largest, "a stress", "max_stress")

    def _units(
        self, suffix: str, kind: str, unit_of: Callable[[str, str], str]
    ) -> Dict[str, str]:
        """Units of all labels that are such gradients of an energy, or such direct
        targets."""
        targets = self._model.targets
        length_unit = self._model.dataset_info.length_unit
        units = {
            energy.name + suffix: unit_of(targets[energy.name].unit, length_unit)
            for energy in self._model.energies
        }
        kinds = self._model.kinds.items()
        return units | {n: targets[n].unit for n, found in kinds if found == kind}

    def _limits(
        self, units: Mapping[str, str], option: str, default: float, unit: str
    ) -> Dict[str, float]:
        return {
            name: _limit(self._options[option], default, unit, wanted)
            for name, wanted in units.items()
        }

    # -------------------------------------------------------------------- together

    def _all_excess(self, frames: Sequence[Frame]) -> List[Excess]:
        return [
            *self._force_excess(frames),
            *self._energy_excess(frames),
            *self._stress_excess(frames),
        ]

    def reason(self, frame: Frame) -> Optional[str]:
        """Why a frame cannot be used, or None.

        :param frame: frame with labels in physical units.
        """
        excess = self._all_excess([frame])
        return excess[0].message if excess else None

    def exclude(self, frames: List[Frame], split: str) -> List[Frame]:
        """Exclude the frames with a label beyond its bound, and say so.

        :param frames: frames with labels in physical units.
        :param split: name of the split, for messages.
        :raises ValueError: if these are more than half of the frames, or all.
        """
        excess = self._all_excess(frames)
        dropped: Dict[int, str] = {}
        for item in excess:
            dropped.setdefault(item.frame, item.message)
        if len(dropped) > MANY * len(frames) or len(dropped) == len(frames):
            first = min(dropped)
            raise ValueError(
                f"{len(dropped)} of {len(frames)} frames of the {split} set have "
                "labels that cannot be right in the units of the options, the first "
                f"is {frames[first].name}: {dropped[first]}. Correct the labels or the "
                "units, or raise the bound"
            )
        for index, message in sorted(dropped.items()):
            logging.warning(f"{frames[index].name}: {message}; the frame is excluded")
        return [frame for i, frame in enumerate(frames) if i not in dropped]


def _excess(
    frames: Sequence[Frame],
    units: Mapping[str, str],
    limits: Mapping[str, float],
    largest: Callable[[Frame, Tensor], float],
    what: str,
    option: str,
) -> List[Excess]:
    """Labels whose largest value exceeds its limit."""
    found = []
    for index, frame in enumerate(frames):
        for name, limit in limits.items():
            if name not in frame.labels:
                continue
            value = largest(frame, frame.labels[name])
            if value > limit:
                size = _size(value, units[name])
                message = f"{what} of {size} exceeds `{option}` ({limit:g})"
                found.append(Excess(index, message))
    return found


def check_given_baseline(
    model: DualForce, energy: str, frames: Sequence[Frame], hypers: Mapping[str, Any]
) -> None:
    """Refuse energies of atoms that leave energies beyond what is physical.

    :param model: the model, which knows the atomic types.
    :param energy: name of an energy of structures.
    :param frames: training frames.
    :param hypers: training options.
    :raises ValueError: if ``atomic_baseline`` leaves more than ``max_energy`` per atom,
        in the median.
    """
    known = given_baseline(model, energy, hypers["atomic_baseline"])
    labelled = [frame for frame in frames if energy in frame.labels]
    if not known or not labelled:
        return
    baseline = fit_baseline(model, energy, labelled, known).numpy()
    counts = count_atoms(model.atomic_types, labelled)
    totals = torch.cat([frame.labels[energy] for frame in labelled]).numpy()
    left = (totals - counts @ baseline)[:, 0] / counts.sum(1)
    unit = model.targets[energy].unit
    limit = _limit(hypers["max_energy"], MAX_ENERGY, "eV", unit)
    if abs(float(np.median(left))) <= limit:
        return
    free = fit_baseline(model, energy, labelled, {}).numpy()
    worst = int(np.abs(left).argmax())
    raise ValueError(
        f"`atomic_baseline` leaves {np.median(left):.4g} {unit} per atom of the "
        f"energies '{energy}' (median; {left[worst]:.4g} in {labelled[worst].name}), "
        f"more than `max_energy` ({limit:g}): these energies of atoms are of another "
        "method or unit than the data. Least squares give "
        f"{format_energies(model.atomic_types, free, unit)}; leave `atomic_baseline` "
        "out to use them"
    )
