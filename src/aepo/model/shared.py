"""`shared_hidden` computes a prompt that several rows share once, and the answers behind it.

The rows of a prompt become one sequence, a *pack*:

    tokens       prompt  answer 1  answer 2  ...      each answer without its last token, which predicts nothing
    positions    0 .. p-1   p ..     p ..    ...      those that the token has in its own row
    attention    a token sees the prompt, and its own answer up to itself

So every token sees what it sees in its own row, and the hidden states and their gradients are the same numbers up to
rounding. It needs attention that takes a 4D mask. `sharing_error` measures whether a model does: a model that reads
its tokens in another way (recurrent layers, ALiBi) gives other numbers, or fails.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from aepo.config import Config
from aepo.engines.collate import collate
from aepo.model.forward import accepted, attention_mask, attention_of, last_hidden
from aepo.model.memory import Fit, Sizes, fitted
from aepo.types import Batch, Completion, Prompt, Rollout, Sample

# Packs are used where they take at most this share of the operations of plain rows; attention with a mask of this form
# is slower than the count says.
WORTH = 0.9
# Numbers of parts into which the rows of a prompt may be cut. Attention costs the square of a pack's tokens.
_PARTS = (1, 2, 4, 8, 16)


def prompts_of(batch: Batch) -> list[int]:
    """Return the number of each row's prompt: rows with the same prompt tokens have the same number.

    Numbers are those of the first rows with the prompt, so they rise but may have gaps.
    """
    ids = batch.input_ids[:, : batch.prompt_width].tolist()
    masks = batch.attention_mask[:, : batch.prompt_width].tolist()
    first: dict[tuple[int, ...], int] = {}
    prompts = (tuple(t for t, inside in zip(*row, strict=True) if inside) for row in zip(ids, masks, strict=True))
    return [first.setdefault(prompt, number) for number, prompt in enumerate(prompts)]


def by_prompt(batch: Batch) -> Tensor:
    """Return the indices of the rows, [B], the rows of a prompt together; the prompt with the longest row is first."""
    lengths, prompts = batch.attention_mask.sum(1).tolist(), prompts_of(batch)
    longest = dict.fromkeys(prompts, 0)
    for prompt, length in zip(prompts, lengths, strict=True):
        longest[prompt] = max(longest[prompt], length)
    order = sorted(range(len(prompts)), key=lambda row: (-longest[prompts[row]], prompts[row], -lengths[row]))
    return torch.tensor(order, device=batch.mask.device)


def whole_prompts(batch: Batch, size: int) -> list[Tensor]:
    """Return the rows in the order of `by_prompt`, in parts of at most `size`.

    A prompt's rows are in one part if they are at most `size`.
    """
    parts: list[list[int]] = [[]]
    prompts, order = prompts_of(batch), by_prompt(batch).tolist()
    for prompt in dict.fromkeys(prompts[row] for row in order):
        rows = [row for row in order if prompts[row] == prompt]
        if parts[-1] and len(parts[-1]) + len(rows) > size:
            parts.append([])
        for first in range(0, len(rows), size):
            if len(parts[-1]) + len(rows[first : first + size]) > size:
                parts.append([])
            parts[-1] += rows[first : first + size]
    return [torch.tensor(part, device=batch.mask.device) for part in parts]


def shared_hidden(model: Any, batch: Batch, packs: Sequence[Sequence[int]]) -> Tensor:
    """Return the hidden states that predict the completion tokens, [N, D], row by row.

    Args:
        model: A causal language model of transformers.
        batch: The rows.
        packs: The rows of each pack, which have the same prompt. Every row is in one pack.
    """
    prompts, answers = _lengths(batch)
    width = max(_tokens(rows, prompts, answers) for rows in packs)
    shape, start = (len(packs), width), batch.prompt_width
    ids = batch.input_ids.new_zeros(shape)
    positions, owner = torch.zeros(shape, dtype=torch.long), torch.full(shape, -1)
    places: dict[int, Tensor] = {}
    for number, rows in enumerate(packs):
        prompt = prompts[rows[0]]
        ids[number, :prompt] = batch.input_ids[rows[0], start - prompt : start]
        positions[number, :prompt] = torch.arange(prompt)
        owner[number, :prompt] = 0
        end = prompt
        for place, row in enumerate(rows, start=1):
            here, end = end, end + answers[row] - 1
            ids[number, here:end] = batch.input_ids[row, start : start + answers[row] - 1]
            positions[number, here:end] = torch.arange(prompt, prompt + answers[row] - 1)
            owner[number, here:end] = place
            places[row] = number * width + torch.cat([torch.tensor([prompt - 1]), torch.arange(here, end)])
    device = ids.device
    mask = attention_mask(model, _seen(owner.to(device)))
    body = model.base_model
    more = accepted(body, position_ids=positions.to(device), use_cache=False)
    hidden: Tensor = body(input_ids=ids, attention_mask=mask, **more)[0]
    return hidden.flatten(0, 1)[torch.cat([places[row] for row in range(len(batch))]).to(device)]


def _seen(owner: Tensor) -> Tensor:
    """Return which tokens see which, [R, 1, L, L], given the answer of each token, [R, L]; 0 is the prompt.

    Padding sees the prompt and itself, so that no row of the mask is empty.
    """
    seen = (owner[:, None] == 0) | (owner[:, None] == owner[..., None])
    return seen.tril()[:, None]


def _lengths(batch: Batch) -> tuple[list[int], list[int]]:
    """Return the numbers of tokens of each row's prompt and completion."""
    prompts: list[int] = batch.attention_mask[:, : batch.prompt_width].sum(1).tolist()
    answers: list[int] = batch.mask.sum(1).long().tolist()
    return prompts, answers


