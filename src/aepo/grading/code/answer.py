"""The code in an answer: the last closed fence."""

from __future__ import annotations

import re

# An opening or closing line of a fence: at most three spaces, then three or more of one sign, then a word or nothing.
_FENCE = re.compile(r"^[ ]{0,3}(`{3,}|~{3,})[ \t]*([^\n`]*?)[ \t]*\r?$", re.MULTILINE)
# Characters that are read, from the end of the completion.
_MOST = 200_000


def last_fence(completion: str) -> str | None:
    """Return the text of the last closed fence; None without one.

    A fence that is opened and not closed is no code. A closing line has at least as many signs as the opening line,
    and no word.
    """
    text, found, opened = completion[-_MOST:], None, None
    for line in _FENCE.finditer(text):
        signs, word = line.group(1), line.group(2)
        if opened is None:
            opened = (signs, line.end() + 1)
        elif signs[0] == opened[0][0] and len(signs) >= len(opened[0]) and not word:
            found, opened = text[opened[1] : line.start()], None
        elif word:
            # A new fence begins although the last one was never closed: the text before it was no code.
            opened = (signs, line.end() + 1)
    return found


def has_fence(completion: str) -> bool:
    """Return whether a fence opens in the completion, closed or not."""
    return _FENCE.search(completion[-_MOST:]) is not None
