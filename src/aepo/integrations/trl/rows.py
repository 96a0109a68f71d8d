"""This module works on the rows of TRL's generation batch, which are tensors by name; it needs no trainer.

Shapes: B rows of a rank, P prompt columns (left-padded), T completion columns (right-padded).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aepo.control.base import Scored
from aepo.engines.mismatch import bounded
from aepo.engines.stops import StopStrings
from aepo.errors import InvalidValue
from aepo.types import Batch, BatchStatistics, Completion, Prompt, Rollout

Rows = dict[str, Any]

PROMPT = ("prompt_ids", "prompt_mask")
COMPLETION = (
    *("completion_ids", "completion_mask", "old_per_token_logps", "ref_per_token_logps"),
    *("sampling_per_token_logps", "importance_sampling_ratio"),
)
# TRL's fields of images, of Qwen's interface. Between TRL's calls the first three hold one value for each row.
VISION = ("pixel_values", "image_grid_thw", "num_images")
TYPES = "mm_token_type_ids"
KNOWN = {*PROMPT, *COMPLETION, *VISION, TYPES, "advantages", "num_items_in_batch"}


def check(rows: Mapping[str, object]) -> None:
    """Refuse fields other than those of text and of Qwen's images, such as tools or the masks of a custom rollout."""
    unknown = sorted(set(rows) - KNOWN)
    if "max_left_pad" in unknown:  # Unsloth's trainer shifts the log-probabilities of each row by its own padding.
        wanted = "of TRL's own trainer: import aepo.integrations.trl before unsloth"
        raise InvalidValue("max_left_pad", "rows in Unsloth's layout", wanted)
    if unknown:
        wanted = "prompts of text, or of text and images of Qwen's interface, without tools or environments"
        raise InvalidValue("train_dataset", unknown, wanted)
    given = [name for name in VISION if name in rows]
    if given and len(given) < len(VISION):
        raise InvalidValue("train_dataset", given, f"images of Qwen's interface, which has {', '.join(VISION)}")


def rowwise(rows: Rows) -> Rows:
    """Return the fields that have a value for each row; the number of tokens belongs to the whole batch.

    The patches and the grids of the images become lists of tensors, one for each row. The types of the tokens are left
    out: `images` makes them of the tokens.
    """
    kept = {name: value for name, value in rows.items() if name not in ("num_items_in_batch", TYPES)}
    if "pixel_values" not in kept or isinstance(kept["pixel_values"], list):
        return kept
    counts = [int(count) for count in kept["num_images"]]
    grids = list(kept["image_grid_thw"].split(counts))
    patches = list(kept["pixel_values"].split([int(grid.prod(1).sum()) for grid in grids]))
    return {**kept, "num_images": counts, "image_grid_thw": grids, "pixel_values": patches}


def images(rows: Rows, token: int | None) -> Rows:
    """Return the images of all rows as TRL's scoring method takes them; nothing where no row has an image.

    Args:
        rows: The rows, in TRL's form or row by row.
        token: The token that stands for a merged patch of an image.
    """
    if "pixel_values" not in rows:
        return {}
    own = rowwise(rows)
    if not sum(own["num_images"]):
        return {}
    flat = {name: torch.cat(own[name]) for name in VISION[:2]}
    types = torch.eq(inputs(rows)[0], -1 if token is None else token).int()
    return {**flat, "num_images": own["num_images"], TYPES: types}


def select(rows: Rows, chosen: Sequence[int]) -> Rows:
    """Return some of the rows, row by row."""
    return {
        name: [values[number] for number in chosen] if isinstance(values, list) else values[list(chosen)]
        for name, values in rows.items()
    }


def digests(rows: Rows) -> list[tuple[str, ...]]:
    """Return the content hash of each row's images; an empty tuple for a row of text."""
    own = rowwise(rows)
    if "pixel_values" not in own:
        return [()] * len(own["prompt_ids"])
    patches = (values.float().cpu().numpy().tobytes() for values in own["pixel_values"])
    return [(hashlib.sha256(content).hexdigest(),) if content else () for content in patches]


def inputs(rows: Rows) -> tuple[Tensor, Tensor]:
    """Return the tokens and the attention mask of prompts and completions, both [B, P + T]."""
    ids = torch.cat([rows["prompt_ids"], rows["completion_ids"]], dim=1)
    return ids, torch.cat([rows["prompt_mask"], rows["completion_mask"]], dim=1)


def fit(values: Tensor, width: int, padding: float = 0, left: bool = False) -> Tensor:
    """Cut or pad values [B, T] to [B, width], on the right, or with `left` on the left."""
    if left:
        values = values[:, -width:] if width else values[:, :0]
        return F.pad(values, (width - values.shape[1], 0), value=padding)
    values = values[:, :width]
    return F.pad(values, (0, width - values.shape[1]), value=padding)


@dataclass(frozen=True)
class Correction:
    """`Correction` is TRL's correction of vLLM's log-probabilities: its mode and its bounds."""

    mode: str
    """`token_truncate`, `token_mask`, `sequence_truncate` or `sequence_mask`."""
    low: float | None
    """The lower bound of the ratio; None for no bound."""
    high: float | None
    """The upper bound of the ratio; None for no bound."""

    def ratio(self, log_ratio: Tensor) -> Tensor:
        """Return TRL's `importance_sampling_ratio`, [B, T], or [B, 1] in the sequence modes.

        Args:
            log_ratio: log pi_old - log mu of each token, nats, [B, T]; 0 outside the mask.
        """
        by_row = self.mode.startswith("sequence")
        ratio = (log_ratio.sum(1, keepdim=True) if by_row else log_ratio).exp()
        return bounded(ratio, self.mode, self.low or 0.0, math.inf if self.high is None else self.high)[0]


