"""The guard of a run: is the correction of the direct forces as it usually is?"""

import logging
from dataclasses import dataclass, field
from typing import List, Optional

import ase
import numpy as np
from ase.neighborlist import neighbor_list


OVERLAP = 0.5
"""In Å: atoms closer than this are in no material."""


class RunFailedError(RuntimeError):
    """A run cannot go on; the message says at which step, with which atoms, and where
    the last good structure is."""


@dataclass
class Guard:
    """Watches the correction, conservative minus direct force, at the outer points.

    Its root mean square is usually steady. Where it leaves its range, the trajectory
    has come to structures the direct forces do not know, or an outer step is too long
    for them.
    """

    factor: float = 1.5
    """The usual range ends at this multiple of the usual correction."""
    shorten: bool = False
    """Halve the number of inner steps while the correction is out of range. Without it
    the guard warns only."""
    max_drift: float = 0.1
    """In eV/atom: the run is stopped where the conserved quantity has changed by more
    since the start."""
    window: int = 20
    """The usual correction is the median over this many outer points at the start;
    so many points in range also end a shortened loop."""
    corrections: List[float] = field(default_factory=list)
    """Root mean squares at the start, in eV/Å."""
    in_range: int = 0
    """Outer points since the correction was last out of range."""
    warned: bool = False
    """Whether the present excursion has been reported."""
    usual: Optional[float] = None
    """The usual correction where it is known, in eV/Å. A run that begins out of range
    is then seen from its first outer point."""

    def __post_init__(self) -> None:
        if not self.factor > 1.0:
            raise ValueError(f"the guard's factor must exceed 1, not {self.factor}")
        if not self.max_drift > 0.0:
            raise ValueError(f"max_drift must be positive, not {self.max_drift}")
        if self.window < 1:
            raise ValueError(f"the guard's window must be 1 or more, not {self.window}")
        if self.usual is not None:
            self.corrections = [self.usual] * self.window

    def watch(self, correction: float, n_inner: int) -> int:
        """Take note of an outer point.

        :param correction: root mean square of the correction, in eV/Å.
        :param n_inner: present number of inner steps.
        :return: number of inner steps to go on with, a divisor of ``n_inner``.
        """
        if len(self.corrections) < self.window:
            self.corrections.append(correction)
            return n_inner
        if not self.is_out_of_range(correction):
            self.in_range += 1
            return n_inner
        self.in_range = 0
        self._warn(correction)
        return _shorter(n_inner) if self.shorten else n_inner

    def is_out_of_range(self, correction: float) -> bool:
        """Whether a correction exceeds the usual range; never as long as that is not
        known.

        :param correction: root mean square of the correction, in eV/Å.
        """
        if len(self.corrections) < self.window:
            return False
        return correction > self.factor * self._usual

    @property
    def _usual(self) -> float:
        return float(np.median(self.corrections))

    def lengthen(self, n_inner: int, longest: int) -> int:
        """At the end of a whole outer step: whether the loop may be longer again.

        :param n_inner: present number of inner steps.
        :param longest: number of inner steps the user asked for.
        :return: number of inner steps to go on with, a divisor of ``longest``.
        """
        if self.in_range < self.window:
            return n_inner
        self.in_range, self.warned = 0, False
        return _longer(n_inner, longest)

    def _warn(self, correction: float) -> None:
        if self.warned:
            return
        self.warned = True
        remedy = (
            "shortening the inner loop"
            if self.shorten
            else "use fewer inner steps if this lasts"
        )
        logging.warning(
            f"conservative and direct force differ by {1000 * correction:.0f} meV/Å "
            f"(RMS), usually by {1000 * self._usual:.0f}: {remedy}"
        )


def describe_overlap(atoms: ase.Atoms) -> str:
    """The closest pair of atoms nearer than :data:`OVERLAP`, for a message; nothing if
    there is none."""
    if not np.isfinite(atoms.positions).all():
        return ""
    first, second, distances = neighbor_list("ijd", atoms, OVERLAP)
    if len(distances) == 0:
        return ""
    closest = int(np.argmin(distances))
    return (
        f"; atoms {first[closest]} and {second[closest]} are only "
        f"{distances[closest]:.2f} Å apart"
    )


def _shorter(n_inner: int) -> int:
    return max(d for d in range(1, max(2, n_inner // 2 + 1)) if n_inner % d == 0)


def _longer(n_inner: int, longest: int) -> int:
    multiples = range(n_inner, longest + 1, n_inner)
    return min((d for d in multiples[1:] if longest % d == 0), default=longest)