def _tokens(rows: Sequence[int], prompts: Sequence[int], answers: Sequence[int]) -> int:
    return prompts[rows[0]] + sum(answers[row] - 1 for row in rows)


def packs_for(batch: Batch, model: Sizes) -> list[list[int]] | None:
    """Return the rows of each pack, or None where plain rows cost less.

    Args:
        batch: The rows, without columns that are padding in every row.
        model: The sizes of the model.
    """
    prompts, answers = _lengths(batch)
    if min(answers) == 0:  # such a row has no place in a pack
        return None
    groups: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts_of(batch)):
        groups.setdefault(prompt, []).append(row)
    count, width = batch.attention_mask.shape
    least, best = WORTH * model.operations(count, width), None
    for parts in _PARTS:
        packs = [pack for rows in groups.values() for pack in _cut(rows, parts)]
        longest = max(_tokens(rows, prompts, answers) for rows in packs)
        # Eager attention keeps the whole matrix, which must not need more memory than that of plain rows.
        roomy = not model.eager_heads or len(packs) * longest**2 <= count * width**2
        operations = model.operations(len(packs), longest)
        if roomy and longest <= (model.looks_back or longest) and operations < least:
            least, best = operations, packs
    return best


def _cut(rows: list[int], parts: int) -> list[list[int]]:
    size = -(-len(rows) // parts)
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def fit_update(config: Config, model: Sizes, longest: int, mean: float, memory: float) -> Fit:
    """Return how an update is cut so that it fits, and whether the rows of a prompt share its computation.

    Args:
        config: The settings of the run.
        model: The sizes of the model.
        longest: Tokens of the longest prompt.
        mean: Mean number of tokens of a prompt.
        memory: Bytes of memory of the device.
    """
    fit = fitted(config, model, longest, memory)
    return replace(fit, saved=saving(config, model, mean, fit.microbatch))


def saving(config: Config, model: Sizes, prompt: float, microbatch: int | None) -> float | None:
    """Return the share of the operations that packs save, if every completion is as long as it may be.

    Longer completions have less to save, so this is the least. The value is None if the settings leave each row by
    itself: with `false`, or with `auto` where packs save less than a tenth.

    Args:
        config: The settings of the run, with a number or None for the microbatch.
        model: The sizes of the model.
        prompt: Mean number of tokens of a prompt.
        microbatch: Rows in one forward and backward pass; None for no limit.
    """
    asked, sampling, optimizer = config.policy.share_prompts, config.sampling, config.optimizer
    if asked is False:
        return None
    group = sampling.group_size
    if sampling.prompts < optimizer.minibatches:  # then the rows of a prompt are in several minibatches
        group = max(1, group * sampling.prompts // optimizer.minibatches)
    group = min(group, microbatch or group)
    answer = config.task.max_tokens
    plain = model.operations(group, round(prompt + answer))
    least = plain
    for parts in _PARTS:
        rows = -(-group // parts)
        width = round(prompt + rows * (answer - 1))
        if width <= (model.looks_back or width):
            least = min(least, model.operations(-(-group // rows), width))
    return None if asked == "auto" and least > WORTH * plain else 1 - least / plain


def sharing_error(model: Any, ids: Sequence[int], pad_token_id: int) -> float:
    """Return the largest relative change of a token's hidden state by packs, against plain rows of random tokens.

    The value is infinite if the model cannot read packs.

    Args:
        model: A causal language model of transformers.
        ids: Real tokens, at least 6.
        pad_token_id: The padding token.
    """
    if attention_of(model) not in ("sdpa", "eager"):  # others take no such mask, and may leave it out
        return math.inf
    half = len(ids) // 2
    one, other, back = tuple(ids[:half]), tuple(ids[:2]), tuple(ids[::-1])
    rows = [(one, tuple(ids[half:])), (one, back), (one, back[:1]), (other, back), (other, tuple(ids[2:5]))]
    samples = [_sample(prompt, answer) for prompt, answer in rows]
    batch = collate(samples, pad_token_id).to(model.device)
    with torch.no_grad():
        plain = plain_hidden(model, batch)
        try:
            packed = shared_hidden(model, batch, [[0, 1, 2], [3, 4]])
        except Exception:  # any model's own code
            return math.inf
    change = (packed.float() - plain.float()).norm(dim=-1) / plain.float().norm(dim=-1)
    return float(change.nan_to_num(math.inf).max())


def plain_hidden(model: Any, batch: Batch) -> Tensor:
    """Return the hidden states of `shared_hidden` from a pass over the rows one by one."""
    hidden = last_hidden(model, batch.input_ids, batch.attention_mask, batch.positions, batch.vision)
    return hidden[:, batch.prompt_width - 1 : -1][batch.mask.bool()]


def _sample(prompt: tuple[int, ...], answer: tuple[int, ...]) -> Sample:
    completion = Completion(Prompt("", prompt, {}), 0, 1.0, answer, (0.0,) * len(answer), truncated=True)
    return Sample(Rollout(completion, 0.0), 0.0)
