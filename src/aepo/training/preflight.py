"""What the shared preflight says of a run of this package's own loop."""

from __future__ import annotations

from aepo.config import Config
from aepo.control.base import most_needed
from aepo.engines.capabilities import LOOP, Engine
from aepo.engines.preflight import Setup
from aepo.engines.preflight import preflight as sentences

# How many of the first problems are asked for a reference solution.
ASKED = 32


def preflight(config: Config, engine: Engine = LOOP) -> list[str]:
    """Return a sentence for each thing that the settings alone say; an empty list is good."""
    return sentences(
        Setup(
            engine=engine,
            algorithm=config.algorithm,
            group_size=config.sampling.group_size,
            updates_per_rollout=config.optimizer.minibatches * config.optimizer.epochs,
            steps=config.steps,
            cuts={"sampling.top_p": config.sampling.top_p} if config.sampling.top_p < 1 else {},
            solutions=_has_solutions(config),
        )
    )


def _has_solutions(config: Config) -> bool:
    """Whether one of the first problems has a reference solution; true where the control does not ask for any."""
    if not most_needed(config.control).solutions:
        return True
    problems = (config.task.train_problem(config.seed, index) for index in range(ASKED))
    return any(config.task.solution(problem.data) is not None for problem in problems)
