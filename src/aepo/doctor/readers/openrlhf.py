"""OpenRLHF's console: `Global step n: {'policy_loss': ..., 'response_length': ...}`."""

from __future__ import annotations

import re

from aepo.doctor.names import OPENRLHF
from aepo.doctor.readers.rows import Text, flat, make_log, unwrapped
from aepo.doctor.types import Log

_LINE = re.compile(r"Global step (\d{1,18})(?: \[[^\]]*\])?: \{(.*)\}")
# The dictionary is printed as Python prints it, where nan and inf are bare names that no literal parser takes.
_ITEM = re.compile(r"'([^']+)': (-?(?:inf|nan|\d[\d.]*(?:e[+-]?\d+)?))(?=[,}\s]|$)")


def read(text: Text) -> list[Log]:
    """A line a step, wherever it stands in the console's output."""
    lines = [] if text.rows else list(_LINE.finditer(unwrapped(text.text)))
    if not lines:
        return []
    rows = [(int(line[1]), flat(dict(_ITEM.findall(line[2])))) for line in lines]
    return [make_log(OPENRLHF, text.path, rows)]
