"""`RightRule` decides which completions count as right: AEPO's positives, pass@k, pass rates, group accuracies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from aepo.errors import InvalidValue, UnknownName
from aepo.types import Rollout

RULES = ("auto", "best", "verdict")
# The half of the full reward, 1: the threshold of `auto`.
HALF = 0.5


@dataclass(frozen=True)
class RightRule:
    """`RightRule` is the setting `task.right` (docs/data.md).

    - `above`: A completion is right if its reward is greater than `threshold`.
    - `verdict`: The reward function says so itself, with `acc`, `accuracy`, `correct` or `right` beside the reward.
    - `best`: A completion is right if no completion of the same prompt in the step has a greater reward and one has a
      smaller reward. A single completion, as in an evaluation, is right if its reward is greater than 0.5.
    - `auto`: The function's own verdict if it gives one, else a reward greater than 0.5. If no completion of a step is
      right by that, `best` decides, so that rewards that are all small still have positives.

    >>> RightRule.of(0.8).alone(0.9)
    True
    """

    rule: Literal["auto", "above", "best", "verdict"] = "auto"
    """The rule."""
    threshold: float = HALF
    """The threshold of `above`."""

    @classmethod
    def of(cls, value: str | float, field: str = "task.right") -> RightRule:
        """Return the rule that a setting names: a threshold, or one of auto, best and verdict.

        Raises:
            InvalidValue: There is no such rule, or the threshold is not finite.
        """
        if isinstance(value, str):
            if value not in RULES:
                raise UnknownName(field, value, RULES, ", or a threshold of the reward")
            return cls(value)  # type: ignore[arg-type]
        if not math.isfinite(value):
            raise InvalidValue(field, value, "a finite threshold of the reward")
        return cls("above", float(value))

    def alone(self, reward: float, verdict: bool | None = None) -> bool:
        """Return whether one completion is right, without a comparison with others.

        Args:
            reward: The reward; NaN is never right.
            verdict: What the reward function itself said; None if it said nothing.
        """
        if self.rule == "verdict" or (self.rule == "auto" and verdict is not None):
            return bool(verdict)
        return reward > (self.threshold if self.rule == "above" else HALF)

    def marked(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Return the rollouts of a step, each with `right` set."""
        right = [self.alone(rollout.reward, rollout.verdict) for rollout in rollouts]
        if self.rule == "best" or (self.rule == "auto" and not any(right)):
            right = _best_of_prompt(rollouts)
        return [replace(rollout, right=found) for rollout, found in zip(rollouts, right, strict=True)]

    def describe(self, alone: bool = False) -> str:
        """Return the rule in words, such as `reward > 0.5`.

        Args:
            alone: Whether completions are judged without a comparison, as in an evaluation.
        """
        words = {
            "above": f"reward > {self.threshold:g}",
            "verdict": "the function's own verdict",
            "best": f"reward > {HALF:g}" if alone else "the best reward of its prompt",
            "auto": f"reward > {HALF:g} or the function's own verdict",
        }
        return words[self.rule]


def _best_of_prompt(rollouts: Iterable[Rollout]) -> list[bool]:
    """Return for each rollout whether it has the greatest reward of its prompt, where the rewards differ."""
    rows = list(rollouts)
    by_prompt: dict[Any, list[float]] = {}
    for rollout in rows:
        by_prompt.setdefault(rollout.completion.prompt.seen, []).append(rollout.reward)
    most = {seen: max(rewards) for seen, rewards in by_prompt.items() if max(rewards) > min(rewards)}
    return [rollout.reward == most.get(rollout.completion.prompt.seen) for rollout in rows]
