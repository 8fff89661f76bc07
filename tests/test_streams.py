"""Trainings on data that are not held in memory."""

import logging
import multiprocessing
import os
import signal
import sys
import time
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np
import pytest
import torch
from ase import Atoms
from torch.utils.data import Subset
from train_helpers import (
    CPU,
    clusters,
    memory_mapped,
    message_of,
    on_disk,
    options,
    prepare,
    run_cli,
    train,
)

from dualforce.training import streams
from dualforce.training import trainer as trainer_module
from dualforce.training.contents import contents_of, release_pages
from dualforce.training.model import DualForce
from dualforce.training.streams import FrameStream, load_ahead
from dualforce.training.trainer import Trainer


ARRAYS = {"key": "e", "forces": {"key": "f"}, "stress": {"key": "s"}}


def _zip(directory: Path, frames: List[Atoms], **training: Any) -> Dict[str, Any]:
    path = directory / "water.zip"
    if not path.exists():
        on_disk(path, frames)
    return options(path, {"batch_size": 3, **training}, energy={"stress": {}})


def _arrays(directory: Path, frames: List[Atoms], **training: Any) -> Dict[str, Any]:
    path = directory / "water"
    if not path.exists():
        memory_mapped(path, frames)
    return options(path, {"batch_size": 3, **training}, energy=ARRAYS)


def _weights(model: DualForce) -> Dict[str, torch.Tensor]:
    return {k: v for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}


def _mixture() -> List[Atoms]:
    frames = [a for n in (1, 2, 4) for a in clusters(5, n_molecules=n)]
    return [frames[i] for i in np.random.default_rng(1).permutation(len(frames))]


@pytest.mark.parametrize("kind", [_zip, _arrays])
@pytest.mark.parametrize(
    "batches", [{}, {"max_atoms_per_batch": 30, "sampling_weights": [1.4]}]
)
def test_a_stream_trains_the_same(
    kind: Callable[..., Dict[str, Any]], batches: Dict[str, Any], tmp_path: Path
) -> None:
    """Where the sample is all frames, to the last bit."""
    models = []
    for memory in (1.0, 0.0):
        given = kind(tmp_path, _mixture(), max_memory=memory, **batches)
        model, trainer = train(given, tmp_path)
        assert isinstance(trainer.train_frames, FrameStream) == (memory == 0.0)
        models.append(_weights(model))
    for name, value in models[0].items():
        assert torch.equal(value, models[1][name]), name


@pytest.mark.parametrize("kind", [_zip, _arrays])
def test_contents(kind: Callable[..., Dict[str, Any]], tmp_path: Path) -> None:
    """Sizes and elements of the frames, also of a subset."""
    frames = _mixture()
    frames[4].numbers[0] = 118
    frames[7].numbers[1] = 2
    dataset = prepare(kind(tmp_path, frames))[2]
    contents = contents_of(dataset)
    assert contents.sizes.tolist() == [len(atoms) for atoms in frames]
    assert contents.numbers() == [1, 2, 8, 118]
    assert contents.first_with(118, 3).tolist() == [4]
    part = contents_of(Subset(Subset(dataset, [9, 7, 5, 4]), [2, 1]))
    assert part.sizes.tolist() == [len(frames[5]), len(frames[7])]
    assert part.numbers() == [1, 2, 8]


def test_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames from everywhere, and one with each element."""
    frames = clusters(40)
    frames[13].numbers[0] = 2
    model, _, dataset = prepare(_zip(tmp_path, frames))
    monkeypatch.setattr(streams, "SAMPLE_ATOMS", 24)
    monkeypatch.setattr(streams, "EACH_ELEMENT", 2)
    stream = FrameStream([dataset], "training", model)
    found = [int(f.name.split("frame ")[1].split(" ")[0]) for f in stream.sample(False)]
    assert found == [0, 1, 10, 13, 20, 30]


# ------------------------------------------------------------------------- bad input


@pytest.fixture
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample has the first frames alone."""
    monkeypatch.setattr(streams, "SAMPLE_ATOMS", 1)
    monkeypatch.setattr(streams, "EACH_ELEMENT", 10)
    monkeypatch.setattr(streams, "PROBES", 1)


def _go_on(directory: Path, hypers: Any, model: Any, dataset: Any) -> Trainer:
    checkpoint = torch.load(directory / "checkpoint.ckpt", weights_only=False)
    model = DualForce.load_checkpoint(checkpoint, "restart")
    again = Trainer.load_checkpoint(checkpoint, hypers, "restart")
    again.train(model, torch.float64, CPU, [dataset], [dataset], str(directory))
    return again


