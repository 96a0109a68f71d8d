"""`aepo` fine-tunes language models by reinforcement at an entropy that you set.

The public names are those of `__all__`; docs/api.md has a section for each. Everything else, in this module and in the
others, is private: it may change without notice. A public name is imported when it is first used, so `import aepo`
takes no time and does not import torch.

>>> import aepo
>>> command, memory = aepo.Proportional(gain=2.0)(aepo.Seen.at(entropy=0.5, target=0.75), {})
>>> command
0.5
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aepo.algorithm import Algorithm
    from aepo.control.aepo import AEPO
    from aepo.control.base import Control
    from aepo.control.closed_loop import ClosedLoop
    from aepo.control.laws import PI, Constant, Proportional, Seen, Switch
    from aepo.control.schedules import Target
    from aepo.control.self_tuning import SelfTuning
    from aepo.convert import make_algorithm
    from aepo.entropy.statistics import logits_statistics, sampled_entropy, token_statistics
    from aepo.errors import InvalidValue
    from aepo.loss.advantages import GroupMean, GroupMeanStd, LeaveOneOut, PassAtK, QuantileBaseline
    from aepo.loss.aggregates import AGGREGATES
    from aepo.loss.policy_loss import policy_loss
    from aepo.loss.surrogates import Clip, Ratio
    from aepo.methods import METHODS, preset
    from aepo.training.api import TrainedRun, train
    from aepo.training.callbacks import Callback

__version__ = "0.1.0"

__all__ = [
    "AEPO",
    "AGGREGATES",
    "METHODS",
    "PI",
    "Algorithm",
    "Callback",
    "Clip",
    "ClosedLoop",
    "Constant",
    "Control",
    "GroupMean",
    "GroupMeanStd",
    "InvalidValue",
    "LeaveOneOut",
    "PassAtK",
    "Proportional",
    "QuantileBaseline",
    "Ratio",
    "Seen",
    "SelfTuning",
    "Switch",
    "Target",
    "TrainedRun",
    "__version__",
    "logits_statistics",
    "make_algorithm",
    "policy_loss",
    "preset",
    "sampled_entropy",
    "token_statistics",
    "train",
]

# Where each public name is: module:name, in the order of docs/api.md. Type checkers read the same from the imports
# above; a test holds the three lists together.
_SOURCES = {
    "token_statistics": "aepo.entropy.statistics:token_statistics",
    "logits_statistics": "aepo.entropy.statistics:logits_statistics",
    "sampled_entropy": "aepo.entropy.statistics:sampled_entropy",
    "Target": "aepo.control.schedules:Target",
    "PI": "aepo.control.laws:PI",
    "Switch": "aepo.control.laws:Switch",
    "Proportional": "aepo.control.laws:Proportional",
    "Constant": "aepo.control.laws:Constant",
    "Seen": "aepo.control.laws:Seen",
    "SelfTuning": "aepo.control.self_tuning:SelfTuning",
    "Control": "aepo.control.base:Control",
    "ClosedLoop": "aepo.control.closed_loop:ClosedLoop",
    "AEPO": "aepo.control.aepo:AEPO",
    "Algorithm": "aepo.algorithm:Algorithm",
    "METHODS": "aepo.methods:METHODS",
    "preset": "aepo.methods:preset",
    "make_algorithm": "aepo.convert:make_algorithm",
    "GroupMeanStd": "aepo.loss.advantages:GroupMeanStd",
    "GroupMean": "aepo.loss.advantages:GroupMean",
    "LeaveOneOut": "aepo.loss.advantages:LeaveOneOut",
    "PassAtK": "aepo.loss.advantages:PassAtK",
    "QuantileBaseline": "aepo.loss.advantages:QuantileBaseline",
    "Clip": "aepo.loss.surrogates:Clip",
    "Ratio": "aepo.loss.surrogates:Ratio",
    "AGGREGATES": "aepo.loss.aggregates:AGGREGATES",
    "policy_loss": "aepo.loss.policy_loss:policy_loss",
    "InvalidValue": "aepo.errors:InvalidValue",
    "train": "aepo.training.api:train",
    "TrainedRun": "aepo.training.api:TrainedRun",
    "Callback": "aepo.training.callbacks:Callback",
}


if not TYPE_CHECKING:  # with it, a type checker would accept every name

    def __getattr__(name: str) -> Any:
        """Import a public name at its first use (PEP 562)."""
        if name not in _SOURCES:
            raise AttributeError(f"module 'aepo' has no attribute {name!r}")
        module, _, attribute = _SOURCES[name].partition(":")
        try:
            value = globals()[name] = getattr(import_module(module), attribute)
        except ModuleNotFoundError as error:
            error.add_note(f"aepo.{name} needs more than torch: pip install 'aepo[train]'")
            raise
        return value


def __dir__() -> list[str]:
    """Return the public names, those that were not used yet included, and what was imported so far."""
    return sorted({*globals(), *__all__})
