"""This module says what every setting of a run means: for docs/settings.md, `aepo settings` and `aepo methods NAME`.

All of it comes from the dataclasses: names, types and defaults from the fields, meanings from the docstrings under the
fields.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from aepo.config import RUN_SETTINGS, Config
from aepo.control.base import Control
from aepo.control.distributions import TargetDistribution
from aepo.control.laws import Law
from aepo.control.quantities import Quantity
from aepo.control.schedules import Schedule, Target
from aepo.convert import ELSEWHERE
from aepo.errors import InvalidValue
from aepo.grading.base import Grader
from aepo.loss.advantages import Advantage
from aepo.loss.surrogates import Surrogate
from aepo.methods import preset
from aepo.tasks import Task
from aepo.tasks.rewards import Verifier

# Each open choice: the setting that makes it, and what it decides.
CHOICES: Mapping[type, tuple[str, str]] = {
    Advantage: ("advantage", "How the reward of a completion compares with its group's rewards."),
    Surrogate: ("surrogate", "The objective that is maximised at each token."),
    Control: ("control", "What acts on the entropy."),
    Law: ("control.law", "How the error of a closed loop becomes its command."),
    Quantity: ("control.quantity", "What a closed loop measures and holds."),
    TargetDistribution: ("control.distribution", "Where AEPO's positives come from."),
    Task: ("task", "Where problems come from, and what checks the answers."),
    Verifier: ("task.verifier", "What judges the answers of the task `data`."),
    Grader: ("task.verifier.grader", "How the verifier `graded` compares an answer with the known one."),
}

Link = Callable[[str, str], str]
"""A function from (text, anchor on docs/settings.md) to what a page shows."""
WIDTH = 80
# A terminal lists the names of a choice if there are at most so many.
LISTED = 8


@dataclass(frozen=True)
class Setting:
    """`Setting` is one setting of a run, in words."""

    name: str
    """The dotted name, as `--set` takes it."""
    kind: str
    """The type of the value."""
    default: str
    """The default, as a configuration spells it."""
    meaning: str
    """What the setting does."""


@dataclass(frozen=True)
class Section:
    """`Section` holds the settings of one table, or of one class of an open choice."""

    title: str
    """The title, such as `sampling` or `control.law: pi`."""
    about: str
    """What the section is about, in one sentence."""
    settings: tuple[Setting, ...]
    """The settings."""
    place: str = ""
    """The setting that chooses this class; empty for a table that every run has."""


def sections() -> Iterator[Section]:
    """Yield every setting of a run: the tables that every method reads, then the classes of each open choice."""
    hints = typing.get_type_hints(Config)
    nested = [field.name for field in fields(Config) if dataclasses.is_dataclass(hints[field.name])]
    nested = [name for name in nested if hints[name] not in RUN_SETTINGS.tables]
    yield Section("the run", "Every run has these settings.", tuple(_settings(Config, "", skip=nested)))
    for name in nested:
        yield Section(name, first_sentence(hints[name]), tuple(_settings(hints[name], f"{name}.")))
    for base, (place, _) in CHOICES.items():
        for name, cls in RUN_SETTINGS.tables[base].items():
            yield Section(f"{place}: {name}", first_sentence(cls), tuple(_settings(cls, f"{place}.")), place)


def matching(prefix: str, method: str | None = None) -> list[Section]:
    """Return the sections with the settings whose names begin with `prefix`; without any, those that contain it.

    Args:
        prefix: The beginning or a part of a name; an empty text matches all.
        method: Only the choices of this method are returned, with its values as defaults; None returns all.

    Raises:
        InvalidValue: No name contains it, and the message names the nearest setting; or there is no such method.
    """
    every = list(sections()) if method is None else of_method(method)
    for fits in (str.startswith, str.__contains__):
        kept = [
            dataclasses.replace(one, settings=tuple(each for each in one.settings if fits(each.name, prefix)))
            for one in every
        ]
        if found := [one for one in kept if one.settings]:
            return found
    names = list(dict.fromkeys(each.name for one in every for each in one.settings))
    near = ELSEWHERE.get(prefix) or "".join(difflib.get_close_matches(prefix, names, n=1))
    wanted = "a part of a setting's name, such as optimizer or control.law"
    raise InvalidValue("PREFIX", prefix, wanted + f"; did you mean {near}?" * bool(near))


def of_method(method: str) -> list[Section]:
    """Return the settings of a method's advantage, surrogate and control, with the method's own values as defaults.

    Raises:
        InvalidValue: There is no such method.
    """
    return list(_of_parts(preset(method), ""))


def _of_parts(value: Any, prefix: str) -> Iterator[Section]:
    """Yield a section for each open choice inside a dataclass, outermost first."""
    for field in fields(type(value)):
        part = getattr(value, field.name)
        if dataclasses.is_dataclass(part) and not isinstance(part, Schedule):
            name, cls = f"{prefix}{field.name}", type(part)
            hints, texts = typing.get_type_hints(cls), meanings(cls)
            found = tuple(
                Setting(
                    f"{name}.{each.name}",
                    kind_in_words(hints[each.name]),
                    plain_value(getattr(part, each.name)),
                    texts[each.name],
                )
                for each in fields(cls)
            )
            yield Section(f"{name}: {plain_value(part)}", first_sentence(cls), found, name)
            yield from _of_parts(part, f"{name}.")


def lines(found: Iterable[Section], width: int = WIDTH) -> Iterator[str]:
    """Yield the lines of a terminal: under each title every setting with type, default and meaning."""
    for one in found:
        yield from ("", one.title, *textwrap.wrap(one.about, width - 2, initial_indent="  ", subsequent_indent="  "))
        for each in one.settings:
            head = f"  {each.name} = {each.default}  ({each.kind})"
            yield from textwrap.wrap(head, width, subsequent_indent="    ", break_on_hyphens=False)
            for text in textwrap.wrap(each.meaning, width - 6, break_on_hyphens=False):
                yield f"      {text}"


def _settings(cls: type, prefix: str, skip: Iterable[str] = ()) -> Iterator[Setting]:
    hints, texts = typing.get_type_hints(cls), meanings(cls)
    for field in fields(cls):
        if field.name not in skip:
            kind = kind_in_words(hints[field.name])
            yield Setting(f"{prefix}{field.name}", kind, default_of(field), texts[field.name])


# --- words --------------------------------------------------------------------------------------------------


def meanings(cls: type) -> dict[str, str]:
    """Return the docstring under each field of a dataclass, by the field's name; its own before those of its bases."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            found |= _own_meanings(base)
    return found


