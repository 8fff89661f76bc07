"""Frames of data sets that are too large to be held in memory.

A stream makes a frame when it is needed: it reads structure and labels, finds the
neighbours, and brings the labels to raw units. Worker processes do so ahead of the step
that takes the frames. What is fitted and checked before the training comes from a
sample.
"""

import copy
import ctypes
import logging
import os
import signal
import sys
import threading
import zipfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Dict, List, Literal, NamedTuple, Optional, Set, Tuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .contents import check_sizes, contents_of, is_on_disk, release_pages
from .data import BadFrames, Frame, make_frames, nothing, sources_of
from .fitting import to_raw_units
from .model import DualForce
from .plausibility import LabelBounds


Integers = NDArray[np.int64]

SAMPLE_ATOMS = 100_000
"""Atoms of the sample, about."""

EACH_ELEMENT = 20
"""Frames with each element that the sample has at least, if there are so many."""

PROBES = 20
"""Frames from which the memory of all is estimated."""

AHEAD = 4
"""Steps whose frames are made ahead, at most."""

WORKERS = 4
"""Most worker processes that make frames, each for one step ahead at least."""

RELEASED = 1_000
"""Frames that are read before memory of mapped files is given back."""

UNREADABLE = (
    OSError,
    KeyError,
    EOFError,
    RuntimeError,
    ValueError,
    zipfile.BadZipFile,
)
"""What metatrain raises where a file is not what it was, or was cut off."""


class Problem(NamedTuple):
    """Why nothing can be learnt from a frame."""

    kind: Literal["unreadable", "unusable", "beyond bounds"]
    message: str


Made = Tuple[Frame, Optional[Problem]]
"""A frame, without labels where there is a problem."""

Finish = Callable[[Frame], Made]
"""Brings a frame with labels in physical units to what a training takes."""


