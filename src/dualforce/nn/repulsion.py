"""Repulsion of nuclei at short range."""

from typing import List, Tuple

import torch
from metatomic.torch import NeighborListOptions
from metatrain.utils.additive import ZBL
from metatrain.utils.data import DatasetInfo
from torch import Tensor

from .pairs import PairTerm


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
