"""The functions of this module turn a task's problems into prompts, and completions into rewards."""

from __future__ import annotations

from collections.abc import Sequence

from aepo.engines.stages import rewarded
from aepo.model.policy import Policy
from aepo.tasks import Problem, Task
from aepo.types import Completion, Prompt, Rollout


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


def reward(task: Task, policy: Policy, completions: Sequence[Completion]) -> tuple[list[Rollout], list[str]]:
    """Judge completions with the task's verifier.

    Returns:
        The rollouts whose reward is a finite number, and the reason of each verdict that failed. A completion whose
        grade failed is in both lists, with reward 0. One whose reward function failed is only in the second. One for
        which the function returned None is in neither.
    """
    texts = policy.decode([completion.tokens for completion in completions])
    problems = [completion.prompt.problem for completion in completions]
    verdicts = task.judge(problems, texts, [c.truncated for c in completions], [c.tokens for c in completions])
    rollouts = [
        Rollout(completion, verdict.reward, {"reason": verdict.reason, **verdict.details} if verdict.details else {})
        for completion, verdict in zip(completions, verdicts, strict=True)
    ]
    return rewarded(rollouts), [verdict.reason for verdict in verdicts if verdict.failed]
