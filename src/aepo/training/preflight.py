"""`preflight` applies the preflight rules that all engines share to a run of the package's own training loop."""

from __future__ import annotations

from aepo.config import Config
from aepo.control.base import most_needed
from aepo.engines.capabilities import LOOP, Engine
from aepo.engines.preflight import Setup
from aepo.engines.preflight import preflight as sentences

# Number of problems, from the first on, that are searched for a reference solution.
ASKED = 32


def preflight(config: Config, engine: Engine = LOOP) -> list[str]:
    """Return one sentence for each problem that the settings alone show. An empty list means no problem."""
    return sentences(
        Setup(
            engine=engine,
            algorithm=config.algorithm,
            group_size=config.sampling.group_size,
            updates_per_rollout=config.optimizer.minibatches * config.optimizer.epochs,
            steps=config.steps,
            cuts=config.sampling.changes,
            solutions=_has_solutions(config),
        )
    )


def _has_solutions(config: Config) -> bool:
    """Return whether one of the first problems has a reference solution.

    The value is also true if the control does not need reference solutions.
    """
    if not most_needed(config.control).solutions:
        return True
    problems = (config.task.train_problem(config.seed, index) for index in range(ASKED))
    return any(config.task.solution(problem.data) is not None for problem in problems)
