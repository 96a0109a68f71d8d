"""This module formats a comparison as a table with a caption, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from aepo.analysis.compare.results import Comparison, Measure
from aepo.catalogue import plain
from aepo.evaluation.statistics import Interval, most_covered

COLUMNS = ("run", "pass@1", "pass@k", "entropy", "tracking error", "/ floor", "steps", "completions", "tokens", "CPU s")
# The index of the first column with a cost of the run.
REACHED = COLUMNS.index("steps")
# The number format of each measure, in the order of the columns.
FORMS = {
    "pass@1": ".3f",
    "pass@k": ".3f",
    "entropy": ".3f",
    "tracking_error": ".3f",
    "of_floor": ".2f",
    "steps": ".0f",
    "completions": ".0f",
    "tokens": ".0f",
    "seconds_cpu": ".1f",
}


def cells(found: Comparison, short: bool = False) -> list[tuple[str, ...]]:
    """Return the cells of each arm's line. The baseline has no differences.

    Args:
        found: The comparison.
        short: Whether to write differences on separate lines, for a terminal.
    """
    lines = []
    for label, measures in found.arms.items():
        named = {**measures, "pass@k": measures[f"pass@{found.k}"]}
        lines.append((label, *(_cell(named.get(name), form, short) for name, form in FORMS.items())))
    return lines


def caption(found: Comparison, unit: str, budget: int, seeds: Sequence[int]) -> str:
    """Return the caption. It says how the numbers were computed and what they cannot show."""
    return " ".join(
        [
            f"Equal cost: each run ends with the step that reaches {budget} sampled {unit}.",
            f"Seeds {', '.join(map(str, seeds))}.",
            f"In brackets: the difference to {found.baseline}, paired by problem and seed, and its 95 % interval "
            "(bootstrap over both).",
            f"pass@k: unbiased, k = {found.k} = samples of each problem at T = 1.",
            "entropy: nats per token, last third of the steps.",
            "tracking error: RMSE to the target there, nats; a baseline without target is held against the same one.",
            "/ floor: that error as a multiple of the readings' own standard error.",
            "CPU s: processor seconds of the steps.",
            *_few(len(seeds)),
        ]
    )


def _few(seeds: int) -> list[str]:
    """Return a warning about intervals from few seeds. The list is empty if there are enough seeds."""
    if seeds == 1:
        return ["One seed: the intervals are over problems and say nothing about another seed."]
    if seeds < 6:
        bound = f"{most_covered(seeds):.0%}"
        return [f"{seeds} seeds: an interval of what is measured once a run covers {bound} at most, whatever its name."]
    return []


def markdown(found: Comparison, unit: str, budget: int, seeds: Sequence[int]) -> str:
    """Return the table and its caption as Markdown. Special characters of a label are escaped."""
    lines = [COLUMNS, ("---",) * len(COLUMNS), *((plain(label), *numbers) for label, *numbers in cells(found))]
    below = caption(replace(found, baseline=plain(found.baseline)), unit, budget, seeds)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{below}\n"


def _cell(measure: Measure | None, form: str, short: bool) -> str:
    if measure is None:
        return ""
    return f"{measure.value.mean:{form}}{_difference(measure.difference, form, short)}"


def _difference(difference: Interval | None, form: str, short: bool) -> str:
    if difference is None:
        return ""
    first, between, to, last = ("\n(", ",\n", " to\n", ")") if short else (" (", ", ", " to ", ")")
    span = "" if difference.low is None else f"{between}{difference.low:+{form}}{to}{difference.high:+{form}}"
    return f"{first}{difference.mean:+{form}}{span}{last}"
