"""This module prints the table of all methods: on a terminal, as JSON, and as docs/methods/README.md.

`plain` makes any text safe inside Markdown that the package writes.
"""

from __future__ import annotations

import difflib
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from aepo.control.base import hooks
from aepo.convert import SETTINGS
from aepo.engines.capabilities import runs_on
from aepo.errors import InvalidValue
from aepo.methods import METHODS
from aepo.reference import WIDTH, of_method

COLUMNS = ("method", "paper", "sensor", "law", "actuator", "hooks", "cost", "engines")
"""The columns of docs/methods/README.md."""
ARXIV = "https://arxiv.org/abs/"
"""What stands before an arXiv id in a link."""

# Where the pages are: in the installed package, and in a clone.
PAGES = (Path(__file__).parent / "pages", Path(__file__).parents[2] / "docs" / "methods")
# A terminal with at least so many columns shows all columns of the table.
WIDE = 120

# Named by the papers around AEPO and not built: name and arXiv id.
LEFT_OUT = {
    "PKPO": "2505.15201",
    "CURE": "-",
    "EPO": "2509.22576",
    "ERA": "2510.08549",
    "ProRL": "2505.24864",
    "the unlikeliness reward": "2506.02355",
    "SEED-GRPO": "2505.12346",
    "SENT": "2512.04359",
    "flexible entropy control": "2602.09782",
    "GTPO / GRPO-S": "2508.04349",
    "EMPG": "2509.09265",
}

_HEADER = """# Every method

`aepo methods --markdown > docs/methods/README.md` makes this page; `aepo methods NAME` shows one method with its
settings. A method is a point on four axes, advantage x surrogate x aggregate x control; `--method a+b` joins two.
"Cost" is what the method costs more than GRPO; "engines" are those that can run it. In the loop every method was run on
models of text and, two steps each, on a tiny random model of images ([images.md](../images.md)). Inside TRL five
methods were run on images, all others on text alone; inside verl all on text alone.

These methods are named by the papers around AEPO and left out: {left_out}.

On code (the built-in task `programs`) these were run: grpo, aepo and skywork-or1 ([results](../results.md#programs)).

Of EDGE-GRPO only the entropy scaling is built, not the guided error correction. Of 2603.11682, REPO-D and ADAPO are not
built: their formulas could not be found.

"""


def plain(text: str) -> str:
    """Return the text on one line, with every character escaped that Markdown or HTML would interpret.

    Tags, links, table borders, headings and emphasis in the text have no effect.
    """
    return re.sub(r"([\\`*_\[\]|#~!@])", r"\\\1", escape(" ".join(text.split()), quote=False))


def rows() -> list[dict[str, Any]]:
    """Return one row for each method, in the order of the table."""
    return [_row(name) for name in METHODS]


def one(name: str) -> dict[str, Any]:
    """Return the row of one method, with the values of its settings by dotted name, as `--set` takes them.

    Raises:
        InvalidValue: There is no method of this name; the message names the nearest one.
    """
    if name not in METHODS:
        near = "".join(difflib.get_close_matches(name.lower(), METHODS, n=1, cutoff=0.4))
        raise InvalidValue("method", name, "one that `aepo methods` lists" + f"; did you mean {near}?" * bool(near))
    return {**_row(name), "settings": dict(_flat(SETTINGS.to_dict(METHODS[name].algorithm)))}


def _row(name: str) -> dict[str, Any]:
    """Return the row of one method by column name. `page` is the file name of its page in docs/methods."""
    method = METHODS[name]
    return {
        "method": name,
        "title": method.title,
        "paper": method.paper,
        "sensor": method.sensor,
        "law": method.law,
        "actuator": method.actuator,
        "hooks": list(hooks(method.algorithm.control)),
        "cost": method.cost,
        "engines": list(runs_on(method.algorithm)),
        "page": f"{method.page}.md",
    }


