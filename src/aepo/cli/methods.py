"""`aepo methods`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from aepo.errors import InvalidValue


@dataclass(frozen=True)
class Methods:
    """List every method, or show one: its paper, what it senses, commands and moves, what it costs, where it runs."""

    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")] = None
    """Show this method only, with its settings and their values."""
    json: bool = False
    """Print JSON instead of a table: a list, or one object with NAME."""
    markdown: bool = False
    """Print the table of docs/methods/README.md."""

    def run(self) -> None:
        """Print the table, or the one method."""
        from aepo import catalogue

        if self.json:
            print(catalogue.as_json(self.name))
        elif self.markdown:
            if self.name is not None:
                raise InvalidValue("--markdown", self.name, "without a name: it prints the page of all methods")
            print(catalogue.as_markdown(), end="")
        elif self.name is not None:
            print(*catalogue.as_lines(self.name), sep="\n")
        else:
            catalogue.print_table()
