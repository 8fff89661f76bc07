"""Runs that are killed and go on."""

import re
import shutil
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import ase.io
import pytest
import torch
from ase import Atoms
from omegaconf import OmegaConf
from train_helpers import (
    CPU,
    WATER,
    clusters,
    message_of,
    mtt,
    options,
    prepare,
    read_rows,
    run_cli,
    write,
)

from dualforce.training.model import DualForce
from dualforce.training.trainer import Trainer


EPOCHS = [5, 12]


def _options(data: Path) -> Dict[str, Any]:
    stages = [
        {"num_epochs": EPOCHS[0], "conservative_fraction": 0.0},
        {"num_epochs": EPOCHS[1]},
    ]
    return options(data, {"stages": stages, "batch_size": 4})


def _rows(directory: Path) -> Dict[int, Dict[str, str]]:
    """Rows of all runs in a directory; an epoch done twice must read the same."""
    rows: Dict[int, Dict[str, str]] = {}
    for path in sorted(directory.glob("outputs/*/*/train.csv")):
        for row in read_rows(path):
            number = int(row["Epoch"])
            assert rows.setdefault(number, row) == row
    return rows


def _write_inputs(directory: Path) -> Path:
    directory.mkdir()
    path = write(directory / "water.xyz", clusters(24, n_molecules=4))
    OmegaConf.save(OmegaConf.create(_options(path)), directory / "options.yaml")
    return directory


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Dict[int, Dict[str, str]]:
    """Rows of a run that nobody disturbed."""
    directory = _write_inputs(tmp_path_factory.mktemp("runs") / "unbroken")
    process = mtt(directory, "train", "options.yaml")
    log, _ = process.communicate(timeout=120)
    assert process.returncode == 0, log
    rows = _rows(directory)
    assert sorted(rows) == list(range(sum(EPOCHS)))
    return rows


def _kill_at(directory: Path, sign: str, delay: float) -> None:
    """Start a run and kill it once it has logged something, and a moment later."""
    process = mtt(directory, "train", "options.yaml")
    assert process.stdout is not None
    for line in process.stdout:
        if sign in line:
            break
    time.sleep(delay)
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    "sign, delay",
    [
        ("Calling trainer", 0.0),
        ("Epoch 1 |", 0.03),
        ("stage 2/2", 0.02),
    ],
    ids=["before the first checkpoint", "in stage 1", "in stage 2"],
)
def test_killed_run_goes_on(
    sign: str, delay: float, unbroken: Dict[int, Dict[str, str]], tmp_path: Path
) -> None:
    """Errors of every epoch are those of the unbroken run, digit for digit."""
    directory = _write_inputs(tmp_path / "killed")
    _kill_at(directory, sign, delay)
    before = _rows(directory)
    assert len(before) < len(unbroken)
    process = mtt(directory, "train", "options.yaml", "--restart", "auto")
    log, _ = process.communicate(timeout=120)
    assert process.returncode == 0, log
    assert _rows(directory) == unbroken


def test_checkpoint_is_whole_or_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that dies while it writes leaves the checkpoint before."""
    path = write(tmp_path / "water.xyz", clusters(4))
    model, trainer, dataset = prepare(options(path, {"num_epochs": 3}))
    write_bytes = Path.write_bytes

    def die(target: Path, content: Any) -> None:
        if trainer.progress.epoch == 2:
            write_bytes(target, b"half")
            raise KeyboardInterrupt
        write_bytes(target, content)

    monkeypatch.setattr(Path, "write_bytes", die)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(model, torch.float64, CPU, [dataset], [dataset], str(tmp_path))
    assert [p.name for p in tmp_path.glob("*.ckpt")] == ["checkpoint.ckpt"]
    loaded = torch.load(tmp_path / "checkpoint.ckpt", weights_only=False)
    assert loaded["epoch"] == 1


def test_finished_run_is_not_trained_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A restart at the end changes nothing, and says that there was nothing to do."""
    path = write(tmp_path / "water.xyz", clusters(4))
    run_cli(tmp_path, options(path), output=tmp_path / "first.pt")
    run_cli(
        tmp_path,
        options(path),
        output=tmp_path / "second.pt",
        restart_from=str(tmp_path / "first.ckpt"),
    )
    assert "This run ended after epoch 1; nothing is left to train" in caplog.text
    first, second = (
        torch.load(tmp_path / f"{name}.ckpt", weights_only=False)
        for name in ("first", "second")
    )
    for key in ("epoch", "stage", "steps_in_stage", "best_epoch", "best_metric"):
        assert second["progress"][key] == first["progress"][key]
    for key, value in first["best_model_state_dict"].items():
        assert torch.equal(value, second["best_model_state_dict"][key])


