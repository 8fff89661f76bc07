"""Baselines, scales and loss terms, from the labels of the training set."""

import logging
from dataclasses import replace
from typing import Any, Dict, List, Mapping, Optional

import numpy as np
import torch
from metatomic.torch import System
from metatrain.composition import CompositionModel
from metatrain.utils.io import load_model
from metatrain.utils.neighbor_lists import get_system_with_neighbor_lists
from torch import Tensor

from ..nn.calibration import Calibration
from ..nn.pair_potential import PairPotential
from ..nn.pairs import PairTerm
from .data import Frame, count_labels
from .loss import Term, loss_kind
from .model import DualForce
from .pair_fit import fit_pair_potential, n_coefficients
from .stages import Stage
from .targets import FORCE, FORCES_GRADIENT, STRESS, VIRIAL_GRADIENT


HUBER_DELTA = 0.05
"""Where the Huber loss turns linear, in spreads of the labels, for ``delta: 1``."""


def calibration_of(model: DualForce, name: str) -> Any:
    """Scale and baseline of a target."""
    calibration = model.calibrations[name]
    assert isinstance(calibration, Calibration)
    return calibration


# ------------------------------------------------------------------------ baselines


def _given_baseline(
    model: DualForce, energy: str, given: Mapping[str, Any] | str
) -> Dict[int, float]:
    """Energies of atoms that need no fit, by atomic number."""
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
    frames: List[Frame],
    given: Mapping[str, Any] | str,
) -> Tensor:
    """Energy of an atom of each type, least squares of smallest norm.

    :return: shape ``[n_types, n_properties]``.
    """
    known = _given_baseline(model, energy, given)
    types = torch.tensor(model.atomic_types)
    labelled = [frame for frame in frames if energy in frame.labels]
    targets = torch.cat([frame.labels[energy] for frame in labelled])
    counts = torch.stack(
        [(frame.types.unsqueeze(1) == types).sum(0) for frame in labelled]
    ).to(torch.float64)
    baseline = torch.zeros(len(types), targets.shape[1], dtype=torch.float64)
    free = [i for i, t in enumerate(model.atomic_types) if t not in known]
    for i, atomic_type in enumerate(model.atomic_types):
        baseline[i] = known.get(atomic_type, 0.0)
    if free:
        rest = (targets - counts @ baseline).numpy()
        solution = np.linalg.lstsq(counts[:, free].numpy(), rest, rcond=None)[0]
        baseline[free] = torch.from_numpy(solution)
    return baseline


# ------------------------------------------------------------------------ scales


def _rms(frames: List[Frame], name: str, per_atom: bool) -> Optional[float]:
    """Root mean square of a label; of totals, per atom."""
    values = [
        frame.labels[name] if per_atom else frame.labels[name] / len(frame)
        for frame in frames
        if name in frame.labels
    ]
    if not values:
        return None
    rms = float(torch.cat([v.reshape(-1) for v in values]).square().mean().sqrt())
    return rms if rms > 0.0 else None


def remove_pair_terms(model: DualForce, frames: List[Frame]) -> List[Frame]:
    """Subtract repulsion and pair potential from labels."""
    for term, names in (
        (model.repulsion, model.repelled),
        (model.pair_potential, model.paired),
    ):
        if isinstance(term, PairTerm) and names:
            frames = [_remove_pair_term(model, term, names, frame) for frame in frames]
    return frames


def _remove_pair_term(
    model: DualForce, term: PairTerm, names: List[str], frame: Frame
) -> Frame:
    system = System(
        types=frame.types.to(torch.int32),
        positions=frame.positions,
        cell=frame.cell,
        pbc=frame.pbc,
    )
    system = get_system_with_neighbor_lists(system, [term.neighbor_list])
    systems = [system.to(device=model.interface.device)]
    volume = torch.abs(torch.det(frame.cell))
    labels = dict(frame.labels)
    for name, values in frame.labels.items():
        target = _target_of(name)
        if target not in names:
            continue
        kind = _kind_of_label(name, model)
        part = term.contribution(target, kind, systems).cpu()
        if name not in model.per_atom():
            part = part.sum(0, keepdim=True)
        labels[name] = values - (part * volume if kind == "stress" else part)
    return replace(frame, labels=labels)


def _kind_of_label(name: str, model: DualForce) -> str:
    if name.endswith(FORCES_GRADIENT):
        return "force"
    return "stress" if name.endswith(VIRIAL_GRADIENT) else model.kinds[name]


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


def fit_pairs(model: DualForce, new: List[str], frames: List[Frame]) -> None:
    """Fit the pair potentials of new energies, or direct forces, that have labels."""
    potential = model.pair_potential
    if not isinstance(potential, PairPotential):
        return
    counts = count_labels(frames)
    residuals = remove_pair_terms(model, frames)
    sizes = n_coefficients(
        potential, model.atomic_types, model.dataset_info.length_unit
    )
    for group in model.force_groups():
        labels = [group[0] + FORCES_GRADIENT, *group]
        known = [
            label
            for label in labels
            if label in counts and _kind_of_label(label, model) == "force"
        ]
        if group[0] in new and known:
            fit_pair_potential(potential, sizes, group[0], known[0], residuals)
    model.use_pair_potential()


