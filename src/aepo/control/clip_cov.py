"""Clip-Cov: a few tokens whose update would lower entropy most are left out of the gradient (2505.22617)."""

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
from aepo.types import TokenStats

_DRAWS = "clip-cov"


@dataclass(frozen=True, kw_only=True)
class ClipCov(Control):
    """No gradient at max(1, floor(share * N)) of the N tokens, drawn at random from those with low < C_t < high.

    2505.22617, Eq. 10: C_t = (log pi(y_t) - mean log pi) (A_t - mean A), nats times advantages, means over the N
    tokens. share is the paper's r, low and high its omega.

    selection: `batch` looks at the trained tokens of the whole step under the policy that sampled them. `microbatch`
        is the authors' code: the tokens of each pass under the current policy, those that the clip has already
        stopped excluded; it depends on the microbatch size.
    clip_low, clip_high: for `microbatch`, the surrogate's clip (`surrogate.low`, `surrogate.high`), which a control
        does not see.

    The draw is a function of the seed and the step, one number for each token.
    """

    name: ClassVar[str] = "clip-cov"
    share: float = 2e-4
    low: float = 1.0
    high: float = 5.0
    selection: Literal["batch", "microbatch"] = "batch"
    clip_low: float = 0.2
    clip_high: float = 0.2

    def __post_init__(self) -> None:
        require(0 < self.share <= 1, "control.share", self.share, "a share of the tokens in (0, 1]")
        require(self.low < self.high, "control.low", self.low, f"a number below control.high ({self.high})")
        require(0 < self.clip_low <= 1, "control.clip_low", self.clip_low, "a number in (0, 1]")
        require(self.clip_high > 0, "control.clip_high", self.clip_high, "a positive number")

    def mark(self, scored: Scored, state: State) -> Mapping[str, Tensor]:
        """For `microbatch`, the draws: a microbatch does not know where in the step it is."""
        return {} if self.selection == "batch" else {_DRAWS: _draws(scored)}

    def shape(self, advantages: Tensor, scored: Scored, state: State) -> Tensor:
        """The chosen tokens' advantages set to 0, over the whole batch."""
        if self.selection == "microbatch":
            return advantages
        return advantages * ~self._chosen(advantages, scored.old.logprobs, scored.trained, _draws(scored))

    def reshape(self, advantages: Tensor, scored: Scored, new: TokenStats, state: State) -> Tensor:
        """The same within a microbatch, under the current policy."""
        if self.selection == "batch":
            return advantages
        logprobs = new.logprobs.detach()
        ratio = (logprobs - scored.old.logprobs).exp()
        clipped = Clip(low=self.clip_low, high=self.clip_high).clipped(ratio, advantages)
        return advantages * ~self._chosen(advantages, logprobs, scored.trained, scored.marks[_DRAWS], clipped)

    def _chosen(
        self, advantages: Tensor, logprobs: Tensor, mask: Tensor, draws: Tensor, excluded: Tensor | None = None
    ) -> Tensor:
        """The eligible tokens with the largest draws: every set of them is as likely as any other."""
        value = covariance(logprobs, advantages, mask)
        eligible = mask.bool() & (value > self.low) & (value < self.high)
        if excluded is not None:
            eligible = eligible & ~excluded
        return largest(draws, eligible, max(share_of(mask, self.share), 1))


def _draws(scored: Scored) -> Tensor:
    """A uniform number for each token, [B, T], the same on every device."""
    mask = scored.batch.mask
    return torch.rand(mask.shape, generator=scored.step.generator(_DRAWS)).to(mask.device) * mask
