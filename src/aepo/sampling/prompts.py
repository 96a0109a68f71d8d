"""The functions of this module turn a task's problems into prompts, and completions into rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from aepo.engines.ends import Ends
from aepo.engines.positions import Room
from aepo.engines.stages import rewarded
from aepo.model.encoding import Encoding
from aepo.model.policy import Policy
from aepo.sampling.base import Sampler
from aepo.tasks import Problem, Task
from aepo.tasks.rewards import Begun, Verdict
from aepo.types import Completion, Metric, Prompt, Request, Rollout

# Number of problems, from the first on, whose prompts are checked if a task cannot show all of them.
ASKED = 64


def take_prompts(task: Task, policy: Policy, seed: int, position: int, count: int) -> list[Prompt]:
    """Return `count` prompts of the task's training stream, from `position` on, as tokens.

    A solution that ends beyond the model's positions is left out.
    """
    problems = [task.train_problem(seed, index) for index in range(position, position + count)]
    prompts = [made_prompt(policy, problem, solution_tokens(task, policy, problem)) for problem in problems]
    return [p if policy.room.holds(len(p.tokens) + len(p.solution)) else replace(p, solution=()) for p in prompts]


def made_prompt(policy: Policy, problem: Problem, solution: tuple[int, ...] = ()) -> Prompt:
    """Return the problem as tokens (see `Encoding.prompt`), with its images."""
    images = () if policy.images is None else policy.images.remember(problem.images)
    return Prompt(problem.id, policy.encoding.prompt(problem), problem.data, solution, images)


def fitted(task: Task, policy: Policy, seed: int, room: Room | None = None) -> Task:
    """Return the task after a check of its prompts with this policy, whose ends then fit the form of the prompts.

    Args:
        task: The task.
        policy: The policy.
        seed: The seed of the training stream.
        room: How long a prompt and its completion may be; None takes the policy's.

    Raises:
        InvalidValue: A prompt cannot be shown to this model, or it is too long.
    """
    checked = checked_prompts(task, policy.encoding, seed, room or policy.room)
    policy.end_at([checked.first.text])
    return checked.task


@dataclass(frozen=True)
class Checked:
    """`Checked` holds a task whose prompts were checked with a model."""

    task: Task
    """The task, without the rows that were left out."""
    first: Problem
    """Its first problem."""
    longest: int
    """Tokens of the longest prompt that was checked."""
    mean: float
    """Mean number of tokens of those prompts."""


def checked_prompts(task: Task, encoding: Encoding, seed: int, room: Room) -> Checked:
    """Return the task after a check of its prompts.

    Raises:
        InvalidValue: A prompt cannot be shown to this model, or it is too long, for the task or for the model.
    """
    lengths: list[int] = []

    def length(problem: Problem) -> int:
        lengths.append(len(encoding.prompt(problem)))
        return lengths[-1]

    checked = task.fitted(length)
    allowed = getattr(task, "max_prompt", math.inf)
    kept = [tokens for tokens in lengths if tokens <= allowed]
    # A task whose prompts have no end checks none of them. The sampler refuses a later one that is too long.
    kept = kept or [length(checked.train_problem(seed, index)) for index in range(ASKED)]
    room.limit(max(kept), checked.max_tokens)
    return Checked(checked, checked.train_problem(seed, 0), max(kept), sum(kept) / len(kept))


def ends_line(ends: Ends, stops: Sequence[str]) -> str:
    """Return where a completion ends, as one line for people: the tokens with their places, and the stop strings."""
    texts = f", or with the text {' or '.join(map(repr, stops))}" if stops else ""
    return ends.line() + texts


def solution_tokens(task: Task, policy: Policy, problem: Problem) -> tuple[int, ...]:
    """Return the tokens of the task's own answer, with the token that ends it: the end of turn in a chat.

    If the task has no answer, or one that spells the token of an image, the tuple is empty.
    """
    text = task.solution(problem.data)
    tokens = () if text is None else policy.encode(text)
    spelled = policy.images is not None and not set(tokens).isdisjoint(policy.images.places)
    return () if text is None or spelled else (*tokens, policy.ends.of_answer(bool(problem.messages)))


@dataclass(frozen=True)
class Judged:
    """`Judged` holds what a task's verifier said of some completions."""

    rollouts: list[Rollout]
    """The completions with a finite reward; `right` is set by the task's rule. A completion whose grade failed is here
    with reward 0. One whose reward function failed, or gave no score, is not.
    """
    failures: list[str]
    """The reason of each verdict that failed."""
    metrics: dict[str, Metric]
    """What the reward functions log of their calls, by name."""


