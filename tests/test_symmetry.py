"""The penalty on the curl of direct forces."""

from pathlib import Path

import pytest
import torch
from train_helpers import CPU, clusters, options, prepare_first_step, write

from dualforce.training.batches import StepFrames
from dualforce.training.data import Frame, collate
from dualforce.training.distributed import Processes
from dualforce.training.model import DualForce
from dualforce.training.stages import Stage
from dualforce.training.symmetry import INTERVAL, asymmetry_penalty
from dualforce.training.trainer import Trainer


FORCE = "non_conservative_force"


@pytest.fixture
def ready(tmp_path: Path) -> tuple[DualForce, Trainer]:
    """A small model and its trainer, before the first step."""
    given = options(write(tmp_path / "data.xyz", clusters(4)))
    return prepare_first_step(given)


def _jacobian(model: DualForce, frame: Frame) -> torch.Tensor:
    graph = collate([frame], {FORCE}, torch.float64, CPU[0]).graph

    def forces(flat: torch.Tensor) -> torch.Tensor:
        moved = graph._replace(positions=flat.reshape(-1, 3))
        return model.backbone.predict(moved, [FORCE])[FORCE].reshape(-1)

    return torch.autograd.functional.jacobian(forces, graph.positions.reshape(-1))


def test_penalty_is_that_of_the_whole_jacobian(
    ready: tuple[DualForce, Trainer],
) -> None:
    """Against the Jacobian from 3N backward passes; differences are good to 1e-3."""
    model, trainer = ready
    frame = trainer.train_frames[0]
    jacobian = _jacobian(model, frame)
    direction = torch.randn(frame.positions.shape, dtype=torch.float64)
    expected = (0.5 * (jacobian - jacobian.T) @ direction.reshape(-1)).square().mean()
    penalty = asymmetry_penalty(model.backbone, frame, FORCE, direction)
    assert expected > 1e-6
    assert float(penalty) == pytest.approx(float(expected), rel=3e-3)


def test_steps_along_its_gradient_lower_the_asymmetry(
    ready: tuple[DualForce, Trainer],
) -> None:
    """The share of the antisymmetric part, from the whole Jacobian."""
    model, trainer = ready
    frame = trainer.train_frames[0]

    def share() -> float:
        jacobian = _jacobian(model, frame)
        return float((jacobian - jacobian.T).norm() / (2 * jacobian.norm()))

    before = share()
    optimizer = torch.optim.Adam(model.backbone.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        optimizer.zero_grad()
        direction = torch.randn(
            frame.positions.shape, dtype=torch.float64, generator=generator
        )
        asymmetry_penalty(model.backbone, frame, FORCE, direction).backward()
        optimizer.step()
    assert share() < 0.5 * before


def test_weight_in_the_loss(ready: tuple[DualForce, Trainer], tmp_path: Path) -> None:
    """The loss of a step grows by the weighted penalty, at every fourth step only."""
    model, trainer = ready
    trainer.processes = Processes(rank=0, size=1, device=CPU[0])
    trainer.checkpoint_path = tmp_path / "checkpoint.ckpt"
    trainer.progress.seed = 3
    optimizer = torch.optim.SGD(model.backbone.parameters(), 0.0)
    trainer.optimizer = optimizer
    trainer.average = torch.optim.swa_utils.AveragedModel(model.backbone)
    terms = [term for term in trainer.terms if not term.conservative]
    (term,) = (each for each in terms if each.name == FORCE)
    frames = trainer.train_frames[:2]

    def loss(step: int, weight: float) -> float:
        trainer.progress.steps_in_stage = step
        stage = Stage("test", 1, None, 1e-3, 0.0, jacobian_symmetry=weight)
        taken = StepFrames.of(frames, [term.name for term in trainer.terms])
        return float(trainer._step(taken, stage, terms))

    generator = torch.Generator().manual_seed(3)
    direction = torch.randn(
        frames[-1].positions.shape, dtype=torch.float64, generator=generator
    )
    penalty = float(asymmetry_penalty(model.backbone, frames[-1], FORCE, direction))
    expected = 0.5 * INTERVAL * term.weight * penalty / term.spread**2
    assert loss(0, 0.5) - loss(0, 0.0) == pytest.approx(expected, rel=1e-3)
    assert loss(1, 0.5) == loss(1, 0.0)
