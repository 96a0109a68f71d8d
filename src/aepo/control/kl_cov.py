"""KL-Cov: the tokens whose update would lower entropy most are held near the sampling policy (2505.22617)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from aepo.control.base import Control, Scored, State
from aepo.control.tokens import covariance, top_share
from aepo.errors import require
from aepo.types import BatchStatistics

_CHOSEN = "kl-cov"
# Nats. A log-ratio within it is rounding noise of two passes over equal weights, and its sign means nothing.
ROUNDING = 1e-5


@dataclass(frozen=True, kw_only=True)
class KLCov(Control):
    """`KLCov` adds beta * |log pi - log pi_old| to the loss of the max(1, floor(share * N)) tokens of the largest C_t.

    2505.22617: C_t as in Eq. 10, (log pi(y_t) - mean log pi) (A_t - mean A), means over the N tokens. The loss goes
    with the surrogate `ratio`, that is, without any clip. The gradient is beta * sign(log pi - log pi_old) and 0 where
    they are equal up to `ROUNDING`, so nothing happens in the first update after sampling.
    """

    name: ClassVar[str] = "kl-cov"
    acts_off_policy = True
    share: float = 2e-3
    """Share of the tokens that are held; the paper's k as a fraction, 2e-3 for 7B and 2e-4 for 32B models."""
    beta: float = 1.0
    """Coefficient of the term."""
    selection: Literal["batch", "microbatch"] = "batch"
    """`batch` chooses once, among the trained tokens of the whole step, under the policy that sampled them and with the
    algorithm's advantages, before any control's `shape`. `microbatch` is the authors' code: it chooses in each pass,
    under the current policy.
    """

    def __post_init__(self) -> None:
        require(0 < self.share <= 1, "control.share", self.share, "a share of the tokens in (0, 1]")
        require(self.beta > 0, "control.beta", self.beta, "a positive number")

    def mark(self, scored: Scored, state: State) -> Mapping[str, Tensor]:
        """Return the chosen tokens for `batch`: 1.0, else 0."""
        return {} if self.selection == "microbatch" else {_CHOSEN: self._chosen(scored, scored.old.logprobs)}

    def penalty(self, scored: Scored, new: BatchStatistics, state: State) -> Tensor:
        """Return beta * |log pi - log pi_old| on the chosen tokens, else 0."""
        batch = self.selection == "batch"
        chosen = scored.marks[_CHOSEN] if batch else self._chosen(scored, new.logprobs.detach())
        distance = (new.logprobs - scored.old.logprobs).abs()
        return self.beta * chosen * torch.where(distance > ROUNDING, distance, 0.0)

    def _chosen(self, scored: Scored, logprobs: Tensor) -> Tensor:
        value = covariance(logprobs, scored.batch.advantages, scored.trained)
        return top_share(value, scored.trained, self.share, least=1).to(logprobs.dtype)
