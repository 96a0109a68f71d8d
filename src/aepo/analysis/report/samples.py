"""`chosen` selects the samples that the report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aepo.analysis.report.runs import RunRecord
from aepo.training.folder import is_number


@dataclass(frozen=True)
class Text:
    """`Text` is one completion with a description."""

    about: str
    """The number of the prompt, and the rewards, the known answer, the advantage and the temperature if they are known.

    It also says whether the control drew the completion as an extra one, and whether the length limit cut it.
    """
    text: str
    """The completion."""
    prompt: str = ""
    """The text of the prompt; empty if the run did not store it."""


@dataclass(frozen=True)
class ShownSamples:
    """`ShownSamples` holds the samples of one step of one run."""

    run: str
    """The label of the run."""
    step: int
    """The number of the step."""
    samples: Sequence[Text]
    """The completions of the step."""


def chosen(runs: Sequence[RunRecord], steps: Sequence[int]) -> tuple[list[ShownSamples], list[str]]:
    """Return the samples of these steps.

    Args:
        runs: The runs.
        steps: The steps. If it is empty, the first, the middle and the last sampled step of each run are taken.

    Returns:
        The samples, and a sentence for each run or step without samples.
    """
    shown: list[ShownSamples] = []
    missing = []
    for run in runs:
        by_step: dict[int, list[Text]] = {}
        for row in run.samples:
            by_step.setdefault(row["step"], []).append(_text(row))
        known = sorted(by_step)
        wanted = steps or sorted({known[i] for i in (0, len(known) // 2, -1)} if known else [])
        if not known:
            missing.append(f"{run.label}: no samples")
            continue
        missing += [f"{run.label}: no samples of step {step}" for step in wanted if step not in by_step]
        shown += [ShownSamples(run.label, step, by_step[step]) for step in wanted if step in by_step]
    return shown, missing


def _text(row: Mapping[str, Any]) -> Text:
    parts = [f"prompt {row.get('prompt', '?')}"]
    for key, form in (("reward", "reward {:g}"), ("advantage", "advantage {:+.2f}"), ("temperature", "T {:g}")):
        value = row.get(key)
        if is_number(value):
            parts.append(form.format(value))
        if key == "reward":
            each = row.get("rewards")
            parts += (
                [f"{name} {one:g}" for name, one in each.items() if is_number(one)] if isinstance(each, dict) else []
            )
            parts += [f"known answer {row['answer']}"] if row.get("answer") not in (None, "") else []
    parts += [word for key, word in (("extra", "extra"), ("truncated", "cut at the limit")) if row.get(key)]
    return Text(", ".join(parts), str(row.get("completion", "")), str(row.get("prompt_text") or ""))
