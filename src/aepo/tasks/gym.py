"""The task that takes its problems from a data set of reasoning-gym."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from aepo.engines.right import RightRule
from aepo.errors import InvalidValue, require
from aepo.grading.text import last_boxed
from aepo.tasks.base import Problem, Task
from aepo.tasks.chat import ChatSettings
from aepo.tasks.styles import render


@dataclass(frozen=True)
class Gym(ChatSettings, Task):
    """`Gym` makes the problems of a reasoning-gym data set: `--set task=gym --set task.dataset=basic_arithmetic`.

    The problems are made, so they have no end. The answer is the content of the last box, or the whole text without a
    box. The reward is the data set's own score, 0.0 to 1.0.
    """

    dataset: str = "basic_arithmetic"
    """Name of a reasoning-gym data set. Its own settings have their defaults."""
    style: str = "boxed"
    """How a problem becomes a prompt (docs/data.md)."""
    max_response: int = 512
    """Longest completion, tokens."""
    eval_rows: int = 256
    """Number of problems that are kept for evaluation. They have a seed of their own."""
    right: str | float = "auto"
    """Which completions count as right: a threshold that the score must exceed, `best` (of its prompt) or `auto`
    (docs/data.md).
    """

    def __post_init__(self) -> None:
        render(self.style, "")
        require(self.max_response >= 1, "task.max_response", self.max_response, "at least 1 token")
        require(self.right_rule.rule != "verdict", "task.right", self.right, "a threshold, best or auto")
        require(self.eval_rows >= 1, "task.eval_rows", self.eval_rows, "at least 1 problem")

    @property
    def right_rule(self) -> RightRule:
        """Return the rule that `right` names."""
        return RightRule.of(self.right)

    @property
    def max_tokens(self) -> int:
        """Return `max_response`, tokens."""
        return self.max_response

    def located(self) -> Gym:
        """Return the task with an absolute path of its template."""
        return replace(self, chat_template=self.template_file)

    def train_problem(self, seed: int, index: int) -> Problem:
        """Return problem `index` of the series of this seed; a problem that is kept for evaluation is replaced."""
        known = {problem.text for problem in self._kept}
        for attempt in range(100):
            problem = self._problem(f"{seed}-{index}-{attempt}", self._entry(_number(seed, index, attempt)))
            if problem.text not in known:
                return problem
        raise InvalidValue("task.dataset", self.dataset, f"one with more problems than the {self.eval_rows} kept ones")

    def eval_problems(self, count: int) -> list[Problem]:
        """Return the first `count` problems that are kept for evaluation."""
        if count > self.eval_rows:
            raise InvalidValue("evaluation.prompts", count, f"at most task.eval_rows ({self.eval_rows})")
        return list(self._kept[:count])

    def reward(self, problem: Mapping[str, Any], text: str, truncated: bool) -> float:
        """Return the data set's own score of the answer, 0.0 to 1.0."""
        boxed = last_boxed(text)
        return float(self._made(0).score_answer(boxed if boxed is not None else text.strip(), problem["entry"]))

    @cached_property
    def _kept(self) -> tuple[Problem, ...]:
        made = self._made(-1, self.eval_rows)
        return tuple(self._problem(f"eval-{number}", made[number]) for number in range(self.eval_rows))

    def _entry(self, seed: int) -> Mapping[str, Any]:
        entry: Mapping[str, Any] = self._made(seed)[0]
        return entry

    def _made(self, seed: int, size: int = 1) -> Any:
        try:
            import reasoning_gym
        except ImportError:
            raise InvalidValue("task", "gym", "another one, or `pip install 'aepo[gym]'`") from None
        try:
            return reasoning_gym.create_dataset(self.dataset, seed=seed % 2**31, size=size)
        except ValueError as error:
            raise InvalidValue("task.dataset", self.dataset, f"a data set of reasoning-gym ({error})") from None

    def _problem(self, name: str, entry: Mapping[str, Any]) -> Problem:
        shown = render(self.style, entry["question"])
        return self.asked(Problem(f"{self.dataset}-{name}", shown.text, {"entry": entry}, shown.messages))


def _number(seed: int, index: int, attempt: int) -> int:
    """Return the seed of one training problem; the seed -1 is for evaluation."""
    return (seed * 1_000_003 + index * 101 + attempt) % (2**31 - 2)