class Judging:
    """`Judging` draws completions and judges them with the task's verifier.

    If the verifier works in the background, it judges those that have ended while the sampler goes on. All others are
    judged at once, after the last has ended. If the `with` block ends by an error, what still runs is stopped.

    Args:
        task: The task.
        policy: The policy, for its tokenizer.
        place: The number of finished steps and the number of all steps of the run; (0, 0) outside a run.
    """

    def __init__(self, task: Task, policy: Policy, place: tuple[int, int] = (0, 0)) -> None:
        self._task, self._policy, self._place = task, policy, place
        self._begun: list[tuple[tuple[int, ...], Begun]] = []

    def __enter__(self) -> Judging:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        for _, begun in self._begun if kind is not None else ():
            begun.stop()

    def sample(
        self, sampler: Sampler, requests: Sequence[Request], *, max_tokens: int, generator: torch.Generator
    ) -> list[Completion]:
        """Return what the sampler draws; the arguments are those of its `sample`."""
        sampler.ended = self._begin if self._task.background else None
        try:
            return sampler.sample(requests, max_tokens=max_tokens, generator=generator)
        finally:
            sampler.ended = None

    def verdicts(self, completions: Sequence[Completion]) -> list[Verdict]:
        """Wait for the verdicts on all completions, in order: those of `sample`, or any if it was not called."""
        begun = {number for numbers, _ in self._begun for number in numbers}
        rest = {number: one for number, one in enumerate(completions) if number not in begun}
        if rest:
            self._begin(rest)
        found: dict[int, Verdict] = {}
        for numbers, some in self._begun:
            found |= zip(numbers, some.wait(), strict=True)
        return [found[number] for number in range(len(completions))]

    def rewards(self, completions: Sequence[Completion]) -> Judged:
        """Wait for the rewards of all completions; see `verdicts`."""
        verdicts = self.verdicts(completions)
        rollouts = [
            Rollout(completion, verdict.reward, verdict=verdict.right, parts=verdict.parts, logged=verdict.logged)
            for completion, verdict in zip(completions, verdicts, strict=True)
        ]
        failures = [verdict.reason for verdict in verdicts if verdict.failed]
        metrics: dict[str, Metric] = {}
        for verdict in verdicts:
            for name, value in verdict.metrics.items():
                metrics[name] = metrics.get(name, Metric(0.0, 0)) + Metric(value, 1)
        return Judged(rewarded(rollouts, self._task.right_rule), failures, metrics)

    def _begin(self, completions: Mapping[int, Completion]) -> None:
        some = list(completions.values())
        tokens = [completion.tokens for completion in some]
        problems = [completion.prompt.problem for completion in some]
        texts = self._policy.decode(tokens, special_tokens=self._task.special_tokens)
        truncated = [completion.truncated for completion in some]
        given = (problems, texts, truncated, tokens, self._place)
        # A task of one's own may define `judge` alone.
        begun = self._task.start(*given) if self._task.background else Begun(partial(self._task.judge, *given))
        self._begun.append((tuple(completions), begun))


def reward(task: Task, policy: Policy, completions: Sequence[Completion], place: tuple[int, int] = (0, 0)) -> Judged:
    """Judge completions with the task's verifier.

    Args:
        task: The task.
        policy: The policy, for its tokenizer.
        completions: The completions.
        place: The number of finished steps and the number of all steps of the run; (0, 0) outside a run.
    """
    with Judging(task, policy, place) as judging:
        return judging.rewards(completions)
