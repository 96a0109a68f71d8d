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


# Largest plausible learning rate, and the least: full fine-tuning of a model with this many parameters or more takes
# 1e-6 to 1e-5 in published RLVR recipes and LoRA about ten times that (docs/models.md); smaller models take more.
LARGE = 50_000_000
PLAUSIBLE_RATES = {"full": (1e-9, 1e-4), "lora": (1e-8, 2e-3), "small": (1e-8, 2e-2)}


def implausible_rate(lr: float, parameters: int, lora: bool) -> list[str]:
    """Return a sentence if a learning rate cannot be meant for the model.

    Args:
        lr: The learning rate of AdamW.
        parameters: The number of parameters of the model.
        lora: Whether an adapter is trained instead of the weights.
    """
    kind = "small" if parameters < LARGE else "lora" if lora else "full"
    low, high = PLAUSIBLE_RATES[kind]
    if low <= lr <= high:
        return []
    words = {"small": "a model of this size", "lora": "LoRA", "full": "full fine-tuning"}[kind]
    return [
        f"optimizer.lr = {lr:g} is {'above' if lr > high else 'below'} what trains {words} ({parameters / 1e6:.3g} M "
        f"parameters): {low:g} to {high:g} is plausible"
    ]


def _has_solutions(config: Config) -> bool:
    """Return whether one of the first problems has a reference solution.

    The value is also true if the control does not need reference solutions.
    """
    if not most_needed(config.control).solutions:
        return True
    problems = (config.task.train_problem(config.seed, index) for index in range(ASKED))
    return any(config.task.solution(problem.data) is not None for problem in problems)
