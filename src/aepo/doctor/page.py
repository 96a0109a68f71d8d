"""`write_page` writes one HTML page: every finding with a figure of the series that it is about."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from aepo.doctor.checks.facts import missing
from aepo.doctor.types import Finding, Log, LogSeries
from aepo.errors import InvalidValue, require

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 150, 70, 12, 10, 22
# A figure draws the least and the largest value of so many pieces of the run, so that no spike is lost.
PIECES = 400
RELATED = {
    "collapse": ("entropy",),
    "entropy dip": ("entropy",),
    "explosion": ("entropy",),
    "entropy rose from a low start": ("entropy",),
    "reward lost": ("reward",),
    "reward does not move": ("reward",),
    "solved task": ("reward", "dead_groups", "entropy"),
    "dead groups": ("dead_groups", "no_advantage"),
    "truncation": ("truncated", "length"),
    "length collapse": ("length",),
    "length growing": ("length",),
    "length at the limit": ("length",),
    "nothing is trained": ("learning_rate", "gradient_norm"),
    "target missed": ("entropy", "target_entropy"),
    "target out of reach": ("entropy", "target_entropy", "alarm"),
}
"""Kind of finding -> the series that it is about, where its evidence names none."""
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h2 { overflow-wrap: anywhere; font-size: 1.1rem; border-top: 1px solid #bbb; padding-top: 1rem; }
h3 { font-size: 1rem; margin-bottom: 0; }
figure { margin: .5rem 0 1rem; } figcaption { font-size: .85rem; color: #555; }
svg { max-width: 100%; height: auto; background: #fafafa; } text { font-size: 11px; fill: #555; }
.line { fill: none; stroke: #2b6cb0; stroke-width: 1.3; } .mark { stroke: #c53030; stroke-dasharray: 4 3; }
.broken { fill: #c53030; } .span { fill: #c53030; opacity: .08; }
"""


def check_page(path: Path) -> None:
    """Refuse a page that cannot be written, before the logs are read.

    Raises:
        InvalidValue: The folder of the page does not exist, or the page is a folder.
    """
    require(path.parent.is_dir() and not path.is_dir(), "--html", str(path), "a file in a folder that exists")


def write_page(path: Path, examined: Sequence[tuple[Log, Sequence[Finding]]], left_out: Sequence[InvalidValue]) -> None:
    """Write the page. It needs no other file and no network.

    Args:
        path: The page.
        examined: The logs with their findings.
        left_out: Why other files or runs are not on the page.

    Raises:
        InvalidValue: The page cannot be written.
    """
    parts = ['<!doctype html><html lang="en"><meta charset="utf-8"><title>aepo doctor</title>']
    parts += [
        f"<style>{_STYLE}</style><h1>aepo doctor</h1>",
        *(part for log, findings in examined for part in _run(log, findings)),
    ]
    if left_out:
        parts.append("<h2>left out</h2>")
        parts += [f"<p>{escape(str(error.got))}: must be {escape(error.wanted)}</p>" for error in left_out]
    try:
        path.write_text("\n".join(parts) + "</html>\n", encoding="utf-8")
    except OSError as error:
        raise InvalidValue("--html", str(path), f"a file that can be written ({error.strerror})") from None


def _run(log: Log, findings: Sequence[Finding]) -> Iterator[str]:
    first, last = log.steps
    yield f"<h2>{escape(log.source)}</h2><p>{escape(log.framework)}, steps {first} to {last}"
    if "entropy" in log.series:
        yield f"; entropy (<code>{escape(log.keys.get('entropy', 'entropy'))}</code>) is {escape(log.entropy.says)}"
    yield "</p>" + "".join(f"<p>{escape(line)}</p>" for line in _said(log))
    for found in findings:
        at = "" if found.step is None else f" from step {found.step}"
        yield f"<h3>{escape(found.kind)}{at} ({found.confidence})</h3>"
        yield f"<p>{escape(found.evidence)}<br>{escape(found.advice)}</p>"
        for name in about(log, found):
            yield _figure(log.keys.get(name, name), log.series[name], found.step)
    if not any(found.serious for found in findings):
        yield "<p>no fault found in what was read</p>"
    if not findings:
        for name in [name for name in ("entropy", "reward") if log.series.get(name)]:
            yield _figure(log.keys.get(name, name), log.series[name], None, is_marked=False)


