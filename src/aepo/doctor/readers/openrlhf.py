"""Reader for OpenRLHF's console output: `Global step n: {'policy_loss': ..., 'response_length': ...}`."""

from __future__ import annotations

import re

from aepo.doctor.names import OPENRLHF
from aepo.doctor.readers.rows import LogText, flat, make_log, unwrapped
from aepo.doctor.types import Log

_LINE = re.compile(r"Global step (\d{1,18})(?: \[[^\]]*\])?: \{(.*)\}")
# Python printed the dictionary: nan and inf are bare names in it, which a parser of literals refuses.
_ITEM = re.compile(r"'([^']+)': (-?(?:inf|nan|\d[\d.]*(?:e[+-]?\d+)?))(?=[,}\s]|$)")


def read(text: LogText) -> list[Log]:
    """Return the log if the console output has lines of OpenRLHF, one per step, else an empty list."""
    lines = [] if text.rows else list(_LINE.finditer(unwrapped(text.text)))
    if not lines:
        return []
    rows = [(int(line[1]), flat(dict(_ITEM.findall(line[2])))) for line in lines]
    return [make_log(OPENRLHF, text.path, rows)]
