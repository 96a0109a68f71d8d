"""This module draws the figures of the report, on a white background in every theme.

The colours are those of Okabe and Ito, which people with colour blindness can tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aepo.analysis.report.numbers import Group, largest_k, score
from aepo.analysis.report.runs import Curve, RunRecord
from aepo.entropy.by_position import STARTS
from aepo.evaluation.statistics import Interval
from aepo.training.folder import is_number

# The colours of Okabe and Ito without black, which the base model has, and without yellow, which is too pale on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLES = ("-", "-.", ":")
# The markers are filled, so that readers can tell them apart at a size of six points.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
# The reward is shown as the mean of this many steps.
SMOOTHED = 10
# In the figure by position, the beginning and the end of a run each have this share of its steps.
END = 0.1


@dataclass(frozen=True)
class Shown:
    """`Shown` is a figure with its title and its caption."""

    name: str
    """The file name without its extension."""
    title: str
    """The title."""
    caption: str
    """The description of the figure, also for readers who cannot see it."""
    canvas: Figure
    """The figure."""


def figures(runs: Sequence[RunRecord], found: Sequence[Group], base: Curve | None) -> tuple[list[Shown], list[str]]:
    """Return the figures that the data allow, and a sentence for each figure that they do not allow."""
    shown, left_out = [], []
    for name, (title, make) in FIGURES.items():
        made = make(runs, found, base)
        if isinstance(made, str):
            left_out.append(f"{title}: {made}")
        else:
            shown.append(Shown(name, title, made[1], made[0]))
    return shown, left_out


# The figure and its caption, or a sentence that says why the figure cannot be drawn.
Made = tuple[Figure, str] | str


def entropy(runs: Sequence[RunRecord], found: Sequence[Group], base: Curve | None) -> Made:
    """Draw entropy and target over the steps."""
    canvas, axes = _canvas("step", "entropy (nats per token)")
    for number, group in enumerate(found):
        drawn = _lines(axes, group, "entropy", number)
        for run in drawn[:1]:
            steps, targets = run.series("target_entropy")
            axes.plot(steps, targets, color=_colour(number), ls="--", lw=1.1, alpha=0.8)
    if not axes.lines:
        return "no run has an entropy yet"
    axes.set_ylim(bottom=0)
    return _legend(canvas, axes), "Solid: measured in each step. Dashed, same colour: the target."


def command(runs: Sequence[RunRecord], found: Sequence[Group], base: Curve | None) -> Made:
    """Draw the command of the control over the steps."""
    canvas, axes = _canvas("step", "command (-1 lower, +1 raise entropy)")
    for number, group in enumerate(found):
        _lines(axes, group, "command", number)
    if not axes.lines:
        return "no run has a control with a command"
    axes.axhline(0, color="0.5", lw=0.8)
    axes.set_ylim(-1.08, 1.08)
    without = [run.label for run in runs if not run.series("command")[1]]
    gaps = f" Without one: {', '.join(without)}." if without else ""
    return _legend(canvas, axes), f"What each step acted on, computed from the step before; no unit.{gaps}"


def reward(runs: Sequence[RunRecord], found: Sequence[Group], base: Curve | None) -> Made:
    """Draw the reward over the steps."""
    canvas, axes = _canvas("step", f"reward (mean of {SMOOTHED} steps)")
    for number, group in enumerate(found):
        _lines(axes, group, "reward", number, _smooth)
    if not axes.lines:
        return "no run has a reward yet"
    return _legend(canvas, axes), "Of the ordinary completions of training, at temperature 1."


def pass_at_k(runs: Sequence[RunRecord], found: Sequence[Group], base: Curve | None) -> Made:
    """Draw pass@k against k. Runs that differ only in their seed have one curve with a band."""
    canvas, axes = _canvas("k (samples of one problem)", "pass@k (share of problems)")
    made = []
    for number, group in enumerate(found):
        curve = group.curve()
        if curve:
            _points(axes, curve, _named(group), marker=_marker(number), **_look(number))
            made.append(curve.about)
            if curve.low:
                axes.fill_between(curve.ks, curve.low, curve.high, color=_colour(number), alpha=0.15, lw=0)
    if not made:
        return "no run was evaluated"
    words = [f"Last evaluation of each run ({'; '.join(dict.fromkeys(made))}), unbiased, T = 1."]
    if any(len(group.runs) > 1 for group in found):
        words.append("Means and bands (95 % by bootstrap) over runs that differ in their seed alone.")
    else:
        words.append("No bands: no two runs differ in their seed alone.")
    words.append(_base(axes, base, runs))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return _legend(canvas, axes), " ".join(words)


def _base(axes: Axes, base: Curve | None, runs: Sequence[RunRecord]) -> str:
    if base is None:
        return "Without the base model (see below)."
    _points(axes, base, "base model", marker="o", color="black", ls="--")
    words = f"Black: the base model, {base.about}"
    if base.low:
        axes.fill_between(base.ks, base.low, base.high, color="black", alpha=0.08, lw=0)
        words += ", band 95 % by bootstrap over problems"
    return f"{words}."


def performance(runs: Sequence[RunRecord], found: Sequence[Group], base: Curve | None) -> Made:
    """Draw pass@1 and the largest pass@k against the mean entropy of the last third of the steps.

    If nothing was evaluated, the reward is drawn instead.
    """
    evaluated = any(not math.isnan(score(run, 1)) for run in runs)
    sizes = sorted({1, largest_k(runs)}) if evaluated else [0]
    canvas = Figure(figsize=(8, 4), layout="constrained")
    drawn, joined = 0, 0
    for axes, k in zip(canvas.subplots(1, len(sizes), squeeze=False)[0], sizes, strict=True):
        _finish(axes, "entropy held (nats per token)", f"pass@{k} (share of problems)" if k else "reward")
        points = _points_held(found, [group.pass_at(k) if k else group.interval("reward") for group in found])
        joined += _join(axes, points)
        drawn += _against_entropy(axes, points)
        if base is not None and k in base.ks:
            axes.axhline(base.values[base.ks.index(k)], color="black", ls="--", lw=1, label="base model")
    if not drawn:
        return "no run has both an entropy and a score"
    seeds = any(len(group.runs) > 1 for group in found)
    words = [
        "Score of the last evaluation" if evaluated else "Reward, mean of the last third of the steps,",
        "against the entropy's mean over the last third of the steps.",
        "Bars: 95 % by bootstrap over runs alike but for the seed." if seeds else "No bars: no run is repeated.",
        "A grey line only joins runs that are alike but for their target, in order of entropy."
        if joined
        else "No two points differ in their target alone, so none are joined: give runs at several targets.",
        "Dashed: the base model." if base is not None else "",
    ]
    return _legend(canvas, axes), " ".join(filter(None, words))


@dataclass(frozen=True)
class _Held:
    """`_Held` is a point of the figure "performance"."""

    number: int
    """The number of the group among all groups. It determines colour and marker."""
    group: Group
    """The group."""
    entropy: Interval
    """The mean entropy of the last third of the steps, in nats per token."""
    score: Interval
    """The score: pass@k, or the reward."""


def _points_held(found: Sequence[Group], scores: Sequence[Interval]) -> list[_Held]:
    """Return the points of the groups that have both an entropy and a score."""
    numbered = enumerate(zip(found, scores, strict=True))
    points = [_Held(number, group, group.interval("entropy"), score) for number, (group, score) in numbered]
    return [point for point in points if not math.isnan(point.entropy.mean + point.score.mean)]


def _join(axes: Axes, points: Sequence[_Held]) -> int:
    """Draw a grey line through groups that differ only in their target, and return the number of lines."""
    families: dict[str, list[_Held]] = {}
    for point in sorted(points, key=lambda point: point.entropy.mean):
        families.setdefault(point.group.runs[0].family(), []).append(point)
    lines = [family for family in families.values() if len(family) > 1]
    for family in lines:
        axes.plot([p.entropy.mean for p in family], [p.score.mean for p in family], color="0.75", lw=1, zorder=1)
    return len(lines)


def _against_entropy(axes: Axes, points: Sequence[_Held]) -> int:
    """Draw each point with its error bars, and return the number of points."""
    for point in points:
        look: dict[str, Any] = {"color": _colour(point.number), "fmt": _marker(point.number)}
        for name, value in (("xerr", point.entropy), ("yerr", point.score)):
            if value.low is not None and value.high is not None:
                look[name] = [[value.mean - value.low], [value.high - value.mean]]
        label = _words(point.group.label)
        axes.errorbar(point.entropy.mean, point.score.mean, ms=6, capsize=3, label=label, **look)
    return len(points)


def by_position(runs: Sequence[RunRecord], found: Sequence[Group], base: Curve | None) -> Made:
    """Draw the token entropy by position, at the beginning and at the end of the runs.

    Each curve is the mean over runs that differ only in their seed.
    """
    canvas, axes = _canvas("token of the completion (first: 1)", "entropy (nats per token)")
    for number, group in enumerate(found):
        of = [[row["entropy_by_position"] for row in run.rows if row.get("entropy_by_position")] for run in group.runs]
        first = [profile for profiles in of for profile in profiles[: max(1, round(END * len(profiles)))]]
        last = [profile for profiles in of for profile in profiles[-max(1, round(END * len(profiles))) :]]
        for part, look in ((first, {"alpha": 0.45, "lw": 1.1}), (last, {"lw": 1.8, "label": _words(_named(group))})):
            means = _mean_profile(part)
            axes.plot([1 + start for start in STARTS[: len(means)]], means, **(_look(number) | (look if part else {})))
    if not any(len(line.get_xdata()) for line in axes.lines):  # type: ignore[arg-type]
        return "no run has entropy_by_position in its metrics"
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylim(bottom=0)
    share = f"{END:.0%} of the steps"
    words = f"Thick: mean of the last {share}; thin and pale: of the first {share}. Ordinary completions; "
    return _legend(canvas, axes), words + "far positions are reached by the long ones alone."


FIGURES: dict[str, tuple[str, Callable[[Sequence[RunRecord], Sequence[Group], Curve | None], Made]]] = {
    "entropy": ("Entropy against its target", entropy),
    "command": ("Command of the control", command),
    "reward": ("Reward", reward),
    "pass-at-k": ("pass@k against k", pass_at_k),
    "performance": ("Performance against entropy", performance),
    "position": ("Token entropy by position", by_position),
}


# --- drawing ------------------------------------------------------------------------------------------------


def _canvas(x: str, y: str) -> tuple[Figure, Axes]:
    canvas = Figure(figsize=(8, 4), layout="constrained")
    axes = canvas.subplots()
    _finish(axes, x, y)
    return canvas, axes


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _marker(number: int) -> str:
    """Return the marker of a group. Groups with the same colour have different markers."""
    return MARKERS[number // len(COLOURS) % len(MARKERS)]


def _look(number: int) -> dict[str, Any]:
    """Return the colour and the line style of a group. Groups with the same colour have different line styles."""
    return {"color": _colour(number), "ls": STYLES[number // len(COLOURS) % len(STYLES)]}


def _named(group: Group) -> str:
    """Return the name of a group: the label of a single run, or the label of the group with the number of its runs."""
    return group.runs[0].label if len(group.runs) == 1 else f"{group.label} ({len(group.runs)} runs)"


def _words(label: str) -> str:
    """Return a label that matplotlib shows literally.

    Otherwise dollar signs would make a formula, and a leading underscore would hide the label from the legend.
    """
    return "\u200b" * label.startswith("_") + label.replace("$", r"\$")


def _lines(
    axes: Axes, group: Group, key: str, number: int, change: Callable[[list[float]], list[float]] = list
) -> list[RunRecord]:
    """Draw a line for each run that has the series, and return those runs.

    The runs of a group have the same colour and line style, and one entry in the legend.
    """
    width, label = (1.6 if len(group.runs) == 1 else 0.9), _words(_named(group))
    for run in group.runs:
        steps, values = run.series(key)
        if values:
            marker = "." if len(values) == 1 else None
            axes.plot(steps, change(values), label=label, lw=width, marker=marker, **_look(number))
            label = "_repeat"
    return [run for run in group.runs if run.series(key)[1]]


def _points(axes: Axes, curve: Curve, label: str, **look: Any) -> None:
    axes.plot(curve.ks, curve.values, ms=4, lw=1.6, label=_words(label), **look)


def _legend(canvas: Figure, axes: Axes) -> Figure:
    """Add the legend below the axes, where it covers no line."""
    handles, labels = axes.get_legend_handles_labels()
    columns = max(1, min(4, 120 // (8 + max(map(len, labels), default=0))))
    rows = -(-len(labels) // columns)
    canvas.set_figheight(canvas.get_figheight() + 0.2 * rows)
    canvas.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return canvas


def _smooth(values: Sequence[float]) -> list[float]:
    windows = [values[max(0, end - SMOOTHED) : end] for end in range(1, len(values) + 1)]
    return [math.fsum(window) / len(window) for window in windows]


def _mean_profile(profiles: Sequence[Sequence[float | None]]) -> list[float]:
    """Return the mean entropy of each position bucket over the steps that have this bucket."""
    width = max(map(len, profiles), default=0)
    columns = [[p[i] for p in profiles if i < len(p)] for i in range(min(width, len(STARTS)))]
    numbers = [[value for value in column if value is not None and is_number(value)] for column in columns]
    return [math.fsum(column) / len(column) if column else math.nan for column in numbers]
