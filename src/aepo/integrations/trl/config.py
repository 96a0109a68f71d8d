"""`EntropyControlConfig` is TRL's `GRPOConfig` with a method of this package.

It refuses a setting that does not work with the method in one line, before a model is loaded.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from packaging.version import Version
from trl import GRPOConfig

from aepo.algorithm import Algorithm
from aepo.convert import make_algorithm
from aepo.engines.capabilities import TRL
from aepo.engines.preflight import Setup, preflight
from aepo.errors import InvalidValue, require
from aepo.integrations.trl.losses import LOSS_TYPES, LUSPO_SUMS, installed, own_loss, trl_loss
from aepo.loss.surrogates import Clip
from aepo.methods import GRPO

OLDEST, NEWEST = Version("1.5"), Version("1.17.dev0")
# From this version of TRL on, Liger gives log-probabilities and entropies to TRL's own loss. Before, it replaced the
# loss.
LIGER_SCORES = Version("1.14")
# The loss types whose token weights this package's own loss can use.
WEIGHTED = ("dapo", "grpo", "bnpo", "dr_grpo", "luspo")
# The loss types that clip the ratio on both sides. `cispo` reads `epsilon_high` as a cap; others do not read it.
CLIPPED = WEIGHTED

# TRL's settings that no method may change: the value that each must have, and the reason.
_UNTOUCHED: Mapping[str, tuple[Any, str]] = {
    "temperature": (1.0, "1.0, where entropy is measured; control.distribution says where extra completions come from"),
    "scale_rewards": ("group", "'group': the method chooses the advantage (dr-grpo does not scale)"),
    "multi_objective_aggregation": ("sum_then_normalize", "'sum_then_normalize': the method chooses the advantage"),
    "mask_truncated_completions": (
        False,
        "False; the method overlong with control.filter_truncated=true leaves them out and still measures them",
    ),
    "entropy_coef": (0.0, "0.0; the method entropy-reg is that bonus"),
    "use_adaptive_entropy": (False, "False; the method trl-adaptive is that"),
}
# TRL's settings that this package's own loss does not support: the value that each must have.
_OWN_LOSS: Mapping[str, Any] = {
    "beta": 0.0,
    "delta": None,
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
    "importance_sampling_level": "token",
    "use_liger_kernel": False,
}
# Keys of `generation_kwargs`, which override TRL's own fields: the value that each must have, and the reason.
_GENERATION: Mapping[str, tuple[Any, str]] = {
    "temperature": (1.0, "without a temperature"),
    "do_sample": (True, "without do_sample: completions that are not drawn are all the same"),
    "num_beams": (1, "without num_beams: beams are not draws from the policy"),
}
# Settings that cut the sampling distribution, each with the values that leave it whole.
_CUTS: Mapping[str, tuple[Any, ...]] = {
    "top_p": (1.0,),
    "top_k": (0, None),
    "min_p": (None,),
    "repetition_penalty": (1.0,),
}


@dataclass
class EntropyControlConfig(GRPOConfig):  # type: ignore[misc]
    """`EntropyControlConfig` is TRL's `GRPOConfig` with the method that runs and the entropy that it holds.

    A method that differs from GRPO in the surrogate or the aggregate sets `loss_type`, `epsilon`, `epsilon_high` and
    the other settings of TRL's loss that it has there. With any other method you choose these. AEPO's positives replace
    ordinary rows (`control.join`), because TRL keeps the number of rows of a rank.

    Raises:
        InvalidValue: A field has a value that does not work; the message is one line that names the field.
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*GRPOConfig._VALID_DICT_FIELDS, "law", "settings"]

    method: str = field(default="aepo", metadata={"help": "Preset of `aepo methods`, or two presets joined by `+`."})
    """The preset of this package (`aepo methods`), or two presets joined by `+`."""
    target: str | None = field(default=None, metadata={"help": "Entropy to hold, nats per token, such as 0.5 or 0.6x."})
    """The entropy to hold, nats per token, written as `control.target` of a recipe.

    Examples are `0.5`, `0.6x` (0.6 times the first measured entropy) and `cosine(0.8,0.4,100)`. A step of such a
    schedule is a round of generation.
    """
    law: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Law that turns the entropy error into a command: a name or a table."}
    )
    """The law that turns the entropy error into a command: a name or a table."""
    settings: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Further settings of the method by dotted or nested name."}
    )
    """Further settings of the method by dotted or nested name, such as {"control.distribution.high": 1.3}."""

    def __post_init__(self) -> None:
        _check_version()
        super().__post_init__()
        algorithm = self._chosen()
        for sentence in TRL.lacks(algorithm):
            raise InvalidValue("method", self.method, f"one that TRL can run: {sentence}")
        self._set_loss(algorithm)
        self._check(self.algorithm)

    @property
    def algorithm(self) -> Algorithm:
        """Return the algorithm, the four choices, with the clip bounds of this configuration."""
        chosen = self._chosen()
        if chosen.surrogate != GRPO.surrogate:
            return chosen
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        return replace(chosen, surrogate=Clip(self.epsilon, high)) if own_loss(chosen) else chosen

    def _chosen(self) -> Algorithm:
        """Return the method with its settings, with AEPO's positives in the places of ordinary rows."""
        require(isinstance(self.method, str), "method", self.method, "a name of `aepo methods`, or two joined by `+`")
        require(
            self.settings is None or isinstance(self.settings, dict),
            "settings",
            self.settings,
            'a table such as {"control.distribution.high": 1.3}',
        )
        settings = copy.deepcopy(self.settings) if isinstance(self.settings, dict) else {}
        for name in ("target", "law"):
            if getattr(self, name) is not None:
                settings[f"control.{name}"] = getattr(self, name)
        algorithm = make_algorithm(self.method, copy.deepcopy(settings))
        fixed = replace(algorithm, control=algorithm.control.in_place())
        if fixed != algorithm and _names(settings, "join"):
            raise InvalidValue("control.join", "append", "replace: TRL keeps the number of rows of a rank")
        return fixed

    def _set_loss(self, algorithm: Algorithm) -> None:
        """Set the fields of TRL that the method chooses, and refuse a field that the user gave another value."""
        surrogate, aggregate = algorithm.surrogate, algorithm.aggregate
        wanted = None if own_loss(algorithm) else trl_loss(algorithm)
        if wanted and "loss_type" not in wanted:
            wanted = {"loss_type": LOSS_TYPES[aggregate], **wanted}
        elif not wanted and aggregate != GRPO.aggregate:
            wanted = {"loss_type": LOSS_TYPES[aggregate]}
        for name, value in (wanted or {}).items():
            self._set(name, value)
        if isinstance(surrogate, Clip) and surrogate != GRPO.surrogate:
            clipping = f"one of {', '.join(CLIPPED)}, which clip as the method {self.method} does"
            require(self.loss_type in CLIPPED, "loss_type", self.loss_type, clipping)
            self._set("epsilon", surrogate.low)
            self._set("epsilon_high", surrogate.high)

    def _set(self, name: str, value: Any) -> None:
        left = {f.name: f.default for f in dataclasses.fields(self)}[name]
        given = getattr(self, name)
        require(given in (left, value), name, given, f"{value!r} or left out: the method {self.method} chooses it")
        setattr(self, name, value)

    def _check(self, algorithm: Algorithm) -> None:
        for name, (value, wanted) in _UNTOUCHED.items():
            require(getattr(self, name, value) == value, name, getattr(self, name, None), wanted)
        for name, (value, wanted) in _GENERATION.items():
            given = (self.generation_kwargs or {}).get(name, value)
            require(given == value, "generation_kwargs", self.generation_kwargs, wanted)
        least, size = algorithm.advantage.least_group, self.num_generations
        require(
            size >= least, "num_generations", size, f"at least {least} with the advantage {algorithm.advantage.name}"
        )
        for part in algorithm.control.parts:
            require(part.per_prompt is None, "control.per_prompt", part.per_prompt, "none: TRL draws whole groups")
        if own_loss(algorithm):
            self._check_own_loss()
        elif self.loss_type == "luspo" and installed() < LUSPO_SUMS:
            raise InvalidValue("loss_type", "luspo", f"another one with TRL below {LUSPO_SUMS}")
        elif self.use_liger_kernel and installed() < LIGER_SCORES:
            raise InvalidValue("use_liger_kernel", True, f"False with TRL below {LIGER_SCORES}")
        self._warn(algorithm)

    def _as_trl_clips(self, algorithm: Algorithm) -> Algorithm:
        """Return the algorithm with TRL's clip bounds, also where TRL's own loss clips."""
        surrogate = algorithm.surrogate
        if not isinstance(surrogate, Clip):
            return algorithm
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        return replace(algorithm, surrogate=Clip(self.epsilon, high, surrogate.dual))

    def _check_own_loss(self) -> None:
        why = f"the loss of the method {self.method} is not TRL's"
        for name, value in _OWN_LOSS.items():
            require(getattr(self, name, value) == value, name, getattr(self, name, None), f"{value!r}: {why}")
        require(self.loss_type in WEIGHTED, "loss_type", self.loss_type, f"one of {', '.join(WEIGHTED)}: {why}")

    def _warn(self, algorithm: Algorithm) -> None:
        given = {name: getattr(self, name, values[0]) for name, values in _CUTS.items()}
        given |= {name: value for name, value in (self.generation_kwargs or {}).items() if name in _CUTS}
        on_policy = self.gradient_accumulation_steps % (self.steps_per_generation * self.num_iterations) == 0
        setup = Setup(
            engine=TRL,
            algorithm=self._as_trl_clips(algorithm),
            group_size=self.num_generations,
            updates_per_rollout=1 if on_policy else 2,
            cuts={name: value for name, value in given.items() if value not in _CUTS[name]},
            group_size_name="num_generations",
            updates_name="steps_per_generation x num_iterations / gradient_accumulation_steps",
        )
        for sentence in preflight(setup):
            warnings.warn(sentence, stacklevel=4)


def _names(settings: Mapping[str, Any], name: str) -> bool:
    """Return whether `settings` sets the name, at any depth."""
    return any(
        key.split(".")[-1] == name or (isinstance(value, Mapping) and _names(value, name))
        for key, value in settings.items()
    )


def _check_version() -> None:
    found = installed()
    wanted = "from 1.5 to 1.16, and not 1.15.0, which crashes where Triton is not installed"
    require(OLDEST <= found < NEWEST and found != Version("1.15.0"), "trl", str(found), wanted)
