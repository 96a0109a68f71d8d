"""This module defines how the package refuses a bad value."""

from __future__ import annotations

import math


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
        super().__init__(f"{field}: got {got!r}; must be {wanted}")


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
