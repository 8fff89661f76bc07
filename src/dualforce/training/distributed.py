"""Several processes that train one model.

Every process holds all frames, or reads its share, and evaluates its share of each
batch. Gradients are summed over processes before the optimiser acts; losses are divided
by what the whole batch contains, so several processes compute what one process would.
"""

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, List

import torch
import torch.distributed as dist
from metatrain.utils.distributed.slurm import (
    DistributedEnvironment,
    resolve_distributed,
)
from torch import Tensor


PATIENCE = 300.0
"""Seconds that a process waits for the others at the start."""

SLURM_VARIABLES = (
    "SLURM_JOB_NODELIST",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
)
"""What tells the processes of a SLURM job about each other."""


@dataclass(frozen=True)
class Processes:
    """The processes of a training.

    :param rank: number of this process.
    :param size: number of processes.
    :param device: device of this process.
    """

    rank: int
    size: int
    device: torch.device

    def share(self, items: List[Any], from_last: bool = False) -> List[Any]:
        """The items this process works on.

        :param items: the items of all processes.
        :param from_last: deal out from the last process to the first, to even out what
            was dealt from the first to the last.
        """
        first = self.size - 1 - self.rank if from_last else self.rank
        return items[first :: self.size]

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Sum tensors over all processes, in place.

        :param tensors: all on the host, or all on the device of the process.
        """
        if self.size == 1:
            return
        tensors = list(tensors)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        self._together(lambda: dist.all_reduce(flat))
        start = 0
        for tensor in tensors:
            stop = start + tensor.numel()
            tensor.copy_(flat[start:stop].reshape(tensor.shape))
            start = stop

    def broadcast(self, value: float) -> float:
        """The value of the first process, for decisions that depend on the clock."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        self._together(lambda: dist.broadcast(shared, 0))
        return float(shared)

    def _together(self, act: Callable[[], Any]) -> None:
        """Do what all processes take part in.

        :raises ValueError: if one of them has ended.
        """
        try:
            act()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"process {self.rank} of {self.size} lost another one, which has "
                f"ended or cannot be reached ({reason}). Its own message says why; go "
                "on from the last checkpoint with `--restart`"
            ) from error

    def close(self) -> None:
        """End the group of processes."""
        if self.size > 1:
            dist.destroy_process_group()


def check_distributed(hypers: Mapping[str, Any]) -> bool:
    """Whether several processes train, checked before data are read.

    :param hypers: training options.
    :raises ValueError: if ``distributed`` is on where nothing tells the processes about
        each other.
    """
    if not resolve_distributed(hypers.get("distributed")):
        return False
    missing = [name for name in SLURM_VARIABLES if name not in os.environ]
    if missing:
        raise ValueError(
            f"several processes train in SLURM jobs only, and {missing[0]} is not set. "
            "Start `mtt train` with srun, or leave `distributed` out"
        )
    return True


def _meet(environment: DistributedEnvironment) -> Any:
    """Wait until all processes are there.

    :return: the store in which they meet, for ``init_process_group``.
    :raises ValueError: if they do not come.
    """
    others = environment.world_size - 1
    hint = "start all of them with srun, or set `distributed: false` to train in one"
    logging.info(
        f"Waiting for {others} more processes (SLURM_NTASKS is "
        f"{environment.world_size}), {PATIENCE:.0f} s at most; if they do not come, "
        f"{hint}"
    )
    try:
        return dist.TCPStore(  # type: ignore[attr-defined]
            environment.master_addr,
            int(environment.master_port),
            environment.world_size,
            is_master=environment.rank == 0,
            timeout=timedelta(seconds=PATIENCE),
        )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"the {environment.world_size} processes that SLURM_NTASKS tells of did "
            f"not meet at {environment.master_addr}:{environment.master_port} within "
            f"{PATIENCE:.0f} s ({reason}); {hint}"
        ) from error


def start_processes(
    hypers: Mapping[str, Any], devices: List[torch.device]
) -> Processes:
    """Join the group of processes, if there is one.

    :param hypers: training options.
    :param devices: devices that metatrain chose.
    :raises ValueError: if the other processes do not come.
    """
    if not check_distributed(hypers):
        return Processes(rank=0, size=1, device=devices[0])
    # Functions there have the group as a default: imported later, they keep it and its
    # threads, which now and then abort the process when it exits.
    import torch.distributed.nn  # noqa: F401

    environment = DistributedEnvironment(hypers["distributed_port"])
    rank, size = environment.rank, environment.world_size
    store = _meet(environment)
    if devices[0].type != "cuda":
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
        return Processes(rank=rank, size=size, device=devices[0])
    # As in metatrain: tasks see all devices of a node, or their own alone.
    number = environment.local_rank % torch.cuda.device_count()
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    # What lies on the host is exchanged there, so that nothing waits for the device.
    dist.init_process_group(
        "cpu:gloo,cuda:nccl", store=store, rank=rank, world_size=size, device_id=device
    )
    return Processes(rank=rank, size=size, device=device)
