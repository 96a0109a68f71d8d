"""Sets of numbers in several notations: inequalities and intervals, and residues."""

from __future__ import annotations

import re
from dataclasses import dataclass

from aepo.grading.text import bracketed, exact_number, items, unwrap

_NAME = r"\\?[A-Za-z]+(?:\s*_\s*(?:\w|\{[^{}]*\}))?(?:\([A-Za-z]\))?"
_ORDER = re.compile(r"(\\(?:leq?(?:slant)?|geq?(?:slant)?|lt|gt|neq?)(?![A-Za-z])|<|>)")
_LESS = {"<", r"\lt", r"\le", r"\leq", r"\leqslant"}
_STRICT = {"<", ">", r"\lt", r"\gt"}
_UNEQUAL = {r"\ne", r"\neq"}
_OR = re.compile(r"\s*(?:,?\s*(?<![A-Za-z\\])or(?![A-Za-z])|\\cup(?![A-Za-z])|\\(?:vee|lor)(?![A-Za-z]))\s*")
_AND = re.compile(r"\s*(?:,?\s*(?<![A-Za-z\\])and(?![A-Za-z])|\\(?:wedge|land)(?![A-Za-z])|,)\s*")
_BUILDER = re.compile(
    rf"\\\{{\s*(?:{_NAME})(?:\s*\\in\s*\\mathbb\s*\{{?R\}}?)?\s*(?:\\mid|\\vert|:|\|)\s*(.*)\\\}}", re.DOTALL
)
_REALS = re.compile(
    rf"(?:({_NAME})\s*\\in\s*)?(?:\\mathbb\s*\{{?R\}}?|\\R|(?i:all real (?:numbers?|values?)(?: of [a-z])?|all reals))"
)
_MEMBER = re.compile(rf"({_NAME})\s*\\in(?![A-Za-z])\s*(.+)", re.DOTALL)
_MODULUS = re.compile(
    r"\s*(?:\\pmod\s*(?:\{([^{}]*)\}|(\w))|\(\s*\\?b?mod\s*(?:\{([^{}]*)\}|(\w+))\s*\)|\\?b?mod\s*(?:\{([^{}]*)\}|(\w+)))$"
)


@dataclass(frozen=True)
class Range:
    """`Range` is a set of real numbers."""

    name: str
    """The variable; empty if none is named."""
    interval: str
    r"""The set as an interval, or as intervals joined by \cup."""


def inequality(text: str) -> Range | None:
    r"""Return the set that an inequality describes: `x \ge 2` is [2,\infty); None for any other text.

    It reads chains (1 < x < 2), `or`, `and`, unequal, set-builder notation, and "all real numbers".
    """
    text = unwrap(text).strip()
    if match := _BUILDER.fullmatch(text):
        return inequality(match[1])
    if match := _REALS.fullmatch(text):
        return Range(match[1] or "", r"(-\infty,\infty)")
    if not _ORDER.search(text):
        return None
    parts = [_both(part) for part in _OR.split(text)]
    found = [part for part in parts if part is not None]
    if len(found) != len(parts) or len({part.name for part in found}) != 1:
        return None
    return Range(found[0].name, r"\cup".join(part.interval for part in found))


def membership(text: str) -> tuple[str, str]:
    r"""Return (name, set) of `x \in [1, 2]`; the name is empty for a set alone."""
    match = _MEMBER.fullmatch(text)
    return (match[1], match[2]) if match else ("", text)


def _both(text: str) -> Range | None:
    """Return the set of one inequality, or of two that hold at the same time (a lower and an upper bound)."""
    parts = [part for part in _AND.split(text) if part]
    if len(parts) == 1:
        return _chain(parts[0])
    ranges = [_chain(part) for part in parts]
    if len(parts) != 2 or ranges[0] is None or ranges[1] is None or ranges[0].name != ranges[1].name:
        return None
    low, high = sorted(ranges, key=lambda each: each is not None and each.interval.startswith(r"(-\infty"))
    assert low is not None and high is not None
    if not low.interval.endswith(r"\infty)") or not high.interval.startswith(r"(-\infty") or "cup" in text:
        return None
    lower, upper = low.interval.split(",")[0], high.interval.split(",")[1]
    least, most = exact_number(lower[1:]), exact_number(upper[:-1])
    if least is None or most is None or least >= most or low.interval.startswith(r"(-\infty"):
        return None
    return Range(low.name, f"{lower},{upper}")


