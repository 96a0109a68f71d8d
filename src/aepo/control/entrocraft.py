"""Entrocraft: outside a band of the entropy, rows of one sign of the advantage are left out (2604.26326)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from aepo.control.base import Control, Measured, Scored, State, Step
from aepo.control.laws import outside
from aepo.control.schedules import Target
from aepo.errors import require
from aepo.types import Metric


@dataclass(frozen=True, kw_only=True)
class Entrocraft(Control):
    """`Entrocraft` keeps the entropy H in a band, which moves over the run (2604.26326).

        m = +1 if H > high(step), -1 if H < low(step), else 0        H of the batch that is about to be trained on
        keep row i if m A_i >= 0

    Too much entropy leaves out rows with A < 0, which spread the policy; too little leaves out rows with A > 0, which
    concentrate it. The kept rows of a group of G weigh G / kept, so that the group is averaged over them. Extra rows
    stay as they are.

    State: `first_entropy` and, for the log, `error`: how far H is under (+) or over (-) the band.
    """

    name: ClassVar[str] = "entrocraft"
    low: Target = Target("0.6")
    """Lower end of the band at the start of the run, nats per token."""
    high: Target = Target("0.7")
    """Upper end of the band at the start of the run, nats per token."""
    low_end: Target = Target("0.4")
    """Lower end of the band at the end of the run, nats per token."""
    high_end: Target = Target("0.5")
    """Upper end of the band at the end of the run, nats per token."""
    schedule: Literal["linear", "cosine"] = "linear"
    """How the band moves from its start to its end over the steps of the run: in a line, or along half a cosine."""
    variant: Literal["paper", "code"] = "paper"
    """`paper`: the rule above. `code`: outside the band, the authors' code replaces the advantages: above it right rows
    have 1 and wrong rows 0, below it right rows have 0 and wrong rows -1, and no row weighs more.
    """

    def __post_init__(self) -> None:
        for low, high in (("low", "high"), ("low_end", "high_end")):
            # A multiple of the first entropy is NaN here, and is not compared.
            ordered = not getattr(self, low).at(0) > getattr(self, high).at(0)
            require(ordered, f"control.{low}", getattr(self, low), f"at most {high}, {getattr(self, high)}")

    def initial_state(self) -> State:
        """Return a state with nothing measured."""
        return {"first_entropy": None}

    def shape(self, advantages: Tensor, scored: Scored, state: State) -> Tensor:
        """Return the advantages with 0 at the rows that are left out."""
        entropy = Metric.of(scored.entropy, scored.ordinary).mean
        error = self._error(entropy, scored.step, state)
        if math.isnan(entropy) or error == 0:
            return advantages
        own = ~scored.batch.extra
        factors = self._replaced(scored, error) if self.variant == "code" else self._kept(scored, error)
        shaped = (scored.batch.mask if self.variant == "code" else advantages) * factors.to(advantages)[:, None]
        return torch.where(own[:, None], shaped, advantages)

    def update(self, state: State, measured: Measured) -> State:
        """Return the state with how far the entropy was outside the band."""
        entropy = measured.entropy.mean
        if math.isnan(entropy):
            return state
        first = entropy if state["first_entropy"] is None else state["first_entropy"]
        return {"first_entropy": first, "error": self._error(entropy, measured.scored.step, state)}

    def _error(self, entropy: float, step: Step, state: State) -> float:
        """Return how far the entropy is under (+) or over (-) the band, nats per token."""
        first = entropy if state["first_entropy"] is None else state["first_entropy"]
        share = step.number / step.steps
        if self.schedule == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        low, high = (
            (1 - share) * start.at(step.number, first) + share * end.at(step.number, first)
            for start, end in ((self.low, self.low_end), (self.high, self.high_end))
        )
        return outside(entropy, low, high)

    def _kept(self, scored: Scored, error: float) -> Tensor:
        """Return the factor of each row, [B]: 0 if it is left out, else its group's size over the group's kept rows."""
        batch = scored.batch
        rows = (batch.trained & ~batch.extra).double()
        kept = rows * (error * batch.advantages[:, 0] <= 0)
        _, group = batch.groups.unique(return_inverse=True)
        size, left = (torch.zeros_like(rows).index_add_(0, group, each) for each in (rows, kept))
        return kept * (size / left.clamp(min=1))[group]

    def _replaced(self, scored: Scored, error: float) -> Tensor:
        """Return the advantage of each row outside the band, [B], as the authors' code has it."""
        right = scored.batch.right.float()
        return right if error < 0 else right - 1
