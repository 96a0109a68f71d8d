"""The doctor during a run: `Watcher` gets rows as they are logged; `follow` reads a log again whenever it grows."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aepo.doctor.checks import examine
from aepo.doctor.names import recognise
from aepo.doctor.readers import read_all
from aepo.doctor.types import Confidence, EntropyMeaning, Finding, Log
from aepo.errors import require

FILE = "doctor.jsonl"
# The address of a webhook can be a secret, so that it can come from the environment, too.
WEBHOOK = "AEPO_DOCTOR_WEBHOOK"
ORDER: tuple[Confidence, ...] = ("possible", "likely", "sure")
# A look costs more in a long log, so that the next one comes after this share of its rows.
PATIENCE = 50
# Seconds for one call of the webhook.
TIMEOUT = 10.0
# Loggers put these before the keys of training.
PREFIX = "train/"

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """`DoctorConfig` says how the doctor watches a run, and what it does when it finds something."""

    every: int = 10
    """Logged steps between two looks of the doctor. 0 means that it does not watch the run."""
    stop_on: Literal["never", "likely", "sure"] = "never"
    """The confidence of a fault from which the run is stopped; `never` only warns."""
    webhook: str | None = None
    """Address that gets every new fault as a JSON object by POST; its `text` is one line. None takes the environment
    variable AEPO_DOCTOR_WEBHOOK, if it is set.
    """

    def __post_init__(self) -> None:
        require(self.every >= 0, "doctor.every", self.every, "a number of logged steps, or 0 for never")
        names = ("never", "likely", "sure")
        require(self.stop_on in names, "doctor.stop_on", self.stop_on, f"one of {', '.join(names)}")
        webhook = self.webhook
        good = webhook is None or webhook.startswith(("http://", "https://"))
        require(good, "doctor.webhook", webhook, "an address that begins with http:// or https://")


class News:
    """`News` tells each fault once, and again when it becomes surer: a line, a row in a file, a webhook.

    Args:
        options: What to do with a fault.
        file: The file that gets one JSON object per fault; None writes none. Faults that it has are not told again.
        say: The function that shows a line.
    """

    def __init__(self, options: DoctorConfig, file: Path | None, say: Say) -> None:
        self._options, self._file, self._say = options, file, say
        self._told: dict[str, int] = {}
        self._failed = False
        for row in _rows(file) if file else ():
            self._remember(*(str(row.get(name, "")) for name in ("source", "kind", "evidence", "confidence")))

    def tell(self, findings: Iterable[Finding], at: int, source: str = "") -> bool:
        """Tell what is new, and return whether the run has to stop.

        Args:
            findings: All findings of a look.
            at: The newest step of the log.
            source: The name of the log, if there are several.
        """
        stops = False
        for found in findings:
            if not found.serious or not self._remember(source, found.kind, found.evidence, found.confidence):
                continue
            stop = self._options.stop_on != "never" and _rank(found.confidence) >= _rank(self._options.stop_on)
            stops |= stop
            where = f"from step {found.step}" if found.step is not None else "in the whole log"
            line = f"doctor: {found.kind} ({found.confidence}, {where}): {found.evidence}; {found.advice}"
            line = f"{line} [{source}]" if source else line
            self._say(line)
            row = {**dataclasses.asdict(found), "first_step": found.step, "step": at, "source": source, "stop": stop}
            self._write(row)
            self._post({"text": line, **row})
        return stops

    def _remember(self, source: str, kind: str, evidence: str, confidence: str) -> bool:
        """Return whether this is new, or surer than before. Figures in the evidence do not make it new."""
        name = f"{source}: {kind}: {re.sub(r'[-+]?[0-9][0-9.e+-]*%?', '#', ' '.join(evidence.split()[:3]))}"
        new = _rank(confidence) > self._told.get(name, -1)
        if new:
            self._told[name] = _rank(confidence)
        return new

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            self._fail(f"{self._file} cannot be written ({error.strerror})")

    def _post(self, row: Mapping[str, Any]) -> None:
        address = self._options.webhook or os.environ.get(WEBHOOK)
        if address:
            threading.Thread(target=self._call, args=(address, json.dumps(row).encode()), daemon=False).start()

    def _call(self, address: str, body: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        try:
            request = urllib.request.Request(address, body, headers, method="POST")
            urllib.request.urlopen(request, timeout=TIMEOUT).close()
        except (OSError, ValueError) as error:
            self._fail(f"the webhook did not take a finding ({error})")

    def _fail(self, what: str) -> None:
        """Say the first failure; the doctor never ends a run because it cannot tell."""
        if not self._failed:
            self._failed = True
            self._say(f"doctor: {what}")


class Watcher:
    """`Watcher` collects the rows of a run and looks at them after every so many rows.

    Args:
        options: When to look and what to do.
        folder: The folder that gets doctor.jsonl; None writes none.
        say: The function that shows a line.
        settings: The settings of a run of this package.
    """

    def __init__(
        self, options: DoctorConfig, folder: Path | None, say: Say, settings: Mapping[str, Any] | None = None
    ) -> None:
        self._options, self._settings = options, settings or {}
        self._news = News(options, folder / FILE if folder else None, say)
        self._rows: dict[int, dict[str, float]] = {}
        self._next = options.every

    def add(self, step: int, row: Mapping[str, Any]) -> None:
        """Add a logged row without a look; a second row of a step adds its keys to the first."""
        self._rows.setdefault(step, {}).update(_numbers(row))

    def see(self, step: int, row: Mapping[str, Any]) -> bool:
        """Add a logged row, look if it is time, and return whether the run has to stop."""
        self.add(step, row)
        if not self._options.every or len(self._rows) < self._next:
            return False
        self._next = len(self._rows) + max(self._options.every, len(self._rows) // PATIENCE)
        return self.look()

    def look(self) -> bool:
        """Examine the rows so far, tell what is new, and return whether the run has to stop."""
        log = to_log(self._rows, self._settings)
        return log is not None and self._news.tell(examine(log), max(self._rows))


def to_log(rows: Mapping[int, Mapping[str, float]], settings: Mapping[str, Any]) -> Log | None:
    """Return the log that rows under a trainer's own keys make; None if no known trainer writes such keys."""
    present = {key for row in rows.values() for key in row}
    dialect = recognise(present)
    if dialect is None:
        return None
    keys = {
        name: next(key for key in wanted if key in present)
        for name, wanted in dialect.keys.items()
        if present.intersection(wanted)
    }
    series: dict[str, list[tuple[int, float]]] = {}
    for step, row in sorted(rows.items()):
        ours = {name: row[key] for name, key in keys.items() if key in row}
        for name, value in {**ours, **dialect.derive(ours)}.items():
            series.setdefault(name, []).append((step, value))
    meaning = dialect.entropies.get(keys.get("entropy", ""), EntropyMeaning("unknown", "its meaning is not documented"))
    points = {name: tuple(values) for name, values in series.items()}
    return Log(dialect.name, "this run", points, keys, meaning, settings=settings) if points else None


