"""Tasks by name."""

from aepo.tasks.base import Problem, Task
from aepo.tasks.paths import Paths

TASKS: dict[str, type[Task]] = {"paths": Paths}

__all__ = ["TASKS", "Paths", "Problem", "Task"]
