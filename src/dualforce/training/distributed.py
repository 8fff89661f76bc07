"""Several processes that train one model.

Every process holds all frames and takes its share of each batch. Gradients are summed
over processes before the optimiser acts; losses are divided by what the whole batch
contains, so several processes compute what one process would.
"""

from dataclasses import dataclass
from typing import Any, Iterable, List, Mapping

import torch
import torch.distributed as dist
from metatrain.utils.distributed.slurm import (
    DistributedEnvironment,
    initialize_slurm_nccl_process_group,
    resolve_distributed,
)
from torch import Tensor


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
        """Sum tensors over all processes, in place."""
        if self.size == 1:
            return
        tensors = list(tensors)
        # on the device of the process: NCCL sums nothing that lies elsewhere
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).to(self.device)
        dist.all_reduce(flat)
        start = 0
        for tensor in tensors:
            stop = start + tensor.numel()
            tensor.copy_(flat[start:stop].reshape(tensor.shape))
            start = stop

    def agree(self, value: float) -> float:
        """The value of the first process, for decisions that depend on the clock."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return float(shared)

    def close(self) -> None:
        """End the group of processes."""
        if self.size > 1:
            dist.destroy_process_group()


def start_processes(
    hypers: Mapping[str, Any], devices: List[torch.device]
) -> Processes:
    """Join the group of processes, if there is one.

    :param hypers: training options.
    :param devices: devices that metatrain chose.
    """
    if not resolve_distributed(hypers.get("distributed")):
        return Processes(rank=0, size=1, device=devices[0])
    if devices[0].type == "cuda":
        device, size, rank = initialize_slurm_nccl_process_group(
            hypers["distributed_port"]
        )
        return Processes(rank=rank, size=size, device=device)
    DistributedEnvironment(hypers["distributed_port"])
    dist.init_process_group(backend="gloo")
    return Processes(
        rank=dist.get_rank(), size=dist.get_world_size(), device=devices[0]
    )
