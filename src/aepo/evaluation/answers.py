"""The answer in a completion, for majority votes: two completions vote alike where these texts are equal."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aepo.grading.qwen import extracted, normalised
from aepo.grading.text import clean, exact_number, last_boxed, squeeze

Extractor = Callable[[str], str | None]

# What is read of a completion (from its end), and of an answer; as the grading pool's limit, against hostile texts.
_TEXT, _ANSWER = 100_000, 500


def boxed(text: str) -> str | None:
    """The last box; numbers by value (0.50 and 1/2 are one vote), all else by spelling. None without a box."""
    box = last_boxed(text[-_TEXT:])
    return None if box is None else _by_value(box)


def qwen(text: str) -> str | None:
    """What Qwen2.5-Math's rules extract and normalise."""
    return normalised(extracted(text[-_TEXT:])[:_ANSWER]) or None


def spelled(text: str) -> str | None:
    """The last box, or the whole text without one, by spelling alone."""
    box = last_boxed(text[-_TEXT:])
    return squeeze(clean((text if box is None else box)[:_ANSWER])) or None


def whole(text: str) -> str | None:
    """The last box, or the whole text without one, with single spaces: for tasks whose answer is the text."""
    box = last_boxed(text[-_TEXT:])
    return " ".join((text if box is None else box).split()) or None


def _by_value(box: str) -> str | None:
    answer = clean(box[:_ANSWER])
    number = exact_number(answer)
    return (squeeze(answer) or None) if number is None else str(number)


EXTRACTORS: Mapping[str, Extractor] = {"math": boxed, "qwen": qwen, "exact": spelled}
