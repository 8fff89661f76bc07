"""Several processes train what one would."""

import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from omegaconf import OmegaConf
from train_helpers import (
    clusters,
    message_of,
    on_disk,
    options,
    read_rows,
    run_cli,
    train,
    write,
)

from dualforce.training import distributed
from dualforce.training import trainer as trainer_module
from dualforce.training.distributed import Processes


WORKER = """
import sys
from pathlib import Path
import torch
from train_helpers import options, train
torch.set_num_threads(1)
data, directory, port, fraction, weight_decay, atoms, size = sys.argv[1:]
training = dict(batch_size=4 // int(size), max_atoms_per_batch=int(atoms) or None,
                num_epochs=3, max_memory=0.0,
                conservative_fraction=float(fraction),
                distributed_port=int(port), weight_decay=float(weight_decay))
model, trainer = train(options(Path(data), training), Path(directory))
assert trainer.processes.size == int(size)
threads = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
assert not [name for name in threads if "gloo" in name], threads
torch.save(model.state_dict(), Path(directory) / f"{trainer.processes.rank}.weights")
torch.save(trainer.best_state, Path(directory) / f"{trainer.processes.rank}.best")
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def _environment(rank: int, size: int = 2) -> Dict[str, str]:
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "SLURM_JOB_ID": "1",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NTASKS": str(size),
        "SLURM_JOB_NODELIST": "localhost",
    }


def _start(command: List[str], directory: Path, size: int) -> List[Any]:
    return [
        subprocess.Popen(
            command,
            cwd=directory,
            env=_environment(rank, size),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in range(size)
    ]


def _logs_of(processes: List[Any]) -> List[str]:
    try:
        return [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()


def _run_all(command: List[str], directory: Path, size: int = 2) -> None:
    processes = _start(command, directory, size)
    for process, log in zip(processes, _logs_of(processes), strict=True):
        assert process.returncode == 0, log


@pytest.mark.parametrize(
    "fraction, weight_decay, atoms, streamed, size",
    [
        (0.5, 0.0, 0, False, 2),
        (0.25, 0.1, 0, False, 2),
        (1.0, 0.0, 12, False, 2),
        (0.5, 0.0, 0, True, 2),
        (0.5, 0.0, 0, True, 4),
    ],
)
def test_several_processes_equal_one(
    fraction: float,
    weight_decay: float,
    atoms: int,
    streamed: bool,
    size: int,
    tmp_path: Path,
) -> None:
    """Seven frames of six atoms, so that the last batch is short; one frame lacks
    forces. Where frames are read from disk, the one process holds them in memory."""
    frames = clusters(7)
    del frames[2].arrays["forces"]
    path = write(tmp_path / "water.xyz", frames)
    if streamed:
        path = on_disk(tmp_path / "water.zip", frames)
    training = {
        "batch_size": 4,
        "max_atoms_per_batch": 2 * atoms or None,
        "num_epochs": 3,
        "conservative_fraction": fraction,
        "weight_decay": weight_decay,
    }
    model, trainer = train(options(path, training), tmp_path)
    numbers = [_free_port(), fraction, weight_decay, atoms, size]
    arguments = [str(path), str(tmp_path), *map(str, numbers)]
    _run_all([sys.executable, "-c", WORKER, *arguments], tmp_path, size)
    assert trainer.best_state is not None
    for kind, single in (
        ("weights", model.state_dict()),
        ("best", trainer.best_state),
    ):
        for rank in range(size):
            several = torch.load(tmp_path / f"{rank}.{kind}")
            for name, value in single.items():
                torch.testing.assert_close(several[name], value, rtol=0, atol=1e-10)


def test_command_line_in_a_slurm_job(tmp_path: Path) -> None:
    """Also with a limit of time, on which the processes must agree."""
    path = write(tmp_path / "water.xyz", clusters(8))
    training = {
        "num_epochs": 3,
        "max_minutes": 10.0,
        "distributed_port": _free_port(),
    }
    OmegaConf.save(OmegaConf.create(options(path, training)), tmp_path / "options.yaml")
    _run_all([sys.executable, "-m", "metatrain", "train", "options.yaml"], tmp_path)
    (table,) = tmp_path.glob("outputs/*/*/train.csv")
    assert [row["Epoch"] for row in read_rows(table)] == ["0", "1", "2"]
    assert (tmp_path / "model.pt").exists()


BAD_WORKER = """
import sys
from pathlib import Path
from train_helpers import options, train
from dualforce.training.trainer import Trainer
step = Trainer._step
def fails(self, *arguments):
    if self.processes.rank == 1 and self.progress.steps_in_stage == 2:
        raise ValueError("this frame is bad")
    return step(self, *arguments)
