"""Radial basis and cutoff of the ``painn`` backbone."""

import math

import torch
from torch import Tensor, nn


class RadialBasis(nn.Module):
    """Spherical Bessel functions under a smooth cutoff (Gasteiger et al.,
    arXiv:2003.03123, Eqs. 7 and 8).

    Scaled to be of order one over the neighbours in a liquid, rather than normalised in
    a sphere: untrained messages then have the size of the features they add to.

    The envelope is ``1 - 28 x^6 + 48 x^7 - 21 x^8`` with ``x = r / cutoff``: it and
    its first two derivatives vanish at the cutoff, so Hessians are continuous.

    :param cutoff: cutoff radius, in the length unit of the model.
    :param n_radial: number of basis functions.
    """

    wavenumbers: Tensor

    def __init__(self, cutoff: float, n_radial: int) -> None:
        super().__init__()
        self.cutoff = float(cutoff)
        wavenumbers = torch.arange(1, n_radial + 1, dtype=torch.float64)
        self.register_buffer("wavenumbers", wavenumbers * (math.pi / self.cutoff))

    def forward(self, distances: Tensor) -> Tensor:
        """
        :param distances: shape ``[n_edges]``.
        :return: basis functions, shape ``[n_edges, n_radial]``.
        """
        x = (distances / self.cutoff).clamp(max=1.0)
        x3 = x * x * x
        envelope = 1.0 - x3 * x3 * (28.0 - 48.0 * x + 21.0 * x * x)
        wavenumbers = self.wavenumbers.to(distances.dtype)
        waves = torch.sin(distances.unsqueeze(-1) * wavenumbers)
        return waves * (envelope / x).unsqueeze(-1)
