"""What a study is made of, as the user decides."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import List, Optional

import ase
import numpy as np


@dataclass(frozen=True)
class Conditions:
    """What the user has decided."""

    temperature_K: float = 300.0
    timestep_fs: float = 0.5
    n_inner: Optional[int] = None
    """Inner steps; chosen by runs at constant energy if not given."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature_K", "timestep_fs"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0.0):
                raise ValueError(f"{name} must be positive, not {value}")
        if self.n_inner is not None and self.n_inner < 2:
            raise ValueError(
                f"the number of inner steps must be at least 2, not {self.n_inner} (1 "
                "is the conservative force alone, which is run anyway)"
            )


@dataclass(frozen=True)
class Structures:
    """What models are judged on."""

    source: str
    """Where they come from."""
    n_total: int
    """Structures there."""
    start: ase.Atoms
    """For everything but errors."""
    start_index: int
    frames: List[ase.Atoms]
    """For errors."""
    frame_indices: List[int]


def choose_structures(
    structures: Sequence[ase.Atoms], source: str, n_frames: int, index: int = -1
) -> Structures:
    """One structure to run, and some evenly spaced ones to take errors of.

    :param structures: all there are.
    :param source: where they come from.
    :param n_frames: for errors, at most.
    :param index: of the structure to run.
    :raises ValueError: if there is none, or none with this index.
    """
    n_total = len(structures)
    if n_total == 0:
        raise ValueError(f"{source} holds no structures")
    if not -n_total <= index < n_total:
        raise ValueError(
            f"{source} has no structure {index}: it holds {n_total}, counted from 0"
        )
    indices = np.unique(np.linspace(0, n_total - 1, min(n_frames, n_total)).astype(int))
    return Structures(
        source=source,
        n_total=n_total,
        start=structures[index],
        start_index=index % n_total,
        frames=[structures[i] for i in indices],
        frame_indices=indices.tolist(),
    )
