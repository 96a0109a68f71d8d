"""The functions of this module turn a task's problems into prompts, and completions into rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aepo.engines.stages import rewarded
from aepo.model.policy import Policy
from aepo.tasks import Problem, Task
from aepo.tasks.rewards import Verdict
from aepo.types import Completion, Metric, Prompt, Rollout


def take_prompts(task: Task, policy: Policy, seed: int, position: int, count: int) -> list[Prompt]:
    """Return `count` prompts of the task's training stream, from `position` on, as tokens."""
    problems = [task.train_problem(seed, index) for index in range(position, position + count)]
    return [Prompt(p.id, prompt_tokens(policy, p), p.data, solution_tokens(task, policy, p)) for p in problems]


def prompt_tokens(policy: Policy, problem: Problem) -> tuple[int, ...]:
    """Return the problem's tokens: its chat turns in the model's chat template, or else its text."""
    return policy.encode_chat(problem.messages) if problem.messages else policy.encode(problem.text)


def solution_tokens(task: Task, policy: Policy, problem: Problem) -> tuple[int, ...]:
    """Return the tokens of the task's own answer, with the end-of-sequence token.

    If the task has no answer, the tuple is empty.
    """
    text = task.solution(problem.data)
    return () if text is None else (*policy.encode(text), policy.eos_token_ids[0])


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


def reward(task: Task, policy: Policy, completions: Sequence[Completion], place: tuple[int, int] = (0, 0)) -> Judged:
    """Judge completions with the task's verifier.

    Args:
        task: The task.
        policy: The policy, for its tokenizer.
        completions: The completions.
        place: The number of finished steps and the number of all steps of the run; (0, 0) outside a run.
    """
    verdicts = judged(task, policy, completions, place)
    rollouts = [
        Rollout(completion, verdict.reward, verdict=verdict.right, parts=verdict.parts, logged=verdict.logged)
        for completion, verdict in zip(completions, verdicts, strict=True)
    ]
    failures = [verdict.reason for verdict in verdicts if verdict.failed]
    metrics: dict[str, Metric] = {}
    for verdict in verdicts:
        for name, value in verdict.metrics.items():
            metrics[name] = metrics.get(name, Metric(0.0, 0)) + Metric(value, 1)
    return Judged(rewarded(rollouts, task.right_rule), failures, metrics)


def judged(
    task: Task, policy: Policy, completions: Sequence[Completion], place: tuple[int, int] = (0, 0)
) -> list[Verdict]:
    """Return the verdict on each completion. The arguments are those of `reward`."""
    tokens = [completion.tokens for completion in completions]
    problems = [completion.prompt.problem for completion in completions]
    texts = policy.decode(tokens, special_tokens=task.special_tokens)
    return task.judge(problems, texts, [completion.truncated for completion in completions], tokens, place)
