"""Means and slopes of correlated series, with errors that allow for the correlation.

Errors are standard errors, widened for short series: the truth lies within 1.96 of them
with a probability of about 95 %. Where a series is too short to tell its own
correlation time, the error is NaN: nothing has been decided.
"""

from typing import Tuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student_t

from ..forces import Array


Estimate = Tuple[float, float]
"""A value and its standard error; NaN where the error is not known."""

UNKNOWN: Estimate = (float("nan"), float("nan"))

MAX_BINS = 100
"""Series are averaged over so many bins first: oscillations that are faster than a bin
would hide slow fluctuations from the estimate of the correlation time."""

MIN_INDEPENDENT = 20.0
"""Correlation times a series must hold for its correlation time to be believed."""

WINDOW = 3.0
"""Autocorrelations are summed up to this multiple of the correlation time (Sokal). A
variance that follows from them has the degrees of freedom of a series of so many times
fewer independent values."""

WALK = 6.0 / 5.0
"""Variance of the slope of a random walk by least squares, over that of its slope from
end to end."""

N_INCREMENTS = 8
"""Blocks whose increments give the error of the slope of a random walk."""

MIN_VALUES = 10
"""Values from which on a slope has an error."""

LONGEST_LAG = 100
"""In values of a series: over so many outer steps energy is a random walk, and longer
lags are fewer."""

N_LAGS = 16
"""Lags in a series, at least."""


def mean_with_error(values: ArrayLike) -> Estimate:
    r"""Mean of a series and its standard error, :math:`\sqrt{\sigma^2 \tau / n}`.

    :math:`\tau` is the integrated autocorrelation time in units of the spacing.

    :param values: series, evenly spaced in time, shape ``[n]``.
    :return: mean and error; the error is NaN if the series is shorter than 20
        correlation times.
    """
    values = np.asarray(values, dtype=float)
    if len(values) == 0:
        return UNKNOWN
    bins = _bins(values, MAX_BINS)
    n_bins, mean = len(bins), float(values.mean())
    if n_bins < MIN_INDEPENDENT:
        return mean, float("nan")
    residuals = bins - bins.mean()
    correlation = _correlation_time(residuals, n_parameters=1)
    n_independent = n_bins / correlation
    if n_independent < MIN_INDEPENDENT:
        return mean, float("nan")
    variance = (residuals**2).sum() / (n_bins - correlation)
    error = np.sqrt(variance / n_independent) * _widening(n_independent / WINDOW)
    return mean, float(error)


def slope_with_error(
    times: ArrayLike, values: ArrayLike, diffusion: float = 0.0
) -> Estimate:
    """Slope of a straight line through a series, by least squares, and its standard
    error.

    If the residuals are correlated over a short part of the series, the error follows
    from their correlation time, as that of :func:`mean_with_error`. Otherwise the
    series is taken for a random walk with a drift, as energy is under a fluctuating
    power: the error follows from the increments between block averages.

    :param times: times, evenly spaced, shape ``[n]``.
    :param values: series, shape ``[n]``.
    :param diffusion: variance that a random walk in the series is known to gain in a
        unit of time. The error is at least that of the slope of such a walk: a short
        one may look like a straight line.
    :return: slope and error; NaN if there are fewer than two values, and the error also
        if there are fewer than ten.
    """
    times, values = np.asarray(times, dtype=float), np.asarray(values, dtype=float)
    if len(times) < 2:
        return UNKNOWN
    least = np.sqrt(WALK * diffusion / (times[-1] - times[0]))
    # The maximum with an error that is not known (NaN) is not known.
    return _slope(times, values), float(np.maximum(_slope_error(times, values), least))


def _slope_error(times: Array, values: Array) -> float:
    bins = _bins(values, MAX_BINS)
    n_bins = len(bins)
    if n_bins < MIN_VALUES:
        return float("nan")
    bin_times = _bins(times, MAX_BINS)
    centred = bin_times - bin_times.mean()
    residuals = bins - bins.mean() - _slope(bin_times, bins) * centred
    correlation = _correlation_time(residuals, n_parameters=2)
    n_independent = n_bins / correlation
    if n_independent < MIN_INDEPENDENT:
        return _error_of_walk(times, values)
    variance = (residuals**2).sum() / (n_bins - 2.0 * correlation)
    error = np.sqrt(variance * correlation / (centred**2).sum())
    return float(error * _widening(n_independent / WINDOW))


