"""The optimiser of all stages."""

from collections.abc import Iterable
from typing import Any, Dict, List

import torch
from pytorch_optimizer import Muon
from pytorch_optimizer.optimizer.utils import zero_power_via_newton_schulz_5
from torch import Tensor, nn


class _FullPrecisionMuon(Muon):
    """Muon with Newton-Schulz iterations in the precision of the weights on a CPU.
    Those of the base class are in bfloat16, which many CPUs only emulate, tens of times
    as slow."""

    @staticmethod
    def _orthogonalize(group: Dict[str, Any], updates: List[Tensor]) -> List[Tensor]:
        if updates[0].device.type != "cpu":
            return list(Muon._orthogonalize(group, updates))
        matrices = [update.flatten(1) for update in updates]
        # All have the same two sides; turned the same way they are one batch, which for
        # small ones takes a third of the time.
        is_tall = [len(matrix) > matrix.size(1) for matrix in matrices]
        wide = [m.mT if tall else m for m, tall in zip(matrices, is_tall, strict=True)]
        found = zero_power_via_newton_schulz_5(
            torch.stack(wide),
            num_steps=group["ns_steps"],
            weights=group["ns_coeffs"],
            dtype=wide[0].dtype,
        )
        return [m.mT if tall else m for m, tall in zip(found, is_tall, strict=True)]


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
    return _FullPrecisionMuon([group | common for group in groups if group["params"]])


def _is_matrix(parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and min(parameter.shape) > 1
