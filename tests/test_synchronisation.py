"""A training step on a GPU does not wait for it, but where it has to.

Tensors without values (``meta``) stand in for those of a GPU: whatever would have to
wait for a value raises an error.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, Tuple

import pytest
import torch
from train_helpers import clusters, options, prepare, prepare_first_step, write

from dualforce.training import trainer as training
from dualforce.training.agreement import Comparison, make_comparison
from dualforce.training.batches import StepFrames
from dualforce.training.data import Batch, collate
from dualforce.training.loss import errors, predict
from dualforce.training.stages import Stage


META = torch.device("meta")
SMALL = {
    "painn": {"cutoff": 4.0, "n_layers": 2, "n_channels": 8, "n_radial": 4},
    "ace": {"cutoff": 4.0, "n_layers": 2, "n_channels": 8, "n_radial": 4},
}


def _without_values(batch: Batch) -> Batch:
    """A batch whose tensors have no values."""
    labels, rows = (
        {name: values.to(META) for name, values in each.items()}
        for each in (batch.labels, batch.rows)
    )
    graph, n_atoms = batch.graph.to(META), batch.n_atoms.to(META)
    return replace(batch, graph=graph, n_atoms=n_atoms, labels=labels, rows=rows)


def _loss(
    model: Any, batch: Batch, terms: Any, comparison: Comparison
) -> Tuple[torch.Tensor, Dict[str, torch.Tensor]]:
    names = list(dict.fromkeys(term.target for term in terms))
    predictions = predict(
        model.backbone, batch, names, model.per_atom(), model.energies, True
    )
    total = comparison.penalty(predictions)
    for term in terms:
        total = total + term.penalty(errors(term, predictions, batch)).sum()
    return total, predictions


@pytest.mark.parametrize("backbone", ["painn", "ace"])
def test_network_and_loss_ask_for_no_values(backbone: str, tmp_path: Path) -> None:
    """Conservative and direct forces and stresses, both forces beside the data, and the
    gradient of the loss."""
    given = {"backbone": backbone, backbone: SMALL[backbone]}
    path = write(tmp_path / "water.xyz", clusters(3))
    model, trainer = prepare_first_step(options(path, None, given), torch.float32)
    frames, terms = list(trainer.train_frames), trainer.terms
    step = StepFrames.of(frames, [term.name for term in terms])
    comparison = make_comparison(model, step, [0], terms, 1.0, 0)
    assert comparison is not None
    cpu = torch.device("cpu")
    joined = collate(frames + comparison.copies, model.per_atom(), torch.float32, cpu)
    model.backbone.float()
    assert float(_loss(model, joined, terms, comparison)[0].detach()) > 0.0
    model.backbone.to(META)
    batch = _without_values(joined)
    with pytest.raises(RuntimeError, match="meta"):
        bool(batch.graph.positions.sum() > 0.0)
    loss, predictions = _loss(model, batch, terms, comparison)
    loss.backward()
    n_atoms = sum(len(frame) for frame in frames + comparison.copies)
    assert predictions["non_conservative_force"].shape == (n_atoms, 3, 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_step_waits_once(tmp_path: Path) -> None:
    """For the check that loss and gradient are finite, before the optimiser acts on
    them; joining frames, network, loss, optimiser and average do not wait."""
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
    assert waits == [training.__file__]
