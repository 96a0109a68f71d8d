"""Lp-Reg: unlikely tokens of wrong answers are held near a proxy without the noise of the vocabulary (2510.03222)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from aepo.control.base import Control, Needs, Scored, State
from aepo.control.tokens import top_share
from aepo.entropy.partial import MinP
from aepo.errors import require
from aepo.loss.policy_loss import k3
from aepo.types import BatchStatistics, asked_for

_CHOSEN = "lp-reg"
# The authors' code limits the estimate of the KL to this, nats; beyond it the term has no gradient.
LARGEST_KL = 10.0


@dataclass(frozen=True, kw_only=True)
class LpReg(Control):
    """`LpReg` adds beta * k3(pi, proxy) to the loss of unlikely tokens of wrong answers (2510.03222).

    The proxy is the policy that sampled, restricted to the tokens of a probability of at least `rho` times the largest
    one, and renormalised: what is below counts as noise. Chosen are the floor(share * N) tokens of the lowest
    log-probability of the N trained tokens with A < 0. Of these, a token has the term while log pi < log proxy, so it
    is drawn up to the proxy and never down. A token outside the proxy has no term. k3 = e^d - d - 1 with d = log proxy
    - log pi, at most 10 nats.
    """

    name: ClassVar[str] = "lp-reg"
    rho: float = 0.02
    """Probability below which a token counts as noise, as a share of the largest probability of its position."""
    share: float = 0.01
    """Share of the tokens with A < 0 that are chosen; 0.01 for 14B and 0.005 for 32B models in the authors' scripts."""
    beta: float = 1.0
    """Coefficient of the term."""
    selection: Literal["batch", "microbatch"] = "batch"
    """`batch` chooses once, among the tokens of the whole step, under the policy that sampled them and with the
    algorithm's advantages, before any control's `shape`. `microbatch` is the authors' code: it chooses in each pass,
    under the current policy.
    """

    def __post_init__(self) -> None:
        require(0 < self.rho <= 1, "control.rho", self.rho, "a share of the largest probability in (0, 1]")
        require(0 < self.share <= 1, "control.share", self.share, "a share of the tokens in (0, 1]")
        require(self.beta > 0, "control.beta", self.beta, "a positive number")

    def needs(self, state: State) -> Needs:
        """Ask for the log-probabilities under the proxy."""
        return Needs(kept=MinP(self.rho))

    def mark(self, scored: Scored, state: State) -> Mapping[str, Tensor]:
        """Return the chosen tokens for `batch`: 1.0, else 0."""
        return {} if self.selection == "microbatch" else {_CHOSEN: self._chosen(scored, scored.old.logprobs)}

    def penalty(self, scored: Scored, new: BatchStatistics, state: State) -> Tensor:
        """Return beta * k3 on the chosen tokens that are under the proxy, else 0."""
        batch = self.selection == "batch"
        chosen = scored.marks[_CHOSEN] if batch else self._chosen(scored, new.logprobs.detach())
        proxy = asked_for(scored.old.kept_logprobs)
        below = chosen.bool() & (new.logprobs.detach() < proxy)
        # Elsewhere the distance is 0, so that a token outside the proxy (-1e20) reaches no exponential.
        divergence = k3(new.logprobs, torch.where(below, proxy, new.logprobs.detach())).clamp(max=LARGEST_KL)
        return self.beta * torch.where(below, divergence, 0.0)

    def _chosen(self, scored: Scored, logprobs: Tensor) -> Tensor:
        wrong = scored.trained * (scored.batch.advantages < 0)
        return top_share(-logprobs, wrong, self.share).to(logprobs.dtype)
