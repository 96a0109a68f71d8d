"""This module defines every method by name: an algorithm, its paper, and its sensor, law and actuator in words.

`aepo methods` prints this table. docs/methods/README.md is made from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from aepo.algorithm import Algorithm
from aepo.control.adaptive_coefficient import AdaptiveCoefficient
from aepo.control.aent import AEnt
from aepo.control.aepo import AEPO
from aepo.control.aer import AER
from aepo.control.archer import Archer
from aepo.control.bapo import BAPO
from aepo.control.base import Control
from aepo.control.both import Both
from aepo.control.clip_cov import ClipCov
from aepo.control.distributions import ByLength, Temperature
from aepo.control.dynamic_sampling import DynamicSampling
from aepo.control.edge_grpo import EDGE
from aepo.control.eframe import EFRame
from aepo.control.entrocraft import Entrocraft
from aepo.control.entropic import EntroPIC
from aepo.control.entropy_adv import EntropyAdv
from aepo.control.entropy_reg import EntropyReg
from aepo.control.erc import ERC
from aepo.control.forking_tokens import ForkingTokens
from aepo.control.hapo import HAPO
from aepo.control.kl_cov import KLCov
from aepo.control.laws import Proportional, Switch
from aepo.control.lp_reg import LpReg
from aepo.control.moving_bound import MovingBound
from aepo.control.overlong import OverlongShaping
from aepo.control.positive_reweight import PositiveReweight
from aepo.control.quantities import Length
from aepo.control.re3 import RE3
from aepo.control.repo import REPO
from aepo.control.rpo import RPO
from aepo.control.sac_dual import SACDual
from aepo.control.schedules import Schedule, Target
from aepo.control.signed_reward import SignedReward
from aepo.control.siren import SIREN
from aepo.control.steer import STEER
from aepo.control.trajectory_entropy import TrajectoryEntropy
from aepo.errors import InvalidValue, UnknownName
from aepo.loss.advantages import GroupMean, LeaveOneOut, MaximumLikelihood, PassAtK, QuantileBaseline
from aepo.loss.surrogates import CISPO, DPPO, GMPO, GSPO, SAPO, VESPO, Clip, GradientPreservingClip, Ratio


@dataclass(frozen=True)
class Method:
    """`Method` describes an algorithm that a paper published, or that we define."""

    algorithm: Algorithm
    """The algorithm."""
    title: str
    """What the method is, in a few words."""
    paper: str
    """The arXiv id of the paper; "-" where there is none."""
    page: str
    """The name of its page: docs/methods/PAGE.md."""
    sensor: str
    """What is measured, in a few words; "-" for nothing."""
    law: str
    """How a measurement becomes a command, in a few words; "-" for none."""
    actuator: str
    """What the command changes, in a few words; "-" for nothing."""
    cost: str
    """What the method costs more than GRPO, in a few words."""


# The authors' constants: T = 1.2 and 0.8, the switch, 60 positives in place of as many ordinary rows, and all extra
# completions drawn of a quarter of the prompts.
_PAPER = AEPO(
    target=Target("0.5"),
    law=Switch(),
    distribution=Temperature(high=1.2, low=0.8),
    count_high=60,
    count_low=60,
    weight=1.0,
    prompts=0.25,
    draw="all",
    join="replace",
    approach=0,
    variates=False,
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
_DCPO = AEPO(
    target=Target("0.5"),
    positives="reweighted",
    join="replace",
    weighting="odds",
    weight=0.1,
    reach=1.0,
    law=Proportional(gain=10.0),
    distribution=Temperature(high=1.2, low=0.8),
    approach=0,
    variates=False,
)


def _method(
    choice: Algorithm | Control,
    title: str,
    paper: str,
    *,
    sensor: str = "-",
    law: str = "-",
    actuator: str = "-",
    cost: str = "none",
    page: str | None = None,
) -> Method:
    """Return a row of the table.

    Args:
        choice: The algorithm, or a control that is added to GRPO.
        title: See `Method`.
        paper: See `Method`.
        sensor: See `Method`.
        law: See `Method`.
        actuator: See `Method`.
        cost: See `Method`.
        page: See `Method`; None for the name of the control.
    """
    algorithm = Algorithm(control=choice) if isinstance(choice, Control) else choice
    return Method(algorithm, title, paper, page or algorithm.control.name, sensor, law, actuator, cost)


def _aepo(control: AEPO, title: str, paper: str = "2510.08141", **changes: str) -> Method:
    row = {
        "sensor": "exact entropy",
        "law": control.law.name,
        "actuator": "positives drawn at T_high / T_low",
        "cost": "extra completions",
    }
    return _method(control, title, paper, **{**row, **changes})


def _signed(control: SignedReward, title: str) -> Method:
    return _method(control, title, "2506.01347", sensor="rewards", actuator="advantages")


METHODS: dict[str, Method] = {
    "grpo": _method(Algorithm(), "Group relative policy optimization", "2402.03300", page="grpo"),
    "dr-grpo": _method(
        Algorithm(advantage=GroupMean(), aggregate="fixed-length"),
        "GRPO without its two biases",
        "2503.20783",
        page="grpo",
    ),
    "rloo": _method(Algorithm(advantage=LeaveOneOut()), "REINFORCE, leave-one-out baseline", "2402.14740", page="grpo"),
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
        AEPO(target=Target("0.75x"), positives="reweighted", weight=1.0),
        "AEPO on the ordinary positives, by importance weights",
        actuator="importance-weighted positives",
        cost="log-probabilities at T",
    ),
    "aepo-length": _aepo(
        AEPO(quantity=Length(), distribution=ByLength(), positives="reweighted", weight=1.0),
        "AEPO's loop holds the mean length instead of the entropy",
        sensor="mean length",
        actuator="positives weighted by length",
        cost="none",
    ),
    "dcpo": replace(
        _aepo(
            _DCPO,
            "Distribution-centric policy optimization",
            "2601.12730",
            law="proportional, over the share of right answers",
            actuator="importance-weighted positives",
            cost="log-probabilities at T",
            page="dcpo",
        ),
        algorithm=Algorithm(surrogate=Clip(dual=3.0), control=_DCPO),
    ),
    # --- other surrogates, and an advantage: base algorithms that every control can be joined to ---
    "gspo": _method(
        Algorithm(surrogate=GSPO(), aggregate="sequence-mean-token-mean"),
        "The ratio and the clip are those of the whole completion",
        "2507.18071",
        page="gspo",
    ),
    "luspo": _method(
        Algorithm(surrogate=GSPO(low=2e-3, high=2.5e-3), aggregate="sequence-mean-token-sum"),
        "GSPO with completions weighted by their length",
        "2602.05261",
        page="gspo",
    ),
    "cispo": _method(
        Algorithm(surrogate=CISPO()),
        "Importance weights are limited, no token is dropped",
        "2506.13585",
        page="cispo",
    ),
    "gmpo": _method(
        Algorithm(surrogate=GMPO(), aggregate="sequence-mean-token-mean"),
        "The geometric mean of the tokens' clipped ratios",
        "2507.20673",
        page="gmpo",
    ),
    "sapo": _method(
        Algorithm(surrogate=SAPO(), aggregate="sequence-mean-token-mean"),
        "A soft gate in place of the clip",
        "2511.20347",
        page="sapo",
    ),
    "dppo": _method(
        Algorithm(surrogate=DPPO()),
        "Tokens stop by their change of probability, not by their ratio",
        "2602.04879",
        page="dppo",
    ),
    "vespo": _method(
        Algorithm(surrogate=VESPO()),
        "A smooth weight of the whole completion's ratio",
        "2602.10693",
        page="vespo",
    ),
    "maxrl": _method(
        Algorithm(advantage=MaximumLikelihood()),
        "Hard prompts weigh 1 / accuracy: towards maximum likelihood",
        "2602.02710",
        page="maxrl",
    ),
    # --- methods with an entropy bonus in the loss ---
    "entropy-reg": _method(
        EntropyReg(), "Entropy bonus", "2510.08141", law="constant", actuator="entropy bonus", cost="entropy gradient"
    ),
    "entropy-schedule": _method(
        EntropyReg(coefficient=Schedule("inverse-sqrt(0.1)")),
        "Entropy bonus that fades with the square root of the step",
        "2208.04466",
        page="entropy-schedule",
        law="schedule",
        actuator="entropy bonus",
        cost="entropy gradient",
    ),
    "parl": _method(
        EntropyReg(coefficient=Schedule("-0.01")),
        "Predictable behaviour: the entropy rate is a cost",
        "2311.18703",
        page="parl",
        law="constant",
        actuator="negative entropy bonus",
        cost="entropy gradient",
    ),
    "skywork-or1": _method(
        AdaptiveCoefficient(sensor="sampled", comparison="strict", gate="open", delta=0.0001, high=0.005),
        "Skywork-OR1's adaptive coefficient",
        "2505.22312",
        sensor="sampled entropy",
        law="bang-bang integral, gated",
        actuator="entropy bonus",
        cost="entropy gradient",
    ),
    "trl-adaptive": _method(
        AdaptiveCoefficient(),
        "TRL's variant of Skywork-OR1's coefficient",
        "2505.22312",
        sensor="exact entropy",
        law="bang-bang integral, gated",
        actuator="entropy bonus",
        cost="entropy gradient",
    ),
    "aent": _method(
        AEnt(),
        "Adaptive bonus on the clamped entropy",
        "2509.03493",
        sensor="clamped entropy",
        law="integral with a dead band",
        actuator="clamped-entropy bonus",
        cost="clamped entropy and its gradient",
    ),
    "aer": _method(
        AER(),
        "Adaptive bonus by difficulty (reconstructed)",
        "2510.10959",
        sensor="exact entropy",
        law="integral",
        actuator="entropy bonus on hard prompts",
        cost="entropy gradient",
    ),
    "siren": _method(
        Algorithm(surrogate=Clip(dual=3.0), control=SIREN(peaks="completion")),
        "Nucleus entropy of the uncertain tokens, anchored",
        "2509.25133",
        sensor="nucleus entropy",
        law="proportional",
        actuator="squared-distance penalty",
        cost="nucleus entropy and its gradient",
    ),
    "sac-dual": _method(
        SACDual(),
        "SAC's temperature as the bonus coefficient",
        "1812.05905",
        sensor="exact entropy",
        law="dual ascent on the log",
        actuator="entropy bonus",
        cost="entropy gradient",
    ),
    "trajectory-entropy": _method(
        TrajectoryEntropy(),
        "A constraint on the trajectory's entropy (carried over)",
        "2511.11592",
        sensor="discounted entropy",
        law="dual ascent",
        actuator="entropy bonus and entropy-to-go advantage",
        cost="entropy gradient",
    ),
    # --- methods that change advantages or weights of tokens ---
    "entropy-adv": _method(
        EntropyAdv(),
        "Advantages raised where the policy is uncertain",
        "2506.14758",
        sensor="token entropy",
        actuator="advantages",
    ),
    "forking-tokens": _method(
        ForkingTokens(),
        "80/20: only the most uncertain tokens are trained",
        "2506.01939",
        sensor="token entropy",
        actuator="token mask",
    ),
    "clip-cov": _method(
        ClipCov(),
        "A few high-covariance tokens without gradient",
        "2505.22617",
        sensor="token covariance",
        actuator="token mask",
    ),
    "kl-cov": _method(
        Algorithm(surrogate=Ratio(), control=KLCov()),
        "A KL term on high-covariance tokens",
        "2505.22617",
        sensor="token covariance",
        actuator="token KL",
    ),
    "lp-reg": _method(
        Algorithm(surrogate=Clip(low=1.0, high=9.0), control=LpReg()),
        "Unlikely tokens of wrong answers held near a proxy",
        "2510.03222",
        sensor="token log-probability",
        actuator="token KL",
        cost="a sum over the vocabulary",
    ),
    "steer": _method(
        Algorithm(surrogate=Clip(low=0.2, high=0.28, dual=10.0), control=STEER()),
        "Tokens weighted by the entropy change they would cause",
        "2510.10150",
        sensor="token entropy",
        actuator="advantages",
    ),
    "erc": _method(
        Algorithm(surrogate=Clip(low=0.2, high=0.28, dual=10.0), control=ERC()),
        "Tokens whose entropy moved too far without gradient",
        "2512.05591",
        sensor="token entropy, before and now",
        actuator="token mask",
        cost="entropy in the update",
    ),
    "edge-grpo": _method(
        EDGE(),
        "Advantages scaled by the completion's entropy",
        "2507.21848",
        sensor="completion entropy",
        actuator="advantages",
    ),
    "pos-adv-reweight": _method(
        PositiveReweight(),
        "Positive advantages weighted by entropy",
        "2511.05993",
        sensor="exact entropy",
        law="bang-bang integral",
        actuator="positive weight",
    ),
    "pos-adv-stage": _method(
        PositiveReweight(schedule="stage"),
        "Positive advantages from the run's second half on",
        "2511.05993",
        law="schedule",
        actuator="positive weight",
    ),
    "pos-adv-epoch": _method(
        PositiveReweight(schedule="epoch"),
        "Positive advantages weighted up epoch by epoch",
        "2511.05993",
        law="schedule",
        actuator="positive weight",
    ),
    "psr": _signed(SignedReward(positive=1.0, negative=0.0), "Positive samples alone"),
    "nsr": _signed(SignedReward(positive=0.0, negative=1.0), "Negative samples alone"),
    "w-reinforce": _signed(SignedReward(), "Negative samples in full, positive ones at a tenth"),
    "entropic": _method(
        EntroPIC(),
        "PI-weighted push on confident tokens",
        "2511.15248",
        sensor="exact entropy",
        law="pi",
        actuator="weight of confident tokens",
    ),
    "entrocraft": _method(
        Entrocraft(),
        "A band of the entropy, held by leaving out rows",
        "2604.26326",
        sensor="exact entropy, same step",
        law="three-way switch",
        actuator="rows of one sign",
    ),
    "repo-r": _method(
        REPO(),
        "Advantages rescaled by the token's log-probability",
        "2603.11682",
        sensor="exact entropy",
        law="doubling and halving, with a change of sign",
        actuator="advantages",
    ),
    "repo": _method(
        REPO(form="centred"),
        "Advantages minus the centred log-probability (reconstructed)",
        "2603.11682",
        sensor="exact entropy",
        law="doubling and halving, with a change of sign",
        actuator="advantages",
        cost="entropy in the update",
    ),
    "pass-at-k": _method(
        Algorithm(advantage=PassAtK()),
        "Advantage for the best of k",
        "2508.10751",
        page="pass-at-k",
        actuator="advantages",
    ),
    "qae": _method(
        Algorithm(advantage=QuantileBaseline()), "Quantile baseline", "2509.22611", page="qae", actuator="advantages"
    ),
    # --- methods that change clip bounds ---
    "clip-higher": _method(
        Algorithm(surrogate=Clip(low=0.2, high=0.28)),
        "DAPO's higher upper bound",
        "2503.14476",
        page="dapo",
        actuator="clip bound",
    ),
    "moving-bound": _method(
        Algorithm(surrogate=Clip(low=0.6, high=1.5, dual=50.0), control=MovingBound()),
        "An upper clip bound that follows the entropy (MAI)",
        "-",
        sensor="exact entropy",
        law="bang-bang integral",
        actuator="clip bound",
    ),
    "archer": _method(
        Algorithm(surrogate=Clip(dual=10.0), control=Archer()),
        "Loose bounds for uncertain tokens, tight ones and KL for the rest",
        "2507.15778",
        sensor="token entropy",
        actuator="clip bounds, token KL",
        cost="reference model",
    ),
    "hapo": _method(
        Algorithm(surrogate=Clip(low=0.2, high=0.28, dual=10.0), control=HAPO()),
        "Tokens treated by their entropy in four places",
        "2509.16591",
        sensor="token entropy",
        law="feed-forward",
        actuator="token temperature, advantages, clip bounds",
    ),
    "bapo": _method(
        Algorithm(surrogate=Clip(dual=3.0), control=BAPO()),
        "Clip bounds searched until right answers have their share",
        "2510.18927",
        sensor="share of right answers in the update",
        law="search in each pass",
        actuator="clip bounds",
    ),
    "ce-gppo": _method(
        Algorithm(surrogate=GradientPreservingClip()),
        "Clipped tokens keep a limited gradient",
        "2509.20712",
        page="ce-gppo",
        actuator="gradient of clipped tokens",
    ),
    # --- methods that change what is sampled or how it is rewarded, and one supervised term ---
    "dynamic-sampling": _method(
        DynamicSampling(),
        "Prompts drawn until enough groups differ",
        "2503.14476",
        sensor="group accuracy",
        actuator="what is sampled",
        cost="further prompts",
    ),
    "overlong": _method(
        OverlongShaping(),
        "A penalty that grows towards the length limit",
        "2503.14476",
        sensor="length",
        actuator="rewards",
    ),
    "dapo": _method(
        Algorithm(surrogate=Clip(low=0.2, high=0.28), control=Both(first=DynamicSampling(), second=OverlongShaping())),
        "DAPO: clip-higher, dynamic sampling, overlong shaping",
        "2503.14476",
        page="dapo",
        sensor="group accuracy, length",
        actuator="clip bound, what is sampled, rewards",
        cost="further prompts",
    ),
    "eframe": _method(
        Algorithm(surrogate=Clip(dual=3.0), control=EFRame()),
        "Explore hard prompts, filter, replay",
        "2506.22200",
        sensor="group accuracy",
        actuator="what is sampled and replayed",
        cost="extra completions, replayed updates",
    ),
    "uec-rl": _method(
        EFRame(temperature=1.1, explored_threshold=0.5, replay_by="signed"),
        "Explore hard prompts, replay right answers (reconstructed)",
        "2604.14646",
        page="uec-rl",
        sensor="group accuracy",
        actuator="what is sampled and replayed",
        cost="extra completions, replayed updates",
    ),
    "re3": _method(
        Algorithm(advantage=GroupMean(), control=RE3()),
        "State entropy with a random encoder (carried over)",
        "2102.09430",
        sensor="distance in the group",
        law="schedule",
        actuator="rewards",
    ),
    "rpo": _method(
        RPO(),
        "Likelihood of reference solutions (carried over)",
        "2405.16436",
        law="constant",
        actuator="supervised term",
        cost="a row for each prompt",
    ),
}
"""`METHODS` holds every method by name, in the order of the table of `aepo methods`."""

GRPO = Algorithm()
"""Plain GRPO, from which `preset` tells what a joined method changes."""


def preset(name: str) -> Algorithm:
    """Return the algorithm of a method, or of several methods joined by `+`.

    Args:
        name: The name of a method, such as `aepo`, or several names joined by `+`, such as `aepo+clip-higher`.

    Raises:
        InvalidValue: There is no method of this name, or the methods cannot be joined.
    """
    parts = [_known(part) for part in name.split("+")]
    return parts[0] if len(parts) == 1 else _joined(name, parts)


def _known(name: str) -> Algorithm:
    if name not in METHODS:
        raise UnknownName("method", name, METHODS, ", or two of them joined by +")
    return METHODS[name].algorithm


def _joined(name: str, parts: Sequence[Algorithm]) -> Algorithm:
    """Return the algorithm that joins several: each choice comes from the part that differs from GRPO in it. Two
    controls become `Both`.
    """
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
