"""Make docs/settings.md, the page of every setting: `python docs/make_settings.py > docs/settings.md`.

Everything on the page comes from the dataclasses: names, types and defaults from the fields, meanings from the
docstrings under the fields, and the methods from the table of presets.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from aepo.config import RUN_SETTINGS, Config
from aepo.control import schedules
from aepo.grading.base import Grader
from aepo.loss.aggregates import AGGREGATES
from aepo.methods import METHODS
from aepo.reference import CHOICES, default_of, fields, first_sentence, kind_in_words, meanings, plain_value
from aepo.tasks import Task
from aepo.tasks.rewards import Verifier

HEADER = """# Settings

The settings of a run come from four places, and later ones win: the preset of the method, the TOML file, the options of
`aepo train`, and `--set NAME=VALUE`. The run folder keeps all of them in `config.toml`.

```
aepo train study.toml --set optimizer.lr=1e-4 --set control.law=switch --set control.law.tie=high
```

- `none` stands for "no value".
- An open choice (such as `control`) is a name, or a table whose `name` says which one. Its other settings belong to
  that choice: `control.threshold` exists only while the chosen control has it.
- A control that consists of two (`--method aepo+dynamic-sampling`) passes a setting on to the part that has it.
- A file may name another one as `extends`; its own tables are laid over those of the other file.

`python docs/make_settings.py > docs/settings.md` makes this page from the docstrings of the fields. "Methods" are the
presets (`aepo methods`) that read a setting; "presets" lists the values of those that depart from the default.

"""


def page() -> str:
    """Return the whole page."""
    return HEADER + "\n\n".join([*_run(), _aggregates(), *_choices(), _schedules()]) + "\n"


# --- sections -----------------------------------------------------------------------------------------------


def _run() -> Iterator[str]:
    """Yield the tables that every method reads: the run's own settings, and its nested tables."""
    hints = typing.get_type_hints(Config)
    nested = [field.name for field in fields(Config) if dataclasses.is_dataclass(hints[field.name])]
    nested = [name for name in nested if hints[name] not in RUN_SETTINGS.tables]
    yield "## The run\n\nEvery method reads these settings.\n\n" + _table(Config, "", skip=nested)
    for name in nested:
        cls = hints[name]
        yield f"## {name}\n\n{_summary(cls)} Every method reads these settings.\n\n{_table(cls, name + '.')}"


def _aggregates() -> str:
    rows = []
    for name, function in AGGREGATES.items():
        users = [method for method, row in METHODS.items() if row.algorithm.aggregate == name]
        meaning = first_sentence(function).removeprefix("Return ")
        rows.append((f"`{name}`", _text(meaning), _methods(users) or "-"))
    what = "How the tokens of a minibatch are averaged. m is 1 where a token counts; B is the number of completions."
    return f"## aggregate\n\n{what}\n\n" + _rows(("aggregate", "meaning", "methods"), rows)


def _choices() -> Iterator[str]:
    for kind, (place, what) in CHOICES.items():
        classes = RUN_SETTINGS.tables[kind]
        listed = ", ".join(f"[{name}](#{_anchor(place, name)})" for name in classes)
        everyone = "" if _of_the_algorithm(kind) else " Every method reads these settings."
        yield f"## {place}\n\n{what}{everyone} One of {listed}."
        yield from (_choice(kind, place, name, cls) for name, cls in classes.items())


def _choice(kind: type, place: str, name: str, cls: type) -> str:
    parts = [f"### {place}: {name}", _summary(cls)]
    users: Mapping[str, Any] = {}
    if _of_the_algorithm(kind):
        found = {method: _part(row.algorithm, cls) for method, row in METHODS.items()}
        users = {method: part for method, part in found.items() if part is not None}
        parts.append(f"Methods: {_methods(users)}." if users else "No preset has it.")
    parts.append(_table(cls, f"{place}.", users=users) if fields(cls) else "It has no settings.")
    return "\n\n".join(parts)


def _schedules() -> str:
    syntax = inspect.getdoc(schedules)
    assert syntax is not None
    formulas = "\n".join(line.strip() for line in syntax.splitlines() if line.startswith("    "))
    relative = syntax.split("\n\n")[-1].replace("linear(1x,0.5x,100)", "`linear(1x,0.5x,100)`")
    head = "## Schedules and targets\n\nA schedule is a number or one of these texts:"
    return f"{head}\n\n```\n{formulas}\n```\n\n{relative}"


# --- who reads what -----------------------------------------------------------------------------------------


def _of_the_algorithm(kind: type) -> bool:
    """Return whether a method makes this choice."""
    return kind not in (Task, Verifier, Grader)


def _part(value: Any, cls: type) -> Any:
    """Return the value itself or the part of it, at any depth, that is of this class; None if there is none."""
    if type(value) is cls:
        return value
    if not dataclasses.is_dataclass(value):
        return None
    parts = (_part(getattr(value, field.name), cls) for field in dataclasses.fields(value))
    return next((part for part in parts if part is not None), None)


def _methods(users: Iterable[str]) -> str:
    """Return links to the methods' pages; where most methods are meant, to those of the others."""
    users = list(users)
    others = [method for method in METHODS if method not in users]
    if len(others) < len(users):
        return f"all except {_linked(others)}" if others else "all"
    return _linked(users)


def _linked(methods: Iterable[str]) -> str:
    return ", ".join(f"[{method}](methods/{METHODS[method].page}.md)" for method in methods)


def _departures(field: dataclasses.Field[Any], users: Mapping[str, Any]) -> str:
    """Return the values of the presets that do not have the default, each with its presets."""
    values: dict[str, list[str]] = {}
    for method, part in users.items():
        value = plain_value(getattr(part, field.name))
        if value != plain_value(field.default):
            values.setdefault(value, []).append(method)
    return "; ".join(f"`{value}` in {', '.join(methods)}" for value, methods in values.items())


# --- tables -------------------------------------------------------------------------------------------------


def _table(cls: type, prefix: str, skip: Iterable[str] = (), users: Mapping[str, Any] = {}) -> str:
    hints, texts = typing.get_type_hints(cls), meanings(cls)
    head = ["setting", "type", "default", "meaning"]
    rows = []
    for field in fields(cls):
        if field.name not in skip:
            kind, text = kind_in_words(hints[field.name], _link, "`"), _text(texts[field.name])
            rows.append([f"`{prefix}{field.name}`", kind, default_of(field, "`"), text, _departures(field, users)])
    if any(row[-1] for row in rows):
        return _rows([*head, "presets"], rows)
    return _rows(head, [row[:-1] for row in rows])


def _link(text: str, anchor: str) -> str:
    return f"[{text}](#{anchor})"


def _rows(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


# --- words --------------------------------------------------------------------------------------------------


def _summary(cls: type) -> str:
    return _text(first_sentence(cls))


def _text(text: str) -> str:
    """Return plain text as Markdown for a table's cell; what stands in backticks is code, and pages are links."""
    parts = re.split(r"(`[^`]+`)", text)
    for place, part in enumerate(parts):
        if place % 2 == 0:
            part = re.sub(r"([*<~\[\]])", r"\\\1", part)
            part = re.sub(r"docs/([\w/-]+\.md)", r"[\1](\1)", part)
        parts[place] = part.replace("|", r"\|")
    return "".join(parts)


def _anchor(place: str, name: str) -> str:
    """Return GitHub's anchor of the heading of a choice."""
    return f"{place}: {name}".replace(".", "").replace(":", "").replace(" ", "-")


if __name__ == "__main__":
    print(page(), end="")
