"""Averages and slopes of correlated series, with errors from blocks."""

from typing import Tuple

import numpy as np
from numpy.typing import ArrayLike

from .evaluation import Array


N_BLOCKS = 10


def mean_with_error(values: ArrayLike) -> Tuple[float, float]:
    """Mean of a series and its standard error, from the scatter of block averages.

    :param values: series, evenly spaced in time, shape ``[n]``; the error is NaN where
        there are too few for two blocks.
    """
    values = np.asarray(values, dtype=float)
    return float(values.mean()), _standard_error(_blocks(values))


def slope_with_error(times: ArrayLike, values: ArrayLike) -> Tuple[float, float]:
    """Slope of a straight line through a series, and its standard error.

    The error comes from the residuals of block averages, in which fluctuations that are
    faster than a block are uncorrelated.

    :param times: times, evenly spaced, shape ``[n]``.
    :param values: series, shape ``[n]``.
    :return: slope and error; the error is NaN where there are fewer than three blocks,
        and so is the slope where there are fewer than two values.
    """
    times, values = np.asarray(times, dtype=float), np.asarray(values, dtype=float)
    if len(times) < 2:
        return float("nan"), float("nan")
    slope = _slope(times, values)
    block_times, block_values = _blocks(times), _blocks(values)
    n_blocks = len(block_times)
    if n_blocks < 3:
        return slope, float("nan")
    centred = block_times - block_times.mean()
    trend = block_values.mean() + _slope(block_times, block_values) * centred
    variance = ((block_values - trend) ** 2).sum() / (n_blocks - 2)
    return slope, float(np.sqrt(variance / (centred**2).sum()))


def _slope(times: Array, values: Array) -> float:
    centred = times - times.mean()
    return float(centred @ (values - values.mean()) / (centred @ centred))


def _blocks(values: Array) -> Array:
    """Averages over blocks of equal length; what is left over goes from the start."""
    length = -(-len(values) // N_BLOCKS)
    n_blocks = len(values) // length if length else 0
    return values[len(values) - n_blocks * length :].reshape(n_blocks, length).mean(1)


def _standard_error(blocks: Array) -> float:
    if len(blocks) < 2:
        return float("nan")
    return float(blocks.std(ddof=1) / np.sqrt(len(blocks)))
