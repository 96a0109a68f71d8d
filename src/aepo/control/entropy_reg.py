"""Entropy-Reg: a fixed entropy bonus in the loss, L - coefficient * H (the papers' baseline)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from aepo.control.base import Control, Needs, Scored, State
from aepo.control.schedules import Schedule
from aepo.types import BatchStatistics, asked_for


@dataclass(frozen=True, kw_only=True)
class EntropyReg(Control):
    """`EntropyReg` is J + coefficient(step) * H, with the exact entropy's gradient.

    2510.08141 uses 0.03 (v1) and 0.015 (v6). The bonus is not the mean of -log pi(o_t) that the authors' code
    differentiates: E[grad log pi] = 0, so that gradient has zero mean on-policy, and off-policy it pushes away from the
    samples just taken.
    """

    name: ClassVar[str] = "entropy-reg"
    coefficient: Schedule = Schedule("0.03")
    """Coefficient of the bonus: a number or a schedule. A negative one lowers entropy (PARL's sign)."""

    def needs(self, state: State) -> Needs:
        """Ask for the entropy with its gradient."""
        return Needs(entropy_gradient=True)

    def penalty(self, scored: Scored, new: BatchStatistics, state: State) -> Tensor:
        """Return -coefficient * H_t."""
        return -self.coefficient.at(scored.step.number) * asked_for(new.entropy)
