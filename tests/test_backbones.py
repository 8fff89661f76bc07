"""Networks: sums over neighbours, radial basis, and exactness of their symmetries."""

from typing import Any, Dict, List, Tuple

import pytest
import torch
from helpers import (
    BACKBONES,
    ENERGY,
    FORCE,
    STRESS,
    as_system,
    make_model,
    predict,
    random_cell,
    small_hypers,
)
from metatomic.torch import System
from torch import Tensor

from dualforce.nn import Graph, make_backbone
from dualforce.nn.neighbors import ROW_LENGTH, make_rows, neighbor_sums
from dualforce.nn.radial import RadialBasis


N_RADIAL, N_CHANNELS = 3, 5


def _edges(counts: List[int], seed: int = 0) -> Tuple[Tensor, Tensor, Tensor]:
    """Random edges with given numbers of neighbours, unsorted."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    n_edges = len(centers)
    neighbors = torch.randint(len(counts), (n_edges,), generator=generator)
    basis = torch.randn(n_edges, 4 * N_RADIAL, dtype=torch.float64, generator=generator)
    order = torch.randperm(n_edges, generator=generator)
    return centers[order], neighbors[order], basis[order]


def _reference_sums(
    edges: Tuple[Tensor, Tensor, Tensor],
    scalars: Tensor,
    vectors: Tensor,
    filters: List[Tensor],
) -> Tensor:
    """Filter, multiply and add for each edge."""
    centers, neighbors, basis = edges
    parts = basis.reshape(-1, 4, N_RADIAL)
    zero = (parts[:, 0] @ filters[0]) * scalars[neighbors]
    first = torch.einsum("edk,kc->edc", parts[:, 1:], filters[1])
    first = first * scalars[neighbors].unsqueeze(1)
    moved = (parts[:, 0] @ filters[2]).unsqueeze(1) * vectors[neighbors]
    terms = torch.cat([zero.unsqueeze(1), first, moved], dim=1)
    out = torch.zeros(len(scalars), terms.shape[1], N_CHANNELS, dtype=torch.float64)
    return out.index_add(0, centers, terms)


@pytest.mark.parametrize("n_vectors", [0, 3])
@pytest.mark.parametrize(
    "counts",
    [
        [7] * 9,
        [40] * 5,
        [150, 1, 0, 3, 33, 0, 64, 2, 31, 32, 1, 1, 2, 0, 0, 4],
        [0, 0, 0],
        [0, 5, 0],
    ],
    ids=["even", "even and long", "uneven", "none", "one center"],
)
def test_neighbor_sums(counts: List[int], n_vectors: int) -> None:
    """Rows give the sums that a loop over edges gives, whatever the distribution."""
    edges = _edges(counts)
    torch.manual_seed(1)
    scalars = torch.randn(len(counts), N_CHANNELS, dtype=torch.float64)
    vectors = torch.randn(len(counts), n_vectors, N_CHANNELS, dtype=torch.float64)
    filters = [torch.randn(N_RADIAL, N_CHANNELS, dtype=torch.float64) for _ in "012"]
    rows = make_rows(*edges, len(counts))
    sums = neighbor_sums(rows, scalars, vectors, filters, rows_per_block=2)
    expected = _reference_sums(edges, scalars, vectors, filters)
    torch.testing.assert_close(sums, expected, rtol=1e-12, atol=1e-12)


def test_rows_follow_the_number_of_edges() -> None:
    """One atom with many neighbours does not lengthen the rows of all others."""
    rows = make_rows(*_edges([500] + [4] * 300), 301)
    assert rows.neighbor.shape[1] == ROW_LENGTH
    assert rows.neighbor.shape[0] == -(-500 // ROW_LENGTH) + 300


def test_radial_basis_ends_smoothly() -> None:
    """Unmixed, the basis is that of the paper up to a factor and vanishes at the cutoff
    with two derivatives."""
    basis = RadialBasis(4.0, 3).double()
    with torch.no_grad():
        basis.mixing.copy_(torch.eye(len(basis.mixing), 3))
    r = torch.tensor([0.7, 2.0, 3.9, 4.0, 4.5], dtype=torch.float64)
    x = (r / 4.0).clamp(max=1.0).unsqueeze(1)
    n = torch.arange(1, 4, dtype=torch.float64)
    waves = torch.sin(n * torch.pi * x) / x
    envelope = 1.0 - 28.0 * x**6 + 48.0 * x**7 - 21.0 * x**8
    torch.testing.assert_close(basis(r), envelope * waves, rtol=1e-10, atol=1e-12)

    r = torch.tensor([4.0 - 1e-4], dtype=torch.float64, requires_grad=True)
    value = basis(r).sum()
    for size in (1e-12, 1e-8, 1e-3):  # value, first and second derivative
        assert abs(float(value)) < size
        (value,) = torch.autograd.grad(value, r, create_graph=True)


def _transformed(
    model: Any, transformation: Tensor, seed: int = 3
) -> Tuple[Dict[str, Tensor], Dict[str, Tensor]]:
    """Outputs for a structure and for its image."""
    atoms = random_cell(seed=seed)
    before = predict(model, atoms)
    moved = atoms.copy()
    moved.set_cell(atoms.cell @ transformation.numpy().T)
    moved.set_positions(atoms.positions @ transformation.numpy().T)
    return before, predict(model, moved)


@pytest.mark.parametrize("determinant", [1.0, -1.0])
@pytest.mark.parametrize("backbone", ["painn", "ace", "soap_bpnn"])
def test_equivariance(backbone: str, determinant: float) -> None:
    """Energies are invariant, forces and stresses rotate, also under reflections."""
    torch.manual_seed(5)
    q, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    q = q * torch.det(q) * determinant
    before, after = _transformed(make_model(backbone), q)
    close = {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(after[ENERGY], before[ENERGY], **close)
    force = torch.einsum("ab,nbp->nap", q, before[FORCE])
    torch.testing.assert_close(after[FORCE], force, **close)
    stress = torch.einsum("ab,nbcp,dc->nadp", q, before[STRESS], q)
    torch.testing.assert_close(after[STRESS], stress, **close)
    assert before[STRESS].abs().max() > 1e-6


@pytest.mark.parametrize("backbone", BACKBONES)
def test_predict_is_forward(backbone: str) -> None:
    """What training evaluates is what exported models evaluate."""
    model = make_model(backbone)
    systems = [
        as_system(model, random_cell(n, seed=n, pbc=pbc))
        for n, pbc in ((5, (True, True, True)), (7, (False, False, False)))
    ]
    names = [ENERGY, FORCE, STRESS, "feature"]
    with torch.no_grad():
        forward = model.backbone(systems, names)
        training = model.backbone.predict(_graph(model, systems), names)
    for name in names:
        torch.testing.assert_close(training[name], forward[name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backbone", ["painn", "ace"])
def test_direct_forces_from_an_early_layer(backbone: str) -> None:
    """They depend on no later one, in one pass with the energy or alone, compiled or
    not."""
    model = make_model(backbone)
    systems = [as_system(model, random_cell())]
    graph, names = _graph(model, systems), [ENERGY, FORCE, STRESS, "feature"]
    last = model.backbone.predict(graph, names)
    model.backbone.read_direct_from(1)
    first = model.backbone.predict(graph, names)
    with torch.no_grad():
        for parameter in model.backbone.layers[1].parameters():
            parameter.add_(torch.randn_like(parameter))
    changed = torch.jit.script(model.backbone)(systems, names)
    for name in (FORCE, STRESS):
        assert not torch.allclose(first[name], last[name])
        torch.testing.assert_close(changed[name], first[name])
        alone = model.backbone.predict(graph, [name])
        torch.testing.assert_close(alone[name], first[name])
    for name in (ENERGY, "feature"):
        torch.testing.assert_close(first[name], last[name])
        assert not torch.allclose(changed[name], first[name])


@pytest.mark.parametrize("layer", [-1, 3])
@pytest.mark.parametrize("backbone", ["painn", "ace"])
def test_direct_forces_from_a_layer_that_is_not_there(
    backbone: str, layer: int
) -> None:
    """There are two."""
    hypers = small_hypers(backbone)
    hypers[backbone]["n_direct_layers"] = layer
    with pytest.raises(ValueError, match=f"cannot be read from layer {layer} of 2"):
        make_backbone(hypers, [1], "Angstrom")


def _graph(model: Any, systems: List[System]) -> Graph:
    """The structures as training sees them."""
    options = model.backbone.requested_neighbor_lists()[0]
    samples, offset = [], 0
    for system in systems:
        values = system.get_neighbor_list(options).samples.values.long().clone()
        values = values[torch.argsort(values[:, 0], stable=True)]
        values[:, :2] += offset
        samples.append(values)
        offset += len(system)
    edges = torch.cat(samples)
    sizes = torch.tensor([len(system) for system in systems])
    return Graph(
        types=torch.cat([system.types for system in systems]).long(),
        positions=torch.cat([system.positions for system in systems]),
        cells=torch.stack([system.cell for system in systems]),
        pbc=torch.stack([system.pbc for system in systems]),
        system=torch.repeat_interleave(torch.arange(len(systems)), sizes),
        centers=edges[:, 0],
        neighbors=edges[:, 1],
        shifts=edges[:, 2:].double(),
    )


def test_unknown_backbone() -> None:
    """A wrong name is answered with the names there are."""
    hypers = {**small_hypers("painn"), "backbone": "mace"}
    with pytest.raises(ValueError, match="unknown backbone 'mace', choose one of ace"):
        make_backbone(hypers, [1], "Angstrom")


def test_repulsion_inside_the_network_is_refused() -> None:
    """The repulsion belongs to all forces of the model."""
    hypers = small_hypers("pet")
    hypers["pet"]["zbl"] = True
    with pytest.raises(ValueError, match="set `zbl` in the `model` section"):
        make_backbone(hypers, [1], "Angstrom")
