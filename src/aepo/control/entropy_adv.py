"""Entropy-Adv: advantages rise where the policy was uncertain (2506.14758)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aepo.control.base import Control, Scored, State
from aepo.errors import require


@dataclass(frozen=True, kw_only=True)
class EntropyAdv(Control):
    """`EntropyAdv` is A + min(alpha * H_t, |A| / kappa), H_t without gradient.

    2506.14758: alpha 0.4 with GRPO, 0.1 with PPO; kappa 2 (AEPO writes beta for alpha). The bound keeps the sign of A,
    and a zero advantage stays zero. The authors read H_t in the current forward pass; here it is the sampling policy's,
    so that it does not depend on the minibatch's place in the step.
    """

    name: ClassVar[str] = "entropy-adv"
    alpha: float = 0.4
    """Advantage per nat of entropy."""
    kappa: float = 2.0
    """The addition is at most |A| / kappa; above 1, so that the sign of A is kept."""

    def __post_init__(self) -> None:
        require(self.alpha > 0, "control.alpha", self.alpha, "a positive number")
        require(self.kappa > 1, "control.kappa", self.kappa, "above 1, so that the sign of A is kept")

    def shape(self, advantages: Tensor, scored: Scored, state: State) -> Tensor:
        """Return A + min(alpha * H_t, |A| / kappa)."""
        return advantages + torch.minimum(self.alpha * scored.entropy, advantages.abs() / self.kappa)
