"""`aepo settings`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Settings:
    """List every setting of a run with its type, default and meaning, as docs/settings.md does."""

    prefix: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[PREFIX]")] = None
    """The beginning or a part of a setting's name: optimizer, control.law, lr (default: all settings)."""
    method: str | None = None
    """Show only what this method chooses, with the method's own values (default: every choice, with its defaults)."""

    def run(self) -> None:
        """Print the settings."""
        from aepo import reference

        found = reference.matching(self.prefix or "", self.method)
        print(*reference.lines(found), sep="\n")
