"""The answer in a completion's boxes: the last box, or the boxes that a sentence lists one after the other."""

from __future__ import annotations

import re

from aepo.grading.text import Box, boxes, is_placeholder

_NAMED = r"\\?[A-Za-z]+(?:_\{?\w+\}?)?\s*(?:=|\\in(?![A-Za-z]))"
# What may stand between two boxes of one list. White space alone does not make a list: it comes between an answer and
# its repetition.
_BETWEEN = re.compile(rf"(?:[,;] ?(?:and|or|&)?|and|or|&) ?({_NAMED})?")
_LEADING = re.compile(rf"(?<![A-Za-z\\])({_NAMED})$")
_MARKUP = re.compile(r"\\text\w*\s*\{([^{}]*)\}|\\q?quad(?![A-Za-z])|\\[()\[\],;: ]|\\\\|\*\*|\$")
_LONGEST = 60


def boxed_answer(text: str) -> str | None:
    r"""Return the answer that stands in boxes, or None without a box.

    It is the content of the last box that holds one. Boxes that are joined by commas, "and" or "or" make one list:
    `$x = \boxed{3}$ or $x = \boxed{5}$` is "x =3, x =5".
    """
    found = boxed_answers(text)
    return None if found is None else ", ".join(found)


def boxed_answers(text: str) -> list[str] | None:
    """Return the answers in the last box or in the boxes of one list, or None without a box."""
    every = boxes(text)
    found = [box for box in every if not is_placeholder(box.content)]
    if not found:
        return [""] if every else None
    listed, names = [found[-1]], list[str]()
    for box in reversed(found[:-1]):
        if (name := _joined(text, box, listed[0])) is None:
            break
        listed.insert(0, box)
        names.insert(0, name)
    contents = [box.content for box in listed]
    if len(set(contents)) == 1:
        return contents[:1]
    first = _LEADING.search(_bare(text[max(0, listed[0].start - _LONGEST) : listed[0].start]))
    return [name + each for name, each in zip([first[1] if first else "", *names], contents, strict=True)]


def _joined(text: str, box: Box, following: Box) -> str | None:
    """Return the name (`x =` or nothing) before the second of two boxes in one list; None if they are in none."""
    if not 0 <= following.start - box.end <= _LONGEST:
        return None
    match = _BETWEEN.fullmatch(_bare(text[box.end : following.start]))
    return (match[1] or "") if match else None


def _bare(text: str) -> str:
    """Return the text without delimiters of formulas and markup, with single spaces."""
    return " ".join(_MARKUP.sub(lambda match: f" {match[1] or ''} ", text).split())
