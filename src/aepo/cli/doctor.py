"""`aepo doctor`: findings in the logs of training runs; `aepo.doctor.report` does the work."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Doctor:
    """Say what is wrong with a run, from its log: ours, TRL, verl, OpenRLHF, W&B, TensorBoard, ... (docs/doctor.md)."""

    logs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Log files, folders with logs in them or below them, or wandb://entity/project/run."""
    resumed_at: Annotated[tuple[int, ...], tyro.conf.UseAppendAction] = field(default=())
    """A step at which the run was resumed, where the log does not show it; may be repeated (default: only those
    that the log shows)."""
    json: bool = False
    """Print JSON instead of a table."""
    html: Path | None = None
    """Write a page as well that shows each finding in a figure of its series (default: no page)."""
    follow: bool = False
    """Read the logs again whenever they grow, and tell each new fault, until Ctrl-C."""
    stop_on: Literal["never", "likely", "sure"] = "never"
    """With --follow: end with exit code 1 at the first fault of this confidence, so that a script can stop the run."""
    webhook: str | None = None
    """With --follow: address that gets every new fault as JSON (default: the environment variable AEPO_DOCTOR_WEBHOOK,
    or no address)."""
    out: Path | None = None
    """With --follow: file that gets every new fault as a JSON line (default: no file)."""
    interval: float = 10.0
    """With --follow: seconds between two looks at the files."""

    def run(self) -> None:
        """Print the findings; exit code 1 if something serious is sure or likely."""
        from aepo.doctor.live import DoctorConfig, follow
        from aepo.doctor.report import doctor
        from aepo.errors import require

        options = DoctorConfig(stop_on=self.stop_on, webhook=self.webhook)
        if self.follow:
            require(not self.json, "json", self.json, "left out with --follow; --out FILE writes JSON lines")
            require(not self.resumed_at, "resumed_at", self.resumed_at, "left out with --follow")
            require(self.html is None, "html", self.html, "left out with --follow")
            sys.exit(follow(self.logs, options, self.out, interval=self.interval))
        only = {"stop_on": self.stop_on != "never", "webhook": bool(self.webhook), "out": bool(self.out)}
        for name, given in only.items():
            require(not given, name, getattr(self, name), "given together with --follow")
        sys.exit(doctor(self.logs, self.resumed_at, self.json, self.html))
