"""Batches of frames and of atoms: what is in them, and that runs repeat."""

import itertools
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
import torch
from ase import Atoms
from train_helpers import CPU, clusters, message_of, options, prepare, train, write

from dualforce.training import trainer as trainer_module
from dualforce.training.batches import (
    BatchRule,
    EpochPlan,
    StepFrames,
    draw,
    in_turn,
)
from dualforce.training.data import nothing
from dualforce.training.model import DualForce
from dualforce.training.trainer import Trainer


SIZES = np.random.default_rng(0).choice([3, 15, 96, 192], size=500)

PET = {
    "backbone": "pet",
    "pet": {"d_pet": 8, "d_node": 8, "d_head": 8, "d_feedforward": 8, "num_heads": 2},
}


def _plan(n_processes: int, seed: int, rule: BatchRule) -> EpochPlan:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(SIZES), generator=generator).numpy()
    return EpochPlan(rule, SIZES, order, n_processes)


# --------------------------------------------------------------------------- packing


@pytest.mark.parametrize("max_atoms", [192, 400, 768, 10**6])
def test_greedy_packing(max_atoms: int) -> None:
    """All frames in order; no batch is too large, and none could take one more."""
    batches = BatchRule(4, max_atoms).pack(SIZES)
    assert [place for batch in batches for place in batch] == list(range(len(SIZES)))
    atoms = [int(SIZES[batch.start : batch.stop].sum()) for batch in batches]
    assert max(atoms) <= max_atoms
    for batch, total in zip(batches[:-1], atoms, strict=False):
        assert total + SIZES[batch.stop] > max_atoms


@pytest.mark.parametrize("n_processes", [1, 2, 3, 4])
@pytest.mark.parametrize("rule", [BatchRule(4), BatchRule(4, 768)])
def test_processes_share_an_epoch(rule: BatchRule, n_processes: int) -> None:
    """Each frame once, each process a list in each step, none beyond the limit."""
    plan = _plan(n_processes, 1, rule)
    steps = [plan.shares(step) for step in range(len(plan))]
    frames = [frame for shares in steps for share in shares for frame in share]
    assert sorted(frames) == list(range(len(SIZES)))
    for shares in steps:
        assert len(shares) == n_processes
        assert sum(map(len, shares)) > 0
        taken = [shares[rank][place] for rank, place in in_turn(shares)]
        assert sorted(taken) == sorted(sum(shares, []))
        for share in shares:
            atoms, frames_of_share = int(SIZES[share].sum()), len(share)
            assert atoms <= 768 if rule.max_atoms else frames_of_share <= 4


def test_order_follows_the_seed() -> None:
    """The same seed, the same batches; another one, others, also in composition."""
    rule = BatchRule(4, 768)
    batches = [
        [_plan(1, seed, rule).shares(step)[0] for step in range(30)]
        for seed in (1, 1, 2)
    ]
    assert batches[0] == batches[1]
    assert not {frozenset(b) for b in batches[0]} & {frozenset(b) for b in batches[2]}


def test_processes_take_the_frames_of_one() -> None:
    """With fixed batches, those of one process with larger ones, in its order."""
    one, two = _plan(1, 1, BatchRule(4)), _plan(2, 1, BatchRule(2))
    for step in range(len(one)):
        shares = two.shares(step)
        frames = [shares[rank][place] for rank, place in in_turn(shares)]
        assert frames == one.shares(step)[0]


def test_mean_number_of_atoms() -> None:
    """Rules for learning rate and conservative frames follow it."""
    assert BatchRule(4).atoms_of_step(SIZES, 1) == pytest.approx(4 * SIZES.mean())
    assert BatchRule(2).atoms_of_step(SIZES, 2) == pytest.approx(4 * SIZES.mean())
    plan = _plan(1, 1, BatchRule(4, 768))
    mean = BatchRule(4, 768).atoms_of_step(SIZES, 1)  # in random order
    assert mean == pytest.approx(SIZES.sum() / len(plan), rel=0.02)
    assert 600 < mean < 768


# ------------------------------------------------------------------- sampling weights


