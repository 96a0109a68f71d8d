"""`MismatchConfig` corrects for a sampler that does not draw from exactly the policy that is trained.

mu is the sampler's distribution and pi_old the trainer's, with the same weights. The log ratio of a token is

    l = log pi_old^T(y) - log mu^T(y)

with T the temperature at which its row was drawn: 1 for ordinary rows as a rule, another one for the extra rows of a
control. A sampler that is right gives l = 0 at every T. The difference log pi_old - log mu^T would not: its mean is
-KL(pi^T || pi) per token, so that it would take tempered rows for a mismatch.

The correction is a function of exp(l), without gradient, that multiplies the objective of each token. Penalties, the
aggregate's denominator, the ratio of the surrogate and the entropy sensor stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from aepo.control.base import Scored
from aepo.errors import require
from aepo.loss.tokens import limited
from aepo.types import Metric, Sample

# The bounds that the field uses with each correction, (clip_min, clip_max): verl's threshold of truncated importance
# sampling, IcePop's band, TRL's default.
USUAL: dict[str, tuple[float, float]] = {
    "none": (0.0, math.inf),
    "token_truncate": (0.0, 2.0),
    "token_mask": (0.5, 5.0),
    "sequence_truncate": (0.0, 2.0),
    "sequence_mask": (0.0, 3.0),
}


@dataclass(frozen=True, kw_only=True)
class MismatchConfig:
    """`MismatchConfig` corrects the loss for a sampler whose log-probabilities differ from the trainer's.

    The ratio compares each row at the temperature at which it was drawn (docs/sampling.md).
    """

    correction: Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"] = "none"
    """What the objective of a token is multiplied by, under TRL's names. `token_truncate` (TIS): the token's ratio, cut
    to the bounds. `token_mask` (IcePop): the token's ratio, or 0 outside the bounds. `sequence_truncate` and
    `sequence_mask`: the same with the ratio of the whole completion, for all its tokens.
    """
    clip_max: float | Literal["auto"] | None = "auto"
    """Upper bound of the ratio; none for no bound. `auto` is 2 for truncation (verl), 5 for `token_mask` (IcePop) and 3
    for `sequence_mask` (TRL).
    """
    clip_min: float | Literal["auto"] | None = "auto"
    """Lower bound of the ratio; none for no bound. `auto` is 0.5 for `token_mask` (IcePop), else no bound."""

    def __post_init__(self) -> None:
        high, low = self.clip_max, self.clip_min
        good = high in ("auto", None) or (isinstance(high, int | float) and 1 <= high < math.inf)
        require(good, "mismatch.clip_max", high, "a finite number, 1 or more, auto, or none")
        good = low in ("auto", None) or (isinstance(low, int | float) and 0 < low <= 1)
        require(good, "mismatch.clip_min", low, "a number in (0, 1], auto, or none")

    @property
    def active(self) -> bool:
        """Return whether there is a correction."""
        return self.correction != "none"

    @property
    def bounds(self) -> tuple[float, float]:
        """Return the lower and the upper bound of the ratio; 0 and infinity stand for no bound."""
        low, high = USUAL[self.correction]
        if not isinstance(self.clip_min, str):
            low = self.clip_min or 0.0
        if not isinstance(self.clip_max, str):
            high = self.clip_max or math.inf
        return low, high

    def temperatures(self, drawn: Iterable[float]) -> tuple[float, ...]:
        """Return the temperatures, other than 1, at which log pi^T is needed (`Needs.temperatures`).

        Args:
            drawn: The temperature of each row.
        """
        return tuple(sorted({heat for heat in drawn if heat != 1})) if self.active else ()

    def of(self, samples: Sequence[Sample], scored: Scored) -> Correction | None:
        """Return the correction of a batch; None without one.

        Args:
            samples: The samples of the batch, in its order.
            scored: The scored batch, with log pi^T at each of `temperatures`.
        """
        if not self.active:
            return None
        log_ratio = own_logprobs(samples, scored) - scored.batch.sampling_logprobs
        drawn = scored.batch.mask.bool() & ~log_ratio.isnan()
        log_ratio = torch.where(drawn, log_ratio, 0.0)
        weights, cut = self.weights(log_ratio)
        return Correction(scored, weights, cut, log_ratio, drawn)

    def weights(self, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factor of each token, [B, T], and whether it was cut, bool [B, T].

        A factor is cut if the bounds changed it.

        Args:
            log_ratio: l of each token, nats, [B, T]; 0 outside the mask. It is cut to +-20 nats, as in verl.
        """
        low, high = self.bounds
        by_row = self.correction.startswith("sequence")
        ratio = limited(log_ratio.sum(1, keepdim=True).expand_as(log_ratio) if by_row else log_ratio).exp()
        return bounded(ratio, self.correction, low, high)


def bounded(ratio: Tensor, correction: str, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Return the ratio within its bounds, or 0 outside them in the mask modes, and whether the bounds changed it, bool.

    Args:
        ratio: The importance ratio, any shape.
        correction: The mode, as in `MismatchConfig.correction`.
        low: The lower bound; 0 for none.
        high: The upper bound; infinity for none.
    """
    cut = (ratio < low) | (ratio > high)
    return torch.where(cut, 0.0, ratio) if correction.endswith("mask") else ratio.clamp(low, high), cut


@dataclass(frozen=True)
class Correction:
    """`Correction` is the correction of a batch, with what is logged about it. Nothing in it has a gradient."""

    scored: Scored
    """The scored batch."""
    weights: Tensor
    """The factor on the objective of each token, [B, T]."""
    cut: Tensor
    """The tokens whose factor the bounds changed, bool [B, T]; in the sequence modes, padding included."""
    log_ratio: Tensor
    """l of each token, nats, [B, T]; 0 where no sampler drew the token."""
    drawn: Tensor
    """The tokens that a sampler drew, bool [B, T]. A reference solution is not drawn, and its factor is 1."""

    def row(self) -> dict[str, Any]:
        """Return the numbers for the log, over the rows that are trained on (docs/metrics.md)."""
        trained, batch = self.scored.trained, self.scored.batch
        rows = self.cut.any(1).float()
        extra = batch.trained & batch.extra
        hot = Metric.of(self.log_ratio.abs(), self.drawn & batch.extra[:, None])
        return {
            "mismatch_extra": hot.mean if hot.count else None,
            "mismatch_weight": Metric.of(self.weights, trained).mean,
            "mismatch_cut_tokens": Metric.of(self.cut.float(), trained).mean,
            "mismatch_cut_rows": Metric.of(rows, batch.trained).mean,
            "mismatch_cut_extra_rows": Metric.of(rows, extra).mean if extra.any() else None,
        }


def own_logprobs(samples: Sequence[Sample], scored: Scored) -> Tensor:
    """Return log pi_old^T of each token with T the temperature at which its row was drawn, nats, [B, T].

    Args:
        samples: The samples of the batch, in its order.
        scored: The scored batch, with log pi^T at each temperature other than 1.
    """
    heats = [sample.rollout.completion.temperature for sample in samples]
    logprobs = scored.old.logprobs
    for heat in {*heats} - {1.0}:
        rows = torch.tensor([own == heat for own in heats], device=logprobs.device)
        logprobs = torch.where(rows[:, None], scored.old.tempered[heat], logprobs)
    return logprobs
