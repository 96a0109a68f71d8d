"""This module writes the report as Markdown, for pull requests.

The words are the same as on the HTML page. The figures are separate files, and long samples are shortened.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from aepo.analysis.report.numbers import Table
from aepo.analysis.report.page import Report
from aepo.analysis.report.samples import ShownSamples
from aepo.catalogue import plain

# The largest number of characters of a sample. The HTML page shows the whole sample.
LONGEST = 600


def markdown(report: Report, figures: str) -> str:
    """Return the report as Markdown.

    Args:
        report: The content of the report.
        figures: The folder of the figures, relative to the document.
    """
    facts = "".join(f"- {name}: {plain(value)}\n" for name, value in report.facts).rstrip()
    parts = [f"# {plain(report.title)}", f"Made by\n\n{_fenced(report.made_by)}", *([facts] if facts else [])]
    parts += map(_table, report.tables)
    for shown in report.figures:
        picture = f"![{shown.title}]({figures}/{shown.name}.png)"
        parts.append(f"## {shown.title}\n\n{picture}\n\n{plain(shown.caption)}")
    parts += ["## Samples", *map(_samples, report.samples)]
    if report.missing:
        parts += ["## What is not here", "".join(f"- {plain(sentence)}\n" for sentence in report.missing).rstrip()]
    return ("\n\n".join(parts) + "\n").encode("utf-8", "replace").decode()


def _table(table: Table) -> str:
    lines = [map(plain, table.columns), ("---" for _ in table.columns)]
    lines += [(plain(cell.text) for cell in row) for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{plain(table.caption)}."


def _samples(chosen: ShownSamples) -> str:
    run = escape(" ".join(chosen.run.split()))
    parts = [f"<details><summary>{run}, step {chosen.step}</summary>"]
    for sample in chosen.samples:
        asked = [_fenced(_cut(sample.prompt))] if sample.prompt else []
        parts += [plain(sample.about), *asked, _fenced(_cut(sample.text))]
    return "\n\n".join([*parts, "</details>"])


def _cut(text: str) -> str:
    left = len(text) - LONGEST
    return text if left <= 0 else f"{text[:LONGEST]}\n[{left} characters more]"


def _fenced(text: str) -> str:
    """Return a code block. Its fence is longer than any sequence of backticks in the text."""
    fence = "`" * max(3, 1 + max(map(len, _backticks(text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def _backticks(text: str) -> Sequence[str]:
    return re.findall(r"`+", text)
