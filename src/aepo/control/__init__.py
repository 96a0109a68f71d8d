"""Entropy controls: one file each, found by name in `CONTROLS`."""

from aepo.control.aepo import AEPO
from aepo.control.base import ClosedLoop, Control, NoControl
from aepo.control.entropy_adv import EntropyAdv
from aepo.control.entropy_reg import EntropyReg

CONTROLS: dict[str, type[Control]] = {cls.name: cls for cls in (NoControl, AEPO, EntropyReg, EntropyAdv)}

__all__ = ["AEPO", "CONTROLS", "ClosedLoop", "Control", "EntropyAdv", "EntropyReg", "NoControl"]
