"""SIREN: hold the nucleus entropy of the most uncertain tokens where it was at the start (2509.25133)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from aepo.control.base import Control, Measured, Needs, Scored, State
from aepo.control.tokens import row_mean, row_quantile, top_share
from aepo.entropy.partial import Nucleus
from aepo.errors import require
from aepo.types import BatchStatistics, Metric, asked_for


@dataclass(frozen=True, kw_only=True)
class SIREN(Control):
    """`SIREN` is L + lambda (H_i - H_anchor)^2 for each completion i.

    H_i is the mean, over the completion's peak tokens, of the current policy's entropy over its renormalised nucleus
    (nats per token, with gradient); H_anchor is the mean of H_i over the first step's completions. The first step only
    measures. A completion without a peak token has no term.

    The term of a completion is put on each of its tokens, so the loss's aggregate weighs completions:
    sequence-mean-token-mean equally, token-mean by their length.
    """

    name: ClassVar[str] = "siren"
    coefficient: float = 0.005
    """lambda: penalty per squared nat."""
    mass: float = 0.8
    """Probability of the nucleus: it holds the fewest tokens of the vocabulary that reach this probability."""
    most: int = 10_000
    """Most tokens of the vocabulary in a nucleus."""
    share: float = 0.2
    """Share of the tokens that are peaks, those of the largest nucleus entropy under the sampling policy."""
    peaks: Literal["batch", "completion"] = "batch"
    """`batch` ranks all trained tokens of the step together, `completion` ranks the tokens of each completion by
    themselves (the authors' code).
    """

    def __post_init__(self) -> None:
        require(self.coefficient > 0, "control.coefficient", self.coefficient, "a positive number")
        require(0 < self.mass <= 1, "control.mass", self.mass, "a probability in (0, 1]")
        require(self.most >= 1, "control.most", self.most, "at least 1 token")
        require(0 < self.share <= 1, "control.share", self.share, "a share of the tokens in (0, 1]")

    def initial_state(self) -> State:
        """Return a state without an anchor."""
        return {"anchor": None, "coefficient": 0.0}

    def needs(self, state: State) -> Needs:
        """Ask for the nucleus entropy."""
        return Needs(kept=Nucleus(self.mass, self.most))

    def mark(self, scored: Scored, state: State) -> Mapping[str, Tensor]:
        """Return which tokens are peaks."""
        return {"peaks": self._peaks(scored)}

    def _peaks(self, scored: Scored) -> Tensor:
        entropy = asked_for(scored.old.kept_entropy)
        if self.peaks == "batch":
            return top_share(entropy, scored.trained, self.share, least=1).float()
        above = entropy > row_quantile(entropy, scored.trained, 1 - self.share)[:, None]
        return above * scored.trained

    def penalty(self, scored: Scored, new: BatchStatistics, state: State) -> Tensor | None:
        """Return lambda * (H_i - H_anchor)^2 on each token of completion i."""
        anchor: float | None = state["anchor"]
        if anchor is None:
            return None
        peaks = scored.marks["peaks"]
        distance = row_mean(asked_for(new.kept_entropy), peaks) - anchor
        present = scored.batch.mask * (peaks.sum(1, keepdim=True) > 0)
        return self.coefficient * distance.square()[:, None] * present

    def update(self, state: State, measured: Measured) -> State:
        """Take the first reading as the anchor.

        `error` in the state is the anchor less the step's mean H_i, nats per token.
        """
        scored = measured.scored
        peaks = self._peaks(scored)
        counted = (peaks.sum(1) > 0) & ~scored.batch.extra
        entropy = Metric.of(row_mean(asked_for(scored.old.kept_entropy), peaks), counted).mean
        if math.isnan(entropy):
            return state
        anchor = entropy if state["anchor"] is None else state["anchor"]
        known = {"anchor": anchor, "target_entropy": anchor, "error": anchor - entropy}
        return {**state, **known, "coefficient": self.coefficient}
