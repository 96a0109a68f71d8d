"""This module writes what a step drew and measured to a file, and reads it; it does not import verl.

`aepo.evidence=FOLDER` asks the trainer for FOLDER/step-N.json of every step, N from 0. The smoke test compares these
files with plain transformers (`aepo.integrations.verl.verdict`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aepo.control.base import Scored, State, Step
from aepo.integrations.verl.rows import RolloutRow
from aepo.integrations.verl.state import write_whole


@dataclass(frozen=True)
class EvidenceRow:
    """`EvidenceRow` is one completion of a step, whether it was trained on or not."""

    group: int
    """The number of its group in the step."""
    source: int
    """The number of the ordinary group with the same prompt; another number than `group` for an extra row."""
    temperature: float
    """The temperature that was asked of the rollout engine."""
    prompt: tuple[int, ...]
    """The tokens of the prompt."""
    tokens: tuple[int, ...]
    """The tokens of the completion."""
    mask: tuple[int, ...]
    """1 on the tokens that the policy wrote, else 0."""
    sampler: tuple[float, ...] | None
    """The rollout engine's own log-probabilities, nats; None if it returns none."""
    scores: tuple[float, ...] | None
    """verl's log-probabilities before the update (`old_log_probs`), nats; None for a row that was not scored."""

    @property
    def extra(self) -> bool:
        """Return whether the control added the row."""
        return self.group != self.source


@dataclass(frozen=True)
class Evidence:
    """`Evidence` is what one step drew and measured."""

    step: Step
    """The place of the step in the run."""
    before: State
    """The state of the control that the step acted on."""
    after: State
    """The state of the control after the step."""
    logged: Mapping[str, float]
    """The numbers of the step that the trainer logged, without their prefix `aepo/`."""
    rows: Sequence[EvidenceRow]
    """All completions that were drawn."""


def write(folder: Path, evidence: Evidence) -> None:
    """Write a step to `folder`; the folder is made if it does not exist."""
    write_whole(folder / f"step-{evidence.step.number}.json", json.dumps(asdict(evidence)))


def read(folder: Path) -> list[Evidence]:
    """Return the steps in `folder`, in their order."""
    found = [json.loads(file.read_text()) for file in folder.glob("step-*.json")]
    steps = [
        Evidence(
            step=Step(**kept["step"]),
            before=kept["before"],
            after=kept["after"],
            logged=kept["logged"],
            rows=[EvidenceRow(**{name: _fixed(value) for name, value in row.items()}) for row in kept["rows"]],
        )
        for kept in found
    ]
    return sorted(steps, key=lambda evidence: evidence.step.number)


def rows(drawn: Sequence[RolloutRow], keys: Sequence[str], scored: Scored, sampler: bool) -> list[EvidenceRow]:
    """Return the rows of a step.

    Args:
        drawn: All completions of the step.
        keys: verl's names of the rows of `scored`, in their order.
        scored: The mixed batch, as verl scored it.
        sampler: Whether the rollout engine returned log-probabilities.
    """
    places = {key: place for place, key in enumerate(keys)}
    logprobs = scored.old.logprobs

    def scores(row: RolloutRow) -> tuple[float, ...] | None:
        return tuple(logprobs[places[row.key], : len(row.tokens)].tolist()) if row.key in places else None

    return [
        EvidenceRow(
            group=row.group,
            source=row.source,
            temperature=row.temperature,
            prompt=row.prompt,
            tokens=row.tokens,
            mask=row.mask,
            sampler=row.logprobs if sampler else None,
            scores=scores(row),
        )
        for row in drawn
    ]


def _fixed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
