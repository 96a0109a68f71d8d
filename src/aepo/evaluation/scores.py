"""This module computes the scores of an evaluation: pass@k and maj@k, with intervals over problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aepo.evaluation.options import Pass
from aepo.evaluation.statistics import Interval, column_intervals
from aepo.training.evaluate import pass_at_k

# Draws of k completions behind one maj@k: a standard error of at most 0.016 for one problem.
MAJORITY_DRAWS = 1000


@dataclass
class Tally:
    """`Tally` holds the counts of one problem's completions."""

    id: str
    """The id of the problem."""
    samples: int = 0
    """Number of completions."""
    correct: int = 0
    """Number of correct completions."""
    silent: int = 0
    """Number of completions without an answer."""
    tokens: int = 0
    """Number of tokens of all completions."""
    truncated: int = 0
    """Number of completions that reached the token limit."""
    failed: int = 0
    """Number of completions whose grading hung or crashed."""
    reward: float = 0.0
    """Sum of the rewards of the completions that have one."""
    rewarded: int = 0
    """Number of completions that have a reward."""
    votes: dict[str, tuple[int, int]] = field(default_factory=dict)
    """For each answer, the number of completions that gave it and how many of these were correct."""

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one completion, a row of samples.jsonl."""
        self.samples += 1
        self.correct += row["correct"]
        self.tokens += row["tokens"]
        self.truncated += row["truncated"]
        self.failed += row["failed"]
        if row["reward"] is not None:
            self.reward += row["reward"]
            self.rewarded += 1
        if row["answer"] is None:
            self.silent += 1
        else:
            count, right = self.votes.get(row["answer"], (0, 0))
            self.votes[row["answer"]] = (count + 1, right + row["correct"])


def majority_at_k(votes: Sequence[tuple[int, int]], silent: int, k: int, seed: Sequence[int] = (0,)) -> float:
    """Return the chance that the most frequent answer of k completions is right.

    The k completions are drawn without replacement from all n. The value is exact for k = n; otherwise it is the mean
    of `MAJORITY_DRAWS` seeded draws. Answers with the same number of votes share the verdict equally. If nobody votes,
    the verdict is wrong. An answer that is right in some completions and wrong in others (because the votes are finer
    or coarser than the grader) counts by its share.

    Args:
        votes: The number of completions and of right completions of each different answer.
        silent: The number of completions without an answer; they do not vote.
        k: The number of completions that are drawn.
        seed: The seed of the draws.

    Raises:
        ValueError: Unless 1 <= k <= n.
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


def scores(tallies: Sequence[Tally], way: Pass, seed: int) -> dict[str, Interval]:
    """Return the scores of a pass by name: avg@n, the mean reward, and pass@k and maj@k at each k of the pass.

    There is no maj@1. An interval is over problems: it tells how far another choice of such problems might move the
    score. Completions are not drawn anew.

    Args:
        tallies: The counts of each problem.
        way: The pass.
        seed: The seed of the bootstrap and of the draws of maj@k.
    """
    columns = {f"avg@{way.n}": [t.correct / t.samples for t in tallies]}
    columns["reward"] = [t.reward / t.rewarded if t.rewarded else 0.0 for t in tallies]
    columns |= {f"pass@{k}": [pass_at_k(t.samples, t.correct, k) for t in tallies] for k in way.ks}
    for k in way.ks:
        if k > 1:
            votes = [(list(t.votes.values()), t.silent) for t in tallies]
            columns[f"maj@{k}"] = [majority_at_k(*vote, k, (seed, number, k)) for number, vote in enumerate(votes)]
    values = np.array(list(columns.values()), dtype=np.float64).T
    return dict(zip(columns, column_intervals(values, seed), strict=True))