class FrameStream(Sequence[Frame]):
    """Frames of data sets on disk.

    :param datasets: data sets of metatrain, possibly subsets.
    :param split: name of the split, for messages.
    :param model: the model, which knows targets and cutoff.
    :param skip_bad: unusable frames have no labels, so that nothing is learnt from
        them; else they are refused.
    """

    def __init__(
        self,
        datasets: Sequence[Any],
        split: str,
        model: DualForce,
        skip_bad: bool = False,
    ) -> None:
        self._model = model
        self._bad = BadFrames(skip_bad)
        self._datasets = sources_of(datasets, split)
        self._excluded = BadFrames(skip=True)
        self._finish: Finish = _as_it_is
        contents = [contents_of(dataset) for dataset in datasets]
        self._contents = contents
        self.sizes = np.concatenate([part.sizes for part in contents])
        """Atoms of each frame, shape ``[n_frames]``."""
        lengths = [len(part.sizes) for part in contents]
        self.sources = np.repeat(np.arange(len(lengths)), lengths)
        """Number of the data set of each frame, shape ``[n_frames]``."""
        self._row = np.concatenate([np.arange(length) for length in lengths])
        self._reads = count(1)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.accept(*self.make(range(len(self))[index]))

    def make(self, index: int) -> Made:
        """A frame as a training takes it, and what is wrong with it, about which
        nothing is done: this may be another process.

        :param index: which.
        """
        frame, problem = self._read(index)
        return (frame, problem) if problem else self._finish(frame)

    def accept(self, frame: Frame, problem: Optional[Problem]) -> Frame:
        """A frame that was made, if there is a problem without labels.

        :raises ValueError: if the frame cannot be read, or cannot be used and such
            frames are refused.
        """
        if problem is None:
            return frame
        if problem.kind == "unreadable":
            raise ValueError(problem.message)
        if problem.kind == "unusable":
            self._bad.handle(frame.name, ValueError(problem.message))
        else:
            message = f"{problem.message}; the frame is excluded"
            self._excluded.leave_out(frame.name, message)
        return frame

    def _read(self, index: int) -> Made:
        source, row = self._datasets[int(self.sources[index])], int(self._row[index])
        name = source.name_of(row)
        try:
            check_sizes(source.base)
            sample = source.read(row)
        except UNREADABLE as error:
            return nothing(name), Problem("unreadable", _unreadable(name, error))
        if next(self._reads) % RELEASED == 0:
            release_pages(source.base)
        cutoff = self._model.requested_neighbor_lists()[0].cutoff
        try:
            return source.frame(row, sample, self._model, cutoff), None
        except ValueError as error:
            return nothing(name), Problem("unusable", str(error))

    def of(self, indices: Integers) -> "FrameStream":
        """A stream of some of the frames.

        :param indices: which.
        """
        part = copy.copy(self)
        part.sizes = self.sizes[indices]
        part.sources, part._row = self.sources[indices], self._row[indices]
        return part

    def finished(self, finish: Finish) -> "FrameStream":
        """A stream of the same frames as a training takes them.

        :param finish: see :data:`Finish`.
        """
        stream = copy.copy(self)
        stream._finish = finish
        return stream

    def sample(self, show_progress: bool) -> List[Frame]:
        """Frames from everywhere, and some with each element; always the same.

        :param show_progress: show a bar.
        """
        stride = max(1, int(self.sizes.sum()) // SAMPLE_ATOMS)
        chosen: Set[int] = set(range(0, len(self), stride))
        start = 0
        for part in self._contents:
            for number in part.numbers():
                first = part.first_with(number, EACH_ELEMENT)
                chosen.update((start + first).tolist())
            start += len(part.sizes)
        bar = tqdm(
            sorted(chosen),
            desc="sample of frames",
            disable=not show_progress,
            delay=5.0,
        )
        return [self.accept(*self._read(index)) for index in bar]

    def memory(self) -> float:
        """GB that all frames would take, estimated from some."""
        probes = np.unique(np.linspace(0, len(self) - 1, PROBES).astype(np.int64))
        frames = [self.accept(*self._read(int(index))) for index in probes]
        per_atom = sum(map(_bytes_of, frames)) / max(1, sum(map(len, frames)))
        return float(per_atom * self.sizes.sum() / 1e9)


def _as_it_is(frame: Frame) -> Made:
    return frame, None


def _unreadable(name: str, error: Exception) -> str:
    return (
        f"{name}: it cannot be read ({str(error) or type(error).__name__}). The file "
        "was changed or cut off: put it back, and go on with `--restart`"
    )


def _bytes_of(frame: Frame) -> int:
    tensors = [frame.types, frame.positions, frame.cell, frame.centers]
    tensors += [frame.neighbors, frame.shifts, *frame.labels.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class Split:
    """Frames of a training or of a validation set.

    :param frames: all frames, or a sample of them, with labels in physical units.
    :param memory: GB that data sets on disk take in memory, about.
    :param stream: all frames, where ``frames`` is a sample.
    """

    frames: List[Frame]
    memory: float = 0.0
    stream: Optional[FrameStream] = None


def open_split(
    datasets: Sequence[Any],
    split: str,
    model: DualForce,
    max_memory: float,
    show_progress: bool,
    skip_bad: bool,
) -> Split:
    """Hold the frames of data sets in memory, or a sample of them.

    :param datasets: data sets of metatrain, possibly subsets.
    :param split: name of the split, for messages.
    :param model: the model, which knows targets and cutoff.
    :param max_memory: in GB; data sets on disk that take more are not held.
    :param show_progress: show bars.
    :param skip_bad: leave out unusable frames.
    :raises ValueError: if the split is empty or a frame is unusable.
    """
    if not datasets or not all(len(d) and is_on_disk(d) for d in datasets):
        frames = make_frames(datasets, split, model, show_progress, skip_bad)
        return Split(frames)
    stream = FrameStream(datasets, split, model, skip_bad)
    memory = stream.memory()
    if memory <= max_memory:
        frames = make_frames(datasets, split, model, show_progress, skip_bad)
        return Split(frames, memory)
    frames = [frame for frame in stream.sample(show_progress) if frame.labels]
    if not frames:
        raise ValueError(f"no frame of a sample of the {split} set has a label")
    logging.info(
        f"The {len(stream)} frames of the {split} set would take {memory:.3g} GB, more "
        f"than `max_memory` ({max_memory:g} GB): they are read from disk when they are "
        f"needed. What is fitted and checked before comes from {len(frames)} of them"
    )
    return Split(frames, 0.0, stream)


class Finisher:
    """Brings frames of a stream to raw units; those with labels beyond their bounds
    lose all labels, so that nothing is learnt from them.

    :param model: the model, with fitted baselines and scales.
    :param bounds: bounds on labels.
    """

    def __init__(self, model: DualForce, bounds: LabelBounds) -> None:
        # A copy stays on the processor, where workers are.
        self._model = copy.deepcopy(model)
        self._bounds = bounds

    def __call__(self, frame: Frame) -> Made:
        if (reason := self._bounds.reason(frame)) is not None:
            problem = Problem("beyond bounds", f"{frame.name}: {reason}")
            return replace(frame, labels={}), problem
        if not frame.labels:
            return frame, None
        return to_raw_units(self._model, [frame])[0], None


# ------------------------------------------------------------------------- workers


class _Batches(Dataset[Any]):
    """Batches of frames of a stream, as workers make them."""

    def __init__(self, stream: FrameStream) -> None:
        self._stream = stream

    def __getitem__(self, batch: Sequence[int]) -> List[Any]:
        made = (self._stream.make(index) for index in batch)
        return [(_packed(frame), problem) for frame, problem in made]


def _packed(frame: Frame) -> Dict[str, Any]:
    """A frame to send to another process: arrays, since each tensor would take a file
    of its own."""
    packed = {
        name: value.numpy() if isinstance(value, torch.Tensor) else value
        for name, value in vars(frame).items()
    }
    labels = {name: label.numpy() for name, label in frame.labels.items()}
    return packed | {"labels": labels}


def _unpacked(packed: Dict[str, Any]) -> Frame:
    values: Dict[str, Any] = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in packed.items()
    }
    labels = packed["labels"]
    values["labels"] = {name: torch.from_numpy(labels[name]) for name in labels}
    return Frame(**values)


def _as_sent(batch: List[Any]) -> List[Any]:
    return batch


_PR_SET_PDEATHSIG = 1
"""Of Linux: the signal that a process gets when its parent has ended."""


def _follow_training(worker: int) -> None:
    """The training process answers the user. When it ends its workers end, also where
    it was killed and they wait for it to take a batch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _worker_options() -> Dict[str, Any]:
    """Worker processes, as copies of this one; where these are not cheap there are
    none."""
    if not sys.platform.startswith("linux"):
        return {}
    n_workers = max(1, min(WORKERS, len(os.sched_getaffinity(0)) - 1))
    return {
        "num_workers": n_workers,
        "prefetch_factor": AHEAD // n_workers,
        "multiprocessing_context": "fork",
        "worker_init_fn": _follow_training,
    }


def _started(loader: DataLoader[Any]) -> Iterator[Any]:
    """Start the workers, without the handler of signals that torch brings: it raises
    wherever the training is when a worker ends, and not where batches are taken."""
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)
    return batches


def load_ahead(
    frames: Sequence[Frame], batches: Iterable[Sequence[int]]
) -> Generator[List[Frame], None, None]:
    """Frames of batches; those of streams are made by other processes, some steps
    ahead.

    :param frames: the frames.
    :param batches: indices of the frames of each batch.
    :raises ValueError: if a frame cannot be read or used, or a process ended.
    """
    if not isinstance(frames, FrameStream):
        for batch in batches:
            yield [frames[index] for index in batch]
        return
    loader = DataLoader(
        _Batches(frames),
        sampler=batches,
        batch_size=None,
        collate_fn=_as_sent,
        generator=torch.Generator(),  # that of the training stays as it is
        **_worker_options(),
    )
    try:
        for made in _started(loader):
            yield [frames.accept(_unpacked(packed), why) for packed, why in made]
    except RuntimeError as error:
        raise ValueError(f"a process that reads frames ended: {error}") from error
