"""Users' own functions and classes, by `module:name` or `file.py:name`."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import sys
from pathlib import Path
from typing import Any

from aepo.errors import InvalidValue

PYTHON = "python"
# Objects of this process that no other one can import, such as a notebook's functions, by `python:name`.
_REGISTERED: dict[str, Any] = {}


def register(thing: Any) -> str:
    """Keep an object of this process under a name that `load_object` takes, and return the name."""
    plain = f"{PYTHON}:{getattr(thing, '__name__', type(thing).__name__)}"
    names = (plain if number == 0 else f"{plain}-{number}" for number in itertools.count())
    name = next(name for name in names if _REGISTERED.get(name, thing) is thing)
    _REGISTERED[name] = thing
    return name


def load_object(path: str, where: str, what: str) -> Any:
    """Return what `module:name` or `file.py:name` names.

    Args:
        path: The place and the name.
        where: The setting, for messages.
        what: The kind of object, for messages.

    Raises:
        InvalidValue: There is no such object, or its module cannot be imported.
    """
    if path in _REGISTERED:
        return _REGISTERED[path]
    place, colon, name = path.rpartition(":")
    if place == PYTHON:
        raise InvalidValue(where, path, "used in the Python process that made it: resume the run there")
    if not colon or not place:
        raise InvalidValue(where, path, f"written as module:{what} or file.py:{what}")
    try:
        module = _load_file(place) if place.endswith(".py") else importlib.import_module(place)
        return getattr(module, name)
    except (Exception, SystemExit) as error:
        raise InvalidValue(where, path, f"importable ({type(error).__name__}: {error})") from None


def path_of_object(path: str) -> str:
    """Return `file.py:name` with an absolute path if the file exists; any other text as it is."""
    file, colon, name = path.rpartition(":")
    return f"{Path(file).resolve()}{colon}{name}" if file.endswith(".py") and Path(file).exists() else path


def absolute(path: str) -> str:
    """Return the path of a file or folder that exists as an absolute one; any other text as it is."""
    return str(Path(path).resolve()) if path and Path(path).exists() else path


def _load_file(path: str) -> Any:
    file = Path(path).resolve()
    spec = importlib.util.spec_from_file_location(f"aepo_user_{file.stem}_{hash(file):x}".replace("-", "_"), file)
    if spec is None or spec.loader is None or not file.exists():
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
