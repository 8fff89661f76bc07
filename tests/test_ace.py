"""The ``ace`` network against an independent calculation, and where it must hold."""

from typing import Any, Dict, List, Tuple

import numpy as np
import pytest
import torch
from ase import Atoms
from helpers import (
    ENERGY,
    FORCE,
    STRESS,
    as_system,
    energy_of,
    evaluate,
    make_model,
    predict,
    random_cell,
    small_hypers,
)
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from scipy.special import sph_harm_y
from torch import Tensor

from dualforce.nn import make_backbone
from dualforce.nn.ace import MAX_SPECIES, TRIPLES, Products
from dualforce.nn.edge_forces import EdgeForceHead, EdgeForces, EdgeStressHead
from dualforce.nn.harmonics import (
    Harmonics,
    coupling,
    degrees,
    gradient_coefficients,
    traceless_matrices,
)
from dualforce.nn.heads import NodeFeatures
from dualforce.nn.neighbors import (
    EdgeRows,
    densities,
    element_densities,
    make_rows,
    tensor_sums,
)


Array = NDArray[np.float64]


def _units(n: int, seed: int = 0) -> Array:
    vectors = np.random.default_rng(seed).normal(size=(n, 3))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _reference_harmonics(units: Array) -> Array:
    """Real harmonics from the complex ones of scipy, without Condon-Shortley phase."""
    polar, azimuth = np.arccos(units[:, 2]), np.arctan2(units[:, 1], units[:, 0])
    columns = []
    for degree in range(4):
        for m in (1, -1, 0) if degree == 1 else range(-degree, degree + 1):
            value = sph_harm_y(degree, abs(m), polar, azimuth)
            sign = (-1.0) ** m * np.sqrt(2.0)
            part = value.real if m == 0 else sign * (value.imag, value.real)[m > 0]
            columns.append(np.sqrt(4.0 * np.pi) * part)
    return np.stack(columns, axis=1)


@pytest.mark.parametrize("l_max", [1, 2, 3])
def test_harmonics(l_max: int) -> None:
    """They are those of scipy; each degree has the square ``2 l + 1``."""
    units = _units(20)
    found = Harmonics(l_max).double()(torch.from_numpy(units)).numpy()
    expected = _reference_harmonics(units)[:, : (l_max + 1) ** 2]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    for degree in range(l_max + 1):
        columns = np.array(degrees(l_max)) == degree
        squares = (found[:, columns] ** 2).sum(1)
        np.testing.assert_allclose(squares, 2 * degree + 1, rtol=1e-12)


@pytest.mark.parametrize("l_max", [0, 4])
def test_degrees_that_there_are_not(l_max: int) -> None:
    """Nothing is left out silently."""
    with pytest.raises(ValueError, match="`l_max` must be 1, 2 or 3"):
        Harmonics(l_max)


def _reference_coupling(*of: int) -> Array:
    """The mean of products of three harmonics over directions, by a quadrature that is
    exact for polynomials of this degree; scaled to a norm of one."""
    heights, weights = np.polynomial.legendre.leggauss(8)
    angles = 2.0 * np.pi * np.arange(16) / 16.0
    z, angle = (part.ravel() for part in np.meshgrid(heights, angles, indexing="ij"))
    across = np.sqrt(1.0 - z**2)
    units = np.stack([across * np.cos(angle), across * np.sin(angle), z], axis=1)
    values = _reference_harmonics(units)
    parts = [values[:, np.array(degrees(3)) == degree] for degree in of]
    out = np.einsum("n,na,nb,nc->abc", np.repeat(weights, 16), *parts)
    return np.asarray(out / np.linalg.norm(out))


@pytest.mark.parametrize("of", [(*path, 2) for path in TRIPLES])
def test_couplings(of: Tuple[int, int, int]) -> None:
    """They are means over all directions."""
    expected = _reference_coupling(*of)
    np.testing.assert_allclose(coupling(*of).numpy(), expected, atol=1e-12)


