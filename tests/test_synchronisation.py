"""A training step on a GPU does not wait for it, but where it has to."""

import warnings
from pathlib import Path

import pytest
import torch
from train_helpers import clusters, options, prepare, write

from dualforce import nn
from dualforce.training import trainer as training
from dualforce.training.batches import StepFrames
from dualforce.training.stages import Stage


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_step_waits_once_outside_the_network(tmp_path: Path) -> None:
    """For the check that loss and gradient are finite, before the optimiser acts on
    them; joining frames, loss, optimiser and average do not wait."""
    path = write(tmp_path / "water.xyz", clusters(8))
    model, trainer, dataset = prepare(options(path), torch.float32)
    device, sets = torch.device("cuda"), [dataset]
    trainer.train(model, torch.float32, [device], sets, sets, str(tmp_path))
    names = [term.name for term in trainer.terms]
    step = StepFrames.of(list(trainer.train_frames[:4]), names)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer._step(step, Stage("test", 1, None, 1e-3, 0.25), trainer.terms)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [w.filename for w in caught if "synchronizing" in str(w.message)]
    network = str(Path(nn.__file__).parent)
    outside = [name for name in waits if not name.startswith(network)]
    assert outside == [training.__file__]
