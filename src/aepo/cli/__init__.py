"""The command line: each command is one file of this package, and imports what it needs when it runs.

So `aepo --help` does not wait for torch.
"""

from __future__ import annotations

import errno
import io
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import redirect_stderr
from typing import Any

import tyro

from aepo import __version__
from aepo.cli._help import refusal, with_plain_help
from aepo.cli.calibrate import Calibrate
from aepo.cli.check_entropy import CheckEntropy
from aepo.cli.compare import Compare
from aepo.cli.demo import Demo
from aepo.cli.doctor import Doctor
from aepo.cli.evaluate import Evaluate
from aepo.cli.export import Export
from aepo.cli.fit_law import FitLaw
from aepo.cli.grade import Grade
from aepo.cli.methods import Methods
from aepo.cli.report import Report
from aepo.cli.settings import Settings
from aepo.cli.train import Train
from aepo.cli.watch import Watch
from aepo.errors import InvalidValue, RunDiedError

COMMANDS: dict[str, type] = {
    "train": Train,
    "evaluate": Evaluate,
    "export": Export,
    "demo": Demo,
    "methods": Methods,
    "settings": Settings,
    "grade": Grade,
    "doctor": Doctor,
    "compare": Compare,
    "fit-law": FitLaw,
    "calibrate": Calibrate,
    "check-entropy": CheckEntropy,
    "report": Report,
    "watch": Watch,
}
"""The commands by name, in the order of the help."""

LOGGING = (Train, Evaluate, Export, Demo, Compare)
"""The commands that import torch and whose standard output tells people how far they are; its first line says what is
loading."""
PRINTING = (Calibrate, Methods, Settings, CheckEntropy, Report, FitLaw, Watch)
"""The commands that import torch and whose standard output is a result, perhaps for a program."""

DESCRIPTION = (
    "Reinforcement fine-tuning of language models at an entropy that you set. `aepo --version` prints the version."
)
UNWRITABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG),
)
"""The errors of a disk, and of a path, at which nothing can be written."""


def main() -> None:
    """Parse the arguments and run the command.

    Bad input is one line on standard error and exit code 2. A run that died is one line and exit code 1.
    """
    if sys.argv[1:] == ["--version"]:
        print(f"aepo {__version__}")
        return
    # The hub's retries say nothing that our one line at the end does not.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    commands: dict[str, Callable[..., Any]] = {name: with_plain_help(command) for name, command in COMMANDS.items()}
    try:
        command = _parsed(commands)
        _say_what_loads(command)
        command.run()
    except InvalidValue as error:
        sys.exit(_refuse(str(error)))
    except RunDiedError as error:
        _refuse(str(error))
        sys.exit(1)
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        where = error.filename or "disk"
        sys.exit(_refuse(f"{where}: cannot be written ({error.strerror}); what was written before is complete"))
    except KeyboardInterrupt:
        sys.exit(130)


def _say_what_loads(command: Any) -> None:
    """Print the command before torch is imported, which takes seconds, so that the first line comes at once.

    Where standard output is a result, the line goes to standard error, and only to a person: a program finds nothing
    but the one line of a refusal there.
    """
    if "torch" in sys.modules:
        return
    line = f"aepo {__version__} {shlex.join(sys.argv[1:])}: loading ..."
    if isinstance(command, LOGGING):
        print(line, flush=True)
    elif isinstance(command, PRINTING) and sys.stderr.isatty():
        print(line, file=sys.stderr, flush=True)


def _parsed(commands: dict[str, Callable[..., Any]]) -> Any:
    """Return the command of the command line, or refuse its arguments in one line."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.extras.subcommand_cli_from_dict(commands, prog="aepo", description=DESCRIPTION)
    except SystemExit as end:
        if end.code != 2:
            raise
        sys.exit(_refuse(refusal(said.getvalue(), sys.argv[1:], COMMANDS)))


def _refuse(line: str) -> int:
    print(f"aepo: {line}", file=sys.stderr)
    return 2
