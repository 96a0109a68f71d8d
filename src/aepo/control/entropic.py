"""EntroPIC: a PI controller moves weight between right and wrong answers, on confident tokens (2511.15248)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from aepo.control.base import Scored, State
from aepo.control.closed_loop import ClosedLoop
from aepo.control.laws import PI, Law
from aepo.errors import require


@dataclass(frozen=True, kw_only=True)
class EntroPIC(ClosedLoop):
    """`EntroPIC` is A_t (1 + a) for A_t > 0 and A_t (1 - a) for A_t < 0, at tokens with pi(y_t) > threshold.

    2511.15248: a = clip(Kp e + Ki sum e, -1, 1) with e = entropy - target, in nats. The error here is target - entropy,
    so a is minus the command: entropy under the target lowers the weight of confident positives, which make the policy
    more certain, and raises that of confident negatives. Weights stay within [0, 2].
    """

    name: ClassVar[str] = "entropic"
    law: Law = PI(gain=1.0, integral_steps=100.0)
    """How the error becomes the command: PI with gain = Kp and gain / integral_steps = Ki. The default is the authors'
    code, Kp 1 and Ki 0.01 (not checked against the paper).
    """
    threshold: float = 0.95
    """Probability above which a token counts as confident, under the policy that sampled (not checked against the
    paper).
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.threshold < 1, "control.threshold", self.threshold, "a probability in (0, 1)")

    def shape(self, advantages: Tensor, scored: Scored, state: State) -> Tensor:
        """Return A - command |A| at confident tokens."""
        command: float = state["command"] or 0.0
        confident = scored.old.logprobs > math.log(self.threshold)
        return advantages - command * advantages.abs() * confident
