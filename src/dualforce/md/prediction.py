r"""How fast a run with multiple time steps drifts, told by a run without.

With ``n_inner`` (:math:`M`) steps of length :math:`\Delta t` between outer points, the
difference of the forces, :math:`g = f_C - f_D`, acts :math:`M` times as strong at every
:math:`M`-th step and not at all at the others. It is as if, beside the conservative
force, :math:`g` acted with the factor

.. math::

    M \delta_{n \bmod M, 0} - 1 = \sum_{k=1}^{M-1} e^{i \omega_k n \Delta t}, \qquad
    \omega_k = \frac{2 \pi k}{M \Delta t}

at step :math:`n`. In linear response (R. Kubo, J. Phys. Soc. Jpn. 12, 570 (1957)) a
force :math:`g(x)` that is switched on and off, whether or not it has a potential,
changes the density in phase space by what :math:`g \cdot v` has been before, divided by
:math:`k_B T`, so that the system takes up

.. math::

    P = \frac{1}{2 k_B T} \sum_{k=1}^{M-1} S(\omega_k), \qquad
    S(\omega) = \Delta t \sum_{m} \langle (g \cdot v)(0) \, (g \cdot v)(m \Delta t)
    \rangle \, e^{i \omega m \Delta t}

in a unit of time, with :math:`S` from a run with conservative forces, whose own step
may be shorter than :math:`\Delta t`. What limits :math:`M` are thus fast parts of
:math:`g`: a resonance of the outer step with vibrations, not the size of :math:`g`
alone.
"""

from collections.abc import Sequence
from typing import Optional, Tuple

import numpy as np
from ase import units
from scipy.signal import welch

from ..forces import Array
from .respa import RespaVelocityVerlet
from .statistics import UNKNOWN, Estimate


SEGMENTS = (512, 256, 128)
"""Steps in each part of a run whose spectra are averaged: the first for which there are
:data:`MIN_SEGMENTS`."""

RESOLUTION = 8
"""Lines of the spectrum between zero and the first harmonic of the outer step, at
least: the window spreads the slow part over four."""

WINDOW = "blackmanharris"
"""Its side lobes lie 92 dB below: the slow part of ``g . v`` is larger than the fast
one by many orders of magnitude."""

MIN_SEGMENTS = 2
"""Segments a run must have."""


class BothForcesVerlet(RespaVelocityVerlet):
    """Velocity Verlet with conservative forces that evaluates the direct ones as well,
    and records the power of their difference.

    Arguments as of :class:`.respa.RespaVelocityVerlet`, with ``n_inner = 1``.
    """

    @property
    def power(self) -> Tuple[float, float]:
        """``g . v`` and ``f_D . v`` at the present structure, in eV over ASE's unit of
        time."""
        direct = self.point.direct
        assert direct is not None
        velocities = self.atoms.get_velocities()
        own = float((direct.forces * velocities).sum())
        whole = float((self.point.conservative.forces * velocities).sum())
        return whole - own, own

    def _evaluate(self) -> None:
        self.set_point(*self.forces.both(self.atoms, self.needs_stress))


def predicted_drift(
    power: Sequence[float],
    spacing: float,
    n_inner: int,
    temperature_K: float,
    *,
    timestep: Optional[float] = None,
) -> Estimate:
    """Energy that a run with multiple time steps takes up.

    :param power: ``g . v`` at every step of a run with conservative forces, in eV over
        ASE's unit of time.
    :param spacing: time between them, in ASE's unit of time.
    :param n_inner: inner steps in an outer step.
    :param temperature_K: temperature of the run, in K.
    :param timestep: inner step, by default ``spacing``. With a longer one, harmonics
        above its own Nyquist frequency act as well; those above that of the run are
        taken for nothing.
    :return: in eV over ASE's unit of time, with its standard error; NaN if the run is
        too short.
    """
    segment = _segment(len(power))
    outer = n_inner * (timestep or spacing) / spacing
    if RESOLUTION * outer > segment or not temperature_K > 0.0:
        return UNKNOWN
    frequencies, spectrum = _spectrum(np.asarray(power, dtype=float), segment)
    # Windows that overlap by half and fall off so fast are nearly independent.
    n_segments = _n_segments(len(power), segment)
    values = spacing * np.interp(_harmonics(n_inner, outer), frequencies, spectrum)
    factor = 0.5 / (units.kB * temperature_K)
    # Harmonics k and -k are the same number; those of different k are independent.
    error = np.sqrt(2.0 * (values**2).sum() / n_segments)
    return float(factor * values.sum()), float(factor * error)


def _harmonics(n_inner: int, outer: float) -> Array:
    """Frequencies of the outer step which those of the inner step lack, in units of the
    step of the run.

    :param outer: outer step, in steps of the run.
    """
    highest = int(0.5 * outer + 1e-6)
    k = np.arange(-highest, highest + 1)
    if abs(2.0 * highest - outer) < 1e-6:
        k = k[:-1]  # the two ends are the same
    return k[k % n_inner != 0] / outer


def _segment(n_steps: int) -> int:
    """Steps in a segment; 0 where the run is too short."""
    fitting = (s for s in SEGMENTS if _n_segments(n_steps, s) >= MIN_SEGMENTS)
    return next(fitting, 0)


def _n_segments(n_steps: int, segment: int) -> float:
    return 2.0 * n_steps / segment - 1.0


def _spectrum(power: Array, segment: int) -> Tuple[Array, Array]:
    """Spectral density over frequency, both in units of the step."""
    frequencies, spectrum = welch(
        power,
        window=WINDOW,
        nperseg=segment,
        noverlap=segment // 2,
        detrend="constant",
        return_onesided=False,
    )
    order = np.argsort(frequencies)
    return frequencies[order], spectrum[order]
