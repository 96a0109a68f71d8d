"""`page` makes the HTML page. The page is one file that loads no other file. All text from a run is escaped."""

from __future__ import annotations

import hashlib
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from aepo.analysis.report.assets import SCRIPT, STYLE
from aepo.analysis.report.figures import Shown
from aepo.analysis.report.numbers import Cell, Table
from aepo.analysis.report.samples import ShownSamples


@dataclass(frozen=True)
class Report:
    """`Report` holds the content of both documents, the HTML page and the Markdown file."""

    title: str
    """The title of the page."""
    made_by: str
    """The command line that made the report."""
    tables: Sequence[Table]
    """The tables."""
    figures: Sequence[Shown]
    """The figures."""
    samples: Sequence[ShownSamples]
    """The samples of the steps that are shown."""
    missing: Sequence[str]
    """A sentence for each missing number, file or figure."""
    facts: Sequence[tuple[str, str]] = ()
    """What was trained, on what and how: names and values."""


def page(report: Report, drawings: Mapping[str, bytes]) -> str:
    """Return the HTML page in plain ASCII, so that it is read correctly in every encoding.

    Args:
        report: The content of the report.
        drawings: The SVG of each figure, by the name of the figure.
    """
    parts = [
        f"<h1>{escape(report.title)}</h1>",
        f'<p class="faint">Made by <code>{escape(report.made_by)}</code></p>',
        *_facts(report.facts),
        *map(_table, report.tables),
        *(_figure(shown, drawings[shown.name]) for shown in report.figures),
        "<h2>Samples</h2>",
        *map(_samples, report.samples),
        *_missing(report.missing),
    ]
    text = f"{_head(report.title)}<body>\n" + "\n".join(parts) + f"\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    return text.encode("ascii", "xmlcharrefreplace").decode()


def _missing(sentences: Sequence[str]) -> list[str]:
    """Return the last section. A report to which nothing is missing has none."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return ["<h2>What is not here</h2>", f"<ul>{items}</ul>"] if items else []


def _facts(facts: Sequence[tuple[str, str]]) -> list[str]:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>\n" for name, value in facts)
    return [f"<dl>{items}</dl>"] if items else []


def _head(title: str) -> str:
    """Return the head. Its policy allows only images from data URLs, this style and this script (by their hashes)."""
    policy = f"default-src 'none'; img-src data:; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; base-uri 'none'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}; form-action \'none\'">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
    )


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _table(table: Table) -> str:
    heads = "".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in table.columns)
    rows = "".join(f"<tr>{''.join(map(_cell, row, table.columns))}</tr>\n" for row in table.rows)
    sorts = "<span>A click on a heading sorts.</span>"  # not on a narrow page, which has no head
    return (
        f'<div class="scroll"><table><caption>{escape(table.caption)}. {sorts}</caption>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>"
    )


def _cell(cell: Cell, column: str) -> str:
    name = f'data-name="{escape(column)}"'  # a narrow page has no head
    if isinstance(cell.order, str):
        return f'<td {name} data-order="{escape(cell.order)}">{escape(cell.text)}</td>'
    order = "" if math.isnan(cell.order) else "1e999" if math.isinf(cell.order) else repr(cell.order)
    return f'<td class="number" {name} data-order="{order}">{escape(cell.text)}</td>'


def _figure(shown: Shown, drawing: bytes) -> str:
    data = b64encode(drawing).decode()
    return (
        f'<h2>{escape(shown.title)}</h2>\n<figure><img alt="{escape(shown.title)}" '
        f'src="data:image/svg+xml;base64,{data}">\n<figcaption>{escape(shown.caption)}</figcaption></figure>'
    )


def _samples(chosen: ShownSamples) -> str:
    texts = "".join(
        f'<p class="faint">{escape(sample.about)}</p>\n'
        + f'<pre class="prompt">{escape(sample.prompt)}</pre>\n' * bool(sample.prompt)
        + f"<pre>{escape(sample.text)}</pre>\n"
        for sample in chosen.samples
    )
    summary = f"<summary>{escape(chosen.run)}, step {chosen.step}</summary>"
    return f"<details>{summary}\n{texts}</details>"
