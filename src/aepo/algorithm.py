"""An algorithm consists of four choices. The published combinations, the presets, are in methods.py."""

from __future__ import annotations

from dataclasses import dataclass

from aepo.control.base import Control, NoControl
from aepo.errors import UnknownName
from aepo.loss.advantages import Advantage, GroupMeanStd
from aepo.loss.aggregates import AGGREGATES
from aepo.loss.surrogates import Clip, Surrogate


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """`Algorithm` combines an advantage, a surrogate, an aggregate and an entropy control.

    Without arguments it is GRPO.
    """

    advantage: Advantage = GroupMeanStd()
    """How the rewards of a group become advantages."""
    surrogate: Surrogate = Clip()
    """The objective of one token, from its ratio and its advantage."""
    aggregate: str = "token-mean"
    """How the losses of the tokens become one number: a name in `AGGREGATES`."""
    control: Control = NoControl()
    """What acts on the entropy."""

    def __post_init__(self) -> None:
        if self.aggregate not in AGGREGATES:
            raise UnknownName("aggregate", self.aggregate, AGGREGATES)
