"""Standard output: the rule by which the text of a program equals the expected one."""

from __future__ import annotations

import math

TOLERANCE = 1e-6


def same_output(expected: str, given: str) -> bool:
    """Return whether two outputs are equal, token by token and line by line.

    White space at the end of a line and empty lines at the end of the text are ignored. The number of lines must be
    the same. A token may differ by a relative or absolute 1e-6 where the expected token is a number with a decimal
    point; everywhere else it must be the same text.
    """
    wanted, got = _lines(expected), _lines(given)
    return len(wanted) == len(got) and all(map(_same_line, wanted, got))


def _lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.rstrip().split("\n")]


def _same_line(expected: list[str], given: list[str]) -> bool:
    return len(expected) == len(given) and all(map(_same_token, expected, given))


def _same_token(expected: str, given: str) -> bool:
    if expected == given:
        return True
    if "." not in expected or len(given) > 400:
        return False
    wanted, got = _number(expected), _number(given)
    return wanted is not None and got is not None and math.isclose(wanted, got, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _number(token: str) -> float | None:
    # float() also reads "nan", "inf" and digits with underscores, none of which a program prints as a result.
    if not set(token) <= set("0123456789.+-eE"):
        return None
    try:
        number = float(token)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
