"""Frames of data sets that are too large to be held in memory.

A stream makes a frame when it is needed: it reads structure and labels, finds the
neighbours, and brings the labels to raw units. Threads do so ahead of the step that
takes the frames. What is fitted and checked before the training comes from a sample.
"""

import copy
import logging
import os
import zipfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, List, Optional, Set

import numpy as np
from numpy.typing import NDArray
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
"""Steps whose frames are made ahead."""

THREADS = 4
"""Most threads that make frames."""

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

Finish = Callable[[Frame], Frame]
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
        return self._finish(self._read(range(len(self))[index]))

    def _read(self, index: int) -> Frame:
        source, row = self._datasets[int(self.sources[index])], int(self._row[index])
        try:
            check_sizes(source.base)
            sample = source.read(row)
        except UNREADABLE as error:
            raise ValueError(_unreadable(source.name_of(row), error)) from error
        if next(self._reads) % RELEASED == 0:
            release_pages(source.base)
        cutoff = self._model.requested_neighbor_lists()[0].cutoff
        try:
            return source.frame(row, sample, self._model, cutoff)
        except ValueError as error:
            self._bad.handle(source.name_of(row), error)
            return nothing(source.name_of(row))

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
        return [self._read(index) for index in bar]

    def memory(self) -> float:
        """GB that all frames would take, estimated from some."""
        probes = np.unique(np.linspace(0, len(self) - 1, PROBES).astype(np.int64))
        frames = [self._read(int(index)) for index in probes]
        per_atom = sum(map(_bytes_of, frames)) / max(1, sum(map(len, frames)))
        return float(per_atom * self.sizes.sum() / 1e9)


def _as_it_is(frame: Frame) -> Frame:
    return frame


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
        # A copy stays on the processor, where threads work with it.
        self._model = copy.deepcopy(model)
        self._bounds = bounds
        self._excluded = BadFrames(skip=True)

    def __call__(self, frame: Frame) -> Frame:
        if (reason := self._bounds.reason(frame)) is not None:
            self._excluded.leave_out(
                frame.name, f"{frame.name}: {reason}; the frame is excluded"
            )
            return replace(frame, labels={})
        return to_raw_units(self._model, [frame])[0] if frame.labels else frame


def load_ahead(
    frames: Sequence[Frame], batches: Iterable[Sequence[int]]
) -> Generator[List[Frame], None, None]:
    """Frames of batches; those of streams are made by threads, some steps ahead.

    :param frames: the frames.
    :param batches: indices of the frames of each batch.
    """
    if not isinstance(frames, FrameStream):
        for batch in batches:
            yield [frames[index] for index in batch]
        return
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    pool = ThreadPoolExecutor(max(1, min(THREADS, available - 1)))
    waiting: deque[List[Future[Frame]]] = deque()
    try:
        for batch in batches:
            waiting.append([pool.submit(frames.__getitem__, i) for i in batch])
            if len(waiting) > AHEAD:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
