"""Forking tokens: only the most uncertain fifth of the tokens has a policy gradient (2506.01939)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from aepo.control.base import Control, Scored, State
from aepo.control.tokens import top_share
from aepo.errors import require


@dataclass(frozen=True, kw_only=True)
class ForkingTokens(Control):
    """`ForkingTokens` is A_t where H_t >= tau, else 0.

    2506.01939 ("Beyond the 80/20 rule"): tau (nats) is the floor(share * N)-th largest entropy of the N trained tokens,
    so tokens that tie with it are all kept, whatever their order in the batch. Every token keeps its place in the
    aggregate: the loss is divided by all tokens, not by the kept ones.
    """

    name: ClassVar[str] = "forking-tokens"
    share: float = 0.2
    """Share of the tokens that have a gradient; the paper's rho is 0.2. 1 is the base algorithm."""

    def __post_init__(self) -> None:
        require(0 < self.share <= 1, "control.share", self.share, "a share of the tokens in (0, 1]")

    def shape(self, advantages: Tensor, scored: Scored, state: State) -> Tensor:
        """Return the advantages with 0 at the tokens under the threshold."""
        entropy = scored.entropy
        top = top_share(entropy, scored.trained, self.share, least=1)
        threshold = entropy.masked_fill(~top, math.inf).min()
        return advantages * (entropy >= threshold)
