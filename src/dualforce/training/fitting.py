"""Pair potentials, baselines and scales, from the labels of the training set."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import torch
from metatomic.torch import unit_conversion_factor
from torch import Tensor

from ..nn.pair_potential import PairPotential
from ..nn.pairs import Edges, PairTerm, some_edges
from .baselines import (
    calibration_of,
    count_atoms,
    fit_baseline,
    given_baseline,
    least_squares,
)
from .data import Frame, count_labels, with_neighbors
from .model import DualForce
from .pair_fit import (
    MAX_UNKNOWNS,
    edge_vectors,
    fit_pair_potential,
    n_coefficients,
    only_bonds,
)
from .targets import FORCES_GRADIENT, VIRIAL_GRADIENT


LEAST_FORCE = 0.1
"""Least root mean square of forces, in spreads of the energy of an atom per Å. Smaller
ones are those of relaxed or symmetric structures, or rounding errors: the energy is not
learnt from them, and their errors count as if the forces were of this size."""

LEAST_ENERGY = 1e-4
"""Least spread of the energies of atoms, in root mean squares of the forces times 1 Å.
Energies that differ by less are equal but for rounding; their errors count as if they
differed by this."""


def target_of(name: str) -> str:
    """The target that a label belongs to."""
    return name.removesuffix(FORCES_GRADIENT).removesuffix(VIRIAL_GRADIENT)


def kind_of_label(name: str, model: DualForce) -> str:
    """Kind of a label: that of its target, ``"force"`` or ``"stress"``."""
    if name.endswith(FORCES_GRADIENT):
        return "force"
    return "stress" if name.endswith(VIRIAL_GRADIENT) else model.kinds[name]


# ----------------------------------------------------------------- sizes of labels


def rms(frames: Sequence[Frame], name: str, per_atom: bool) -> Optional[float]:
    """Root mean square of a label; of totals, per atom. None where it is zero, or no
    frame has the label."""
    values = [
        frame.labels[name] if per_atom else frame.labels[name] / len(frame)
        for frame in frames
        if name in frame.labels
    ]
    if not values:
        return None
    found = float(torch.cat([v.reshape(-1) for v in values]).square().mean().sqrt())
    return found if found > 0.0 else None


def energy_spread(model: DualForce, energy: str, frames: Sequence[Frame]) -> float:
    """Root mean square of the energies per atom that the composition of the frames does
    not explain."""
    labelled = [frame for frame in frames if energy in frame.labels]
    if not labelled:
        return 0.0
    labels = [frame.labels[energy] for frame in labelled]
    if model.targets[energy].sample_kind == "atom":
        return float(torch.cat(labels).std(unbiased=False))
    counts = count_atoms(model.atomic_types, labelled)
    sizes = counts.sum(1, keepdims=True)
    shares, means = counts / sizes, torch.cat(labels).numpy() / sizes
    left = means - shares @ least_squares(shares, means)
    return float(np.sqrt(np.mean(left**2)))


def angstrom_of(model: DualForce) -> float:
    """1 Å in the length unit of the data."""
    length_unit = model.dataset_info.length_unit
    return unit_conversion_factor("angstrom", length_unit or "angstrom")


def forces_matter(
    model: DualForce, energy: str, label: str, frames: Sequence[Frame]
) -> bool:
    """Whether forces are large enough, compared with the energies, to learn from.

    :param model: the model, which knows types and units.
    :param energy: name of an energy.
    :param label: name of its forces.
    :param frames: frames with labels in physical units.
    """
    size = (rms(frames, label, True) or 0.0) * angstrom_of(model)
    return size > 0.0 and size >= LEAST_FORCE * energy_spread(model, energy, frames)


def least_spread(model: DualForce, frames: Sequence[Frame], name: str) -> float:
    """Least number by which errors of a label are divided in the loss, in the unit of
    the label; zero where nothing is known.

    :param model: the model, which knows types and units.
    :param frames: frames with labels in physical units, with or without baseline.
    :param name: name of the label.
    """
    target, kind = target_of(name), kind_of_label(name, model)
    for energy in model.energies:
        if target not in (energy.name, energy.force, energy.stress):
            continue
        if kind == "scalar":
            label = energy.name + FORCES_GRADIENT
            forces = rms(frames, label, True) or 0.0
            return LEAST_ENERGY * forces * angstrom_of(model)
        least = LEAST_FORCE * energy_spread(model, energy.name, frames)
        return least / angstrom_of(model) if kind == "force" else least
    return 0.0


# ------------------------------------------------------------ repulsion and pairs


def remove_pair_terms(model: DualForce, frames: List[Frame]) -> List[Frame]:
    """Subtract repulsion, pair potential and, inside the wall, its repulsion from
    labels."""
    both = (model.repulsion, model.repelled), (model.pair_potential, model.paired)
    terms = [
        (t, names, t.reach()) for t, names in both if isinstance(t, PairTerm) and names
    ]
    if not (terms or model.walled):
        return frames
    return [_without_pair_terms(model, terms, frame) for frame in frames]


def _without_pair_terms(
    model: DualForce,
    terms: Sequence[Tuple[PairTerm, List[str], float]],
    frame: Frame,
) -> Frame:
    cutoff = model.requested_neighbor_lists()[0].cutoff
    edges = _edges(model, frame)
    for term, names, reach in terms:
        near = edges
        if reach > cutoff:  # a repulsion beyond what the network sees
            near = _edges(model, with_neighbors(frame, reach))
        frame = _without_pair_term(model, term, names, _within(near, reach), frame)
    if model.walled and len(edges.inside):
        frame = _without_pair_term(
            model, model.wall_repulsion, model.walled, edges, frame
        )
    return frame


def _edges(model: DualForce, frame: Frame) -> Edges:
    """The edges of a frame, on the device of the model."""
    starts = model.backbone.wall.starts
    pairs = torch.stack([frame.types[frame.centers], frame.types[frame.neighbors]])
    vectors = edge_vectors(frame).to(starts.device)
    lengths = torch.linalg.vector_norm(vectors, dim=1)
    pairs = pairs.to(starts.device)
    of_edges = starts[pairs[0], pairs[1]].to(lengths.dtype)
    inside = torch.nonzero(lengths < of_edges).reshape(-1)
    centers = frame.centers.to(starts.device)
    return Edges(vectors, lengths, centers, pairs, of_edges, inside, len(frame))


def _within(edges: Edges, reach: float) -> Edges:
    """The edges that are shorter than this."""
    index = torch.nonzero(edges.lengths < reach).reshape(-1)
    shorter = edges.lengths[index] < edges.starts[index]
    return some_edges(edges, index, torch.nonzero(shorter).reshape(-1))


def _without_pair_term(
    model: DualForce, term: PairTerm, names: List[str], edges: Edges, frame: Frame
) -> Frame:
    labels = dict(frame.labels)
    # Direct labels that were derived from those of an energy are the same tensors, and
    # the term adds the same to both.
    done: Dict[int, Tensor] = {}
    for name, values in frame.labels.items():
        target = target_of(name)
        if target not in names:
            continue
        if id(values) not in done:
            part = term.contribution(target, kind_of_label(name, model), edges).cpu()
            if name not in model.per_atom():
                part = part.sum(0, keepdim=True)
            done[id(values)] = values - part
        labels[name] = done[id(values)]
    return replace(frame, labels=labels)


def fit_pairs(
    model: DualForce, new: List[str], frames: List[Frame], most_left: float
) -> None:
    """Fit the pair potentials of new energies, or direct forces, that have labels.

    :param most_left: see :func:`.pair_fit.fit_pair_potential`.
    """
    potential = model.pair_potential
    if not isinstance(potential, PairPotential):
        return
    counts = count_labels(frames)
    residuals = remove_pair_terms(model, frames)
    sizes = n_coefficients(
        potential, model.atomic_types, model.dataset_info.length_unit
    )
    energies = {energy.name for energy in model.energies}
    for group in model.force_groups():
        target = group[0]
        labels = [target + FORCES_GRADIENT, *group]
        known = [
            label
            for label in labels
            if label in counts and kind_of_label(label, model) == "force"
        ]
        if target not in new or not known:
            continue
        if target in energies and not forces_matter(model, target, known[0], frames):
            logging.warning(
                f"The forces of '{target}' are small against its energies (root mean "
                f"squares of {rms(frames, known[0], True) or 0.0:.2g} and "
                f"{energy_spread(model, target, frames):.2g} per atom): they are those "
                "of relaxed or symmetric structures, or rounding errors. The model "
                "learns from the energies, and no potential between pairs is fitted"
            )
            continue
        labelled = [frame for frame in residuals if known[0] in frame.labels]
        bonds = only_bonds(potential, sizes, labelled)
        left = fit_pair_potential(
            potential, bonds, target, known[0], labelled, most_left
        )
        if left is not None:
            logging.info(
                f"A potential between pairs leaves {100.0 * left:.0f} % of the forces "
                f"of '{target}' to the network (root mean square)"
            )
        elif sizes.sum() > MAX_UNKNOWNS:
            logging.info(f"No pair potential for '{target}': too many elements")
    model.use_pair_potential()


# ------------------------------------------------------------ baselines and scales


def remove_baseline(model: DualForce, frames: List[Frame]) -> List[Frame]:
    """Subtract from labels what the network need not learn: baseline and pairs."""
    types = torch.tensor(model.atomic_types)
    out = []
    for frame in remove_pair_terms(model, frames):
        index = (frame.types.unsqueeze(1) == types).to(torch.long).argmax(1)
        labels = dict(frame.labels)
        for name in model.calibrations:
            calibration = calibration_of(model, name)
            if model.kinds[name] == "scalar" and name in labels:
                baseline = calibration.baseline.cpu()[index]
                if model.targets[name].sample_kind == "system":
                    baseline = baseline.sum(0, keepdim=True)
                labels[name] = labels[name] - baseline
        out.append(replace(frame, labels=labels))
    return out


def _scale(model: DualForce, name: str, residuals: List[Frame]) -> float:
    """Scale of a target: the size of its labels; of an energy, that of its forces times
    a length of one, so that its gradient is of order one."""
    energies = {energy.name for energy in model.energies}
    found = rms(residuals, name, name in model.per_atom())
    if name not in energies:
        return max(found or 0.0, least_spread(model, residuals, name)) or 1.0
    label = name + FORCES_GRADIENT
    if forces_matter(model, name, label, residuals):
        found = rms(residuals, label, True)
    return found or 1.0


def fit_calibration(
    model: DualForce,
    frames: List[Frame],
    atomic_baseline: Mapping[str, Any] | str,
    scale_targets: bool,
    pairs_leave: float = 1.0,
) -> None:
    """Fit pair potentials, baselines and scales of targets that are new to the model.

    :param model: the model, which is changed.
    :param frames: training frames with labels in physical units.
    :param atomic_baseline: the option of this name.
    :param scale_targets: the option of this name.
    :param pairs_leave: share of the forces that pair potentials may leave; there are
        none that leave more, and none at all for zero.
    :raises ValueError: if no frame has a label for a target.
    """
    counts = count_labels(frames)
    new_targets = [name for name in model.targets if name not in model.fitted]
    for name in new_targets:
        if name not in counts:
            raise ValueError(f"no frame of the training set has a label for '{name}'")
    energies = [energy.name for energy in model.energies if energy.name in new_targets]
    if pairs_leave:
        fit_pairs(model, new_targets, frames, pairs_leave)
    without_pairs = remove_pair_terms(model, frames)
    for name in energies:
        known = given_baseline(model, name, atomic_baseline)
        baseline = fit_baseline(model, name, without_pairs, known)
        calibration_of(model, name).baseline.copy_(baseline)
    model.fitted = list(model.targets)
    if not scale_targets:
        return
    residuals = remove_baseline(model, frames)
    for name in new_targets:
        calibration_of(model, name).scale.fill_(_scale(model, name, residuals))


def to_raw_units(model: DualForce, frames: List[Frame]) -> List[Frame]:
    """Labels as the network predicts them: without baseline, divided by scales."""
    types = torch.tensor(model.atomic_types)
    out = []
    for frame in remove_baseline(model, frames):
        index = (frame.types.unsqueeze(1) == types).to(torch.long).argmax(1)
        labels = {}
        for name, values in frame.labels.items():
            scale = calibration_of(model, target_of(name)).scale.cpu()
            if name in model.per_atom():
                scale = scale[index].reshape([-1] + [1] * (values.dim() - 1))
            else:
                scale = scale[0]
            labels[name] = values / scale
        out.append(replace(frame, labels=labels))
    return out
