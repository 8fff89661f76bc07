"""Physics of the model, each against an independent calculation."""

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
    energy_of,
    evaluate,
    make_model,
    predict,
    random_cell,
)
from metatensor.torch import Labels
from metatomic.torch import (
    ModelEvaluationOptions,
    ModelOutput,
    NeighborListOptions,
    System,
)
from metatrain.utils.additive import ZBL
from metatrain.utils.architectures import get_default_hypers
from metatrain.utils.data import DatasetInfo
from metatrain.utils.data.target_info import get_generic_target_info
from metatrain.utils.neighbor_lists import get_system_with_neighbor_lists
from torch import Tensor

from dualforce.training.model import NAME, DualForce


NAMES = (ENERGY, FORCE, STRESS)


def assert_same(a: Tensor, b: Tensor, tolerance: float = 1e-10) -> None:
    """Compare values of order one."""
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def gradients(model: Any, atoms: Atoms) -> Tuple[Tensor, Tensor]:
    """Conservative force and stress, by automatic differentiation. The stress has no
    meaning unless the structure is periodic."""
    positions = torch.tensor(atoms.positions, requires_grad=True)
    strain = torch.eye(3, dtype=torch.float64, requires_grad=True)
    cell = torch.tensor(atoms.cell[:] * atoms.pbc[:, None]) @ strain
    system = as_system(model, atoms, positions=positions @ strain, cell=cell)
    energy = evaluate(model, [system], [ENERGY])[ENERGY].sum()
    force, virial = torch.autograd.grad(energy, [positions, strain])
    return -force, virial / atoms.get_volume()


def finite_force(model: Any, atoms: Atoms, atom: int, axis: int) -> float:
    """Force from central differences of fourth order."""

    def energy(shift: float) -> float:
        moved = atoms.copy()
        moved.positions[atom, axis] += shift
        return energy_of(model, moved)

    h = 2e-4
    slope = 8.0 * (energy(h) - energy(-h)) - (energy(2 * h) - energy(-2 * h))
    return -slope / (12.0 * h)


def finite_stress(model: Any, atoms: Atoms, i: int, j: int) -> float:
    """Stress from central differences of fourth order."""

    def energy(shift: float) -> float:
        deformation = np.eye(3)
        deformation[i, j] += shift
        strained = atoms.copy()
        strained.set_cell(atoms.cell @ deformation, scale_atoms=True)
        return energy_of(model, strained)

    h = 2e-4
    slope = 8.0 * (energy(h) - energy(-h)) - (energy(2 * h) - energy(-2 * h))
    return slope / (12.0 * h * atoms.get_volume())


# ------------------------------------------------------------------ derivatives


@pytest.mark.parametrize("zbl", [False, True])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_force_is_the_derivative(backbone: str, zbl: bool) -> None:
    """Conservative forces are minus the slope of the energy."""
    model = make_model(backbone, zbl=zbl)
    atoms = random_cell(seed=1, min_distance=1.0)
    force, _ = gradients(model, atoms)
    for atom, axis in ((0, 0), (5, 1), (11, 2)):
        expected = finite_force(model, atoms, atom, axis)
        error = abs(float(force[atom, axis]) - expected)
        assert error < 1e-6 * float(force.abs().max())


@pytest.mark.parametrize("zbl", [False, True])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_stress_is_the_derivative(backbone: str, zbl: bool) -> None:
    """Conservative stresses are the slope of the energy under strain."""
    model = make_model(backbone, zbl=zbl)
    atoms = random_cell(seed=2, min_distance=1.0)
    _, stress = gradients(model, atoms)
    for i, j in ((0, 0), (1, 2)):
        expected = finite_stress(model, atoms, i, j)
        assert abs(float(stress[i, j]) - expected) < 1e-6 * float(stress.abs().max())


