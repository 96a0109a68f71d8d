"""REPO: advantages lose the part that goes with the token's log-probability, as the entropy asks (2603.11682)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from aepo.control.base import Control, Measured, Needs, Scored, State
from aepo.control.closed_loop import at_targets, compared, followed
from aepo.control.laws import Law
from aepo.control.schedules import Target
from aepo.errors import require
from aepo.types import BatchStatistics, asked_for

# log pi is raised to this, nats.
LEAST_LOGPROB = -20.0


@dataclass(frozen=True, kw_only=True)
class REPO(Control):
    """`REPO` makes unlikely tokens count more and likely ones less while the entropy is below the target (2603.11682).

        form rescaled (REPO-R):  A > 0:  max(0, A (1 - zeta log pi))      A < 0:  min(0, A (1 + zeta log pi))
        form centred (REPO):     A - zeta (log pi + H_t)

    log pi is that of the sampled token under the current policy, without gradient, and H_t the entropy of its position.
    After each step zeta doubles towards the side that the entropy asks for, up to `most`, and halves where it is on the
    other side; under `least` it changes to the other sign. A zeta below 0 lowers the entropy.

    State: `coefficient` is zeta, and `first_entropy`, `target_entropy`, `error` as in a closed loop; with a law also
    its `command` and what it remembers, `law`.
    """

    name: ClassVar[str] = "repo"
    target: Target = Target("1x")
    """Entropy to hold: nats per token, or a multiple of the first measured entropy, or a schedule."""
    form: Literal["rescaled", "centred"] = "rescaled"
    """Which of the two formulas acts."""
    start: float = 1e-3
    """zeta of the first step; below 0 it lowers the entropy."""
    least: float = 1e-4
    """Smallest |zeta|."""
    most: float = 0.05
    """Largest |zeta|."""
    law: Law | None = None
    """A law that moves zeta in place of doubling and halving: zeta is `most` times its command. None keeps the own
    rule.
    """

    def __post_init__(self) -> None:
        require(0 < self.most < math.inf, "control.most", self.most, "a finite, positive number")
        require(0 < self.least <= self.most, "control.least", self.least, f"a positive number up to most, {self.most}")
        require(abs(self.start) <= self.most, "control.start", self.start, f"a number in [-{self.most}, {self.most}]")

    def initial_state(self) -> State:
        """Return a state with the first zeta and nothing measured."""
        return {"coefficient": self.start, "first_entropy": None}

    def needs(self, state: State) -> Needs:
        """Ask for the entropy in the passes of the update where the formula has it."""
        return Needs(entropy_gradient=self.form == "centred")

    def reshape(self, advantages: Tensor, scored: Scored, new: BatchStatistics, state: State) -> Tensor:
        """Return the advantages that the formula makes of log pi under the current policy."""
        zeta: float = state["coefficient"]
        logprobs = new.logprobs.detach().clamp(min=LEAST_LOGPROB)
        if self.form == "centred":
            centred = (logprobs + asked_for(new.entropy).detach()) * scored.batch.mask
            return advantages - zeta * centred
        raised = (advantages * (1 - zeta * logprobs)).clamp(min=0)
        lowered = (advantages * (1 + zeta * logprobs)).clamp(max=0)
        return torch.where(advantages > 0, raised, torch.where(advantages < 0, lowered, advantages))

    def update(self, state: State, measured: Measured) -> State:
        """Return the state with zeta of the next step."""
        known = compared(state, self.target, measured.entropy.mean, measured.step)
        if known is None:
            return state
        zeta: float = state["coefficient"]
        if self.law is None:
            return {**known, "coefficient": self._moved(zeta, known["error"])}
        bands = at_targets(self.target.at, measured.step, known["first_entropy"])
        acted = zeta / self.most
        changed = followed(self.law, state, bands, measured.entropy.mean, measured.entropy_se, acted)
        return {**known, **changed, "coefficient": self.most * changed["command"]}

    def _moved(self, zeta: float, error: float) -> float:
        """Return zeta after a step with this error: doubled on its own side of 0, halved or turned on the other."""
        if error == 0:
            return zeta
        side = math.copysign(1.0, error)
        along = side * zeta
        if along > 0:
            return side * min(self.most, 2 * along)
        halved = along / 2
        return side * (halved if halved <= -self.least else self.least)
