"""The penalty on the difference of both forces beside the data."""

from pathlib import Path
from typing import List

import numpy as np
import pytest
import torch
from train_helpers import CPU, clusters, options, prepare, prepare_first_step, write

from dualforce import MDSettings, RespaVelocityVerlet, load_forces
from dualforce.md.runner import make_run
from dualforce.training.agreement import DISPLACEMENT, displaced, make_comparison
from dualforce.training.batches import StepFrames
from dualforce.training.data import Frame, collate
from dualforce.training.distributed import Processes
from dualforce.training.model import DualForce
from dualforce.training.stages import AGREEMENT_START, Stage
from dualforce.training.targets import FORCES_GRADIENT
from dualforce.training.trainer import Trainer


FORCE = "non_conservative_force"
STEP = 1e-4


@pytest.fixture
def ready(tmp_path: Path) -> tuple[DualForce, Trainer]:
    """A small model and its trainer, before the first step."""
    given = options(write(tmp_path / "data.xyz", clusters(4)))
    model, trainer = prepare_first_step(given)
    trainer.processes = Processes(rank=0, size=1, device=CPU[0])
    trainer.checkpoint_path = tmp_path / "checkpoint.ckpt"
    trainer.progress.seed = 3
    trainer.optimizer = torch.optim.SGD(model.backbone.parameters(), 0.0)
    trainer.average = torch.optim.swa_utils.AveragedModel(model.backbone)
    return model, trainer


def _raw(model: DualForce, frames: List[Frame], name: str) -> torch.Tensor:
    graph = collate(frames, model.per_atom(), torch.float64, CPU[0]).graph
    with torch.no_grad():
        return model.backbone.predict(graph, [name])[name]


def _difference(model: DualForce, frame: Frame) -> torch.Tensor:
    """Conservative minus direct force in eV/Å; the former from central differences."""
    energy, force = (float(model.calibrations[n].scale[0]) for n in ("energy", FORCE))
    conservative = torch.zeros_like(frame.positions)
    for index in range(frame.positions.numel()):
        totals = []
        for sign in (1.0, -1.0):
            positions = frame.positions.clone()
            positions.view(-1)[index] += sign * STEP
            moved = Frame(**{**vars(frame), "positions": positions})
            totals.append(float(_raw(model, [moved], "energy").sum()))
        conservative.view(-1)[index] = -(totals[0] - totals[1]) / (2 * STEP)
    return energy * conservative - force * _raw(model, [frame], FORCE).squeeze(-1)


def _step(trainer: Trainer, stage: Stage, frames: List[Frame]) -> float:
    taken = StepFrames.of(frames, [term.name for term in trainer.terms])
    return float(trainer._step(taken, stage, trainer.terms))


def _stage(weight: float) -> Stage:
    return Stage("test", 1, None, 1e-3, 1.0, force_agreement=weight)


def test_loss_grows_by_the_difference_on_displaced_copies(
    ready: tuple[DualForce, Trainer],
) -> None:
    """Half of four conservative frames are displaced; forces are those of differences
    of the energy."""
    model, trainer = ready
    frames = list(trainer.train_frames)
    (term,) = (t for t in trainer.terms if t.name == "energy" + FORCES_GRADIENT)
    copies = [
        displaced(frame, DISPLACEMENT, 3 * 1_000_003 + place)
        for place, frame in enumerate(frames[:2])
    ]
    differences = torch.cat([_difference(model, copy) for copy in copies])
    errors = differences / (term.scale * term.spread)
    expected = 0.5 * term.weight * float(term.penalty(errors)) / errors.numel()
    assert expected > 1e-3
    found = _step(trainer, _stage(0.5), frames) - _step(trainer, _stage(0.0), frames)
    assert found == pytest.approx(expected, rel=1e-4)


