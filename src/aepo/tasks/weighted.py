"""`Weighted` adds the rewards of several judges, each with a weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from aepo.tasks.rewards import Answered, Verdict, Verifier


@dataclass(frozen=True)
class Weighted(Verifier):
    """`Weighted` gives the weighted sum of several judges' rewards, as TRL's `reward_funcs` and `reward_weights` do.

    A judge that gives no score for a completion does not count there. A completion without any score has none. A
    completion that one judge failed on has a failed verdict: its sum would be of another kind.

    The first judge that gives a verdict of its own decides what the sum says of right and wrong.
    """

    name: ClassVar[str] = "weighted"
    judges: tuple[tuple[str, Verifier], ...]
    """Name and judge of each part."""
    weights: tuple[float, ...] = ()
    """The weight of each part; without it each weighs 1."""

    @property
    def special_tokens(self) -> bool:
        """Return whether all judges keep special tokens in the texts."""
        return all(judge.special_tokens for _, judge in self.judges)

    def check(self) -> None:
        """Check all judges."""
        for _, judge in self.judges:
            judge.check()

    def judge(self, items: Sequence[Answered]) -> list[Verdict]:
        """Return the weighted sums, with the reward of each judge by its name."""
        weights = self.weights or (1.0,) * len(self.judges)
        found = [(name, judge.judge(items)) for name, judge in self.judges]
        return [
            self._sum([(name, verdicts[number]) for name, verdicts in found], weights) for number in range(len(items))
        ]

    def _sum(self, verdicts: Sequence[tuple[str, Verdict]], weights: Sequence[float]) -> Verdict:
        given = [(w, v.reward) for w, (_, v) in zip(weights, verdicts, strict=True) if math.isfinite(v.reward)]
        failed = [f"{name}: {verdict.reason}" for name, verdict in verdicts if verdict.failed]
        lost = any(verdict.failed and not math.isfinite(verdict.reward) for _, verdict in verdicts)
        parts: dict[str, float] = {}
        logged: dict[str, Any] = {}
        metrics: dict[str, float] = {}
        for name, verdict in verdicts:
            parts[name] = verdict.reward
            parts |= {f"{name}/{key}": value for key, value in verdict.parts.items()}
            logged |= verdict.logged
            metrics |= verdict.metrics
        return Verdict(
            reward=math.nan if lost or not given else math.fsum(w * r for w, r in given),
            failed=bool(failed),
            reason=failed[0] if failed else next((v.reason for _, v in verdicts if v.reason), ""),
            right=next((v.right for _, v in verdicts if v.right is not None), None),
            parts=parts,
            logged=logged,
            metrics=metrics,
        )
