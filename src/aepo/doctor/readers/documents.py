"""JSON: the objects of JSON lines, of a list, and of a document such as trainer_state.json, one at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

_DECODER = json.JSONDecoder()
# Python refuses integers with very many digits; as floats they are infinite.
_LENIENT = json.JSONDecoder(parse_int=float)
# Where an object can begin inside a line that is broken.
_OBJECT = re.compile(r"\{\s*\"")
_SPACE = re.compile(r"[\s,]*")
_NEXT = re.compile(r"\}\s*,\s*(?=\{)")
# An object that does not parse is broken if so much text follows, else its end may be still to come.
_LONGEST = 1 << 20
LIST = re.compile(r"\A\s*\[(?=\s*\{)")
"""Where the rows begin in a file that is one list."""
HISTORY = re.compile(r'"log_history"\s*:\s*\[')
"""Where the rows begin in a trainer_state.json."""


def object_of(line: str) -> tuple[dict[str, Any] | None, bool]:
    """Return the object of a line, and whether the line is broken.

    A process that is killed leaves half a line, and the next one writes on behind it. So the object of a broken line is
    the last whole one in it, with which it ends.
    """
    found = _parsed(line)
    if found is not None:
        return (found, False) if isinstance(found, dict) else (None, False)
    starts = [match.start() for match in _OBJECT.finditer(line)][1:20]
    return next((whole for start in starts if isinstance(whole := _parsed(line[start:]), dict)), None), True


def _parsed(text: str) -> Any:
    """Parse JSON; return None if the text is no JSON or is nested too deeply."""
    for decoder in (_DECODER, _LENIENT):
        try:
            return decoder.decode(text)
        except RecursionError:
            return None
        except ValueError as error:
            if isinstance(error, json.JSONDecodeError):
                return None
    return None


def objects(pieces: Iterable[str], after: re.Pattern[str]) -> Iterator[dict[str, Any] | None]:
    """Yield the objects of the list whose bracket the pattern ends with, and None for each that is broken.

    The text is not held as a whole. An object that the end of the text cuts off is left out.
    """
    buffer, is_inside, position = "", False, 0
    for piece in chain(pieces, [""]):
        buffer = buffer[position:] + piece
        position = 0
        if not is_inside:
            begin = after.search(buffer)
            if begin is None:
                position = max(0, len(buffer) - 64)
                continue
            is_inside, position = True, begin.end()
        while (space := _SPACE.match(buffer, position)) and (position := space.end()) < len(buffer):
            if buffer[position] == "]":
                return
            try:
                found, position = _decode(buffer, position)
                if isinstance(found, dict):
                    yield found
            except (ValueError, RecursionError):
                behind = _NEXT.search(buffer, position)
                if behind is None or (piece and len(buffer) - position < _LONGEST):
                    break
                position = behind.end()
                yield None


def _decode(buffer: str, position: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(buffer, position)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return _LENIENT.raw_decode(buffer, position)
