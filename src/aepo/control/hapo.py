"""HAPO: tokens of high and of low entropy are treated apart in four places (2509.16591)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from aepo.control.base import Control, Measured, Scored, State
from aepo.control.tokens import masked_mean, quantile
from aepo.errors import require
from aepo.loss.surrogates import Bounds
from aepo.types import BatchStatistics, TokenTemperature

# Entropies are clamped here (nats) before the logarithm.
ENTROPY_FLOOR = 1e-8
# A group with a token-level advantage of this size keeps the ones it came with.
FALLBACK = 5.0
STD_EPSILON = 1e-6


@dataclass(frozen=True)
class Signal:
    """`Signal` turns entropies in nats into h~ in [-1, 1] (2509.16591, Eq. 5-6), by the statistics of a batch.

    h = (log H - Q) / sigma, Q the quantile of log H and sigma the root mean square of log H - Q; h~ = h / h_max above
    the quantile, h / |h_min| under it. Where a batch has no spread on a side, h~ is 0 on it.
    """

    quantile: float
    """Q: the quantile of log H."""
    sigma: float
    """Root mean square of log H - Q."""
    h_max: float
    """Largest h of the batch."""
    h_min: float
    """Smallest h of the batch; 0 or negative."""
    literal: bool = False
    """Divide by h_min instead of |h_min| under the quantile, so that the lowest entropy gets +1."""

    @classmethod
    def of(cls, entropy: Tensor, mask: Tensor, rho: float, literal: bool) -> Signal:
        """Return the signal with the statistics over the masked tokens, of which there must be one."""
        logs = _log(entropy)
        pivot = quantile(logs, mask, rho, "nearest")
        sigma = masked_mean((logs - pivot) ** 2, mask).sqrt()
        if sigma == 0:
            return cls(pivot.item(), 0.0, 0.0, 0.0, literal)
        h = (logs - pivot)[mask.bool()] / sigma
        return cls(pivot.item(), sigma.item(), h.max().item(), h.min().item(), literal)

    def __call__(self, entropy: Tensor) -> Tensor:
        """Return h~ of each entropy, limited to [-1, 1] for those outside the range of the batch."""
        if self.sigma == 0:
            return torch.zeros_like(entropy)
        h = (_log(entropy) - self.quantile) / self.sigma
        above = h / self.h_max if self.h_max > 0 else torch.zeros_like(h)
        below = h / (self.h_min if self.literal else -self.h_min) if self.h_min < 0 else torch.zeros_like(h)
        return torch.where(h > 0, above, below).clamp(-1, 1)


@dataclass(frozen=True)
class SignalTemperature:
    """`SignalTemperature` is 1 + tau * h~ (2509.16591, Eq. 8), with the statistics of an earlier step."""

    signal: Signal
    """The signal that gives h~."""
    tau: float
    """Change of the temperature at h~ = 1."""

    def __call__(self, entropy: Tensor) -> Tensor:
        """Return the temperature of each token from its exact entropy, [B]."""
        return 1 + self.tau * self.signal(entropy)


@dataclass(frozen=True, kw_only=True)
class HAPO(Control):
    """`HAPO` has four parts, each with its switch. All of them use one signal h~ in [-1, 1] (see `Signal`)."""

    name: ClassVar[str] = "hapo"
    acts_off_policy = True
    adaptive_temperature: bool = True
    """Part A: sample each token at T = 1 + tau * h~, with the statistics of the step before. The first step samples at
    1.
    """
    token_group: bool = True
    """Part B: every token gets its completion's reward, and the advantage is (R - mean) / (std + 1e-6) over all tokens
    of the group, std biased, so the tokens' advantages sum to 0. A group with an |A| of 5 or more keeps its incoming
    advantages.
    """
    redistribution: bool = True
    """Part C: A * (1 + beta * h~) where h~ > 0 and the ratio pi / pi_old has left the neutral zone (1 - low_t / 2, 1 +
    high_t / 2), or h~ <= 0 and it is inside. The zone is taken from part D's bounds.
    """
    adaptive_clip: bool = True
    """Part D: the ratio is clipped to [1 - low_t, 1 + high_t] with low_t = low * (1 - h~) where h~ <= 0 and high_t =
    high * (1 + h~) where h~ > 0, else low and high. Without it the surrogate's own bounds hold, and `low` and `high`
    only make the neutral zone.
    """
    sign: Literal["defined", "literal"] = "defined"
    """`defined`: low entropy is negative. `literal`: the published code, in which the lowest entropy gets +1, as the
    highest does.
    """
    rho: float = 0.8
    """Which quantile of log H is h~ = 0."""
    tau: float = 0.05
    """Change of the sampling temperature at h~ = 1 (part A)."""
    beta: float = 1.0
    """Relative change of the advantage at h~ = 1 (part C)."""
    low: float = 0.2
    """Distance of the lower clip bound from 1 at h~ >= 0 (part D); the lowest entropy doubles it."""
    high: float = 0.28
    """Distance of the upper clip bound from 1 at h~ <= 0 (part D); the highest entropy doubles it."""

    def __post_init__(self) -> None:
        require(0 <= self.rho <= 1, "control.rho", self.rho, "a number in [0, 1]")
        require(0 <= self.tau < 1, "control.tau", self.tau, "a number in [0, 1)")
        require(0 <= self.beta <= 1, "control.beta", self.beta, "a number in [0, 1], so that the sign of A is kept")
        require(0 < self.low <= 0.5, "control.low", self.low, "a number in (0, 0.5]; the lowest entropy doubles it")
        require(self.high > 0, "control.high", self.high, "a positive number")

    def initial_state(self) -> State:
        """Return a state without statistics."""
        return {"signal": None}

    # --- A --------------------------------------------------------------------------------------------------

    def token_temperature(self, state: State) -> TokenTemperature | None:
        """Return 1 + tau * h~ once a step has been measured."""
        if not self.adaptive_temperature or state["signal"] is None:
            return None
        return SignalTemperature(Signal(**state["signal"]), self.tau)

    def update(self, state: State, measured: Measured) -> State:
        """Keep the statistics of the ordinary tokens for the next step's sampling."""
        if not self.adaptive_temperature or not measured.scored.ordinary.any():
            return state
        signal: dict[str, Any] = asdict(self._signal(measured.scored, measured.scored.ordinary))
        finite = all(math.isfinite(value) for value in signal.values())
        return {"signal": signal} if finite else state

    # --- the signal -----------------------------------------------------------------------------------------

    def mark(self, scored: Scored, state: State) -> Mapping[str, Tensor]:
        """Return h~ of every token, 0 on padding, with the statistics of the tokens that are trained on."""
        entropy, trained = scored.entropy, scored.trained
        if not trained.any():
            return {"h": torch.zeros_like(entropy)}
        return {"h": self._signal(scored, trained)(entropy) * scored.batch.mask}

    def _signal(self, scored: Scored, mask: Tensor) -> Signal:
        return Signal.of(scored.entropy, mask, self.rho, self.sign == "literal")

    # --- B, C, D --------------------------------------------------------------------------------------------

    def shape(self, advantages: Tensor, scored: Scored, state: State) -> Tensor:
        """Return the token-level group advantage on ordinary rows."""
        if not self.token_group:
            return advantages
        shaped, batch = advantages.clone(), scored.batch
        for group in batch.groups[~batch.extra].unique():
            rows = (batch.groups == group) & ~batch.extra
            own = _over_tokens(batch.rewards[rows], batch.mask[rows].sum(1)).to(advantages)
            if own.abs().max() < FALLBACK:
                shaped[rows] = own[:, None] * batch.mask[rows]
        return shaped

    def reshape(self, advantages: Tensor, scored: Scored, new: BatchStatistics, state: State) -> Tensor:
        """Return A * (1 + beta * h~) for uncertain tokens that move and certain ones that do not."""
        if not self.redistribution:
            return advantages
        h, bounds = scored.marks["h"], self._adapted(scored)
        ratio = (new.logprobs.detach() - scored.old.logprobs).exp()
        neutral = (ratio > 1 - bounds.low / 2) & (ratio < 1 + bounds.high / 2)
        return torch.where((h > 0) != neutral, advantages * (1 + self.beta * h), advantages)

    def bounds(self, scored: Scored, new: BatchStatistics, state: State) -> Bounds | None:
        """Return bounds that are wider below for certain tokens and wider above for uncertain ones."""
        return self._adapted(scored) if self.adaptive_clip else None

    def _adapted(self, scored: Scored) -> Bounds:
        h = scored.marks["h"] if self.adaptive_clip else torch.zeros_like(scored.batch.mask)
        return Bounds(low=self.low * (1 - h.clamp(max=0)), high=self.high * (1 + h.clamp(min=0)))


def _log(entropy: Tensor) -> Tensor:
    return entropy.clamp_min(ENTROPY_FLOOR).log()


def _over_tokens(rewards: Tensor, lengths: Tensor) -> Tensor:
    """Return (R - mean) / (std + 1e-6) of each row [N], over all tokens of the group; 0 where all rewards are equal."""
    if (rewards == rewards[0]).all():
        return torch.zeros_like(rewards)
    rewards, share = rewards.double(), lengths.double() / lengths.sum()
    centred = rewards - (share * rewards).sum()
    return centred / ((share * centred**2).sum().sqrt() + STD_EPSILON)