def test_weights_of_data_sets() -> None:
    """Over some epochs each frame of a set is taken as often as the weight says, and in
    one epoch no frame of a set more than once more often than another."""
    counts = [40, 30, 20, 1]
    sources = np.repeat(range(4), counts)
    frames = [replace(nothing(""), source=int(source)) for source in sources]
    weights = [1.0, 0.1, 2.5, 0.2]
    generator = torch.Generator().manual_seed(3)
    taken = np.zeros(len(frames))
    for _ in range(200):
        order = draw(frames, weights, generator)
        here = np.bincount(order, minlength=len(frames))
        expected = [40, 3, 50, 1]
        assert np.bincount(sources[order]).tolist() == expected
        assert all(np.ptp(here[sources == source]) <= 1 for source in range(4))
        assert (np.diff(sources[order]) < 0).sum() > 5  # mixed
        taken += here / 200
    assert taken[:40].tolist() == pytest.approx([1.0] * 40)
    assert np.abs(taken[40:70] - 0.1).max() < 5 * (0.1 * 0.9 / 200) ** 0.5
    assert np.abs(taken[70:90] - 2.5).max() < 5 * (0.25 / 200) ** 0.5


def test_a_weight_for_each_data_set(tmp_path: Path) -> None:
    """Else there is no telling which is which."""
    path = write(tmp_path / "water.xyz", clusters(4))
    given = options(path, {"sampling_weights": [1.0, 2.0]})
    message = message_of(lambda: train(given, tmp_path))
    assert "`sampling_weights` has 2 number(s), and `training_set` has 1" in message


# -------------------------------------------------------------------------- trainings


def _weights(model: DualForce) -> Dict[str, torch.Tensor]:
    return {k: v for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}


def _mixture() -> List[Atoms]:
    """Frames of 3 to 12 atoms."""
    frames = [a for n in (1, 2, 4) for a in clusters(6, n_molecules=n)]
    return [frames[i] for i in np.random.default_rng(1).permutation(len(frames))]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_chance_of_a_label(count: int) -> None:
    """It is the share of all choices of frames, counted one by one."""
    elements = torch.tensor([[9, 0], [0, 6], [9, 6], [9, 0], [0, 0]])
    step = StepFrames([None] * 5, ["a", "b"], elements.double())
    choices = list(itertools.combinations(range(4), min(count, 4)))
    for name, own in (("a", {0, 2, 3}), ("b", {1, 2})):
        expected = np.mean([bool(own & set(choice)) for choice in choices])
        found = step.chance(name, ["a", "b"], count)
        assert found == pytest.approx(expected, rel=1e-14)
        assert step.chance(name, [name], count) == 1.0


def test_equal_frames_are_batched_as_by_number(tmp_path: Path) -> None:
    """Then both rules are the same training, to the last bit."""
    path = write(tmp_path / "water.xyz", clusters(7))
    models = [
        train(options(path, {"conservative_fraction": 0.5, **rule}), tmp_path)[0]
        for rule in ({"batch_size": 3}, {"max_atoms_per_batch": 20})
    ]
    for name, value in _weights(models[0]).items():
        assert torch.equal(value, _weights(models[1])[name]), name


def test_defaults_follow_the_atoms_in_a_batch(tmp_path: Path) -> None:
    """Few atoms: all frames conservative and a lower learning rate."""
    path = write(tmp_path / "water.xyz", clusters(40, n_molecules=4))
    for max_atoms, rate, fraction in ((24, 4e-3, 1.0), (240, 1e-2, 0.25)):
        training = {"max_atoms_per_batch": max_atoms, "conservative_fraction": None}
        model, trainer, dataset = prepare(options(path, training))
        trainer._run_stage = lambda *_: None  # type: ignore[method-assign]
        trainer.train(model, torch.float64, CPU, [dataset], [dataset], str(tmp_path))
        (stage,) = trainer._make_stages()
        assert stage.learning_rate == rate
        assert stage.conservative_fraction == fraction


