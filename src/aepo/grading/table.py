"""The table of graders by name."""

from __future__ import annotations

from aepo.grading.base import Grader
from aepo.grading.exact import ExactGrader
from aepo.grading.math import MathGrader
from aepo.grading.qwen import QwenGrader

GRADERS: dict[str, type[Grader]] = {kind.name: kind for kind in (MathGrader, ExactGrader, QwenGrader)}
