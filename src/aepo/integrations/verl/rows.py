"""This module works on the rows of verl's batches and does not import verl.

It turns rows into rollouts, deals them into minibatches, and makes the `Scored` of a microbatch.

Shapes: B rows, P prompt columns (left-padded), T response columns (right-padded).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from aepo.control.base import Scored, Step
from aepo.engines.collate import collate
from aepo.errors import require
from aepo.loss.aggregates import AGGREGATES
from aepo.types import Batch, BatchStatistics, Completion, Prompt, Rollout, Sample

MARK = "aepo_mark_"
# The number of columns of `facts`.
FACTS = 5
# The factor of a correction of the rollout engine's mismatch, a field of the tokens.
CORRECTION = "aepo_correction"


@dataclass(frozen=True)
class RolloutRow:
    """`RolloutRow` is one trajectory of verl."""

    key: str
    """verl's name of the trajectory."""
    group: int
    """The number of its group."""
    source: int
    """The number of the ordinary group with the same prompt."""
    session: int
    """The number of the trajectory in its group."""
    prompt: tuple[int, ...]
    """The tokens of the prompt."""
    tokens: tuple[int, ...]
    """The tokens of the response."""
    mask: tuple[int, ...]
    """0 on tokens of the response that a tool wrote, else 1."""
    logprobs: tuple[float, ...]
    """The sampler's log-probabilities of the response's tokens, nats; zeros if verl does not return them."""
    reward: float
    """The reward of the trajectory: the sum of verl's `rm_scores`."""
    temperature: float
    """The temperature that the response was drawn at."""


def check_text(prompts: Iterable[Any]) -> None:
    """Refuse prompts that hold more than text: the rows of this adapter carry no images, videos or audio.

    Args:
        prompts: The messages of each prompt, as verl's data set makes them.

    Raises:
        InvalidValue: A message has a part of another type than text.
    """
    for messages in prompts:
        for message in messages:
            content = message["content"]
            for part in () if isinstance(content, str) else content:
                kind = part.get("type", "text")
                wanted = "prompts of text: aepo inside verl takes no images yet"
                require(kind == "text", "data.train_files", f"a prompt with a part of type {kind}", wanted)


def rollouts(rows: Sequence[RolloutRow], ends: frozenset[int], max_tokens: int) -> list[Rollout]:
    """Return the rollouts of the rows, in the same order; the groups of one prompt share its `Prompt`.

    Args:
        rows: The trajectories.
        ends: The tokens that end a completion.
        max_tokens: The length limit of a completion. A completion of this length without an end token was truncated.
    """
    prompts = {row.source: Prompt(id=f"group {row.source}", tokens=row.prompt, problem={}) for row in rows}
    made = []
    for row in rows:
        cut = len(row.tokens) >= max_tokens and row.tokens[-1] not in ends
        prompt = prompts[row.source]
        completion = Completion(prompt, row.group, row.temperature, row.tokens, row.logprobs, truncated=cut)
        made.append(Rollout(completion, row.reward))
    return made


def to_batch(samples: Sequence[Sample], masks: Sequence[Sequence[int]], pad_token_id: int) -> Batch:
    """Return the samples as a batch.

    The policy did not write the tokens with mask 0, so they are neither measured nor trained on.
    """
    batch = collate(samples, pad_token_id)
    mask = batch.mask * pad([torch.tensor(mask, dtype=torch.float32) for mask in masks])
    return replace(batch, mask=mask, advantages=batch.advantages * mask)


def pad(rows: Sequence[Tensor]) -> Tensor:
    """Return rows of different lengths as one tensor [B, T], with zeros on the right."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def deal(trained: Sequence[int], extra: Sequence[int], count: int, shuffle: torch.Generator | None) -> list[list[int]]:
    """Deal rows into minibatches whose sizes differ by at most one, with ordinary and extra rows spread evenly.

    In this package's own loop the sizes may differ by two. verl needs closer sizes, because all its minibatches are
    filled up to the largest.

    Args:
        trained: The rows that are trained on.
        extra: Those of them that are extra rows.
        count: The number of minibatches.
        shuffle: The source of the random order. With None the rows keep their order, one minibatch after the other.
    """
    if shuffle is None:
        return [part.tolist() for part in torch.tensor(list(trained)).tensor_split(count)]
    inside = set(extra)
    kinds = [[row for row in trained if row not in inside], [row for row in trained if row in inside]]
    order = [kind[i] for kind in kinds for i in torch.randperm(len(kind), generator=shuffle).tolist()]
    return [order[first::count] for first in range(count)]


def fill(minibatches: Sequence[Sequence[int]], spare: Sequence[int], multiple: int) -> list[list[int]]:
    """Fill all minibatches with `spare` rows to one size: the smallest multiple of `multiple` that holds each."""
    longest = max(1, *(len(rows) for rows in minibatches))
    size = -(-longest // multiple) * multiple
    left = list(spare)
    filled = []
    for rows in minibatches:
        missing = size - len(rows)
        filled.append([*rows, *left[:missing]])
        left = left[missing:]
    return filled


def token_weights(mask: Tensor, minibatches: Sequence[Sequence[int]], aggregate: str) -> Tensor:
    """Return the weight of each token in the loss of its minibatch, [B, T]; 0 for rows that are in no minibatch."""
    weights = torch.zeros_like(mask)
    for rows in minibatches:
        if rows:
            weights[list(rows)] = AGGREGATES[aggregate](mask[list(rows)])
    return weights


# --- data that a row carries to the worker that trains on it ----------------------------------------------------


def facts(batch: Batch) -> Tensor:
    """Return reward, right, group, extra and trained of each row, [B, 5] in float64."""
    columns = (batch.rewards, batch.right, batch.groups, batch.extra, batch.trained)
    return torch.stack([column.double() for column in columns], dim=1)


def microbatch(fields: Mapping[str, Tensor], step: Step) -> Scored:
    """Return what a control's hooks see of some rows.

    Args:
        fields: The padded fields of the rows: `prompts` [B, P] (right-padded) and `prompt_mask`, 1 on their tokens;
            `responses`, `response_mask`, `advantages`, `old_log_probs`, `entropy` and the marks, [B, T]; `aepo_rows`
            [B, 5], see `facts`; `ref_log_prob` [B, T] where there is a reference model, and `aepo_correction` [B, T]
            where the mismatch of the rollout engine is corrected.
        step: The place of the step in the run.
    """
    mask = fields["response_mask"].float()
    rewards, right, groups, extra, trained = fields["aepo_rows"].unbind(1)
    batch = Batch(
        input_ids=torch.cat([fields["prompts"], fields["responses"]], dim=1),
        attention_mask=torch.cat([fields["prompt_mask"].long(), mask.long()], dim=1),
        mask=mask,
        advantages=fields["advantages"],
        sampling_logprobs=torch.zeros_like(mask),
        rewards=rewards.float(),
        right=right.bool(),
        groups=groups.long(),
        extra=extra.bool(),
        trained=trained.bool(),
    )
    old = BatchStatistics(fields["old_log_probs"].float(), fields["entropy"].float())
    marks = {name.removeprefix(MARK): value for name, value in fields.items() if name.startswith(MARK)}
    reference = fields.get("ref_log_prob")
    return Scored(batch, old, step, ref_logprobs=reference, marks=marks, correction=fields.get(CORRECTION))


def step_to_json(step: Step) -> str:
    """Return the step as JSON, for a field that is not a tensor."""
    return json.dumps(asdict(step))


def step_from_json(text: str) -> Step:
    """Return the step that `step_to_json` wrote."""
    return Step(**json.loads(text))
