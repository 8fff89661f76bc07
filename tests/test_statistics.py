"""Errors of means and slopes of correlated series."""

from typing import Any

import numpy as np
import pytest
from scipy.signal import lfilter

from dualforce.md.statistics import (
    difference,
    mean_with_error,
    power_from_spread,
    slope_with_error,
    standard_error,
)


def autoregressive(rng: np.random.Generator, n: int, memory: float) -> Any:
    """A stationary series with autocorrelations ``memory ** lag`` and variance one."""
    noise = rng.normal(size=n + 1000)
    return lfilter([np.sqrt(1.0 - memory**2)], [1.0, -memory], noise)[1000:]


def coverage(estimates: Any, truth: float) -> float:
    """How often 1.96 errors hold the truth."""
    values, errors = np.array(estimates).T
    return float(np.mean(np.abs(values - truth) <= 1.96 * errors))


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9, 0.97])
def test_slopes_under_correlated_noise(memory: float) -> None:
    """Intervals hold the slope in about 95 of 100 repeats, also where the series is 30
    correlation times long."""
    rng, times = np.random.default_rng(0), np.linspace(0.0, 10.0, 2000)
    estimates = [
        slope_with_error(times, 0.3 * times + autoregressive(rng, 2000, memory))
        for _ in range(400)
    ]
    assert 0.91 <= coverage(estimates, 0.3) <= 0.99
    if memory < 0.97:
        spread = np.std([value for value, _ in estimates])
        assert np.median([e for _, e in estimates]) == pytest.approx(spread, rel=0.2)


@pytest.mark.parametrize("memory", [0.97, 0.99, 0.999])
def test_slopes_of_short_series(memory: float) -> None:
    """A few correlation times do not give a small error by chance."""
    rng, times = np.random.default_rng(1), np.linspace(0.0, 1.0, 300)
    estimates = [
        slope_with_error(times, autoregressive(rng, 300, memory)) for _ in range(400)
    ]
    assert coverage(estimates, 0.0) >= 0.93


@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_slopes_of_random_walks(memory: float) -> None:
    """Energy under a fluctuating power is a random walk with a drift."""
    rng, times = np.random.default_rng(2), np.linspace(0.0, 5.0, 1000)
    estimates = [
        slope_with_error(times, np.cumsum(0.05 + autoregressive(rng, 1000, memory)))
        for _ in range(400)
    ]
    assert 0.91 <= coverage(estimates, 0.05 * 200.0) <= 0.99


def test_slopes_of_short_random_walks() -> None:
    """What is known of the walk from elsewhere gives an error that is right on average,
    and never one that is too small by chance."""
    rng, times = np.random.default_rng(2), np.linspace(0.0, 1.0, 64)
    walks = [np.cumsum(rng.normal(0.0, 0.125, 64)) for _ in range(400)]
    alone = [slope_with_error(times, walk) for walk in walks]
    estimates = [slope_with_error(times, walk, 1.0) for walk in walks]
    least = min(error for _, error in estimates)
    assert least == pytest.approx(np.std([value for value, _ in alone]), rel=0.1)
    assert least > 3.0 * min(error for _, error in alone)
    assert coverage(estimates, 0.0) >= 0.95


def test_fast_oscillations_do_not_hide_slow_fluctuations() -> None:
    """An oscillation ten times as large as correlated noise has no share in the
    error."""
    rng, times = np.random.default_rng(3), np.linspace(0.0, 5.0, 4000)
    fast = np.cos(0.7 * np.arange(4000))
    estimates = [
        slope_with_error(times, fast + 0.1 * autoregressive(rng, 4000, 0.95))
        for _ in range(300)
    ]
    assert 0.91 <= coverage(estimates, 0.0) <= 0.99


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9])
def test_means_under_correlated_noise(memory: float) -> None:
    """Likewise for means."""
    rng = np.random.default_rng(4)
    estimates = [
        mean_with_error(1.0 + autoregressive(rng, 2000, memory)) for _ in range(400)
    ]
    assert 0.92 <= coverage(estimates, 1.0) <= 0.99


def test_means_of_short_series_are_not_decided() -> None:
    """Series of a few correlation times have no error, rather than one that is too
    small."""
    rng = np.random.default_rng(5)
    estimates = [mean_with_error(autoregressive(rng, 300, 0.98)) for _ in range(400)]
    known = [x for x in estimates if np.isfinite(x[1])]
    wrong = sum(abs(value) > 1.96 * error for value, error in known)
    assert len(known) < 0.15 * len(estimates)
    assert wrong < 0.06 * len(estimates)


@pytest.mark.parametrize("n", [64, 500, 4000])
def test_power_from_the_spread_of_a_random_walk(n: int) -> None:
    """It is told without bias, beside fluctuations that do not grow, and from long runs
    more precisely than by the slope."""
    rng, times = np.random.default_rng(6), np.linspace(0.0, 1.0, n)
    estimates, slopes = [], []
    for _ in range(400):
        # A variance of 1 in a time of 1, so that the mean power is 1 / (2 kT).
        walk = np.cumsum(rng.normal(0.005, n**-0.5, n))
        walk += 0.02 * autoregressive(rng, n, 0.5)
        estimates.append(power_from_spread(times, walk, 5.0))
        slopes.append(slope_with_error(times, walk)[0])
    values = [value for value, _ in estimates]
    assert np.mean(values) == pytest.approx(0.1, rel=0.12)
    assert coverage(estimates, 0.1) >= 0.85
    assert np.std(values) < 0.05 * np.std(slopes)
    assert np.isnan(power_from_spread(times, np.zeros(n), 0.0)).all()


def test_too_few_values() -> None:
    """Nothing is known of nothing."""
    assert np.isnan(mean_with_error([])).all()
    assert np.isnan(slope_with_error([], [])).all()
    mean, error = mean_with_error([1.0, 3.0])
    assert mean == 2.0 and np.isnan(error)
    assert np.isnan(power_from_spread(range(31), range(31), 1.0)).all()
    slope, error = slope_with_error([0.0, 1.0, 2.0], [0.0, 2.0, 4.0])
    assert slope == pytest.approx(2.0) and np.isnan(error)
    assert np.isnan(standard_error([1.0, 2.0]))
    assert difference((3.0, 3.0), (1.0, 4.0)) == (2.0, 5.0)


def test_constant_series() -> None:
    """Have no slope and no error."""
    times = np.arange(50.0)
    assert slope_with_error(times, np.ones(50)) == (0.0, 0.0)
    assert mean_with_error(np.ones(50)) == (1.0, 0.0)
