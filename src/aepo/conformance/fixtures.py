"""Fixtures: distributions with log-probabilities and entropies in closed form, and the results of known mistakes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LENGTHS, VOCABULARY = (6, 1, 2), 5


@dataclass(frozen=True)
class Fixture:
    """`Fixture` holds distributions given by whole numbers: pi(v) = weights[v] / sum(weights), in closed form."""

    weights: Tensor
    """float64 [B, T, V], positive whole numbers."""
    labels: Tensor
    """int64 [B, T]."""
    mask: Tensor
    """float32 [B, T], 1.0 on completion tokens, else 0."""

    @classmethod
    def standard(cls) -> Fixture:
        """Return three rows of 6, 1 and 2 tokens in which no two neighbouring positions are alike."""
        row, place, token = torch.meshgrid(
            torch.arange(len(LENGTHS)), torch.arange(max(LENGTHS)), torch.arange(VOCABULARY), indexing="ij"
        )
        # The last row is peaked, so that means over rows and over tokens differ.
        weights = ((7 * row + 3 * place + token**2) % 11 + 1).double() ** (1 + row)
        labels = (2 * row + 3 * place + 1)[..., 0] % VOCABULARY
        mask = (place[..., 0] < torch.tensor(LENGTHS)[:, None]).float()
        return cls(weights, labels, mask)

    def logits(self) -> Tensor:
        """Return the logits, float32 [B, T, V]; each position has its own constant added, which must not matter."""
        constant = torch.arange(self.labels.numel()).view(*self.labels.shape, 1) % 7 - 3.0
        return (self.weights.log() + constant).float()

    def distribution(self, temperature: float) -> Tensor:
        """Return softmax(logits / temperature), float64 [B, T, V]."""
        powers = self.weights ** (1 / temperature)
        return powers / powers.sum(-1, keepdim=True)

    def logprobs(self, temperature: float, labels: Tensor | None = None) -> Tensor:
        """Return log softmax(logits / temperature) at the labels (None: the fixture's own), nats, float64 [B, T]."""
        chosen = self.labels if labels is None else labels
        return self.distribution(temperature).log().gather(-1, chosen[..., None])[..., 0]

    def entropy(self, temperature: float = 1.0) -> Tensor:
        """Return the entropy -sum pi log pi of softmax(logits / temperature), nats, float64 [B, T]."""
        pi = self.distribution(temperature)
        return -(pi * pi.log()).sum(-1)

    def rows(self, chosen: Sequence[int]) -> Fixture:
        """Return a fixture of these rows, in this order."""
        index = torch.tensor(chosen)
        return Fixture(self.weights[index], self.labels[index], self.mask[index])

    def wider(self, columns: int) -> Fixture:
        """Return the fixture with this many more columns of padding on the right."""
        repeated = [part[:, :1].expand(-1, columns, *part.shape[2:]) for part in (self.weights, self.labels)]
        nothing = torch.zeros(len(self.mask), columns)
        return Fixture(
            torch.cat([self.weights, repeated[0]], 1),
            torch.cat([self.labels, repeated[1]], 1),
            torch.cat([self.mask, nothing], 1),
        )


def wrong_logprobs(base: Fixture, temperature: float) -> dict[str, Tensor]:
    """Return, by the name of each known mistake, the log-probabilities that it gives, float64 [B, T]."""
    right = base.logprobs(temperature)
    ahead = base.logprobs(temperature, base.labels.roll(-1, 1))
    behind = base.logprobs(temperature, base.labels.roll(1, 1))
    shifted = "shift by one: a distribution is read at its neighbour's label"
    return {
        "not tempered, though the sampler's temperature is given": base.logprobs(1.0),
        "tempered the wrong way round (logits times the temperature)": base.logprobs(1 / temperature),
        "shift by one: each value is that of the token before": right.roll(1, 1),
        "shift by one: each value is that of the token after": right.roll(-1, 1),
        f"{shifted} (the next)": ahead,
        f"{shifted} (the one before)": behind,
        "the sign is turned": -right,
        "probabilities, not their logarithms": right.exp(),
        "raw logits, not normalised": base.logits().double().gather(-1, base.labels[..., None])[..., 0] / temperature,
    }


def wrong_entropy(base: Fixture, temperature: float) -> dict[str, Tensor]:
    """Return, by the name of each known mistake, the entropy that it gives, float64 [B, T]."""
    right = base.entropy()
    return {
        "tempered: it is that of softmax(logits / temperature)": base.entropy(temperature),
        "tempered the wrong way round (logits times the temperature)": base.entropy(1 / temperature),
        "the sampled estimate -log pi(label), not exact": -base.logprobs(1.0),
        "the sampled estimate -log pi(label), not exact, and tempered": -base.logprobs(temperature),
        "shift by one: each value is that of the token before": right.roll(1, 1),
        "shift by one: each value is that of the token after": right.roll(-1, 1),
        "the sign is turned": -right,
        "in bits, not nats": right / math.log(2),
        "divided by its largest value log V": right / math.log(VOCABULARY),
    }
