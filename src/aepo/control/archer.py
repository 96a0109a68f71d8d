"""Archer: loose limits on tokens of high entropy, tight limits and a KL term on the others (2507.15778)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aepo.control.base import Control, Needs, Scored, State
from aepo.control.tokens import row_quantile
from aepo.errors import require
from aepo.loss.policy_loss import k3
from aepo.loss.surrogates import Bounds
from aepo.types import BatchStatistics


@dataclass(frozen=True, kw_only=True)
class Archer(Control):
    """`Archer` splits the tokens of a completion by the `rho`-quantile of its entropies (2507.15778).

        at or under it ("knowledge"):  clip eps_k, and beta_k * KL(pi || pi_ref)
        above it ("reasoning"):        clip eps_r, and beta_r * KL(pi || pi_ref)

    The KL is the k3 estimate on the sampled token, x - 1 - log x with x = pi_ref / pi, nats, of the current policy
    against the frozen base model, with gradient. The bounds are symmetric: [1 - eps, 1 + eps]. Each KL is averaged over
    the tokens of its own kind, as in the authors' code: a token's coefficient is beta times all tokens over the tokens
    of its kind, counted over the step's trained tokens.
    """

    name: ClassVar[str] = "archer"
    acts_off_policy = True
    rho: float = 0.8
    """Which quantile of a completion's entropies separates knowledge tokens from reasoning tokens."""
    eps_k: float = 0.2
    """Clip bound of knowledge tokens, a distance from 1."""
    eps_r: float = 0.5
    """Clip bound of reasoning tokens, a distance from 1."""
    beta_k: float = 0.001
    """Coefficient of the KL term on knowledge tokens, averaged over them."""
    beta_r: float = 0.0
    """Coefficient of the KL term on reasoning tokens, averaged over them."""

    def __post_init__(self) -> None:
        require(0 <= self.rho <= 1, "control.rho", self.rho, "a number in [0, 1]")
        for field in ("eps_k", "eps_r"):
            value = getattr(self, field)
            require(0 < value <= 1, f"control.{field}", value, "a number in (0, 1]")
        for field in ("beta_k", "beta_r"):
            value = getattr(self, field)
            require(value >= 0, f"control.{field}", value, "a number, 0 or more")

    def needs(self, state: State) -> Needs:
        """Ask for the base model's log-probabilities, unless there is no KL term."""
        return Needs(reference=self.beta_k > 0 or self.beta_r > 0)

    def mark(self, scored: Scored, state: State) -> Mapping[str, Tensor]:
        """Return 1.0 on the tokens above their completion's quantile, and all tokens over those of a token's kind."""
        entropy, mask = scored.entropy, scored.batch.mask
        reasoning = (entropy > row_quantile(entropy, mask, self.rho)[:, None]) * mask
        trained, chosen = scored.trained.sum(), (reasoning * scored.trained).sum()
        of_kind = torch.where(reasoning.bool(), chosen, trained - chosen).clamp(min=1)
        return {"reasoning": reasoning, "kinds": trained / of_kind * mask}

    def bounds(self, scored: Scored, new: BatchStatistics, state: State) -> Bounds:
        """Return eps_r or eps_k for each token, in both directions."""
        eps = self._chosen(scored, self.eps_k, self.eps_r)
        return Bounds(low=eps, high=eps)

    def penalty(self, scored: Scored, new: BatchStatistics, state: State) -> Tensor | None:
        """Return beta * k3 * (all tokens / the tokens of the kind)."""
        if scored.ref_logprobs is None:
            return None
        coefficient = self._chosen(scored, self.beta_k, self.beta_r) * scored.marks["kinds"]
        return coefficient * k3(new.logprobs, scored.ref_logprobs)

    def _chosen(self, scored: Scored, knowledge: float, reasoning: float) -> Tensor:
        """Return one number for each token, by its kind."""
        mark = scored.marks["reasoning"]
        return torch.where(mark.bool(), reasoning, knowledge).to(mark.dtype)
