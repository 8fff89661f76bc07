"""The potential between pairs of atoms: its fit, its derivatives, and that the network
learns the rest."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Dict, List, Tuple

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from helpers import (
    ENERGY,
    FORCE,
    STRESS,
    energy_info,
    energy_of,
    make_model,
    predict,
    random_cell,
)
from metatomic.torch import NeighborListOptions, System
from metatrain.utils.neighbor_lists import get_system_with_neighbor_lists
from train_helpers import PAINN, options, prepare, train, write

from dualforce.nn.pair_potential import PairPotential
from dualforce.nn.pairs import make_edges
from dualforce.training import pair_fit
from dualforce.training.data import Frame, make_frames
from dualforce.training.fitting import (
    fit_calibration,
    remove_baseline,
    remove_pair_terms,
)
from dualforce.training.pair_fit import polynomials
from dualforce.training.preparation import pairs_may_leave


MOLECULES = Path(__file__).parents[2] / "shared" / "data" / "3bpa-300K.xyz"
CUTOFF = float(PAINN["cutoff"])
WELLS = {("C", "C"): (0.3, 2.28), ("C", "Cl"): (1.0, 2.67), ("Cl", "Cl"): (2.0, 3.0)}
"""Depths and ends, which are within 1.5 sums of the covalent radii (0.76 and 1.02 A)
and within the cutoff."""


def pair_energy(depth: float, end: float, r: Any) -> Any:
    """A well that ends smoothly."""
    inside = np.where(r < end, 1.0 - (r / end) ** 2, 0.0)
    return depth * (np.exp(-2.0 * (r - 1.5)) - 2.0 * np.exp(1.5 - r)) * inside**4


def reference(atoms: Atoms) -> Tuple[float, np.ndarray]:
    """Energy and forces of these wells, the latter by differences along each pair."""
    distances = atoms.get_all_distances(mic=False)
    vectors = atoms.get_all_distances(mic=False, vector=True)
    energy, forces = 0.0, np.zeros((len(atoms), 3))
    symbols = atoms.get_chemical_symbols()
    for i in range(len(atoms)):
        for j in range(i):
            first, second = sorted((symbols[i], symbols[j]))
            well, r, h = WELLS[first, second], distances[i, j], 1e-5
            energy += float(pair_energy(*well, r))
            slope = (pair_energy(*well, r + h) - pair_energy(*well, r - h)) / (2.0 * h)
            forces[i] += slope * vectors[i, j] / r
            forces[j] -= slope * vectors[i, j] / r
    return energy, forces


def wells(n_frames: int, noise: float = 0.0) -> List[Atoms]:
    """Clusters labelled with these wells, or with random numbers."""
    rng = np.random.default_rng(3)
    frames = []
    for seed in range(n_frames):
        atoms = random_cell(12, 5.0, seed, (False, False, False), 0.9)
        atoms.symbols = ["C", "Cl"] * 6
        energy, forces = reference(atoms)
        if noise:
            energy, forces = 0.0, rng.normal(0.0, noise, forces.shape)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        frames.append(atoms)
    return frames


def with_list(frame: Frame, neighbor_list: NeighborListOptions) -> System:
    """A structure of metatomic with a neighbour list."""
    system = System(frame.types.to(torch.int32), frame.positions, frame.cell, frame.pbc)
    return get_system_with_neighbor_lists(system, [neighbor_list])


def fitted(frames: List[Atoms], folder: Path) -> Tuple[Any, List[Frame]]:
    """A model after the fit of everything that is no network, and its frames."""
    model, _, dataset = prepare(options(write(folder / "wells.xyz", frames)))
    made = make_frames([dataset], "training", model, False)
    fit_calibration(model, made, {}, True)
    return model, made


@pytest.fixture
def every_pair_is_a_bond(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters of random distances are fitted as well."""
    monkeypatch.setattr(pair_fit, "MAX_IN_GAP", 1.0)


@pytest.mark.parametrize(
    "distances", [np.linspace(1.6, 3.0, 40), [1.75] * 38 + [2.35, 2.9]]
)
def test_bonds_stand_apart(distances: Sequence[float], tmp_path: Path) -> None:
    """Pairs of elements whose distances go on beyond the end of the potential have
    none, also where few of them are as long."""
    rng, frames = np.random.default_rng(0), []
    for length, distance in zip(rng.normal(1.45, 0.05, 40), distances, strict=True):
        positions = [[0, 0, 0], [length, 0, 0], [0, -distance, 0]]
        atoms = Atoms("CCCl", positions)
        pull = np.array([[1.0, 0, 0], [-1.0, 0, 0], [0, 0, 0]]) * (length - 1.45)
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=pull)
        frames.append(atoms)
    model, _ = fitted(frames, tmp_path)
    assert {ENERGY, FORCE} <= set(model.paired)
    potential = model.pair_potential
    of_pairs = potential.coefficients[0].reshape(3, potential.n_intervals, 4)
    assert of_pairs[potential.pair_index[6, 6]].abs().max() > 0.0
    assert of_pairs[potential.pair_index[6, 17]].abs().max() == 0.0


