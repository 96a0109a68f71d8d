"""The rows of a sampling call: what is asked, which of them are still decoded, and what they have drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from aepo.entropy.partial import FLOOR
from aepo.types import Completion, Request, TokenTemperature


@dataclass(frozen=True)
class Decoded:
    """`Decoded` holds what is drawn in a call. Values after the end of a row are arbitrary."""

    tokens: Tensor
    """int64 [rows, max_tokens]."""
    logprobs: Tensor
    """[rows, max_tokens], nats."""
    lengths: Tensor
    """int64 [rows]: the length of a row that ended, and 0 for the others."""

    @classmethod
    def empty(cls, rows: int, max_tokens: int, pad: int, device: torch.device) -> Decoded:
        """Return tensors in which nothing is drawn yet."""
        return cls(
            torch.full((rows, max_tokens), pad, device=device),
            torch.zeros(rows, max_tokens, device=device),
            torch.zeros(rows, dtype=torch.long, device=device),
        )


@dataclass
class Part:
    """`Part` holds the rows of a call that are decoded at once, and tells which of them have ended."""

    requests: list[Request]
    """The request of each row."""
    limits: list[int]
    """The largest length of each row."""
    before: int
    """The number of rows of the call before these."""
    ended: Callable[[Mapping[int, Completion]], None] | None
    """The function that is told (`Sampler.ended`)."""
    told: dict[int, Completion] = field(default_factory=dict)
    """The completions of which it was told."""

    def tell(self, out: Decoded, rows: Tensor, ended: Tensor) -> None:
        """Tell of those of the rows that have ended; without a listener, the host does not wait for the device."""
        if self.ended is not None:
            self._tell({row: self._made(row, out) for row in rows[ended].tolist()})

    def completions(self, out: Decoded) -> list[Completion]:
        """Return the completions of all rows, and tell of those that are left."""
        parts = (values.tolist() for values in (out.tokens, out.logprobs, out.lengths))
        made = list(map(_completion, self.requests, self.limits, *parts))
        self._tell({row: one for row, one in enumerate(made) if row not in self.told})
        return made

    def _tell(self, some: Mapping[int, Completion]) -> None:
        self.told |= some
        if self.ended is not None and some:
            self.ended({self.before + row: one for row, one in some.items()})

    def _made(self, row: int, out: Decoded) -> Completion:
        parts = out.tokens[row].tolist(), out.logprobs[row].tolist(), int(out.lengths[row])
        return _completion(self.requests[row], self.limits[row], *parts)


@dataclass
class Live:
    """`Live` holds the A rows that are still in the batch; each tensor has one entry per row."""

    cache: Cache
    """Keys and values of the rows."""
    rows: Tensor
    """int64 [A]: the number of the row in the call."""
    temperatures: Tensor
    """[A]: the temperature of the request."""
    token_temperature: TokenTemperature | None
    """A function from the entropies of the next tokens to factors of the temperature; None if no request has one."""
    by_token: Tensor
    """bool [A]: whether the row's request has a temperature per token."""
    uniforms: Tensor
    """[A, max_tokens], in [0, 1): one uniform per row and step."""
    positions: Tensor
    """int64 [A, 1]: the position of the first sampled token."""
    mask: Tensor | None
    """bool [A, P], false on padding of the prompt; None if there is no padding, so that the model needs no mask, or no
    layer of the cache keeps keys, so that there is nothing to mask.
    """
    ended: Tensor
    """bool [A]: whether the row has ended."""

    def seen(self, sampled: int) -> Tensor | None:
        """Return the mask of the prompt and of the tokens sampled so far, bool [A, P + sampled], or None."""
        if self.mask is None:
            return None
        return torch.cat([self.mask, self.mask.new_ones(len(self.mask), sampled)], dim=1)

    def heat(self, logits: Tensor) -> Tensor:
        """Return the temperature of each row's next token, [A], given its logits [A, V]."""
        if self.token_temperature is None:
            return self.temperatures
        logprobs = logits.float().log_softmax(-1)
        entropy = -(logprobs.exp() * logprobs.clamp_min(FLOOR)).sum(-1)
        return self.temperatures * torch.where(self.by_token, self.token_temperature(entropy), 1.0)

    def select(self, kept: Tensor) -> None:
        """Keep these rows, in this order."""
        self.cache.reorder_cache(kept)  # type: ignore[arg-type]
        self.take(kept)

    def take(self, kept: Tensor) -> None:
        """Keep these rows, in this order, of all but the cache."""
        for name in ("rows", "temperatures", "by_token", "uniforms", "positions", "mask", "ended"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value[kept])


def closed_ranks(ended: Tensor) -> Tensor:
    """Return the indices of the rows that have not ended; the last of them fill the gaps of those that have."""
    count = int((~ended).sum())
    kept = torch.arange(count, device=ended.device)
    kept[ended[:count]] = count + (~ended[count:]).nonzero().squeeze(-1)
    return kept


def _completion(request: Request, limit: int, tokens: list[int], logprobs: list[float], length: int) -> Completion:
    kept = length or limit
    return Completion(
        prompt=request.prompt,
        group=request.group,
        temperature=request.temperature,
        tokens=tuple(tokens[:kept]),
        logprobs=tuple(logprobs[:kept]),
        truncated=length == 0,
    )
