"""The tasks, and the table of them by name."""

from aepo.tasks.base import Problem, Task
from aepo.tasks.countdown import Countdown
from aepo.tasks.data import Data
from aepo.tasks.gym import Gym
from aepo.tasks.paths import Paths

TASKS: dict[str, type[Task]] = {"paths": Paths, "countdown": Countdown, "data": Data, "gym": Gym}

__all__ = ["TASKS", "Countdown", "Data", "Gym", "Paths", "Problem", "Task"]
