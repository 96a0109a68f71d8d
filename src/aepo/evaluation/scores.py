"""From completions to numbers: pass@k, maj@k, and intervals by bootstrap over problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aepo.evaluation.options import Pass
from aepo.training.evaluate import pass_at_k

RESAMPLES = 2000
# Draws of k completions behind one maj@k: a standard error of at most 0.016 for one problem.
MAJORITY_DRAWS = 1000


@dataclass
class Tally:
    """What stays of one problem's completions. votes: for each answer, how many gave it and how many were right."""

    id: str
    samples: int = 0
    correct: int = 0
    silent: int = 0
    tokens: int = 0
    truncated: int = 0
    failed: int = 0
    votes: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one line of samples.jsonl."""
        self.samples += 1
        self.correct += row["correct"]
        self.tokens += row["tokens"]
        self.truncated += row["truncated"]
        self.failed += row["failed"]
        if row["answer"] is None:
            self.silent += 1
        else:
            count, right = self.votes.get(row["answer"], (0, 0))
            self.votes[row["answer"]] = (count + 1, right + row["correct"])


@dataclass(frozen=True)
class Score:
    """A mean over problems and its 95 % interval; no interval for a single problem."""

    mean: float
    low: float | None
    high: float | None


def majority_at_k(votes: Sequence[tuple[int, int]], silent: int, k: int, seed: Sequence[int] = (0,)) -> float:
    """Chance that the most frequent answer of k completions, drawn without replacement of all, is right.

    votes: (completions, right ones) of each different answer; silent: completions without an answer, which do not
    vote. Answers with equally many votes share the verdict equally, and where nobody votes it is wrong. An answer that
    is right in some completions and wrong in others (the votes are finer or coarser than the grader) counts by its
    share. Exact for k = n; else the mean of `MAJORITY_DRAWS` seeded draws. Raises ValueError unless 1 <= k <= n.
    """
    counts = np.array([count for count, _ in votes] + [silent])
    if not 1 <= k <= counts.sum():
        raise ValueError(f"maj@k: got k={k} of n={counts.sum()}; needs 1 <= k <= n")
    if not votes:
        return 0.0
    rights = np.array([right / count for count, right in votes])
    drawn = counts[None]
    if k < counts.sum():
        drawn = np.random.default_rng(seed).multivariate_hypergeometric(counts, k, MAJORITY_DRAWS, method="count")
    voted = drawn[:, :-1]
    won = (voted == voted.max(axis=1, keepdims=True)) & (voted > 0)
    return float(((won * rights).sum(axis=1) / won.sum(axis=1).clip(min=1)).mean())


def intervals(values: NDArray[np.float64], seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """95 % percentile intervals of the column means of `values` [problems, scores], problems drawn anew; both [scores].

    The same draws serve every column. Completions are not drawn anew: an interval says how far another choice of
    problems of this kind might move the score.
    """
    problems = len(values)
    weights = np.random.default_rng(seed).multinomial(problems, np.full(problems, 1 / problems), size=RESAMPLES)
    low, high = np.percentile(weights @ values / problems, [2.5, 97.5], axis=0)
    return low, high


def scores(tallies: Sequence[Tally], way: Pass, seed: int) -> dict[str, Score]:
    """avg@n, and pass@k and maj@k at each of the pass's ks (there is no vote among one)."""
    columns = {f"avg@{way.n}": [t.correct / t.samples for t in tallies]}
    columns |= {f"pass@{k}": [pass_at_k(t.samples, t.correct, k) for t in tallies] for k in way.ks}
    for k in way.ks:
        if k > 1:
            votes = [(list(t.votes.values()), t.silent) for t in tallies]
            columns[f"maj@{k}"] = [majority_at_k(*vote, k, (seed, number, k)) for number, vote in enumerate(votes)]
    values = np.array(list(columns.values()), dtype=np.float64).T
    means = values.mean(axis=0)
    if len(tallies) == 1:
        return {name: Score(float(mean), None, None) for name, mean in zip(columns, means, strict=True)}
    rows = zip(columns, means, *intervals(values, seed), strict=True)
    return {name: Score(*map(float, numbers)) for name, *numbers in rows}
