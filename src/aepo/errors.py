"""This module defines how the package refuses a bad value."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from pathlib import PurePath


class InvalidValue(ValueError):
    """`InvalidValue` reports a value that cannot work.

    Its message is one line. It names the field, the value and what the value must be.

    Args:
        field: The name of the value, such as `control.target`.
        got: The value.
        wanted: What the value must be; it completes "must be ...".
    """

    def __init__(self, field: str, got: object, wanted: str) -> None:
        self.field, self.got, self.wanted = field, got, wanted
        shown = str(got) if isinstance(got, PurePath) else got
        super().__init__(f"{field}: got {shown!r}; must be {wanted}")


class UnknownName(InvalidValue):
    """`UnknownName` reports a name that does not exist, with the known ones and the nearest of them.

    Args:
        field: The name of the value, such as `control.law`.
        got: The unknown name.
        known: The known names.
        also: What may stand there besides the known names; it continues "must be one of ...".
        nearest: The name that is suggested; without it, the known name that looks most like `got`.
    """

    def __init__(self, field: str, got: object, known: Iterable[str], also: str = "", nearest: str = "") -> None:
        names = list(known)
        close = [nearest] if nearest else difflib.get_close_matches(str(got).lower(), names, n=1)
        meant = f"; did you mean {close[0]}?" if close else ""
        wanted = f"one of {', '.join(names)}{also}{meant}"
        super().__init__(field, got, wanted)
        self.args = (f"{field}: got {got!r}, which is unknown; must be {wanted}",)


class RunDiedError(RuntimeError):
    """`RunDiedError` ends a run that cannot learn anything any more. Its message is one line."""


def require(condition: bool, field: str, got: object, wanted: str) -> None:
    """Raise `InvalidValue` unless the condition holds. A `got` of NaN is always refused.

    Args:
        condition: What must be true of the value.
        field: The name of the value, such as `control.target`.
        got: The value.
        wanted: What the value must be; it completes "must be ...".

    Raises:
        InvalidValue: The condition is false, or `got` is NaN.
    """
    if not condition or (isinstance(got, float) and math.isnan(got)):
        raise InvalidValue(field, got, wanted)
