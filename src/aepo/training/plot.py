"""`plot_run` draws figures of runs as PNG and SVG: entropy with its target, and reward.

matplotlib is imported with the first figure, so that a step runs where it is missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aepo.training.folder import METRICS, read_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#4c4c4c", "#d1495b", "#edae49", "#00798c", "#5f4b8b", "#66a182")


def plot_run(run: Path) -> None:
    """Write plot.png and plot.svg into the run folder. A run without rows gets no plot."""
    rows = read_rows(run / METRICS)
    if rows:
        save(figure({run.name: rows}), run / "plot")


def figure(runs: Mapping[str, Sequence[Mapping[str, Any]]], title: str | None = None) -> Figure:
    """Return a figure with entropy (solid) and target (dashed) above and reward below.

    Args:
        runs: The rows of each run's metrics.jsonl by the run's label. Each run has its own colour.
        title: The title of the figure.
    """
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(8, 6), layout="constrained")
    entropy, reward = canvas.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for (label, rows), colour in zip(runs.items(), COLOURS * len(runs), strict=False):
        steps = [row["step"] for row in rows]
        entropy.plot(steps, _gaps([row["entropy"] for row in rows]), color=colour, label=label, lw=1.6)
        targets = [row["target_entropy"] for row in rows]
        if any(target is not None for target in targets):
            entropy.plot(steps, _gaps(targets), color=colour, ls="--", lw=1.0, alpha=0.7)
        reward.plot(steps, _smooth([row["reward"] for row in rows]), color=colour, lw=1.4)
    entropy.set_ylabel("entropy (nats per token)")
    entropy.set_ylim(bottom=0)
    reward.set_ylabel("reward (mean of 10 steps)")
    reward.set_xlabel("step")
    if title:
        entropy.set_title(title)
    entropy.legend(frameon=False, loc="upper right", ncols=2)
    for axes in (entropy, reward):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    return canvas


def _gaps(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def save(canvas: Figure, stem: Path) -> None:
    """Write a figure to two files: `stem` with the suffix .png and `stem` with the suffix .svg."""
    canvas.savefig(stem.with_suffix(".png"), dpi=150)
    canvas.savefig(stem.with_suffix(".svg"))


def _smooth(values: Sequence[float | None], window: int = 10) -> list[float]:
    """Return the mean of the last `window` values at each place; a value of None does not count."""
    means = []
    for end in range(1, len(values) + 1):
        recent = [value for value in values[max(0, end - window) : end] if value is not None]
        means.append(sum(recent) / len(recent) if recent else math.nan)
    return means
