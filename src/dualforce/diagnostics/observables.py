"""Averages along trajectories: temperatures, autocorrelation, spectrum, diffusion,
radial distribution functions."""

from itertools import combinations, combinations_with_replacement
from typing import Any, Dict, List, Tuple

import ase
import numpy as np
from ase.data import chemical_symbols
from ase.geometry.rdf import get_rdf
from numpy.typing import ArrayLike, NDArray
from scipy import constants, integrate, signal

from ..forces import Array
from ..md import RespaVelocityVerlet
from ..md.preparation import degrees_of_freedom, temperatures
from ..md.statistics import UNKNOWN, Estimate, mean_with_error, standard_error


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

POSITION_INTERVAL = 20.0
DISTANCE_INTERVAL = 100.0
"""Between samples of positions and of all distances, in fs."""

MAX_NUMBERS = 20_000_000
"""Velocities and positions that are kept; of large systems, those of some atoms."""

SEGMENT = 2000.0
"""Of the spectrum, in fs: resolves 17/cm."""

LONGEST_LAG = 1000.0
"""Of the autocorrelation, in fs."""


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
        return UNKNOWN
    squares = [_squared_displacement(positions, n * lag)[:n_origins] for n in (1, 2)]
    rates = (squares[1] - squares[0]) / (6.0 * lag * interval_ps)
    # Steps overlap, and so correlate, up to one lag.
    length = max(2 * lag, -(-n_origins // MAX_BLOCKS))
    n_blocks = n_origins // length
    blocks = rates[n_origins - n_blocks * length :].reshape(n_blocks, length).mean(1)
    return float(rates.mean()), standard_error(blocks)


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


class Sampler:
    """Samples along a run with a thermostat.

    Momenta are those in the middle of a step. For an integrator of this family they
    obey equipartition whatever the step is; those at its end are too small for stiff
    bonds (3 K for hydrogen in water at 0.5 fs).

    :param run: the run.
    :param target_K: temperature of the thermostat.
    :param interval_fs: time between samples, in fs.
    :param n_skipped: samples at the start that are not taken.
    :param n_samples: number of samples that follow, which decides how many atoms'
        motion fits in memory.
    :param seed: seed of the choice of atoms.
    """

    def __init__(
        self,
        run: RespaVelocityVerlet,
        target_K: float,
        interval_fs: float,
        n_skipped: int,
        n_samples: int,
        seed: int,
    ) -> None:
        self._run, self._target = run, target_K
        self._interval_fs, self._n_skipped = interval_fs, n_skipped
        self._chosen = _choose_atoms(run.atoms.numbers, n_samples, seed)
        self._degrees = degrees_of_freedom(run.atoms)
        self._middle = run.atoms.copy()
        self._temperatures: List[Dict[str, float]] = []
        self._velocities: List[NDArray[np.float32]] = []
        self._positions: List[NDArray[np.float32]] = []
        self._distances: List[Dict[str, Array]] = []
        self._bins = np.zeros(0)

    def record(self) -> None:
        """Take a sample, unless it is to be skipped."""
        if self._n_skipped > 0:
            self._n_skipped -= 1
            return
        middle, n_before = self._middle, len(self._velocities)
        self._set_middle()
        elements = temperatures(middle, self._degrees)
        self._temperatures.append({"all": middle.get_temperature()} | elements)
        velocities = middle.get_velocities()[self._chosen]
        self._velocities.append(velocities.astype(np.float32))
        if n_before % self._samples_in(POSITION_INTERVAL) == 0:
            positions = middle.positions - middle.get_center_of_mass()
            self._positions.append(positions[self._chosen].astype(np.float32))
        if n_before % self._samples_in(DISTANCE_INTERVAL) == 0:
            self._bins, functions = radial_distributions(middle)
            self._distances.append(functions)

    def _set_middle(self) -> None:
        """Take back the last half-kick of the force inside the outer step."""
        run = self._run
        inside = run.point.direct or run.point.conservative
        self._middle.positions = run.atoms.positions
        kick = 0.5 * run.timestep * inside.forces
        self._middle.set_momenta(run.atoms.get_momenta() - kick)

    def _samples_in(self, time_fs: float) -> int:
        return max(1, round(time_fs / self._interval_fs))

    # --------------------------------------------------------------------- results

    @property
    def length_ps(self) -> float:
        """Time between the first and the last sample."""
        return 1e-3 * self._interval_fs * max(0, len(self._velocities) - 1)

    def deviations(self) -> Dict[str, Estimate]:
        """Mean temperature minus the target, in K, of all atoms and of each element."""
        series = self._series()
        return {name: mean_with_error(x - self._target) for name, x in series.items()}

    def splits(self) -> Dict[str, Estimate]:
        """Differences between the mean temperatures of two elements, in K; what both
        share does not count."""
        series = {name: x for name, x in self._series().items() if name != "all"}
        return {
            f"{one} − {other}": mean_with_error(series[one] - series[other])
            for one, other in combinations(series, 2)
        }

    def _series(self) -> Dict[str, Array]:
        names = self._temperatures[0] if self._temperatures else {}
        series = {
            name: np.array([sample[name] for sample in self._temperatures])
            for name in names
        }
        # Atoms that are fixed have none.
        return {name: x for name, x in series.items() if np.isfinite(x).all()}

    def diffusion(self) -> Dict[str, Estimate]:
        """Diffusion coefficient of each element, in Å^2/ps; empty where the cell is not
        periodic or the run too short."""
        if not (self._positions and self._middle.pbc.all()):
            return {}
        positions = np.array(self._positions)
        interval_ps = 1e-3 * self._interval_fs * self._samples_in(POSITION_INTERVAL)
        coefficients = {
            symbol: diffusion_coefficient(positions[:, members], interval_ps)
            for symbol, members in self._members().items()
        }
        return {
            symbol: estimate
            for symbol, estimate in coefficients.items()
            if np.isfinite(estimate[0])
        }

    def distributions(self) -> Tuple[List[float], Dict[str, List[float]]]:
        """Distances in Å, and mean radial distribution functions."""
        pairs = self._distances[0] if self._distances else {}
        return self._bins.tolist(), {
            pair: np.mean([frame[pair] for frame in self._distances], 0).tolist()
            for pair in pairs
        }

    def motion(self) -> Dict[str, Any]:
        """``lags`` (ps) and ``autocorrelation``, ``frequencies`` (1/cm) and
        ``spectrum`` of the velocities of each element."""
        elements = self._members() if len(self._velocities) > 1 else {}
        velocities = np.array(self._velocities)
        n_lags = min(len(velocities) // 2, self._samples_in(LONGEST_LAG)) + 1
        correlations, spectra = {}, {}
        frequencies = np.zeros(0)
        for symbol, members in elements.items():
            chosen = velocities[:, members]
            correlations[symbol] = autocorrelation(chosen, n_lags).tolist()
            frequencies, values = spectrum(
                chosen, self._interval_fs, self._samples_in(SEGMENT)
            )
            spectra[symbol] = values.tolist()
        lags = 1e-3 * self._interval_fs * np.arange(n_lags if elements else 0)
        return {
            "lags": lags.tolist(),
            "autocorrelation": correlations,
            "frequencies": frequencies.tolist(),
            "spectrum": spectra,
        }

    def _members(self) -> Dict[str, NDArray[np.integer]]:
        """Which of the chosen atoms can move, by element."""
        symbols = np.array(self._middle.get_chemical_symbols())[self._chosen]
        free = self._degrees[self._chosen] > 0.0
        return {
            str(symbol): np.flatnonzero((symbols == symbol) & free)
            for symbol in dict.fromkeys(symbols[free])
        }


def _choose_atoms(
    numbers: NDArray[np.integer], n_samples: int, seed: int
) -> NDArray[np.integer]:
    """All atoms, or of each element as many as memory allows."""
    share = MAX_NUMBERS / (3 * n_samples * len(numbers))
    if share >= 1.0:
        return np.arange(len(numbers))
    rng = np.random.default_rng(seed)
    chosen = [
        rng.permutation(np.flatnonzero(numbers == number))
        for number in np.unique(numbers)
    ]
    return np.sort(
        np.concatenate([some[: max(1, int(share * len(some)))] for some in chosen])
    )