def test_restart_with_another_network_is_refused(tmp_path: Path) -> None:
    """Options of the network must be those of the checkpoint."""
    path = write(tmp_path / "water.xyz", clusters(4))
    run_cli(tmp_path, options(path), output=tmp_path / "model.pt")
    given = options(path, model={"painn": {"n_channels": 16}})
    message = message_of(
        lambda: run_cli(tmp_path, given, restart_from=str(tmp_path / "model.ckpt"))
    )
    assert "Mismatched hypers: ['painn']" in message


def _other_structures(frames: List[Atoms]) -> None:
    frames[2].positions[0] += 0.01


def _other_zero(frames: List[Atoms]) -> None:
    for atoms in frames:
        atoms.info["energy"] -= 300.0


def _fewer_frames(frames: List[Atoms]) -> None:
    del frames[6:]


@pytest.mark.parametrize(
    "change, expected",
    [
        (_other_structures, "other structures (8 frames, 8 before)"),
        (_fewer_frames, "other structures (6 frames, 8 before)"),
        (_other_zero, "other labels 'energy' (root mean square 53."),
    ],
)
@pytest.mark.parametrize("split", ["training", "validation"])
def test_restart_with_other_data_is_refused(
    change: Callable[[List[Atoms]], None], expected: str, split: str, tmp_path: Path
) -> None:
    """Of either set; the message says what is different, and what to do."""
    frames = {"training": clusters(8), "validation": clusters(16)[8:]}
    paths = {name: tmp_path / f"{name}.xyz" for name in frames}
    for name, path in paths.items():
        write(path, frames[name])
    validation_set = options(paths["validation"])["training_set"]
    given = options(paths["training"], validation_set=validation_set)
    run_cli(tmp_path, given, output=tmp_path / "model.pt")
    change(frames[split])
    write(paths[split], frames[split])
    message = message_of(
        lambda: run_cli(tmp_path, given, restart_from=str(tmp_path / "model.ckpt"))
    )
    assert f"the {split} set is not the one that the run started with" in message
    assert expected in message
    assert "start a new run with `finetune: {read_from: ...}`" in message


