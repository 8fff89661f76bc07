"""Walls: finite, repulsive and consistent forces inside, and nothing new outside."""

import gzip
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import pytest
import torch
from ase import Atoms
from helpers import (
    BACKBONES,
    ENERGY,
    FORCE,
    STRESS,
    as_system,
    energy_info,
    evaluate,
    make_model,
    predict,
    random_cell,
)
from metatomic.torch import NeighborListOptions, unit_conversion_factor
from torch import Tensor
from train_helpers import clusters, options, prepare, write

from dualforce.forces import MetatomicForces
from dualforce.nn.ace import LIMIT
from dualforce.nn.painn import NodeFeatures, limited
from dualforce.nn.repulsion import Core, WallRepulsion, solve_core, walled_pair
from dualforce.nn.wall import COINCIDENT, Wall, saturated_lengths
from dualforce.training.data import make_frames
from dualforce.training.model import DualForce
from dualforce.training.walls import BELOW, set_up_wall, shortest_distances


WATER = energy_info(types=(1, 8))
STARTS = {("H", "H"): 1.3, ("H", "O"): 0.83, ("O", "O"): 2.3}
NUMBERS = {"H": 1, "O": 8}
LARGEST = 1e4
"""In eV/Å."""


def set_wall(model: Any, scale: float = 1.0) -> None:
    """Walls as those of water, in a model of other length unit with a scale."""
    starts = torch.zeros_like(model.backbone.wall.starts)
    for (a, b), start in STARTS.items():
        i, j = NUMBERS[a], NUMBERS[b]
        starts[i, j] = starts[j, i] = scale * start
    model.set_wall(starts)


def walled(backbone: str = "painn", **settings: Any) -> Any:
    """An untrained model of water with a wall."""
    model = make_model(backbone, info=WATER, **settings)
    set_wall(model)
    return model


