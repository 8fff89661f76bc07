"""Baselines: energies of atoms, which the network need not learn."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Dict, List, Optional

import numpy as np
import torch
from ase.data import chemical_symbols
from metatrain.composition import CompositionModel
from metatrain.utils.io import load_model
from numpy.typing import NDArray
from torch import Tensor

from ..nn.calibration import Calibration
from .data import Frame
from .model import DualForce
from .units import in_unit


Array = NDArray[np.float64]

MAX_ATOMS = 30_000
"""Atoms whose energies are predicted, on the processor, to compare zeros of energy."""

IMPROVEMENT = 0.5
"""The zero of energy is another one if other baselines leave less than this share of
the errors of energies."""

FEW_FRAMES_ERROR = 0.05
"""In eV per atom: what is taken for the error of energies where there are too few
frames to estimate it."""


def calibration_of(model: DualForce, name: str) -> Any:
    """Scale and baseline of a target."""
    calibration = model.calibrations[name]
    assert isinstance(calibration, Calibration)
    return calibration


def count_atoms(atomic_types: Sequence[int], frames: Sequence[Frame]) -> Array:
    """Atoms of each type in each frame, shape ``[n_frames, n_types]``."""
    types = torch.tensor(list(atomic_types))
    counts = [(frame.types.unsqueeze(1) == types).sum(0) for frame in frames]
    return torch.stack(counts).to(torch.float64).numpy()


def format_energies(atomic_types: Sequence[int], energies: Array, unit: str) -> str:
    """Energies of atoms for messages, for instance ``H -13.6, O -2043 eV``."""
    values = np.asarray(energies).reshape(len(atomic_types), -1)[:, 0]
    listed = (
        f"{chemical_symbols[atomic_type]} {value:.6g}"
        for atomic_type, value in zip(atomic_types, values, strict=True)
    )
    return f"{', '.join(listed)} {unit}".strip()


def least_squares(counts: Array, totals: Array) -> Array:
    """Energies of atoms that leave the least squares of totals, of smallest norm.

    :param counts: atoms of each type, shape ``[n_frames, n_types]``.
    :param totals: energies of frames, shape ``[n_frames, n_properties]``.
    :return: shape ``[n_types, n_properties]``.
    """
    return np.asarray(np.linalg.lstsq(counts, totals, rcond=None)[0])


# ---------------------------------------------------------------- from nothing known


def given_baseline(
    model: DualForce, energy: str, given: Mapping[str, Any] | str
) -> Dict[int, float]:
    """Energies of atoms that the option ``atomic_baseline`` sets, by atomic number.

    :param model: the model, which knows the atomic types.
    :param energy: name of the energy.
    :param given: the option.
    :raises ValueError: if it names a checkpoint without this energy.
    """
    if isinstance(given, str):
        loaded = load_model(given)
        if not isinstance(loaded, CompositionModel) or energy not in loaded.outputs:
            raise ValueError(
                f"`atomic_baseline: {given}` is not a composition model for '{energy}'"
            )
        weights = loaded.model.weights[energy].block().values[:, 0].tolist()
        return dict(zip(loaded.atomic_types, weights, strict=True))
    values = given.get(energy, {})
    if isinstance(values, (int, float)):
        return {atomic_type: float(values) for atomic_type in model.atomic_types}
    return {int(key): float(value) for key, value in values.items()}


def fit_baseline(
    model: DualForce,
    energy: str,
    frames: Sequence[Frame],
    known: Mapping[int, float],
) -> Tensor:
    """Energy of an atom of each type, least squares of smallest norm.

    :param model: the model, which knows the atomic types.
    :param energy: name of the energy.
    :param frames: frames, of which at least one has the energy.
    :param known: energies of atoms that are not fitted, by atomic number.
    :return: shape ``[n_types, n_properties]``.
    """
    labelled = [frame for frame in frames if energy in frame.labels]
    totals = torch.cat([frame.labels[energy] for frame in labelled]).numpy()
    counts = count_atoms(model.atomic_types, labelled)
    baseline = np.zeros((len(model.atomic_types), totals.shape[1]))
    for i, atomic_type in enumerate(model.atomic_types):
        baseline[i] = known.get(atomic_type, 0.0)
    free = [i for i, t in enumerate(model.atomic_types) if t not in known]
    if free:
        rest = totals - counts @ baseline
        baseline[free] = least_squares(counts[:, free], rest)
    return torch.from_numpy(baseline)


# ----------------------------------------------------------- of a model that is known


def refuse_given_baseline(model: DualForce, given: Mapping[str, Any] | str) -> None:
    """Refuse the option ``atomic_baseline`` for energies that the model has already.

    :param model: the model that fine-tuning starts from.
    :param given: the option.
    :raises ValueError: if it names such an energy.
    """
    if isinstance(given, str):
        loaded = load_model(given)
        named = set(getattr(loaded, "outputs", ()))
    else:
        named = set(given)
    known = sorted(named.intersection(model.fitted))
    if known:
        raise ValueError(
            f"`atomic_baseline` gives energies of atoms for '{known[0]}', which the "
            "checkpoint of `finetune: read_from` has been trained on: its network "
            "corrects its own baseline and no other. Leave `atomic_baseline` out; the "
            "baseline is moved to the zero of energy of the new data by itself"
        )


def representative(frames: Sequence[Frame], max_atoms: int) -> List[Frame]:
    """Frames from everywhere with about so many atoms, and with all elements."""
    stride = max(1, sum(len(frame) for frame in frames) // max_atoms)
    chosen: List[Frame] = []
    seen: set[int] = set()
    for index, frame in enumerate(frames):
        elements = set(frame.types.tolist())
        if index % stride == 0 or not elements <= seen:
            chosen.append(frame)
            seen |= elements
    return chosen


class ZeroOfEnergy:
    """Whether energies of atoms are other ones in data than in a model.

    :param model: the model.
    :param energy: name of the energy.
    :param frames: frames that have it.
    :param errors: labels less predictions, of totals in the unit of the energy, shape
        ``[n_frames, n_properties]``.
    """

    def __init__(
        self, model: DualForce, energy: str, frames: Sequence[Frame], errors: Array
    ) -> None:
        self.model, self.energy = model, energy
        counts = count_atoms(model.atomic_types, frames)
        sizes = counts.sum(1, keepdims=True)
        # Divided by the number of atoms: as far as errors go, frames are equal.
        self.shift = least_squares(counts / sizes, errors / sizes)
        rest = (errors - counts @ self.shift) / sizes
        self.before = float(np.sqrt(np.mean((errors / sizes) ** 2)))
        rank = int(np.linalg.matrix_rank(counts))
        self.is_arbitrary = rank < int((counts.sum(0) > 0.0).sum())
        freedom = len(frames) - rank
        self.after = in_unit(FEW_FRAMES_ERROR, "eV", model.targets[energy].unit)
        if freedom > 0:
            self.after = float(np.sqrt(np.sum(rest**2) / freedom / rest.shape[1]))

    @property
    def differs(self) -> bool:
        """Whether it is another one."""
        return self.after < IMPROVEMENT * self.before

    def __str__(self) -> str:
        unit = self.model.targets[self.energy].unit
        shift = format_energies(self.model.atomic_types, self.shift, unit)
        if self.is_arbitrary:
            shift += " (how it is split among the elements does not matter here)"
        return (
            f"energies of atoms that differ by {shift} lower the error of "
            f"'{self.energy}' before training from {self.before:.4g} to "
            f"{self.after:.4g} {unit}/atom"
        )


Predict = Callable[[str, Sequence[Frame]], Array]
"""Errors of an energy in frames: labels less predictions, of totals."""


def compare_zero_of_energy(
    model: DualForce, energy: str, frames: Sequence[Frame], errors_of: Predict
) -> Optional[ZeroOfEnergy]:
    """Compare the zero of energy of data with that of a model.

    :param model: the model.
    :param energy: name of the energy.
    :param frames: training frames.
    :param errors_of: predicts.
    :return: the comparison, or None where no frame has the energy.
    """
    chosen = [frame for frame in frames if energy in frame.labels]
    if not chosen or model.targets[energy].sample_kind != "system":
        return None
    chosen = representative(chosen, MAX_ATOMS)
    return ZeroOfEnergy(model, energy, chosen, errors_of(energy, chosen))


def move_baselines(
    model: DualForce, energies: Sequence[str], frames: Sequence[Frame], predict: Predict
) -> None:
    """Move baselines to the zero of energy of the data, where it is another one.

    :param model: a model that fine-tuning starts from; its baselines are changed.
    :param energies: energies it has been trained on.
    :param frames: training frames.
    :param predict: see :data:`Predict`.
    """
    for energy in energies:
        zero = compare_zero_of_energy(model, energy, frames, predict)
        if zero is None:
            continue
        if zero.differs:
            calibration_of(model, energy).baseline.add_(torch.from_numpy(zero.shift))
            logging.warning(
                f"The data have another zero of energy than the checkpoint, and the "
                f"baseline was moved: {zero}"
            )
        else:
            logging.info(
                f"The baseline of the checkpoint is kept: '{energy}' is off by "
                f"{zero.before:.4g} {model.targets[energy].unit}/atom before training"
            )
