"""From a task's problems to prompts, and from completions to rewards."""

from __future__ import annotations

from collections.abc import Sequence

from aepo.engines.stages import rewarded
from aepo.model.policy import Policy
from aepo.tasks import Problem, Task
from aepo.types import Completion, Prompt, Rollout


def take_prompts(task: Task, policy: Policy, seed: int, position: int, count: int) -> list[Prompt]:
    """Return `count` problems of the task's training stream from `position` on, as tokens."""
    problems = [task.train_problem(seed, index) for index in range(position, position + count)]
    return [Prompt(p.id, prompt_tokens(policy, p), p.data, solution_tokens(task, policy, p)) for p in problems]


def prompt_tokens(policy: Policy, problem: Problem) -> tuple[int, ...]:
    """Return the problem's tokens: by the model's chat template if it has chat turns, else those of its text."""
    return policy.encode_chat(problem.messages) if problem.messages else policy.encode(problem.text)


def solution_tokens(task: Task, policy: Policy, problem: Problem) -> tuple[int, ...]:
    """Return the tokens of the task's own answer, end-of-sequence included; empty if the task has no answer."""
    text = task.solution(problem.data)
    return () if text is None else (*policy.encode(text), policy.eos_token_ids[0])


def reward(task: Task, policy: Policy, completions: Sequence[Completion]) -> tuple[list[Rollout], int]:
    """Judge completions.

    Returns:
        The rollouts whose reward is a finite number, and how many verdicts failed.
    """
    texts = policy.decode([completion.tokens for completion in completions])
    problems = [completion.prompt.problem for completion in completions]
    verdicts = task.judge(problems, texts, [completion.truncated for completion in completions])
    rollouts = [Rollout(completion, verdict.reward) for completion, verdict in zip(completions, verdicts, strict=True)]
    return rewarded(rollouts), sum(verdict.failed for verdict in verdicts)