def test_smooth_at_the_cutoff() -> None:
    """Energy and direct force of a dimer, and the first two derivatives of both, go to
    those of separate atoms where the distance reaches the cutoff."""
    model = make_model()
    cutoff = model.backbone.cutoff
    atom = energy_of(model, Atoms("C")) + energy_of(model, Atoms("O"))

    def derivatives(distance: float) -> List[float]:
        x = torch.tensor(distance, dtype=torch.float64, requires_grad=True)
        positions = torch.zeros(2, 3, dtype=torch.float64)
        positions = positions + x * torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
        dimer = Atoms("CO", positions=[[0, 0, 0], [distance, 0, 0]])
        system = as_system(model, dimer, positions=positions)
        out = evaluate(model, [system], [ENERGY, FORCE])
        found = []
        for value in (out[ENERGY].sum() - atom, out[FORCE][1, 0, 0]):
            for _ in range(3):
                found.append(abs(float(value)))
                if not value.requires_grad:
                    return found
                (value,) = torch.autograd.grad(value, x, create_graph=True)
        return found

    far, near = derivatives(cutoff - 0.5), derivatives(cutoff - 1e-3)
    assert min(far) > 1e-5
    for size, reference, order in zip(near, far, [3, 2, 1] * 2, strict=True):
        assert size < 10.0 * reference * (1e-3 / 0.5) ** order
    assert max(derivatives(cutoff + 1e-6)) < 1e-12


# ------------------------------------------------------------------- symmetries


@pytest.mark.parametrize("backbone", BACKBONES)
def test_translation_and_permutation(backbone: str) -> None:
    """Moving all atoms changes nothing; reordering them reorders the forces."""
    model = make_model(backbone)
    atoms = random_cell(seed=4)
    before = predict(model, atoms)
    moved = atoms.copy()
    moved.positions += [3.1, -7.7, 0.4]
    moved.wrap()
    order = np.random.default_rng(0).permutation(len(atoms))
    after = predict(model, moved[order])
    assert_same(after[ENERGY], before[ENERGY], 1e-9)
    assert_same(after[FORCE], before[FORCE][order], 1e-9)
    assert_same(after[STRESS], before[STRESS], 1e-9)
    features = predict(model, atoms, names=["feature"], sample_kind="atom")["feature"]
    moved_features = predict(model, moved[order], names=["feature"], sample_kind="atom")
    assert_same(moved_features["feature"], features[order], 1e-9)


@pytest.mark.parametrize("pbc", [True, False])
@pytest.mark.parametrize("backbone", ["painn", "ace"])
def test_direct_forces_sum_to_zero(backbone: str, pbc: bool) -> None:
    """The net direct force of our networks vanishes to round-off."""
    model = make_model(backbone, zbl=True)
    force = predict(model, random_cell(30, 9.0, pbc=[pbc] * 3, min_distance=0.9))[FORCE]
    assert force.abs().max() > 1e-2
    assert force.sum(0).abs().max() < 1e-12 * max(1.0, float(force.abs().max()))


def test_direct_stress_is_symmetric() -> None:
    """Direct stresses are symmetric with every backbone, and zero without volume."""
    for backbone in BACKBONES:
        model = make_model(backbone, zbl=True)
        stress = predict(model, random_cell(seed=6))[STRESS]
        assert stress.shape == (1, 3, 3, 1)
        assert stress.abs().max() > 1e-6
        assert_same(stress, stress.transpose(1, 2), 1e-14)
        free = Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.1]])
        assert predict(model, free)[STRESS].abs().max() == 0.0


# ----------------------------------------------------------- cells and boundaries


@pytest.mark.parametrize("backbone", BACKBONES)
def test_cell_smaller_than_the_cutoff(backbone: str) -> None:
    """A small triclinic cell gives what its supercell gives per atom."""
    model = make_model(backbone)
    atoms = random_cell(3, 2.6, seed=8, min_distance=0.9)
    small, large = predict(model, atoms), predict(model, atoms.repeat((2, 3, 1)))
    assert_same(large[ENERGY], 6.0 * small[ENERGY])
    assert_same(large[FORCE], small[FORCE].repeat(6, 1, 1))
    assert_same(large[STRESS], small[STRESS])


@pytest.mark.parametrize("pbc", [(True, True, False), (False, False, True)])
def test_mixed_boundaries(pbc: Tuple[bool, bool, bool]) -> None:
    """A direction that is not periodic equals one with vacuum beyond the cutoff."""
    model = make_model()
    atoms = random_cell(8, 5.0, seed=9, pbc=pbc)
    padded = atoms.copy()
    cell = atoms.cell[:].copy()
    for axis in range(3):
        if not pbc[axis]:
            normal = np.cross(*np.delete(cell, axis, 0))
            cell[axis] = 40.0 * normal / np.linalg.norm(normal)
    padded.set_cell(cell)
    padded.pbc = True
    for name in (ENERGY, FORCE):
        assert_same(predict(model, atoms)[name], predict(model, padded)[name])


