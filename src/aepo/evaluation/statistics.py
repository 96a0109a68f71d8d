"""This module computes 95 % intervals by bootstrap. Evaluations, reports, comparisons and the law fit use it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Number of bootstrap draws: of rows, and of seeds crossed with problems.
RESAMPLES, CROSSED_RESAMPLES = 2000, 4000


@dataclass(frozen=True)
class Interval:
    """`Interval` is a mean with its 95 % interval."""

    mean: float
    """The mean; NaN if there is no value."""
    low: float | None = None
    """The lower bound; None if there is only one value, which has no interval."""
    high: float | None = None
    """The upper bound; None if there is only one value."""


def bounds(draws: Array) -> tuple[Array, Array]:
    """Return the bounds of a 95 % interval: the 2.5 and the 97.5 percentile of bootstrap draws.

    Args:
        draws: [draws, ...].

    Returns:
        The lower and the upper bounds, each [...].
    """
    low, high = np.percentile(draws, [2.5, 97.5], axis=0)
    return low, high


def column_intervals(values: Array, seed: int) -> list[Interval]:
    """Return the mean of each column with its interval by bootstrap over the rows.

    The same draws serve all columns. A single row has no interval.

    Args:
        values: [rows, columns], such as a score of each problem in each column.
        seed: The seed of the draws.
    """
    rows, means = len(values), values.mean(axis=0)
    if rows == 1:
        return [Interval(float(mean)) for mean in means]
    weights = np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), size=RESAMPLES)
    columns = zip(means, *bounds(weights @ values / rows), strict=True)
    return [Interval(*map(float, column)) for column in columns]


def crossed_interval(values: Array, seed: int = 0) -> Interval:
    """Return the mean of all values with its interval by bootstrap over seeds and problems together.

    The problems are the same for every seed. So a draw takes seeds and problems, each with replacement, and every value
    where they cross (the pigeonhole bootstrap, Owen 2007, doi 10.1214/07-AOAS122).

    Percentiles of few seeds are limited. With S seeds, and little spread between problems, the interval reaches at most
    from the smallest to the largest seed and covers 1 - 2^(1 - S): 50 % at two seeds, 75 % at three, 94 % at five. With
    one seed the interval holds for that seed only.

    Args:
        values: [seeds, problems]. For a paired difference, the differences at the same problem and seed. For one value
            per seed, [seeds, 1].
        seed: The seed of the draws.
    """
    seeds, problems = values.shape
    mean = float(values.mean())
    if values.size == 1:
        return Interval(mean)
    rng = np.random.default_rng(seed)
    weights = [rng.multinomial(n, np.full(n, 1 / n), size=CROSSED_RESAMPLES) / n for n in (seeds, problems)]
    low, high = bounds(((weights[0] @ values) * weights[1]).sum(axis=1))
    return Interval(mean, float(low), float(high))


def most_covered(seeds: int) -> float:
    """Return the largest coverage that an interval can have with one value for each seed; see `crossed_interval`."""
    return 1 - 2.0 ** (1 - seeds)
