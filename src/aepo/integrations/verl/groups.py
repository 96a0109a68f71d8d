"""`Groups` submits the groups of a step to verl's rollout and numbers them.

A step may submit several rounds; the numbers follow the order of submission.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from aepo.control.base import ExtraGroup
from aepo.errors import InvalidValue
from aepo.integrations.verl.agent import TEMPERATURE
from aepo.integrations.verl.rows import check_text
from aepo.integrations.verl.settings import AGENT_LOOP


class Groups:
    """`Groups` keeps the groups of one step that were submitted to verl's rollout.

    Args:
        submit: The function that submits a batch of prompts to verl's rollout.

    Attributes:
        numbers: The number of each group, by verl's name (`uid`) of the group.
        completions: The number of completions that were requested so far.
    """

    def __init__(self, submit: Callable[[TensorDict], Any]) -> None:
        self._submit = submit
        self._sources: list[int] = []
        self._prompts: TensorDict | None = None
        self._rows: dict[int, int] = {}
        self.numbers: dict[str, int] = {}
        self.completions = 0

    def __len__(self) -> int:
        return len(self._sources)

    @property
    def extra(self) -> frozenset[int]:
        """Return the numbers of the extra groups, which the control added to a prompt."""
        return frozenset(number for number in range(len(self)) if self.source(number) != number)

    def source(self, number: int) -> int:
        """Return the number of the ordinary group with the same prompt."""
        return self._sources[number]

    def add(self, prompts: TensorDict, count: int) -> None:
        """Submit an ordinary group of `count` completions at temperature 1 for each of these new prompts."""
        # `get` would give the stack of a TensorDict, not the messages in it.
        check_text(prompts["raw_prompt"] if "raw_prompt" in prompts else ())  # noqa: SIM401
        first, rows = len(self), len(self._rows)
        numbers = range(first, first + len(prompts))
        self._prompts = prompts if self._prompts is None else tu.concat_tensordict([self._prompts, prompts])
        self._rows |= {number: rows + place for place, number in enumerate(numbers)}
        self._send(prompts, numbers, count, 1.0)

    def add_extra(self, planned: Sequence[ExtraGroup]) -> None:
        """Submit the extra groups that the control planned.

        Groups with the same number of completions and the same temperature go into one submission.

        Raises:
            InvalidValue: The data names another agent loop, which ignores the temperature.
        """
        prompts = self._prompts
        if not planned or prompts is None:
            return
        if "agent_name" in prompts and set(prompts["agent_name"]) != {AGENT_LOOP}:
            # Another loop would silently draw at temperature 1.
            raise InvalidValue("data", "a column agent_name", f"without it, or {AGENT_LOOP} in every row")
        for count, temperature in sorted({(extra.count, extra.temperature) for extra in planned}):
            sources = [e.prompt for e in planned if (e.count, e.temperature) == (count, temperature)]
            chosen = tu.index_select_tensor_dict(prompts, [self._rows[source] for source in sources])
            self._send(chosen, sources, count, temperature)

    def _send(self, prompts: TensorDict, sources: Sequence[int], count: int, temperature: float) -> None:
        batch = tu.index_select_tensor_dict(prompts, list(range(len(prompts))))
        names = [uuid.uuid4().hex for _ in sources]
        tu.assign_non_tensor_stack(batch, "uid", names)
        batch["__rollout_n__"] = torch.full((len(names),), count)
        batch[TEMPERATURE] = torch.full((len(names),), temperature, dtype=torch.float64)
        self.numbers |= {name: len(self) + place for place, name in enumerate(names)}
        self._sources += sources
        self.completions += len(names) * count
        self._submit(batch)
