"""Rows of TRL's generation batch: tensors by name, and what is done to them without a trainer.

Shapes: B rows of a rank, P prompt columns (left-padded), T completion columns (right-padded).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from aepo.control.base import Scored
from aepo.errors import InvalidValue
from aepo.types import Batch, BatchStatistics, Completion, Prompt, Rollout

Rows = dict[str, Tensor]

PROMPT = ("prompt_ids", "prompt_mask")
COMPLETION = (
    *("completion_ids", "completion_mask", "old_per_token_logps", "ref_per_token_logps"),
    *("sampling_per_token_logps", "importance_sampling_ratio"),
)
KNOWN = {*PROMPT, *COMPLETION, "advantages", "num_items_in_batch"}


def check(rows: Mapping[str, object]) -> None:
    """Refuse what belongs to no single row of text: images, tools, masks of a custom rollout."""
    unknown = sorted(set(rows) - KNOWN)
    if unknown:
        raise InvalidValue("train_dataset", unknown, "text prompts without images, tools or environments")


def rowwise(rows: Rows) -> Rows:
    """Without the number of tokens, which is the whole batch's."""
    return {name: value for name, value in rows.items() if name != "num_items_in_batch"}


def inputs(rows: Rows) -> tuple[Tensor, Tensor]:
    """Tokens and attention mask of prompts and completions, both [B, P + T]."""
    ids = torch.cat([rows["prompt_ids"], rows["completion_ids"]], dim=1)
    return ids, torch.cat([rows["prompt_mask"], rows["completion_mask"]], dim=1)


def fit(values: Tensor, width: int, padding: float = 0, left: bool = False) -> Tensor:
    """[B, T] -> [B, width]: cut, or padded, on the right, or on the left."""
    if left:
        values = values[:, -width:] if width else values[:, :0]
        return F.pad(values, (width - values.shape[1], 0), value=padding)
    values = values[:, :width]
    return F.pad(values, (0, width - values.shape[1]), value=padding)


def without_correction(extra: Rows) -> Rows:
    """Tempered rows are drawn off the policy on purpose: no importance weight, and no gap to the sampler."""
    rows = dict(extra)
    if "importance_sampling_ratio" in rows:
        rows["importance_sampling_ratio"] = torch.ones_like(rows["importance_sampling_ratio"])
    if "sampling_per_token_logps" in rows and "old_per_token_logps" in rows:
        rows["sampling_per_token_logps"] = rows["old_per_token_logps"]
    return rows


def place(rows: Rows, extra: Rows, slots: Sequence[int], chosen: Sequence[int], pad_token_id: int) -> Rows:
    """`rows` with rows `chosen` of `extra` at the places `slots`; both padded to a common width."""
    if not slots:
        return rows
    merged = {}
    for name, values in rows.items():
        other = extra[name][list(chosen)]
        if values.dim() == 2 and values.shape[1] != other.shape[1]:
            width = max(values.shape[1], other.shape[1])
            padding, left = (pad_token_id if name.endswith("_ids") else 0), name in PROMPT
            values, other = fit(values, width, padding, left), fit(other, width, padding, left)
        values = values.clone()
        values[list(slots)] = other
        merged[name] = values
    return merged


# --- from tensors to the stages of a batch, and back ----------------------------------------------------------------


def token_lists(ids: Tensor, mask: Tensor) -> list[list[int]]:
    """The unpadded tokens of each row."""
    kept = mask.bool().cpu()
    return [row[place].tolist() for row, place in zip(ids.cpu(), kept, strict=True)]


def rollouts(
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    rewards: Sequence[float],
    groups: Sequence[int],
    temperature: float,
    ends: frozenset[int],
) -> list[Rollout]:
    """texts: (prompt tokens, completion tokens) of each row. ends: tokens that end a completion.

    The sampler's log-probabilities are not known here; zeros stand for them, and nothing reads them.
    """
    made = []
    for (prompt, tokens), reward, group in zip(texts, rewards, groups, strict=True):
        completion = Completion(
            prompt=Prompt(id=f"group {group}", tokens=tuple(prompt), problem={}),
            group=group,
            temperature=temperature,
            tokens=tuple(tokens),
            logprobs=(0.0,) * len(tokens),
            truncated=not tokens or tokens[-1] not in ends,
        )
        made.append(Rollout(completion, reward))
    return made


@dataclass(frozen=True)
class Placement:
    """Which row of the mixed batch stands at each ordinary place of the whole step, -1 for none.

    row: [N]. taken: (place, number of the extra row) for each place that an extra row takes.
    """

    row: tuple[int, ...]
    taken: tuple[tuple[int, int], ...]


def placement(sources: Sequence[int], trained: Sequence[bool], ordinary: int) -> Placement:
    """Extra rows take, in order, the places of ordinary rows that are not trained on.

    sources: of each row of the mixed batch its place among the `ordinary` ones, or `ordinary` + the number of the
    extra row. Raises `InvalidValue` when there are more extra rows than free places.
    """
    row = [-1] * ordinary
    extra = []
    for number, (source, used) in enumerate(zip(sources, trained, strict=True)):
        if source >= ordinary:
            extra.append((number, source - ordinary))
        elif used:
            row[source] = number
    free = [place for place, number in enumerate(row) if number < 0]
    if len(extra) > len(free):
        raise InvalidValue(
            "control", f"{len(extra)} extra rows", f"replaced rows ({len(free)}): TRL keeps their number"
        )
    pairs = list(zip(free, extra, strict=False))
    for place_, (number, _) in pairs:
        row[place_] = number
    return Placement(tuple(row), tuple((place_, index) for place_, (_, index) in pairs))


# --- statistics ------------------------------------------------------------------------------------------------------


def joined(parts: Sequence[BatchStatistics], width: int) -> BatchStatistics:
    """The rows of all parts, each fitted to `width`."""
    return BatchStatistics.joined([part.each(lambda values: fit(values, width)) for part in parts])


def inside(stats: BatchStatistics, mask: Tensor) -> BatchStatistics:
    """Zero outside the mask, whatever stood there."""
    return stats.each(lambda values: torch.where(mask.bool(), values, 0.0))


def narrowed(scored: Scored, width: int) -> Scored:
    """With `width` completion columns."""
    batch, prompts = scored.batch, scored.batch.prompt_width
    wide = {name: fit(getattr(batch, name), width) for name in ("mask", "advantages", "sampling_logprobs")}
    ids = {name: fit(getattr(batch, name), prompts + width) for name in ("input_ids", "attention_mask")}
    return replace(
        scored,
        batch=Batch(**{**vars(batch), **wide, **ids}),
        old=joined([scored.old], width),
        marks={name: fit(values, width) for name, values in scored.marks.items()},
    )


def token_weights(loss_type: str, mask: Tensor, *, window_tokens: Tensor, longest: int, accumulated: int) -> Tensor:
    """TRL's weight of each token in one of `accumulated` backward passes, [B, T].

    mask: [B, T], the tokens of this pass. window_tokens: those of all passes of the update, on one rank's share.
    longest: the length limit of a completion.
    """
    if loss_type == "dapo":
        return mask / window_tokens
    if loss_type == "grpo":
        weights = mask / mask.sum(1, keepdim=True).clamp(min=1) / len(mask)
    elif loss_type == "bnpo":
        weights = mask / mask.sum().clamp(min=1)
    else:  # dr_grpo
        weights = mask / len(mask) / longest
    return weights / accumulated
