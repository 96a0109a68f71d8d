"""Rows of verl's batches without verl: to rollouts, into minibatches, and to a microbatch's `Scored`.

Shapes: B rows, P prompt columns (left-padded), T response columns (right-padded).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from aepo.control.base import Scored, Step
from aepo.engines.collate import collate
from aepo.loss.aggregates import AGGREGATES
from aepo.types import Batch, BatchStatistics, Completion, Prompt, Rollout, Sample

MARK = "aepo_mark_"


@dataclass(frozen=True)
class Row:
    """One trajectory. key: verl's name for it. source: the ordinary group of its prompt. logprobs: the sampler's.

    mask: 0 on tokens that a tool wrote.
    """

    key: str
    group: int
    source: int
    session: int
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    mask: tuple[int, ...]
    logprobs: tuple[float, ...]
    reward: float
    temperature: float


def rollouts(rows: Sequence[Row], ends: frozenset[int], max_tokens: int) -> list[Rollout]:
    """In their order; groups of one prompt share it.

    ends: tokens that end a completion; without one, and as long as allowed, it was cut.
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
    """Samples as tensors; tokens with mask 0 are not the policy's, so they are neither measured nor trained."""
    batch = collate(samples, pad_token_id)
    mask = batch.mask * pad([torch.tensor(mask, dtype=torch.float32) for mask in masks])
    return replace(batch, mask=mask, advantages=batch.advantages * mask)


def pad(rows: Sequence[Tensor]) -> Tensor:
    """Rows of different lengths -> [B, T], zeros on the right."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def deal(trained: Sequence[int], extra: Sequence[int], count: int, shuffle: torch.Generator | None) -> list[list[int]]:
    """Rows in `count` minibatches of sizes that differ by one at most; ordinary and extra ones spread evenly.

    The loop's may differ by two, but verl's are all filled up to the largest. Without `shuffle` the rows stay in their
    order, minibatch after minibatch.
    """
    if shuffle is None:
        return [part.tolist() for part in torch.tensor(list(trained)).tensor_split(count)]
    inside = set(extra)
    kinds = [[row for row in trained if row not in inside], [row for row in trained if row in inside]]
    order = [kind[i] for kind in kinds for i in torch.randperm(len(kind), generator=shuffle).tolist()]
    return [order[first::count] for first in range(count)]


def fill(minibatches: Sequence[Sequence[int]], spare: Sequence[int], multiple: int) -> list[list[int]]:
    """All minibatches to one size, the smallest multiple of `multiple` that holds them, with `spare` rows."""
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
    """[B, T]: each token's weight in the loss of its minibatch; 0 for rows in none."""
    weights = torch.zeros_like(mask)
    for rows in minibatches:
        if rows:
            weights[list(rows)] = AGGREGATES[aggregate](mask[list(rows)])
    return weights


# --- what travels with a row to the worker that trains it -------------------------------------------------------


def facts(batch: Batch) -> Tensor:
    """[B, 4], float64: reward, group, extra, trained."""
    columns = (batch.rewards, batch.groups, batch.extra, batch.trained)
    return torch.stack([column.double() for column in columns], dim=1)


def microbatch(fields: Mapping[str, Tensor], step: Step) -> Scored:
    """Padded fields of some rows -> what a control's hooks see of them.

    prompts [B, P] (right-padded, `prompt_mask` 1 on tokens), responses, response_mask, advantages, old_log_probs,
    entropy and the marks [B, T], aepo_rows [B, 4]; ref_log_prob [B, T] where there is a reference model.
    """
    mask = fields["response_mask"].float()
    rewards, groups, extra, trained = fields["aepo_rows"].unbind(1)
    batch = Batch(
        input_ids=torch.cat([fields["prompts"], fields["responses"]], dim=1),
        attention_mask=torch.cat([fields["prompt_mask"].long(), mask.long()], dim=1),
        mask=mask,
        advantages=fields["advantages"],
        sampling_logprobs=torch.zeros_like(mask),
        rewards=rewards.float(),
        groups=groups.long(),
        extra=extra.bool(),
        trained=trained.bool(),
    )
    old = BatchStatistics(fields["old_log_probs"].float(), fields["entropy"].float())
    marks = {name.removeprefix(MARK): value for name, value in fields.items() if name.startswith(MARK)}
    reference = fields.get("ref_log_prob")
    return Scored(batch, old, step, ref_logprobs=reference, marks=marks)


def step_to_json(step: Step) -> str:
    """For a field that is no tensor."""
    return json.dumps(asdict(step))


def step_from_json(text: str) -> Step:
    """The inverse."""
    return Step(**json.loads(text))
