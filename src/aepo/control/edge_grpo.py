"""EDGE: a completion's advantage grows with its confidence relative to the batch (2507.21848)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from aepo.control.base import Control, Scored, State
from aepo.control.tokens import masked_mean, row_mean
from aepo.errors import require


@dataclass(frozen=True, kw_only=True)
class EDGE(Control):
    """`EDGE` is A_i * (mean over completions of H_j) / H_i, with a factor of at most `most`.

    H_i is the mean token entropy of completion i (nats). This is the entropy-driven advantage of EDGE-GRPO
    (2507.21848): confident right answers are rewarded more and confident wrong ones punished more. Its guided error
    correction is left out. The mean is over the trained completions, each counted once, under the policy that sampled
    them. Where all completions have zero entropy, nothing changes.
    """

    name: ClassVar[str] = "edge-grpo"
    most: float = 10.0
    """Largest factor; a completion of zero entropy gets it too. The paper has no bound."""

    def __post_init__(self) -> None:
        require(1 <= self.most < math.inf, "control.most", self.most, "a finite factor, 1 or more")

    def shape(self, advantages: Tensor, scored: Scored, state: State) -> Tensor:
        """Return every row times its factor."""
        own = row_mean(scored.entropy, scored.batch.mask)
        mean = masked_mean(own, scored.batch.trained)
        if mean <= 0:
            return advantages
        return advantages * (mean / own.clamp(min=mean / self.most))[:, None]