def test_fewer_copies_than_steps_weigh_more(ready: tuple[DualForce, Trainer]) -> None:
    """With one frame in a step and half of them conservative, one step of four has a
    copy, of four times the weight."""
    _, trainer = ready
    added = []
    for number, frame in enumerate(trainer.train_frames):
        trainer.progress.frames_in_stage = number
        losses = [
            _step(
                trainer,
                Stage("test", 1, None, 1e-3, 0.5, force_agreement=weight),
                [frame],
            )
            for weight in (1.0, 0.0)
        ]
        added.append(losses[0] - losses[1])
    assert added[:3] == [0.0, 0.0, 0.0]
    whole = Stage("test", 1, None, 1e-3, 1.0, force_agreement=1.0)
    frames = [trainer.train_frames[3]]
    taken = StepFrames.of(frames, [term.name for term in trainer.terms])
    seed = 3 * 1_000_003 + 3
    comparison = make_comparison(
        trainer.model, taken, [0], trainer.terms, whole.force_agreement, seed
    )
    assert comparison is not None
    predictions, _ = trainer._predict(
        trainer.model.backbone, frames + comparison.copies, trainer.terms, True
    )
    alone = float(comparison.penalty(predictions).detach())
    assert added[3] == pytest.approx(4.0 * alone, rel=1e-6)


def test_training_on_it_brings_both_forces_together(
    ready: tuple[DualForce, Trainer],
) -> None:
    """On structures that were not among the copies."""
    model, trainer = ready
    others = [displaced(f, DISPLACEMENT, 10**6) for f in trainer.train_frames]

    def difference() -> float:
        return float(torch.cat([_difference(model, f) for f in others]).norm())

    before = difference()
    trainer.terms = [
        term
        for term in trainer.terms
        if term.name in ("energy" + FORCES_GRADIENT, FORCE)
    ]
    trainer.optimizer = torch.optim.Adam(model.backbone.parameters(), 3e-3)
    for step in range(40):
        trainer.progress.frames_in_stage = 4 * step
        _step(trainer, _stage(100.0), list(trainer.train_frames))
    assert difference() < 0.5 * before


def test_acts_in_the_second_half_of_a_stage() -> None:
    """Before, the weight is zero; nothing else changes."""
    stage = _stage(0.7)
    assert stage.at(AGREEMENT_START - 0.01).force_agreement == 0.0
    assert stage.at(AGREEMENT_START) == stage


def test_forces_of_different_origin_are_not_compared(
    ready: tuple[DualForce, Trainer],
) -> None:
    """A direct force that is a target of its own has its own labels."""
    model, trainer = ready
    frames = list(trainer.train_frames)
    taken = StepFrames.of(frames, [term.name for term in trainer.terms])
    arguments = (taken, [0, 1], trainer.terms, 1.0, 0)
    assert make_comparison(model, *arguments) is not None
    (energy,) = model.energies
    object.__setattr__(energy, "derived", ())
    assert make_comparison(model, *arguments) is None


@pytest.mark.parametrize("unit", ["eV", "kcal/mol"])
def test_models_know_how_far_their_forces_are_apart(unit: str, tmp_path: Path) -> None:
    """Over the validation set, in eV/Å whatever the unit of the data; the guard of a
    run takes it for usual."""
    path = write(tmp_path / "data.xyz", clusters(4))
    given = options(path, {"num_epochs": 2}, energy={"unit": unit})
    model, trainer, dataset = prepare(given)
    trainer.train(
        model, torch.float64, CPU, [dataset], [dataset], str(tmp_path / "run")
    )
    trainer.best_model().export().save(str(tmp_path / "model.pt"))
    source = load_forces(tmp_path / "model.pt")
    differences = []
    for atoms in clusters(4):
        conservative, direct = source.both(atoms)
        differences.append(conservative.forces - direct.forces)
    expected = np.sqrt(np.mean(np.concatenate(differences) ** 2))
    assert source.usual_correction == pytest.approx(expected, rel=1e-4)
    run = RespaVelocityVerlet(clusters(1)[0], 0.01, source, 2)
    assert run.guard.usual == source.usual_correction
    settings = MDSettings("nve", n_inner=2)
    guard = make_run(clusters(1)[0], source, settings, guard="shorten").guard
    assert guard.shorten and guard.usual == source.usual_correction
    known = make_run(clusters(1)[0], source, settings, usual_correction=0.5).guard
    assert known.usual == 0.5
