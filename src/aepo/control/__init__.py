"""Entropy controls: one file each, found by name in `CONTROLS`."""

from aepo.control.adaptive_coefficient import AdaptiveCoefficient
from aepo.control.aent import AEnt
from aepo.control.aepo import AEPO
from aepo.control.aer import AER
from aepo.control.archer import Archer
from aepo.control.base import ClosedLoop, Control, NoControl
from aepo.control.both import Both
from aepo.control.clip_cov import ClipCov
from aepo.control.dynamic_sampling import DynamicSampling
from aepo.control.edge_grpo import EDGE
from aepo.control.eframe import EFRame
from aepo.control.entropic import EntroPIC
from aepo.control.entropy_adv import EntropyAdv
from aepo.control.entropy_reg import EntropyReg
from aepo.control.forking_tokens import ForkingTokens
from aepo.control.hapo import HAPO
from aepo.control.kl_cov import KLCov
from aepo.control.moving_bound import MovingBound
from aepo.control.overlong import OverlongShaping
from aepo.control.positive_reweight import PositiveReweight
from aepo.control.re3 import RE3
from aepo.control.rpo import RPO
from aepo.control.sac_dual import SACDual
from aepo.control.siren import SIREN
from aepo.control.steer import STEER
from aepo.control.trajectory_entropy import TrajectoryEntropy

CONTROLS: dict[str, type[Control]] = {
    cls.name: cls
    for cls in (
        NoControl,
        AEPO,
        AdaptiveCoefficient,
        AEnt,
        AER,
        Archer,
        ClipCov,
        DynamicSampling,
        EDGE,
        EFRame,
        EntroPIC,
        EntropyAdv,
        EntropyReg,
        ForkingTokens,
        HAPO,
        KLCov,
        MovingBound,
        OverlongShaping,
        PositiveReweight,
        RE3,
        RPO,
        SACDual,
        SIREN,
        STEER,
        TrajectoryEntropy,
        Both,
    )
}

__all__ = [
    "AEPO",
    "AER",
    "CONTROLS",
    "EDGE",
    "HAPO",
    "RE3",
    "RPO",
    "SIREN",
    "STEER",
    "AEnt",
    "AdaptiveCoefficient",
    "Archer",
    "Both",
    "ClipCov",
    "ClosedLoop",
    "Control",
    "DynamicSampling",
    "EFRame",
    "EntroPIC",
    "EntropyAdv",
    "EntropyReg",
    "ForkingTokens",
    "KLCov",
    "MovingBound",
    "NoControl",
    "OverlongShaping",
    "PositiveReweight",
    "SACDual",
    "TrajectoryEntropy",
]
