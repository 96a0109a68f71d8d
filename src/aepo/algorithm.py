"""An algorithm is four choices, and a published method is a point on them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from aepo.advantages import ADVANTAGES
from aepo.checks import InvalidValue, require
from aepo.control import AEPO, Control, EntropyAdv, EntropyReg, NoControl
from aepo.control.distributions import Temperature
from aepo.laws import Switch
from aepo.losses import AGGREGATES, Clip, Surrogate


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """advantage x surrogate x aggregate x entropy control."""

    advantage: str = "group-mean-std"
    surrogate: Surrogate = Clip()
    aggregate: str = "token-mean"
    control: Control = NoControl()

    def __post_init__(self) -> None:
        for field, table in (("advantage", ADVANTAGES), ("aggregate", AGGREGATES)):
            require(getattr(self, field) in table, field, getattr(self, field), f"one of {', '.join(table)}")


GRPO = Algorithm()

# The authors' constants: T = 1.2 / 0.8, the switch, positives of the first quarter of the prompts drawn again.
_PAPER = AEPO(
    law=Switch(),
    distribution=Temperature(high=1.2, low=0.8),
    count_high=60,
    count_low=60,
    weight=1.0,
    prompts=0.25,
    draw="all",
    join="replace",
)

PRESETS: dict[str, Algorithm] = {
    # 2402.03300, with the token-mean that AEPO's code, DAPO and verl use.
    "grpo": GRPO,
    # 2503.20783.
    "dr-grpo": Algorithm(advantage="group-mean", aggregate="fixed-length"),
    # 2402.14740, with PPO's clip.
    "rloo": Algorithm(advantage="leave-one-out"),
    # 2510.08141, our clean form with the default law.
    "aepo": replace(GRPO, control=AEPO()),
    # v1: 60 positives whichever way; a row is positive when R = 1.
    "aepo-v1": replace(GRPO, control=_PAPER),
    # v6: 60 positives when entropy is low, 30 when it is high.
    "aepo-v6": replace(GRPO, control=replace(_PAPER, count_low=30)),
    # The code at commit b353a05: see docs/methods/aepo.md for the line of each choice.
    "aepo-reference": Algorithm(
        surrogate=Clip(dual=3.0),
        control=replace(
            _PAPER,
            law=Switch(tie="high"),
            positive_by="advantage",
            count_low=30,
            choose="first",
            shuffle=False,
            start="hot",
            sensor="mixed-sampled",
        ),
    ),
    # The papers' ablations on the clean form.
    "aepo-no-temperature": replace(GRPO, control=AEPO(temperature_adjust=False)),
    "aepo-signed": replace(GRPO, control=AEPO(positive_only=False)),
    # AEPO without extra completions: importance weights on the ordinary positives.
    "aepo-reweighted": replace(GRPO, control=AEPO(positives="reweighted", weight=1.0)),
    # lambda of v1; v6 uses 0.015.
    "entropy-reg": replace(GRPO, control=EntropyReg()),
    # 2506.14758.
    "entropy-adv": replace(GRPO, control=EntropyAdv()),
}


def preset(name: str) -> Algorithm:
    """The algorithm of this name; `InvalidValue` lists the names when there is none."""
    if name not in PRESETS:
        raise InvalidValue("method", name, f"one of {', '.join(PRESETS)}")
    return PRESETS[name]