@pytest.mark.skipif(not MOLECULES.exists(), reason="needs the reference data")
def test_just_outside_of_the_data(tmp_path: Path) -> None:
    """Carbons a little farther apart than any in the data attract each other, less and
    less up to the end of the potential."""
    frames = ase.io.read(MOLECULES, ":450")
    given = options(write(tmp_path / "molecules.xyz", frames))
    given["architecture"]["model"]["pair_potential"] = True
    model, _, dataset = prepare(given)
    made = make_frames([dataset], "training", model, False)
    fit_calibration(model, made, {}, True)
    beyond = torch.linspace(1.65, 2.15, 11, dtype=torch.float64)
    carbon = torch.full((11,), 6)
    slopes = model.pair_potential.pair_energies(ENERGY, carbon, carbon, beyond)[1]
    slopes = 2.0 * slopes  # of the two edges of a pair
    assert slopes.min() > 0.0 and slopes.max() < 10.0
    assert (slopes.diff() < 0.5).all()


@pytest.mark.usefixtures("every_pair_is_a_bond")
def test_potential_is_recovered(tmp_path: Path) -> None:
    """Forces and energy differences that come from pairs leave nothing to learn."""
    model, frames = fitted(wells(60), tmp_path)
    force, energy = f"{ENERGY}_positions_gradients", ENERGY
    rest = remove_baseline(model, frames)
    before = torch.cat([frame.labels[force] for frame in frames]).std()
    after = torch.cat([frame.labels[force] for frame in rest]).std()
    assert after < 0.02 * before
    spread = torch.cat([frame.labels[energy] for frame in frames]).std()
    left = torch.cat([frame.labels[energy] for frame in rest])
    assert left.std() < 0.02 * spread
    # The baseline was fitted after the pairs were taken away.
    assert abs(left.mean()) < 0.02 * spread


def test_noise_gets_no_potential(tmp_path: Path) -> None:
    """What does not predict frames that were not fitted is left out."""
    model, frames = fitted(wells(10, noise=1.0), tmp_path)
    assert model.paired == []
    assert remove_pair_terms(model, frames) is frames


@pytest.mark.parametrize("cutoff", [CUTOFF, 1.4])
def test_repulsion_reaches_beyond_the_network(cutoff: float, tmp_path: Path) -> None:
    """It is taken from labels whether or not the network sees the pairs: those of
    metatrain end at 2.04 A for chlorine."""
    frames = wells(2)
    given = options(write(tmp_path / "wells.xyz", frames))
    network = {**PAINN, "cutoff": cutoff}
    given["architecture"]["model"] = {
        "backbone": "painn",
        "painn": network,
        "zbl": True,
        "pair_potential": False,
    }
    model, _, dataset = prepare(given)
    made = make_frames([dataset], "training", model, False)
    wide = NeighborListOptions(6.0, True, True)
    for frame, rest in zip(made, remove_pair_terms(model, made), strict=True):
        everything = make_edges([with_list(frame, wide)], wide, torch.zeros(99, 99))
        expected = model.repulsion.contribution(ENERGY, "scalar", everything).sum()
        assert expected > 0.1
        removed = frame.labels[ENERGY] - rest.labels[ENERGY]
        torch.testing.assert_close(removed.sum(), expected)


@pytest.mark.usefixtures("every_pair_is_a_bond")
def test_only_bonds(tmp_path: Path) -> None:
    """Forces between atoms farther apart than bonds are left to the network."""
    model, _ = fitted(wells(20), tmp_path)
    distances = torch.tensor([2.0, 2.2], dtype=torch.float64)
    carbon = torch.full((2,), 6)
    near, far = model.pair_potential.pair_energies(ENERGY, carbon, carbon, distances)[0]
    assert near != 0.0
    assert far == 0.0


def test_reach() -> None:
    """It is where the longest of all potentials ends."""
    potential = PairPotential([6, 17], NeighborListOptions(4.0, True, True))
    potential.add([ENERGY])
    assert potential.reach() == 0.0
    of_pairs = potential.coefficients[0].reshape(3, potential.n_intervals, 4)
    of_pairs[0, :12] = 1.0
    of_pairs[2, :25] = 1.0
    assert potential.reach() == pytest.approx(2.5)
    distances = torch.tensor([2.49, 2.51], dtype=torch.float64)
    chlorine = torch.full((2,), 17)
    near, far = potential.pair_energies(ENERGY, chlorine, chlorine, distances)[0]
    assert near != 0.0
    assert far == 0.0


@pytest.mark.usefixtures("every_pair_is_a_bond")
def test_labels_and_model_agree(tmp_path: Path) -> None:
    """What is subtracted from labels is what the model adds to its predictions."""
    model, frames = fitted(wells(20), tmp_path)
    assert {ENERGY, FORCE} <= set(model.paired)
    model.eval()
    with_pairs = [predict(model, atoms, names=[ENERGY, FORCE]) for atoms in wells(2)]
    model.paired = []
    without = [predict(model, atoms, names=[ENERGY, FORCE]) for atoms in wells(2)]
    model.use_pair_potential()
    for index, frame in enumerate(remove_pair_terms(model, frames[:2])):
        for name in (ENERGY, FORCE):
            added = with_pairs[index][name] - without[index][name]
            removed = frames[index].labels[name] - frame.labels[name]
            torch.testing.assert_close(
                added.reshape(-1), removed.reshape(-1), rtol=1e-7, atol=1e-7
            )


