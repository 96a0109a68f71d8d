"""What an engine (a trainer that runs these controls) offers, and in one sentence what it lacks for an algorithm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aepo.algorithm import Algorithm
from aepo.control.base import HOOKS, hooks, most_needed


@dataclass(frozen=True)
class Engine:
    """hooks: those it calls. entropy_gradient, kept, reference: whether it can serve `Needs` of that kind.

    solutions: whether its prompts carry reference solutions. shuffles: whether it shuffles the rows of a step itself.
    """

    name: str
    hooks: frozenset[str] = frozenset(HOOKS)
    entropy_gradient: bool = True
    kept: bool = True
    reference: bool = True
    solutions: bool = True
    shuffles: bool = False

    def lacks(self, algorithm: Algorithm) -> list[str]:
        """A sentence for each thing that the algorithm's control needs and this engine has not."""
        control = algorithm.control
        needs = most_needed(control)
        sentences = [
            f"the engine {self.name} has no hook {hook!r}, which {part.name} acts at"
            for part in control.parts
            for hook in hooks(part)
            if hook not in self.hooks
        ]
        served = {
            "a gradient through the entropy": (needs.entropy_gradient, self.entropy_gradient),
            "the entropy over a part of the vocabulary": (needs.kept is not None, self.kept),
            "log-probabilities of the base model": (needs.reference, self.reference),
            "reference solutions": (needs.solutions, self.solutions),
        }
        for what, (wanted, offered) in served.items():
            if wanted and not offered:
                sentences.append(f"the engine {self.name} has not {what}, without which {control.name} does nothing")
        return sentences


# This package's own loop (`aepo.training`) offers everything.
LOOP = Engine("loop")
# Hugging Face's TRL (integrations/trl): one round of sampling for a step, with as many rows as prompts x group size.
TRL = Engine(
    "trl",
    hooks=frozenset(HOOKS) - {"token_temperature", "follow_up", "replay"},
    reference=False,
    solutions=False,
    shuffles=True,
)
# verl's V1 trainer (integrations/verl): what it has sampled is gone after the step; no reference solutions in its data.
VERL = Engine(
    "verl",
    hooks=frozenset(HOOKS) - {"token_temperature", "replay"},
    kept=False,
    solutions=False,
)
ENGINES: Mapping[str, Engine] = {engine.name: engine for engine in (LOOP, TRL, VERL)}


def runs_on(algorithm: Algorithm) -> tuple[str, ...]:
    """The engines that can run it."""
    return tuple(name for name, engine in ENGINES.items() if not engine.lacks(algorithm))