def tempered_correction(extra: Rows, correction: Correction, tempered: Tensor | None) -> Rows:
    """Return tempered rows corrected at their own temperature T, with no gap between the sampler and the policy.

    TRL compares vLLM's log mu^T with log pi at T = 1. For tempered rows that is no mismatch: they are drawn off the
    policy on purpose.

    Args:
        extra: The rows as TRL made them.
        correction: TRL's correction.
        tempered: log pi_old^T of each token, nats, [B, T]; None for the ratio 1.
    """
    rows = dict(extra)
    if "importance_sampling_ratio" in rows:
        ratio = torch.ones_like(rows["importance_sampling_ratio"])
        if tempered is not None:
            gap = (tempered - rows["sampling_per_token_logps"]) * rows["completion_mask"]
            ratio = correction.ratio(gap.nan_to_num(nan=0.0)).to(ratio.dtype)
        rows["importance_sampling_ratio"] = ratio
    if "sampling_per_token_logps" in rows and "old_per_token_logps" in rows:
        rows["sampling_per_token_logps"] = rows["old_per_token_logps"]
    return rows


def place(rows: Rows, extra: Rows, slots: Sequence[int], chosen: Sequence[int], pad_token_id: int) -> Rows:
    """Return `rows` with the rows `chosen` of `extra` at the places `slots`, padded to a common width."""
    if not slots:
        return rows
    merged = {}
    for name, values in rows.items():
        if isinstance(values, list):
            replaced = dict(zip(slots, select(extra, chosen)[name], strict=True))
            merged[name] = [replaced.get(number, value) for number, value in enumerate(values)]
            continue
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
    """Return the tokens of each row without padding."""
    kept = mask.bool().cpu()
    return [row[place].tolist() for row, place in zip(ids.cpu(), kept, strict=True)]


def rollouts(
    texts: Sequence[tuple[Sequence[int], Sequence[int], tuple[str, ...]]],
    rewards: Sequence[float],
    groups: Sequence[int],
    temperature: float,
    ends: frozenset[int],
    stops: StopStrings | None = None,
) -> list[Rollout]:
    """Return a rollout for each row.

    The sampler's log-probabilities are not known here. The rollouts hold zeros instead, which nothing reads.

    Args:
        texts: The prompt tokens, the completion tokens and the hashes of the images of each row.
        rewards: The reward of each row.
        groups: The number of the group of each row.
        temperature: The temperature that the rows were drawn at.
        ends: The tokens that end a completion; a completion whose last token is another one was truncated.
        stops: The stop strings of the sampler, which end a completion too; None for none.
    """
    made = []
    for (prompt, tokens, seen), reward, group in zip(texts, rewards, groups, strict=True):
        completion = Completion(
            prompt=Prompt(id=f"group {group}", tokens=tuple(prompt), problem={}, images=seen),
            group=group,
            temperature=temperature,
            tokens=tuple(tokens),
            logprobs=(0.0,) * len(tokens),
            truncated=not _ended(tokens, ends, stops),
        )
        made.append(Rollout(completion, reward))
    return made


def _ended(tokens: Sequence[int], ends: frozenset[int], stops: StopStrings | None) -> bool:
    if not tokens or tokens[-1] in ends:
        return bool(tokens)
    return stops is not None and stops.length(tokens) is not None


@dataclass(frozen=True)
class Placement:
    """`Placement` says where the rows of the mixed batch stand among the N places of the step's ordinary rows."""

    row: tuple[int, ...]
    """The row of the mixed batch at each place, -1 for none; N items."""
    taken: tuple[tuple[int, int], ...]
    """(place, number of the extra row) for each place that an extra row takes."""


def placement(sources: Sequence[int], trained: Sequence[bool], ordinary: int) -> Placement:
    """Return the places of the rows; extra rows take, in order, the places of ordinary rows that are not trained on.

    Args:
        sources: For each row of the mixed batch, the place of an ordinary row, or `ordinary` + the number of an extra
            row.
        trained: Whether each row of the mixed batch is trained on.
        ordinary: The number of ordinary rows.

    Raises:
        InvalidValue: There are more extra rows than free places.
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
    """Join the rows of all parts, each cut or padded to `width` columns."""
    return BatchStatistics.joined([part.each(lambda values: fit(values, width)) for part in parts])


def inside(stats: BatchStatistics, mask: Tensor) -> BatchStatistics:
    """Return the statistics with zeros outside the mask."""
    return stats.each(lambda values: torch.where(mask.bool(), values, 0.0))


def narrowed(scored: Scored, width: int) -> Scored:
    """Return `scored` with `width` completion columns."""
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
    """Return the weight that TRL gives each token in one backward pass, [B, T].

    Args:
        loss_type: TRL's `loss_type`: `dapo`, `grpo`, `bnpo`, `dr_grpo` or `luspo`.
        mask: The tokens of this pass, [B, T].
        window_tokens: One rank's share of the number of tokens in all passes of the update.
        longest: The length limit of a completion, tokens.
        accumulated: The number of backward passes of the update.
    """
    if loss_type == "dapo":
        return mask / window_tokens
    if loss_type == "grpo":
        weights = mask / mask.sum(1, keepdim=True).clamp(min=1) / len(mask)
    elif loss_type == "bnpo":
        weights = mask / mask.sum().clamp(min=1)
    elif loss_type == "luspo":
        weights = mask / len(mask)
    else:  # dr_grpo
        weights = mask / len(mask) / longest
    return weights / accumulated
