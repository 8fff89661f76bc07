"""Radial basis and cutoff of the networks of this package."""

import math

import torch
from torch import Tensor, nn


N_BESSEL = 20
"""Bessel functions that the radial basis of ``painn`` is made of."""

INITIAL_MIXING = 0.1
"""Share of other Bessel functions in each function of the untrained basis."""


def wave_damping(n_waves: int) -> Tensor:
    """Factors on untrained weights of Bessel functions that make short waves small.

    :param n_waves: number of Bessel functions.
    """
    return 2.0 / (1.0 + torch.arange(1, n_waves + 1))


class RadialBasis(nn.Module):
    """Learnt combinations of spherical Bessel functions under a smooth cutoff
    (Gasteiger et al., arXiv:2003.03123, Eqs. 7 and 8).

    A few combinations of many Bessel functions resolve bonds, at the price of few
    functions: they start as the longest waves, with a little of all others.

    Scaled to be of order one over the neighbours in a liquid, rather than normalised in
    a sphere: untrained messages then have the size of the features they add to.

    The envelope is ``1 - 28 x^6 + 48 x^7 - 21 x^8`` with ``x = r / cutoff``: it and
    its first two derivatives vanish at the cutoff, so Hessians are continuous.

    :param cutoff: cutoff radius, in the length unit of the model.
    :param n_radial: number of basis functions.
    :param n_waves: Bessel functions that they are made of, if more.
    """

    wavenumbers: Tensor

    def __init__(self, cutoff: float, n_radial: int, n_waves: int = N_BESSEL) -> None:
        super().__init__()
        self.cutoff = float(cutoff)
        n_waves = max(n_waves, n_radial)
        wavenumbers = torch.arange(1, n_waves + 1, dtype=torch.float64)
        self.register_buffer("wavenumbers", wavenumbers * (math.pi / self.cutoff))
        others = INITIAL_MIXING * torch.randn(n_waves, n_radial)
        self.mixing = nn.Parameter(torch.eye(n_waves, n_radial) + others)

    def forward(self, distances: Tensor) -> Tensor:
        """
        :param distances: shape ``[n_edges]``.
        :return: basis functions, shape ``[n_edges, n_radial]``.
        """
        return self.waves(distances) @ self.mixing

    def waves(self, distances: Tensor) -> Tensor:
        """The Bessel functions that basis functions are combinations of.

        :param distances: shape ``[n_edges]``.
        :return: shape ``[n_edges, n_waves]``.
        """
        x = (distances / self.cutoff).clamp(max=1.0)
        x3 = x * x * x
        envelope = 1.0 - x3 * x3 * (28.0 - 48.0 * x + 21.0 * x * x)
        wavenumbers = self.wavenumbers.to(distances.dtype)
        waves = torch.sin(distances.unsqueeze(-1) * wavenumbers)
        return waves * (envelope / x).unsqueeze(-1)
