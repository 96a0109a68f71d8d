"""What an engine (a trainer that runs these controls) offers, and in one sentence what it lacks for an algorithm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aepo.algorithm import Algorithm
from aepo.control import RPO
from aepo.control.base import MOMENTS, moments


@dataclass(frozen=True)
class Engine:
    """moments: those it calls. entropy_gradient, kept, reference: whether it can serve `Needs` of that kind.

    solutions: whether its prompts carry reference solutions.
    """

    name: str
    moments: frozenset[str] = frozenset(MOMENTS)
    entropy_gradient: bool = True
    kept: bool = True
    reference: bool = True
    solutions: bool = True

    def lacks(self, algorithm: Algorithm) -> list[str]:
        """A sentence for each thing that the algorithm's control needs and this engine has not."""
        control = algorithm.control
        needs = control.needs(control.initial_state())
        sentences = [
            f"the engine {self.name} has no moment {moment!r}, which {part.name} acts at"
            for part in control.parts
            for moment in moments(part)
            if moment not in self.moments
        ]
        served = {
            "a gradient through the entropy": (needs.entropy_gradient, self.entropy_gradient),
            "the entropy over a part of the vocabulary": (needs.kept is not None, self.kept),
            "log-probabilities of the base model": (needs.reference, self.reference),
            "reference solutions": (any(isinstance(part, RPO) for part in control.parts), self.solutions),
        }
        for what, (wanted, offered) in served.items():
            if wanted and not offered:
                sentences.append(f"the engine {self.name} has not {what}, without which {control.name} does nothing")
        return sentences


# This package's own loop (train.py) offers everything.
LOOP = Engine("loop")
# Hugging Face's TRL (integrations/trl): one round of sampling for a step, with as many rows as prompts x group size.
TRL = Engine(
    "trl",
    moments=frozenset(MOMENTS) - {"token_temperature", "follow_up", "replay"},
    reference=False,
    solutions=False,
)
# verl's V1 trainer (integrations/verl): what it has sampled is gone after the step; no reference solutions in its data.
VERL = Engine(
    "verl",
    moments=frozenset(MOMENTS) - {"token_temperature", "replay"},
    kept=False,
    solutions=False,
)
ENGINES: Mapping[str, Engine] = {engine.name: engine for engine in (LOOP, TRL, VERL)}


def runs_on(algorithm: Algorithm) -> tuple[str, ...]:
    """The engines that can run it."""
    return tuple(name for name, engine in ENGINES.items() if not engine.lacks(algorithm))
