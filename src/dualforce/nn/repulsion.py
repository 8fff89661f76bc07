"""Repulsion of nuclei at short range."""

from typing import Dict, List, NamedTuple, Tuple

import torch
from metatomic.torch import NeighborListOptions, unit_conversion_factor
from metatrain.utils.additive import ZBL
from metatrain.utils.data import DatasetInfo
from torch import Tensor

from .pairs import PairTerm


STEEPEST = 2000.0
"""In eV/Å: where the repulsion of a wall is steeper, it goes on almost linearly."""

CORE_WIDTH = 0.02
"""In Å: within this distance the slope of the core becomes constant."""


def _screened_coulomb(
    zi: Tensor, zj: Tensor, r: Tensor
) -> Tuple[Tensor, Tensor, Tensor]:
    r"""Screened Coulomb repulsion of nuclei, :math:`e = k z_i z_j \varphi(r) / r`, with
    its first and second derivative.

    The universal screening function is that of Ziegler, Biersack and Littmark:
    :math:`\varphi = \sum_k c_k \exp(-d_k r / a)`, :math:`a = 0.4685 / (z_i^{0.23} +
    z_j^{0.23})`. In eV and Angstrom.
    """
    length = 0.46850 / (zi**0.23 + zj**0.23)
    phi, dphi, d2phi = torch.zeros_like(r), torch.zeros_like(r), torch.zeros_like(r)
    for c, d in (
        (0.02817, 0.20162),
        (0.28022, 0.40290),
        (0.50986, 0.94229),
        (0.18175, 3.19980),
    ):
        decay = d / length
        term = c * torch.exp(-decay * r)
        phi = phi + term
        dphi = dphi - decay * term
        d2phi = d2phi + decay * decay * term
    factor = 14.399645478425668 * zi * zj / r
    first = factor * (dphi - phi / r)
    second = factor * (d2phi - 2.0 * dphi / r + 2.0 * phi / (r * r))
    return factor * phi, first, second


def zbl_pair(
    zi: Tensor, zj: Tensor, r: Tensor, cutoff: Tensor
) -> Tuple[Tensor, Tensor]:
    r"""ZBL energy of a pair and its derivative with respect to the distance.

    A polynomial :math:`A r^3 / 3 + B r^4 / 4 + C` is added, as in LAMMPS with an inner
    cutoff of zero, such that the energy and its first two derivatives vanish at the
    cutoff.

    :param zi: atomic numbers, shape ``[n_pairs]``, in the precision of ``r``.
    :param zj: atomic numbers of the other atoms.
    :param r: distances in Angstrom.
    :param cutoff: distances at which the repulsion ends.
    """
    end, d_end, d2_end = _screened_coulomb(zi, zj, cutoff)
    a = (cutoff * d2_end - 3.0 * d_end) / cutoff**2
    b = (2.0 * d_end - cutoff * d2_end) / cutoff**3
    c = cutoff * d_end / 2.0 - cutoff**2 * d2_end / 12.0 - end
    energy, slope, _ = _screened_coulomb(zi, zj, r)
    inside = (r < cutoff).to(r.dtype)
    energy = energy + a / 3.0 * r**3 + b / 4.0 * r**4 + c
    return inside * energy, inside * (slope + a * r**2 + b * r**3)


