"""Clip-Cov: a few of the tokens whose update would lower entropy most get no gradient (2505.22617)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from aepo.control.base import Control, Scored, State
from aepo.control.tokens import covariance, largest, share_of
from aepo.errors import require
from aepo.loss.surrogates import Clip
from aepo.loss.tokens import Tokens
from aepo.types import BatchStatistics

_DRAWS = "clip-cov"


@dataclass(frozen=True, kw_only=True)
class ClipCov(Control):
    """`ClipCov` gives no gradient to max(1, floor(share * N)) of N tokens, drawn from those with low < C_t < high.

    2505.22617, Eq. 10: C_t = (log pi(y_t) - mean log pi) (A_t - mean A), nats times advantages, means over the N
    tokens. The draw is random and a function of the seed and the step, one number for each token.
    """

    name: ClassVar[str] = "clip-cov"
    share: float = 2e-4
    """Share of the tokens that get no gradient; the paper's r."""
    low: float = 1.0
    """Lower limit of C_t for a token that may be drawn; the paper's omega."""
    high: float = 5.0
    """Upper limit of C_t for a token that may be drawn; the paper's omega."""
    selection: Literal["batch", "microbatch"] = "batch"
    """`batch` looks at the trained tokens of the whole step under the policy that sampled them. `microbatch` is the
    authors' code: it looks at the tokens of each pass under the current policy, except those that the clip has
    already stopped, so it depends on the microbatch size.
    """
    clip_low: float = 0.2
    """For `microbatch`: the surrogate's lower clip bound (`surrogate.low`), which a control does not see."""
    clip_high: float = 0.2
    """For `microbatch`: the surrogate's upper clip bound (`surrogate.high`), which a control does not see."""

    def __post_init__(self) -> None:
        require(0 < self.share <= 1, "control.share", self.share, "a share of the tokens in (0, 1]")
        require(self.low < self.high, "control.low", self.low, f"a number below control.high ({self.high})")
        require(0 < self.clip_low <= 1, "control.clip_low", self.clip_low, "a number in (0, 1]")
        require(self.clip_high > 0, "control.clip_high", self.clip_high, "a positive number")

    def mark(self, scored: Scored, state: State) -> Mapping[str, Tensor]:
        """Return the draws for `microbatch`, because a microbatch does not know where in the step it is."""
        return {} if self.selection == "batch" else {_DRAWS: _draws(scored)}

    def shape(self, advantages: Tensor, scored: Scored, state: State) -> Tensor:
        """Return the advantages with 0 at the chosen tokens, over the whole batch."""
        if self.selection == "microbatch":
            return advantages
        return advantages * ~self._chosen(advantages, scored.old.logprobs, scored.trained, _draws(scored))

    def reshape(self, advantages: Tensor, scored: Scored, new: BatchStatistics, state: State) -> Tensor:
        """Return the advantages with 0 at the chosen tokens of a microbatch, under the current policy."""
        if self.selection == "batch":
            return advantages
        logprobs = new.logprobs.detach()
        tokens = Tokens.of(logprobs, scored.old.logprobs, scored.batch.mask.bool())
        clipped = Clip(low=self.clip_low, high=self.clip_high).clipped(tokens, advantages)
        return advantages * ~self._chosen(advantages, logprobs, scored.trained, scored.marks[_DRAWS], clipped)

    def _chosen(
        self, advantages: Tensor, logprobs: Tensor, mask: Tensor, draws: Tensor, excluded: Tensor | None = None
    ) -> Tensor:
        """Return the eligible tokens with the largest draws: every set of them is as likely as any other."""
        value = covariance(logprobs, advantages, mask)
        eligible = mask.bool() & (value > self.low) & (value < self.high)
        if excluded is not None:
            eligible = eligible & ~excluded
        return largest(draws, eligible, max(share_of(mask, self.share), 1))


def _draws(scored: Scored) -> Tensor:
    """Return a uniform number for each token, [B, T], the same on every device."""
    mask = scored.batch.mask
    return torch.rand(mask.shape, generator=scored.step.generator(_DRAWS)).to(mask.device) * mask
