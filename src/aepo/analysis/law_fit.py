"""`fit_law` fits R = -a exp(H) + b, between reward R and entropy H, to runs, with intervals and a held-out error.

Source: arXiv 2505.22617, which finds the law while entropy collapses without a control. The law is contested (arXiv
2511.05993): many curves fit a run in which reward rises while entropy falls. So the fit is judged by how well its first
part predicts the rest, compared with the guess that the reward of each run stays the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from aepo.errors import InvalidValue, require
from aepo.evaluation.statistics import bounds

Array = NDArray[np.float64]

# The smallest numbers of points, and the smallest range of entropies (nats, from the 5 % to the 95 % quantile), for a
# fit. Less data cannot determine a curve with two parameters.
LEAST_POINTS, LEAST_HELD_OUT = 10, 3
LEAST_RANGE = 0.1
# Larger entropies (nats per token) are rejected. A policy would need e^100 equally likely tokens to reach this one.
HIGHEST = 100.0
# With this many runs or more, the bootstrap resamples the runs too. With fewer runs, an interval holds for these runs
# only.
LEAST_RUNS = 3
# The constant prediction of a run is the mean reward of this many points before its held-out points.
KNOWN = 10
# The number of bootstrap draws.
RESAMPLES = 2000


@dataclass(frozen=True)
class Points:
    """`Points` are the entropies and rewards of one run, in the order of its steps."""

    entropy: Array
    """The entropies in nats per token, [n]."""
    reward: Array
    """The rewards, [n]."""

    @classmethod
    def of(cls, entropy: Sequence[float], reward: Sequence[float]) -> Points:
        """Make points from plain numbers.

        A point is left out if one number is not finite, or if |entropy| is not below `HIGHEST`.
        """
        both = np.array([entropy, reward], dtype=np.float64)
        kept = both[:, np.isfinite(both).all(axis=0) & (np.abs(both[0]) < HIGHEST)]
        return cls(kept[0], kept[1])

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]], reward: Literal["reward", "pass@1"]) -> Points:
        """Make points from rows of metrics.jsonl. A point is the entropy of a step with one of its scores.

        The score is the step's mean reward, or the pass@1 of its evaluation.
        """
        if reward == "pass@1":
            rows = [row for row in rows if row.get("evaluation")]
            return cls.of(_column(rows, "entropy"), _column([row["evaluation"] for row in rows], "pass@1"))
        return cls.of(_column(rows, "entropy"), _column(rows, "reward"))

    def __len__(self) -> int:
        return len(self.entropy)

    def __getitem__(self, places: slice | NDArray[np.int64]) -> Points:
        return Points(self.entropy[places], self.reward[places])


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [math.nan if row.get(key) is None else float(row[key]) for row in rows]


@dataclass(frozen=True)
class LawFit:
    """`LawFit` is a fit of R = -a exp(H) + b by least squares, with 95 % intervals.

    The intervals come from a bootstrap over blocks of successive points, and over runs if there are at least
    `LEAST_RUNS`.
    """

    a: float
    """The parameter a of the fit to all points."""
    b: float
    """The parameter b of the fit to all points."""
    a_interval: tuple[float, float]
    """The 95 % interval of a: its lower and its upper bound."""
    b_interval: tuple[float, float]
    """The 95 % interval of b: its lower and its upper bound."""
    rmse: float
    """The root mean square error of all points around the fit."""
    held_out_rmse: float
    """The root mean square error on the last part of each run, which a fit to the first parts predicts."""
    constant_rmse: float
    """The root mean square error on the same points of the constant prediction.

    This prediction is the mean reward of the last `KNOWN` points of the run's own first part.
    """
    entropy: tuple[float, float]
    """The 5 % and the 95 % quantile of H over all points, in nats per token."""
    held_out_entropy: tuple[float, float]
    """The 5 % and the 95 % quantile of H over the held-out points, in nats per token."""
    points: int
    """The number of all points."""
    held_out: int
    """The number of held-out points, which are predicted."""
    runs: int
    """The number of runs that have points."""

    def lines(self) -> list[str]:
        """Return the fit as lines of text."""
        (low_a, high_a), (low_b, high_b), (low, high) = self.a_interval, self.b_interval, self.entropy
        better = "better" if self.held_out_rmse < self.constant_rmse else "no better"
        drawn = (
            "runs, and blocks of their points" if self.runs >= LEAST_RUNS else "blocks of points, the runs as they are"
        )
        said = [
            f"R = -a exp(H) + b on {self.points} points, H from {low:.3f} to {high:.3f} nats per token (5 % to 95 %)",
            f"a = {self.a:.4f} (95 %: {low_a:.4f} to {high_a:.4f}), b = {self.b:.4f} ({low_b:.4f} to {high_b:.4f}); "
            f"intervals: bootstrap over {drawn}",
            f"error: {self.rmse:.4f} over all points (RMSE); {self.held_out_rmse:.4f} on the {self.held_out} last "
            f"points, predicted from those before, {better} than the {self.constant_rmse:.4f} of predicting no change "
            f"(the mean of each run's own last {KNOWN} points before)",
        ]
        low, high = self.held_out_entropy
        if high - low < LEAST_RANGE:
            said.append(f"H of the last points is from {low:.3f} to {high:.3f}: predicting them tests no curve")
        if low_a <= 0 <= high_a:
            said.append("a = 0 is inside its interval: these points do not show the law")
        elif self.a < 0:
            said.append("a is negative: here reward rises with entropy, against the law")
        return [*said, "the law is of arXiv 2505.22617 (no entropy control) and is contested by arXiv 2511.05993"]


def fit_law(runs: Sequence[Points], *, held_out: float = 0.3, seed: int = 0) -> LawFit:
    """Fit one law to all runs together.

    Args:
        runs: The points of each run.
        held_out: The share of each run, at its end, that a fit to the rest predicts.
        seed: The seed of the bootstrap.

    Raises:
        InvalidValue: There are too few points, or their entropies are too close together. Both are checked for all
            points and for the first parts of the runs.
    """
    require(0 < held_out < 1, "held_out", held_out, "a share between 0 and 1")
    runs = [run for run in runs if len(run)]
    whole = _joined(runs)
    _refuse_too_little(whole, "all points")
    # The first part of a run has at least one point, because the constant prediction needs one.
    cuts = [max(1, len(run) - round(held_out * len(run))) for run in runs]
    parts = [(run[slice(0, cut)], run[slice(cut, None)]) for run, cut in zip(runs, cuts, strict=True)]
    first, rest = _joined([before for before, _ in parts]), _joined([after for _, after in parts])
    _refuse_too_little(first, f"the first {1 - held_out:.0%}, which is to predict the rest,")
    wanted = f"at least {LEAST_HELD_OUT} points (a larger share, or more points)"
    require(len(rest) >= LEAST_HELD_OUT, "held_out", f"{len(rest)} points", wanted)

    a, b = _least_squares(whole)
    low, high = bounds(np.array(_bootstrap(runs, seed)))
    return LawFit(
        a=a,
        b=b,
        a_interval=(float(low[0]), float(high[0])),
        b_interval=(float(low[1]), float(high[1])),
        rmse=_rms(whole.reward - predict(a, b, whole.entropy)),
        held_out_rmse=_rms(rest.reward - predict(*_least_squares(first), rest.entropy)),
        constant_rmse=_rms(np.concatenate([after.reward - before.reward[-KNOWN:].mean() for before, after in parts])),
        entropy=_most_of(whole.entropy),
        held_out_entropy=_most_of(rest.entropy),
        points=len(whole),
        held_out=len(rest),
        runs=len(runs),
    )


def predict(a: float, b: float, entropy: Array) -> Array:
    """Return -a exp(H) + b."""
    return b - a * np.exp(entropy)


def _least_squares(points: Points) -> tuple[float, float]:
    x = -np.exp(points.entropy)
    centred = x - x.mean()
    a = float(centred @ points.reward / (centred @ centred))
    return a, float(points.reward.mean() - a * x.mean())


def _bootstrap(runs: Sequence[Points], seed: int) -> list[tuple[float, float]]:
    """Return fits (a, b) to resampled runs.

    Neighbouring steps share a policy, so each run is resampled by blocks of steps and not by single points. The steps
    of a run share its random draws, so runs are resampled too, unless there are fewer than `LEAST_RUNS`.
    """
    rng = np.random.default_rng(seed)
    fits, every = [], range(len(runs))
    for _ in range(RESAMPLES):
        chosen = rng.integers(len(runs), size=len(runs)) if len(runs) >= LEAST_RUNS else every
        drawn = _joined([runs[i][_blocks(len(runs[i]), rng)] for i in chosen])
        if np.ptp(drawn.entropy) > 0:
            fits.append(_least_squares(drawn))
    return fits


def _blocks(points: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return `points` indices in random blocks of n^(1/3) neighbours.

    The ends are joined (circular block bootstrap).
    """
    size = round(points ** (1 / 3)) or 1
    starts = rng.integers(points, size=-(-points // size))
    places = (starts[:, None] + np.arange(size)) % points
    return np.asarray(places.ravel()[:points], dtype=np.int64)


def _joined(runs: Sequence[Points]) -> Points:
    none = np.zeros(0)
    return Points(
        np.concatenate([none, *(run.entropy for run in runs)]), np.concatenate([none, *(run.reward for run in runs)])
    )


def _most_of(entropy: Array) -> tuple[float, float]:
    """Return the 5 % and the 95 % quantile."""
    low, high = np.percentile(entropy, [5, 95])
    return float(low), float(high)


def _refuse_too_little(points: Points, which: str) -> None:
    wanted = f"at least {LEAST_POINTS} with an entropy and a reward ({which} taken together)"
    require(len(points) >= LEAST_POINTS, "points", len(points), wanted)
    low, high = _most_of(points.entropy)
    if high - low < LEAST_RANGE:
        got = f"{low:.3f} to {high:.3f} nats per token ({high - low:.3f}) in {len(points)} points"
        wanted = (
            f"a range of at least {LEAST_RANGE:g} nats in {which} taken together: a curve needs entropies that differ"
        )
        raise InvalidValue("entropy", got, wanted)


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(values**2)))
