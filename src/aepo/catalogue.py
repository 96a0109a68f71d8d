"""This module prints the table of all methods: on a terminal, as JSON, and as docs/methods/README.md.

`plain` makes any text safe inside Markdown that the package writes.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from aepo.control.base import hooks
from aepo.convert import SETTINGS
from aepo.engines.capabilities import runs_on
from aepo.errors import InvalidValue
from aepo.methods import METHODS

COLUMNS = ("method", "paper", "sensor", "law", "actuator", "hooks", "cost", "engines")
"""The columns of docs/methods/README.md."""
ARXIV = "https://arxiv.org/abs/"
"""What stands before an arXiv id in a link."""

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
"Cost" is what the method costs more than GRPO; "engines" are those that can run it.

These methods are named by the papers around AEPO and left out: {left_out}.

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


def as_json(name: str | None = None) -> str:
    """Return JSON: a list of all rows, or one object, the row of the method `name` with its settings."""
    return json.dumps(rows() if name is None else one(name), indent=2)


def as_lines(name: str) -> list[str]:
    """Return the lines that describe one method on a terminal: its row, its page and its settings."""
    row = one(name)
    paper = "-" if row["paper"] == "-" else f"{ARXIV}{row['paper']}"
    shown = {**row, "paper": paper, "page": f"docs/methods/{row['page']}"}
    facts = [f"  {key:<9} {_cell(shown[key])}" for key in (*COLUMNS[1:], "page")]
    settings = [f"  {key} = {_value(value)}" for key, value in row["settings"].items()]
    title = f"{name}: {row['title']}"
    return [title, "", *facts, "", f"settings (aepo train --method {name} --set NAME=VALUE)", "", *settings]


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


def print_table() -> None:
    """Print the table of all methods on a terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table("method", "paper", "sensor > law > actuator", "cost", "engines")
    for column in table.columns[:2]:
        column.no_wrap = True
    for row in rows():
        control = " > ".join(row[column] for column in ("sensor", "law", "actuator"))
        control = row["title"] if set(control) <= set("- >") else control
        table.add_row(row["method"], row["paper"], control, row["cost"], _cell(row["engines"]))
    Console().print(table)
