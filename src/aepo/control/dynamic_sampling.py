"""Dynamic sampling: draw prompts until enough groups have something to learn from (DAPO, 2503.14476)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from aepo.control.base import Control, FollowUp, State, Step
from aepo.errors import InvalidValue, require
from aepo.types import Rollout, Sample


@dataclass(frozen=True, kw_only=True)
class DynamicSampling(Control):
    """`DynamicSampling` draws new prompts while fewer groups than the step's number have differing rewards.

    2503.14476, Eq. 11 (0 < right answers < G) and section 3.2. The first `step.prompts` groups whose verifier's rewards
    differ are trained on; the others stay in the batch for the sensor.
    """

    name: ClassVar[str] = "dynamic-sampling"
    prompts_per_round: int | None = None
    """New prompts of each further round; none for as many as the step has. The authors' code draws 3 times the prompts
    that it trains on in each round.
    """
    max_rounds: int = 10
    """Rounds in all, the first one included, before the run ends with an error; 0 or less for no limit. The authors'
    code stops after 10 rounds.
    """

    def __post_init__(self) -> None:
        wanted = "at least 1 prompt, or none for as many as the step has"
        ok = self.prompts_per_round is None or self.prompts_per_round >= 1
        require(ok, "control.prompts_per_round", self.prompts_per_round, wanted)

    def follow_up(self, rollouts: Sequence[Rollout], state: State, step: Step) -> FollowUp:
        """Ask for a round of new prompts while too few groups differ.

        Raises:
            InvalidValue: There have been `max_rounds` rounds.
        """
        groups = ordinary_groups(rollouts, step.temperature)
        found = sum(map(differ, groups.values()))
        if not groups or found >= step.prompts:
            return FollowUp()
        per_round = self.prompts_per_round or step.prompts
        rounds = rounds_drawn(len(groups), step, per_round)
        if 0 < self.max_rounds <= rounds:
            so_far = f"after {rounds} rounds the rewards of {found} groups differ, of {step.prompts} wanted"
            raise InvalidValue("control.max_rounds", self.max_rounds, f"larger, or 0 for no limit: {so_far}")
        return FollowUp(prompts=per_round)

    def mix(self, ordinary: Sequence[Sample], extra: Sequence[Sample], state: State, step: Step) -> list[Sample]:
        """Return all rows, with those that are measured only marked as not trained on.

        These are the rows of constant groups, and of groups beyond the wanted number.
        """
        groups = by_group(sample.rollout for sample in ordinary)
        good = [number for number in sorted(groups) if differ(groups[number])]
        trained = set(good[: step.prompts])
        kept = [s if s.rollout.completion.group in trained else replace(s, trained=False) for s in ordinary]
        return [*kept, *extra]


def differ(rollouts: Iterable[Rollout]) -> bool:
    """Return whether the verifier gave these different rewards."""
    return len({rollout.reward for rollout in rollouts}) > 1


def by_group(rollouts: Iterable[Rollout]) -> dict[int, list[Rollout]]:
    """Return the rollouts by the number of their group."""
    groups: dict[int, list[Rollout]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.completion.group, []).append(rollout)
    return groups


def ordinary_groups(rollouts: Iterable[Rollout], temperature: float = 1.0) -> Mapping[int, list[Rollout]]:
    """Return the ordinary groups of what `follow_up` is shown, by their number.

    An extra group draws once more of a prompt that already has its ordinary group. Prompts are told apart as objects,
    because a problem of the stream may come twice in a step, and then as two prompts.

    Args:
        rollouts: The rollouts of the step.
        temperature: The temperature of ordinary completions.
    """
    groups, prompts = by_group(rollouts), set[int]()
    ordinary: dict[int, list[Rollout]] = {}
    for number in sorted(groups):
        completion = groups[number][0].completion
        if completion.temperature == temperature and id(completion.prompt) not in prompts:
            ordinary[number] = groups[number]
            prompts.add(id(completion.prompt))
    return ordinary


def rounds_drawn(groups: int, step: Step, per_round: int) -> int:
    """Return how many rounds of new prompts there have been, given the number of ordinary groups."""
    return 1 + max(0, -(-(groups - step.prompts) // per_round))
