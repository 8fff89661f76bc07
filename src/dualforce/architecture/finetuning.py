"""Fine-tuning that leaves the energy alone."""

from .model import DualForce


DIRECT_KINDS = ("force", "stress")
"""Kinds of the targets that are predicted without a gradient."""


def freeze_all_but_direct_heads(model: DualForce) -> None:
    """Let a training change the heads of direct forces and stresses only. Energies and
    conservative forces then stay as they are, in every bit.

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
