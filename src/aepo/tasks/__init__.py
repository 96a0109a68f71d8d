"""The tasks, and the table of them by name."""

from aepo.tasks.base import Problem, Task
from aepo.tasks.countdown import Countdown
from aepo.tasks.data import Data
from aepo.tasks.gym import Gym
from aepo.tasks.paths import Paths
from aepo.tasks.pictures import Pictures
from aepo.tasks.programs import Programs
from aepo.tasks.sentences import Sentences

TASKS: dict[str, type[Task]] = {
    "paths": Paths,
    "countdown": Countdown,
    "programs": Programs,
    "sentences": Sentences,
    "data": Data,
    "gym": Gym,
    "pictures": Pictures,
}

__all__ = ["TASKS", "Countdown", "Data", "Gym", "Paths", "Pictures", "Problem", "Programs", "Sentences", "Task"]