def test_bad_frame_far_in_the_data(tmp_path: Path, small_sample: None) -> None:
    """It is named when it is reached; what was learnt is kept, and the run goes on with
    the corrected file as if nothing had happened."""
    given = _arrays(tmp_path, clusters(60), max_memory=0.0)
    whole, unbroken = train(given, tmp_path)
    forces = np.fromfile(tmp_path / "water" / "f.bin", np.float32)
    bad = forces.copy()
    bad[3 * 6 * 47 + 4] = np.nan
    bad.tofile(tmp_path / "water" / "f.bin")
    (tmp_path / "checkpoint.ckpt").unlink()
    model, trainer, dataset = prepare(given)
    data = ([dataset], [dataset], str(tmp_path))
    message = message_of(lambda: trainer.train(model, torch.float64, CPU, *data))
    assert f"training set, file '{tmp_path / 'water'}', frame 47 (counted" in message
    assert "the label 'energy_positions_gradients' is NaN or infinite" in message
    assert "the last checkpoint is " in message
    assert trainer.progress.steps_in_stage > 0
    forces.tofile(tmp_path / "water" / "f.bin")
    again = _go_on(tmp_path, trainer.hypers, model, prepare(given)[2])
    for name, value in _weights(whole).items():
        assert torch.equal(value, _weights(again.model)[name]), name


@pytest.mark.parametrize("memory", [0.0, 1.0])
def test_bad_frames_that_are_skipped(
    memory: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are named once and counted, and the run learns from the others."""
    training = {"max_memory": memory, "skip_bad_frames": True, "num_epochs": 2}
    frames = clusters(30)
    frames[17].positions[0] = frames[17].positions[1]
    frames[23].arrays["forces"][0, 1] = np.nan
    with caplog.at_level(logging.WARNING):
        model, trainer = train(_arrays(tmp_path, frames, **training), tmp_path)
    skipped = [r.message for r in caplog.records if "is skipped" in r.message]
    of_training = [message for message in skipped if "training set" in message]
    assert len(of_training) == 2
    assert "frame 17 (counted from 0): atoms 0 and 1" in of_training[0]
    assert "frame 23 (counted from 0): the label" in of_training[1]
    if memory:
        assert "2 of 30 frames of the training set cannot be used" in caplog.text
    reference = tmp_path / "reference"
    reference.mkdir()
    good = [frames[i] for i in range(30) if i not in (17, 23)]
    _, again = train(_arrays(reference, good, max_memory=1.0), reference)
    assert trainer.terms == again.terms
    assert trainer.progress.epoch == 1
    assert all(value.isfinite().all() for value in _weights(model).values())


@pytest.mark.parametrize(
    "kind, name",
    [(_zip, "water.zip"), (_arrays, "water/f.bin"), (_arrays, "water/x.bin")],
)
def test_file_that_is_cut_off(
    kind: Callable[..., Dict[str, Any]], name: str, tmp_path: Path, small_sample: None
) -> None:
    """In the middle of a run: the frame is named, and what was learnt is kept."""
    given = kind(tmp_path, clusters(60), max_memory=0.0)
    model, trainer, dataset = prepare(given)
    path = tmp_path / name
    content = path.read_bytes()
    finish = trainer._finish_epoch

    def cut(*arguments: Any) -> None:
        finish(*arguments)
        with open(path, "r+b") as file:
            file.truncate(len(content) // 2)

    trainer._finish_epoch = cut  # type: ignore[method-assign]
    data = ([dataset], [dataset], str(tmp_path))
    message = message_of(lambda: trainer.train(model, torch.float64, CPU, *data))
    assert f"training set, file '{tmp_path / name.split('/')[0]}', frame " in message
    assert "it cannot be read" in message
    assert "put it back, and go on with `--restart`" in message
    path.write_bytes(content)
    again = _go_on(tmp_path, trainer.hypers, model, prepare(given)[2])
    assert again.progress.epoch == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="has no workers")
def test_process_that_reads_is_killed(
    tmp_path: Path, small_sample: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a system that is short of memory."""
    model, trainer, dataset = prepare(_zip(tmp_path, clusters(60), max_memory=0.0))
    make, own = FrameStream.make, os.getpid()

    def killed(self: FrameStream, index: int) -> Any:
        if os.getpid() != own:
            os.kill(os.getpid(), signal.SIGKILL)
        return make(self, index)

    monkeypatch.setattr(FrameStream, "make", killed)
    data = ([dataset], [dataset], str(tmp_path))
    message = message_of(lambda: trainer.train(model, torch.float64, CPU, *data))
    assert "a process that reads frames ended" in message
    assert "the last checkpoint is " in message


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="has no workers")
def test_process_that_reads_is_killed_while_the_network_trains(tmp_path: Path) -> None:
    """Steps are whole: the run stops where it wants the next frames, and goes on."""
    given = _zip(tmp_path, clusters(60), max_memory=0.0)
    model, trainer, dataset = prepare(given)
    step = trainer._step

    def killing(*arguments: Any) -> Any:
        for worker in multiprocessing.active_children():
            worker.kill()
        time.sleep(0.5)
        return step(*arguments)

    trainer._step = killing  # type: ignore[method-assign]
    data = ([dataset], [dataset], str(tmp_path))
    message = message_of(lambda: trainer.train(model, torch.float64, CPU, *data))
    assert "a process that reads frames ended" in message
    assert trainer.progress.steps_in_epoch > 0
    again = _go_on(tmp_path, trainer.hypers, model, prepare(given)[2])
    assert again.progress.epoch == 1


