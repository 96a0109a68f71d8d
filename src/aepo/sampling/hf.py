"""Sampling with transformers alone: one prefill per prompt, then a decoding loop over a KV cache."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from aepo.engines.collate import Look, continued
from aepo.engines.positions import Room
from aepo.engines.stops import StopStrings
from aepo.errors import require
from aepo.model.forward import accepted, seen
from aepo.model.memory import looks_back
from aepo.sampling.base import Sampler
from aepo.sampling.caches import cache_argument, can_be_fixed, fixed, joined, keeps_all, repeat
from aepo.sampling.draw import Cuts, draw_tokens
from aepo.sampling.live import Decoded, Live, Part, closed_ranks
from aepo.sampling.prefill import alike, shown
from aepo.sampling.static import COLUMNS, LOOK, Replay, causal_mask
from aepo.types import Completion, Prompt, Request, Vision

# Rows that have ended leave the batch when they are this share of it; see benchmarks/results/sampling_cpu.md.
FINISHED_SHARE = 1 / 16


class HFSampler(Sampler):
    """`HFSampler` draws completions with a transformers causal language model, on the model's device and weights.

    Args:
        model: The model.
        eos_token_ids: Each of these tokens ends a completion; without any, every completion runs to the limit.
        pad_token_id: The token that fills prompts on the left; it is masked.
        top_p, top_k, min_p: What is cut off the distribution at the request's temperature; see `Cuts`.
        stop: Texts that end a completion too; None for none.
        room: How long a prompt and its completion may be; the default sets no limit.
        look: What a model of images sees of a prompt; None for a model of text.
        max_rows: The largest number of rows that are decoded at once; None decodes all. It bounds the memory and
            changes completions only by float noise.
        decode: `dynamic` grows the cache with each token. `static` decodes in tensors of fixed sizes, on CUDA as a
            graph without the host (`aepo.sampling.static`), where every layer keeps the keys of all tokens.
        context: What surrounds a call, such as `Policy.rounded_once`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        eos_token_ids: Sequence[int],
        pad_token_id: int,
        top_p: float = 1.0,
        top_k: int | None = None,
        min_p: float = 0.0,
        stop: StopStrings | None = None,
        room: Room = Room(),
        look: Look | None = None,
        max_rows: int | None = None,
        decode: Literal["dynamic", "static"] = "dynamic",
        context: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        require(max_rows is None or max_rows >= 1, "max_rows", max_rows, "at least 1, or None for no limit")
        self.model = model
        self.eos_token_ids = tuple(eos_token_ids)
        self.pad_token_id = pad_token_id
        self.cuts = Cuts(top_p, top_k, min_p)
        self.stop = stop
        self.room = room
        self.look = look
        self.max_rows = max_rows
        self.decode = decode
        self.context = context
        self.graphs = True
        """Whether steps of `static` are captured as CUDA graphs; false after a failure, as with mixtures of experts."""
        self._cache_argument = cache_argument(model)

    def with_cuts(self, cuts: Cuts) -> HFSampler:
        """Return a sampler on the same model with other cuts."""
        sampler = copy.copy(self)
        sampler.cuts = cuts
        return sampler

    @torch.no_grad()
    def sample(self, requests: Sequence[Request], *, max_tokens: int, generator: torch.Generator) -> list[Completion]:
        """Draw the completions of all requests in one call, each at its own temperature; see `Sampler.sample`.

        Requests with the same prompt tokens and the same images share a prefill. The model samples in eval mode and
        then returns to the mode that it was in. The generator advances by rows x max_tokens uniforms, whatever is
        drawn.

        Raises:
            ValueError: A prompt is empty or leaves no room, a temperature is not positive and finite, a count is
                negative, or `max_tokens` is below 1.
            RuntimeError: The model's logits are NaN or +inf. (A token with a logit of -inf is never drawn.)
        """
        _check(requests, max_tokens)
        rows = [request for request in requests for _ in range(request.count)]
        limits = [self.room.limit(len(request.prompt.tokens), max_tokens) for request in rows]
        # One uniform per row and step, all drawn now, so that the end of one row changes no other row's draws.
        uniforms = torch.rand(len(rows), max_tokens, generator=generator, device=generator.device)
        chunk = self.max_rows or max(len(rows), 1)
        completions: list[Completion] = []
        with _eval_mode(self.model), self.context():
            for first in range(0, len(rows), chunk):
                some = slice(first, first + chunk)
                part = Part(rows[some], limits[some], first, self.ended)
                completions += part.completions(self._decode(part, uniforms[some].to(self.model.device)))
                if self.report is not None:  # rows that were cut at their limit count, too
                    self.report(len(completions))
        return completions

    def _decode(self, part: Part, uniforms: Tensor) -> Decoded:
        """Return what is drawn for uniforms of [rows, max_tokens].

        A row leaves the batch at its limit, because the model may have no position after it.
        """
        device, (rows, max_tokens), limits = uniforms.device, uniforms.shape, part.limits
        out = Decoded.empty(rows, max_tokens, self.pad_token_id, device)
        tokens, logprobs, lengths = out.tokens, out.logprobs, out.lengths
        eos = torch.tensor(self.eos_token_ids, dtype=torch.long, device=device)
        last = torch.tensor(limits, device=device) if min(limits) < max_tokens else None
        logits, live, prompts = self._prefill(part.requests, uniforms)
        if self.decode == "static" and self._can_be_static(live.cache, max_tokens):
            return self._decode_static(logits, live, prompts, part)
        repeat(live.cache, prompts, max_tokens)
        for step in range(max_tokens):
            drawn, logprob = draw_tokens(logits, live.heat(logits), live.uniforms[:, step], self.cuts)
            tokens[live.rows, step], logprobs[live.rows, step] = drawn, logprob
            ends = torch.isin(drawn, eos)
            if self.stop is not None:
                ends |= self._stopped(tokens, live, step)
            lengths[live.rows[ends & ~live.ended]] = step + 1
            live.ended |= ends
            full = None if last is None else last[live.rows] <= step + 1
            if full is not None:
                live.ended |= full
            ended, broken = torch.stack([live.ended.sum(), logprob.isnan().sum()]).tolist()
            if broken:
                raise self._not_finite(broken, len(drawn), step)
            if self.report is not None:
                self.report(part.before + rows - len(drawn) + ended)
            if ended == len(drawn) or step == max_tokens - 1:
                break
            if ended >= FINISHED_SHARE * len(drawn) or (full is not None and full.any()):
                part.tell(out, live.rows, live.ended)
                kept = closed_ranks(live.ended)
                live.select(kept)
                drawn = drawn[kept]
            logits = self._forward(drawn[:, None], live.seen(step + 1), live.positions + step, live.cache)
        return out

    def _stopped(self, tokens: Tensor, live: Live, step: int) -> Tensor:
        """Return which live rows hold a stop string with the token of this step, bool [A]."""
        assert self.stop is not None
        first = max(0, step + 1 - self.stop.window)
        tails = tokens[live.rows, first : step + 1].tolist()
        return torch.tensor(self.stop.ended(tails), device=tokens.device)

    def _can_be_static(self, cache: Cache, max_tokens: int) -> bool:
        """Return whether each layer sees all tokens of the rows, and keeps their keys and values."""
        sight = looks_back(self.model.config.get_text_config())
        return can_be_fixed(cache) and (sight is None or cache.get_seq_length() + max_tokens <= sight)

    def _decode_static(self, logits: Tensor, live: Live, prompts: Tensor, part: Part) -> Decoded:
        """Return what `_decode` returns, from steps in tensors that keep their places (`aepo.sampling.static`)."""
        device, (rows, max_tokens) = live.uniforms.device, live.uniforms.shape
        out = Decoded.empty(rows, max_tokens, self.pad_token_id, device)
        last = torch.tensor(part.limits, device=device)
        width, room, done = live.cache.get_seq_length(), min(COLUMNS, max_tokens), 0
        now = torch.zeros(1, dtype=torch.long, device=device)
        column = now + width
        kept: Tensor = prompts
        while True:
            live.cache = fixed(live.cache, kept, width + room, column)
            step = self._static_step(logits, live, last, now, column, out)
            ended = 0
            while done < room and 2 * ended < len(live.rows):
                count = min(LOOK, room - done)
                for _ in range(count):
                    step()
                done += count
                known = live.ended
                ended = self._look(out, live, last, done, count)
                part.tell(out, live.rows, live.ended & ~known)
                self.graphs = self.graphs and not step.failed
                if self.report is not None:
                    self.report(part.before + rows - len(live.rows) + ended)
            if ended == len(live.rows) or done == max_tokens:
                return out
            kept = (~live.ended).nonzero()[:, 0]
            live.take(kept)
            logits = logits[kept]
            room = min(2 * room, max_tokens) if done == room else room

    def _static_step(
        self, logits: Tensor, live: Live, last: Tensor, now: Tensor, column: Tensor, out: Decoded
    ) -> Replay:
        """Return a function that draws token `now` of each row and runs the model on it.

        Args:
            logits: [A, V], the logits of token `now`; they are overwritten by the next ones.
            live: The rows, with a fixed cache.
            last: [rows], the largest length of each row of the call.
            now: int64 [1], the number of the token; each call adds 1.
            column: int64 [1], the column of the token in the cache; each call adds 1.
            out: What is drawn.
        """
        mask, shown = causal_mask(live.mask, len(live.rows), live.cache.get_seq_length(), column, self.model)
        # A row at its limit goes on until the host looks; the model may have no position after the last one.
        end = live.positions + last[live.rows, None] - 1

        def step() -> None:
            uniforms = live.uniforms.index_select(1, now)[:, 0]
            drawn, logprob = draw_tokens(logits, live.heat(logits), uniforms, self.cuts)
            out.tokens[live.rows, now] = drawn
            out.logprobs[live.rows, now] = logprob
            mask.index_fill_(3, column, shown)
            positions = torch.minimum(live.positions + now, end)
            logits.copy_(self._forward(drawn[:, None], mask, positions, live.cache))
            now.add_(1)
            column.add_(1)

        return Replay(step, capture=self.graphs and logits.device.type == "cuda")

    def _look(self, out: Decoded, live: Live, last: Tensor, done: int, count: int) -> int:
        """Find which rows have ended with their last `count` of `done` tokens.

        Returns:
            The number of live rows that have ended, now or before.
        """
        first, limits = done - count, last[live.rows, None]
        numbers = torch.arange(first + 1, done + 1, device=limits.device)
        ends = torch.isin(out.tokens[live.rows, first:done], out.tokens.new_tensor(self.eos_token_ids))
        if self.stop is not None:
            stopped = [self._stopped(out.tokens, live, step) for step in range(first, done)]
            ends |= torch.stack(stopped, dim=1)
        inside = (numbers <= limits) & ~live.ended[:, None]
        ends &= inside
        length = torch.where(ends.any(1), first + 1 + ends.int().argmax(1), 0)
        out.lengths[live.rows] = torch.where(length > 0, length, out.lengths[live.rows])
        broken = out.logprobs[live.rows, first:done].isnan() & inside
        broken &= (length == 0)[:, None] | (numbers <= length[:, None])
        live.ended = live.ended | (length > 0) | (limits[:, 0] <= done)
        ended, bad = torch.stack([live.ended.sum(), broken.sum()]).tolist()
        if bad:
            step = int(broken.any(0).int().argmax())
            raise self._not_finite(int(broken[:, step].sum()), len(live.rows), first + step)
        return int(ended)

    def _not_finite(self, broken: int, rows: int, step: int) -> RuntimeError:
        return RuntimeError(
            f"{type(self.model).__name__} gave logits that are not finite (NaN or +inf) for {broken} of "
            f"{rows} rows at new token {step}; its weights have probably diverged"
        )

    def _prefill(self, requests: list[Request], uniforms: Tensor) -> tuple[Tensor, Live, Tensor]:
        """Run the model over the distinct prompts, those of like length at once.

        Returns:
            The next-token logits [rows, V], the rows to decode with the cache of the prompts, and the number of each
            row's prompt in that cache.
        """
        device = uniforms.device
        parts = self._parts(list({request.prompt.seen: request.prompt for request in requests}.values()))
        filled = [self._filled(part, device) for part in parts]
        distinct = [prompt for part in parts for prompt in part]
        if len(filled) > 1 and not all(can_be_fixed(one) for _, _, one in filled):
            filled = [self._filled(distinct, device)]  # the model has a state that its configuration does not tell of
        logits = torch.cat([one for one, _, _ in filled])
        after = torch.cat([one for _, one, _ in filled])
        cache = joined([one for _, _, one in filled])
        mask = shown(distinct, device)
        if all(getattr(layer, "keys", None) is None for layer in cache.layers):
            mask = None  # Mamba takes a mask of the new tokens alone, and has no keys to mask
        number_of = {prompt.seen: number for number, prompt in enumerate(distinct)}
        prompts = torch.tensor([number_of[request.prompt.seen] for request in requests], device=device)
        live = Live(
            cache=cache,
            rows=torch.arange(len(requests), device=device),
            temperatures=torch.tensor([request.temperature for request in requests], device=device),
            token_temperature=next((r.token_temperature for r in requests if r.token_temperature is not None), None),
            by_token=torch.tensor([request.token_temperature is not None for request in requests], device=device),
            uniforms=uniforms,
            positions=after[prompts, None],
            mask=None if mask is None else mask[prompts],
            ended=torch.zeros(len(requests), dtype=torch.bool, device=device),
        )
        return logits[prompts], live, prompts

    def _parts(self, prompts: list[Prompt]) -> list[list[Prompt]]:
        """Return the prompts that are computed at once: all, or those of like length if their caches can be joined."""
        whole = any(prompt.images for prompt in prompts) or not keeps_all(DynamicCache(config=self.model.config))
        return [prompts] if whole else alike(prompts)

    def _filled(self, prompts: list[Prompt], device: torch.device) -> tuple[Tensor, Tensor, Cache]:
        """Run the model once over prompts, padded on the left to the longest.

        Returns:
            The next-token logits [P, V], the positions of the next tokens [P], and the cache.
        """
        mask = shown(prompts, device)
        lengths = [len(prompt.tokens) for prompt in prompts]
        width = max(lengths)
        ids = [[self.pad_token_id] * (width - len(prompt.tokens)) + list(prompt.tokens) for prompt in prompts]
        positions, vision = self._seen(prompts, width)
        if positions is None:
            after = torch.tensor(lengths, device=device)
            positions = (torch.arange(width, device=device) - (width - after[:, None])).clamp(min=0)
        else:
            positions = positions.to(device)
            after = positions.amax((0, 2)) + 1
        cache = DynamicCache(config=self.model.config)
        return self._forward(torch.tensor(ids, device=device), mask, positions, cache, vision), after, cache

    def _seen(self, prompts: list[Prompt], width: int) -> tuple[Tensor | None, Vision | None]:
        """Return the positions [A, prompts, width] and the images of the prompts; (None, None) if none has an image.

        Every later token has its position on all axes, so that only the prefill needs more than one axis.
        """
        if not any(prompt.images for prompt in prompts):
            return None, None
        require(self.look is not None, "prompt", "one with images", "a prompt of text, for a sampler without `look`")
        assert self.look is not None
        looked = [self.look(prompt) for prompt in prompts]
        positions = torch.stack([continued(one.positions, width, 0) for one in looked], dim=1)
        return positions, Vision(tuple(one.images for one in looked))

    def _forward(
        self, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: Cache, vision: Vision | None = None
    ) -> Tensor:
        """Return the logits [B, V] after the last token of `ids` [B, t]."""
        images = seen(None if vision is None else vision.to(ids.device))
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            use_cache=True,
            **{self._cache_argument: cache},
            **accepted(self.model, position_ids=positions, logits_to_keep=1, **images),
        )
        logits: Tensor = output.logits[:, -1]
        return logits


@contextmanager
def _eval_mode(model: PreTrainedModel) -> Iterator[None]:
    """Set the model to eval mode; on leaving, set each module back to the mode that it was in."""
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
