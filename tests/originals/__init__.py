"""What published code gave for small inputs: golden files, one for each original, with its version and date.

Each file NAME.json holds the repository, the commit and its date, the day on which the function was executed, the
version of torch (float64), and cases of input, settings and output, rounded to 6 digits. The code itself is not here.
`old` and `new` are log-probabilities [B, T], nats; `gradient` is that of the loss by `new`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aepo.algorithm import Algorithm
from aepo.control.base import Scored, State
from aepo.engines import stages
from aepo.loss.aggregates import token_mean
from aepo.types import Batch, BatchStatistics
from tests import builders as b


def cases(name: str) -> list[Any]:
    """The cases of tests/originals/NAME.json."""
    return json.loads((Path(__file__).parent / f"{name}.json").read_text())["cases"]


def scored(given: dict, **statistics: Tensor) -> Scored:
    """A batch with the advantages, the mask and the old log-probabilities of a case, in float64."""
    old, mask, advantages = (torch.tensor(given[name], dtype=torch.float64) for name in ("old", "mask", "adv"))
    rows, width = mask.shape
    nothing, row = torch.zeros(rows), torch.zeros(rows, dtype=torch.long)
    ids = torch.zeros(rows, 2 + width, dtype=torch.long)
    trained = torch.ones(rows, dtype=torch.bool)
    batch = Batch(ids, torch.ones_like(ids), mask, advantages, old, nothing, ~trained, row, ~trained, trained)
    return Scored(batch, BatchStatistics(old, **statistics), b.place())


def loss_and_gradient(
    algorithm: Algorithm,
    part: Scored,
    given: dict,
    state: State | None = None,
    statistics: Callable[[Tensor], BatchStatistics] = BatchStatistics,
) -> tuple[float, Tensor]:
    """The loss of the whole batch, with the token mean, and its gradient by the new log-probabilities."""
    new = torch.tensor(given["new"], dtype=torch.float64, requires_grad=True)
    state = algorithm.control.initial_state() if state is None else state
    output = stages.loss(algorithm, part, statistics(new), token_mean(part.batch.mask), state)
    output.loss.backward()
    assert new.grad is not None
    return output.loss.item(), new.grad


def agrees(found: tuple[float, Tensor], case: dict) -> None:
    """Assert that loss and gradient are the original's."""
    loss, gradient = found
    assert abs(loss - case["loss"]) < 2e-6
    torch.testing.assert_close(gradient, torch.tensor(case["gradient"], dtype=torch.float64), atol=1e-6, rtol=0)
