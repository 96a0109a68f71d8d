"""The package checks a trainer's own log-probability and entropy function on fixtures (docs/conformance.md)."""

from aepo.conformance.check import PropertyResult, check_function, load_function
from aepo.conformance.fixtures import Fixture

__all__ = ["Fixture", "PropertyResult", "check_function", "load_function"]