Trainer._step = fails
data, directory, port = sys.argv[1:]
training = dict(batch_size=1, num_epochs=50, distributed_port=int(port))
train(options(Path(data), training), Path(directory))
"""


def test_one_process_that_fails(tmp_path: Path) -> None:
    """It says why, and the others end with a message instead of waiting."""
    path = write(tmp_path / "water.xyz", clusters(8))
    arguments = [str(path), str(tmp_path), str(_free_port())]
    processes = _start([sys.executable, "-c", BAD_WORKER, *arguments], tmp_path, 2)
    logs = _logs_of(processes)
    assert [process.returncode for process in processes] == [1, 1]
    assert "process 0 of 2 lost another one, which has ended" in logs[0]
    assert "ValueError: this frame is bad" in logs[1]


def test_torchrun(tmp_path: Path) -> None:
    """The command of the documentation."""
    page = Path(__file__).parents[1] / "docs" / "processes.md"
    command = "torchrun" + page.read_text().split("    torchrun")[1].split("\n\n")[0]
    command = command.replace("--nproc-per-node 4", "--nproc-per-node 2")
    path = write(tmp_path / "water.xyz", clusters(8))
    training = {"num_epochs": 2, "distributed_port": _free_port()}
    OmegaConf.save(OmegaConf.create(options(path, training)), tmp_path / "options.yaml")
    environment = {k: v for k, v in _environment(0).items() if "SLURM" not in k}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=environment,
        text=True,
        capture_output=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (log,) = tmp_path.glob("outputs/*/*/train.log")
    lines = log.read_text()
    assert "Training with 2 process(es)" in lines and "Epoch 1 |" in lines, done.stderr
    assert "Error" not in lines


def test_more_processes_than_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some would never have anything to do."""
    path = write(tmp_path / "water.xyz", clusters(4))
    monkeypatch.setattr(
        trainer_module,
        "start_processes",
        lambda *_: Processes(0, 3, torch.device("cpu")),
    )
    monkeypatch.setattr(Processes, "close", lambda _: None)
    monkeypatch.setattr(Processes, "broadcast", lambda _, value: value)
    message = message_of(lambda: train(options(path), tmp_path))
    assert (
        "3 processes train, and an epoch has 2 batches (4 frames): use no more "
        "processes than that, or smaller batches"
    ) in message


def test_process_that_waits_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Within an allocation of several tasks, without srun: it says for what it waits,
    and does not wait for ever."""
    for name, value in _environment(0).items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")  # metatrain sets them; this restores them
    monkeypatch.setattr(distributed, "PATIENCE", 2.0)
    path = write(tmp_path / "water.xyz", clusters(4))
    given = options(path, {"distributed_port": _free_port()})
    start = time.monotonic()
    with caplog.at_level(logging.INFO):
        message = message_of(lambda: train(given, tmp_path))
    assert time.monotonic() - start < 60.0
    assert (
        "Waiting for 1 more processes (SLURM_NTASKS is 2), 2 s at most" in caplog.text
    )
    assert "start all of them with srun, or set `distributed: false`" in caplog.text
    assert "the 2 processes that SLURM_NTASKS tells of did not meet at" in message
    assert "start all of them with srun, or set `distributed: false`" in message


def test_distributed_outside_a_job(tmp_path: Path) -> None:
    """The option names what is missing, before data are read."""
    given = options(tmp_path / "none.xyz", {"distributed": True})
    message = message_of(lambda: run_cli(tmp_path, given))
    assert "several processes train in SLURM jobs only, and SLURM_" in message


def test_share_deals_out_everything_evenly() -> None:
    """Each item goes to one process."""
    items = list(range(7))
    for from_last in (False, True):
        shares = [
            Processes(rank, 3, torch.device("cpu")).share(items, from_last)
            for rank in range(3)
        ]
        assert sorted(sum(shares, [])) == items
        assert sorted(map(len, shares)) == [2, 2, 3]
    one = Processes(0, 3, torch.device("cpu"))
    assert len(one.share([0])) == 1
    assert one.share([0], from_last=True) == []