def test_single_and_distant_atoms() -> None:
    """Atoms without neighbours have their own energy and no force."""
    model = make_model(zbl=True)
    single = predict(model, Atoms("C"))
    assert single[FORCE].abs().max() == 0.0
    distant = Atoms("CC", positions=[[0, 0, 0], [0, 0, model.backbone.cutoff + 0.01]])
    pair = predict(model, distant)
    assert_same(pair[ENERGY], 2.0 * single[ENERGY])
    assert pair[FORCE].abs().max() == 0.0


@pytest.mark.parametrize("backbone", BACKBONES)
def test_batch_is_one_at_a_time(backbone: str) -> None:
    """Structures of a batch do not see each other."""
    model = make_model(backbone, zbl=True)
    frames = [random_cell(n, seed=n) for n in (4, 9, 6)] + [Atoms("N")]
    with torch.no_grad():
        batch = evaluate(model, [as_system(model, frame) for frame in frames])
    single = [predict(model, frame) for frame in frames]
    for name in NAMES:
        assert_same(batch[name], torch.cat([one[name] for one in single]))


def test_large_box_in_single_precision() -> None:
    """12,288 atoms in a float32 network have 64 times the energy of 192."""
    model = make_model(dtype=torch.float32)
    atoms = random_cell(192, 12.43, seed=11)
    small = predict(model, atoms, names=[ENERGY, FORCE])
    large = predict(model, atoms.repeat(4), names=[ENERGY, FORCE])
    error = (large[ENERGY] - 64.0 * small[ENERGY]).abs().max() / (64 * 192)
    assert error < 1e-6
    assert_same(large[FORCE][:192], small[FORCE], 1e-5)


# ------------------------------------------------------------ errors and requests


def test_coincident_atoms() -> None:
    """Two atoms at one place are named."""
    atoms = Atoms("CHO", positions=[[0, 0, 0], [0, 0, 1.0], [0, 0, 1.0]])
    with pytest.raises(ValueError, match="atoms 1 and 2 lie at the same place"):
        predict(make_model(), atoms)


def test_unknown_element() -> None:
    """An element the model has not been trained on is named."""
    model = make_model()
    system = as_system(model, Atoms("CAu", positions=[[0, 0, 0], [0, 0, 2.0]]))
    options = ModelEvaluationOptions(outputs={ENERGY: ModelOutput()})
    with pytest.raises(ValueError, match="does not support the atomic type '79'"):
        model.export()([system], options, check_consistency=False)


def test_only_direct_force_is_computed() -> None:
    """A request for the direct force does not touch the head of the energy."""
    model = make_model(zbl=True)
    calls: Dict[str, int] = {}
    for name, head in model.backbone.heads.items():
        head.register_forward_hook(
            lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1})
        )
        if name != FORCE:
            for parameter in head.parameters():
                parameter.data.fill_(float("nan"))
    force = predict(model, random_cell(), names=[FORCE])[FORCE]
    assert calls == {FORCE: 1}
    assert torch.isfinite(force).all()


@pytest.mark.parametrize("sample_kind", ["atom", "system"])
def test_selected_atoms(sample_kind: str) -> None:
    """Outputs of selected atoms are those rows of all, or the sum of these rows."""
    model = make_model(zbl=True)
    frames = [random_cell(5, seed=1), random_cell(6, seed=2), random_cell(4, seed=3)]
    chosen = torch.tensor([[2, 3], [0, 4], [2, 0], [0, 1]], dtype=torch.int32)
    systems = [as_system(model, frame) for frame in frames]
    with torch.no_grad():
        everything = evaluate(model, systems, NAMES, "atom")
        selected = evaluate(
            model, systems, NAMES, sample_kind, Labels(["system", "atom"], chosen)
        )
    rows = torch.tensor([1, 4, 11, 14])
    for name in NAMES:
        expected = everything[name][rows]
        if sample_kind == "system":
            expected = torch.stack([expected[:2].sum(0), expected[2:].sum(0)])
        assert_same(selected[name], expected)


# ----------------------------------------------------------- domain decomposition