def water(amplitude: float, seed: int = 0) -> Atoms:
    """Eight molecules in a box, rattled."""
    atoms = Atoms(cell=[6.4, 6.4, 6.4], pbc=True)
    for place in np.ndindex(2, 2, 2):
        molecule = Atoms("OHH", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
        molecule.translate(3.2 * np.array(place) + 0.3)
        atoms += molecule
    atoms.rattle(amplitude, seed=seed)
    return atoms


def gradients(model: Any, atoms: Atoms) -> Tuple[Dict[str, Tensor], Tensor, Tensor]:
    """Outputs, conservative forces and virial."""
    positions = torch.tensor(atoms.positions, requires_grad=True)
    strain = torch.eye(3, dtype=torch.float64, requires_grad=True)
    cell = torch.tensor(atoms.cell.array) @ strain
    system = as_system(model, atoms, positions=positions @ strain, cell=cell)
    values = evaluate(model, [system])
    forces, virial = torch.autograd.grad(values[ENERGY].sum(), [positions, strain])
    return values, -forces, virial


# ---------------------------------------------------------------------- pair by pair


def test_saturated_lengths_are_smooth_and_bounded() -> None:
    """Derivative and two joins; bitwise unchanged beyond the start."""
    r = torch.linspace(1e-3, 2.0, 2000, dtype=torch.float64, requires_grad=True)
    starts = torch.full_like(r, 1.0)
    seen, stretch = saturated_lengths(r, starts)
    (derivative,) = torch.autograd.grad(seen.sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(derivative.sum(), r)
    torch.testing.assert_close(stretch, derivative)
    assert seen.min() > 0.9 and (seen[r >= 1.0] == r[r >= 1.0]).all()
    near = (r - 1.0).abs() < 2e-3
    assert second[near].abs().max() < 1.0  # ~ -200 (1 - r), not a jump
    none, _ = saturated_lengths(r, torch.zeros_like(r))
    assert (none == r).all()


def _pair(a: int, b: int, start: float) -> Tuple[Tensor, Tensor, Core]:
    zi, zj = torch.tensor([float(a)]).double(), torch.tensor([float(b)]).double()
    return zi, zj, solve_core(zi, zj, torch.tensor([start]).double())


@pytest.mark.parametrize("pair", [(1, 1, 1.3), (1, 8, 0.83), (29, 79, 2.2)])
def test_the_repulsion_has_two_continuous_derivatives(
    pair: Tuple[int, int, float],
) -> None:
    """At the start of the wall and at its core, and is bounded."""
    zi, zj, core = _pair(*pair)
    assert float(core.slopes[0]) == pytest.approx(-2000.0, rel=1e-6)

    def derivatives(r: Tensor) -> List[Tensor]:
        r = r.clone().requires_grad_(True)
        energy, slope = walled_pair(zi, zj, r, core)
        (first,) = torch.autograd.grad(energy.sum(), r, retain_graph=True)
        (second,) = torch.autograd.grad(slope.sum(), r)
        torch.testing.assert_close(first, slope.detach(), rtol=1e-9, atol=1e-9)
        return [energy.detach(), slope.detach(), second]

    for join in (core.radii, core.starts):
        below, above = (derivatives(join + step) for step in (-1e-9, 1e-9))
        for left, right in zip(below, above, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-4)
    r = torch.linspace(1e-4, 1.0, 1000, dtype=torch.float64) * core.starts
    energy, slope, _ = derivatives(r)
    assert (slope[:-1] < 0.0).all() and (energy[:-1] > 0.0).all()
    assert slope.abs().max() < LARGEST


# --------------------------------------------------------------------- whole models


@pytest.mark.parametrize("backbone", BACKBONES)
def test_outside_nothing_changes(backbone: str) -> None:
    """Bitwise, in energies, direct and conservative forces and stresses."""
    atoms = water(0.0)
    before = gradients(make_model(backbone, info=WATER), atoms)
    after = gradients(walled(backbone), atoms)
    for name in (ENERGY, FORCE, STRESS):
        assert (before[0][name] == after[0][name]).all()
    assert (before[1] == after[1]).all() and (before[2] == after[2]).all()


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize(
    "distance", [0.85, 0.8296, 0.78, 0.6, 0.21, 0.1974, 0.19, 0.05]
)
def test_forces_are_gradients(backbone: str, distance: float) -> None:
    """Across wall and core, by central differences."""
    model, atoms = walled(backbone), water(0.0)
    atoms.positions[1] = atoms.positions[0] + [distance, 0.0, 0.0]
    _, forces, virial = gradients(model, atoms)
    step = 1e-5
    for atom, axis in ((1, 0), (1, 1), (0, 0), (2, 1)):
        energies = []
        for sign in (1.0, -1.0):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            energies.append(float(predict(model, moved, names=[ENERGY])[ENERGY]))
        expected = -(energies[0] - energies[1]) / (2.0 * step)
        assert float(forces[atom, axis]) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    strained = []
    for sign in (1.0, -1.0):
        moved = atoms.copy()
        moved.set_cell(atoms.cell * (1.0 + sign * step), scale_atoms=True)
        strained.append(float(predict(model, moved, names=[ENERGY])[ENERGY]))
    expected = (strained[0] - strained[1]) / (2.0 * step)
    assert float(virial.trace()) == pytest.approx(expected, rel=1e-4, abs=1e-3)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_rattled_structures_have_finite_forces(backbone: str) -> None:
    """Whatever the structure, of both forces."""
    model = walled(backbone)
    for amplitude in (0.1, 0.3, 0.6):
        values, forces, _ = gradients(model, water(amplitude))
        for part in (forces, values[FORCE]):
            assert torch.isfinite(part).all() and part.abs().max() < LARGEST


def test_all_forces_contain_the_repulsion_alike() -> None:
    """Of a molecule of two atoms, energy and direct outputs."""
    model = walled()
    atoms = Atoms("OO", [[2, 2, 2], [2.9, 2, 2]], cell=[9, 9, 9], pbc=True)
    with_wall, forces, virial = gradients(model, atoms)
    model.walled = []
    without, other_forces, other_virial = gradients(model, atoms)
    push = forces - other_forces
    assert push[1, 0] > 10.0
    direct = (with_wall[FORCE] - without[FORCE])[:, :, 0]
    torch.testing.assert_close(direct, push)
    stress = (with_wall[STRESS] - without[STRESS])[0, :, :, 0] * atoms.get_volume()
    torch.testing.assert_close(stress, virial - other_virial)


def test_atoms_at_the_same_place_are_named() -> None:
    """As without a wall."""
    atoms = water(0.0)
    atoms.positions[1] = atoms.positions[0] + [0.5 * COINCIDENT, 0.0, 0.0]
    with pytest.raises(ValueError, match="lie at the same place"):
        predict(walled(), atoms)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exported_models(dtype: torch.dtype, tmp_path: Path) -> None:
    """Compiled, in both precisions of the network."""
    model = walled(dtype=dtype)
    model.export().save(str(tmp_path / "model.pt"))
    source = MetatomicForces(tmp_path / "model.pt")
    atoms = water(0.4)
    conservative, direct = source.both(atoms)
    assert np.abs(conservative.forces).max() < LARGEST
    assert np.abs(direct.forces).max() < LARGEST
    assert conservative.energy == pytest.approx(
        float(predict(model, atoms)[ENERGY]), rel=1e-5
    )


def test_units() -> None:
    """The same wall in kcal/mol and nm, and none of unknown energies."""
    lists = NeighborListOptions(4.0, True, True), NeighborListOptions(0.4, True, True)
    terms = [WallRepulsion([1, 8], lists[0], "Angstrom")]
    terms.append(WallRepulsion([1, 8], lists[1], "nm"))
    kcal = float(unit_conversion_factor("eV", "kcal/mol"))
    starts = torch.zeros(9, 9).double()
    starts[1, 8] = starts[8, 1] = 0.83
    types = torch.tensor([1]), torch.tensor([8])
    found = []
    for term, factor, length in zip(terms, (1.0, kcal), (1.0, 0.1), strict=True):
        term.add([ENERGY], factor)
        term.set_starts(length * starts)
        for r in (0.5, 0.15):
            distance = torch.tensor([length * r]).double()
            energy, slope = term.pair_energies(ENERGY, *types, distance)
            found.append((float(energy) / factor, float(slope) * length / factor))
    np.testing.assert_allclose(found[:2], found[2:], rtol=1e-6)
    unknown = make_model(info=energy_info(types=(1, 8), unit=""))
    set_wall(unknown)
    assert unknown.walled == []
    in_kcal = make_model(info=energy_info(types=(1, 8), unit="kcal/mol"))
    assert set(in_kcal.wall_repulsion.factors) == {ENERGY, FORCE, STRESS}
    assert set(in_kcal.wall_repulsion.factors.values()) == {kcal}


# ------------------------------------------------------------------ data, checkpoints


def _frames(tmp_path: Path, frames: List[Atoms]) -> Tuple[Any, Any]:
    model, _, dataset = prepare(options(write(tmp_path / "data.xyz", frames)))
    return model, make_frames([dataset], "training", model, False)


def test_walls_start_below_the_data(tmp_path: Path) -> None:
    """And fine-tuning takes the lower one."""
    model, frames = _frames(tmp_path, clusters(4))
    set_up_wall(model, frames)
    first = model.backbone.wall.starts.double().clone()
    shortest = shortest_distances(model, frames)
    seen = torch.isfinite(shortest)
    torch.testing.assert_close(first[seen], BELOW * shortest[seen], rtol=1e-6, atol=0.0)
    assert (first == first.T).all() and model.walled
    closer = clusters(4)
    for atoms in closer:
        vector = atoms.positions[1] - atoms.positions[0]
        atoms.positions[1] = atoms.positions[0] + 0.7 * vector
    other, near = _frames(tmp_path, closer)
    model.set_wall(first)
    set_up_wall(model, near)
    lower = model.backbone.wall.starts.double()
    assert lower[1, 8] < 0.8 * first[1, 8]
    set_up_wall(model, frames)
    assert (model.backbone.wall.starts == lower).all()


def test_pairs_without_data_have_a_wall(tmp_path: Path) -> None:
    """From covalent radii."""
    model, frames = _frames(tmp_path, clusters(2, n_molecules=1))
    set_up_wall(model, frames)
    assert float(model.backbone.wall.starts[8, 8]) == pytest.approx(0.7 * 2 * 0.66)


def test_checkpoints_bring_the_wall_back() -> None:
    """With its repulsion."""
    model, atoms = walled(), water(0.3)
    model.restart(WATER)
    loaded = DualForce.load_checkpoint(model.get_checkpoint(), "restart").eval()
    assert (loaded.backbone.wall.starts == model.backbone.wall.starts).all()
    for name in (ENERGY, FORCE, STRESS):
        assert (predict(loaded, atoms)[name] == predict(model, atoms)[name]).all()


@pytest.mark.parametrize("backbone", ["painn", "pet", "soap_bpnn"])
def test_old_checkpoints_have_no_wall(backbone: str) -> None:
    """They load and predict as before."""
    folder = Path(__file__).parent / "checkpoints" / backbone
    with gzip.open(folder / "model-v2_trainer-v3.ckpt.gz") as file:
        checkpoint = torch.load(file, weights_only=False)
    model = DualForce.load_checkpoint(
        DualForce.upgrade_checkpoint(checkpoint), "export"
    )
    assert not model.walled and not model.backbone.wall.starts.any()
    assert not hasattr(model.backbone, "limits") or model.backbone.limits.isinf().all()


def test_a_wall_without_pairs_is_none() -> None:
    """Vectors pass as they are."""
    wall = Wall([1, 8])
    vectors = torch.randn(5, 3)
    index = torch.tensor([0, 0, 1, 1, 1])
    assert wall(vectors, torch.tensor([1, 8]), index, 1 - index) is vectors


def test_features_have_limits() -> None:
    """Smooth ones; below them features are what they are."""
    limits = torch.tensor([1.0, 2.0])
    s = torch.linspace(-5.0, 5.0, 2001, dtype=torch.float64).requires_grad_(True)
    zeros = torch.zeros(1, 3, 1, dtype=torch.float64)
    bent = limited(NodeFeatures(s, zeros), limits).scalars
    (slope,) = torch.autograd.grad(bent.sum(), s, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), s)
    assert bent.abs().max() <= 1.5 and (slope >= 0.0).all()
    assert (bent[s.abs() <= 1.0] == s[s.abs() <= 1.0]).all()
    assert second[(s.abs() - 1.0).abs() < 6e-3].abs().max() < 0.1
    v = torch.tensor([[0.0, 3.0, 40.0], [0.0, 4.0, 0.0], [0.0, 0.0, 0.0]]).double()
    vectors = limited(NodeFeatures(s, v.unsqueeze(0)), limits).vectors[0]
    assert (vectors[:, 0] == 0.0).all() and vectors.norm(dim=0).max() <= 3.0 + 1e-9
    torch.testing.assert_close(
        vectors[1, 1] / vectors[0, 1], torch.tensor(4 / 3.0).double()
    )
    few = NodeFeatures(s[1000:1100], v[:, :1].unsqueeze(0))
    assert limited(few, limits).scalars is few.scalars
    assert limited(few, limits).vectors is few.vectors


def test_features_of_ace_have_limits() -> None:
    """However large what densities make of them, direct forces do not grow further."""
    atoms = random_cell(n_atoms=14, seed=1)
    found = []
    for factor in (1e3, 1e6):
        model = make_model("ace")  # its features are sums over atoms here
        for layer in model.backbone.layers:
            with torch.no_grad():
                layer.update.weight.mul_(factor)
        found.append(predict(model, atoms, names=[FORCE])[FORCE].abs().max())
        assert found[-1] < LARGEST
        features = predict(model, atoms, names=["feature"])["feature"]
        assert features.abs().max() <= 1.5 * LIMIT * len(atoms)
    assert 0.2 < found[1] / found[0] < 5.0


def test_random_elements_stay_bounded() -> None:
    """H, C, N and O at random places, walls from covalent radii."""
    model = make_model()
    set_up_wall(model, [])
    for seed in range(3):
        atoms = random_cell(n_atoms=14, seed=seed, min_distance=0.1)
        values, forces, _ = gradients(model, atoms)
        assert forces.abs().max() < LARGEST and values[FORCE].abs().max() < LARGEST
