"""Entropy controls: one file each, found by name in `CONTROLS`."""

from aepo.control.aepo import AEPO
from aepo.control.base import ClosedLoop, Control, NoControl
from aepo.control.both import Both
from aepo.control.entropy_adv import EntropyAdv
from aepo.control.entropy_reg import EntropyReg

CONTROLS: dict[str, type[Control]] = {cls.name: cls for cls in (NoControl, AEPO, EntropyReg, EntropyAdv, Both)}

__all__ = ["AEPO", "CONTROLS", "Both", "ClosedLoop", "Control", "EntropyAdv", "EntropyReg", "NoControl"]
