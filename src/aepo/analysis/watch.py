"""`watch` shows a running or finished run in the terminal. It reads only the run folder."""

from __future__ import annotations

import math
import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from aepo.analysis.report.runs import RunRecord, is_run, read_run, readable
from aepo.bars import duration
from aepo.errors import require
from aepo.training.folder import METRICS, is_number

# The bits of the dots of a braille character by column and row. They are added to U+2800.
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
# A run may have stopped if it has written nothing for this many of its slowest steps and for this many seconds.
SILENT_STEPS, SILENT_SECONDS = 10, 60.0
# A terminal with at least this many columns shows the numbers in two columns.
WIDE = 78
# A series of pairs (step, y). y is NaN where there is no number.
Series = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Picture:
    """`Picture` holds the state of a run at one point in time."""

    run: RunRecord
    """The content of the run folder."""
    quiet: float = 0.0
    """The seconds since the run last wrote a row."""


def look(folder: Path) -> Picture:
    """Read the folder as it is now.

    Raises:
        InvalidValue: The path is not a run folder.
    """
    metrics = folder / METRICS
    quiet = time.time() - metrics.stat().st_mtime if metrics.exists() else 0.0
    return Picture(read_run(folder, folder.resolve().name, samples=False), quiet)


def watch(folder: Path, once: bool, every: float) -> None:
    """Draw the run until it is finished or the user presses the key q.

    Args:
        folder: The run folder. On a terminal, a run that is not there yet is waited for.
        once: Whether to draw the run only once. Without a terminal it is always drawn only once.
        every: The time between two updates, in seconds.
    """
    require(0.1 <= every <= 3600, "--every", every, "seconds from 0.1 to 3600")
    console = Console()
    if console.is_terminal and not once and not _may_appear(folder, every, console):
        return
    picture = look(folder)
    if once or picture.run.finished or not console.is_terminal:
        console.print(frame(picture, console))
        return
    with (
        suppress(KeyboardInterrupt),
        _keys() as pressed,
        Live(frame(picture, console), console=console, auto_refresh=False) as live,
    ):
        while not picture.run.finished and pressed(every) != "q":
            picture = look(folder)
            live.update(frame(picture, console), refresh=True)


def _may_appear(folder: Path, every: float, console: Console) -> bool:
    """Wait until there is a run in the folder. Return False if the user ends the wait.

    A folder of runs, and a file, are not waited for: `look` refuses them.
    """
    if is_run(folder) or folder.is_file() or (folder.is_dir() and any(map(is_run, folder.iterdir()))):
        return True
    with suppress(KeyboardInterrupt), _keys() as pressed:
        console.print(f"waiting for a run in {readable(str(folder))} (q ends)", markup=False, highlight=False)
        while not is_run(folder):
            if pressed(every) == "q":
                return False
        return True
    return False


def frame(picture: Picture, console: Console) -> Group:
    """Return everything that is shown. It fits the width of the console and uses only characters of its encoding."""
    plain = console.encoding.lower().replace("-", "") != "utf8"
    head = _text(picture.run.label, f"  {_progress(picture.run)}", plain, "bold")
    if not picture.run.rows:
        return Group(head, Text("no finished step yet"))
    numbers, warnings = _numbers(picture.run.rows[-1], console.width), list(_warnings(picture))
    # Five more lines are needed: the head (up to two lines), the axis, the legend and the cursor line.
    height = console.height - len(numbers) - len(warnings) - 5
    chart = _chart(picture.run.rows, console.width, max(4, min(12, height)), plain)
    return Group(head, *chart, *numbers, *warnings)


def _text(name: str, rest: str, plain: bool, style: str) -> Text:
    """Return a file name, followed by `rest`. Characters that the terminal cannot show become "?"."""
    shown = "".join(c if c.isprintable() else "?" for c in name)
    shown = shown.encode("ascii", "replace").decode() if plain else readable(shown)
    return Text(shown, style=style).append(rest, style="")


# --- words and numbers --------------------------------------------------------------------------------------


