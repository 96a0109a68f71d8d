"""Answers that are chosen: a letter of a multiple choice, yes or no, true or false."""

from __future__ import annotations

import re
from dataclasses import dataclass

from aepo.grading.text import unwrap

_BARE = re.compile(r"([A-Z])")
_MARKED = re.compile(r"\(([A-Z])\)")
_WITH_TEXT = re.compile(
    r"(?:\(([A-J])\)(?:\s*[.:]|(?=\s))|([A-J])(?:\)|[.:](?=[\s\\])))\s*(?![*/^=<>_,;])(\S.*)", re.DOTALL
)
# After `(C) ` this goes on a formula. A minus sign at a number is the number's own if the letter has markup of its own.
_OPERATOR = re.compile(r"[+]|-\s|\\(?:c[au]p|cdot|times|div|pm|in)(?![A-Za-z])")
_NAMED = re.compile(r"(?i)(?:option|choice)\s*:?\s*(?=\(?[A-Z]\b)")
_ANOTHER = re.compile(r"(?<![A-Za-z(])[A-J]\)|\([A-J]\)|(?:^|[\s,])(?:and|or)\s+[A-H](?![A-Za-z])")
_VERDICT = re.compile(
    r"(yes|no|true|false)(?:\s*[.!])?"
    r"(?:\s*(?:[,;:.!(\u2013\u2014]|-{1,3}\s)\s*(.*)|\s+((?:because|since|as|it|this|they|the)\b.*))?",
    re.DOTALL | re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?i)(?:the\s+)?(?:statement|claim|assertion|it|this)\s+is\s+(true|false)")
_OPPOSED = re.compile(
    r"(?i)(?:(?:and|or|but)\s+)?(?:yes|no|true|false)(?=\W|$)\s*(?:[,.;:!]|$)|.*\b(?:or|and)\s+(?:yes|no)\b"
    r"|.*\b(?:yes|no)\W*$"
)


@dataclass(frozen=True)
class Chosen:
    """`Chosen` is a chosen answer."""

    what: str
    """The letter, or yes, no, true or false."""
    text: str = ""
    """The words after it."""
    marked: bool = False
    """Whether the letter stands in brackets or has a text, so that it cannot be a variable."""


def letter(text: str) -> Chosen | None:
    """Return the choice in `C`, `(C)`, `C) 7`, `C. 7` or `(C) 7`; None for a formula, and for two choices."""
    wrapped = unwrap(text)
    flat = " ".join(wrapped.split())
    flat = _NAMED.sub("", flat, count=1)
    if match := _BARE.fullmatch(flat):
        return Chosen(match[1], marked=wrapped != text)
    if match := _MARKED.fullmatch(flat):
        return Chosen(match[1], marked=True)
    match = _WITH_TEXT.fullmatch(flat)
    if match is None or _ANOTHER.search(match[3]):
        return None
    minus = match[3].startswith("-") and not text.startswith("\\")
    if match[1] and (minus or _OPERATOR.match(match[3])):
        return None
    return Chosen(match[1] or match[2], match[3], marked=True)


def verdict(text: str) -> Chosen | None:
    """Return the yes, no, true or false that a text is or begins with; None if it says both, or anything else."""
    flat = " ".join(unwrap(text).split())
    if match := _SENTENCE.fullmatch(flat):
        return Chosen(match[1].casefold())
    match = _VERDICT.fullmatch(flat)
    if match is None:
        return None
    rest = (match[2] or match[3] or "").strip().rstrip(")")
    return None if _OPPOSED.match(rest) else Chosen(match[1].casefold(), rest)


def same_verdict(gold: Chosen, given: Chosen) -> bool:
    """Return whether two verdicts agree. A number or formula after the known one must be given, too."""
    if gold.what != given.what:
        return False
    needs_rest = re.search(r"[\d\\=<>]", gold.text) is not None
    return not needs_rest or gold.text.casefold() == given.text.casefold()
