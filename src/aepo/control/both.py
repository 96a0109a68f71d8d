"""Two controls in one run, such as AEPO with dynamic sampling. `--method aepo+dynamic-sampling` makes one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from aepo.control.base import (
    NOT_REPORTED,
    Control,
    ExtraGroup,
    FollowUp,
    Measured,
    Needs,
    NoControl,
    Scored,
    State,
    Step,
    moments,
)
from aepo.errors import InvalidValue
from aepo.loss.surrogates import Bounds
from aepo.types import Rollout, Sample, TokenStats, TokenTemperature

# At these moments there is one answer, so at most one of the two may give it.
EXCLUSIVE = ("plan", "token_temperature", "reward", "bounds", "replay")


@dataclass(frozen=True, kw_only=True)
class Both(Control):
    """`first`, then `second` on what the first made of it; each keeps its own state."""

    name: ClassVar[str] = "both"
    first: Control = NoControl()
    second: Control = NoControl()

    def __post_init__(self) -> None:
        names = f"{self.first.name} and {self.second.name}"
        shared = [moment for moment in EXCLUSIVE if all(moment in moments(part) for part in self._pair)]
        if shared:
            raise InvalidValue("control", names, f"two controls of which only one has the moment {shared[0]}")
        if all(part.needs(part.initial_state()).kept for part in self._pair):
            raise InvalidValue("control", names, "two controls of which one looks at a part of the vocabulary")

    @property
    def parts(self) -> tuple[Control, ...]:
        """Those of both."""
        return self.first.parts + self.second.parts

    @property
    def _pair(self) -> tuple[Control, Control]:
        return self.first, self.second

    def _of(self, state: State) -> tuple[State, State]:
        return state["first"], state["second"]

    @property
    def shuffle(self) -> bool:  # type: ignore[override]
        """Spread the rows unless one of the two keeps them in place."""
        return self.first.shuffle and self.second.shuffle

    @property
    def acts_off_policy(self) -> bool:  # type: ignore[override]
        """If either does."""
        return self.first.acts_off_policy or self.second.acts_off_policy

    def initial_state(self) -> State:
        """Both states."""
        return {"first": self.first.initial_state(), "second": self.second.initial_state()}

    def needs(self, state: State) -> Needs:
        """What either reads."""
        a, b = (part.needs(own) for part, own in zip(self._pair, self._of(state), strict=True))
        return Needs(
            temperatures=tuple(dict.fromkeys(a.temperatures + b.temperatures)),
            entropy_gradient=a.entropy_gradient or b.entropy_gradient,
            kept=a.kept or b.kept,
            reference=a.reference or b.reference,
        )

    def plan(self, state: State, step: Step) -> tuple[ExtraGroup, ...]:
        """The one that plans."""
        first, second = self._of(state)
        return self.first.plan(first, step) + self.second.plan(second, step)

    def token_temperature(self, state: State) -> TokenTemperature | None:
        """The one that has it."""
        first, second = self._of(state)
        return self.first.token_temperature(first) or self.second.token_temperature(second)

    def follow_up(self, rollouts: Sequence[Rollout], state: State, step: Step) -> FollowUp:
        """The extra groups of both, and as many new prompts as the one that wants more of them."""
        first, second = self._of(state)
        a, b = self.first.follow_up(rollouts, first, step), self.second.follow_up(rollouts, second, step)
        return FollowUp(a.extra + b.extra, max(a.prompts, b.prompts))

    def reward(self, rollouts: Sequence[Rollout], state: State, step: Step) -> list[float]:
        """The one that changes them."""
        first, second = self._of(state)
        if "reward" in moments(self.first):
            return self.first.reward(rollouts, first, step)
        return self.second.reward(rollouts, second, step)

    def mix(self, ordinary: Sequence[Sample], extra: Sequence[Sample], state: State, step: Step) -> list[Sample]:
        """The second's choice from the rows that the first left."""
        first, second = self._of(state)
        rows = self.first.mix(ordinary, extra, first, step)
        kept = [sample for sample in rows if not sample.extra], [sample for sample in rows if sample.extra]
        return self.second.mix(*kept, second, step) if "mix" in moments(self.second) else rows

    def mark(self, scored: Scored, state: State) -> Mapping[str, Tensor]:
        """The marks of both."""
        first, second = self._of(state)
        return {**self.first.mark(scored, first), **self.second.mark(scored, second)}

    def shape(self, advantages: Tensor, scored: Scored, state: State) -> Tensor:
        """The second's of the first's."""
        first, second = self._of(state)
        return self.second.shape(self.first.shape(advantages, scored, first), scored, second)

    def reshape(self, advantages: Tensor, scored: Scored, new: TokenStats, state: State) -> Tensor:
        """The second's of the first's."""
        first, second = self._of(state)
        return self.second.reshape(self.first.reshape(advantages, scored, new, first), scored, new, second)

    def bounds(self, scored: Scored, state: State) -> Bounds | None:
        """The one that has them."""
        first, second = self._of(state)
        return self.first.bounds(scored, first) or self.second.bounds(scored, second)

    def penalty(self, scored: Scored, new: TokenStats, state: State) -> Tensor | None:
        """The sum."""
        parts = [part.penalty(scored, new, own) for part, own in zip(self._pair, self._of(state), strict=True)]
        given = [penalty for penalty in parts if penalty is not None]
        return sum(given[1:], given[0]) if given else None

    def replay(self, state: State, step: Step) -> tuple[Sample, ...]:
        """The one that replays."""
        first, second = self._of(state)
        return self.first.replay(first, step) + self.second.replay(second, step)

    def update(self, state: State, measured: Measured) -> State:
        """Each its own."""
        first, second = self._of(state)
        return {"first": self.first.update(first, measured), "second": self.second.update(second, measured)}

    def report(self, before: State, after: State) -> dict[str, Any]:
        """The first's, and the second's where the first has nothing to say."""
        pairs = zip(self._pair, self._of(before), self._of(after), strict=True)
        a, b = (part.report(old, new) for part, old, new in pairs)
        return {key: b[key] if value == NOT_REPORTED[key] else value for key, value in a.items()}
