"""`evaluate` measures a policy on evaluation problems: unbiased pass@k from n samples of each problem."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from aepo.control.base import generator
from aepo.model.policy import Policy
from aepo.sampling.base import Sampler
from aepo.sampling.prompts import Judging, made_prompt
from aepo.tasks import Task
from aepo.training.activity import Activity
from aepo.types import Metric, Prompt, Request


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Return the chance that k of n samples contain a correct one: 1 - C(n-c,k)/C(n,k).

    The k samples are drawn from the n without replacement. The value is an unbiased estimate of 1 - (1 - p)^k
    (2107.03374, eq. 1).

    Args:
        samples: n, the number of samples of a problem.
        correct: c, the number of correct samples among them.
        k: The number of samples that are drawn.

    Raises:
        ValueError: Unless 1 <= k <= n and 0 <= c <= n.

    >>> round(pass_at_k(10, 3, 5), 6)
    0.916667
    """
    if not (1 <= k <= samples and 0 <= correct <= samples):
        raise ValueError(f"pass@k: got n={samples}, c={correct}, k={k}; needs 1 <= k <= n and 0 <= c <= n")
    if samples - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(samples - correct + 1, samples + 1))


@dataclass(frozen=True)
class Evaluation:
    """`Evaluation` holds the result of an evaluation, problem by problem. Samples come from the whole vocabulary."""

    problems: tuple[str, ...]
    """Identifiers of the problems."""
    correct: tuple[int, ...]
    """Number of correct completions of each problem. A completion whose reward failed counts as wrong."""
    samples: int
    """Number of completions of each problem."""
    temperature: float
    """Sampling temperature."""
    reward_failures: int = 0
    """Number of completions whose reward failed."""
    reward: float = float("nan")
    """Mean reward of the completions that have one."""
    right: str = ""
    """What counts as correct, in words."""

    def pass_at(self, k: int) -> float:
        """Return the mean over problems of the unbiased pass@k."""
        return math.fsum(pass_at_k(self.samples, c, k) for c in self.correct) / len(self.correct)

    def ks(self) -> list[int]:
        """Return the values of k that are reported: 1, 2, 4, ... up to the number of samples."""
        return [2**i for i in range(self.samples.bit_length()) if 2**i <= self.samples]

    def row(self) -> dict[str, float]:
        """Return the values for the log: pass@k for each k, and the numbers of problems, samples and failures."""
        scores = {f"pass@{k}": self.pass_at(k) for k in self.ks()}
        return {
            **scores,
            "reward": self.reward,
            "problems": len(self.problems),
            "samples": self.samples,
            "reward_failures": self.reward_failures,
        }


def evaluate(
    policy: Policy,
    sampler: Sampler,
    task: Task,
    *,
    problems: int,
    samples: int,
    temperature: float = 1.0,
    seed: int = 0,
    activity: Activity = Activity(),
) -> Evaluation:
    """Sample completions of the evaluation problems and count the correct ones, by the task's rule.

    Args:
        policy: The policy, for its tokenizer.
        sampler: The sampler that draws from the policy's weights.
        task: The task whose evaluation problems are used.
        problems: Number of problems.
        samples: Number of completions of each problem.
        temperature: Sampling temperature.
        seed: Seed of the draws.
        activity: What is told while it works.
    """
    chosen = task.eval_problems(problems)
    prompts = [made_prompt(policy, problem) for problem in chosen]
    correct, failures, reward = [0] * len(prompts), 0, Metric(0.0, 0)
    # Only a few problems are sampled at a time, so that memory does not grow with the number of samples.
    at_once = max(1, 4096 // samples)
    activity.begin("evaluation", len(prompts) * samples)
    for first in range(0, len(prompts), at_once):
        some = prompts[first : first + at_once]
        activity.part(first * samples)
        found = _judged(policy, sampler, task, some, samples, temperature, (seed, first))
        correct[first : first + at_once] = found.correct
        failures += found.failures
        reward = reward + found.reward
    names = tuple(p.id for p in chosen)
    rule = task.right_rule.describe(alone=True)
    return Evaluation(names, tuple(correct), samples, temperature, failures, reward.mean, rule)


@dataclass(frozen=True)
class _Counts:
    """`_Counts` holds the correct completions of each problem, the rewards, and the number of failures."""

    correct: list[int]
    reward: Metric
    failures: int


def _judged(
    policy: Policy,
    sampler: Sampler,
    task: Task,
    prompts: Sequence[Prompt],
    samples: int,
    temperature: float,
    key: tuple[int, int],
) -> _Counts:
    requests = [Request(prompt, group, samples, temperature) for group, prompt in enumerate(prompts)]
    draws = generator(key[0], key[1], "evaluation")
    with Judging(task, policy) as judging:
        completions = judging.sample(sampler, requests, max_tokens=task.max_tokens, generator=draws)
        verdicts = judging.verdicts(completions)
    counts = [0] * len(prompts)
    for completion, verdict in zip(completions, verdicts, strict=True):
        counts[completion.group] += task.right_rule.alone(verdict.reward, verdict.right)
    rewards = [verdict.reward for verdict in verdicts if math.isfinite(verdict.reward)]
    failed = sum(verdict.failed for verdict in verdicts)
    return _Counts(counts, Metric(math.fsum(rewards), len(rewards)), failed)
