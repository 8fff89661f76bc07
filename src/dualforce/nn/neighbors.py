"""Sums over neighbours as small matrix products.

The cost of a scalar-vector network on a CPU is memory traffic over edges. Where the
radial filter is linear in the radial basis, the sum over neighbours can be taken per
basis function and mixed afterwards::

    sum_j (sum_k W_kc B_k(r_ij)) x_jc  =  sum_k W_kc (sum_j B_k(r_ij) x_jc)

The inner sum is one batched matrix product and the filter is never written to memory.
To this end edges are stored in rows of equal length: every row belongs to one atom and
an atom may own several rows, so the work follows the number of edges and not the
largest number of neighbours.
"""

from typing import List, NamedTuple, Optional

import torch
from torch import Tensor


ROW_LENGTH = 32
"""Longest row, in edges, unless all atoms have about equally many neighbours."""

ROWS_PER_BLOCK = 64
"""Rows handled at a time without gradients: the working set then stays in cache and
memory stays bounded in large systems."""

EDGES_PER_BLOCK = 900
"""Likewise edges, where each has a filter for each degree of harmonics."""


class RowPlan(NamedTuple):
    """Where edges go in rows. Made on the host, so that a GPU is not waited for."""

    center: Tensor
    """Atom that owns each row, shape ``[n_rows]``."""
    slot: Tensor
    """Place of each edge, counted through all rows, shape ``[n_edges]``."""
    length: int
    """Edges in a row."""


class EdgeRows(NamedTuple):
    """Edges in rows of equal length.

    Unused slots have a zero basis, so whatever they point to does not count.
    """

    center: Tensor
    """Atom that owns each row, shape ``[n_rows]``."""
    neighbor: Tensor
    """Neighbour in each slot, shape ``[n_rows, length]``."""
    basis: Tensor
    """Functions of the vector from the center to the neighbour, shape ``[n_rows,
    n_basis, length]``. For :func:`neighbor_sums`: the radial basis times ``(1, x, y,
    z)`` of the unit vector."""


