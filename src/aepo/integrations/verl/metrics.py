"""This module prepares what verl logs about a step: numbers under `aepo/`, with the names of docs/metrics.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from aepo.integrations.verl.loss import SUMS
from aepo.types import Metric

PREFIX = "aepo/"


def take_sums(update: dict[str, Any]) -> dict[str, Metric]:
    """Remove the sums of the workers from verl's metrics of an update, and return them by name."""
    found = {}
    for name in SUMS:
        total, count = (update.pop(f"actor/{PREFIX}{name}_{part}") for part in ("total", "count"))
        found[name] = Metric(total, count)
    return found


def loggable(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a row as floats, under `aepo/`; other values are left out."""
    numbers = {PREFIX + name: float(value) for name, value in row.items() if isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}