def test_two_continuous_derivatives() -> None:
    """At every knot, and at the cutoff, where energy and derivatives are zero."""
    options = NeighborListOptions(CUTOFF, full_list=True, strict=True)
    potential = PairPotential([1, 8], options)
    potential.add([ENERGY])
    rng = np.random.default_rng(0)
    solution = rng.normal(size=(potential.n_pairs, potential.n_intervals))
    potential.coefficients[0] = polynomials(potential, solution)
    knots = potential.spacing * torch.arange(1, potential.n_intervals + 1)
    step = 1e-9
    values = []
    for side in (-step, step):
        r = (knots.double() + side).requires_grad_(True)
        types = torch.full((len(r),), 8)
        energy, slope = potential.pair_energies(ENERGY, types, types, r)
        (derivative,) = torch.autograd.grad(energy.sum(), r, retain_graph=True)
        (second,) = torch.autograd.grad(slope.sum(), r)
        torch.testing.assert_close(derivative, slope)
        values.append(torch.stack([energy, slope, second]).detach())
    torch.testing.assert_close(values[0], values[1], rtol=0.0, atol=1e-4)
    assert values[1][:, -1].abs().max() == 0.0


@pytest.mark.usefixtures("every_pair_is_a_bond")
def test_a_direct_force_alone_has_one(tmp_path: Path) -> None:
    """As it is declared for a student, without an energy."""
    frames = wells(20)
    for atoms in frames:
        atoms.arrays["forces"] = atoms.calc.results["forces"]
        atoms.calc = None
    given = options(write(tmp_path / "wells.xyz", frames))
    force = {
        "key": "forces",
        "type": {"cartesian": {"rank": 1}},
        "sample_kind": "atom",
        "unit": "eV/angstrom",
    }
    given["training_set"]["targets"] = {FORCE: force}
    model, _, dataset = prepare(given)
    made = make_frames([dataset], "training", model, False)
    fit_calibration(model, made, {}, True)
    assert model.paired == [FORCE]
    rest = remove_pair_terms(model, made)
    left = [torch.cat([f.labels[FORCE] for f in each]).std() for each in (made, rest)]
    assert left[1] < 0.1 * left[0]


@pytest.mark.parametrize("backbone", ["painn", "pet", "soap_bpnn"])
def test_new_targets_and_checkpoints(backbone: str) -> None:
    """A checkpoint brings the potentials back, of energies added later as well."""
    model = make_model(backbone)
    model.restart(energy_info(["energy/pbe"]))
    model.network_to(torch.device("cpu"), torch.float64)
    loaded = type(model).load_checkpoint(model.get_checkpoint(), "restart").eval()
    assert set(model.paired) == set(loaded.paired) == {ENERGY, FORCE, STRESS}
    atoms = random_cell()
    assert energy_of(loaded, atoms) == energy_of(model, atoms)


@pytest.mark.usefixtures("every_pair_is_a_bond")
@pytest.mark.parametrize("batch_size, expected", [(2, False), (40, True)])
def test_small_batches_have_none(
    batch_size: int, expected: bool, tmp_path: Path
) -> None:
    """Unless options say so: there are too few distances to learn from."""
    frames = wells(40)
    assert 2 * len(frames[0]) < 200 <= 40 * len(frames[0])
    given = options(
        write(tmp_path / "wells.xyz", frames),
        {"batch_size": batch_size, "num_epochs": 1},
        {"painn": dict(PAINN), "pair_potential": None},
    )
    model, _ = train(given, tmp_path)
    assert bool(model.paired) == expected


def test_students_have_those_of_stiff_bonds(tmp_path: Path) -> None:
    """The forces of a teacher are smoother than splines are."""
    given = options(
        write(tmp_path / "wells.xyz", wells(40)),
        {"batch_size": 40},
        {"painn": dict(PAINN), "pair_potential": None},
    )
    model, trainer, dataset = prepare(given)
    frames = make_frames([dataset], "training", model, False)
    hypers: Dict[str, Any] = dict(trainer.hypers)
    assert pairs_may_leave(model, hypers, frames, 1) == 1.0
    hypers["teacher"] = {**hypers["teacher"], "model": "teacher.pt"}
    assert pairs_may_leave(model, hypers, frames, 1) == 0.6


@pytest.mark.usefixtures("every_pair_is_a_bond")
def test_a_potential_that_leaves_too_much(tmp_path: Path) -> None:
    """It stays zero: wells are fitted to a hundredth, not to a millionth."""
    given = options(write(tmp_path / "wells.xyz", wells(40)))
    for pairs_leave, expected in ((0.1, True), (1e-6, False)):
        model, _, dataset = prepare(given)
        frames = make_frames([dataset], "training", model, False)
        fit_calibration(model, frames, {}, True, pairs_leave)
        assert bool(model.paired) == expected