def _own_meanings(cls: type) -> Iterator[tuple[str, str]]:
    """Yield the name and the docstring of each field that the class itself documents."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(definition, ast.ClassDef)
    for field, after in zip(definition.body, definition.body[1:], strict=False):
        literal = after.value if isinstance(after, ast.Expr) else None
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(literal, ast.Constant) and isinstance(literal.value, str):
            yield field.target.id, " ".join(literal.value.split())


def fields(cls: type) -> list[dataclasses.Field[Any]]:
    """Return the fields of a dataclass that a configuration can set."""
    return [field for field in dataclasses.fields(cls) if field.init]


def first_sentence(thing: Any) -> str:
    """Return the first sentence of a docstring, on one line."""
    text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    # "Dr. GRPO" goes on.
    return re.split(r"(?<=\.)(?<!Dr\.) ", text)[0]


def kind_in_words(hint: Any, link: Link | None = None, quote: str = "") -> str:
    """Return a type in words.

    Args:
        hint: The type of a field.
        link: A function that makes a link of a choice or a schedule; None for a terminal.
        quote: What stands around the values of a list of values.
    """
    if hint in CHOICES:
        place, _ = CHOICES[hint]
        names = RUN_SETTINGS.tables[hint]
        listed = ", ".join(names) if len(names) <= LISTED else f"a name: `aepo settings {place}` lists them"
        return link(place, place.replace(".", "")) if link else listed
    if hint in (Target, Schedule):
        name = "target" if hint is Target else "schedule"
        return link(name, "schedules-and-targets") if link else name
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(kind_in_words(part, link, quote) for part in typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        return ", ".join(f"{quote}{value}{quote}" for value in typing.get_args(hint))
    if typing.get_origin(hint) is Mapping:
        return "table"
    if typing.get_origin(hint) is tuple:
        return _list(typing.get_args(hint))
    return {int: "integer", float: "number", str: "text", bool: "true or false", types.NoneType: "none"}[hint]


def _list(items: tuple[Any, ...]) -> str:
    plural = {int: "integers", float: "numbers", str: "texts"}
    kind = items[0]
    what = plural.get(kind) or f"lists of {len(typing.get_args(kind))} {plural[typing.get_args(kind)[0]]}"
    return f"list of {what}" if items[-1] is Ellipsis else f"list of {len(items)} {what}"


def default_of(field: dataclasses.Field[Any], quote: str = "") -> str:
    """Return the default of a field in words, with `quote` around a value."""
    if field.default_factory is dict:
        return f"{quote}{{}}{quote}"
    if field.default is dataclasses.MISSING:
        return "the method's" if field.name in ("advantage", "surrogate", "control") else f"{quote}paths{quote}"
    return f"{quote}{plain_value(field.default)}{quote}"


def plain_value(value: Any) -> str:
    """Return a value as a configuration spells it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Schedule):
        return value.spec
    if dataclasses.is_dataclass(value):
        return str(vars(type(value))["name"])
    if isinstance(value, tuple):
        return f"[{', '.join(map(plain_value, value))}]"
    return str(value) if value != "" else '""'
