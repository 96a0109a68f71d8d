"""This module makes the help of a command say what happens where an option is left out."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

T = TypeVar("T", bound=type)
_WORDS: dict[Any, str] = {int: "INT", float: "FLOAT", str: "STR", Path: "PATH"}


def with_plain_help(command: T) -> T:
    """Return the command. Its help shows no Python default where none is given.

    The docstring of such a field says in words what happens without the option: "(default: ...)".
    """
    hints = typing.get_type_hints(command, include_extras=True)
    for field in dataclasses.fields(command):
        hint = hints[field.name]
        if field.default is None or field.default == ():
            command.__annotations__[field.name] = _with_hint(hint, "")
        elif field.default is dataclasses.MISSING and tyro.conf.Positional in typing.get_args(hint) and _is_list(hint):
            command.__annotations__[field.name] = _with_hint(hint, "(one or more)")
        elif field.default_factory is not dataclasses.MISSING:
            command.__annotations__[field.name] = _with_hint(hint, "")
    return command


def _is_list(hint: Any) -> bool:
    return typing.get_origin(typing.get_args(hint)[0]) is tuple


def _with_hint(hint: Any, text: str) -> Any:
    """Return the type of an option with a placeholder for its value, and with this text where a default would stand."""
    plain, extras = hint, ()
    if typing.get_origin(hint) is Annotated:
        plain, *given = typing.get_args(hint)
        extras = tuple(given)
    shown: dict[str, Any] = {"help_behavior_hint": text, "metavar": _placeholder(plain, tyro.conf.Positional in extras)}
    for extra in extras:
        if dataclasses.is_dataclass(extra) and getattr(extra, "metavar", None):
            shown["metavar"] = extra.metavar
    return Annotated[(plain, *extras, tyro.conf.arg(**shown))]


def _placeholder(hint: Any, positional: bool) -> str | None:
    """Return the placeholder of an optional value; None leaves the placeholder of a list to tyro."""
    if typing.get_origin(hint) is tuple and positional:
        word = _WORDS[typing.get_args(hint)[0]]
        return f"{word} [{word} ...]"
    if not isinstance(hint, types.UnionType) and typing.get_origin(hint) is not typing.Union:
        return None
    kind = next(part for part in typing.get_args(hint) if part is not types.NoneType)
    if typing.get_origin(kind) is Literal:
        return f"{{{','.join(map(str, typing.get_args(kind)))}}}"
    return _WORDS[kind]
