"""This module converts settings from plain data to frozen dataclasses and back. A bad setting raises `InvalidValue`.

Some fields are open choices, such as the advantage, the surrogate, the control or the law of an algorithm. In plain
data, an open choice is a table. Its key `name` selects the class, and the other keys are the fields of that class.
`SETTINGS` knows the classes of all open choices of an algorithm.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

from aepo.algorithm import Algorithm
from aepo.control import CONTROLS
from aepo.control.base import Control
from aepo.control.both import Both
from aepo.control.closed_loop import LAWS
from aepo.control.distributions import DISTRIBUTIONS, TargetDistribution
from aepo.control.laws import Law
from aepo.control.quantities import QUANTITIES, Quantity
from aepo.control.schedules import Schedule
from aepo.errors import InvalidValue, UnknownName, require
from aepo.loss.advantages import ADVANTAGES, Advantage
from aepo.loss.surrogates import SURROGATES, Surrogate
from aepo.methods import preset
from aepo.plugins import load_object, path_of_object

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """`Settings` converts between plain data and dataclasses, for a given set of open choices."""

    tables: Mapping[type, Mapping[str, type]]
    """The classes of each open choice by name; the keys are the choices' base classes."""

    @cached_property
    def _names(self) -> Mapping[type, str]:
        return {cls: name for table in self.tables.values() for name, cls in table.items()}

    def override(self, base: T, data: Mapping[str, Any], path: str = "") -> T:
        """Return `base` with the fields that `data` names changed. Nested tables are merged.

        Args:
            base: A dataclass instance.
            data: New values by field name.
            path: A prefix for the field names in messages, such as `control.`.

        Raises:
            InvalidValue: A field does not exist, or a value has the wrong type or is out of range.
        """
        hints = typing.get_type_hints(type(base))
        fields = {f.name for f in dataclasses.fields(base) if f.init}  # type: ignore[arg-type]
        changes: dict[str, Any] = {}
        for key, value in data.items():
            if key not in fields:
                raise _unknown_setting(path, key, value, fields)
            changes[key] = self._convert(getattr(base, key), hints[key], value, f"{path}{key}")
        return dataclasses.replace(base, **changes)  # type: ignore[type-var]

    def to_dict(self, config: Any) -> dict[str, Any]:
        """Return a dataclass instance as plain TOML data. `override` with this data restores the instance."""
        name = _name_of(type(config), self._names)
        names = {} if name is None else {"name": name}
        fields = {f.name: self._plain(getattr(config, f.name)) for f in dataclasses.fields(config) if f.init}
        return {**names, **fields}

    def _convert(self, current: Any, hint: Any, value: Any, path: str) -> Any:
        if type(None) in typing.get_args(hint) and (choice := self._choice_of(hint)):
            return None if value in (None, "none") else self._choose(current, choice, value, path)
        if hint in self.tables:
            return self._choose(current, hint, value, path)
        if isinstance(hint, type) and issubclass(hint, Schedule):
            return _schedule(hint, str(_leaf(str | int | float, value, path)), path)
        if typing.get_origin(hint) is Mapping:
            return {**(current or {}), **_table(value, path)}
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise InvalidValue(path, value, "a table of settings")
            return self.override(current, value, f"{path}.")
        return _leaf(hint, value, path)

    def _choice_of(self, hint: Any) -> type | None:
        """Return the open choice in a union such as `Law | None`; None if there is none."""
        return next((option for option in typing.get_args(hint) if option in self.tables), None)

    def _choose(self, current: Any, base_of: type, value: Any, path: str) -> Any:
        """Return an instance of the class that `value` names, with its other settings; without a name, `current` with
        these settings.
        """
        table = self.tables[base_of]
        settings = {"name": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else None
        if settings is None:
            raise InvalidValue(path, value, f"a name ({', '.join(table)}) or a table of settings")
        name = settings.pop("name", _name_of(type(current), self._names) or "")
        cls = table[name] if name in table else _own_class(name, base_of, f"{path}.name", table)
        base = current if type(current) is cls else cls()
        if isinstance(base, Both):
            settings = _routed(base, settings)
        return self.override(base, settings, f"{path}.")

    def _plain(self, value: Any) -> Any:
        if value is None:
            return "none"
        if isinstance(value, Schedule):
            return value.spec
        if dataclasses.is_dataclass(value):
            return self.to_dict(value)
        if isinstance(value, tuple):
            return [self._plain(item) for item in value]
        return value


SETTINGS = Settings(
    {
        Advantage: ADVANTAGES,
        Control: CONTROLS,
        Law: LAWS,
        Quantity: QUANTITIES,
        TargetDistribution: DISTRIBUTIONS,
        Surrogate: SURROGATES,
    }
)
"""The conversion of an `Algorithm` and of everything in it."""


def make_algorithm(method: str, settings: Mapping[str, Any]) -> Algorithm:
    """Return the algorithm of a preset with some settings changed, such as {"control.target": 0.6}.

    Args:
        method: The name of a preset, or several names joined by `+`, as in `preset`.
        settings: New values by dotted name, such as {"control.target": 0.6}.

    Raises:
        InvalidValue: There is no such preset or setting, or a value is wrong.
    """
    return SETTINGS.override(preset(method), tree(settings))


def tree(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by dotted name as nested tables: {"a.b": 1} becomes {"a": {"b": 1}}."""
    nested: dict[str, Any] = {}
    for name, value in settings.items():
        _put(nested, name.split("."), value)
    return nested


def parse_setting(text: str) -> tuple[str, Any]:
    """Return the name and the value of a setting that is written as `name=value`.

    The value is read as TOML. Text that is not TOML is the string itself.

    Raises:
        InvalidValue: The text has no name or no equals sign.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise InvalidValue("--set", text, "written as name=value, such as optimizer.lr=1e-4")
    try:
        return name.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name.strip(), value.strip()


# Users' own classes that were chosen by `module:Class`, with that text.
_OWN: dict[type, str] = {}


def _name_of(cls: type, names: Mapping[type, str]) -> str | None:
    """Return the name of a class in plain data; None for a class that is no choice."""
    return names.get(cls) or _OWN.get(cls)


def _own_class(name: object, base: type, path: str, table: Mapping[str, type]) -> type:
    """Return the user's own class that `module:Class` or `file.py:Class` names.

    Raises:
        InvalidValue: The name is unknown, or it is no frozen dataclass that subclasses `base`.
    """
    if not isinstance(name, str) or ":" not in name:
        raise UnknownName(path, name, table, ", or your own module:Class")
    cls = load_object(name, path, "Class")
    wanted = f"a frozen dataclass that subclasses {base.__module__}.{base.__name__}, with a default for every field"
    require(isinstance(cls, type) and issubclass(cls, base) and dataclasses.is_dataclass(cls), path, name, wanted)
    absolute = path_of_object(name)
    same = next((known for known, text in _OWN.items() if text == absolute), cls)
    _OWN[same] = absolute
    return same


def _schedule(hint: type[Schedule], spec: str, path: str) -> Schedule:
    try:
        return hint(spec)
    except InvalidValue as error:
        raise InvalidValue(path, error.got, error.wanted) from None


def _routed(both: Both, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a pair, each with the part that it belongs to.

    A setting that only one part has goes to this part: `control.target` becomes `control.first.target`.
    """
    parts = {name: {f.name for f in dataclasses.fields(getattr(both, name))} for name in ("first", "second")}
    routed: dict[str, Any] = {}
    for key, value in settings.items():
        owners = [name for name, fields in parts.items() if key in fields]
        _put(routed, [owners[0], key] if len(owners) == 1 else [key], value)
    return routed


def _leaf(hint: Any, value: Any, path: str) -> Any:
    """Return a plain value after a check of its type. An integer may stand for a float; no other type is converted."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)  # the second one if a Literal is among them
    options = typing.get_args(hint) if union else (hint,)
    if types.NoneType in options and value in (None, "none"):
        return None
    for option in options:
        if typing.get_origin(option) is Literal and value in typing.get_args(option):
            return value
        if typing.get_origin(option) is tuple and isinstance(value, list | tuple):
            return _tuple(option, value, path)
        if isinstance(option, type) and type(value) is option:
            return _finite(value, path)
    if float in options and type(value) is int:
        return float(value)
    raise InvalidValue(path, value, _describe(options))


def _table(value: Any, path: str) -> dict[str, Any]:
    """Return a table of any settings, given as a table or as the text of a JSON object."""
    if isinstance(value, str):
        with contextlib.suppress(json.JSONDecodeError):
            value = json.loads(value)
    if not isinstance(value, Mapping):
        raise InvalidValue(path, value, "a table, such as {name = true}, or a JSON object")
    for key, item in value.items():
        if item is None:
            raise InvalidValue(f"{path}.{key}", None, "a value, or left out")
    return dict(value)


def _tuple(hint: Any, value: Sequence[Any], path: str) -> tuple[Any, ...]:
    items = typing.get_args(hint)
    if items[-1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise InvalidValue(path, value, f"a list of {len(items)}")
    return tuple(_leaf(item, element, path) for item, element in zip(items, value, strict=True))


def _finite(value: Any, path: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidValue(path, value, "a finite number")
    return value


def _describe(options: Sequence[Any]) -> str:
    words = {int: "an integer", float: "a number", str: "text", bool: "true or false", types.NoneType: "none"}
    parts = []
    for option in options:
        if typing.get_origin(option) is Literal:
            parts.append(f"one of {', '.join(map(str, typing.get_args(option)))}")
        else:
            parts.append(words.get(option, "a list"))
    return " or ".join(parts)


# Settings of TRL and of verl under the names that they have here.
ELSEWHERE = {
    "learning_rate": "optimizer.lr",
    "lr": "optimizer.lr",
    "batch_size": "sampling.prompts",
    "train_batch_size": "sampling.prompts",
    "per_device_train_batch_size": "sampling.prompts",
    "num_generations": "sampling.group_size",
    "n": "sampling.group_size",
    "temperature": "sampling.temperature",
    "max_steps": "steps",
    "max_completion_length": "task.max_response",
    "max_response_length": "task.max_response",
    "max_prompt_length": "task.max_prompt",
    "beta": "kl_coefficient",
    "kl_coef": "kl_coefficient",
    "save_steps": "checkpoint.every",
    "eval_steps": "evaluation.every",
    "reward_funcs": "task.rewards",
    "gradient_accumulation_steps": "optimizer.microbatch",
    "report_to": "tracker",
    "vllm_importance_sampling_mode": "mismatch.correction",
    "vllm_importance_sampling_clip_max": "mismatch.clip_max",
    "vllm_importance_sampling_clip_min": "mismatch.clip_min",
    "rollout_is": "mismatch.correction",
    "rollout_is_threshold": "mismatch.clip_max",
}


def _unknown_setting(path: str, key: str, value: object, fields: set[str]) -> InvalidValue:
    if not fields:
        control = "the method has no entropy control (aepo and others have one: `aepo methods`)"
        why = control if path == "control." else "what is chosen here has no settings"
        return InvalidValue(f"{path}{key}", value, f"left out: {why}")
    return UnknownName(path.rstrip(".") or "setting", key, sorted(fields), nearest=ELSEWHERE.get(key, ""))


def _put(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set tree[a][b]... = value. Where a table is needed and a string stands, the string becomes the table's `name`."""
    for part in path[:-1]:
        if not isinstance(tree.get(part), dict):
            tree[part] = {"name": tree[part]} if part in tree else {}
        tree = tree[part]
    if isinstance(tree.get(path[-1]), dict) and isinstance(value, str):
        tree[path[-1]]["name"] = value
    else:
        tree[path[-1]] = value
