"""This module declares what each engine offers to a control and finds what it lacks for an algorithm.

An engine is a trainer that runs the controls of this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aepo.algorithm import Algorithm
from aepo.control.base import HOOKS, hooks, most_needed


@dataclass(frozen=True)
class Engine:
    """`Engine` says what an engine offers to a control."""

    name: str
    """The engine's name, as messages give it."""
    hooks: frozenset[str] = frozenset(HOOKS)
    """The hooks that the engine calls."""
    entropy_gradient: bool = True
    """Whether the engine can serve `Needs.entropy_gradient`."""
    kept: bool = True
    """Whether the engine can serve `Needs.kept`."""
    reference: bool = True
    """Whether the engine can serve `Needs.reference`."""
    solutions: bool = True
    """Whether the engine's prompts carry reference solutions (`Needs.solutions`)."""
    shuffles: bool = False
    """Whether the engine itself shuffles the rows of a step."""

    def lacks(self, algorithm: Algorithm) -> list[str]:
        """Return a sentence for each thing that the algorithm's control needs and this engine does not offer."""
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
# Hugging Face's TRL (integrations/trl) samples once in a step and keeps the number of rows: prompts x group size.
TRL = Engine(
    "trl",
    hooks=frozenset(HOOKS) - {"token_temperature", "follow_up", "replay"},
    reference=False,
    solutions=False,
    shuffles=True,
)
# verl's V1 trainer (integrations/verl) deletes its samples after the step. Its data has no reference solutions.
VERL = Engine(
    "verl",
    hooks=frozenset(HOOKS) - {"token_temperature", "replay"},
    kept=False,
    solutions=False,
)
ENGINES: Mapping[str, Engine] = {engine.name: engine for engine in (LOOP, TRL, VERL)}


def runs_on(algorithm: Algorithm) -> tuple[str, ...]:
    """Return the names of the engines that can run the algorithm."""
    return tuple(name for name, engine in ENGINES.items() if not engine.lacks(algorithm))