def fit_calibration(
    model: DualForce,
    frames: List[Frame],
    atomic_baseline: Mapping[str, Any] | str,
    scale_targets: bool,
) -> None:
    """Fit baselines and scales of targets that are new to the model.

    An energy is scaled by the spread of its forces times a length of one: its gradient
    is then of order one.

    :raises ValueError: if no frame has a label for a target.
    """
    counts = count_labels(frames)
    new_targets = [name for name in model.targets if name not in model.fitted]
    for name in new_targets:
        if name not in counts:
            raise ValueError(f"no frame of the training set has a label for '{name}'")
    energies = [energy.name for energy in model.energies if energy.name in new_targets]
    fit_pairs(model, new_targets, frames)
    without_pairs = remove_pair_terms(model, frames)
    for name in energies:
        baseline = fit_baseline(model, name, without_pairs, atomic_baseline)
        calibration_of(model, name).baseline.copy_(baseline)
    model.fitted = list(model.targets)
    if not scale_targets:
        return
    residuals = remove_baseline(model, frames)
    for name in new_targets:
        scale = _rms(residuals, name, name in model.per_atom())
        if name in energies:
            scale = _rms(residuals, name + FORCES_GRADIENT, True) or scale
        calibration_of(model, name).scale.fill_(scale or 1.0)


def to_raw_units(model: DualForce, frames: List[Frame]) -> List[Frame]:
    """Labels as the network predicts them: without baseline, divided by scales."""
    types = torch.tensor(model.atomic_types)
    out = []
    for frame in remove_baseline(model, frames):
        index = (frame.types.unsqueeze(1) == types).to(torch.long).argmax(1)
        labels = {}
        for name, values in frame.labels.items():
            scale = calibration_of(model, _target_of(name)).scale.cpu()
            if name in model.per_atom():
                scale = scale[index].reshape([-1] + [1] * (values.dim() - 1))
            else:
                scale = scale[0]
            labels[name] = values / scale
        out.append(replace(frame, labels=labels))
    return out


def _target_of(name: str) -> str:
    return name.removesuffix(FORCES_GRADIENT).removesuffix(VIRIAL_GRADIENT)


# ------------------------------------------------------------------------ loss terms


def option_name(name: str, kinds: Dict[str, str]) -> str:
    """Name of a term in the weights of a stage."""
    if name.endswith(FORCES_GRADIENT):
        return "forces"
    if name.endswith(VIRIAL_GRADIENT):
        return "stress"
    return {"force": FORCE, "stress": STRESS}.get(kinds[name], "energy")


def _loss_config(loss: Any, name: str, model: DualForce) -> Mapping[str, Any]:
    """What the option ``loss`` says about a term."""
    if isinstance(loss, str):
        return {"type": loss}
    target = _target_of(name)
    gradient = {"forces": "positions", "stress": "strain"}.get(
        option_name(name, model.kinds)
    )
    for energy in model.energies:
        if target in energy.derived:
            target = energy.name
            gradient = "positions" if name == energy.force else "strain"
    config = loss.get(target, {})
    if isinstance(config, str):
        return {"type": config}
    if gradient is not None:
        gradients = config.get("gradients", {})
        shorthand = config.get("forces" if gradient == "positions" else "stress")
        default = shorthand or {"type": config.get("type", "mse")}
        config = gradients.get(gradient, default)
        if isinstance(config, str):
            return {"type": config}
    return dict(config)


def make_terms(
    model: DualForce, frames: List[Frame], hypers: Mapping[str, Any]
) -> List[Term]:
    """Loss terms for all that is labelled.

    :param model: the model, with fitted scales.
    :param frames: training frames in raw units.
    :param hypers: training options.
    """
    factors = {
        "energy": hypers["energy_weight"],
        "forces": 1.0,
        "stress": hypers["stress_weight"],
        FORCE: hypers["direct_weight"],
        STRESS: hypers["direct_weight"] * hypers["stress_weight"],
    }
    energies = {energy.name for energy in model.energies}
    terms = []
    for name in sorted(count_labels(frames)):
        target = _target_of(name)
        is_gradient = name != target
        if is_gradient and model.hypers["forces"] == "direct":
            continue
        config = _loss_config(hypers["loss"], name, model)
        per_atom = name in model.per_atom()
        kind = model.kinds[target]
        is_other = target not in energies and kind in ("scalar", "vector")
        factor = 1.0 if is_other else factors[option_name(name, model.kinds)]
        term = Term(
            name=name,
            target=target,
            weight=factor * float(config.get("weight", 1.0)),
            spread=_rms(frames, name, per_atom) or 1.0,
            scale=float(calibration_of(model, target).scale.mean()),
            loss=loss_kind(config, name),
            delta=float(config.get("delta", 1.0)) * HUBER_DELTA,
            per_atom=per_atom,
        )
        terms.append(term)
        logging.info(
            f"Loss term '{name}': {term.loss}, weight {term.weight:g}, spread "
            f"{term.spread * term.scale:.4g} {model.targets[target].unit}"
        )
    return terms


def weight_in_stage(term: Term, stage: Stage, model: DualForce) -> Term:
    """A term with the weight it has in a stage."""
    factor = stage.weights.get(option_name(term.name, model.kinds), 1.0)
    if term.conservative and stage.conservative_fraction == 0.0:
        factor = 0.0
    return replace(term, weight=factor * term.weight)