def power_from_spread(
    times: ArrayLike, energies: ArrayLike, thermal_energy: float
) -> Estimate:
    r"""Mean power that a system takes up, told by the spread of its energy.

    Dynamics that preserve volume in phase space, as steps of velocities and positions
    do whatever the forces are, change the energy by work :math:`W` that satisfies
    :math:`\langle e^{-W/k_B T} \rangle = 1` from a canonical start (C. Jarzynski, Phys.
    Rev. Lett. 78, 2690 (1997)), so that small changes of the energy have the mean

    .. math::
        \langle W \rangle = \frac{\mathrm{var}(W)}{2 k_B T}.

    While the energy taken up is less than :math:`k_B T` this says more of the power
    than the slope of the energy does. Changes are those of averages over half a lag,
    which hardly know of fluctuations that do not grow with time, as those of velocity
    Verlet; what is left of these makes the power too large.

    :param times: times of outer points, evenly spaced, shape ``[n]``.
    :param energies: energy of the system that is to be conserved, shape ``[n]``.
    :param thermal_energy: :math:`k_B T`, in the unit of the energies.
    :return: power and its error; NaN if there are too few values.
    """
    times, energies = np.asarray(times, dtype=float), np.asarray(energies, dtype=float)
    lag = min(len(times) // N_LAGS, LONGEST_LAG)
    if lag < 2 or not thermal_energy > 0.0:
        return UNKNOWN
    length, block = len(times) - 1, lag // 2
    averages = np.convolve(energies, np.full(block, 1.0 / block), "valid")
    changes = averages[lag:] - averages[:-lag]
    spacing = (times[-1] - times[0]) / length
    # Averages of a random walk over blocks of b change less by b / 3 - 1 / (3 b) steps.
    walked = spacing * (lag - block / 3.0 + 1.0 / (3.0 * block))
    # The mean of overlapping changes was taken from them.
    variance = float(np.var(changes)) / (1.0 - lag / length)
    power = variance / (2.0 * thermal_energy * walked)
    relative = float(np.sqrt(1.6 * lag / length)) * _widening(length / lag)
    return float(power), float(power * relative)


def standard_error(values: ArrayLike) -> float:
    """Standard error of the mean of independent values.

    :param values: shape ``[n]``.
    :return: NaN if there are fewer than three.
    """
    values = np.asarray(values, dtype=float)
    n = len(values)
    if n < 3:
        return float("nan")
    return float(values.std(ddof=1) / np.sqrt(n) * _widening(n - 1.0))


def difference(value: Estimate, reference: Estimate) -> Estimate:
    """Difference of two independent estimates."""
    return value[0] - reference[0], float(np.hypot(value[1], reference[1]))


def _slope(times: Array, values: Array) -> float:
    centred = times - times.mean()
    return float(centred @ (values - values.mean()) / (centred @ centred))


def _bins(values: Array, n_bins: int) -> Array:
    """Averages over at most so many bins of equal length; what is left over goes from
    the start."""
    length = -(-len(values) // n_bins)
    n_bins = len(values) // length
    return values[len(values) - n_bins * length :].reshape(n_bins, length).mean(1)


def _correlation_time(residuals: Array, n_parameters: int) -> float:
    """Integrated autocorrelation time, in units of the spacing; at least one.

    :param residuals: what is left of a series after a fit.
    :param n_parameters: parameters of the fit, which takes low frequencies away; to
        leading order that makes autocorrelations too small by ``n_parameters / n``.
    """
    n = len(residuals)
    products = np.correlate(residuals, residuals, "full")[n - 1 :]
    if products[0] <= 0.0:
        return 1.0
    times = 2.0 * np.cumsum(products / products[0]) - 1.0
    beyond = np.flatnonzero(np.arange(n) >= WINDOW * times)
    window = beyond[0] if len(beyond) else n - 1
    return max(1.0, times[window] * (1.0 + n_parameters * (2.0 * window + 1.0) / n))


def _error_of_walk(times: Array, values: Array) -> float:
    """Error of a slope by least squares through a random walk.

    Increments between block averages of a walk have 2/3 of the variance of those of the
    walk, and a correlation of 1/4 with the next one: a factor of 3/2 beside
    :data:`WALK`.
    """
    blocks, block_times = _bins(values, N_INCREMENTS), _bins(times, N_INCREMENTS)
    increments = np.diff(blocks)
    n_increments, time = len(increments), block_times[1] - block_times[0]
    variance = 1.5 * WALK * increments.var(ddof=1) / n_increments
    return float(np.sqrt(variance) / time * _widening(n_increments - 1.0))


def _widening(degrees: float) -> float:
    """Factor by which 1.96 standard errors must be widened for a variance that is known
    from so many degrees of freedom only (Student's t)."""
    return float(student_t.ppf(0.975, degrees) / 1.96)
