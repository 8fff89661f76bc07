"""What a run was trained on, kept in its checkpoints, so that it goes on with nothing
else."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Optional

import torch
from torch import Tensor

from .data import Frame, count_labels
from .fitting import rms
from .model import DualForce


DIGITS = 9
"""Decimals of positions, cells and labels that count: what is written to a file and
read again is the same."""


@dataclass(frozen=True)
class DataRecord:
    """What tells one data set from another.

    :param n_frames: number of frames.
    :param structures: digest of the structures, whatever their order.
    :param labels: digests of the labels, likewise, by their name.
    :param sizes: root mean square of each label, of totals per atom.
    :param n_read: frames that digests and sizes are of, where not all were read.
    """

    n_frames: int
    structures: str
    labels: Dict[str, str]
    sizes: Dict[str, float]
    n_read: Optional[int] = None

    @classmethod
    def of(
        cls, model: DualForce, frames: Sequence[Frame], n_frames: int
    ) -> "DataRecord":
        """Record frames with labels in physical units.

        :param model: the model, which knows the labels that are derived from others;
            they are not recorded.
        :param frames: the frames, or a sample of them.
        :param n_frames: number of all frames.
        """
        derived = {name for energy in model.energies for name in energy.derived}
        names = sorted(set(count_labels(list(frames))) - derived)
        keys = [_structure_key(frame) for frame in frames]
        per_atom = model.per_atom()
        return cls(
            n_frames=n_frames,
            n_read=len(frames) if len(frames) < n_frames else None,
            structures=_digest(keys),
            labels={
                name: _digest(
                    key + _key([frame.labels[name]])
                    for key, frame in zip(keys, frames, strict=True)
                    if name in frame.labels
                )
                for name in names
            },
            sizes={name: rms(frames, name, name in per_atom) or 0.0 for name in names},
        )

    @classmethod
    def from_dict(cls, content: Dict[str, Any]) -> "DataRecord":
        """What :meth:`as_dict` gave."""
        return cls(**content)

    def as_dict(self) -> Dict[str, Any]:
        """As plain values, for a checkpoint."""
        return asdict(self)

    def differences(self, other: "DataRecord") -> List[str]:
        """What is different in other data, in words. Labels that only one of the two
        has do not count: targets may be added to a model.

        :param other: the data to compare with.
        """
        if self.n_frames == other.n_frames and self.n_read != other.n_read:
            return []  # samples say nothing about each other
        if self.structures != other.structures:
            return [
                f"other structures ({other.n_frames} frames, {self.n_frames} before)"
            ]
        return [
            f"other labels '{name}' (root mean square {other.sizes[name]:.6g}, "
            f"{self.sizes[name]:.6g} before)"
            for name, digest in self.labels.items()
            if name in other.labels and other.labels[name] != digest
        ]


def _key(tensors: Sequence[Tensor]) -> bytes:
    content = hashlib.sha256()
    for tensor in tensors:
        rounded = tensor.to(torch.float64).mul(10**DIGITS).round() + 0.0
        content.update(rounded.contiguous().numpy().tobytes())
    return content.digest()


def _structure_key(frame: Frame) -> bytes:
    return _key([frame.types, frame.positions, frame.cell, frame.pbc])


def _digest(keys: Any) -> str:
    content = hashlib.sha256()
    for key in sorted(keys):
        content.update(key)
    return content.hexdigest()


def count_copies(frames: Sequence[Frame], others: Sequence[Frame] = ()) -> int:
    """How many frames are copies of an earlier one, or of one of ``others``.

    :param frames: the frames.
    :param others: other frames.
    """
    seen = {_structure_key(frame) for frame in others}
    copies = 0
    for frame in frames:
        key = _structure_key(frame)
        copies += key in seen
        if not others:
            seen.add(key)
    return copies
