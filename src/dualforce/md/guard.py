"""The guard of a run: is the correction of the direct forces as it usually is?"""

import logging
from dataclasses import dataclass, field
from typing import List, Optional

import ase
import numpy as np

from ..forces import pairs_within


OVERLAP = 0.5
"""In Å: atoms closer than this are in no material."""


class RunFailedError(RuntimeError):
    """A run cannot go on; the message says at which step, with which atoms, and where
    the last good structure is."""


UNLIMITED = 1_000_000
"""Inner steps that a correction in range allows."""

MANY = 100
"""The correction of so many atoms fluctuates by a tenth of itself from structure to
structure (root mean square over components), that of fewer atoms by more, as the
inverse root of their number. Measured for molecules of 15 and 27 atoms and for water of
96, on frames of the temperature of the training."""


def range_end(factor: float, n_atoms: int) -> float:
    """The end of the usual range, with the fluctuations of few atoms.

    :param factor: multiple of the usual correction where it ends for many atoms.
    :param n_atoms: atoms of the structure.
    """
    return 1.0 + (factor - 1.0) * max(1.0, (MANY / n_atoms) ** 0.5)


@dataclass
class Guard:
    """Watches the correction, conservative minus direct force, at the outer points.

    Its root mean square is usually steady. Where it leaves its range, the trajectory
    has come to structures the direct forces do not know, or an outer step is too long
    for them.
    """

    factor: float = 1.5
    """The usual range ends at this multiple of the usual correction, with fewer than
    :data:`MANY` atoms farther out (:func:`range_end`). Corrections that exceed the
    largest reported one by this factor are reported."""
    shorten: bool = False
    """Take fewer inner steps while the correction is out of range. Without it the guard
    warns only.

    Kicks by a correction :math:`c` every :math:`M` steps heat by :math:`M c^2` at most
    (uncorrelated ones; those of a smooth trajectory less), so :math:`M` goes down with
    the square of what is too much. It is one, conservative steps, at once where the
    correction is large, and goes up when an excursion is ``window`` outer steps ago."""
    max_drift: float = 0.1
    """In eV/atom: the run is stopped where the conserved quantity has changed by more
    since the start."""
    window: int = 20
    """The usual correction is the median over this many outer points at the start; as
    many outer steps, with that which begins, decide about the number of inner steps."""
    corrections: List[float] = field(default_factory=list)
    """Root mean squares at the start, in eV/Å."""
    allowed: List[int] = field(default_factory=lambda: [UNLIMITED])
    """Numbers of inner steps that the last whole outer steps allow, each that of its
    largest correction."""
    reported: float = 0.0
    """The largest correction that has been reported, in eV/Å."""
    usual: Optional[float] = None
    """The usual correction where it is known, in eV/Å. A run that begins out of range
    is then seen from its first outer point."""
    n_atoms: int = MANY
    """Atoms of the structure; integrators set it."""

    def __post_init__(self) -> None:
        if not self.factor > 1.0:
            raise ValueError(f"the guard's factor must exceed 1, not {self.factor}")
        if not self.max_drift > 0.0:
            raise ValueError(f"max_drift must be positive, not {self.max_drift}")
        if self.window < 1:
            raise ValueError(f"the guard's window must be 1 or more, not {self.window}")
        if self.usual is not None:
            self.corrections = [self.usual] * self.window

    def watch(self, correction: float, longest: int) -> int:
        """Take note of an outer point.

        :param correction: root mean square of the correction, in eV/Å.
        :param longest: number of inner steps the user asked for.
        :return: number of inner steps to go on with, at most.
        """
        if len(self.corrections) < self.window:
            self.corrections.append(correction)
        elif self.is_out_of_range(correction):
            self._warn(correction)
            allowed = int(longest * (self._end_of_range / correction) ** 2)
            self.allowed[-1] = min(self.allowed[-1], max(1, allowed))
        return self._n_inner(longest)

    def is_out_of_range(self, correction: float) -> bool:
        """Whether a correction exceeds the usual range; never as long as that is not
        known.

        :param correction: root mean square of the correction, in eV/Å.
        """
        if len(self.corrections) < self.window:
            return False
        return correction > self._end_of_range

    @property
    def _usual(self) -> float:
        return float(np.median(self.corrections))

    @property
    def _end_of_range(self) -> float:
        return range_end(self.factor, self.n_atoms) * self._usual

    def end_step(self, longest: int) -> int:
        """Take note of the end of a whole outer step.

        :param longest: number of inner steps the user asked for.
        :return: number of inner steps to go on with, at most.
        """
        self.allowed = [*self.allowed, UNLIMITED][-self.window :]
        return self._n_inner(longest)

    def _n_inner(self, longest: int) -> int:
        return min(longest, *self.allowed) if self.shorten else longest

    def _warn(self, correction: float) -> None:
        if correction <= self.factor * self.reported:
            return
        self.reported = correction
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
    first, second, distances = pairs_within(atoms, OVERLAP)
    if len(distances) == 0:
        return ""
    closest = int(np.argmin(distances))
    return (
        f"; atoms {first[closest]} and {second[closest]} are only "
        f"{distances[closest]:.2f} Å apart"
    )
