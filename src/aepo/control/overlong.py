"""Overlong shaping: a punishment that grows towards the length limit instead of one at the limit (DAPO, 2503.14476)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from aepo.control.base import Control, State, Step
from aepo.errors import require
from aepo.types import Rollout, Sample


@dataclass(frozen=True, kw_only=True)
class OverlongShaping(Control):
    """`OverlongShaping` is reward + min(-(length - (L_max - L_c)) / L_c * factor, 0), lengths in tokens.

    2503.14476, Eq. 13: nothing up to L_max - L_c, then linear to -factor at L_max. A length includes the
    end-of-sequence token.
    """

    name: ClassVar[str] = "overlong"
    lowers_rewards = True
    longest: int | None = None
    """L_max, in tokens; none for the longest completion that is sampled."""
    buffer: int | float = 0.2
    """L_c, in tokens (integer) or as a share of L_max (fraction); the paper has 4096 of 20480."""
    factor: float = 1.0
    """Punishment at L_max; 1 in the paper."""
    filter_truncated: bool = False
    """Do not train on completions that were cut at the limit: the paper's overlong filtering, which its best runs do
    without.
    """

    def __post_init__(self) -> None:
        ok = self.longest is None or self.longest >= 1
        require(ok, "control.longest", self.longest, "at least 1 token, or none for the longest that is sampled")
        ok = self.buffer >= 1 if isinstance(self.buffer, int) else 0 < self.buffer <= 1
        require(ok, "control.buffer", self.buffer, "tokens (integer, at least 1) or a share of the longest (up to 1.0)")
        require(self.factor > 0, "control.factor", self.factor, "a positive number")
        if self.longest is not None:
            self._zone(self.longest)

    def reward(self, rollouts: Sequence[Rollout], state: State, step: Step) -> list[float]:
        """Return the verifier's rewards less the punishment, for extra completions too."""
        start, zone = self._zone(self.longest or step.max_tokens)
        excess = [len(rollout.completion.tokens) - start for rollout in rollouts]
        return [r.reward + min(-e / zone * self.factor, 0.0) for r, e in zip(rollouts, excess, strict=True)]

    def mix(self, ordinary: Sequence[Sample], extra: Sequence[Sample], state: State, step: Step) -> list[Sample]:
        """Return all rows, or with `filter_truncated` without the truncated ones.

        Truncated ordinary rows stay to be measured and are not trained on. Truncated extra rows are dropped.
        """
        if not self.filter_truncated:
            return [*ordinary, *extra]
        kept = [replace(s, trained=False) if s.rollout.completion.truncated else s for s in ordinary]
        return [*kept, *(s for s in extra if not s.rollout.completion.truncated)]

    def _zone(self, longest: int) -> tuple[float, float]:
        """Return the length at which the punishment begins, and over how many tokens it grows."""
        size = self.buffer if isinstance(self.buffer, int) else self.buffer * longest
        require(size <= longest, "control.buffer", self.buffer, f"at most the longest completion ({longest} tokens)")
        return longest - size, size
