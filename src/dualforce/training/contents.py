"""What data sets on disk hold, without reading all of them."""

import math
import mmap
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Callable, List, Tuple

import numpy as np
from metatrain.utils.data.dataset import DiskDataset, MemmapArray, MemmapDataset
from numpy.typing import NDArray
from torch.utils.data import Subset
from tqdm import tqdm

from .structures import HEAVIEST


Integers = NDArray[np.int64]

CHUNK = 10_000
"""Frames whose elements are looked up together."""

STATISTICS = 1_000
"""Frames of a data set on disk whose labels metatrain's statistics tell of."""


@dataclass(frozen=True)
class Contents:
    """Structures of a data set.

    :param sizes: atoms of each frame, shape ``[n_frames]``.
    :param elements: which elements each frame has, a bit for each atomic number, shape
        ``[n_frames, 15]``.
    """

    sizes: Integers
    elements: NDArray[np.uint8]

    def of(self, indices: Integers) -> "Contents":
        """Those of some frames."""
        return Contents(self.sizes[indices], self.elements[indices])

    def numbers(self) -> List[int]:
        """Atomic numbers of all elements."""
        bits = np.bitwise_or.reduce(self.elements, axis=0)
        return [int(number) for number in np.flatnonzero(np.unpackbits(bits))]

    def first_with(self, number: int, count: int) -> Integers:
        """The first frames that have an element.

        :param number: its atomic number.
        :param count: how many frames.
        """
        bit = 128 >> (number % 8)
        return np.flatnonzero(self.elements[:, number // 8] & bit)[:count]


def base_of(dataset: Any) -> Tuple[Any, Integers]:
    """The whole data set, and the frames that were taken from it."""
    indices = np.arange(len(dataset))
    while isinstance(dataset, Subset):
        indices = np.asarray(dataset.indices, dtype=np.int64)[indices]
        dataset = dataset.dataset
    return dataset, indices


def is_on_disk(dataset: Any) -> bool:
    """Whether a data set of metatrain reads its frames when they are asked for."""
    return isinstance(base_of(dataset)[0], (DiskDataset, MemmapDataset))


def release_pages(base: Any) -> None:
    """Give back the memory of what was read from mapped files. The system takes it by
    itself only where memory is short, and until then all that was ever read counts as
    memory of the process.

    :param base: a whole data set of metatrain.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    for array in _mapped(vars(base).values()):
        if array._mm is not None:
            array._mm._mmap.madvise(mmap.MADV_DONTNEED)


def check_sizes(base: Any) -> None:
    """Look at the sizes of mapped files: to read behind the end of one that was cut off
    ends the process, and numbers of another type are read as nonsense.

    :param base: a whole data set of metatrain.
    :raises ValueError: if a file has another size than its array.
    """
    for array in _mapped(vars(base).values()):
        expected = math.prod(array.shape) * array.dtype.itemsize
        size = os.stat(array.path).st_size
        if size != expected:
            raise ValueError(
                f"file '{array.path}' has {size} bytes, but {expected} are needed for "
                f"{len(base)} frames ({array.dtype}, shape {array.shape})"
            )


def _mapped(values: Any) -> Iterator[MemmapArray]:
    for value in values:
        if isinstance(value, MemmapArray):
            yield value
        elif isinstance(value, dict):
            yield from _mapped(value.values())


def contents_of(dataset: Any) -> Contents:
    """What a data set on disk holds; looked up once.

    :param dataset: the data set, possibly a subset.
    :raises ValueError: if a structure cannot be read.
    """
    base, indices = base_of(dataset)
    if not hasattr(base, "contents"):
        base.contents = _look_up(base)
    contents: Contents = base.contents
    return contents.of(indices)


def _look_up(base: Any) -> Contents:
    check_sizes(base)
    types_of = _types_on_disk if isinstance(base, DiskDataset) else _types_in_memory
    n_frames = len(base)
    sizes = np.zeros(n_frames, dtype=np.int64)
    elements = np.zeros((n_frames, HEAVIEST // 8 + 1), dtype=np.uint8)
    bar = tqdm(total=n_frames, desc="elements of the data", delay=5.0)
    for start in range(0, n_frames, CHUNK):
        frames = range(start, min(start + CHUNK, n_frames))
        counts, types = types_of(base, frames)
        known = np.clip(types, 0, HEAVIEST)
        has = np.zeros((len(frames), 8 * elements.shape[1]), dtype=bool)
        has[np.repeat(np.arange(len(frames)), counts), known] = True
        sizes[start : frames.stop] = counts
        elements[start : frames.stop] = np.packbits(has, axis=1)
        release_pages(base)
        bar.update(len(frames))
    bar.close()
    return Contents(sizes, elements)


def _types_in_memory(base: Any, frames: range) -> Tuple[Integers, NDArray[Any]]:
    starts = base.na[frames.start : frames.stop + 1]
    return np.diff(starts), np.asarray(base.a[starts[0] : starts[-1]])


def _types_on_disk(base: Any, frames: range) -> Tuple[Integers, NDArray[Any]]:
    types = []
    for index in frames:
        try:
            with (
                zipfile.ZipFile(base._read_member(index, "system")) as parts,
                parts.open("types.npy") as part,
            ):
                types.append(np.load(part))
        except (OSError, KeyError, EOFError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"file '{base.zip_file_path}', frame {index} (counted from 0): the "
                f"structure cannot be read ({error}); copy the file again, or write "
                "the data set anew"
            ) from error
    counts = np.array([len(part) for part in types], dtype=np.int64)
    return counts, np.concatenate(types)


# ----------------------------------------------------------------- within metatrain


def atomic_types(datasets: Any, original: Callable[[Any], List[int]]) -> List[int]:
    """All elements of data sets.

    :param datasets: data sets of metatrain.
    :param original: reads all frames, where they are in memory anyway.
    """
    listed = datasets if isinstance(datasets, list) else [datasets]
    on_disk = [dataset for dataset in listed if is_on_disk(dataset) and len(dataset)]
    rest = [dataset for dataset in listed if not is_on_disk(dataset)]
    found = set(original(rest))
    for dataset in on_disk:
        found.update(contents_of(dataset).numbers())
    return sorted(found)


def for_statistics(datasets: Sequence[Any]) -> List[Any]:
    """Data sets whose statistics take a moment: evenly spread frames of those that are
    large and on disk.

    :param datasets: data sets of metatrain.
    """
    return [
        Subset(dataset, _spread(len(dataset), STATISTICS))
        if is_on_disk(dataset) and len(dataset) > STATISTICS
        else dataset
        for dataset in datasets
    ]


def _spread(total: int, count: int) -> List[int]:
    return [int(i) for i in np.linspace(0, total - 1, count).round()]