def _domain(
    model: Any, atoms: Atoms, owned: np.ndarray, reach: float
) -> Tuple[System, Labels]:
    """Atoms of a domain and explicit ghosts around them, as engines that split space
    see them: no periodicity, every image an atom of its own."""
    images = atoms.repeat((3, 3, 3))
    images.positions -= atoms.cell.sum(axis=0)
    centers = atoms.positions[owned]
    distances = np.linalg.norm(images.positions[:, None] - centers, axis=-1).min(1)
    ghosts = images[(distances < reach) & (distances > 1e-6)]
    domain = Atoms(atoms[owned] + ghosts, pbc=False, cell=None)
    rows = torch.arange(len(owned), dtype=torch.int32)
    labels = Labels(["system", "atom"], torch.stack([0 * rows, rows], dim=1))
    return as_system(model, domain), labels


@pytest.mark.parametrize("backbone", BACKBONES)
def test_domain_decomposition(backbone: str) -> None:
    """Two domains with ghosts give together what the whole system gives."""
    model = make_model(backbone, zbl=True)
    reach = model.export().capabilities().interaction_range
    atoms = random_cell(10, 9.0, seed=12)
    whole = predict(model, atoms, names=[ENERGY, FORCE])
    left = np.flatnonzero(atoms.get_scaled_positions()[:, 0] < 0.5)
    right = np.setdiff1d(np.arange(len(atoms)), left)
    energy = torch.zeros(1, 1, dtype=torch.float64)
    force = torch.zeros(len(atoms), 3, 1, dtype=torch.float64)
    for owned in (left, right):
        system, labels = _domain(model, atoms, owned, reach + 1e-3)
        with torch.no_grad():
            out = evaluate(model, [system], [ENERGY, FORCE], selected_atoms=labels)
        energy += out[ENERGY]
        force[owned] = out[FORCE]
    assert_same(energy, whole[ENERGY])
    assert_same(force, whole[FORCE])
    if model.backbone.zero_net_force:
        assert force.sum(0).abs().max() < 1e-12


# --------------------------------------------------------------------- repulsion


def test_repulsion_is_that_of_metatrain() -> None:
    """The energy rises by the ZBL energy of metatrain."""
    model = make_model(zbl=True, info=energy_info(types=(1, 6, 7, 8)))
    without = make_model(info=energy_info(types=(1, 6, 7, 8)))
    atoms = random_cell(20, 5.0, min_distance=0.6)
    zbl = ZBL({}, energy_info())
    system = as_system(model, atoms)
    values = zbl([system], {ENERGY: ModelOutput(sample_kind="system")})[ENERGY]
    expected = float(values.block().values)
    assert expected > 1.0
    difference = energy_of(model, atoms) - energy_of(without, atoms)
    # metatrain computes powers of atomic numbers in single precision
    assert difference == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("option", ["zbl", "pair_potential"])
def test_direct_targets_contain_derivatives_of_pairs(option: str) -> None:
    """Direct force and stress contain the derivative of what the energy contains."""
    model, without = make_model(**{option: True}), make_model(**{option: False})
    atoms = random_cell(20, 5.0, min_distance=0.6)

    class PairsAlone(torch.nn.Module):
        """The part of the energy that is a sum over pairs."""

        requested_neighbor_lists = model.requested_neighbor_lists

        def forward(self, systems: Any, outputs: Any, selected: Any) -> Any:
            energy = model(systems, outputs, selected)[ENERGY].copy()
            energy.block().values[:] -= without(systems, outputs)[ENERGY].block().values
            return {ENERGY: energy}

    complete, plain = predict(model, atoms), predict(without, atoms)
    force, stress = ((complete[n] - plain[n]).squeeze(-1) for n in (FORCE, STRESS))
    alone = PairsAlone()
    assert abs(energy_of(model, atoms) - energy_of(without, atoms)) > 1e-2
    for atom, axis in ((0, 0), (7, 1), (19, 2)):
        expected = finite_force(alone, atoms, atom, axis)
        assert abs(float(force[atom, axis]) - expected) < 1e-6 * float(
            force.abs().max()
        )
    for i, j in ((0, 0), (0, 2)):
        expected = finite_stress(alone, atoms, i, j)
        error = abs(float(stress[0, i, j]) - expected)
        assert error < 1e-6 * float(stress.abs().max())