def follow(
    paths: Sequence[Path | str],
    options: DoctorConfig,
    file: Path | None = None,
    say: Say = print,
    interval: float = 10.0,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Read logs again whenever they change, and tell each new fault, until Ctrl-C or a fault that `stop_on` names.

    Args:
        paths: Log files or folders, which need not exist yet, or runs on W&B.
        options: What to do with a fault; `every` is not used.
        file: The file that gets the faults as JSON lines; None writes none.
        say: The function that shows a line.
        interval: Seconds between two looks at the files.
        sleep: The function that waits.

    Returns:
        The exit code: 1 if a fault was sure or likely, else 0.
    """
    require(bool(paths), "LOG", "nothing", "at least one file or folder")
    require(interval > 0, "interval", interval, "a positive number of seconds")
    news, bad = News(options, file, say), False
    seen: dict[Path | str, tuple[tuple[str, int, int], ...]] = {}
    waiting: set[str] = set()
    say(f"doctor: follows {', '.join(map(str, paths))} (Ctrl-C ends it)")
    try:
        while True:
            began = time.monotonic()
            for path in paths:
                now = _signature(path)
                if now and now == seen.get(path):
                    continue
                seen[path] = now
                logs = _read(path, say, waiting)
                for log in logs:
                    found = examine(log)
                    bad |= any(finding.counts for finding in found)
                    if news.tell(found, log.steps[1], log.source if len(paths) + len(logs) > 2 else ""):
                        return 1
            # A log that takes long to read is read more rarely.
            sleep(max(interval, 5 * (time.monotonic() - began)))
    except KeyboardInterrupt:
        return int(bad)


def _read(path: Path | str, say: Say, waiting: set[str]) -> list[Log]:
    """Return the logs; say once of each file or run that it cannot be read."""
    logs, left_out = read_all([path])
    for error in left_out:
        if str(error.got) not in waiting:
            waiting.add(str(error.got))
            say(f"doctor: waits for {error.got}: must be {error.wanted}")
    return logs


def _signature(place: Path | str) -> tuple[tuple[str, int, int], ...]:
    """Return name, size and time of change of every file that a place stands for; nothing for a run on W&B."""
    path = Path(place).expanduser()
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    found = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            continue
        found.append((str(file), status.st_size, status.st_mtime_ns))
    return tuple(found)


def _numbers(row: Mapping[str, Any], group: str = "") -> dict[str, float]:
    """Return the numbers of a row, also in nested rows, under keys without `train/`."""
    found: dict[str, float] = {}
    for key, value in row.items():
        name = f"{group}{str(key).removeprefix(PREFIX)}"
        if isinstance(value, Mapping):
            found.update(_numbers(value, f"{name}/"))
            continue
        try:
            found[name] = float(value)
        except (TypeError, ValueError):
            continue
    return found


def _rows(file: Path) -> list[Mapping[str, Any]]:
    """Return the rows of an older doctor.jsonl; lines that are broken are left out."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    rows: list[Mapping[str, Any]] = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        rows += [row] if isinstance(row, dict) else []
    return rows


def _rank(confidence: str) -> int:
    return next((at for at, name in enumerate(ORDER) if name == confidence), -1)


__all__ = ["FILE", "DoctorConfig", "News", "Watcher", "follow", "to_log"]
