"""An algorithm consists of four choices. The published combinations, the presets, are in methods.py."""

from __future__ import annotations

from dataclasses import dataclass

from aepo.control.base import Control, NoControl, hooks
from aepo.errors import UnknownName, require
from aepo.loss.advantages import Advantage, GroupMeanStd
from aepo.loss.aggregates import AGGREGATES
from aepo.loss.surrogates import SURROGATES, Clip, Surrogate

_BOUNDED = [name for name, cls in SURROGATES.items() if cls.takes_bounds]


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
        kind, fitting = self.surrogate.name, self.surrogate.aggregates
        wanted = f"{' or '.join(fitting)} with the surrogate {kind}, which counts by rows"
        require(not fitting or self.aggregate in fitting, "aggregate", self.aggregate, wanted)
        for part in self.control.parts:
            wanted = f"a surrogate whose bounds {part.name} can set: {', '.join(_BOUNDED)}"
            require(self.surrogate.takes_bounds or "bounds" not in hooks(part), "surrogate.name", kind, wanted)
            wanted = f"one that takes the negative rewards of {part.name}"
            allowed = self.advantage.negative_rewards or not part.lowers_rewards
            require(allowed, "advantage.name", self.advantage.name, wanted)
