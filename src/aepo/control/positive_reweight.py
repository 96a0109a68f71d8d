"""Positive-advantage reweighting: the weight of the tokens with A > 0 holds the entropy (2511.05993)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from aepo.control.base import Control, Measured, Scored, State, Step
from aepo.control.closed_loop import at_targets, compared, followed
from aepo.control.laws import Law, stepped
from aepo.control.schedules import Target
from aepo.control.tokens import top_share
from aepo.errors import require


@dataclass(frozen=True, kw_only=True)
class PositiveReweight(Control):
    """`PositiveReweight` is lambda * A where A > 0, else A, with lambda in [0, 1] (2511.05993).

    Positive advantages concentrate the policy and negative ones spread it, so a small lambda raises the entropy.

    State: `coefficient` is lambda; with a law also its `command` and what it remembers, `law`.
    """

    name: ClassVar[str] = "positive-reweight"
    schedule: Literal["entropy", "stage", "epoch"] = "entropy"
    """How lambda moves. `entropy` (the paper's main one): after each step it falls by `step` where H < threshold, else
    rises by it. `stage`: it is 0 for the first half of the run, then rises in equal parts to 1 at the last step.
    `epoch`: the run has `epochs` equal parts, and lambda = (e - 1) / (epochs - 1) in part e.
    """
    threshold: Target = Target("0.2")
    """Entropy under which lambda falls, nats per token; the paper's delta."""
    step: float = 0.05
    """Change of lambda after each step."""
    start: float = 0.0
    """lambda of the first step."""
    epochs: int = 5
    """Number of equal parts of the run, for the schedule `epoch`."""
    random_share: float = 0.0
    """Share of the positive tokens whose advantage is set to 0, chosen anew at random in each step: the paper's
    Rand-Pos-Clip, alone with start=1, step=0.
    """
    law: Law | None = None
    """A law that moves lambda in place of the steps, for the schedule `entropy`: from 1 at command -1 to 0 at 1. None
    keeps the own rule.
    """

    def __post_init__(self) -> None:
        require(0 <= self.step <= 1, "control.step", self.step, "a number in [0, 1]")
        require(0 <= self.start <= 1, "control.start", self.start, "a number in [0, 1]")
        require(self.epochs >= 2, "control.epochs", self.epochs, "at least 2")
        require(0 <= self.random_share <= 1, "control.random_share", self.random_share, "a number in [0, 1]")
        moved = self.law is None or self.schedule == "entropy"
        require(moved, "control.law", self.law and self.law.name, f"none with schedule {self.schedule}")

    def initial_state(self) -> State:
        """Return a state with the first lambda and nothing measured."""
        return {"coefficient": self.start if self.schedule == "entropy" else 0.0, "first_entropy": None}

    def shape(self, advantages: Tensor, scored: Scored, state: State) -> Tensor:
        """Weight the positive tokens, and leave out the random share of them."""
        positive = advantages > 0
        weight = state["coefficient"] if self.schedule == "entropy" else self._scheduled(scored.step, 0)
        shaped = torch.where(positive, weight * advantages, advantages)
        if self.random_share == 0:
            return shaped
        draws = torch.rand(advantages.shape, generator=scored.step.generator("random positive tokens"))
        trained = positive * scored.trained
        return shaped.masked_fill(top_share(draws.to(advantages), trained, self.random_share), 0.0)

    def update(self, state: State, measured: Measured) -> State:
        """Return the state with lambda of the next step."""
        if self.schedule != "entropy":
            return {**state, "coefficient": self._scheduled(measured.scored.step, 1)}
        known = compared(state, self.threshold, measured.entropy.mean, measured.step)
        if known is None:
            return state
        if self.law is not None:
            bands = at_targets(self.threshold.at, measured.step, known["first_entropy"])
            acted = 1 - 2 * state["coefficient"]
            changed = followed(self.law, state, bands, measured.entropy.mean, measured.entropy_se, acted)
            return {**known, **changed, "coefficient": (1 - changed["command"]) / 2}
        direction = -1.0 if known["error"] > 0 else 1.0
        return {**known, "coefficient": stepped(state["coefficient"], direction, self.step, 0.0, 1.0)}

    def _scheduled(self, place: Step, ahead: int) -> float:
        """Return lambda `ahead` steps after this place, at most that of the last step."""
        number, steps = min(place.number + ahead, place.steps - 1), place.steps
        if self.schedule == "stage":
            half = steps // 2
            return max(0, number + 1 - half) / (steps - half)
        return (number * self.epochs // steps) / (self.epochs - 1)
