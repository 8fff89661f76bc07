"""Fine-tuning that leaves the energy alone."""

from collections.abc import Mapping
from typing import Any

from ..nn.layered import LayeredBackbone
from .model import DualForce


DIRECT_KINDS = ("force", "stress")
"""Kinds of the targets that are predicted without a gradient."""


def check_finetune(finetune: Mapping[str, Any]) -> None:
    """Check options that depend on each other.

    :param finetune: the section ``finetune`` of the training options.
    :raises ValueError: if they contradict each other.
    """
    early = finetune.get("direct_layers") is not None
    if early and finetune.get("train") != "direct_head":
        raise ValueError("`finetune: direct_layers` goes with `train: direct_head`")


def freeze_all_but_direct_heads(model: DualForce) -> None:
    """Let a training change the heads of direct forces and stresses only. Energies and
    conservative forces then stay bitwise identical.

    :param model: the model.
    :raises ValueError: if it has no direct force.
    """
    heads = [name for name, kind in model.kinds.items() if kind in DIRECT_KINDS]
    if not any(model.kinds[name] == "force" for name in heads):
        raise ValueError(
            "`finetune: train: direct_head` needs a direct force to train: set "
            "`forces: hybrid` in `architecture.model`, and give the data forces"
        )
    model.backbone.requires_grad_(False)
    for parameter in model.backbone.head_parameters(heads):
        parameter.requires_grad_(True)


def read_direct_from(model: DualForce, layer: int) -> None:
    """Read direct forces and stresses from an earlier layer of the network.

    :param model: the model.
    :param layer: counted from 1.
    :raises ValueError: if there is no such layer, or the network has none.
    """
    if not isinstance(model.backbone, LayeredBackbone):
        raise ValueError(
            "`finetune: direct_layers` is for `painn` and `ace`; the backbone of this "
            f"checkpoint is '{model.hypers['backbone']}'"
        )
    model.backbone.read_direct_from(layer)
    model.hypers[model.hypers["backbone"]]["n_direct_layers"] = layer