def test_training_that_diverges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It returns to the best weights with half the learning rate, says so, and a
    restart afterwards gives the same."""
    path = write(tmp_path / "water.xyz", ase.io.read(WATER, ":16"))
    given = options(path, {"num_epochs": 6, "learning_rate": 3.0})
    write_checkpoint = Trainer._write_checkpoint

    def keep(trainer: Trainer) -> None:
        write_checkpoint(trainer)
        shutil.copy(trainer.checkpoint_path, tmp_path / f"{trainer.epoch}.ckpt")

    monkeypatch.setattr(Trainer, "_write_checkpoint", keep)
    run_cli(tmp_path, given, output=tmp_path / "model.pt")
    (epoch, best), *_ = re.findall(
        r"has diverged in epoch (\d): .* of epoch (\d), with 50 % of", caplog.text
    )
    kept = torch.load(tmp_path / f"{epoch}.ckpt", weights_only=False)
    assert kept["best_epoch"] == int(best) < int(epoch)
    for name, weights in kept["best_model_state_dict"].items():
        torch.testing.assert_close(kept["model_state_dict"][name], weights)
    assert kept["progress"]["rate_factor"] == 0.5

    again = tmp_path / "again"
    again.mkdir()
    last = str(tmp_path / f"{epoch}.ckpt")
    run_cli(again, given, output=again / "model.pt", restart_from=last)
    first, second = (
        torch.load(folder / "model.ckpt", weights_only=False)["model_state_dict"]
        for folder in (tmp_path, again)
    )
    for name, weights in first.items():
        assert torch.equal(second[name], weights), name


def test_restart_from_an_old_checkpoint_with_another_zero_of_energy(
    tmp_path: Path,
) -> None:
    """Checkpoints that do not say what they were trained on tell by their energies."""
    path = write(tmp_path / "water.xyz", clusters(8))
    run_cli(tmp_path, options(path), output=tmp_path / "model.pt")
    checkpoint = torch.load(tmp_path / "model.ckpt", weights_only=False)
    del checkpoint["data_record"]
    checkpoint["trainer_ckpt_version"] = 2
    torch.save(checkpoint, tmp_path / "old.ckpt")
    more = options(path, {"num_epochs": 3})
    run_cli(tmp_path, more, restart_from=str(tmp_path / "old.ckpt"))

    frames = clusters(8)
    _other_zero(frames)
    write(path, frames)
    message = message_of(
        lambda: run_cli(tmp_path, more, restart_from=str(tmp_path / "old.ckpt"))
    )
    assert "another zero of energy than those the run started with" in message


def test_restart_with_frames_in_another_order(tmp_path: Path) -> None:
    """The same data are the same data."""
    path = write(tmp_path / "water.xyz", clusters(4))
    model, trainer, dataset = prepare(options(path))
    trainer.train(model, torch.float64, CPU, [dataset], [dataset], str(tmp_path))
    again = prepare(options(write(path, clusters(4)[::-1]), {"num_epochs": 3}))
    checkpoint = torch.load(tmp_path / "checkpoint.ckpt", weights_only=False)
    model = DualForce.load_checkpoint(checkpoint, "restart")
    trainer = Trainer.load_checkpoint(checkpoint, again[1].hypers, "restart")
    trainer.train(model, torch.float64, CPU, [again[2]], [again[2]], str(tmp_path))
    assert trainer.progress.epoch == 2


def test_restart_with_another_baseline_is_refused(tmp_path: Path) -> None:
    """It acts when a run starts."""
    path = write(tmp_path / "water.xyz", clusters(4))
    baseline = {"atomic_baseline": {"energy": {1: -1.0, 8: -2.0}}}
    run_cli(tmp_path, options(path, baseline), output=tmp_path / "model.pt")
    restart = {"restart_from": str(tmp_path / "model.ckpt")}
    run_cli(tmp_path, options(path, baseline | {"num_epochs": 3}), **restart)
    message = message_of(
        lambda: run_cli(tmp_path, options(path, {"num_epochs": 3}), **restart)
    )
    assert "`atomic_baseline` is {}, and was {'energy': {1: -1.0, 8: -2.0}}" in message


def test_time_spent_counts_after_a_restart(tmp_path: Path) -> None:
    """A run of 4 s that was stopped after 2 s goes on for about 2 s."""
    path = write(tmp_path / "water.xyz", clusters(4))
    given = options(path, {"num_epochs": None, "max_minutes": 4.0 / 60.0})
    model, trainer, dataset = prepare(given)
    finish = trainer._finish_epoch

    def stop(*arguments: Any) -> None:
        finish(*arguments)
        if trainer.progress.seconds_in_stage > 2.0:
            raise KeyboardInterrupt

    trainer._finish_epoch = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.train(model, torch.float64, CPU, [dataset], [dataset], str(tmp_path))
    checkpoint = torch.load(tmp_path / "checkpoint.ckpt", weights_only=False)
    model = DualForce.load_checkpoint(checkpoint, "restart")
    again = Trainer.load_checkpoint(checkpoint, trainer.hypers, "restart")
    start = time.monotonic()
    again.train(model, torch.float64, CPU, [dataset], [dataset], str(tmp_path))
    assert time.monotonic() - start < 3.5
    assert again.progress.seconds_in_stage >= 4.0
    assert again.progress.epoch > trainer.progress.epoch


def test_full_disk(tmp_path: Path) -> None:
    """The run says so and keeps the checkpoint it had, from which it goes on."""
    resource = pytest.importorskip("resource")
    given = options(write(tmp_path / "water.xyz", clusters(6)), {"num_epochs": 4})
    model, trainer, dataset = prepare(given)
    finish, limits = trainer._finish_epoch, resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(*arguments: Any) -> None:
        if trainer.progress.epoch == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        finish(*arguments)

    trainer._finish_epoch = fill  # type: ignore[method-assign]
    data = ([dataset], [dataset], str(tmp_path))
    try:
        message = message_of(lambda: trainer.train(model, torch.float64, CPU, *data))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "the checkpoint cannot be written (" in message
    assert f"the last checkpoint is {tmp_path / 'checkpoint.ckpt'}" in message
    assert [path.suffix for path in tmp_path.iterdir() if "check" in path.name] == [
        ".ckpt"
    ]
    checkpoint = torch.load(tmp_path / "checkpoint.ckpt", weights_only=False)
    assert checkpoint["epoch"] == 2
