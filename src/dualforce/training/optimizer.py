"""The optimiser of all stages."""

from collections.abc import Iterable
from typing import Any, Dict, List

import torch
from pytorch_optimizer import Muon
from torch import nn


def make_optimizer(
    parameters: Iterable[nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Muon for matrices, AdamW for everything else.

    Muon makes the singular values of each update equal, so directions of weak gradients
    are learnt as fast as others. Updates are scaled to the size of those of AdamW
    (arXiv:2502.16982, Eq. 4), so that one learning rate serves both.

    :param parameters: weights to train.
    :param learning_rate: for all of them.
    :param weight_decay: likewise, decoupled from the gradient.
    """
    matrices: List[nn.Parameter] = []
    others: List[nn.Parameter] = []
    for parameter in parameters:
        (matrices if _is_matrix(parameter) else others).append(parameter)
    groups: List[Dict[str, Any]] = [
        {"params": matrices, "use_muon": True, "use_adjusted_lr": True},
        {"params": others, "use_muon": False},
    ]
    common = {"lr": learning_rate, "weight_decay": weight_decay}
    return Muon([group | common for group in groups if group["params"]])


def _is_matrix(parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and min(parameter.shape) > 1