def _chain(text: str) -> Range | None:
    parts = [part.strip() for part in _ORDER.split(text)]
    values, signs = parts[::2], parts[1::2]
    if not all(values) or any("," in value or "=" in value for value in values):
        return None
    if len(signs) == 1:
        return _one_sided(values[0], signs[0], values[1])
    if len(signs) != 2 or not _is_variable(values[1]) or (set(signs) & _UNEQUAL):
        return None
    directions = [sign in _LESS for sign in signs]
    if directions[0] != directions[1] or _mentions(values[0], values[1]) or _mentions(values[2], values[1]):
        return None
    if not directions[0]:
        values, signs = values[::-1], signs[::-1]
    opening, closing = ("(" if signs[0] in _STRICT else "["), (")" if signs[1] in _STRICT else "]")
    return Range(values[1], f"{opening}{values[0]},{values[2]}{closing}")


def _one_sided(left: str, sign: str, right: str) -> Range | None:
    less = sign in _LESS
    if not _is_variable(left):
        left, right, less = right, left, not less
    if not _is_variable(left) or _mentions(right, left):
        return None
    if sign in _UNEQUAL:
        return Range(left, rf"(-\infty,{right})\cup({right},\infty)")
    strict = sign in _STRICT
    if less:
        return Range(left, rf"(-\infty,{right}{')' if strict else ']'}")
    return Range(left, rf"{'(' if strict else '['}{right},\infty)")


def _is_variable(text: str) -> bool:
    r"""Return whether the text is a variable: a letter, with an index or an argument, or a Greek letter but pi."""
    match = re.fullmatch(_NAME, text)
    bare = re.sub(r"[_(].*", "", text)
    return match is not None and (len(bare) == 1 or bare.startswith("\\")) and bare not in (r"\pi", "e", r"\infty")


def _mentions(text: str, name: str) -> bool:
    return re.search(rf"(?<![A-Za-z\\]){re.escape(name)}(?![A-Za-z])", text) is not None


def is_set(text: str) -> bool:
    r"""Return whether a text is an interval, or several joined by \cup."""
    pieces = items(text, (r"\cup",))
    return all(
        (found := bracketed(piece)) is not None and found[0] != r"\{" and len(items(found[1], (",",))) == 2
        for piece in pieces
    )


@dataclass(frozen=True)
class Residue:
    """`Residue` is a class of integers: `n \\equiv 5 \\pmod{17}`."""

    values: str
    """The residue, or several with commas."""
    modulus: str
    """The modulus."""

    def is_reduced(self) -> bool:
        """Return whether every residue is an integer from 0 to the modulus less 1."""
        modulus = exact_number(self.modulus)
        values = [exact_number(value) for value in items(self.values)]
        return modulus is not None and all(
            value is not None and value.denominator == 1 and 0 <= value < modulus for value in values
        )

    def reduced(self) -> Residue:
        """Return the same class with its least residues; the residue itself where it is no integer."""
        modulus = exact_number(self.modulus)
        values = [exact_number(value) for value in items(self.values)]
        if modulus is None or modulus <= 0 or any(value is None for value in values):
            return self
        return Residue(", ".join(str(value % modulus) for value in values if value is not None), str(modulus))


def residue(text: str) -> Residue | None:
    r"""Return the residue class in `n \equiv 5 \pmod{17}` or `5 \bmod 17`, or None."""
    flat = " ".join(unwrap(text).split())
    match = _MODULUS.search(flat)
    if match is None:
        return None
    values = re.split(r"\\equiv(?![A-Za-z])", flat[: match.start()])[-1]
    assigned = re.fullmatch(rf"{_NAME}\s*=\s*(.+)", values.strip())
    values = (assigned[1] if assigned else values).strip()
    modulus = next(group for group in match.groups() if group is not None).strip()
    return Residue(values, modulus) if values and "mod" not in values and "=" not in values else None
