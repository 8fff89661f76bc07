"""Which frames each step of an epoch takes, and which process evaluates them.

With ``batch_size`` a batch is so many frames; with ``max_atoms_per_batch`` frames are
packed greedily, in the order of the epoch, as long as their atoms fit. The batches of
all processes are one step of the optimiser.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, List, Optional, Tuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .data import Frame
from .streams import FrameStream


Integers = NDArray[np.int64]


def sizes_of(frames: Sequence[Frame]) -> Integers:
    """Atoms of each frame, shape ``[n_frames]``.

    :param frames: the frames.
    """
    if isinstance(frames, FrameStream):
        return frames.sizes
    return np.array([len(frame) for frame in frames], dtype=np.int64)


def check_weights(weights: Optional[Sequence[float]], n_sets: int) -> None:
    """See that there is a weight for each data set.

    :param weights: as of :func:`draw`.
    :param n_sets: number of data sets.
    :raises ValueError: if there is not.
    """
    if weights is not None and len(weights) != n_sets:
        raise ValueError(
            f"`sampling_weights` has {len(weights)} number(s), and `training_set` has "
            f"{n_sets} data set(s): give one for each"
        )


def draw(
    frames: Sequence[Frame],
    weights: Optional[Sequence[float]],
    generator: torch.Generator,
) -> Integers:
    """Frames that an epoch takes, in random order.

    :param frames: all frames.
    :param weights: how often frames of each data set are taken, on average; no frame of
        a set is taken more than once more often than another. By default once.
    :param generator: random numbers of the epoch.
    :return: their indices, shape ``[n_taken]``.
    """
    if weights is None:
        return torch.randperm(len(frames), generator=generator).numpy()
    if isinstance(frames, FrameStream):
        sources = frames.sources
    else:
        sources = np.array([frame.source for frame in frames])
    taken: List[Integers] = []
    for number, weight in enumerate(weights):
        own = np.flatnonzero(sources == number)
        count = round(weight * len(own)) or min(1, len(own))
        whole, rest = divmod(count, max(1, len(own)))
        some = torch.randperm(len(own), generator=generator)[:rest].numpy()
        taken += [np.tile(own, whole), own[some]]
    joined = np.concatenate(taken)
    return joined[torch.randperm(len(joined), generator=generator).numpy()]


def sizes_in_epoch(
    frames: Sequence[Frame], weights: Optional[Sequence[float]]
) -> Integers:
    """Atoms of the frames of an epoch, in random order; about the same in all epochs.

    :param frames: all frames.
    :param weights: as of :func:`draw`.
    """
    generator = torch.Generator().manual_seed(0)
    return sizes_of(frames)[draw(frames, weights, generator)]


@dataclass(frozen=True)
class BatchRule:
    """How frames are put into batches.

    :param batch_size: frames in a batch.
    :param max_atoms: most atoms in a batch; then ``batch_size`` does not count.
    """

    batch_size: int
    max_atoms: Optional[int] = None

    @classmethod
    def of(cls, hypers: Mapping[str, Any]) -> "BatchRule":
        """The rule that training options describe.

        :param hypers: training options.
        """
        return cls(hypers["batch_size"], hypers["max_atoms_per_batch"])

    def fits(self, n_atoms: int) -> bool:
        """Whether a frame of so many atoms fits into a batch."""
        return self.max_atoms is None or n_atoms <= self.max_atoms

    def pack(self, sizes: Integers) -> List[range]:
        """Batches of consecutive frames.

        :param sizes: atoms of each frame, all of which fit.
        :return: positions of the frames of each batch.
        """
        if self.max_atoms is None:
            stops = range(
                self.batch_size, len(sizes) + self.batch_size, self.batch_size
            )
            return [range(s - self.batch_size, min(s, len(sizes))) for s in stops]
        ends = np.cumsum(sizes)
        batches, start = [], 0
        while start < len(sizes):
            before = int(ends[start - 1]) if start else 0
            stop = int(np.searchsorted(ends, before + self.max_atoms, side="right"))
            batches.append(range(start, stop))
            start = stop
        return batches

    def atoms_of_step(self, sizes: Integers, n_processes: int) -> float:
        """Atoms in the batches of all processes together, on average.

        :param sizes: see :func:`sizes_in_epoch`.
        :param n_processes: number of processes.
        """
        if self.max_atoms is None:
            return n_processes * self.batch_size * int(np.sum(sizes)) / len(sizes)
        return n_processes * float(np.sum(sizes) / len(self.pack(sizes)))


class EpochPlan:
    """The steps of an epoch.

    :param rule: how frames are put into batches.
    :param sizes: atoms of each frame, shape ``[n_frames]``.
    :param order: frames that are taken, see :func:`draw`.
    :param n_processes: number of processes.
    """

    def __init__(
        self, rule: BatchRule, sizes: Integers, order: Integers, n_processes: int
    ) -> None:
        self._order = order
        self._rule, self._n = rule, n_processes
        self._packed: List[range] = []
        if rule.max_atoms is not None:
            self._packed = rule.pack(sizes[self._order])

    def __len__(self) -> int:
        """Number of steps."""
        if self._rule.max_atoms is not None:
            return -(-len(self._packed) // self._n)
        return -(-len(self._order) // (self._rule.batch_size * self._n))

    def shares(self, step: int) -> List[List[int]]:
        """Frames of a step, a list for each process; in the last step there may be
        processes without any.

        :param step: number of the step in the epoch, from 0.
        """
        if self._rule.max_atoms is None:
            size = self._rule.batch_size * self._n
            frames = self._order[step * size : (step + 1) * size].tolist()
            return [frames[rank :: self._n] for rank in range(self._n)]
        batches = self._packed[step * self._n : (step + 1) * self._n]
        shares = [self._order[b.start : b.stop].tolist() for b in batches]
        return shares + [[] for _ in range(self._n - len(shares))]


def in_turn(shares: Sequence[Sequence[int]]) -> Iterator[Tuple[int, int]]:
    """Frames of a step, the first of all processes, then the second of all, and so on,
    so that the first frames are evenly dealt. For each the process that holds it, and
    its place among those of that process.

    :param shares: see :meth:`EpochPlan.shares`.
    """
    for place in range(max(map(len, shares), default=0)):
        for rank, share in enumerate(shares):
            if place < len(share):
                yield rank, place


@dataclass(frozen=True)
class StepFrames:
    """Frames of a step, of all processes.

    :param frames: the frames, None where another process evaluates them.
    :param names: names of labels.
    :param elements: numbers of each label in each frame, also of other processes, shape
        ``[n_frames, n_names]``.
    """

    frames: Sequence[Optional[Frame]]
    names: Sequence[str]
    elements: Tensor

    @classmethod
    def of(
        cls,
        frames: Sequence[Optional[Frame]],
        names: Sequence[str],
        known: Optional[Sequence[Optional[Frame]]] = None,
    ) -> "StepFrames":
        """Count labels.

        :param frames: the frames, None where another process evaluates them.
        :param names: names of labels.
        :param known: those whose labels are counted, also some that another process
            evaluates; if not given, ``frames``.
        """
        elements = torch.zeros(len(frames), len(names), dtype=torch.float64)
        for row, frame in enumerate(frames if known is None else known):
            for column, name in enumerate(names):
                if frame is not None and name in frame.labels:
                    elements[row, column] = frame.labels[name].numel()
        return cls(frames, names, elements)

    def __len__(self) -> int:
        return len(self.frames)

    def with_labels_first(self, labels: Collection[str]) -> List[int]:
        """Places of the frames, those with any of these labels first."""
        columns = [index for index, name in enumerate(self.names) if name in labels]
        lacks = (self.elements[:, columns] == 0).all(1).tolist()
        return sorted(range(len(self)), key=lambda place: lacks[place])

    def chance(self, name: str, labels: Collection[str], count: int) -> float:
        """Chance that a label is in some frames drawn from those with any of several
        labels: a term that is in fewer steps must count more in these.

        :param name: name of the label, one of ``labels``.
        :param labels: names of labels.
        :param count: how many frames are drawn, at least 1.
        """
        columns = [index for index, each in enumerate(self.names) if each in labels]
        n_frames = int((self.elements[:, columns] > 0).any(1).sum())
        own = int((self.elements[:, self.names.index(name)] > 0).sum())
        count = min(count, n_frames)
        return 1.0 - math.comb(n_frames - own, count) / math.comb(n_frames, count)

    def here(self, places: Sequence[int]) -> List[Frame]:
        """The frames at these places that this process evaluates, those without labels
        left out."""
        frames = [self.frames[place] for place in places]
        return [frame for frame in frames if frame is not None and frame.labels]

    def count(self, name: str, places: Sequence[int]) -> int:
        """Numbers of a label in the frames at these places."""
        column = self.names.index(name)
        return int(self.elements[list(places), column].sum())