def _flat(settings: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each setting of nested tables with its dotted name."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def as_json(name: str | None = None, found: Sequence[Mapping[str, Any]] | None = None) -> str:
    """Return JSON: a list of the rows in `found`, or of all; or one object, the row of `name` with its settings."""
    listed = rows() if found is None else found
    return json.dumps(listed if name is None else one(name), indent=2)


def as_lines(name: str) -> list[str]:
    """Return the lines that describe one method: its row, its page, and its settings with their meanings."""
    row = one(name)
    page = page_text(row["page"]).rstrip().splitlines()
    return [*_facts(row), *page, *([""] if page else []), *_settings(row)]


def show(name: str) -> None:
    """Print what `as_lines` returns. On a terminal, the page is formatted to its width."""
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console()
    if not console.is_terminal:
        print(*as_lines(name), sep="\n")
        return
    row = one(name)
    print(*_facts(row), sep="\n")
    console.print(Markdown(page_text(row["page"])))
    print("", *_settings(row), sep="\n")


def _facts(row: Mapping[str, Any]) -> list[str]:
    paper = "-" if row["paper"] == "-" else f"{ARXIV}{row['paper']}"
    shown = {**row, "paper": paper, "page": f"docs/methods/{row['page']}"}
    return [
        f"{row['method']}: {row['title']}",
        "",
        *(f"  {key:<9} {_cell(shown[key])}" for key in (*COLUMNS[1:], "page")),
        "",
    ]


def _settings(row: Mapping[str, Any]) -> list[str]:
    name = row["method"]
    texts = {each.name: each.meaning for section in of_method(name) for each in section.settings}
    lines = [f"settings (aepo train --method {name} --set NAME=VALUE)", ""]
    for key, value in row["settings"].items():
        meaning = textwrap.wrap(texts.get(key, ""), WIDTH - 6, break_on_hyphens=False)
        lines += [f"  {key} = {_value(value)}", *(f"      {line}" for line in meaning)]
    return lines


def page_text(name: str) -> str:
    """Return the Markdown text of a page of docs/methods; an empty text if the pages are not installed."""
    for folder in PAGES:
        if (folder / name).is_file():
            return (folder / name).read_text("utf-8")
    return ""


def _value(value: Any) -> str:
    """Return a setting's value in the form that `--set` reads."""
    return value if isinstance(value, str) else json.dumps(value)


def as_markdown() -> str:
    """Return the text of the page docs/methods/README.md."""
    lines = [" | ".join(COLUMNS), " | ".join(["---"] * len(COLUMNS)), *map(_markdown_row, rows())]
    return _HEADER.format(left_out=_left_out()) + "".join(f"| {line} |\n" for line in lines)


def _left_out() -> str:
    return ", ".join(name if paper == "-" else f"{name} ({paper})" for name, paper in LEFT_OUT.items())


def _markdown_row(row: Mapping[str, Any]) -> str:
    paper = "-" if row["paper"] == "-" else f"[{row['paper']}]({ARXIV}{row['paper']})"
    linked = {**row, "method": f"[{row['method']}]({row['page']}): {row['title']}", "paper": paper}
    return " | ".join(_cell(linked[column]) for column in COLUMNS)


def _cell(value: str | list[str]) -> str:
    return value if isinstance(value, str) else ", ".join(value) or "-"


def chosen(engine: str | None = None, words: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the rows of the methods that run on an engine and whose rows contain all the words.

    Raises:
        InvalidValue: No method fits.
    """
    found = [row for row in rows() if engine in (None, *row["engines"])]
    for word in words:
        fits = [row for row in found if word.lower() in json.dumps(row).lower()]
        if not fits:
            where = f" with {', '.join(words)}" if len(words) > 1 else ""
            raise InvalidValue("--word", word, f"a word of a method's row in `aepo methods`{where}")
        found = fits
    return found


def print_table(found: Sequence[Mapping[str, Any]]) -> None:
    """Print the table of some methods on a terminal. From `WIDE` columns on it shows how the methods work, too."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console()
    wide = console.width >= WIDE
    more = ("sensor > law > actuator", "cost", "paper") if wide else ()
    table = Table("method", "what it is", *more, "engines", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in (table.columns[0], table.columns[-1]):
        column.no_wrap = True
    for row in found:
        control = " > ".join(row[column] for column in ("sensor", "law", "actuator"))
        control = "-" if set(control) <= set("- >") else control
        table.add_row(
            row["method"], row["title"], *((control, row["cost"], row["paper"]) if wide else ()), _cell(row["engines"])
        )
    console.print(table)
    console.print(f"{len(found)} methods; `aepo methods NAME` shows one.", markup=False, highlight=False)