def _runs(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="has no workers")
def test_workers_end_with_a_killed_training(tmp_path: Path) -> None:
    """At once, also where they wait for their frames to be taken."""
    model, _, dataset = prepare(_zip(tmp_path, clusters(60)))
    stream = FrameStream([dataset], "training", model)
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def training() -> None:
        loaded = load_ahead(stream, [list(range(60))] * 20)  # more than a pipe holds
        next(loaded)
        there.send([child.pid for child in multiprocessing.active_children()])
        time.sleep(60.0)

    process = context.Process(target=training)
    process.start()
    assert here.poll(60.0)
    workers = here.recv()
    assert workers and all(map(_runs, workers))
    process.kill()
    process.join()
    deadline = time.monotonic() + 3.0  # torch's own watch takes five seconds
    while any(map(_runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [worker for worker in workers if _runs(worker)]
    for worker in left:  # which would keep the tests waiting
        os.kill(worker, signal.SIGKILL)
    assert not left


def test_array_of_another_type(tmp_path: Path) -> None:
    """metatrain reads single precision; the same numbers in double are refused."""
    given = _arrays(tmp_path, clusters(6))
    path = tmp_path / "water" / "f.bin"
    np.fromfile(path, np.float32).astype(np.float64).tofile(path)
    message = message_of(lambda: run_cli(tmp_path, given))
    size = 8 * 3 * sum(map(len, clusters(6)))
    assert (
        f"file '{path}' has {size} bytes, but {size // 2} are needed for 6" in message
    )


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_memory_of_mapped_files(tmp_path: Path) -> None:
    """What was read does not stay with the process."""

    def resident(path: Path) -> int:
        maps = Path("/proc/self/smaps").read_text().split(f"{path}\n")[1:]
        return sum(int(part.split("Rss:")[1].split()[0]) for part in maps)

    dataset = prepare(_arrays(tmp_path, 300 * clusters(10)))[2]
    path = (tmp_path / "water" / "x.bin").resolve()
    for index in range(len(dataset)):
        dataset[index]
    assert resident(path) > 0.9 * path.stat().st_size / 1024
    positions = dataset[7]["system"].positions.clone()
    release_pages(dataset)
    assert resident(path) == 0
    assert torch.equal(dataset[7]["system"].positions, positions)


def test_file_that_was_never_whole(tmp_path: Path) -> None:
    """A structure in it that is no structure is named before the training."""
    given = _zip(tmp_path, clusters(6))
    path = tmp_path / "water.zip"
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist()}
    members["4/system.mta"] = members["4/system.mta"][:50]
    with zipfile.ZipFile(path, "w") as new:
        for name, content in members.items():
            new.writestr(name, content)
    message = message_of(lambda: run_cli(tmp_path, given))
    assert f"file '{path}', frame 4 (counted from 0): the structure cannot" in message


def test_labels_beyond_their_bounds(
    tmp_path: Path, small_sample: None, caplog: pytest.LogCaptureFixture
) -> None:
    """A frame with such labels is excluded when it is reached, and reported once."""
    frames = clusters(60)
    frames[47].arrays["forces"][0] = [200.0, 0.0, 0.0]
    given = _zip(tmp_path, frames, max_memory=0.0, num_epochs=3)
    with caplog.at_level(logging.WARNING):
        train(given, tmp_path)
    reports = [r.message for r in caplog.records if "frame 47" in r.message]
    assert sorted(report.split(",")[0] for report in reports) == [
        "training set",
        "validation set",
    ]
    assert "a force of 200 eV/angstrom exceeds `max_force` (50)" in reports[0]


# ------------------------------------------------------------------------ whole runs


def test_command_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mtt train` looks at a sample for its statistics; a restart holds the data in
    memory instead."""
    monkeypatch.setattr("dualforce.training.contents.STATISTICS", 5)
    given = _zip(tmp_path, clusters(30), max_memory=0.0)
    with caplog.at_level(logging.INFO):
        run_cli(tmp_path, given, output=tmp_path / "model.pt")
    assert "Dataset containing 5 structures" in caplog.text
    assert "The 15 frames of the training set would take" in caplog.text
    more = _zip(tmp_path, clusters(30), max_memory=1.0, num_epochs=3)
    run_cli(tmp_path, more, restart_from=str(tmp_path / "model.ckpt"))


def test_kill_within_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes on within the epoch, with the frames that are next."""
    given = _zip(tmp_path, clusters(12), max_memory=0.0)
    whole, _ = train(given, tmp_path)
    monkeypatch.setattr(trainer_module, "CHECKPOINT_SECONDS", 0.0)
    model, trainer, dataset = prepare(given)
    write_within = trainer._write_within_epoch

    def stop(*arguments: Any) -> None:
        write_within(*arguments)
        if trainer.progress.steps_in_stage == 6:
            raise KeyboardInterrupt

    trainer._write_within_epoch = stop  # type: ignore[method-assign]
    data = ([dataset], [dataset], str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        trainer.train(model, torch.float64, CPU, *data)
    again = _go_on(tmp_path, trainer.hypers, model, dataset)
    for name, value in _weights(whole).items():
        assert torch.equal(value, _weights(again.model)[name]), name
