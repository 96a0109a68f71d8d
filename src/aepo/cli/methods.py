"""`aepo methods`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from aepo.errors import InvalidValue, require


@dataclass(frozen=True)
class Methods:
    """List every method, or show one: its page, what it senses, commands and moves, its settings, where it runs."""

    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]")] = None
    """Show this method only, with its page and its settings (default: the list of all methods)."""
    engine: Literal["loop", "trl", "verl"] | None = None
    """List only the methods that run on this engine (default: all engines)."""
    word: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=())
    """List only the methods with this word in name, title, sensor, law, actuator or cost; may be repeated
    (default: all)."""
    json: bool = False
    """Print JSON instead of a table: a list, or one object with NAME."""
    markdown: bool = False
    """Print the table of docs/methods/README.md."""

    def run(self) -> None:
        """Print the table, or the one method."""
        from aepo import catalogue

        if self.name is not None:
            wanted = "without a name: it prints the page of all methods"
            require(not self.markdown, "--markdown", self.name, wanted)
            filtered = {"--engine": self.engine, "--word": self.word or None}
            for option, value in filtered.items():
                if value is not None:
                    raise InvalidValue(option, value, f"left out with the name of one method ({self.name})")
            if self.json:
                print(catalogue.as_json(self.name))
            else:
                catalogue.show(self.name)
        elif self.markdown:
            print(catalogue.as_markdown(), end="")
        elif self.json:
            print(catalogue.as_json(found=catalogue.chosen(self.engine, self.word)))
        else:
            catalogue.print_table(catalogue.chosen(self.engine, self.word))