def test_harmonics_of_degree_2_are_a_matrix() -> None:
    """That of a single neighbour is proportional to ``u u - 1/3``."""
    units = torch.from_numpy(_units(6))
    components = Harmonics(2).double()(units)[:, 4:9]
    matrices = torch.einsum("nm,mab->nab", components, traceless_matrices())
    outer = units.unsqueeze(2) * units.unsqueeze(1)
    expected = (outer - torch.eye(3, dtype=torch.float64) / 3.0) * 7.5**0.5
    torch.testing.assert_close(matrices, expected)


def _edges(n_atoms: int = 9, n_edges: int = 120) -> Tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    centers = torch.randint(n_atoms, (n_edges,))
    return (
        centers,
        torch.randint(n_atoms, (n_edges,)),
        torch.randn(n_edges, 4 + 3, dtype=torch.float64),
    )


def test_densities() -> None:
    """Rows and blocks give the sums that a loop over edges gives."""
    centers, neighbors, basis = _edges()
    values = torch.randn(9, 5, dtype=torch.float64)
    weights = torch.randn(2, 3, 5, dtype=torch.float64)
    rows = make_rows(centers, neighbors, basis, 9)
    found = densities(rows, values, weights, edges_per_block=2 * rows.neighbor.shape[1])
    filters = weights[degrees(1)]
    terms = torch.einsum(
        "em,ek,mkc,ec->emc", basis[:, :4], basis[:, 4:], filters, values[neighbors]
    )
    expected = torch.zeros(9, 4, 5, dtype=torch.float64).index_add(0, centers, terms)
    torch.testing.assert_close(found, expected)

    species = torch.arange(9) % 2
    found = element_densities(rows, species, 2, 4, rows_per_block=2)
    members = torch.eye(2, dtype=torch.float64)[species[neighbors]]
    terms = torch.einsum("em,ek,es->emks", basis[:, :4], basis[:, 4:], members)
    expected = torch.zeros(9, 4, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(found, expected.index_add(0, centers, terms))

    tensors = torch.randn(2, 9, 5, dtype=torch.float64)
    found = tensor_sums(rows, tensors, weights, rows_per_block=2)
    filters = torch.einsum("ek,mkc->mec", basis[:, 4:], weights)
    expected = torch.zeros(2, 9, 5, dtype=torch.float64)
    expected = expected.index_add(1, centers, filters * tensors[:, neighbors])
    torch.testing.assert_close(found, expected)


def _weights(layer: Any) -> Dict[str, Array]:
    return {key: value.detach().numpy() for key, value in layer.named_parameters()}


def _reference_tensors(
    weights: Dict[str, Array], radial: Array, degree: int, density: Array
) -> Array:
    """What a neighbour's density of degree 1 or 2 adds."""
    of_degree = [f"tensors.0.{name}.{degree - 1}" for name in ("filters", "leaving")]
    filters, leaving = (weights[name] for name in of_degree)
    tensors = (radial @ filters) * (density[degree**2 : (degree + 1) ** 2] @ leaving)
    return np.asarray(tensors @ weights[f"tensors.0.arriving.{degree - 1}"])


def _reference_layer(
    backbone: Any,
    layer: Any,
    positions: Array,
    scalars: Array,
    before: Array,
    n_triples: int,
) -> Tuple[Array, Array]:
    """Scalars after a layer, and densities, of a molecule, atom by atom."""
    weights = _weights(layer)
    values = scalars @ weights["values.weight"].T + weights["values.bias"]
    matrices = traceless_matrices().numpy()
    new, after = [], []
    for i, here in enumerate(positions):
        density = np.zeros((16, scalars.shape[1]))
        for j, there in enumerate(positions):
            distance = float(np.linalg.norm(there - here))
            if i == j or distance > backbone.cutoff:
                continue
            radial = backbone.basis(torch.tensor([distance], dtype=torch.float64))
            radial = radial.detach().numpy()
            angular = _reference_harmonics((there - here)[None] / distance)[0]
            for m, degree in enumerate(degrees(3)):
                filters = (radial @ weights[f"filters.{degree}"])[0]
                density[m] += layer.scale * angular[m] * filters * values[j]
            for degree in (1, 2) if len(layer.tensors) else ():
                density[degree**2 : (degree + 1) ** 2] += (
                    layer.scale * _reference_tensors(weights, radial, degree, before[j])
                )
        for m, degree in enumerate(degrees(3)):
            density[m] = density[m] @ weights[f"mixing.{degree}"]
        gates = weights["gates.weight"] @ scalars[i] + weights["gates.bias"]
        gates = 1.0 + gates.reshape(4, -1)
        for m, degree in enumerate(degrees(3)):
            density[m] *= gates[degree]
        squares = [
            (density[np.array(degrees(3)) == degree] ** 2).mean(0)
            for degree in range(4)
        ]
        for m, degree in enumerate(degrees(3)):
            density[m] /= np.sqrt(1.0 + layer.products.softening * squares[degree])
        square = [
            (density[np.array(degrees(3)) == degree] ** 2).mean(0)
            for degree in range(1, 4)
        ]
        turned = 0.6**0.5 * np.einsum(
            "mc,mab,bc->ac", density[4:9], matrices, density[1:4]
        )
        third = (turned * density[1:4]).sum(0) / 3.0**0.5
        further = [
            np.einsum(
                "abm,ac,bc,mc->c",
                _reference_coupling(a, b, 2),
                density[a * a : (a + 1) ** 2],
                density[b * b : (b + 1) ** 2],
                density[4:9],
            )
            for a, b in TRIPLES[1:n_triples]
        ]
        features = np.concatenate([scalars[i], density[0], *square, third, *further])
        update = weights["update.weight"] @ features + weights["update.bias"]
        hidden = weights["residual.0.weight"] @ update + weights["residual.0.bias"]
        hidden = hidden / (1.0 + np.exp(-hidden))
        update = update + weights["residual.2.weight"] @ hidden
        new.append(update + weights["residual.2.bias"])
        after.append(density)
    return np.array(new), np.array(after)


@pytest.mark.parametrize("n_triples", [1, 3, 4])
def test_against_sums_over_pairs(n_triples: int) -> None:
    """The features of both layers are what a calculation atom by atom gives, with the
    sums of the first layer taken for each element or for each atom."""
    hypers = small_hypers("ace")["ace"] | {"n_triples": n_triples}
    model = make_model("ace", pair_potential=False, ace=hypers)
    backbone = model.backbone
    atoms = random_cell(7, 4.5, pbc=(False, False, False), seed=2)
    types = torch.from_numpy(atoms.numbers).long()
    species = backbone.type_index[types]
    scalars = backbone.embedding(species).detach().numpy()
    system = as_system(model, atoms)
    before = np.empty(0)
    for layer in backbone.layers:
        scalars, before = _reference_layer(
            backbone, layer, atoms.positions, scalars, before, n_triples
        )
    for by_element in (True, False):
        backbone.by_element = by_element
        found = backbone([system], ["feature"])["feature"].detach().numpy()
        np.testing.assert_allclose(found, scalars, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("l_max", [2, 3])
def test_vectors_rotate(l_max: int) -> None:
    """Products of densities are invariant, and vectors turn with the structure."""
    products = Products(l_max, len(TRIPLES)).double()
    harmonics = Harmonics(l_max).double()
    torch.manual_seed(0)
    vectors = torch.randn(6, 3, dtype=torch.float64)
    weights = torch.randn(4, 6, dtype=torch.float64)
    turn = torch.from_numpy(Rotation.random(random_state=1).as_matrix())

    def evaluated(points: Tensor) -> Tuple[List[Tensor], List[Tensor]]:
        units = points / points.norm(dim=1, keepdim=True)
        density = torch.einsum("em,ce->mc", harmonics(units), weights)
        found = products(density.unsqueeze(1), torch.ones(l_max + 1, 1, 4).double())
        return found.scalars, [found.density[1:4], products.turned(found.density)]

    scalars, tensors = evaluated(vectors)
    turned_scalars, turned_tensors = evaluated(vectors @ turn.T)
    for one, other in zip(scalars, turned_scalars, strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(tensors, turned_tensors, strict=True):
        torch.testing.assert_close(torch.einsum("ab,bnc->anc", turn, one), other)


def test_smooth_at_the_cutoff() -> None:
    """Energy and direct force, and two derivatives of both, go to those of separate
    atoms where a third atom leaves the neighbourhood of a pair."""
    model = make_model("ace", pair_potential=False)
    cutoff = model.backbone.cutoff
    pair = [[0.0, 0.0, 0.0], [0.4, 1.1, 0.0]]
    alone = energy_of(model, Atoms("CO", positions=pair)) + energy_of(model, Atoms("N"))

    def derivatives(distance: float) -> List[float]:
        x = torch.tensor(distance, dtype=torch.float64, requires_grad=True)
        positions = torch.zeros(3, 3, dtype=torch.float64)
        positions[1] = torch.tensor(pair[1], dtype=torch.float64)
        moved = torch.tensor([[0.0, 0, 0], [0, 0, 0], [0, -1.0, 0]]).double()
        atoms = Atoms("CON", positions=[*pair, [0.0, -distance, 0.0]])
        system = as_system(model, atoms, positions=positions + x * moved)
        out = evaluate(model, [system], [ENERGY, FORCE])
        found = []
        for value in (out[ENERGY].sum() - alone, out[FORCE][2, 1, 0]):
            for _ in range(3):
                found.append(abs(float(value)))
                if not value.requires_grad:
                    return found
                (value,) = torch.autograd.grad(value, x, create_graph=True)
        return found

    far, near = derivatives(cutoff - 0.5), derivatives(cutoff - 1e-3)
    assert min(far) > 1e-6
    for size, reference, order in zip(near, far, [3, 2, 1] * 2, strict=True):
        assert size < 10.0 * reference * (1e-3 / 0.5) ** order + 1e-12


@pytest.mark.parametrize("degree", [1, 2])
def test_gradients_of_harmonics(degree: int) -> None:
    """They are those of automatic differentiation."""
    units = torch.from_numpy(_units(5)).requires_grad_(True)
    values = Harmonics(degree).double()(units)[:, degree**2 :]
    monomials = [torch.ones_like(units[:, :1]), units][degree - 1]
    for column, factors in zip(
        values.unbind(1), gradient_coefficients(degree), strict=True
    ):
        expected = torch.autograd.grad(column.sum(), units, retain_graph=True)[0]
        torch.testing.assert_close(monomials @ factors.T, expected)


def _forces_by_formula(
    forces: EdgeForces, centers: Tensor, neighbors: Tensor, points: Tensor, x: Any
) -> Tensor:
    """Forces along edges by the formula, with ``r^2`` as the one radial function."""
    units = points / points.norm(dim=1, keepdim=True)
    columns = torch.tensor(degrees(forces.l_max))
    gates = forces.gates(x.scalars).unflatten(-1, [forces.l_max + 1, -1])[:, columns]
    mixed = torch.stack(
        [
            (x.vectors[m] * gates[:, m]) @ forces.mixing[degree]
            for m, degree in enumerate(columns.tolist())
        ],
        dim=1,
    )
    weights = mixed[centers] * forces.neighbors(x.scalars)[neighbors].unsqueeze(1)
    out = torch.zeros_like(points)
    harmonics = Harmonics(forces.l_max).double()(units)
    for m, degree in enumerate(columns.tolist()):
        filters = (points**2).sum(1, keepdim=True) * forces.filters[degree]
        u, *v = filters.split(forces.n_channels, dim=1)
        along = (weights[:, m] * u).sum(1) * harmonics[:, m]
        out = out + along.unsqueeze(1) * units
        if v:
            fixed = units.detach().requires_grad_(True)
            value = Harmonics(forces.l_max).double()(fixed)[:, m]
            (gradient,) = torch.autograd.grad(value.sum(), fixed)
            out = out + (weights[:, m] * v[0]).sum(1, keepdim=True) * gradient
    return out


@pytest.mark.parametrize("l_max", [1, 3])
def test_forces_along_edges(l_max: int) -> None:
    """Rows and blocks give what the formula gives for each edge, the forces sum to
    zero, and the virial is that of these forces."""
    torch.manual_seed(1)
    forces = EdgeForces(6, 3, 1, l_max).double()
    centers, neighbors, _ = _edges()
    points = torch.randn(len(centers), 3, dtype=torch.float64)
    units = points / points.norm(dim=1, keepdim=True)
    radial = (points**2).sum(1, keepdim=True)
    basis = torch.cat([Harmonics(l_max).double()(units), radial, points], dim=1)
    rows = make_rows(centers, neighbors, basis, 9)
    x = NodeFeatures(torch.randn(9, 6).double(), torch.randn(9, 9, 6).double())
    vectors = rows.basis[:, -3:]
    found = forces(EdgeRows(rows.center, rows.neighbor, rows.basis[:, :-3]), x, 40)
    expected = _forces_by_formula(forces, centers, neighbors, points, x)
    of_centers = torch.zeros(9, 3, dtype=torch.float64).index_add(0, centers, expected)
    sums = torch.zeros_like(of_centers).index_add(0, rows.center, found.sum(1))
    torch.testing.assert_close(sums, of_centers)

    for_heads = torch.cat([vectors, found.transpose(1, 2)], dim=1)
    rows = EdgeRows(rows.center, rows.neighbor, for_heads)
    of_atoms = EdgeForceHead(4.0)(rows, x).squeeze(-1)
    of_others = torch.zeros_like(sums).index_add(0, neighbors, expected)
    torch.testing.assert_close(of_atoms, 0.5 * (of_centers - of_others))
    assert float(of_atoms.sum(0).abs().max()) < 1e-12
    head = EdgeStressHead(6, 4.0).double()
    virial = head(rows, x).squeeze(-1).sum(0)
    outer = 0.5 * torch.einsum("ea,eb->ab", points, expected)
    isotropic = 2.0 * head.isotropic(x.scalars).sum() * torch.eye(3).double()
    torch.testing.assert_close(virial, outer + outer.T + isotropic)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bounded(dtype: torch.dtype) -> None:
    """Structures that no data set holds give finite energies, forces and stresses, and
    features as large as those of a liquid."""
    model = make_model("ace", dtype, pair_potential=False)
    usual = predict(model, random_cell(), names=["feature"], sample_kind="atom")
    close = Atoms("CO", positions=[[0, 0, 0], [0.3, 0, 0]])
    packed = random_cell(12, 6.0)
    packed.set_cell(packed.cell[:] * 0.1 ** (1 / 3), scale_atoms=True)
    crushed = random_cell(4, 4.0)
    crushed.set_cell(crushed.cell[:] * 0.1, scale_atoms=True)
    for atoms in (close, packed, crushed):
        positions = torch.tensor(atoms.positions, requires_grad=True)
        system = as_system(model, atoms, positions=positions)
        out = evaluate(model, [system], [ENERGY, FORCE, STRESS])
        (gradient,) = torch.autograd.grad(out[ENERGY].sum(), positions)
        for values in (*out.values(), gradient):
            assert bool(torch.isfinite(values).all())
        features = predict(model, atoms, names=["feature"], sample_kind="atom")
        limit = 100.0 * float(usual["feature"].abs().max())
        assert float(features["feature"].abs().max()) < limit


def test_products_are_bounded() -> None:
    """However large densities are, and however small they stay as they are."""
    products = Products(3, len(TRIPLES)).double()
    torch.manual_seed(0)
    density = torch.randn(16, 50, 4, dtype=torch.float64)
    limit = float(products.softening) ** -0.5
    gates = torch.ones(4, 50, 4, dtype=torch.float64)
    large = products(1e6 * density, gates)
    for values in (*large.scalars, *large.density):
        assert float(values.abs().max()) < 4.0 * limit**3
    small = products(1e-3 * density, gates)
    torch.testing.assert_close(small.scalars[0], 1e-3 * density[0])
    torch.testing.assert_close(small.density, 1e-3 * density)


@pytest.mark.parametrize(
    ("l_max", "n_force", "n_tensor"),
    [(1, 5, 4), (2, 5, 4), (3, 5, 4), (1, 0, 4), (3, 0, 4), (3, 5, 0)],
)
def test_compiled(l_max: int, n_force: int, n_tensor: int) -> None:
    """TorchScript gives the same, also alone in a structure, and for one output."""
    torch.manual_seed(0)
    hypers = small_hypers("ace")
    hypers["ace"] |= {"l_max": l_max, "n_force_channels": n_force, "n_triples": 4}
    hypers["ace"]["n_tensor_channels"] = n_tensor
    backbone = make_backbone(hypers, [1, 6, 7, 8], "Angstrom")
    backbone.add_output(ENERGY, "scalar", 1)
    backbone.add_output("dipole", "vector", 2)
    backbone.add_output(FORCE, "force", 1)
    backbone.add_output(STRESS, "stress", 1)
    compiled = torch.jit.script(backbone.double())
    systems = [
        as_system(backbone, atoms) for atoms in (random_cell(), Atoms("O"), Atoms("H"))
    ]
    names = [ENERGY, "dipole", FORCE, STRESS, "feature"]
    with torch.no_grad():
        expected, found = backbone(systems, names), compiled(systems, names)
    for name in names:
        torch.testing.assert_close(found[name], expected[name])
        alone = backbone(systems, [name])[name]
        torch.testing.assert_close(alone, expected[name])
    assert float(expected[FORCE][-2:].detach().abs().max()) == 0.0


def test_direct_forces_of_earlier_versions() -> None:
    """Made of vectors of atoms, they are what the code of that version gave."""
    torch.manual_seed(0)
    hypers = small_hypers("ace")
    hypers["ace"] |= {"n_force_channels": 0, "n_tensor_channels": 0}
    backbone = make_backbone(hypers, [1, 6, 7, 8], "Angstrom")
    backbone.add_output(ENERGY, "scalar", 1)
    backbone.add_output(FORCE, "force", 1)
    backbone.add_output(STRESS, "stress", 1)
    backbone.double()
    out = backbone([as_system(backbone, random_cell())], [FORCE, STRESS])
    assert float((out[FORCE] ** 2).sum()) == pytest.approx(0.01283393193800722)
    assert float((out[STRESS] ** 2).sum()) == pytest.approx(0.34467716783950986)


def test_many_elements() -> None:
    """With many elements the first layer works atom by atom, to the same end."""
    hypers = small_hypers("ace")
    elements = list(range(1, MAX_SPECIES + 2))
    backbone = make_backbone(hypers, elements, "Angstrom")
    assert not backbone.by_element
    backbone.add_output(ENERGY, "scalar", 1)
    backbone.double()
    systems = [as_system(backbone, random_cell())]
    expected = backbone(systems, [ENERGY])[ENERGY]
    backbone.by_element = True
    torch.testing.assert_close(backbone(systems, [ENERGY])[ENERGY], expected)


def _twisted(angle: float) -> Atoms:
    """A chain of four carbons in which a cutoff of 2.4 Å reaches along bonds only."""
    chain = Atoms("C4", [[-0.5, 1.4, 0], [0, 0, 0], [1.5, 0, 0], [2.0, 1.4, 0]])
    chain.set_dihedral(0, 1, 2, 3, angle)
    return chain


@pytest.mark.parametrize("n_tensor_channels", [0, 4])
def test_tensor_messages_see_the_twist_of_a_bond(n_tensor_channels: int) -> None:
    """With a cutoff that reaches bonded atoms only, distances of these and angles
    between them are all that scalar messages tell, in however many layers."""
    hypers = small_hypers("ace")["ace"]
    hypers |= {"cutoff": 2.4, "n_tensor_channels": n_tensor_channels}
    model = make_model("ace", pair_potential=False, ace=hypers)
    flat, twisted = (energy_of(model, _twisted(angle)) for angle in (0.0, 90.0))
    if n_tensor_channels:
        assert abs(twisted - flat) > 1e-6
    else:
        assert twisted == pytest.approx(flat, abs=1e-10)
    mirrored = energy_of(model, _twisted(-90.0))
    assert mirrored == pytest.approx(twisted, abs=1e-10)
