"""`demo` makes the figure of the README: the entropy of GRPO falls, and AEPO holds the entropy at its targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from aepo.analysis.tracking import SETTLED, tracking
from aepo.config import default_config
from aepo.errors import require
from aepo.model.policy import Policy
from aepo.training.folder import METRICS, check_folder, cpu_count, read_rows, write_atomically
from aepo.training.plot import figure, save
from aepo.training.processes import Job, launch
from aepo.training.runner import evaluate_policy, model_folder

# The built-in task can reach these targets. docs/decisions.md has the measurements.
TARGETS = ("0.4", "0.6", "0.8")
PROBLEMS, SAMPLES = 128, 256


def demo(out: Path, steps: int, seed: int) -> None:
    """Start or continue the four runs, and write figure.png, figure.svg and table.md into `out`."""
    require(steps >= 1, "--steps", steps, "at least 1")
    check_folder("--out", out)
    config = default_config()
    policy = Policy.load(model_folder(config))
    base = evaluate_policy(policy, config, PROBLEMS, SAMPLES)
    print(f"{len(TARGETS) + 1} runs of {steps} steps, {cpu_count()} at once", flush=True)
    jobs = {"GRPO": evaluated_job(out / f"grpo-seed{seed}-{steps}", ("--method", "grpo"), steps, seed)}
    for target in TARGETS:
        arguments = ("--method", "aepo", "--target", target)
        jobs[f"AEPO {target}"] = evaluated_job(out / f"aepo-{target}-seed{seed}-{steps}", arguments, steps, seed)
    launch(list(jobs.values()))

    runs = {label: read_rows(job.out / METRICS) for label, job in jobs.items()}
    save(figure(runs, "One base model, one seed, the same prompts: only the entropy control differs"), out / "figure")
    table = [_base_row(base.row()), *(_row(label, rows) for label, rows in runs.items())]
    write_atomically(out / "table.md", _markdown(table))
    _print(table)
    print(f"figure: {out / 'figure.png'}\ntable: {out / 'table.md'}")


COLUMNS = ("run", "entropy", "error", "RMSE", "settled", "extra", "pass@1", f"pass@{SAMPLES}")
CAPTION = (
    "entropy: nats per token, mean of the last third; error (mean) and RMSE: nats, after settling; settled: the step "
    f"after which |error| stays at most {SETTLED}; extra: completions drawn by the control beside the ordinary ones; "
    f"pass@k: unbiased, {SAMPLES} samples of each of {PROBLEMS} held-out problems at T = 1"
)


def evaluated_job(folder: Path, arguments: tuple[str, ...], steps: int, seed: int) -> Job:
    """Return a job whose run is evaluated once, at its end, in the same way as the base model."""
    evaluation = ("every=1000000", "first=false", f"prompts={PROBLEMS}", f"samples={SAMPLES}")
    settings = [part for setting in evaluation for part in ("--set", f"evaluation.{setting}")]
    return Job(folder, (*arguments, "--seed", str(seed), *settings), steps)


def _base_row(scores: dict[str, float]) -> tuple[str, ...]:
    return ("base", "", "", "", "", "", f"{scores['pass@1']:.3f}", f"{scores[f'pass@{SAMPLES}']:.3f}")


def _row(label: str, rows: list[dict[str, Any]]) -> tuple[str, ...]:
    held = tracking(rows)
    controlled = rows[-1]["target_entropy"] is not None
    settled = "never" if held.settling_step is None else str(held.settling_step)
    scores = rows[-1]["evaluation"]
    return (
        label,
        f"{held.last_third_entropy:.3f}",
        f"{held.mean_error:+.3f}" if controlled else "",
        f"{held.rmse:.3f}" if controlled else "",
        settled if controlled else "",
        f"{held.extra_share:+.0%}" if controlled else "",
        f"{scores['pass@1']:.3f}",
        f"{scores[f'pass@{SAMPLES}']:.3f}",
    )


def _markdown(table: list[tuple[str, ...]]) -> str:
    lines = [COLUMNS, ("---",) * len(COLUMNS), *table]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{CAPTION}.\n"


def _print(table: list[tuple[str, ...]]) -> None:
    shown = Table(*COLUMNS, caption=CAPTION)
    for line in table:
        shown.add_row(*line)
    Console().print(shown)
