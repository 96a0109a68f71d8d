"""verl's reward function: 1.0 for a right answer in the box, else 0.0; graded as in the loop, in a process of its own.

A grade that hangs or crashes is 0.0, and its process is replaced. Needs `pip install 'aepo[math]'` on every node.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

from aepo.grading.math import MathGrader
from aepo.grading.pool import GradingPool

# verl grades in threads.
_one_at_a_time = threading.Lock()


@cache
def _pool() -> GradingPool:
    return GradingPool(MathGrader(), processes=1, seconds=5.0)


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None, **_: Any) -> float:
    """What verl calls for each completion."""
    with _one_at_a_time:
        return float(_pool().grade([(solution_str, ground_truth)])[0].correct)