def _progress(run: RunRecord) -> str:
    done, seconds = len(run.rows), run.series("seconds")[1][-20:]
    if run.steps is None or run.steps_left is None:
        lacks = "steps in config.toml" if run.config else "config.toml"
        return f"step {done} (no {lacks}: the planned steps are unknown)"
    if run.stopped_early:
        return f"step {done}, finished: budget reached"
    parts = [f"step {done} of {run.steps} ({done / run.steps:.0%})"]
    if run.finished:
        parts.append("finished")
    elif seconds:
        left = math.fsum(seconds) / len(seconds) * run.steps_left
        parts.append(f"about {duration(left)} left, evaluations aside")
    return ", ".join(parts)


def _numbers(row: Mapping[str, Any], width: int) -> list[Text]:
    """Return the last values with their units, in two columns if there is room."""
    cells = [f"{label:<12} {value}" for label, value in _values(row)]
    rows = -(-len(cells) // 2) if width >= WIDE else len(cells)
    lines = ("".join(f"{cell:<38}" for cell in cells[number::rows]).rstrip() for number in range(rows))
    return [Text(line, no_wrap=True, overflow="crop") for line in lines]


def _values(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, label, form in (
        ("entropy", "entropy", "{:.3f} nats per token"),
        ("target_entropy", "target", "{:.3f} nats per token"),
        ("error", "error", "{:+.3f} nats per token"),
        ("command", "command", "{:+.2f}"),
        ("reward", "reward", "{:.3f}"),
        ("dead_groups", "dead groups", "{:.0%}"),
        ("mismatch", "mismatch", "{:.2g} nats"),
        ("length", "length", "{:.1f} tokens"),
        ("truncated", "cut short", "{:.0%}"),
        ("seconds", "step time", "{:.2f} s"),
    ):
        if is_number(row.get(key)):
            limit = " (at its limit)" if key == "command" and row.get("saturated") else ""
            yield label, form.format(row[key]) + limit
        elif key in row:
            yield label, "-"
    if is_number(row.get("extra_completions")):
        heat = row.get("extra_temperature")
        yield (
            "extra",
            f"{row['extra_completions']} drawn, {row.get('extra_used', '?')} used"
            + (f", T {heat:g}" if is_number(heat) else ""),
        )


def _warnings(picture: Picture) -> Iterator[Text]:
    alarms = [row["step"] for row in picture.run.rows if row.get("alarm")]
    last = picture.run.rows[-1]
    if last.get("alarm"):
        yield Text(f"alarm: the control is at its limit and the error stays (step {last['step']})", style="bold red")
    elif alarms:
        yield Text(f"alarm in {len(alarms)} earlier steps, last in step {alarms[-1]}", style="red")
    failures = math.fsum(picture.run.series("reward_failures")[1])
    if failures:
        yield Text(f"{failures:.0f} gradings failed so far", style="red")
    slowest = max(picture.run.series("seconds")[1], default=0.0)
    if not picture.run.finished and picture.quiet > max(SILENT_SECONDS, SILENT_STEPS * slowest):
        yield Text(f"no new step for {duration(picture.quiet)}: stopped, or in a long evaluation", style="yellow")


# --- the line chart -----------------------------------------------------------------------------------------


def _chart(rows: Sequence[Mapping[str, Any]], width: int, height: int, plain: bool) -> list[Text]:
    """Return the chart of entropy and target over the steps, with the axis in nats."""
    entropy, target = (_series(rows, key) for key in ("entropy", "target_entropy"))
    numbers = [y for series in (entropy, target) for _, y in series if math.isfinite(y)]
    if not numbers:
        return [Text("no entropy in these rows")]
    low, high = min(numbers), max(numbers)
    margin = 0.05 * (high - low) or 0.05
    low, high = max(0.0, low - margin), high + margin
    columns = max(10, width - 8)
    draw = _characters if plain else _braille
    lines = []
    for number, cells in enumerate(draw(entropy, target, columns, height, low, high)):
        # The number beside a line belongs to the middle of the line. A line of braille is four dots high.
        share = number / (height - 1) if plain else (4 * number + 1.5) / (4 * height - 1)
        level = high - (high - low) * share
        lines.append(Text(f"{level:6.3f} ", style="dim", no_wrap=True, end="\n").append_text(cells))
    first, last = str(rows[0]["step"]), str(rows[-1]["step"])
    lines.append(Text(f"{'step':>6} {first}{last:>{max(1, columns - len(first))}}", style="dim", no_wrap=True))
    legend = Text("       entropy", style="cyan", no_wrap=True)
    if any(math.isfinite(y) for _, y in target):
        legend.append("  target", style="yellow")
    if plain:
        legend.append("  (* entropy, - target)", style="dim")
    return [*lines, legend.append("  nats per token", style="dim")]


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> Series:
    return [(row["step"], float(row[key]) if is_number(row.get(key)) else math.nan) for row in rows]


def _braille(entropy: Series, target: Series, columns: int, height: int, low: float, high: float) -> Iterator[Text]:
    """Return lines of Braille characters: two dots for each column and four for each row.

    If both lines pass through a cell, the cell has the colour of the entropy.
    """
    own, wanted = (set(_dots(s, 2 * columns, 4 * height, low, high)) for s in (entropy, target))
    for row in range(height):
        line = Text(no_wrap=True)
        for column in range(columns):
            places = [(x, y, 2 * column + x, 4 * row + y) for x in range(2) for y in range(4)]
            bits = sum(DOTS[x][y] for x, y, *dot in places if tuple(dot) in own or tuple(dot) in wanted)
            passed = any(tuple(dot) in own for _, _, *dot in places)
            line.append(chr(0x2800 + bits) if bits else " ", style="cyan" if passed else "yellow")
        yield line


def _characters(entropy: Series, target: Series, columns: int, height: int, low: float, high: float) -> Iterator[Text]:
    """Return lines with one character for each cell, for terminals that cannot show Braille."""
    own, wanted = (set(_dots(s, columns, height, low, high)) for s in (entropy, target))
    for row in range(height):
        cells = ("*" if (x, row) in own else "-" if (x, row) in wanted else " " for x in range(columns))
        yield Text("".join(cells), no_wrap=True)


def _dots(series: Series, width: int, height: int, low: float, high: float) -> Iterator[tuple[int, int]]:
    """Return the dots of a line. Steps in the same column are averaged.

    The line has a gap where a column has no number.
    """
    steps = [step for step, _ in series]
    span = max(1, steps[-1] - steps[0])
    columns: dict[int, list[float]] = {}
    for step, y in series:
        columns.setdefault(round((step - steps[0]) / span * (width - 1)), []).append(y)
    before: tuple[int, int] | None = None
    for x, values in sorted(columns.items()):
        known = [y for y in values if math.isfinite(y)]
        if not known:
            before = None
            continue
        share = (high - math.fsum(known) / len(known)) / (high - low)
        here = (x, min(height - 1, max(0, round(share * (height - 1)))))
        yield from _between(before or here, here)
        before = here


def _between(start: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Return the dots of a straight line, including both ends."""
    count = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    for i in range(count + 1):
        yield round(start[0] + (end[0] - start[0]) * i / count), round(start[1] + (end[1] - start[1]) * i / count)


# --- keys ---------------------------------------------------------------------------------------------------


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Yield a function that waits for a key, for a given number of seconds at most.

    The function returns the key, or an empty text if no key was pressed. The terminal is restored at the end.
    """
    if os.name != "posix" or not sys.stdin.isatty():
        yield _wait
        return
    import termios
    import tty

    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)
    try:
        tty.setcbreak(file)
        yield lambda seconds: _key(file, seconds)
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)


def _wait(seconds: float) -> str:
    time.sleep(seconds)
    return ""


def _key(file: int, seconds: float) -> str:
    ready, _, _ = select.select([file], [], [], seconds)
    if not ready:
        return ""
    # The end of the input (a closed connection) also ends `watch`.
    return os.read(file, 1).decode("latin-1") or "q"
