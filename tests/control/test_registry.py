"""A file in the package of controls either defines one control, which is registered, or is a known helper."""

import inspect
import pkgutil
from importlib import import_module

import pytest

import aepo.control
from aepo.control import CONTROLS
from aepo.control.base import Control, NoControl

MODULES = sorted(found.name for found in pkgutil.iter_modules(aepo.control.__path__))
# What the controls share. `base` also defines `NoControl`.
HELPERS = {
    *(
        "adapted",
        "base",
        "closed_loop",
        "distributions",
        "laws",
        "quantities",
        "schedules",
        "self_tuning",
        "tokens",
        "variates",
    ),
}


def registered(module: str) -> list[str]:
    """The names under which `CONTROLS` holds a class that this module defines."""
    return [name for name, control in CONTROLS.items() if control.__module__ == f"aepo.control.{module}"]


def defined(module: str) -> list[type[Control]]:
    """The classes of this module that subclass `Control` and can be made."""
    path = f"aepo.control.{module}"
    classes = [value for _, value in inspect.getmembers(import_module(path), inspect.isclass)]
    own = [value for value in classes if value.__module__ == path and issubclass(value, Control)]
    return [value for value in own if not inspect.isabstract(value)]


@pytest.mark.parametrize("module", [name for name in MODULES if name not in HELPERS])
def test_a_module_defines_one_control_and_it_is_registered_under_its_name(module):
    (control,) = defined(module)
    assert registered(module) == [control.name] and CONTROLS[control.name] is control


def test_the_helpers_exist_and_register_nothing_but_no_control():
    assert set(MODULES) >= HELPERS
    assert [name for module in HELPERS for name in registered(module)] == [NoControl.name]
    assert CONTROLS[NoControl.name] is NoControl


def test_every_registered_control_is_defined_in_a_module_of_the_package():
    assert sorted(name for module in MODULES for name in registered(module)) == sorted(CONTROLS)
    assert all(control.name == name for name, control in CONTROLS.items())
