"""The package reads the log of a training run and reports what is wrong with the run. It does not import torch.

`readers.read` turns a log file into a `Log`; it knows the formats of this package and of other trainers.
`checks.CHECKS` are pure functions from a `Log` to a list of `Finding`.
"""

from aepo.doctor.checks import examine
from aepo.doctor.readers import read
from aepo.doctor.types import Finding, Log

__all__ = ["Finding", "Log", "examine", "read"]
