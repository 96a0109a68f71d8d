"""Every method by name: a point on the four axes, with its paper and what it senses, commands and moves.

`aepo methods` prints this table, and docs/methods/README.md is made from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from aepo.advantages import GroupMean, LeaveOneOut
from aepo.algorithm import Algorithm
from aepo.checks import InvalidValue
from aepo.control import AEPO, Both, Control, EntropyAdv, EntropyReg, NoControl
from aepo.control.distributions import Temperature
from aepo.laws import Switch
from aepo.losses import Clip


@dataclass(frozen=True)
class Method:
    """A published algorithm, or ours.

    paper: its arXiv id, or "-" for ours. sensor, law, actuator: in a few words, "-" for none. cost: beside GRPO.
    page: docs/methods/PAGE.md.
    """

    algorithm: Algorithm
    title: str
    paper: str
    page: str
    sensor: str = "-"
    law: str = "-"
    actuator: str = "-"
    cost: str = "none"


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
_REFERENCE = replace(
    _PAPER,
    law=Switch(tie="high"),
    positive_by="advantage",
    count_low=30,
    choose="first",
    shuffle=False,
    start="hot",
    sensor="mixed-sampled",
)


def _controlled(control: Control, title: str, paper: str, sensor: str, law: str, actuator: str, cost: str) -> Method:
    """GRPO with this control; its page is the control's."""
    return Method(Algorithm(control=control), title, paper, control.name, sensor, law, actuator, cost)


def _aepo(control: AEPO, title: str, paper: str = "2510.08141", **changes: str) -> Method:
    row = {
        "sensor": "exact entropy",
        "law": control.law.name,
        "actuator": "positives drawn at T_high / T_low",
        "cost": "extra completions",
    }
    return _controlled(control, title, paper, **{**row, **changes})


METHODS: dict[str, Method] = {
    "grpo": Method(Algorithm(), "Group relative policy optimization", "2402.03300", "grpo"),
    "dr-grpo": Method(
        Algorithm(advantage=GroupMean(), aggregate="fixed-length"), "GRPO without its two biases", "2503.20783", "grpo"
    ),
    "rloo": Method(Algorithm(advantage=LeaveOneOut()), "REINFORCE, leave-one-out baseline", "2402.14740", "grpo"),
    "aepo": _aepo(AEPO(), "Arbitrary entropy policy optimization, our form"),
    "aepo-v1": _aepo(_PAPER, "AEPO with v1's constants: 60 positives whichever way"),
    "aepo-v6": _aepo(replace(_PAPER, count_low=30), "AEPO with v6's constants: 60 positives, 30 when entropy is high"),
    "aepo-reference": replace(
        _aepo(_REFERENCE, "AEPO as the authors' code does it (b353a05)", sensor="sampled entropy of the mixed batch"),
        algorithm=Algorithm(surrogate=Clip(dual=3.0), control=_REFERENCE),
    ),
    "aepo-no-temperature": _aepo(
        AEPO(temperature_adjust=False), "AEPO's ablation A: T = 1", actuator="positives drawn at T = 1"
    ),
    "aepo-signed": _aepo(
        AEPO(positive_only=False), "AEPO's ablation B: wrong answers, too", actuator="all rows drawn at T_high / T_low"
    ),
    "aepo-reweighted": _aepo(
        AEPO(positives="reweighted", weight=1.0),
        "AEPO on the ordinary positives, by importance weights",
        actuator="importance-weighted positives",
        cost="log-probabilities at T",
    ),
    "entropy-reg": _controlled(
        EntropyReg(), "Entropy bonus", "2510.08141", "-", "constant, or a schedule", "entropy bonus", "entropy gradient"
    ),
    "entropy-adv": _controlled(
        EntropyAdv(), "Advantages raised where the policy is uncertain", "2506.14758", "token entropy", "-",
        "advantages", "entropy",
    ),
}  # fmt: skip

GRPO = Algorithm()


def preset(name: str) -> Algorithm:
    """The algorithm of this name, or of several joined by `+`; `InvalidValue` says what is wrong with it."""
    parts = [_known(part) for part in name.split("+")]
    return parts[0] if len(parts) == 1 else _joined(name, parts)


def _known(name: str) -> Algorithm:
    if name not in METHODS:
        raise InvalidValue("method", name, f"one of {', '.join(METHODS)}, or two of them joined by +")
    return METHODS[name].algorithm


def _joined(name: str, parts: Sequence[Algorithm]) -> Algorithm:
    """Each axis from the part that departs from GRPO's choice there; two controls become `Both`."""
    choices: dict[str, Any] = {}
    for field in fields(Algorithm):
        default = getattr(GRPO, field.name)
        departures = [getattr(part, field.name) for part in parts if getattr(part, field.name) != default]
        if field.name == "control" and len(departures) == 2:
            choices[field.name] = Both(first=departures[0], second=departures[1])
        elif len(departures) > 1 and any(choice != departures[0] for choice in departures):
            raise InvalidValue("method", name, f"methods of which only one chooses the {field.name}")
        elif departures:
            choices[field.name] = departures[0]
    return Algorithm(**choices)


def control_of(control: Control, kind: type[Control]) -> Control | None:
    """The control of this kind in `control`, which may be `Both`; None if there is none."""
    if isinstance(control, Both):
        return control_of(control.first, kind) or control_of(control.second, kind)
    return control if isinstance(control, kind) else None


__all__ = ["GRPO", "METHODS", "Method", "NoControl", "control_of", "preset"]
