"""`aepo doctor`: it prints the findings as a table for a terminal, or as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aepo.doctor.checks import examine
from aepo.doctor.checks.facts import missing
from aepo.doctor.page import check_page, write_page
from aepo.doctor.readers import read_all
from aepo.doctor.types import Finding, Log
from aepo.errors import InvalidValue, require

Examined = tuple[Log, list[Finding]]


def doctor(
    paths: Sequence[Path | str], resumes: Sequence[int] = (), as_json: bool = False, page: Path | None = None
) -> int:
    """Read the logs, examine them and print the findings.

    Args:
        paths: Log files, folders with logs in them, or `wandb://entity/project/run`.
        resumes: Steps at which the runs were resumed, in addition to those that the logs show.
        as_json: Print JSON instead of a table.
        page: An HTML page to write as well, with a figure for each finding; None writes none.

    Returns:
        The exit code: 1 if a serious finding is sure or likely, else 0.

    Raises:
        InvalidValue: No path has a log that can be read; or `paths` is empty.
    """
    require(bool(paths), "LOG", "nothing", "at least one file or folder")
    if page is not None:
        check_page(page)
    logs, left_out = read_all(paths, resumes)
    if not logs:
        raise _none_read(left_out)
    examined = [(log, examine(log)) for log in logs]
    if page is not None:
        write_page(page, examined, left_out)
    if as_json:
        missing = [{"source": str(error.got), "left_out": f"must be {error.wanted}"} for error in left_out]
        print(json.dumps([*(_as_dict(*pair) for pair in examined), *missing], indent=2))
    else:
        _print(examined)
        for error in left_out:
            print(f"left out: {error.got}: must be {error.wanted}")
    return int(any(finding.counts for _, findings in examined for finding in findings))


def _none_read(left_out: Sequence[InvalidValue]) -> InvalidValue:
    """Return the error that names every file if there are several."""
    if len(left_out) == 1:
        return left_out[0]
    each = "; ".join(f"{error.got}: must be {error.wanted}" for error in left_out)
    sources = [str(error.got) for error in left_out]
    return InvalidValue("LOG", sources, f"logs, of which at least one can be read ({each})")


def _as_dict(log: Log, findings: Sequence[Finding]) -> dict[str, Any]:
    first, last = log.steps
    return {
        "source": log.source,
        "framework": log.framework,
        "first_step": first,
        "last_step": last,
        "entropy": log.entropy.says,
        "keys": dict(log.keys),
        "read": sorted(log.series),
        "missing": missing(log),
        "resumes": list(log.resumes),
        "notes": list(log.notes),
        "findings": [dataclasses.asdict(finding) for finding in findings],
    }


def _print(examined: Sequence[Examined]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for log, findings in examined:
        for line in _head(log):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        faults = [found for found in findings if found.serious]
        if faults:
            table = Table("finding", "step", "how sure", "evidence", "what to do", show_lines=True)
            for found in faults:
                table.add_row(*map(escape, (found.kind, _step(found), found.confidence, found.evidence, found.advice)))
            console.print(table)
        else:
            console.print("  no fault found in what was read", markup=False, highlight=False)
        for found in findings:
            if not found.serious:
                fact = f"  fact: {found.kind}: {found.evidence}; {found.advice}"
                console.print(fact, markup=False, highlight=False, soft_wrap=True)
        console.print()


def _head(log: Log) -> list[str]:
    """Return the lines that say what was read, what its entropy is, and what was not in the log or left out."""
    first, last = log.steps
    lines = [f"{log.source}: {log.framework}, steps {first} to {last}"]
    if "entropy" in log.series:
        lines.append(f"  entropy (`{log.keys.get('entropy')}`) is {log.entropy.says}")
    lines.append(f"  read: {', '.join(sorted(log.series))}")
    if lacking := missing(log):
        lines.append(f"  not in the log, so not judged: {', '.join(lacking)}")
    if log.resumes:
        lines.append(f"  resumed at step {', '.join(map(str, log.resumes))}")
    return [*lines, *(f"  note: {note}" for note in log.notes)]


def _step(found: Finding) -> str:
    return "all" if found.step is None else str(found.step)
