"""One way to refuse a bad value."""

from __future__ import annotations

import math


class InvalidValue(ValueError):
    """A value that cannot work, named so that one line says all: the field, what was got, what would do."""

    def __init__(self, field: str, got: object, wanted: str) -> None:
        self.field, self.got, self.wanted = field, got, wanted
        super().__init__(f"{field}: got {got!r}; must be {wanted}")


def require(condition: bool, field: str, got: object, wanted: str) -> None:
    """Raise `InvalidValue` unless the condition holds; a NaN never passes."""
    if not condition or (isinstance(got, float) and math.isnan(got)):
        raise InvalidValue(field, got, wanted)