def row_length(counts: Tensor, default: int = ROW_LENGTH) -> int:
    """Length of the rows: the largest number of neighbours where the rows are then
    well filled, ``default`` otherwise.

    :param counts: number of neighbours of each atom, shape ``[n_atoms]``.
    :param default: length of the rows where neighbours are unevenly distributed.
    """
    longest = max(int(counts.max()), 1)
    slots = default * int(((counts + default - 1) // default).sum())
    if longest <= default or 2 * longest * counts.shape[0] <= 3 * slots:
        return longest
    return default


def plan_rows(centers: Tensor, n_atoms: int) -> RowPlan:
    """Find rows for edges.

    :param centers: first atom of each edge, non-decreasing, shape ``[n_edges]``.
    :param n_atoms: number of atoms.
    """
    counts = torch.bincount(centers, minlength=n_atoms)
    length = row_length(counts)
    rows_of_atom = (counts + length - 1) // length
    first_row = torch.cumsum(rows_of_atom, 0) - rows_of_atom
    first_edge = torch.cumsum(counts, 0) - counts
    rank = torch.arange(centers.shape[0], device=centers.device) - first_edge[centers]
    atoms = torch.arange(n_atoms, device=centers.device)
    return RowPlan(
        center=torch.repeat_interleave(atoms, rows_of_atom),
        slot=first_row[centers] * length + rank,
        length=length,
    )


def make_rows(
    centers: Tensor,
    neighbors: Tensor,
    basis: Tensor,
    n_atoms: int,
    plan: Optional[RowPlan] = None,
) -> EdgeRows:
    """Arrange edges in rows.

    :param centers: first atom of each edge, shape ``[n_edges]``, in any order.
    :param neighbors: second atom of each edge, shape ``[n_edges]``.
    :param basis: basis of each edge, shape ``[n_edges, n_basis]``.
    :param n_atoms: number of atoms.
    :param plan: of these edges, if there is one.
    """
    if plan is None:
        if centers.shape[0] > 1 and bool((centers[1:] < centers[:-1]).any()):
            order = torch.argsort(centers)
            centers, neighbors, basis = centers[order], neighbors[order], basis[order]
        plan = plan_rows(centers, n_atoms)
    n_slots = plan.center.shape[0] * plan.length
    neighbor = torch.zeros(n_slots, dtype=torch.long, device=centers.device)
    neighbor = neighbor.index_copy(0, plan.slot, neighbors)
    padded = torch.zeros(
        [n_slots, basis.shape[1]], dtype=basis.dtype, device=basis.device
    )
    padded = padded.index_copy(0, plan.slot, basis)
    return EdgeRows(
        center=plan.center,
        neighbor=neighbor.reshape(-1, plan.length),
        basis=padded.reshape(-1, plan.length, basis.shape[1]).transpose(1, 2),
    )


def _sum_of_rows(sums: Tensor, center: Tensor, n_atoms: int) -> Tensor:
    """Sums of the atoms from those of their rows, shape ``[n_atoms, ...]``."""
    out = torch.zeros(
        [n_atoms, sums.shape[1], sums.shape[2]], dtype=sums.dtype, device=sums.device
    )
    return out.index_add(0, center, sums)


def _block_sums(
    basis: Tensor,
    neighbor: Tensor,
    scalars: Tensor,
    vectors: Tensor,
    filters: List[Tensor],
) -> Tensor:
    """Sums of one block of rows, shape ``[n_rows, 4 + n_vectors, n_channels]``."""
    n_radial, n_channels = filters[0].shape
    n_rows, length = neighbor.shape
    n_vectors = vectors.shape[1]
    atoms = neighbor.reshape(-1)
    weights = torch.stack([filters[0], filters[1], filters[1], filters[1]])
    gathered = scalars.index_select(0, atoms).reshape(n_rows, length, n_channels)
    density = torch.bmm(basis, gathered).reshape(n_rows, 4, n_radial, n_channels)
    sums = (density * weights).sum(2)
    if n_vectors == 0:
        return sums
    gathered = vectors.flatten(1).index_select(0, atoms)
    gathered = gathered.reshape(n_rows, length, n_vectors * n_channels)
    moved = torch.bmm(basis[:, :n_radial], gathered)
    moved = moved.reshape(n_rows, n_radial, n_vectors, n_channels)
    return torch.cat([sums, (moved * filters[2].unsqueeze(1)).sum(1)], dim=1)


def neighbor_sums(
    rows: EdgeRows,
    scalars: Tensor,
    vectors: Tensor,
    filters: List[Tensor],
    rows_per_block: int = ROWS_PER_BLOCK,
) -> Tensor:
    r"""Filtered sums over neighbours, with filters :math:`W(r) = \sum_k W_k B_k(r)`.

    :param rows: the edges.
    :param scalars: :math:`s_j`, shape ``[n_atoms, n_channels]``.
    :param vectors: :math:`v_j`, shape ``[n_atoms, n_vectors, n_channels]``;
        ``n_vectors`` may be zero.
    :param filters: weights of :math:`W^0, W^1, W^2`, each of shape ``[n_radial,
        n_channels]``.
    :param rows_per_block: rows handled at a time on a CPU.
    :return: shape ``[n_atoms, 4 + n_vectors, n_channels]``: :math:`\sum_j W^0 s_j`, the
        three components of :math:`\sum_j W^1 s_j \hat r_{ij}` and :math:`\sum_j W^2
        v_j`.
    """
    size = rows_per_block
    if scalars.device.type != "cpu":
        size = max(rows.center.shape[0], 1)
    blocks: List[Tensor] = []
    for neighbor, basis in zip(  # noqa: B905, TorchScript has no `strict`
        rows.neighbor.split(size), rows.basis.split(size)
    ):
        blocks.append(_block_sums(basis, neighbor, scalars, vectors, filters))
    return _sum_of_rows(torch.cat(blocks), rows.center, scalars.shape[0])


def outer_rows(
    rows: EdgeRows, n_angular: int, n_first: int, mixing: Tensor
) -> EdgeRows:
    """Rows with a basis of products.

    :param rows: edges whose basis is an angular part, then a radial part.
    :param n_angular: number of angular functions.
    :param n_first: how many of them to use, the first ones.
    :param mixing: combinations of the radial functions to take in place of these, shape
        ``[n_functions, n_radial]``.
    :return: rows with the basis ``[n_rows, n_first * n_radial, length]``.
    """
    n_waves = rows.basis.shape[1] - n_angular
    angular, waves = rows.basis.split([n_angular, n_waves], 1)
    radial = torch.matmul(waves.transpose(1, 2), mixing).transpose(1, 2)
    products = angular[:, :n_first].unsqueeze(2) * radial.unsqueeze(1)
    return EdgeRows(rows.center, rows.neighbor, products.flatten(1, 2))


def element_densities(
    rows: EdgeRows,
    species: Tensor,
    n_species: int,
    n_angular: int,
    rows_per_block: int = ROWS_PER_BLOCK,
) -> Tensor:
    r"""Sums over the neighbours of each element,
    :math:`\sum_{j \in e} Y_{lm}(\hat r_{ij}) B_k(r_{ij})`.

    :param rows: edges whose basis is the angular, then the radial part.
    :param species: index of the element of each atom, shape ``[n_atoms]``.
    :param n_species: number of elements.
    :param n_angular: number of angular functions.
    :param rows_per_block: rows handled at a time on a CPU.
    :return: shape ``[n_atoms, n_angular, n_radial, n_species]``.
    """
    n_radial = rows.basis.shape[1] - n_angular
    members = torch.eye(n_species, dtype=rows.basis.dtype, device=rows.basis.device)
    members = members.index_select(0, species)
    size = rows_per_block if species.device.type == "cpu" else max(len(rows.center), 1)
    blocks: List[Tensor] = []
    for neighbor, basis in zip(  # noqa: B905, TorchScript has no `strict`
        rows.neighbor.split(size), rows.basis.split(size)
    ):
        angular, radial = basis.split([n_angular, n_radial], 1)
        gathered = members.index_select(0, neighbor.reshape(-1))
        gathered = gathered.reshape(neighbor.shape[0], neighbor.shape[1], 1, n_species)
        of_elements = radial.transpose(1, 2).unsqueeze(3) * gathered
        blocks.append(torch.bmm(angular, of_elements.flatten(2)))
    sums = _sum_of_rows(torch.cat(blocks), rows.center, species.shape[0])
    return sums.reshape(-1, n_angular, n_radial, n_species)


def _block_densities(
    basis: Tensor, neighbor: Tensor, values: Tensor, weights: Tensor, sizes: List[int]
) -> Tensor:
    """Sums of one block of rows, shape ``[n_rows, n_angular, n_channels]``."""
    n_degrees, n_radial, n_channels = weights.shape
    n_rows, length = neighbor.shape
    angular, radial = basis.split([basis.shape[1] - n_radial, n_radial], 1)
    radial = radial.transpose(1, 2).reshape(1, n_rows * length, n_radial)
    filters = torch.bmm(radial.expand(n_degrees, -1, -1), weights)
    filtered = filters * values.index_select(0, neighbor.reshape(-1))
    filtered = filtered.reshape(n_degrees, n_rows, length, n_channels)
    sums: List[Tensor] = []
    for harmonics, messages in zip(  # noqa: B905, TorchScript has no `strict`
        angular.split(sizes, 1), filtered.unbind(0)
    ):
        sums.append(torch.bmm(harmonics, messages))
    return torch.cat(sums, dim=1)


def densities(
    rows: EdgeRows,
    values: Tensor,
    weights: Tensor,
    edges_per_block: int = EDGES_PER_BLOCK,
) -> Tensor:
    r"""Filtered sums over neighbours,
    :math:`\sum_j Y_{lm}(\hat r_{ij}) y_{jc} \sum_k W_{lkc} B_k(r_{ij})`.

    The filters are made for each edge here: there are fewer of them than products of
    radial functions with harmonics.

    :param rows: edges whose basis is the angular part, all harmonics up to some degree,
        then the radial part.
    :param values: :math:`y`, shape ``[n_atoms, n_channels]``.
    :param weights: :math:`W`, shape ``[n_degrees, n_radial, n_channels]``.
    :param edges_per_block: edges handled at a time on a CPU, at least a row of them.
    :return: shape ``[n_atoms, n_angular, n_channels]``.
    """
    sizes = [2 * degree + 1 for degree in range(weights.shape[0])]
    size = max(len(rows.center), 1)
    if values.device.type == "cpu":
        size = max(edges_per_block // rows.neighbor.shape[1], 1)
    blocks: List[Tensor] = []
    for neighbor, basis in zip(  # noqa: B905, TorchScript has no `strict`
        rows.neighbor.split(size), rows.basis.split(size)
    ):
        blocks.append(_block_densities(basis, neighbor, values, weights, sizes))
    return _sum_of_rows(torch.cat(blocks), rows.center, values.shape[0])


def tensor_sums(
    rows: EdgeRows,
    tensors: Tensor,
    weights: Tensor,
    rows_per_block: int = ROWS_PER_BLOCK,
) -> Tensor:
    r"""Filtered sums over neighbours, :math:`\sum_j T_{jmc} f_{mc}(r_{ij})` with
    :math:`f_{mc}(r) = \sum_k W_{mkc} B_k(r)`.

    :param rows: edges whose basis ends with the radial part.
    :param tensors: :math:`T`, shape ``[n_components, n_atoms, n_channels]``.
    :param weights: :math:`W`, shape ``[n_components, n_radial, n_channels]``.
    :param rows_per_block: rows handled at a time on a CPU.
    :return: shape ``[n_components, n_atoms, n_channels]``.
    """
    n_components, n_atoms, n_channels = tensors.shape
    n_radial = weights.shape[1]
    # One row of memory for each atom, as they are gathered.
    n_values = n_components * n_channels
    values = tensors.transpose(0, 1).reshape(n_atoms, n_values)
    weights = weights.transpose(0, 1).reshape(n_radial, n_values)
    size = rows_per_block if tensors.device.type == "cpu" else max(len(rows.center), 1)
    blocks: List[Tensor] = []
    for neighbor, basis in zip(  # noqa: B905, TorchScript has no `strict`
        rows.neighbor.split(size), rows.basis.split(size)
    ):
        gathered = values.index_select(0, neighbor.reshape(-1))
        gathered = gathered.reshape(neighbor.shape[0], neighbor.shape[1], n_values)
        sums = torch.bmm(basis[:, basis.shape[1] - n_radial :], gathered)
        blocks.append((sums * weights).sum(1, keepdim=True))
    sums = _sum_of_rows(torch.cat(blocks), rows.center, n_atoms)
    return sums.reshape(n_atoms, n_components, n_channels).transpose(0, 1)
