"""This module puts into plain words what tyro says: the help of options that are left out, and refusals.

The help says what happens where an option is left out. A refusal of the arguments is one line, as all others are.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from aepo.errors import UnknownName

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
    plain: Any = hint
    extras: tuple[Any, ...] = ()
    if typing.get_origin(hint) is Annotated:
        plain, *given = typing.get_args(hint)
        extras = tuple(given)
    shown: dict[str, Any] = {"help_behavior_hint": text, "metavar": _placeholder(plain, tyro.conf.Positional in extras)}
    for extra in extras:
        if named := getattr(extra, "metavar", None):
            shown["metavar"] = named
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


# --- refusals -----------------------------------------------------------------------------------------------

_KINDS = {"INT": "an integer", "FLOAT": "a number", "PATH": "a path", "STR": "a text"}


def refusal(box: str, arguments: list[str], commands: Mapping[str, type]) -> str:
    """Return in one line what tyro says in a box about arguments that it cannot read.

    Args:
        box: The text of tyro.
        arguments: The arguments of the command line.
        commands: The commands by name.
    """
    lines = [re.sub(r"[─-╿]+", "", line).strip() for line in box.splitlines()]
    lines = [line.strip("+-| ") if set(line) <= set("+-| ") else line for line in lines]
    text = " ".join(line for line in lines if line)
    command = commands.get(arguments[0]) if arguments else None
    if command is None:
        if not arguments:
            return f"command: got nothing; must be one of {', '.join(commands)}"
        return str(UnknownName("command", arguments[0], commands))
    hints = typing.get_type_hints(command, include_extras=True)
    named = [name for name, hint in hints.items() if tyro.conf.Positional not in typing.get_args(hint)]
    options = [f"--{name.replace('_', '-')}" for name in named]
    if found := re.search(r"Unrecognized options: (.*?)(?: For full|$| Perhaps| Similar)", text):
        name = found[1].split(", ")[0]
        if not name.startswith("-"):
            return f"{arguments[0]}: got {name!r}; must be left out: there are too many arguments"
        return str(UnknownName(arguments[0], name.partition("=")[0], options))
    if found := re.search(r"invalid choice '(.*?)' for argument '(.*?)'. Expected one of \((.*?)\)", text):
        known = sorted(name for name in re.findall(r"'(.*?)'", found[3]) if name != "None")
        return str(UnknownName(found[2], found[1], known))
    if found := re.search(r"Error parsing (\S+?): (.*?) Argument helptext: (.*?) For full", text):
        value = re.search(r"from \['(.*?)'\]", found[2]) or re.search(r"'([^']*)'$", found[2].strip())
        kind = next((_KINDS[word] for word in re.findall(r"\b[A-Z]+\b", found[3]) if word in _KINDS), "another value")
        return f"{found[1]}: got {value[1] if value else found[2]!r}; must be {kind}"
    if found := re.search(r"Missing value for argument '(.*?)'", text):
        return f"{found[1]}: got nothing; must be given with a value (`aepo {arguments[0]} --help`)"
    if found := re.search(r"Missing from aepo \S+: (.*?)(?: \(required\)| For full|$)", text):
        return f"{arguments[0]}: got too few arguments; must be given with {found[1]}"
    return f"{arguments[0]}: {re.split(' For full helptext', text)[0]}"
