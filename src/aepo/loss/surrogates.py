"""Surrogates: the objective that is maximised at each token.

All of them have the gradient A * grad log pi while the policy is the one that sampled; they differ in what they do with
tokens, or with whole rows, whose probability has moved since.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from aepo.errors import require
from aepo.loss.tokens import LOG_RATIO_LIMIT, Tokens


@dataclass(frozen=True)
class Bounds:
    """`Bounds` limits the ratio pi / pi_old to [1 - low, 1 + high]."""

    low: Tensor | float
    """Distance of the lower limit from 1: one number, or one for each token, [B, T]."""
    high: Tensor | float
    """Distance of the upper limit from 1: one number, or one for each token, [B, T]."""


class Surrogate(ABC):
    """`Surrogate` is the objective of a token, which is maximised."""

    name: ClassVar[str]
    takes_bounds: ClassVar[bool] = False
    """Whether a control's bounds of the token ratio have a meaning for it."""
    aggregates: ClassVar[tuple[str, ...]] = ()
    """The aggregates with which it is what its name says; empty for all."""

    @abstractmethod
    def __call__(self, tokens: Tokens, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return the objective of each token, [B, T].

        Args:
            tokens: The tokens, with their ratio pi / pi_old.
            advantages: [B, T].
            bounds: Limits that replace the surrogate's own clip bounds.
        """

    def clipped(self, tokens: Tokens, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return which tokens a clip leaves no gradient, or a limited one, bool [B, T].

        The arguments are those of a call.
        """
        return tokens.log_ratio.abs() >= LOG_RATIO_LIMIT

    @property
    def acts_off_policy(self) -> bool:
        """Return whether it differs from the default clip, and only where the ratio is not 1."""
        return True


@dataclass(frozen=True)
class Ratio(Surrogate):
    """`Ratio` maximises r * A with r = pi / pi_old: an importance ratio without a clip, as in KL-Cov."""

    name: ClassVar[str] = "ratio"
    acts_off_policy: ClassVar[bool] = False

    def __call__(self, tokens: Tokens, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return r * A."""
        return tokens.ratio * advantages


@dataclass(frozen=True)
class Clip(Surrogate):
    """`Clip` maximises PPO's min(r A, clip(r, 1 - low, 1 + high) A) with separate bounds.

    Sources: 1707.06347 (PPO), 2503.14476 (DAPO, separate bounds).
    """

    name: ClassVar[str] = "clip"
    takes_bounds: ClassVar[bool] = True
    low: float = 0.2
    """Distance of the lower clip bound from 1: the ratio is clipped below 1 - low."""
    high: float = 0.2
    """Distance of the upper clip bound from 1: the ratio is clipped above 1 + high."""
    dual: float | None = None
    """Bound of the dual clip (1912.09729): where A < 0, the objective is at least dual * A. verl and EasyR1 use 3.0.
    None means that there is no dual clip.
    """

    def __post_init__(self) -> None:
        require(0 < self.low <= 1, "surrogate.low", self.low, "a number in (0, 1]")
        require(self.high > 0, "surrogate.high", self.high, "a positive number")
        require(self.dual is None or self.dual > 1, "surrogate.dual", self.dual, "a number above 1, or none")

    def __call__(self, tokens: Tokens, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return min(r A, clip(r) A), and where A < 0 at least dual * A."""
        ratio = tokens.ratio
        low, high = _range(bounds or Bounds(self.low, self.high), ratio)
        objective = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
        if self.dual is None:
            return objective
        return torch.where(advantages < 0, torch.maximum(objective, self.dual * advantages), objective)

    def clipped(self, tokens: Tokens, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return which tokens are beyond the bound in the direction that the advantage favours, or are dual-clipped."""
        ratio = tokens.ratio
        low, high = _range(bounds or Bounds(self.low, self.high), ratio)
        beyond = super().clipped(tokens, advantages) | _beyond(ratio, advantages, low, high)
        if self.dual is None:
            return beyond
        return beyond | ((advantages < 0) & (ratio > self.dual))

    @property
    def acts_off_policy(self) -> bool:
        """Return whether its bounds are not the symmetric ones of PPO."""
        return self.high != self.low or self.dual is not None


@dataclass(frozen=True)
class GradientPreservingClip(Surrogate):
    """`GradientPreservingClip` is a clip that leaves a limited gradient beyond its bounds, as in CE-GPPO (2509.20712).

        A < 0 and r < 1 - low:    beta1 (1 - low) A r / sg(r)      gradient by log pi: beta1 (1 - low) A
        A > 0 and r > 1 + high:   beta2 (1 + high) A r / sg(r)     gradient by log pi: beta2 (1 + high) A
        else:                     r A                              gradient by log pi: r A

    sg(r) is r without gradient. `clipped` says which tokens are beyond a bound, although they keep a gradient.
    """

    name: ClassVar[str] = "gradient-preserving-clip"
    takes_bounds: ClassVar[bool] = True
    low: float = 0.2
    """Distance of the lower bound from 1."""
    high: float = 0.2
    """Distance of the upper bound from 1."""
    beta1: float = 0.75
    """Gradient of wrong tokens (A < 0) below the lower bound, as a multiple of (1 - low) A; 0 is PPO's clip."""
    beta2: float = 1.0
    """Gradient of right tokens (A > 0) above the upper bound, as a multiple of (1 + high) A; 0 is PPO's clip."""
    dual: float | None = 10.0
    """Bound of the dual clip: a token with A < 0 and a ratio above it gets no gradient. None means no dual clip."""

    def __post_init__(self) -> None:
        _require_clip(self.low, self.high)
        for field in ("beta1", "beta2"):
            value = getattr(self, field)
            require(0 <= value < math.inf, f"surrogate.{field}", value, "a finite number, 0 or more")
        require(self.dual is None or self.dual > 1, "surrogate.dual", self.dual, "a number above 1, or none")

    def __call__(self, tokens: Tokens, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return r A, with the limited forms beyond the bounds, and where A < 0 at least dual * A."""
        ratio, same = tokens.ratio, _one(tokens.log_ratio)
        low, high = _range(bounds or Bounds(self.low, self.high), ratio)
        objective = torch.where((advantages < 0) & (ratio < low), self.beta1 * low * same, ratio)
        objective = torch.where((advantages > 0) & (ratio > high), self.beta2 * high * same, objective) * advantages
        if self.dual is None:
            return objective
        return torch.where(advantages < 0, torch.maximum(objective, self.dual * advantages), objective)

    def clipped(self, tokens: Tokens, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return which tokens are beyond the bound in the direction that the advantage favours, or are dual-clipped."""
        ratio = tokens.ratio
        low, high = _range(bounds or Bounds(self.low, self.high), ratio)
        beyond = super().clipped(tokens, advantages) | _beyond(ratio, advantages, low, high)
        if self.dual is None:
            return beyond
        return beyond | ((advantages < 0) & (ratio > self.dual))


@dataclass(frozen=True)
class GSPO(Surrogate):
    """`GSPO` clips the ratio of the whole completion, min(s A, clip(s, 1 - low, 1 + high) A) (2507.18071).

    s = exp(mean over the tokens of log r). A token's objective has the value of s and the gradient s * grad log pi_t,
    as in the paper's GSPO-token, so advantages may differ between the tokens of a row.
    """

    name: ClassVar[str] = "gspo"
    aggregates: ClassVar[tuple[str, ...]] = ("sequence-mean-token-mean", "sequence-mean-token-sum")
    low: float = 3e-4
    """Distance of the lower clip bound of s from 1."""
    high: float = 4e-4
    """Distance of the upper clip bound of s from 1."""

    def __post_init__(self) -> None:
        _require_clip(self.low, self.high)

    def __call__(self, tokens: Tokens, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return min(s A, clip(s) A)."""
        ratio = self._ratio(tokens)
        return torch.minimum(ratio * advantages, ratio.clamp(1 - self.low, 1 + self.high) * advantages)

    def clipped(self, tokens: Tokens, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return the tokens of the rows whose s is beyond the bound that the advantage favours."""
        beyond = _beyond(self._ratio(tokens).detach(), advantages, 1 - self.low, 1 + self.high)
        return super().clipped(tokens, advantages) | beyond

    def _ratio(self, tokens: Tokens) -> Tensor:
        """Return s at each token; the gradient by log pi_t is s."""
        return tokens.row_mean(tokens.log_ratio).detach().exp() * _one(tokens.log_ratio)


@dataclass(frozen=True)
class CISPO(Surrogate):
    """`CISPO` maximises w A log pi with the weight w = clip(r, 1 - low, 1 + high), a constant (2506.13585).

    No token loses its gradient; only its weight is limited.
    """

    name: ClassVar[str] = "cispo"
    takes_bounds: ClassVar[bool] = True
    low: float = 1.0
    """Distance of the smallest weight from 1; with 1 the weight is open below, as in the paper."""
    high: float = 4.0
    """Distance of the largest weight from 1: weights are at most 1 + high."""

    def __post_init__(self) -> None:
        _require_clip(self.low, self.high)

    def __call__(self, tokens: Tokens, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return w A log pi."""
        ratio = tokens.ratio.detach()
        return ratio.clamp(*_range(bounds or Bounds(self.low, self.high), ratio)) * advantages * tokens.logprobs

    def clipped(self, tokens: Tokens, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return False everywhere."""
        return torch.zeros_like(tokens.mask)


@dataclass(frozen=True)
class GMPO(Surrogate):
    """`GMPO` maximises A times the geometric mean of the token ratios, each clipped on one side (2507.20673).

    g_t = min(log r_t, high) where A > 0, max(log r_t, -low) where A < 0; the objective is A exp(mean of g over the
    row). A token's objective has that value and the gradient A exp(mean g) * grad log pi_t, or 0 where g_t is clipped,
    so advantages may differ between the tokens of a row.
    """

    name: ClassVar[str] = "gmpo"
    aggregates: ClassVar[tuple[str, ...]] = ("sequence-mean-token-mean",)
    low: float = 0.4
    """Distance of the lower clip bound of log r from 0, nats."""
    high: float = 0.4
    """Distance of the upper clip bound of log r from 0, nats."""

    def __post_init__(self) -> None:
        require(self.low > 0, "surrogate.low", self.low, "a positive number (nats)")
        require(self.high > 0, "surrogate.high", self.high, "a positive number (nats)")

    def __call__(self, tokens: Tokens, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return A exp(mean g)."""
        upper = torch.where(advantages > 0, self.high, math.inf)
        lower = torch.where(advantages < 0, -self.low, -math.inf)
        log_ratio = torch.minimum(torch.maximum(tokens.log_ratio, lower), upper)
        return advantages * tokens.row_mean(log_ratio).detach().exp() * _one(log_ratio)

    def clipped(self, tokens: Tokens, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return the tokens whose log r is beyond the bound that the advantage favours."""
        beyond = _beyond(tokens.log_ratio, advantages, -self.low, self.high)
        return super().clipped(tokens, advantages) | beyond


@dataclass(frozen=True)
class SAPO(Surrogate):
    """`SAPO` maximises (4 / tau) sigmoid(tau (r - 1)) A, a soft gate in place of the clip (2511.20347).

    The gradient is A at r = 1 and fades on both sides. The value at r = 1 is 2 A / tau.
    """

    name: ClassVar[str] = "sapo"
    tau_positive: float = 1.0
    """tau where A > 0: how fast the gradient fades."""
    tau_negative: float = 1.05
    """tau elsewhere."""

    def __post_init__(self) -> None:
        for field in ("tau_positive", "tau_negative"):
            value = getattr(self, field)
            require(0 < value < math.inf, f"surrogate.{field}", value, "a positive, finite number")

    def __call__(self, tokens: Tokens, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return the gate times A."""
        tau = torch.where(advantages > 0, self.tau_positive, self.tau_negative)
        return 4 / tau * torch.sigmoid(tau * (tokens.ratio - 1)) * advantages


@dataclass(frozen=True)
class DPPO(Surrogate):
    """`DPPO` maximises w A log pi, w = min(r, cap), and stops tokens whose divergence is too large (2602.04879).

    With p = pi(y) and q = pi_old(y), `tv` keeps a token of A > 0 while p - q <= high, and any other while p - q >=
    -low. `kl` keeps it while q log(q / p) + (1 - q) log((1 - q) / (1 - p)) is at most high or low, or p has moved
    against the advantage. Unlike a ratio, this lets unlikely tokens move by large factors and likely ones hardly.
    """

    name: ClassVar[str] = "dppo"
    divergence: Literal["tv", "kl"] = "tv"
    """The divergence of the token against all others: `tv`, a difference of probabilities, or `kl`, nats."""
    low: float = 0.15
    """Largest divergence of a token whose advantage is not positive."""
    high: float = 0.15
    """Largest divergence of a token whose advantage is positive."""
    cap: float = 20.0
    """Largest weight."""

    def __post_init__(self) -> None:
        require(self.low > 0, "surrogate.low", self.low, "a positive number")
        require(self.high > 0, "surrogate.high", self.high, "a positive number")
        require(self.cap >= 1, "surrogate.cap", self.cap, "a number, 1 or more")

    def __call__(self, tokens: Tokens, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return min(r, cap) A log pi, or 0."""
        weight = torch.where(self.clipped(tokens, advantages), 0.0, tokens.ratio.detach().clamp(max=self.cap))
        return weight * advantages * tokens.logprobs

    def clipped(self, tokens: Tokens, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return which tokens have moved too far in the direction that the advantage favours."""
        new, old = tokens.logprobs.detach(), tokens.old_logprobs
        moved = new.exp() - old.exp()
        distance = moved.abs() if self.divergence == "tv" else _binary_kl(old, new)
        positive = advantages > 0
        favoured = torch.where(positive, moved > 0, moved < 0)
        return favoured & (distance > torch.where(positive, self.high, self.low))


@dataclass(frozen=True)
class VESPO(Surrogate):
    """`VESPO` maximises phi(W) A log pi, where W is the product of a row's ratios (2602.10693).

    phi(W) = W^k exp(lambda (1 - W)), a constant; phi(1) = 1. log W is cut to [log 1e-8, 20]. W is not normalised by
    length, so long rows weigh little as soon as the policy has moved.
    """

    name: ClassVar[str] = "vespo"
    k_positive: float = 2.0
    """k where A >= 0."""
    lambda_positive: float = 3.0
    """lambda where A >= 0."""
    k_negative: float = 3.0
    """k where A < 0."""
    lambda_negative: float = 2.0
    """lambda where A < 0."""

    def __post_init__(self) -> None:
        for field in ("k_positive", "lambda_positive", "k_negative", "lambda_negative"):
            value = getattr(self, field)
            require(0 < value < math.inf, f"surrogate.{field}", value, "a positive, finite number")

    def __call__(self, tokens: Tokens, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return phi(W) A log pi."""
        return self._weight(tokens, advantages) * advantages * tokens.logprobs

    def clipped(self, tokens: Tokens, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return the tokens whose weight is 0 in the precision of the log-probabilities."""
        return self._weight(tokens, advantages) == 0

    def _weight(self, tokens: Tokens, advantages: Tensor) -> Tensor:
        log_weight = tokens.row_sum(tokens.log_ratio).detach().clamp(math.log(1e-8), LOG_RATIO_LIMIT)
        power = torch.where(advantages >= 0, self.k_positive, self.k_negative)
        rate = torch.where(advantages >= 0, self.lambda_positive, self.lambda_negative)
        return (power * log_weight + rate * (1 - log_weight.exp())).exp()


SURROGATES: dict[str, type[Surrogate]] = {
    cls.name: cls for cls in (Clip, Ratio, GradientPreservingClip, GSPO, CISPO, GMPO, SAPO, DPPO, VESPO)
}


def _range(bounds: Bounds, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bounds as limits of the ratio, in the type and on the device of `like`."""
    low, high = (torch.as_tensor(value, dtype=like.dtype) for value in (bounds.low, bounds.high))
    return 1 - low.to(like.device), 1 + high.to(like.device)


def _beyond(ratio: Tensor, advantages: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Return where the ratio is beyond the limit in the direction that the advantage favours."""
    return ((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low))


def _one(log_ratio: Tensor) -> Tensor:
    """Return ones whose gradient is that of the log ratio."""
    return (log_ratio - log_ratio.detach()).exp()


def _binary_kl(old: Tensor, new: Tensor) -> Tensor:
    """Return the KL divergence of (q, 1 - q) and (p, 1 - p), nats, from log q and log p."""
    rest = [(-torch.expm1(logprobs)).clamp(min=1e-8) for logprobs in (old, new)]
    return old.exp() * (old - new) + rest[0] * (rest[0] / rest[1]).log()


def _require_clip(low: float, high: float) -> None:
    require(0 < low <= 1, "surrogate.low", low, "a number in (0, 1]")
    require(0 < high < math.inf, "surrogate.high", high, "a positive, finite number")
