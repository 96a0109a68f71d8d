"""Signed rewards: right answers get one advantage, wrong ones another, whatever their group (2506.01347)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from aepo.control.base import Control, State, Step
from aepo.errors import require
from aepo.types import Sample


@dataclass(frozen=True, kw_only=True)
class SignedReward(Control):
    """`SignedReward` gives right answers the advantage `positive` and wrong ones -`negative` (2506.01347).

    It replaces the algorithm's advantage on ordinary rows, so nothing is compared within a group: groups that are all
    right or all wrong train, too. Rows of a weight of 0 are measured and not trained on, so they are not in the mean of
    the loss. (1, 0) is the paper's PSR, (0, 1) its NSR and (0.1, 1) its W-REINFORCE.
    """

    name: ClassVar[str] = "signed-reward"
    compares_groups = False
    positive: float = 0.1
    """Advantage of right answers; `task.right` says which these are."""
    negative: float = 1.0
    """Advantage of wrong answers, with the opposite sign."""

    def __post_init__(self) -> None:
        for field in ("positive", "negative"):
            value = getattr(self, field)
            require(0 <= value < math.inf, f"control.{field}", value, "a finite number, 0 or more")
        require(self.positive + self.negative > 0, "control.positive", self.positive, "above 0 if negative is 0")

    @property
    def needs_right(self) -> bool:
        """Return whether only right answers are trained on."""
        return self.negative == 0

    def mix(self, ordinary: Sequence[Sample], extra: Sequence[Sample], state: State, step: Step) -> list[Sample]:
        """Return all rows, the ordinary ones with their signed advantage. Extra rows stay as they are."""
        return [*map(self._signed, ordinary), *extra]

    def _signed(self, sample: Sample) -> Sample:
        right = sample.rollout.right
        weight = self.positive if right else self.negative
        return replace(sample, advantage=weight if right else -weight, trained=sample.trained and weight > 0)
