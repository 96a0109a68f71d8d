"""Console output: one reader for each form in which a trainer prints a step, among lines that are something else.

Each reader is given the lines that have its sign in them, and adds rows with this package's step names (names.STEPS).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from aepo.doctor.names import SWIFT_STEP
from aepo.doctor.names_large_scale import ROLLOUT_STEP
from aepo.doctor.readers.documents import object_of
from aepo.doctor.readers.rows import ENDS, Rows, number, unwrapped

# Ray puts "(TaskRunner pid=...) " before a line.
_VERL = re.compile(r"\bstep:(\d{1,18}) - (\S+:\S.*)$")
# Python printed the dictionary: nan and inf are bare names in it, which a parser of literals refuses.
_ITEM = re.compile(r"'([^'\n]+)':\s*(?:'([^'\n]*)'|([^\s,{}'\[\]]+))")
_FLAT = re.compile(r"\{'[^{}]*\}")
_BAR = re.compile(r"^\s*\d+%\|[^|]*\|\s*(\d{1,18})/\d+ \[")
_SLIME = re.compile(r"\b(perf|rollout|step|eval) (\d{1,18}): \{")
_OPENRLHF = re.compile(r"\bGlobal step (\d{1,18})(?: \[[^\]]*\])?: \{")
_PRIME = re.compile(r"\bStep (\d{1,18}) \| (.*)")
_PRIME_PART = re.compile(r"^\s*([A-Z][\w. -]*?):? (-?[\d.]+(?:e[+-]?\d+)?|nan|inf)(%?)(?:\s.*)?$")
_NEMO_HEAD = re.compile(r"={5,} (Step|Epoch) (\d{1,18})/\d+ ={5,}")
_NEMO_PART = re.compile(r"• ([A-Z][\w ]*): (-?[\d.]+(?:e[+-]?\d+)?|nan|inf|-inf)\s*$")
_AREAL_HEAD = re.compile(r"\bTrain step (\d{1,18})/\d+ done")
# A printed dictionary of more lines than this is no row.
LONGEST = 400


class Verl:
    """verl prints `step:N - key:value - ...`."""

    sign = "step:"

    def __init__(self) -> None:
        self.rows = Rows()

    def line(self, text: str) -> None:
        """Read a line with the sign."""
        found = _VERL.search(text)
        if found is None:
            return
        parts = (part.strip().rpartition(":") for part in unwrapped(found[2]).split(" - "))
        self.rows.add({"step": int(found[1]), **{key: value for key, _, value in parts}})


class Dicts:
    """TRL, Unsloth, ms-swift, slime, SkyRL and OpenRLHF print a Python dictionary, SkyRL over many lines.

    The step stands in the dictionary, before it, or in the progress bar before it; else it is the row's number. A
    progress bar that was not drawn anew shows an old step, which is then counted on.
    """

    sign = "'"

    def __init__(self) -> None:
        self.rows = Rows()
        self.open: list[str] = []
        self.bar: int | None = None
        self.steps: list[int] = []

    def progress(self, text: str) -> None:
        """Read a line with a progress bar; a bar that has a description is not that of the training steps."""
        if found := _BAR.match(text):
            self.bar = int(found[1])

    def line(self, text: str) -> None:
        """Read a line with a quote in it."""
        if "{'" in text:
            self.open = []
        elif not self.open:
            return
        self.open.append(text)
        if text.rfind("}") > text.rfind("{'"):
            whole, self.open = unwrapped("\n".join(self.open)), []
            end = 0
            for found in _FLAT.finditer(whole):
                self._dictionary(whole[end : found.start() + 1], found[0])
                end = found.end()
        elif len(self.open) > LONGEST:
            self.open = []

    def _dictionary(self, before: str, text: str) -> None:
        items = _items(text)
        if found := _SLIME.search(before):
            if found[1] != "eval":
                self.rows.add({**items, "step" if found[1] == "step" else ROLLOUT_STEP: int(found[2])})
        elif found := _OPENRLHF.search(before):
            self.rows.add({**items, "step": int(found[1])})
        elif "trainer/global_step" in items:
            self.rows.add(items)
        elif "Global step" not in before and {"epoch", "reward", "loss", ENDS, SWIFT_STEP} & set(items):
            self._of_transformers(items)

    def _of_transformers(self, items: Mapping[str, Any]) -> None:
        if ENDS in items:
            self.rows.add({ENDS: 0.0})
            self.bar, self.steps = None, []
        elif SWIFT_STEP in items or "step" in items:
            self.rows.add(items)
        elif "reward" in items or "loss" in items:
            self.steps = [*self.steps[-1:], self._step()]
            self.rows.add({**items, "step": self.steps[-1]})
        elif self.steps:
            # An evaluation belongs to the step before it.
            self.rows.add({**items, "step": self.steps[-1]})

    def _step(self) -> int:
        if self.bar and self.bar not in self.steps[-1:]:
            return self.bar
        if not self.steps:
            return 1
        interval = self.steps[-1] - self.steps[-2] if len(self.steps) > 1 else 1
        return self.steps[-1] + max(1, interval)


def _items(text: str) -> Mapping[str, Any]:
    """Return the items of a printed dictionary. Most can be parsed as JSON, which is ten times as fast."""
    found, _ = object_of(text.replace("'", '"'))
    return found or {key: quoted or bare for key, quoted, bare in _ITEM.findall(text)}


class PrimeRL:
    """prime-rl prints `Step N | Time: 1.0s | Loss: 0.1 | ...`, the trainer and the orchestrator each for itself."""

    sign = "Step "
    names: Mapping[str, str] = {
        "Loss": "loss/mean",
        "Entropy": "entropy/all/mean",
        "Mismatch KL": "mismatch_kl/all/mean",
        "Grad. Norm": "optim/grad_norm",
        "LR": "optim/lr",
        "Reward": "reward/all/mean",
        "Seq. Length": "seq_len/all/mean",
        "Truncation": "is_truncated/all/mean",
    }

    def __init__(self) -> None:
        self.rows = Rows()

    def line(self, text: str) -> None:
        """Read a line with the sign."""
        found = _PRIME.search(text)
        if found is None:
            return
        row: dict[str, float] = {}
        for part in filter(None, map(_PRIME_PART.match, found[2].split("|"))):
            value = number(part[2])
            if part[1] in self.names and value is not None:
                row[self.names[part[1]]] = value / 100 if part[3] == "%" else value
        if row:
            self.rows.add({**row, ROLLOUT_STEP if "reward/all/mean" in row else "step": int(found[1])})


class NemoRL:
    """NeMo-RL prints a heading for each step, and a list of numbers below it."""

    sign = "• "
    names: Mapping[str, str] = {
        "Loss": "loss",
        "Generation KL Error": "gen_kl_error",
        "Avg Reward": "reward",
        "Avg Filtered Reward": "reward",
        "Avg Total Reward": "total_reward",
        "Mean Generation Length": "mean_gen_tokens_per_sample",
    }

    def __init__(self) -> None:
        self.rows = Rows()
        self.before, self.step = 0, 0

    def heading(self, text: str) -> None:
        """Read a line with equals signs. The steps of an epoch are counted from 1 on, epochs go on."""
        found = _NEMO_HEAD.search(text)
        if found is None:
            return
        if found[1] == "Epoch":
            self.before = self.before + self.step if int(found[2]) > 1 else 0
            self.step = 0
        else:
            self.step = int(found[2])

    def line(self, text: str) -> None:
        """Read a line with the sign."""
        found = _NEMO_PART.search(text)
        if found and found[1] in self.names:
            self.rows.add({"step": self.before + self.step, self.names[found[1]]: number(found[2])})


class Areal:
    """AReaL prints a line with the step, and a table of statistics below it."""

    sign = "│"

    def __init__(self) -> None:
        self.rows = Rows()
        self.step: int | None = None

    def heading(self, text: str) -> None:
        """Read a line with the words "Train step"."""
        if found := _AREAL_HEAD.search(text):
            self.step = int(found[1])

    def line(self, text: str) -> None:
        """Read a line of a table: cells with a name and a number by turns."""
        cells = [cell.strip() for cell in text.split(self.sign)[1:-1]]
        if self.step is not None and len(cells) > 1:
            self.rows.add({"step": self.step, **dict(zip(cells[::2], cells[1::2], strict=False))})


class EasyR1:
    """EasyR1 prints `Step N`, and below it its numbers as YAML: one key a line, groups by indentation."""

    sign = "Step "
    _head = re.compile(r"(?:^|\) )Step (\d{1,18})\s*$")
    _line = re.compile(r"^(?:\([^)]*\) )?( *)([\w@/.+-]+):(?: (\S+))?\s*$")

    def __init__(self) -> None:
        self.rows = Rows()
        self.step: int | None = None
        self.row: dict[str, float] = {}
        self.groups: list[tuple[int, str]] = []

    def heading(self, text: str) -> None:
        """Read a line with the sign."""
        if found := self._head.search(text):
            self.end()
            self.step = int(found[1])

    def line(self, text: str) -> None:
        """Read a line below the step; the first that is no YAML ends the step."""
        if self.step is None:
            return
        found = self._line.match(text)
        if found is None:
            self.end()
            return
        self.groups = [group for group in self.groups if group[0] < len(found[1])]
        value = number(found[3])
        if found[3] is None:
            self.groups.append((len(found[1]), found[2]))
        elif value is not None:
            self.row["/".join([*(name for _, name in self.groups), found[2]])] = value

    def end(self) -> None:
        """Add the row of the step that is over."""
        if self.step is not None and self.row:
            self.rows.add({"step": self.step, **self.row})
        self.step, self.row, self.groups = None, {}, []


class Objects:
    """ROLL prints `{"step": N, "metrics": {...}}` behind a heading of the line."""

    sign = '{"'

    def __init__(self) -> None:
        self.rows = Rows()

    def line(self, text: str) -> None:
        """Read a line with the sign."""
        found, _ = object_of(text[text.index(self.sign) :].rstrip())
        if found:
            metrics = found.get("metrics")
            self.rows.add({**metrics, "step": found.get("step")} if isinstance(metrics, dict) else found)


class Console:
    """`Console` hands each line to the readers whose sign is in it."""

    def __init__(self) -> None:
        verl, dicts, prime, nemo, areal, easyr1, objects = (
            Verl(), Dicts(), PrimeRL(), NemoRL(), Areal(), EasyR1(), Objects(),
        )  # fmt: skip
        self.easyr1 = easyr1
        self.readers: tuple[tuple[str, Callable[[str], None]], ...] = (
            (verl.sign, verl.line),
            ("%|", dicts.progress),
            (dicts.sign, dicts.line),
            (prime.sign, prime.line),
            ("=====", nemo.heading),
            (nemo.sign, nemo.line),
            ("Train step", areal.heading),
            (areal.sign, areal.line),
            (easyr1.sign, easyr1.heading),
            (objects.sign, objects.line),
        )
        self._rows = (verl.rows, dicts.rows, prime.rows, nemo.rows, areal.rows, easyr1.rows, objects.rows)

    def line(self, text: str) -> None:
        """Read a line."""
        if self.easyr1.step is not None:
            self.easyr1.line(text)
        for sign, read in self.readers:
            if sign in text:
                read(text)

    def rows(self) -> list[Rows]:
        """Return the rows of each form that has some."""
        self.easyr1.end()
        return [rows for rows in self._rows if rows.count]
