"""Tasks by name."""

from aepo.tasks.base import Problem, Task, safe_reward
from aepo.tasks.countdown import Countdown
from aepo.tasks.paths import Paths

TASKS: dict[str, type[Task]] = {"paths": Paths, "countdown": Countdown}

__all__ = ["TASKS", "Countdown", "Paths", "Problem", "Task", "safe_reward"]