def test_frames_larger_than_a_batch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are named and left out; if no other is left the run is refused."""
    path = write(tmp_path / "water.xyz", _mixture())
    with caplog.at_level(logging.WARNING):
        _, trainer = train(options(path, {"max_atoms_per_batch": 11}), tmp_path)
    assert [len(f) for f in trainer.train_frames if len(f) == 12] == []
    assert len(trainer.train_frames) == 12
    assert (
        "6 of 18 frames of the training set have more atoms than "
        "`max_atoms_per_batch` (11) and are excluded, the first is training set, file"
    ) in caplog.text
    message = message_of(
        lambda: train(options(path, {"max_atoms_per_batch": 2}), tmp_path)
    )
    assert "the smallest has 3; raise the option" in message


# -------------------------------------------------------------- restarts in an epoch


class _Killed(Exception):
    pass


@pytest.mark.parametrize(
    "training, model, steps",
    [
        ({"batch_size": 2}, None, 11),
        ({"max_atoms_per_batch": 24}, None, 8),
        ({"batch_size": 4}, PET, 7),
        ({"batch_size": 2}, None, 27),
    ],
)
def test_restart_within_an_epoch(
    training: Dict[str, Any],
    model: Any,
    steps: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed in the second epoch, or after the last step of the last, it goes on with
    what is next, and ends as if nothing had happened; also where frames are rotated at
    random."""
    path = write(tmp_path / "water.xyz", _mixture())
    given = options(path, {"num_epochs": 3, **training}, model=model)
    unbroken, whole = train(given, tmp_path)

    monkeypatch.setattr(trainer_module, "CHECKPOINT_SECONDS", 0.0)
    network, trainer, dataset = prepare(given)
    write_within = trainer._write_within_epoch

    def stop(*arguments: Any) -> None:
        write_within(*arguments)
        if trainer.progress.steps_in_stage == steps:
            raise _Killed

    trainer._write_within_epoch = stop  # type: ignore[method-assign]
    data = ([dataset], [dataset], str(tmp_path))
    with pytest.raises(_Killed):
        trainer.train(network, torch.float64, CPU, *data)
    checkpoint = torch.load(tmp_path / "checkpoint.ckpt", weights_only=False)
    assert checkpoint["progress"]["steps_in_epoch"] > 0
    network = DualForce.load_checkpoint(checkpoint, "restart")
    again = Trainer.load_checkpoint(checkpoint, trainer.hypers, "restart")
    losses: List[float] = []
    finish = again._finish_epoch

    def note(*arguments: Any) -> None:
        losses.append(arguments[-1])
        finish(*arguments)

    again._finish_epoch = note  # type: ignore[method-assign]
    again.train(network, torch.float64, CPU, *data)
    assert again.progress.steps_in_stage == whole.progress.steps_in_stage
    assert again.progress.best_metric == whole.progress.best_metric
    assert len(losses) == 3 - checkpoint["progress"]["epochs_in_stage"]
    for name, value in _weights(unbroken).items():
        assert torch.equal(value, _weights(network)[name]), name


def test_restart_with_other_batches_begins_the_epoch_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps of the old ones mean nothing then."""
    path = write(tmp_path / "water.xyz", clusters(8))
    monkeypatch.setattr(trainer_module, "CHECKPOINT_SECONDS", 0.0)
    network, trainer, dataset = prepare(options(path, {"num_epochs": 1}))
    trainer._finish_epoch = lambda *_: (_ for _ in ()).throw(_Killed)  # type: ignore
    data = ([dataset], [dataset], str(tmp_path))
    with pytest.raises(_Killed):
        trainer.train(network, torch.float64, CPU, *data)
    checkpoint = torch.load(tmp_path / "checkpoint.ckpt", weights_only=False)
    assert checkpoint["progress"]["steps_in_epoch"] == 4
    network = DualForce.load_checkpoint(checkpoint, "restart")
    hypers = {**trainer.hypers, "batch_size": 1}
    again = Trainer.load_checkpoint(checkpoint, hypers, "restart")
    again.train(network, torch.float64, CPU, *data)
    assert again.progress.steps_in_stage == 4 + 8