class Repulsion(PairTerm):
    """The Ziegler-Biersack-Littmark potential of metatrain, with its analytic forces.

    Radii and range are those of metatrain.

    :param atomic_types: atomic numbers.
    :param dataset_info: targets; the repulsion is added to energies in eV.
    :raises ValueError: if no energy is in eV or lengths are not in Angstrom.
    """

    energy_names: List[str]

    def __init__(self, atomic_types: List[int], dataset_info: DatasetInfo) -> None:
        info = DatasetInfo(
            length_unit=dataset_info.length_unit, atomic_types=atomic_types, targets={}
        )
        zbl = ZBL({}, info)
        super().__init__(
            NeighborListOptions(zbl.cutoff_radius, full_list=True, strict=True)
        )
        self.zbl = zbl
        self.energy_names = []
        self.add_energies(dataset_info)
        if not self.energy_names:
            raise ValueError("`zbl: true` needs an energy target in eV")

    @torch.jit.unused
    def add_energies(self, dataset_info: DatasetInfo) -> None:
        """Repel in these energies as well, where they are in eV."""
        for name, info in dataset_info.targets.items():
            if name not in self.energy_names and ZBL.is_valid_target(name, info):
                self.energy_names.append(name)

    def pair_energies(
        self, name: str, types_i: Tensor, types_j: Tensor, distances: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """See :class:`.pairs.PairTerm`; the same for all energies."""
        radii = self.zbl.covalent_radii.to(distances.dtype)
        index = self.zbl.species_to_index.to(torch.long)
        cutoff = radii[index[types_i]] + radii[index[types_j]]
        zi, zj = types_i.to(distances.dtype), types_j.to(distances.dtype)
        energies, slopes = zbl_pair(zi, zj, distances, cutoff)
        return 0.5 * energies, 0.5 * slopes


class Core(NamedTuple):
    """Where the repulsion of pairs starts, and where it is cut off towards short
    distances, in eV and Å, all of shape ``[n_pairs]``."""

    starts: Tensor
    """Distances below which atoms repel."""
    radii: Tensor
    """Distances at which the slope is :data:`STEEPEST`."""
    slopes: Tensor
    """First derivatives there."""
    curvatures: Tensor
    """Second derivatives there."""


def solve_core(zi: Tensor, zj: Tensor, starts: Tensor) -> Core:
    """Find the core of pairs by bisection.

    :param zi: atomic numbers in double precision, shape ``[n_pairs]``.
    :param zj: atomic numbers of the other atoms.
    :param starts: where walls start, in Å, shape ``[n_pairs]``.
    """
    low, high = 1e-4 * starts, starts.clone()
    for _ in range(60):
        middle = 0.5 * (low + high)
        too_steep = zbl_pair(zi, zj, middle, starts)[1] < -STEEPEST
        low = torch.where(too_steep, middle, low)
        high = torch.where(too_steep, high, middle)
    with torch.enable_grad():
        radii = high.detach().clone().requires_grad_(True)
        slopes = zbl_pair(zi, zj, radii, starts)[1]
        (curvatures,) = torch.autograd.grad(slopes.sum(), radii)
    return Core(starts, radii.detach(), slopes.detach(), curvatures)


def walled_pair(
    zi: Tensor, zj: Tensor, r: Tensor, core: Core, width: float = CORE_WIDTH
) -> Tuple[Tensor, Tensor]:
    r"""ZBL repulsion that ends at the start of the wall and is bounded towards zero.

    Below the core radius :math:`r_c` the slope is :math:`E'_c - E''_c d (1 -
    \exp(-(r_c - r) / d))`: energy and two derivatives are continuous.

    :param zi: atomic numbers, shape ``[n_pairs]``, in the precision of ``r``.
    :param zj: atomic numbers of the other atoms.
    :param r: distances in Å.
    :param core: see :func:`solve_core`; starts are greater than zero.
    :param width: :math:`d`.
    :return: energies in eV and their derivatives in eV/Å.
    """
    depths = (core.radii - r).clamp(min=0.0)
    outside = torch.maximum(r, core.radii)
    energies, slopes = zbl_pair(zi, zj, outside, core.starts)
    bent = width * (1.0 - torch.exp(-depths / width))
    within = -core.slopes * depths + core.curvatures * width * (depths - bent)
    return energies + within, slopes - core.curvatures * bent


class WallRepulsion(PairTerm):
    """The repulsion of nuclei inside the wall, for energies of known unit and the
    direct targets that belong to them.

    :param atomic_types: atomic numbers.
    :param neighbor_list: that of the network.
    :param length_unit: length unit of the model; Angstrom if empty.
    """

    factors: Dict[str, float]
    core: Tensor

    def __init__(
        self,
        atomic_types: List[int],
        neighbor_list: NeighborListOptions,
        length_unit: str,
    ) -> None:
        super().__init__(neighbor_list, only_inside=True)
        self.to_angstrom = float(
            unit_conversion_factor(length_unit or "angstrom", "angstrom")
        )
        self.factors = {}
        shape = (max(atomic_types) + 1, max(atomic_types) + 1, 4)
        core = torch.zeros(shape, dtype=torch.float64)
        self.register_buffer("core", core, persistent=False)

    @torch.jit.unused
    def add(self, names: List[str], factor: float) -> None:
        """Repel in these targets.

        :param names: an energy with its direct targets, or a direct force on its own.
        :param factor: 1 eV in the unit of the energy.
        """
        for name in names:
            self.factors[name] = factor

    @torch.jit.unused
    def set_starts(self, starts: Tensor) -> None:
        """Solve for the cores.

        :param starts: table of :class:`.wall.Wall`, in the length unit of the model.
        """
        starts = starts.to(self.core)
        self.core.zero_()
        zi, zj = torch.nonzero(starts).unbind(1)
        found = solve_core(
            zi.to(starts), zj.to(starts), self.to_angstrom * starts[zi, zj]
        )
        self.core[zi, zj] = torch.stack(list(found), dim=1)

    def pair_energies(
        self, name: str, types_i: Tensor, types_j: Tensor, distances: Tensor
    ) -> Tuple[Tensor, Tensor]:
        """See :class:`.pairs.PairTerm`."""
        scale = self.to_angstrom
        zi, zj = types_i.to(distances.dtype), types_j.to(distances.dtype)
        core = self.core[types_i, types_j].to(distances.dtype)
        energies, slopes = walled_pair(
            zi,
            zj,
            scale * distances,
            Core(core[:, 0], core[:, 1], core[:, 2], core[:, 3]),
        )
        factor = 0.5 * self.factors[name]
        return factor * energies, factor * scale * slopes
