"""An algorithm is four choices; the published points on them are in methods.py."""

from __future__ import annotations

from dataclasses import dataclass

from aepo.control.base import Control, NoControl
from aepo.errors import require
from aepo.loss.advantages import Advantage, GroupMeanStd
from aepo.loss.aggregates import AGGREGATES
from aepo.loss.surrogates import Clip, Surrogate


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """advantage x surrogate x aggregate x entropy control; without arguments GRPO."""

    advantage: Advantage = GroupMeanStd()
    surrogate: Surrogate = Clip()
    aggregate: str = "token-mean"
    control: Control = NoControl()

    def __post_init__(self) -> None:
        require(self.aggregate in AGGREGATES, "aggregate", self.aggregate, f"one of {', '.join(AGGREGATES)}")
