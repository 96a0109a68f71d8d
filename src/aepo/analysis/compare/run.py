"""`compare` runs a whole comparison: it reads the file, starts the runs and writes the table."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import torch
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from aepo.analysis.compare.results import BASE, BASE_FILE, Comparison, Result, compared, measured
from aepo.analysis.compare.study import Study, read_study
from aepo.analysis.compare.table import COLUMNS, REACHED, caption, cells, markdown
from aepo.config import Config, to_dict
from aepo.control.base import hooks
from aepo.errors import require
from aepo.planning.dry_run import GIB, architecture, most_extra, on_paper
from aepo.training.folder import METRICS, check_folder, cpu_count, read_rows, write_atomically
from aepo.training.preflight import preflight
from aepo.training.processes import launch
from aepo.training.runner import check_machine, evaluate_base, model_folder

# The memory of a process before it loads weights (bytes), and the factor on the computed memory of a run. The factor
# leaves space for activations.
PROCESS, ROOM = 1 * GIB, 1.5


def compare(file: Path, out: Path, *, dry_run: bool = False, at_once: int | None = None) -> Comparison | None:
    """Run what is not finished yet, and write comparison.json and comparison.md into `out`.

    Args:
        file: The file that describes the comparison.
        out: The folder of the comparison.
        dry_run: Whether to print only the plan.
        at_once: The number of runs at the same time. None means as many as fit on the machine.

    Returns:
        The comparison, or None after a dry run.

    Raises:
        InvalidValue: The file asks for something that is not possible. This is raised before the first run.
    """
    require(at_once is None or at_once >= 1, "--at-once", at_once, "at least 1")
    check_folder("--out", out)
    study = read_study(file, out)
    check_machine(study.runs[0].config)
    study.runs[0].config.task.check()
    together = at_once or _held(study.runs[0].config)
    for line in plan(study, together):
        print(line, flush=True)
    if dry_run:
        return None
    study.prepare()
    # The model is made once here. Otherwise every run would make it at the same time.
    model_folder(study.runs[0].config)
    launch(study.jobs(), together)
    results = {arm.label: [measured(run.out) for run in study.of(arm)] for arm in study.arms}
    base = _base(study.runs[0].config, out)
    found = compared(study.baseline, {BASE: [base] * len(study.seeds), **results})
    text = markdown(found, study.unit, study.budget, study.seeds)
    write_atomically(out / "comparison.json", json.dumps(asdict(found), indent=2))
    write_atomically(out / "comparison.md", text)
    _print(found, study)
    print(f"written: {out / 'comparison.md'}, {out / 'comparison.json'}")
    return found


def _base(config: Config, out: Path) -> Result:
    """Return the evaluation of the base model.

    The evaluation is kept in `out` together with its settings. It is made again if the settings change.
    """
    file = out / BASE_FILE
    settings = {name: to_dict(config)[name] for name in ("model", "task", "evaluation", "sampling", "policy")}
    try:
        kept = json.loads(file.read_text())
    except (OSError, ValueError):  # The file is absent or cannot be read.
        kept = None
    if not isinstance(kept, dict) or kept.get("settings") != settings:
        found = evaluate_base(config)
        kept = {"settings": settings, "problems": found.problems, "correct": found.correct, "samples": found.samples}
        write_atomically(file, json.dumps(kept))
    return Result(tuple(kept["problems"]), tuple(kept["correct"]), kept["samples"], ())


def plan(study: Study, together: int) -> list[str]:
    """Return the plan as lines of text: each run with its cost and progress, the sentences of preflight, and a total.

    Args:
        study: The comparison.
        together: The number of runs at the same time.
    """
    said = []
    for run, job in zip(study.runs, study.jobs(), strict=True):
        done = len(read_rows(run.out / METRICS))
        state = "finished" if job.finished else f"{done} steps done" if done else "to do"
        said.append(f"{run.out.name}: {study.budget} {study.unit}, at most {run.config.steps} steps; {state}")
    for arm in study.arms:
        said += [f"preflight, {arm.label}: {sentence}" for sentence in preflight(study.of(arm)[0].config)]
    config, runs = study.runs[0].config, len(study.runs)
    evaluation = config.evaluation
    step = config.sampling.prompts * config.sampling.group_size
    most = sum(most_tokens(run.config, study.unit, study.budget) for run in study.runs)
    rounds = any("follow_up" in hooks(run.config.control) for run in study.runs)
    said.append(
        f"{runs} runs, {together} at once: {runs} x {study.budget} {study.unit} (each ends with the step that reaches "
        f"it; an ordinary step is {step} completions), at most {most:,} tokens"
        f"{' and what further rounds in the last steps draw' * rounds}; and at the end of each "
        f"{evaluation.prompts} problems x {evaluation.samples} samples"
    )
    return said


def most_tokens(config: Config, unit: str, budget: int) -> int:
    """Return the largest number of tokens that a run may sample.

    The last step counts as a whole: it begins while the run is at least one completion (or token) below its budget.
    Further rounds of a control within that step are not counted.
    """
    extra = most_extra(config)
    step, longest = config.sampling.prompts * config.sampling.group_size + extra, config.task.max_tokens
    if unit == "tokens":
        return budget - 1 + step * longest
    # Without extra completions all steps have the same size, and this many whole steps reach the budget. With them the
    # sizes differ, and the last step may begin one completion below the budget.
    return (budget - 1 + step if extra else step * -(-budget // step)) * longest


def _held(config: Config) -> int:
    """Return how many runs fit on the machine at the same time, at least one.

    The memory limits this number. On the CPU, the number of cores limits it too.
    """
    need = ROOM * sum(on_paper(config, architecture(config)).memory.values())
    if config.device != "cpu" and torch.cuda.is_available():
        return max(1, int(torch.cuda.mem_get_info()[0] / (need + PROCESS)))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cpu_count(), int(memory / (need + PROCESS))))


def _print(found: Comparison, study: Study) -> None:
    """Print a table of results and a table of costs. Each table fits into 80 columns."""
    console, lines = Console(), [(escape(label), *numbers) for label, *numbers in cells(found, short=True)]
    for columns in (range(1, REACHED), range(REACHED, len(COLUMNS))):
        table = Table(COLUMNS[0], *(COLUMNS[column] for column in columns), box=SIMPLE, padding=(0, 1))
        for line in lines:
            table.add_row(line[0], *(line[column] for column in columns))
        console.print(table)
    console.print(caption(found, study.unit, study.budget, study.seeds), markup=False)
