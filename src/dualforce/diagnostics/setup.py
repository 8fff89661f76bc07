"""What is judged, on which structures and under which conditions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, List, Optional

import ase
import numpy as np

from ..forces import ForceSource
from ..md.acceptance import TOLERANCE
from ..md.preparation import fix_center_of_mass
from .findings import Findings
from .measure import Measure, NotApplicable


PRESETS = ("quick", "full")

N_FRAMES = {"quick": 8, "full": 50}
"""Structures whose errors are taken, by preset."""


@dataclass(frozen=True)
class Conditions:
    """What the user decides.

    :raises ValueError: naming the first value that makes no sense.
    """

    temperature_K: float = 300.0
    timestep_fs: float = 0.5
    n_inner: Optional[int] = None
    """Inner steps (M); chosen by runs at constant energy if not given."""
    tolerance: float = TOLERANCE
    """Accepted difference in drift from the conservative force, in meV/atom/ps."""
    seed: int = 0
    preset: str = "quick"

    def __post_init__(self) -> None:
        for name in ("temperature_K", "timestep_fs", "tolerance"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0.0):
                raise ValueError(f"{name} must be positive, not {value}")
        if self.n_inner is not None and self.n_inner < 2:
            raise ValueError(
                f"the number of inner steps must be at least 2, not {self.n_inner} (1 "
                "is the conservative force alone, which is run anyway)"
            )
        if self.preset not in PRESETS:
            raise ValueError(
                f"the preset must be one of {', '.join(PRESETS)}, not '{self.preset}'"
            )


@dataclass(frozen=True)
class Structures:
    """What models are judged on."""

    source: str
    """Where they come from."""
    n_total: int
    """Structures there."""
    start: ase.Atoms
    """The structure for everything but errors."""
    start_index: int
    frames: List[ase.Atoms]
    """Structures for errors."""
    frame_indices: List[int]


def choose_structures(
    structures: Sequence[ase.Atoms], source: str, n_frames: int, index: int = -1
) -> Structures:
    """One structure to run, and some evenly spaced ones to take errors of.

    :param structures: all there are.
    :param source: where they come from.
    :param n_frames: for errors, at most.
    :param index: index of the structure to run.
    :raises ValueError: if there is none, or none with this index.
    """
    n_total = len(structures)
    if n_total == 0:
        raise ValueError(f"{source} holds no structures")
    if n_frames < 1:
        raise ValueError(f"the number of frames must be at least 1, not {n_frames}")
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


@dataclass(frozen=True)
class Start:
    """The state that all runs start from: result of the measure ``start``."""

    positions: List[List[float]]
    """In Å."""
    momenta: List[List[float]]
    """In ASE's unit."""


@dataclass(frozen=True)
class Setup:
    """All that a measure may use."""

    source: ForceSource
    structures: Structures
    conditions: Conditions
    findings: Findings
    """Results of earlier measures."""

    @property
    def atoms(self) -> ase.Atoms:
        """The structure of the study."""
        return self.structures.start

    @property
    def start(self) -> ase.Atoms:
        """The equilibrated structure with momenta.

        :raises NotApplicable: if there is none.
        """
        found = self.findings.of_type(Start)
        if not found:
            raise NotApplicable("there is no equilibrated structure to start from")
        atoms: ase.Atoms = self.atoms.copy()
        atoms.set_positions(found[0].positions, apply_constraint=False)
        atoms.set_momenta(found[0].momenta, apply_constraint=False)
        fix_center_of_mass(atoms)
        return atoms

    def size(self, measure: Measure) -> Mapping[str, Any]:
        """How much of a measure the preset asks for."""
        return measure.sizes[self.conditions.preset]
