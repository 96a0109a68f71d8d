"""Entropy controls, one file each.

`CONTROLS` holds every control by name. A file in this package registers its control by defining it: a class with a
`name` that subclasses `Control`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module

from aepo.control.base import Control


def _defined() -> Iterator[type[Control]]:
    """Yield the controls that the modules of this package define, in the order of the modules' names."""
    for found in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        module = import_module(f"{__name__}.{found.name}")
        for value in vars(module).values():
            own = isinstance(value, type) and value.__module__ == module.__name__
            if own and issubclass(value, Control) and "name" in vars(value):
                yield value


CONTROLS: dict[str, type[Control]] = {control.name: control for control in _defined()}
