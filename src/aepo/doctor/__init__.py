"""Reads the logs of other trainers and of this one, and says what is wrong with the run. Imports no torch.

`readers.read` makes a `Log` of a file, whoever wrote it; `checks.CHECKS` are pure functions from a log to findings.
"""

from aepo.doctor.checks import examine
from aepo.doctor.readers import read
from aepo.doctor.types import Finding, Log

__all__ = ["Finding", "Log", "examine", "read"]
