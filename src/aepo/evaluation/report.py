"""This module prints the result of an evaluation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def show(result: Mapping[str, Any]) -> None:
    """Print the result of an evaluation: one table, and under it the settings that made the numbers.

    Args:
        result: The content of evaluation.json.
    """
    console = Console()
    console.print(_table(result["results"]))
    for line in _settings_lines(result):
        console.print(line, markup=False, highlight=False)


def _table(results: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("benchmark", "k", "pass@k (95 %)", "maj@k (95 %)", box=SIMPLE_HEAD)
    for part in results:
        shown = part["scores"]
        ks = [name.removeprefix("pass@") for name in shown if name.startswith("pass@")]
        for about, k in zip_longest(_about(part), ks, fillvalue=""):
            table.add_row(about, k, _cell(shown.get(f"pass@{k}")), _cell(shown.get(f"maj@{k}")))
        table.add_section()
    return table


def _about(part: Mapping[str, Any]) -> list[str]:
    """Return the lines of the first column."""
    return [
        f"{part['benchmark']}, {part['problems']} problems",
        f"mean reward {part['scores']['reward']['mean']:.3f}",
        f"T {part['temperature']:g}, top-p {part['top_p']:g}, n {part['n']}",
        f"{part['mean_tokens']:.0f} tokens, {part['truncated']:.1%} cut",
        f"{part['failures']} failed",
    ]


def _cell(score: Mapping[str, float | None] | None) -> str:
    if score is None:
        return ""
    interval = "" if score["low"] is None else f" ({score['low']:.3f}-{score['high']:.3f})"
    return f"{score['mean']:.3f}{interval}"


def _source(text: str) -> str:
    """Return where problems come from, in words. A task is stored as the Python text of its settings."""
    task = re.match(r"([A-Z]\w*)\(", text)
    if task is None:
        return text
    rows = re.search(r"\b(?:eval|train|dataset)='([^']+)'", text)
    return f"the task {task[1].lower()}" + (f" ({rows[1]})" if rows else "")


def _settings_lines(result: Mapping[str, Any]) -> list[str]:
    settings = result["settings"]
    lines = [
        f"model {settings['model']} ({settings['folder']}, weights {settings['weights']}), seed {settings['seed']}"
    ]
    for benchmark in settings["benchmarks"]:
        source = _source(benchmark["source"])
        judged = (f"grader {benchmark['grader']}", f"right: {benchmark['right']}")
        parts = (source, f"prompt {benchmark['prompt']}", *judged)
        lines.append(f"{benchmark['name']}: {', '.join(parts)}, at most {benchmark['max_tokens']} tokens")
    lines.append(
        "pass@k unbiased; maj@k: ties shared; 95 % by bootstrap over problems; tokens: mean length; cut: share that "
        "reached the limit; failed: completions whose grading hung or crashed, counted as wrong"
    )
    return lines + [f"note: {note}" for note in result["notes"]]
