"""What stands before an equals sign: the name of a value, of a point's coordinates, or words."""

from __future__ import annotations

import re
from dataclasses import dataclass

from aepo.grading.text import bracketed, items, squeeze, unwrap

NAME = r"\\?[A-Za-z]+'*(?:\s*_\s*(?:\w|\{[^{}]*\}))?(?:\s*\([A-Za-z](?:\s*,\s*[A-Za-z])*\))?"
_VALUED = r"\\(?:sin|cos|tan|cot|sec|csc|ln|log|exp|arc|pi)|e$"
_ASSIGNED = re.compile(rf"({NAME})\s*(?:=|\\in(?![A-Za-z]))\s*(.+)", re.DOTALL)
RELATION = re.compile(r"[=<>]|\\(?:n?[lg]eq?(?:slant)?|neq?|approx|in)(?![A-Za-z])")
EQUALS = re.compile(r"(?<![<>!\\])=")
_TUPLE = re.compile(rf"\(\s*({NAME}(?:\s*,\s*{NAME})+)\s*\)\s*=\s*(.+)", re.DOTALL)
_ACCENTS = re.compile(
    r"\\(?:vec|hat|bar|tilde|overline|overrightarrow|widehat|mathbf|mathrm|mathcal|boldsymbol|bm|angle|triangle|det)"
    r"(?![A-Za-z])"
)
_LABEL_WORDS = re.compile(r"(?=.*[A-Za-z]{2})[A-Za-z][A-Za-z .'()&-]*")
_COLON = re.compile(r"(?:\\text\w*\s*\{\s*)?([A-Za-z][A-Za-z ]{2,})\s*:\s*(?:\}\s*)?(?=[^\s=:])")


@dataclass(frozen=True)
class Point:
    """`Point` is a value whose coordinates have names."""

    names: tuple[str, ...]
    """The names, in the order of the coordinates."""
    value: str
    """The point, or a list of points."""


def assigned(text: str) -> tuple[str, str] | None:
    r"""Return (name, value) of `x = 5`, `f(x) = 2x`, `x \in [0, 1]`; None if the text has another form."""
    match = _ASSIGNED.fullmatch(text)
    if match is None or RELATION.search(match[2]):
        return None
    return squeeze(match[1]), match[2].strip()


def is_name(text: str) -> bool:
    """Return whether the text is empty or a variable; functions, pi and e have values and are no variables."""
    return not text.strip() or re.fullmatch(rf"(?!{_VALUED}){NAME}", text.strip()) is not None


def is_worded(text: str) -> bool:
    """Return whether the text is words or a bold or accented name, such as `\\text{Total Cost}` or `\\mathbf{L}`."""
    plain = unwrap(text).strip()
    if plain != text.strip() and _LABEL_WORDS.fullmatch(plain + "aa"):
        return True
    if _ACCENTS.search(text):
        bare = re.sub(r"[{}\s]", "", _ACCENTS.sub("", text))
        return re.fullmatch(r"\\?[A-Za-z]+(?:_\w+)?(?:\([A-Za-z]\))?", bare) is not None
    return _LABEL_WORDS.fullmatch(plain) is not None and re.search(r"[A-Za-z]{3}", plain) is not None


def is_quantity(text: str) -> bool:
    """Return whether an expression may be what a question asks the value of: z^3, a + b, xy, f(3), P(X > 2), |z|.

    A coefficient, a constant term, a root or a minus sign in front would make it an equation to be solved.
    """
    bare = unwrap(text).strip()
    if re.fullmatch(r"[A-Za-z]'*(?:_\{?\w+\}?)?\s*\([^()=]*\)", bare):
        return True
    bare = re.sub(r"\^\s*(?:\{[^{}]*\}|\w)|_\s*(?:\{[^{}]*\}|\w)", "", bare)
    if bare.startswith(("-", "+")) or re.search(r"\d|\\(?:sqrt|frac|pi|ln|log|sin|cos|tan|e(?![a-z]))|[!<>=,;]", bare):
        return False
    return re.search(r"[A-Za-z]", bare) is not None


def after_words(text: str) -> str:
    """Return the text after `Words:` or `Words =` at its start, else the text."""
    if match := _COLON.match(text):
        return text[match.end() :]
    parts = EQUALS.split(text, maxsplit=1)
    if len(parts) == 2 and parts[1].strip() and is_worded(parts[0]):
        return parts[1].strip()
    return text


def point(text: str) -> Point | None:
    """Return the point in `(x, y) = (3, 2)` or `x = 3, y = 2`, or None. Coordinates x, y, z are put in this order."""
    if match := _TUPLE.fullmatch(text):
        names = tuple(re.sub(r"\s+", "", name) for name in items(match[1], (",",)))
        return Point(names, match[2]) if len(set(names)) == len(names) else None
    pairs = [assigned(part) for part in items(text)]
    if len(pairs) < 2:
        return None
    found = [pair for pair in pairs if pair is not None]
    if len(found) != len(pairs) or len({name for name, _ in found}) != len(found):
        return None
    if {name for name, _ in found} <= {"x", "y", "z"}:
        found.sort()
    return Point(tuple(name for name, _ in found), f"({', '.join(value for _, value in found)})")


def reordered(given: Point, names: tuple[str, ...]) -> str | None:
    """Return the given point with its coordinates in the order of `names`; None if the names are others."""
    if given.names == names:
        return given.value
    found = bracketed(given.value)
    if sorted(given.names) != sorted(names) or found is None:
        return None
    values = items(found[1], (",",))
    if len(values) != len(names):
        return None
    return f"({', '.join(values[given.names.index(name)] for name in names)})"
