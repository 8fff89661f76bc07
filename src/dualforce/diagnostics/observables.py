"""What trajectories tell: autocorrelation, spectrum, diffusion, distances."""

from itertools import combinations_with_replacement
from typing import Dict, Tuple

import ase
import numpy as np
from ase.data import chemical_symbols
from ase.geometry.rdf import get_rdf
from numpy.typing import ArrayLike
from scipy import constants, integrate, signal

from ..dynamics.evaluation import Array
from ..dynamics.statistics import mean_with_error
from .results import Estimate


PER_CM = 1e15 / (100.0 * constants.speed_of_light)
"""Frequencies: inverse femtoseconds in 1/cm."""

SHELL = 0.05
"""Width of a bin of distances, in Å."""

MAX_DISTANCE = 10.0
"""In Å: farther away there is nothing to see."""

MAX_MATRIX = 3000
"""Atoms up to which a matrix of all distances is cheap."""

CAGE = 2.0
"""In ps: atoms of a liquid need about so long to leave their cage of neighbours."""

MIN_LAG = 0.5
"""In ps: on shorter times atoms rattle, and nothing can be said of diffusion."""

MAX_BLOCKS = 10


def autocorrelation(velocities: ArrayLike, n_lags: int) -> Array:
    r"""Normalised autocorrelation :math:`\langle v(0) \cdot v(t) \rangle / \langle v^2
    \rangle` of the velocities of some atoms, averaged over them and over all origins of
    time.

    :param velocities: evenly spaced in time, shape ``[n_samples, n_atoms, 3]``.
    :param n_lags: lags to return, from zero.
    :return: shape ``[n_lags]``; one at lag zero.
    :raises ValueError: if there are fewer samples than lags.
    """
    velocities = np.asarray(velocities)
    n_samples = len(velocities)
    if not 1 <= n_lags <= n_samples:
        raise ValueError(f"{n_samples} samples do not have {n_lags} lags")
    total = np.zeros(n_lags)
    for atom in range(velocities.shape[1]):  # all at once would need much memory
        series = velocities[:, atom].astype(float)
        products = signal.fftconvolve(series, series[::-1], axes=0).sum(1)
        total += products[n_samples - 1 : n_samples - 1 + n_lags]
    total /= n_samples - np.arange(n_lags)
    return total / total[0]


def spectrum(
    velocities: ArrayLike, interval_fs: float, segment: int
) -> Tuple[Array, Array]:
    """Vibrational density of states: Fourier transform of the velocity autocorrelation,
    by Welch's method, averaged over atoms.

    :param velocities: shape ``[n_samples, n_atoms, 3]``.
    :param interval_fs: between samples, in fs.
    :param segment: samples in a segment; its inverse length is the resolution.
    :return: frequencies in 1/cm up to half the sampling frequency, and the spectrum, of
        area one; both of shape ``[n_frequencies]``.
    """
    velocities = np.asarray(velocities)
    segment = min(segment, len(velocities))
    total = np.zeros(segment)
    for atom in range(velocities.shape[1]):
        frequencies, density = signal.welch(
            velocities[:, atom].astype(float),
            fs=1.0 / interval_fs,
            nperseg=segment,
            detrend=False,  # the mean is diffusion
            return_onesided=False,  # it would halve the density at frequency zero
            axis=0,
        )
        total += density.sum(1)
    positive = frequencies >= 0.0
    wavenumbers = PER_CM * frequencies[positive]
    area = integrate.trapezoid(total[positive], wavenumbers)
    return wavenumbers, total[positive] / area


def diffusion_coefficient(positions: ArrayLike, interval_ps: float) -> Estimate:
    r"""Diffusion coefficient from the growth of the mean squared displacement between
    two lags, :math:`[\mathrm{MSD}(2 \tau) - \mathrm{MSD}(\tau)] / 6 \tau`.

    The difference takes off what vibrations add to the displacement at any lag. The
    longer lag is a tenth of the trajectory, or 2 ps where a quarter of it reaches that:
    before, atoms of a liquid have not left their cage and the coefficient comes out too
    large. The error is that of averages over blocks of time origins.

    A periodic box slows diffusion: to leading order, the coefficient in an infinite box
    is larger by :math:`2.837 k_B T / (6 \pi \eta L)`, with viscosity :math:`\eta` and
    edge :math:`L` (Yeh and Hummer, J. Phys. Chem. B 108, 15873 (2004), Eq. 12); some 30
    % for 64 molecules of water. Nothing is added here, since the viscosity is that of
    the model, and needs runs of its own. Boxes of one size may be compared.

    :param positions: positions relative to the centre of mass, not wrapped into the
        cell, shape ``[n_samples, n_atoms, 3]``.
    :param interval_ps: between samples, in ps.
    :return: in Å^2/ps, with standard error; NaN where the longer lag is under 0.5 ps,
        that is for less than 2 ps.
    """
    positions = np.asarray(positions)
    n_samples = len(positions)
    longer = max(n_samples / 10, min(CAGE / interval_ps, n_samples / 4))
    lag = int(longer / 2)
    n_origins = n_samples - 2 * lag
    if lag < 1 or 2 * lag * interval_ps < MIN_LAG:
        return float("nan"), float("nan")
    squares = [_squared_displacement(positions, n * lag)[:n_origins] for n in (1, 2)]
    rates = (squares[1] - squares[0]) / (6.0 * lag * interval_ps)
    # Steps overlap, and so correlate, up to one lag.
    length = max(2 * lag, -(-n_origins // MAX_BLOCKS))
    n_blocks = n_origins // length
    mean, _ = mean_with_error(rates)
    blocks = rates[n_origins - n_blocks * length :].reshape(n_blocks, length).mean(1)
    return mean, mean_with_error(blocks)[1]


def _squared_displacement(positions: Array, lag: int) -> Array:
    """Mean over atoms, for each time origin."""
    steps = positions[lag:] - positions[:-lag]
    return np.einsum("tai,tai->t", steps, steps, dtype=float) / positions.shape[1]


def radial_distributions(atoms: ase.Atoms) -> Tuple[Array, Dict[str, Array]]:
    """Radial distribution function of each pair of elements in one structure, up to
    half the cell.

    :param atoms: structure that is periodic in all directions.
    :return: middles of the bins in Å, shape ``[n_bins]``, and functions of the same
        shape by pair, in the order of the alphabet (``H-O``). Both are empty for other
        structures.
    """
    if not (atoms.pbc.all() and atoms.cell.rank == 3):
        return np.zeros(0), {}
    half = 0.5 / np.linalg.norm(atoms.cell.reciprocal(), axis=1).max()
    n_bins = int(min(half, MAX_DISTANCE) / SHELL)
    if n_bins < 1:
        return np.zeros(0), {}
    matrix = atoms.get_all_distances(mic=True) if len(atoms) <= MAX_MATRIX else None
    counts = {
        chemical_symbols[number]: int((atoms.numbers == number).sum())
        for number in np.unique(atoms.numbers)
    }
    functions, distances = {}, np.zeros(0)
    for pair in combinations_with_replacement(sorted(counts), 2):
        if pair[0] == pair[1] and counts[pair[0]] == 1:
            continue
        functions["-".join(pair)], distances = get_rdf(
            atoms, n_bins * SHELL, n_bins, distance_matrix=matrix, elements=pair
        )
    return distances, functions
