"""This module extracts the answer of a completion for majority votes.

Two completions vote alike if the texts of their answers are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aepo.grading.code.answer import last_fence
from aepo.grading.qwen_text import extracted, normalised
from aepo.grading.text import clean, exact_number, last_boxed, squeeze

Extractor = Callable[[str], str | None]
"""A function from the text of a completion to its answer; None if it has no answer."""

# Characters that are read: of a completion (from its end), and of an answer. Like the limit of the grading pool, they
# protect against hostile texts.
_TEXT, _ANSWER = 100_000, 500


def boxed(text: str) -> str | None:
    """Return the content of the last box; None without a box.

    A number is returned by its value, so 0.50 and 1/2 are the same answer. Any other content is returned as it is
    spelled.
    """
    box = last_boxed(text[-_TEXT:])
    return None if box is None else _by_value(box)


def qwen(text: str) -> str | None:
    """Return the answer that the rules of Qwen2.5-Math extract and normalise."""
    return normalised(extracted(text[-_TEXT:])[:_ANSWER]) or None


def spelled(text: str) -> str | None:
    """Return the last box, or the whole text if there is no box, as it is spelled and without spaces."""
    box = last_boxed(text[-_TEXT:])
    return squeeze(clean((text if box is None else box)[:_ANSWER])) or None


def whole(text: str) -> str | None:
    """Return the last box, or the whole text if there is no box, with single spaces.

    Tasks whose answer is the text of the completion use this function.
    """
    box = last_boxed(text[-_TEXT:])
    return " ".join((text if box is None else box).split()) or None


def program(text: str) -> str | None:
    """Return the program of a completion, its last closed fence, as it is spelled."""
    code = last_fence(text)
    return code.strip() or None if code is not None else None


def _by_value(box: str) -> str | None:
    answer = clean(box[:_ANSWER])
    number = exact_number(answer)
    return (squeeze(answer) or None) if number is None else str(number)


EXTRACTORS: Mapping[str, Extractor] = {"math": boxed, "qwen": qwen, "exact": spelled, "code": program}
"""The extractor of each grader, by the grader's name."""