def _said(log: Log) -> Iterator[str]:
    """Yield what was read, what is not in the log, where the run was resumed, and what was left out."""
    yield f"read: {', '.join(sorted(log.series))}"
    if lacking := missing(log):
        yield f"not in the log, so not judged: {', '.join(lacking)}"
    if log.resumes:
        yield f"resumed at step {', '.join(map(str, log.resumes))}"
    yield from log.notes


def about(log: Log, finding: Finding) -> list[str]:
    """Return the names of the series that a finding is about: those that its evidence names, else those of its kind.

    Evidence names a series by its key in quotes, or as in "reward 0.5 to 0.1".
    """
    said = {*re.findall(r"`([^`]+)`", finding.evidence), *re.findall(r"(\w+) [-+.\de]+ to ", finding.evidence)}
    found = [name for name in log.series if name in said or log.keys.get(name) in said]
    found = [name for name in found or RELATED.get(finding.kind, ()) if log.get(name)]
    return found or [name for name in ("entropy", "reward") if log.get(name)][:1]


def _figure(key: str, series: LogSeries, step: int | None, is_marked: bool = True) -> str:
    """Draw a series; the finding begins at the dashed line, or holds for the whole run."""
    first, last = series[0][0], series[-1][0]
    values = [value for _, value in series if math.isfinite(value)] or [0.0]
    low, high = min(values), max(values)

    def across(at: float) -> float:
        return LEFT + (at - first) / ((last - first) or 1) * (WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - (value - low) / ((high - low) or 1) * (HEIGHT - TOP - BOTTOM)

    line = " ".join(f"{across(at):.1f},{up(value):.1f}" for at, value in _drawn(series))
    broken = [at for at, value in series if not math.isfinite(value)][:PIECES]
    begin = LEFT if step is None else min(max(across(step), LEFT), WIDTH - RIGHT)
    size = f'width="{WIDTH - RIGHT - begin:.1f}" height="{HEIGHT - TOP - BOTTOM}"'
    marks = [
        f'<rect class="span" x="{begin:.1f}" y="{TOP}" {size}/>',
        f'<line class="mark" x1="{begin:.1f}" x2="{begin:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>',
    ]
    body = [
        *(marks if is_marked else []),
        f'<polyline class="line" points="{line}"/>',
        *(f'<circle class="broken" cx="{across(at):.1f}" cy="{TOP + 3}" r="2.5"/>' for at in broken),
        f'<text x="{LEFT - 6}" y="{TOP + 8}" text-anchor="end">{high:.3g}</text>',
        f'<text x="{LEFT - 6}" y="{HEIGHT - BOTTOM}" text-anchor="end">{low:.3g}</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 6}">step {first}</text>',
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">{last}</text>',
    ]
    said = f"{escape(key)}" + (f"; {len(broken)} points are NaN or infinite (red dots)" if broken else "")
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">{"".join(body)}</svg>'
    return f"<figure>{svg}<figcaption>{said}</figcaption></figure>"


def _drawn(series: LogSeries) -> Iterator[tuple[int, float]]:
    """Yield the finite points, of a long series the least and the largest of each piece."""
    width = max(1, math.ceil(len(series) / PIECES))
    for begin in range(0, len(series), width):
        piece = [point for point in series[begin : begin + width] if math.isfinite(point[1])]
        if piece:
            ends = {min(piece, key=lambda point: point[1]), max(piece, key=lambda point: point[1])}
            yield from sorted(ends)
