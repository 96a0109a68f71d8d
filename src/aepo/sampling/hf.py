"""Sampling with transformers alone: one prefill per prompt, then a decode loop over a KV cache."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from aepo.entropy.partial import FLOOR
from aepo.errors import require
from aepo.sampling.base import Sampler
from aepo.types import Completion, Request, TokenTemperature

# Finished rows leave the batch once they are this share of it; see benchmarks/results/sampling_cpu.md.
FINISHED_SHARE = 1 / 16
# Tokens that the cache makes room for at a time: seldom copied, and not sized for an answer that ends early.
ROOM = 64


class HFSampler(Sampler):
    """Samples from a transformers causal language model, on the device where it is, with the weights it has.

    eos_token_ids: each of them ends a completion; none at all lets every completion run to the limit.
    pad_token_id: fills prompts on the left, and is masked. top_p: draw from the smallest set of tokens whose
    probability (at the request's temperature) reaches it; 1 is the whole vocabulary. max_rows: most rows
    decoded at once, None for all; it bounds memory and changes no completion but by float noise.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        eos_token_ids: Sequence[int],
        pad_token_id: int,
        top_p: float = 1.0,
        max_rows: int | None = None,
    ) -> None:
        require(0 < top_p <= 1, "top_p", top_p, "in (0, 1]")
        require(max_rows is None or max_rows >= 1, "max_rows", max_rows, "at least 1, or None for no limit")
        self.model = model
        self.eos_token_ids = tuple(eos_token_ids)
        self.pad_token_id = pad_token_id
        self.top_p = top_p
        self.max_rows = max_rows
        self._cache_argument = cache_argument(model)

    def at_top_p(self, top_p: float) -> HFSampler:
        """The same sampler with another top-p cut."""
        require(0 < top_p <= 1, "top_p", top_p, "in (0, 1]")
        sampler = copy.copy(self)
        sampler.top_p = top_p
        return sampler

    @torch.no_grad()
    def sample(self, requests: Sequence[Request], *, max_tokens: int, generator: torch.Generator) -> list[Completion]:
        """Draw every request's completions in one call, a temperature per request; see `Sampler.sample`.

        Requests with the same prompt tokens share a prefill. The model samples in eval mode and is left in
        the mode it was in. The generator advances by rows x max_tokens uniforms, whatever is drawn.

        Raises:
            ValueError: an empty prompt, a temperature that is not positive and finite, a negative count,
                max_tokens below 1.
            RuntimeError: the model's logits are NaN or +inf. (A logit of -inf is a token never drawn.)
        """
        _check(requests, max_tokens)
        rows = [request for request in requests for _ in range(request.count)]
        # One per row and step, all of them now: what becomes of one row moves no other row's draws.
        uniforms = torch.rand(len(rows), max_tokens, generator=generator, device=generator.device)
        chunk = self.max_rows or max(len(rows), 1)
        completions: list[Completion] = []
        with _eval_mode(self.model):
            for first in range(0, len(rows), chunk):
                some = slice(first, first + chunk)
                tokens, logprobs = self._decode(rows[some], uniforms[some].to(self.model.device))
                completions += map(self._completion, rows[some], tokens.tolist(), logprobs.tolist())
        return completions

    def _decode(self, requests: list[Request], uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and their logprobs, both [rows, max_tokens]; arbitrary after the end of a row."""
        device, (rows, max_tokens) = uniforms.device, uniforms.shape
        tokens = torch.full((rows, max_tokens), self.pad_token_id, device=device)
        logprobs = torch.zeros(rows, max_tokens, device=device)
        eos = torch.tensor(self.eos_token_ids, dtype=torch.long, device=device)
        logits, live = self._prefill(requests, uniforms, room=min(max_tokens, ROOM))
        for step in range(max_tokens):
            drawn, logprob = draw(logits, live.heat(logits), live.uniforms[:, step], self.top_p)
            tokens[live.rows, step], logprobs[live.rows, step] = drawn, logprob
            live.ended |= torch.isin(drawn, eos)
            ended, broken = torch.stack([live.ended.sum(), logprob.isnan().sum()]).tolist()
            if broken:
                raise RuntimeError(
                    f"{type(self.model).__name__} gave logits that are not finite (NaN or +inf) for {broken} of "
                    f"{len(drawn)} rows at new token {step}; its weights have probably diverged"
                )
            if ended == len(drawn) or step == max_tokens - 1:
                break
            if ended >= FINISHED_SHARE * len(drawn):
                kept = _closed_ranks(live.ended)
                live.select(kept)
                drawn = drawn[kept]
            logits = self._forward(drawn[:, None], live.seen(step + 1), live.positions + step, live.cache)
        return tokens, logprobs

    def _prefill(self, requests: list[Request], uniforms: Tensor, room: int) -> tuple[Tensor, _Live]:
        """One forward pass over the distinct prompts: next-token logits [rows, V], and the rows to decode."""
        device = uniforms.device
        distinct = {request.prompt.tokens: None for request in requests}
        number_of = {prompt: number for number, prompt in enumerate(distinct)}
        width = max(map(len, distinct))
        ids = [[self.pad_token_id] * (width - len(prompt)) + list(prompt) for prompt in distinct]
        lengths = torch.tensor([len(prompt) for prompt in distinct], device=device)
        columns = torch.arange(width, device=device)
        mask = columns >= width - lengths[:, None] if lengths.min() < width else None
        positions = (columns - (width - lengths[:, None])).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        logits = self._forward(torch.tensor(ids, device=device), mask, positions, cache)
        prompts = torch.tensor([number_of[request.prompt.tokens] for request in requests], device=device)
        _repeat(cache, prompts, room)
        live = _Live(
            cache=cache,
            rows=torch.arange(len(requests), device=device),
            temperatures=torch.tensor([request.temperature for request in requests], device=device),
            token_temperature=next((r.token_temperature for r in requests if r.token_temperature is not None), None),
            by_token=torch.tensor([request.token_temperature is not None for request in requests], device=device),
            uniforms=uniforms,
            positions=lengths[prompts, None],
            mask=None if mask is None else mask[prompts],
            ended=torch.zeros(len(requests), dtype=torch.bool, device=device),
        )
        return logits[prompts], live

    def _forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Cache) -> Tensor:
        """Logits [B, V] after the last of `ids` [B, t]."""
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_argument: cache},
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _completion(self, request: Request, tokens: list[int], logprobs: list[float]) -> Completion:
        ends = (place for place, token in enumerate(tokens, start=1) if token in self.eos_token_ids)
        length = next(ends, None)
        return Completion(
            prompt=request.prompt,
            group=request.group,
            temperature=request.temperature,
            tokens=tuple(tokens[:length]),
            logprobs=tuple(logprobs[:length]),
            truncated=length is None,
        )


def cache_argument(model: torch.nn.Module) -> str:
    """The name under which a model's `forward` takes the KV cache: `cache` since transformers 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def draw(logits: Tensor, temperatures: Tensor, uniforms: Tensor, top_p: float = 1.0) -> tuple[Tensor, Tensor]:
    """One token per row by the inverse distribution function, and its log-probability (nats); both [B].

    logits: [B, V]. temperatures: [B], positive. uniforms: [B], in [0, 1). The distribution is
    softmax(logits / temperature) in float32, cut to the top-p nucleus and renormalised if top_p < 1.
    A row with a NaN or +inf among its logits gets the log-probability NaN.
    """
    probs, order = torch.softmax(logits.float() / temperatures[:, None], dim=-1), None
    if top_p < 1:
        probs, order = probs.sort(dim=-1, descending=True, stable=True)
        probs = probs.masked_fill(probs.cumsum(-1) - probs >= top_p, 0.0)
    reached = probs.cumsum(-1)
    total = reached[:, -1:]
    # The float sum may end below 1, so the uniform is scaled by it: u * total < total also after rounding,
    # and the first place where `reached` exceeds that has probability > 0. The clamp is for rows of NaN.
    places = torch.searchsorted(reached, uniforms[:, None] * total, right=True).clamp_(max=logits.shape[-1] - 1)
    drawn = places if order is None else order.gather(-1, places)
    return drawn.squeeze(-1), (probs.gather(-1, places) / total).log().squeeze(-1)


@dataclass
class _Live:
    """The rows still in the batch, A of them; one entry of each tensor per row.

    rows: which row of the call it is. positions: [A, 1], of the first sampled token. mask: [A, P], false on
    padding; None if there is none, which spares the model the mask.
    """

    cache: Cache
    rows: Tensor
    temperatures: Tensor
    token_temperature: TokenTemperature | None
    by_token: Tensor
    uniforms: Tensor
    positions: Tensor
    mask: Tensor | None
    ended: Tensor

    def seen(self, sampled: int) -> Tensor | None:
        """The mask of the prompt and of the tokens sampled so far: [A, P + sampled], or None."""
        if self.mask is None:
            return None
        return torch.cat([self.mask, self.mask.new_ones(len(self.mask), sampled)], dim=1)

    def heat(self, logits: Tensor) -> Tensor:
        """The temperature of each row's next token, [A]."""
        if self.token_temperature is None:
            return self.temperatures
        logprobs = logits.float().log_softmax(-1)
        entropy = -(logprobs.exp() * logprobs.clamp_min(FLOOR)).sum(-1)
        return self.temperatures * torch.where(self.by_token, self.token_temperature(entropy), 1.0)

    def select(self, kept: Tensor) -> None:
        """Keep these rows, in this order."""
        self.cache.reorder_cache(kept)  # type: ignore[arg-type]
        for name in ("rows", "temperatures", "by_token", "uniforms", "positions", "mask", "ended"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value[kept])


class _RoomyLayer(DynamicLayer):
    """Keys and values with spare columns, so that a new token is written in place.

    `DynamicLayer` concatenates: it copies the whole cache for every token, into newly mapped memory.
    """

    def __init__(self, layer: DynamicLayer, rows: Tensor, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        assert layer.keys is not None and layer.values is not None
        self.dtype, self.device, self.is_initialized = layer.keys.dtype, layer.keys.device, True
        self._buffers = [_with_room(x, room).index_select(0, rows) for x in (layer.keys, layer.values)]
        self._show(layer.keys.shape[-2])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start, end = self._columns, self._columns + key_states.shape[-2]
        if end > self._buffers[0].shape[-2]:
            self._buffers = [_with_room(buffer, max(ROOM, end // 2)) for buffer in self._buffers]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        return self._show(end)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows, at most as many as there are; only those that change place are copied."""
        moved = (beam_idx != torch.arange(len(beam_idx), device=beam_idx.device)).nonzero().squeeze(-1)
        for buffer in self._buffers:
            shown = buffer[:, :, : self._columns]
            shown[moved] = shown[beam_idx[moved]]
        self._buffers = [buffer[: len(beam_idx)] for buffer in self._buffers]
        self._show(self._columns)

    def _show(self, columns: int) -> tuple[Tensor, Tensor]:
        self._columns = columns
        self.keys, self.values = (buffer[:, :, :columns] for buffer in self._buffers)
        return self.keys, self.values


def _with_room(states: Tensor, room: int) -> Tensor:
    rows, heads, columns, size = states.shape
    roomy = states.new_empty(rows, heads, columns + room, size)
    roomy[:, :, :columns] = states
    return roomy


def _repeat(cache: Cache, rows: Tensor, room: int) -> None:
    """From one cache row per prompt to one per completion; `rows` [A] holds each one's prompt."""
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.keys is not None:
            cache.layers[number] = _RoomyLayer(layer, rows, room)
        else:  # sliding windows and the like keep transformers' own way
            layer.reorder_cache(rows)  # type: ignore[arg-type]


def _closed_ranks(ended: Tensor) -> Tensor:
    """Indices of the rows that have not ended, the last ones moved into the gaps of those that have."""
    count = int((~ended).sum())
    kept = torch.arange(count, device=ended.device)
    kept[ended[:count]] = count + (~ended[count:]).nonzero().squeeze(-1)
    return kept


@contextmanager
def _eval_mode(model: PreTrainedModel) -> Iterator[None]:
    """Eval mode inside; afterwards each module is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _check(requests: Sequence[Request], max_tokens: int) -> None:
    require(max_tokens >= 1, "max_tokens", max_tokens, "at least 1")
    several = {request.token_temperature for request in requests} - {None}
    require(len(several) <= 1, "token_temperature", "several", "the same for all requests of a call that have one")
    for request in requests:
        temperature, prompt = request.temperature, request.prompt
        require(0 < temperature < math.inf, "temperature", temperature, "a positive finite number")
        require(request.count >= 0, "count", request.count, "at least 0")
        require(len(prompt.tokens) > 0, f"prompt {prompt.id!r} tokens", prompt.tokens, "at least one token")
