"""From data sets to frames and terms of the loss: what happens once, before the first
step."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Dict, List, Literal, Optional

import numpy as np
import torch
from ase.data import chemical_symbols

from ..batches import batches
from .baselines import (
    Array,
    Predict,
    calibration_of,
    compare_zero_of_energy,
    move_baselines,
    refuse_given_baseline,
)
from .batches import BatchRule, sizes_in_epoch, sizes_of
from .consistency import warn_of_contradictions
from .data import Frame, collate, count_labels
from .domain import record_domain
from .finetuning import DIRECT_KINDS
from .fitting import fit_calibration, to_raw_units
from .loss import Term, predict
from .model import DualForce
from .plausibility import LabelBounds, check_given_baseline
from .record import DataRecord, count_copies
from .stages import FEW_ATOMS
from .streams import Finish, Finisher, Split, open_split
from .terms import make_terms
from .units import in_unit
from .walls import set_up_wall


Start = Literal["new", "finetune", "restart"]
"""How a training starts: from nothing, from the weights of a model, or where an earlier
run was interrupted."""

OTHER_ZERO = 1.0
"""In eV per atom. Of a run that does not say what it was trained on, errors of energies
that are larger, and go away with other baselines, are those of other data."""

LEFT_BY_STIFF_BONDS = 0.6
"""Splines are less smooth than the forces of a teacher, and their kinks are in the
difference of both forces. A student has them only where they leave less than this share
of the forces to its network: there its errors matter more."""

SAME_DATA = (
    "`--restart` goes on with an interrupted run on the same data; to train the model "
    "on other data, start a new run with `finetune: {read_from: ...}`"
)

Record = Dict[str, Dict[str, Any]]
"""Records of the training and of the validation set, for checkpoints."""


@dataclass(frozen=True)
class Prepared:
    """What a training works on.

    :param train: training frames in raw units; where they are read from disk, those
        whose labels are beyond their bounds have none.
    :param val: validation frames, likewise.
    :param terms: terms of the loss.
    :param record: what the data are.
    """

    train: Sequence[Frame]
    val: Sequence[Frame]
    terms: List[Term]
    record: Record


def prepare(
    model: DualForce,
    hypers: Mapping[str, Any],
    train_datasets: Sequence[Any],
    val_datasets: Sequence[Any],
    start: Start,
    recorded: Optional[Record],
    n_processes: int,
    show_progress: bool,
) -> Prepared:
    """Convert data sets, check their labels, and fit what the network need not learn.

    :param model: the model; pair potentials, baselines and scales of new targets are
        fitted, and baselines moved where fine-tuning meets another zero of energy.
    :param hypers: training options.
    :param train_datasets: data sets of metatrain.
    :param val_datasets: likewise.
    :param start: how the training starts.
    :param recorded: what an interrupted run was trained on, if that is known.
    :param n_processes: number of processes that train.
    :param show_progress: show bars.
    :raises ValueError: if frames, labels or options are unusable, or an interrupted run
        is to go on with other data.
    """
    memory, how = hypers["max_memory"], (show_progress, hypers["skip_bad_frames"])
    train_split = open_split(train_datasets, "training", model, memory, *how)
    memory -= train_split.memory
    val_split = open_split(val_datasets, "validation", model, memory, *how)
    train, val = train_split.frames, val_split.frames
    record = {
        "training": _record(model, train_split),
        "validation": _record(model, val_split),
    }
    if start == "restart":
        _check_record(record, recorded)
    if start == "new":
        _check_elements(train, val)
    bounds = LabelBounds(model, hypers, train)
    train = bounds.exclude(train, "training")
    val = bounds.exclude(val, "validation")
    rule = BatchRule.of(hypers)
    train = _exclude_oversized(rule, train, "training")
    val = _exclude_oversized(rule, val, "validation")
    only_direct = hypers["finetune"].get("train") == "direct_head"
    if start != "restart":
        record_domain(model, train)
        if not only_direct:  # which leaves the energy as it is
            set_up_wall(model, train)
    known = [e.name for e in model.energies if e.name in model.fitted]
    if start == "finetune":
        refuse_given_baseline(model, hypers["atomic_baseline"])
    if start == "restart" and recorded is None and not only_direct:
        _check_zero_of_energy(model, known, train)
    for energy in model.energies:
        if energy.name not in known:
            check_given_baseline(model, energy.name, train, hypers)
    fit_calibration(
        model,
        train,
        hypers["atomic_baseline"],
        hypers["scale_targets"],
        pairs_may_leave(model, hypers, train, n_processes),
    )
    if start == "finetune" and not only_direct:
        move_baselines(model, known, train, _predictor(model))
    if start != "restart":
        warn_of_contradictions(model, train)
    _report(train, val)
    raw = to_raw_units(model, train)
    terms = make_terms(model, raw, hypers)
    if only_direct:
        terms = [term for term in terms if model.kinds[term.target] in DIRECT_KINDS]
    finish = Finisher(model, bounds)
    return Prepared(
        _all_frames(train_split, raw, rule, finish),
        _all_frames(val_split, to_raw_units(model, val), rule, finish),
        terms,
        record,
    )


def _record(model: DualForce, split: Split) -> Dict[str, Any]:
    n_frames = len(split.frames if split.stream is None else split.stream)
    return DataRecord.of(model, split.frames, n_frames).as_dict()


def _all_frames(
    split: Split, raw: List[Frame], rule: BatchRule, finish: Finish
) -> Sequence[Frame]:
    """The frames of a split, from memory or from disk, that fit into batches."""
    if split.stream is None:
        return raw
    sizes = split.stream.sizes
    fitting = np.flatnonzero([rule.fits(int(size)) for size in sizes])
    if len(fitting) < len(sizes):
        logging.warning(
            f"{len(sizes) - len(fitting)} of {len(sizes)} frames on disk have more "
            f"atoms than `max_atoms_per_batch` ({rule.max_atoms}) and are excluded"
        )
    return split.stream.of(fitting).finished(finish)


def pairs_may_leave(
    model: DualForce,
    hypers: Mapping[str, Any],
    frames: Sequence[Frame],
    n_processes: int,
) -> float:
    """Share of the forces that a pair potential may leave to the network; zero where
    there is to be none. Where options do not say, it pays in large batches, and with a
    teacher only if it takes most of the forces."""
    option: Optional[bool] = model.hypers["pair_potential"]
    if option is not None:
        return float(option)
    sizes = sizes_in_epoch(frames, hypers["sampling_weights"])
    if BatchRule.of(hypers).atoms_of_step(sizes, n_processes) < FEW_ATOMS:
        return 0.0
    return LEFT_BY_STIFF_BONDS if hypers["teacher"].get("model") else 1.0


def _exclude_oversized(rule: BatchRule, frames: List[Frame], split: str) -> List[Frame]:
    """Exclude the frames that fit into no batch, and say so.

    :raises ValueError: if none fits.
    """
    fitting = [frame for frame in frames if rule.fits(len(frame))]
    if not fitting:
        raise ValueError(
            f"no frame of the {split} set fits into a batch of `max_atoms_per_batch` "
            f"({rule.max_atoms}) atoms, the smallest has {sizes_of(frames).min()}; "
            "raise the option"
        )
    if len(fitting) < len(frames):
        first = next(frame for frame in frames if not rule.fits(len(frame)))
        logging.warning(
            f"{len(frames) - len(fitting)} of {len(frames)} frames of the {split} set "
            f"have more atoms than `max_atoms_per_batch` ({rule.max_atoms}) and are "
            f"excluded, the first is {first.name} ({len(first)} atoms)"
        )
    return fitting


def _check_elements(train: Sequence[Frame], val: Sequence[Frame]) -> None:
    """
    :raises ValueError: if a validation frame has an element that no training frame has:
        its energy cannot be learnt.
    """
    known = {number for frame in train for number in frame.types.tolist()}
    for frame in val:
        new = sorted(set(frame.types.tolist()) - known)
        if new:
            raise ValueError(
                f"{frame.name}: it contains {chemical_symbols[new[0]]}, which no frame "
                "of the training set does, so nothing can be learnt about it; move "
                "the frame to the training set or remove it"
            )


# ------------------------------------------------------------------ runs that go on


def _check_record(record: Record, recorded: Optional[Record]) -> None:
    """
    :raises ValueError: if these are not the data that an interrupted run had.
    """
    for split, before in (recorded or {}).items():
        now = DataRecord.from_dict(record[split])
        differences = DataRecord.from_dict(before).differences(now)
        if differences:
            raise ValueError(
                f"the {split} set is not the one that the run started with: "
                f"{'; '.join(differences)}. {SAME_DATA}"
            )


def _check_zero_of_energy(
    model: DualForce, energies: Sequence[str], frames: Sequence[Frame]
) -> None:
    """
    :raises ValueError: if the data have another zero of energy than the model.
    """
    for energy in energies:
        zero = compare_zero_of_energy(model, energy, frames, _predictor(model))
        least = in_unit(OTHER_ZERO, "eV", model.targets[energy].unit)
        if zero is not None and zero.differs and zero.before > least:
            raise ValueError(
                "the data have another zero of energy than those the run started with: "
                f"{zero}. {SAME_DATA}"
            )


def _predictor(model: DualForce) -> Predict:
    """Errors of energies that the model predicts."""

    def errors_of(energy: str, frames: Sequence[Frame]) -> Array:
        scale = float(calibration_of(model, energy).scale.mean())
        model.eval()
        found = []
        for batch in batches(to_raw_units(model, list(frames))):
            joined = collate(
                batch, model.per_atom(), model.network_dtype(), model.interface.device
            )
            with torch.no_grad():
                means = predict(model.backbone, joined, [energy], [], [], False)
            sizes = torch.tensor([[len(frame)] for frame in batch])
            labels = torch.cat([frame.labels[energy] for frame in batch])
            predicted = means[energy].to(torch.float64).cpu() * sizes
            found.append(scale * (labels - predicted))
        return torch.cat(found).numpy()

    return errors_of


# ---------------------------------------------------------------------- in the log


def _report(train: Sequence[Frame], val: Sequence[Frame]) -> None:
    """Say which labels the two sets have, and whether they are independent."""
    counts = {"training": count_labels(list(train)), "validation": {}}
    counts["validation"] = count_labels(list(val))
    for split, frames in (("training", train), ("validation", val)):
        listed = ", ".join(f"{name}: {n}" for name, n in sorted(counts[split].items()))
        logging.info(f"{split.title()} set: {len(frames)} frames; labels {listed}")
    for name in sorted(counts["training"].keys() - counts["validation"].keys()):
        logging.warning(
            f"No frame of the validation set has a label '{name}': its error is not "
            "measured, and does not decide which model is best"
        )
    for name in sorted(counts["validation"].keys() - counts["training"].keys()):
        logging.warning(
            f"No frame of the training set has a label '{name}', though frames of the "
            "validation set do: it is not learnt"
        )
    copies = count_copies(train)
    if copies == len(train) - 1 > 0:
        logging.warning(f"All {len(train)} frames of the training set are the same")
    elif copies:
        logging.warning(f"{copies} frames of the training set are copies of others")
    shared = count_copies(val, train)
    if shared:
        logging.warning(
            f"{shared} of {len(val)} frames of the validation set are in the training "
            "set too; their errors tell nothing about other structures"
        )
