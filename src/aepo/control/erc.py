"""ERC: a token whose entropy has moved too far since sampling gets no gradient (2512.05591)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from aepo.control.base import Control, Needs, Scored, State
from aepo.errors import require
from aepo.types import BatchStatistics, asked_for

# Both entropies are raised by this before the ratio, nats, as in the authors' code.
ENTROPY_EPSILON = 1e-8
# Nats. A difference within it is rounding noise of two passes over equal weights; at tokens of almost no entropy it
# would be a ratio far from 1.
ROUNDING = 1e-5


@dataclass(frozen=True, kw_only=True)
class ERC(Control):
    """`ERC` is A_t where low < H_t(pi) / H_t(pi_old) < high, else 0: entropy ratio clipping (2512.05591).

    H_t is the exact entropy of the token's position, and pi_old the policy that sampled. The clip of the probability
    ratio sees the sampled token alone; this one sees the whole distribution. In the first update after sampling the
    ratio is 1, so nothing happens.
    """

    name: ClassVar[str] = "erc"
    acts_off_policy = True
    low: float = 0.95
    """Lower limit of the entropy ratio."""
    high: float = 1.05
    """Upper limit of the entropy ratio."""

    def __post_init__(self) -> None:
        require(0 <= self.low < 1, "control.low", self.low, "a ratio in [0, 1)")
        require(1 < self.high < math.inf, "control.high", self.high, "a finite ratio above 1")

    def needs(self, state: State) -> Needs:
        """Ask for the entropy in the passes of the update."""
        return Needs(entropy_gradient=True)

    def reshape(self, advantages: Tensor, scored: Scored, new: BatchStatistics, state: State) -> Tensor:
        """Return the advantages with 0 where the entropy ratio has left its limits."""
        entropy, old = asked_for(new.entropy).detach(), scored.entropy
        ratio = (entropy + ENTROPY_EPSILON) / (old + ENTROPY_EPSILON)
        inside = ((ratio > self.low) & (ratio < self.high)) | ((entropy - old).abs() <= ROUNDING)
        return advantages * inside
