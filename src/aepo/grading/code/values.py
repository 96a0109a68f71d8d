"""Returned values: reading what a sandbox wrote, and comparing it with the expected value.

The text is hostile. It is JSON, in which a table with one key stands for what JSON lacks: `i` a large integer in
hexadecimal digits, `t` a tuple, `s` a set, `d` a dictionary as keys and values in turn, `b` bytes, `c` a complex
number, `q` a fraction. Nothing of it is built before its size equals that of the expected value, so a value that is
made to be slow (integers that collide in a set) costs nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

# Two decimal numbers of a loose comparison are equal within this, relative or absolute.
TOLERANCE = 1e-6
# Digits of an integer that JSON spells out; longer ones are written as `i`.
_DIGITS = 20
# The largest set inside of a set or a key.
_INNER_SET = 1000


class Unreadable(ValueError):
    """`Unreadable` says that a text is no value that a sandbox writes."""


def equal(expected: Any, text: str, loose: bool = False) -> bool:
    """Return whether the value that a sandbox wrote equals the expected one.

    Args:
        expected: A value of built-in types.
        text: The JSON text from the sandbox.
        loose: Whether a tuple equals a list, a key may be text, and decimal numbers may differ by `TOLERANCE`.

    Raises:
        Unreadable: The text is no value.
    """
    try:
        return _equal(expected, json.loads(text, parse_int=_integer), loose)
    except (ValueError, TypeError, RecursionError, ArithmeticError, KeyError) as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from None


def shown(text: str, longest: int = 100) -> str:
    """Return a value from a sandbox for people."""
    return text if len(text) <= longest else f"{text[:longest]}..."


def _integer(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise Unreadable("an integer of too many digits")
    return int(digits)


def _equal(expected: Any, tree: Any, loose: bool) -> bool:
    tag, inner = _tagged(tree)
    if isinstance(expected, tuple if not loose else tuple | list):
        given = inner if tag == "t" else tree if loose else None
        return _equal_items(expected, given, loose)
    if isinstance(expected, list):
        return tag == "" and _equal_items(expected, tree, loose)
    if isinstance(expected, dict):
        return tag == "d" and _equal_tables(expected, inner, loose)
    if isinstance(expected, set | frozenset):
        same = tag == "s" and isinstance(inner, list) and len(inner) == len(expected)
        return same and {_scalar(item) for item in inner} == expected
    if tag in ("t", "s", "d") or isinstance(tree, list):
        return False
    return _equal_scalars(expected, _scalar(tree), loose)


def _equal_items(expected: Sequence[Any], given: Any, loose: bool) -> bool:
    if not isinstance(given, list) or len(given) != len(expected):
        return False
    return all(_equal(mine, other, loose) for mine, other in zip(expected, given, strict=True))


def _equal_tables(expected: dict[Any, Any], inner: Any, loose: bool) -> bool:
    if not isinstance(inner, list) or len(inner) != 2 * len(expected):
        return False
    given = {_scalar(key): value for key, value in zip(inner[::2], inner[1::2], strict=True)}
    if loose:
        given = {str(key): value for key, value in given.items()}
        expected = {str(key): value for key, value in expected.items()}
    return given.keys() == expected.keys() and all(_equal(expected[key], given[key], loose) for key in expected)


def _equal_scalars(expected: Any, given: Any, loose: bool) -> bool:
    if expected is None or (loose and isinstance(expected, bool) != isinstance(given, bool)):
        return expected is given
    close = loose and isinstance(expected, float) and isinstance(given, int | float | Fraction)
    if close and math.isfinite(expected):
        return math.isclose(expected, given, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return bool(expected == given)


def _tagged(tree: Any) -> tuple[str, Any]:
    if not isinstance(tree, dict):
        return "", None
    if len(tree) != 1:
        raise Unreadable("a table of several keys")
    return next(iter(tree.items()))


def _scalar(tree: Any) -> Any:
    """Return a value that can be a key: a number, a text, None, bytes, or a tuple or set of such."""
    tag, inner = _tagged(tree)
    if tag == "":
        if isinstance(tree, list):
            raise Unreadable("a list where a number or a text is expected")
        return tree
    if tag == "i":
        return int(inner, 16)
    if tag == "b":
        return bytes.fromhex(inner)
    if tag == "c":
        return complex(*map(float.fromhex, inner))
    if tag == "q":
        return Fraction(*map(_scalar, inner))
    if tag == "s" and len(inner) > _INNER_SET:
        raise Unreadable("a large set inside of a set or a key")
    if tag in ("t", "s"):
        return (tuple if tag == "t" else frozenset)(map(_scalar, inner))
    raise Unreadable(f"a tag {tag}")
