"""`aepo methods`: the table of all methods, for a terminal, for programs and for docs/methods/README.md.

And `plain`, for text from elsewhere in any Markdown that we write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import escape
from typing import Any

from aepo.control.base import moments
from aepo.engines.capabilities import runs_on
from aepo.methods import METHODS

COLUMNS = ("method", "paper", "sensor", "law", "actuator", "moments", "cost", "engines")

_HEADER = """# Every method

Made by `aepo methods --markdown > docs/methods/README.md`. A method is a point on four axes, advantage x surrogate x
aggregate x control; `--method a+b` joins two. "Cost" is beside GRPO's; "engines" are those that can run it.

Named by the papers around AEPO and left out: PKPO (2505.15201), CURE, CE-GPPO (2509.20712), entropy ratio clipping
(2512.05591), BAPO (2510.18927), EPO (2509.22576), ERA (2510.08549), ProRL (2505.24864), W-REINFORCE / NSR (2506.01347),
the unlikeliness reward (2506.02355), SEED-GRPO (2505.12346), SENT (2512.04359), Lp-Reg (2510.03222), flexible entropy
control (2602.09782), GTPO / GRPO-S (2508.04349), EMPG (2509.09265). Of EDGE-GRPO only the entropy scaling is built, not
the guided error correction.

"""


def plain(text: str) -> str:
    """One line that Markdown shows as it stands: no tag, link, cell border, heading or emphasis."""
    return re.sub(r"([\\`*_\[\]|#~!@])", r"\\\1", escape(" ".join(text.split()), quote=False))


def rows() -> list[dict[str, Any]]:
    """One mapping for each method; `page` is its file beside the table."""
    return [
        {
            "method": name,
            "title": method.title,
            "paper": method.paper,
            "sensor": method.sensor,
            "law": method.law,
            "actuator": method.actuator,
            "moments": list(moments(method.algorithm.control)),
            "cost": method.cost,
            "engines": list(runs_on(method.algorithm)),
            "page": f"{method.page}.md",
        }
        for name, method in METHODS.items()
    ]


def as_json() -> str:
    """The rows as a JSON list."""
    return json.dumps(rows(), indent=2)


def as_markdown() -> str:
    """The page docs/methods/README.md."""
    lines = [" | ".join(COLUMNS), " | ".join(["---"] * len(COLUMNS)), *map(_markdown_row, rows())]
    return _HEADER + "".join(f"| {line} |\n" for line in lines)


def _markdown_row(row: Mapping[str, Any]) -> str:
    paper = "-" if row["paper"] == "-" else f"[{row['paper']}](https://arxiv.org/abs/{row['paper']})"
    linked = {**row, "method": f"[{row['method']}]({row['page']}): {row['title']}", "paper": paper}
    return " | ".join(_cell(linked[column]) for column in COLUMNS)


def _cell(value: str | list[str]) -> str:
    return value if isinstance(value, str) else ", ".join(value) or "-"


def print_table() -> None:
    """For a person at a terminal."""
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
