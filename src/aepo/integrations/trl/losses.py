"""`trl_loss` says which of TRL's own losses is the loss of an algorithm, and `own_loss` whether none is."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from packaging.version import Version

from aepo.algorithm import Algorithm
from aepo.control.base import hooks
from aepo.loss.surrogates import CISPO, GSPO, SAPO, VESPO, Clip, Surrogate

LOSS_TYPES = {
    "token-mean": "dapo",
    "sequence-mean-token-mean": "grpo",
    "sequence-mean-token-sum": "luspo",
    "fixed-length": "dr_grpo",
}
"""TRL's `loss_type` with the token weights of each aggregate."""
# From this version of TRL on, `luspo` adds up the tokens of a row. Before, with advantages for each token, it took the
# row's length times the mean over its padding, too.
LUSPO_SUMS = Version("1.10")
# The hooks that act in every pass, for which TRL's losses have no place.
_IN_PASS = {"reshape", "bounds", "penalty"}


def installed() -> Version:
    """Return the version of TRL."""
    return Version(version("trl"))


def own_loss(algorithm: Algorithm) -> bool:
    """Return whether the algorithm needs this package's own loss instead of TRL's.

    It does if the control acts in every pass (`reshape`, `bounds`, `penalty` or REINFORCE on extra rows), or if TRL has
    no loss with its surrogate and its aggregate.
    """
    control = algorithm.control
    acts = any(_IN_PASS & set(hooks(part)) for part in control.parts) or control.reinforces_extra
    return acts or trl_loss(algorithm) is None


def trl_loss(algorithm: Algorithm) -> Mapping[str, Any] | None:
    """Return TRL's settings, besides `loss_type` of the aggregate, with which TRL's loss is the algorithm's.

    None means that TRL has no such loss. TRL's sequence ratio takes the mean of a row's advantages, so it is GSPO's
    only where a control does not shape the advantages of single tokens.
    """
    surrogate, aggregate = algorithm.surrogate, algorithm.aggregate
    if aggregate == "sequence-mean-token-sum" and installed() < LUSPO_SUMS:
        return None
    if isinstance(surrogate, Clip):
        return {} if surrogate.dual is None else None
    if isinstance(surrogate, GSPO):
        shapes = any("shape" in hooks(part) for part in algorithm.control.parts)
        clip = {"epsilon": surrogate.low, "epsilon_high": surrogate.high}
        return None if shapes else {"importance_sampling_level": "sequence", **clip}
    return _by_loss_type(surrogate) if aggregate == _AGGREGATES.get(type(surrogate)) else None


# The aggregate that TRL's loss of a surrogate has.
_AGGREGATES: Mapping[type[Surrogate], str] = {
    CISPO: "token-mean",
    SAPO: "sequence-mean-token-mean",
    VESPO: "token-mean",
}


def _by_loss_type(surrogate: Surrogate) -> Mapping[str, Any] | None:
    if isinstance(surrogate, CISPO):  # TRL's cap is the weight itself, and its weight is open below.
        return {"loss_type": "cispo", "epsilon_high": 1 + surrogate.high} if surrogate.low == 1 else None
    if isinstance(surrogate, SAPO):
        fields = {"sapo_temperature_pos": surrogate.tau_positive, "sapo_temperature_neg": surrogate.tau_negative}
        return {"loss_type": "sapo", **fields}
    assert isinstance(surrogate, VESPO)
    positive = {"vespo_k_pos": surrogate.k_positive, "vespo_lambda_pos": surrogate.lambda_positive}
    negative = {"vespo_k_neg": surrogate.k_negative, "vespo_lambda_neg": surrogate.lambda_negative}
    return {"loss_type": "vespo", **positive, **negative}