def test_repulsion_only_where_it_belongs() -> None:
    """Energies that are not in eV, and scalars, vectors, are not repelled."""
    info = energy_info()
    targets = dict(info.targets)
    targets.update(energy_info(["energy/kcal"], unit="kcal/mol").targets)
    charge = {"quantity": "", "unit": "e", "type": "scalar", "num_subtargets": 1}
    targets["mtt::charge"] = get_generic_target_info(
        "mtt::charge", {**charge, "sample_kind": "atom"}
    )
    info = DatasetInfo(
        length_unit="Angstrom", atomic_types=info.atomic_types, targets=targets
    )
    model, without = make_model(zbl=True, info=info), make_model(info=info)
    atoms = random_cell(20, 5.0, min_distance=0.6)
    for name in (ENERGY, "energy/kcal", "mtt::charge", FORCE, FORCE + "/kcal"):
        difference = predict(model, atoms, names=[name])[name]
        difference = difference - predict(without, atoms, names=[name])[name]
        assert (difference.abs().max() > 1e-2) == (name in (ENERGY, FORCE))


def test_repulsion_follows_new_targets() -> None:
    """An energy added in a restart is repelled, as it is after loading."""
    model = make_model(zbl=True)
    model.restart(energy_info(["energy/pbe"]))
    loaded = type(model).load_checkpoint(model.get_checkpoint(), "restart").eval()
    assert model.repelled == loaded.repelled
    assert {"energy/pbe", FORCE + "/pbe", STRESS + "/pbe"} <= set(model.repelled)


def test_neighbor_lists() -> None:
    """The list of the network comes first; the repulsion has its own."""
    lists = make_model(zbl=True).requested_neighbor_lists()
    assert lists[0] == NeighborListOptions(4.0, full_list=True, strict=True)
    assert [options.cutoff for options in lists[1:]] == [pytest.approx(1.52)]
    system = System(
        types=torch.tensor([6], dtype=torch.int32),
        positions=torch.zeros(1, 3, dtype=torch.float64),
        cell=torch.zeros(3, 3, dtype=torch.float64),
        pbc=torch.zeros(3, dtype=torch.bool),
    )
    known = get_system_with_neighbor_lists(system, lists).known_neighbor_lists()
    assert len(known) == len(lists)


def test_models_of_version_1_stay_what_they_were() -> None:
    """Norms were sharp then; the energy is what the code of that version gave."""
    path = (
        Path(__file__).parent / "checkpoints" / "painn" / "model-v1_trainer-v1.ckpt.gz"
    )
    with gzip.open(path) as file:
        checkpoint = torch.load(file, weights_only=False)
    model = DualForce.load_checkpoint(
        DualForce.upgrade_checkpoint(checkpoint), "export"
    )
    model.network_to(torch.device("cpu"), torch.float64)
    water = Atoms("OH2", [[0, 0, 0], [0.8, 0.6, 0], [-0.8, 0.6, 0.1]])
    assert energy_of(model, water) == pytest.approx(-2080.960344601286, abs=1e-9)


def test_models_of_version_3_keep_their_direct_forces() -> None:
    """Those of `ace` were made of vectors of atoms; one that has none gets new ones."""
    for backbone, forces, n_channels in (
        ("ace", "hybrid", 0),
        ("ace", "conservative", 16),
        ("painn", "hybrid", 16),
    ):
        path = Path(__file__).parent / "checkpoints" / backbone
        with gzip.open(path / "model-v3_trainer-v5.ckpt.gz") as file:
            checkpoint = torch.load(file, weights_only=False)
        hypers = checkpoint["model_data"]["model_hypers"]
        assert "n_force_channels" not in hypers["ace"]
        hypers["forces"] = forces
        checkpoint = DualForce.upgrade_checkpoint(checkpoint)
        model = DualForce.load_checkpoint(checkpoint, "export")
        assert model.hypers["ace"]["n_force_channels"] == n_channels
        assert model.hypers["ace"]["n_tensor_channels"] == 0


@pytest.mark.parametrize("backbone", ["painn", "pet", "soap_bpnn"])
def test_models_of_version_2_go_on(backbone: str) -> None:
    """They know no `ace`, and training goes on with the options of today."""
    path = Path(__file__).parent / "checkpoints" / backbone
    with gzip.open(path / "model-v2_trainer-v3.ckpt.gz") as file:
        checkpoint = torch.load(file, weights_only=False)
    assert "ace" not in checkpoint["model_data"]["model_hypers"]
    checkpoint = DualForce.upgrade_checkpoint(checkpoint)
    model = DualForce.load_checkpoint(checkpoint, "restart")
    defaults = get_default_hypers(NAME)["model"]
    assert model.hypers["ace"] == defaults["ace"]
    today = {**model.hypers, "ace": defaults["ace"]}
    assert model.restart(model.dataset_info, today) is model
