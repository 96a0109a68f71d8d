"""`report` makes the files of `aepo report` from run folders."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from aepo.analysis.about import about
from aepo.analysis.report.figures import figures
from aepo.analysis.report.markdown import markdown
from aepo.analysis.report.numbers import differences, group_table, groups, largest_k, missing, run_table
from aepo.analysis.report.page import Report, page
from aepo.analysis.report.runs import (
    Curve,
    RunRecord,
    base_beside,
    base_curve,
    first_curve,
    names_of_data,
    read_runs,
    run_folders,
)
from aepo.analysis.report.samples import chosen
from aepo.errors import InvalidValue
from aepo.training.folder import write_atomically
from aepo.training.plot import save

FIGURES, HTML, MARKDOWN = "figures", "report.html", "report.md"


def report(folders: Sequence[Path], out: Path | None, base: Path | None, steps: Sequence[int]) -> Path:
    """Write report.html, report.md and figures/*.png, *.svg into `out`.

    Folders that are not run folders are left out if at least one is a run folder (`run_folders`).

    Args:
        folders: The run folders.
        out: The folder of the report. None means report/ in the folder of a single run, or beside several runs.
        base: The evaluation of the base model. None means base.json beside the runs, if it belongs to them.
        steps: The steps whose samples are shown. If it is empty, the first, the middle and the last sampled step of
            each run are shown.

    Returns:
        The path of the page.

    Raises:
        InvalidValue: A path is not a run folder or not an evaluation (nothing is written then), or `out` cannot be
            written.
    """
    kept = run_folders(folders)
    runs = read_runs(kept)
    made = gather(runs, base or base_beside(kept, runs), steps, None if base else first_curve(kept, runs))
    parents = [folder.resolve().parent for folder in kept]
    home = kept[0] if len(runs) == 1 else Path(os.path.commonpath(parents))
    return write(made, out or home / "report")


def gather(runs: Sequence[RunRecord], base: Path | None, steps: Sequence[int], first: Curve | None = None) -> Report:
    """Return the full content of the report on these runs.

    Args:
        runs: The runs.
        base: The evaluation of the base model, or None.
        steps: The steps whose samples are shown.
        first: The curve of the runs' own evaluation before training. It stands in for `base`.
    """
    found = groups(runs)
    tasks = sorted({run.task for run in runs if run.task})
    curve = first if base is None else base_curve(base, names_of_data(runs))
    pictures, left_out = figures(runs, found, curve)
    texts, without = chosen(runs, steps)
    tables = [run_table(runs), group_table(found, largest_k(runs)), differences(runs)]
    mixed = [f"one task: the runs have {', '.join(tasks)}, and their scores do not compare"] if len(tasks) > 1 else []
    if curve is None and any(run.evaluation() for run in runs):
        mixed.append("the base model's pass@k: give it with --base FOLDER, the folder of an `aepo evaluate` of it")
    return Report(
        facts=facts(runs),
        title=f"Report on {runs[0].label}" if len(runs) == 1 else f"Report on {len(runs)} runs",
        made_by=shlex.join(["aepo", *sys.argv[1:]]),
        tables=[table for table in tables if table],
        figures=pictures,
        samples=texts,
        missing=[*mixed, *missing(runs), *left_out, *without],
    )


def facts(runs: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """Return model, data, reward and learning rate of the runs. Where runs differ, each value is there once."""
    told = [about(run.config) for run in runs]
    names = dict.fromkeys(name for one in told for name in one)
    return [(name, "; ".join(dict.fromkeys(one[name] for one in told if name in one))) for name in names]


def write(made: Report, out: Path) -> Path:
    """Write the report and its figures into `out`, and return the path of the HTML page.

    Raises:
        InvalidValue: The folder cannot be written.
    """
    try:
        (out / FIGURES).mkdir(parents=True, exist_ok=True)
        for shown in made.figures:
            save(shown.canvas, out / FIGURES / shown.name)
        write_atomically(out / MARKDOWN, markdown(made, FIGURES))
        drawings = {shown.name: (out / FIGURES / f"{shown.name}.svg").read_bytes() for shown in made.figures}
        write_atomically(out / HTML, page(made, drawings))
    except OSError as error:
        raise InvalidValue("--out", str(out), f"a folder that can be written ({error.strerror})") from None
    return out / HTML
