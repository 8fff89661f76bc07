"""Terms of the loss, from the labels of the training set and the options."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Dict, List

from .baselines import calibration_of
from .data import Frame, count_labels
from .fitting import least_spread, rms, target_of
from .loss import Term, loss_kind
from .model import DualForce
from .stages import Stage
from .targets import FORCE, FORCES_GRADIENT, STRESS, VIRIAL_GRADIENT


HUBER_DELTA = 0.05
"""Where the Huber loss turns linear, in spreads of the labels, for ``delta: 1``."""


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
    target = target_of(name)
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


def _in_physical_units(model: DualForce, frame: Frame) -> Frame:
    scales = {
        name: float(calibration_of(model, target_of(name)).scale.mean())
        for name in frame.labels
    }
    labels = {name: scales[name] * values for name, values in frame.labels.items()}
    return replace(frame, labels=labels)


def make_terms(
    model: DualForce, frames: List[Frame], hypers: Mapping[str, Any]
) -> List[Term]:
    """Loss terms for all that is labelled.

    :param model: the model, with fitted scales.
    :param frames: training frames in raw units.
    :param hypers: training options.
    """
    physical = [_in_physical_units(model, frame) for frame in frames]
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
        target = target_of(name)
        is_gradient = name != target
        if is_gradient and model.hypers["forces"] == "direct":
            continue
        config = _loss_config(hypers["loss"], name, model)
        per_atom = name in model.per_atom()
        kind = model.kinds[target]
        is_other = target not in energies and kind in ("scalar", "vector")
        factor = 1.0 if is_other else factors[option_name(name, model.kinds)]
        scale = float(calibration_of(model, target).scale.mean())
        spread = rms(frames, name, per_atom) or 0.0
        term = Term(
            name=name,
            target=target,
            weight=factor * float(config.get("weight", 1.0)),
            spread=max(spread, least_spread(model, physical, name) / scale) or 1.0,
            scale=scale,
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
