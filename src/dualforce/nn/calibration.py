"""From raw predictions of a network to physical units."""

import torch
from torch import Tensor, nn


class Calibration(nn.Module):
    """A scale for each atomic type, and a baseline for scalars.

    A target has one scale for all types: separate scales of hydrogen and oxygen would
    give forces that do not sum to zero. Only models that start from a metatrain
    checkpoint inherit one scale for each type.

    :param n_types: number of atomic types.
    :param n_properties: number of properties of the target.
    """

    scale: Tensor
    baseline: Tensor

    def __init__(self, n_types: int, n_properties: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(n_types, dtype=torch.float64))
        self.register_buffer(
            "baseline", torch.zeros(n_types, n_properties, dtype=torch.float64)
        )

    def forward(self, raw: Tensor, types: Tensor) -> Tensor:
        """
        :param raw: raw predictions for atoms, shape ``[n_atoms, ..., n_properties]``.
        :param types: index of the type of each atom, shape ``[n_atoms]``.
        """
        scale = self.scale.to(raw.dtype)[types]
        if raw.dim() == 2:
            return raw * scale.unsqueeze(1) + self.baseline.to(raw.dtype)[types]
        return raw * scale.reshape([-1] + [1] * (raw.dim() - 1))
