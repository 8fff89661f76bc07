"""Several data sets at once, each with its own variant of the energy."""

from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import pytest
import torch
from ase import Atoms
from potentials import LennardJones
from train_helpers import PAINN, options, run_cli, write

from dualforce.forces import load_forces
from dualforce.training.batches import StepFrames
from dualforce.training.stages import Stage
from dualforce.training.trainer import Trainer


FACTORS = {"a": 1.0, "b": 2.0}
"""Energies and forces of the variants, in those of the potential."""


def _cubes(seeds: range) -> List[Atoms]:
    """Eight atoms at the corners of a cube, displaced, with their potential."""
    corners = 2.1 * np.array(list(np.ndindex(2, 2, 2)), dtype=float)
    cubes = []
    for seed in seeds:
        cube = Atoms("He8", corners)
        cube.rattle(0.12, seed=seed)
        cube.calc = LennardJones(epsilon=0.1, sigma=1.85, cutoff=4.0)
        cubes.append(cube)
    return cubes


def _labelled(seeds: range, factor: float) -> List[Atoms]:
    frames = []
    for cube in _cubes(seeds):
        frame = Atoms(cube.numbers, cube.positions)
        frame.info["energy"] = factor * cube.get_potential_energy()
        frame.arrays["forces"] = factor * cube.get_forces()
        frames.append(frame)
    return frames


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Tuple[Trainer, Path]:
    """A trainer at the end of its run, and the exported model."""
    folder = tmp_path_factory.mktemp("sets")
    entries = []
    for number, (variant, factor) in enumerate(FACTORS.items()):
        seeds = range(24 * number, 24 * (number + 1))
        path = write(folder / f"{variant}.xyz", _labelled(seeds, factor))
        target = {"quantity": "energy", "unit": "eV", "key": "energy"}
        entries.append(
            {
                "systems": {"read_from": str(path), "length_unit": "angstrom"},
                "targets": {f"energy/{variant}": target},
            }
        )
    given = options(
        folder,
        {"num_epochs": 30, "batch_size": 4, "learning_rate": 0.02},
        {"pair_potential": False, "painn": {**PAINN, "cutoff": 4.0, "n_radial": 8}},
        training_set=entries,
        validation_set=0.1,
    )
    trainers: List[Trainer] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "after_training", [trainers.append])
        run_cli(folder, given, output="model.pt")
    return trainers[0], folder / "model.pt"


def test_frames_know_their_set(trained: Tuple[Trainer, Path]) -> None:
    """By which sampling weights find them."""
    for frame in trained[0].train_frames:
        assert f"energy/{list(FACTORS)[frame.source]}" in frame.labels


@pytest.fixture(autouse=True)
def no_compilation() -> Iterator[None]:
    """Compiling takes longer than running."""
    with torch.jit.optimized_execution(False):
        yield


def test_each_variant_learns_from_its_own_set(trained: Tuple[Trainer, Path]) -> None:
    """Forces of new structures are those of the potential, times the factor of the
    variant."""
    for variant, factor in FACTORS.items():
        model = load_forces(trained[1], variant=variant)
        true, predicted = [], []
        for cube in _cubes(range(100, 106)):
            true.append(cube.get_forces())
            predicted.append([one.forces for one in model.both(Atoms(cube))])
        labels = np.array(true).ravel()
        for kind in np.array(predicted).swapaxes(0, 1):
            slope = kind.ravel() @ labels / (labels @ labels)
            error = kind.ravel() - factor * labels
            assert slope == pytest.approx(factor, rel=0.2)
            assert error.std() < 0.15 * factor * labels.std()


def test_loss_of_a_frame_is_that_of_its_variant(trained: Tuple[Trainer, Path]) -> None:
    """A frame has no part in heads and loss of another variant, and the loss of both
    together is the sum."""
    trainer, _ = trained
    frames: Dict[str, List[Any]] = {
        variant: [f for f in trainer.train_frames if f"energy/{variant}" in f.labels]
        for variant in FACTORS
    }
    stage = Stage("test", 1, None, 0.0, 1.0)
    trainer.optimizer.step = lambda: None  # type: ignore[method-assign]
    parameters = dict(trainer.model.backbone.named_parameters())

    def loss_of(chosen: List[Any]) -> float:
        step = StepFrames.of(chosen, [term.name for term in trainer.terms])
        return float(trainer._step(step, stage, trainer.terms))

    alone = {}
    for variant, other in (("a", "b"), ("b", "a")):
        alone[variant] = loss_of(frames[variant][:2])
        heads = [name for name in parameters if f"/{other}." in name]
        assert heads
        for name in heads:
            gradient = parameters[name].grad
            assert gradient is not None and not gradient.any(), name
    both = loss_of(frames["a"][:2] + frames["b"][:2])
    assert both == pytest.approx(alone["a"] + alone["b"], rel=1e-6)
