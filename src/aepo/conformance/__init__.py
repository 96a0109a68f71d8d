"""Our fixtures against a trainer's own log-prob and entropy function (docs/conformance.md)."""

from aepo.conformance.check import Finding, check_function, load_function
from aepo.conformance.fixtures import Fixture

__all__ = ["Finding", "Fixture", "check_function", "load_function"]
