"""The law R = -a exp(H) + b between reward R and entropy H, fitted to runs, with intervals and a held-out error.

Source: arXiv 2505.22617, which finds it while entropy collapses without a control. It is contested (arXiv 2511.05993),
and a run in which reward rises while entropy falls fits many curves; so the fit is judged by how well its first part
predicts the rest, beside the guess that each run's reward stays what it was.
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

# Fewer points, or entropies that differ less (nats, 5 % to 95 %), say nothing about a curve of two parameters.
LEAST_POINTS, LEAST_HELD_OUT = 10, 3
LEAST_RANGE = 0.1
# Nats per token: the entropy of e^100 equally likely tokens.
HIGHEST = 100.0
# From so many runs on they are drawn anew too; of fewer an interval speaks of these runs alone.
LEAST_RUNS = 3
# "No change" is the mean reward of so many points of a run, those before its held-out ones.
KNOWN = 10
RESAMPLES = 2000


@dataclass(frozen=True)
class Points:
    """One run's entropies (nats per token) and rewards in the order of its steps, both [n]."""

    entropy: Array
    reward: Array

    @classmethod
    def of(cls, entropy: Sequence[float], reward: Sequence[float]) -> Points:
        """From plain numbers; a point with one that is not finite, or an entropy beyond any policy's, is left out."""
        both = np.array([entropy, reward], dtype=np.float64)
        kept = both[:, np.isfinite(both).all(axis=0) & (np.abs(both[0]) < HIGHEST)]
        return cls(kept[0], kept[1])

    @classmethod
    def of_rows(cls, rows: Sequence[Mapping[str, Any]], reward: Literal["reward", "pass@1"]) -> Points:
        """Of metrics.jsonl: each step's mean reward, or each evaluation's pass@1, with the entropy of that step."""
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
    """a, b of R = -a exp(H) + b, least squares, with 95 % intervals by bootstrap over blocks of successive points, and
    over runs where there are `LEAST_RUNS`.

    rmse: of all points around the fit. held_out_rmse: of each run's last part, predicted by a fit to the first parts;
    constant_rmse: of the same, predicted by the mean reward of the last `KNOWN` points of the run's own first part.
    entropy: 5 % and 95 % quantiles of H, nats per token; held_out_entropy: of the predicted points. points: all;
    held_out: how many of them are predicted. runs: that have points.
    """

    a: float
    b: float
    a_interval: tuple[float, float]
    b_interval: tuple[float, float]
    rmse: float
    held_out_rmse: float
    constant_rmse: float
    entropy: tuple[float, float]
    held_out_entropy: tuple[float, float]
    points: int
    held_out: int
    runs: int

    def lines(self) -> list[str]:
        """For people."""
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

    held_out: the share of each run, at its end, that the rest is to predict. seed: of the bootstrap. Raises
    `InvalidValue` when points are too few or entropies too close together, in all or in the first parts alone.
    """
    require(0 < held_out < 1, "held_out", held_out, "a share between 0 and 1")
    runs = [run for run in runs if len(run)]
    whole = _joined(runs)
    _refuse_too_little(whole, "all points")
    # The first part of a run has a point at least, to say what "no change" is.
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
    """-a exp(H) + b."""
    return b - a * np.exp(entropy)


def _least_squares(points: Points) -> tuple[float, float]:
    x = -np.exp(points.entropy)
    centred = x - x.mean()
    a = float(centred @ points.reward / (centred @ centred))
    return a, float(points.reward.mean() - a * x.mean())


def _bootstrap(runs: Sequence[Points], seed: int) -> list[tuple[float, float]]:
    """Fits to runs drawn anew, and each of those by blocks: neighbouring steps share a policy, and the steps of a run
    share its draws, so single points would not do. Fewer runs than `LEAST_RUNS` stay as they are.
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
    """`points` indices in random blocks of n^(1/3) neighbours, the ends joined (circular block bootstrap)."""
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
    """5 % and 95 % quantiles."""
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
