"""An evaluation's result for people: one table, and under it what made the numbers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

# A line about the progress at most this often, seconds.
LINE_EVERY = 5.0


class Progress:
    """Says from time to time how far it is."""

    def __init__(self, total: int, done: int) -> None:
        self._total, self._first, self._done = total, done, done
        self._begun = self._said = time.monotonic()
        if 0 < done < total:
            print(f"going on behind {done} of {total} completions", flush=True)

    def add(self, count: int, where: str) -> None:
        """So many more completions are on the disk."""
        self._done += count
        now = time.monotonic()
        if now - self._said >= LINE_EVERY:
            self._said = now
            left = (now - self._begun) / (self._done - self._first) * (self._total - self._done)
            print(f"{where}: {self._done} of {self._total} completions, {left:.0f} s left", flush=True)


def show(result: Mapping[str, Any]) -> None:
    """Print the table."""
    console = Console()
    console.print(_table(result["results"]))
    for line in _made_by(result):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


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
    """Lines for the first column."""
    return [
        f"{part['benchmark']}, {part['problems']} problems",
        f"T {part['temperature']:g}, top-p {part['top_p']:g}, n {part['n']}",
        f"{part['mean_tokens']:.0f} tokens, {part['truncated']:.1%} cut",
        f"{part['failures']} failed",
    ]


def _cell(score: Mapping[str, float | None] | None) -> str:
    if score is None:
        return ""
    interval = "" if score["low"] is None else f" ({score['low']:.3f}-{score['high']:.3f})"
    return f"{score['mean']:.3f}{interval}"


def _made_by(result: Mapping[str, Any]) -> list[str]:
    made = result["settings"]
    lines = [f"model {made['model']} ({made['folder']}, weights {made['weights']}), seed {made['seed']}"]
    for asked in made["benchmarks"]:
        source = asked["source"] if len(asked["source"]) <= 100 else f"{asked['source'][:97]}..."
        parts = (source, f"prompt {asked['prompt']}", f"grader {asked['grader']}")
        lines.append(f"{asked['name']}: {', '.join(parts)}, at most {asked['max_tokens']} tokens")
    lines.append(
        "pass@k unbiased; maj@k: ties shared; 95 % by bootstrap over problems; tokens: mean length; cut: share that "
        "reached the limit; failed: completions whose grading hung or crashed, counted as wrong"
    )
    return lines + [f"note: {note}" for note in result["notes"]]
