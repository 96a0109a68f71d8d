"""How near the laws hold their targets, untuned, over learning rates, batches, model sizes, tasks and targets.

python benchmarks/law_grid.py [--out runs/law-grid] [--cells 24] [--laws self-tuning pi switch] [--seeds 20]
                              [--minutes 60] [--at-once 1] [--report benchmarks/results/law_grid_cpu.md]

A cell is one choice of everything but the law; `--cells` takes so many of the whole grid, drawn by a fixed seed. Every
run has STEPS steps of the method `aepo`, and its checkpoints of the second half are measured on the same prompts
(`aepo evaluate --entropy`). Finished runs are not repeated. Over the second half of a run: `readings` is the RMSE of
the steps' entropies to the target, `floor` the root mean square of their standard errors, `true` the RMSE of the
checkpoints' entropies and `mean` the mean of those errors (target minus entropy), all in nats per token. Authority
suffices where the command is at its limit in less than half of the steps.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

from aepo.model.builtin import Pretraining, base_model
from aepo.training.folder import METRICS, read_rows
from aepo.training.processes import Job, launch

STEPS, PROMPTS_MEASURED, CHECKPOINT_EVERY = 150, 512, 10
SIZES = {
    "0.1M": Pretraining(),
    "0.5M": Pretraining(hidden=144, layers=2, heads=4, feed_forward=432, lr=2e-3),
    "2M": Pretraining(hidden=256, layers=3, heads=8, feed_forward=512, lr=1e-3),
}


@dataclass(frozen=True)
class Cell:
    """`Cell` is everything of a run but its law."""

    task: str
    size: str
    lr: float
    prompts: int
    group: int
    target: str
    seed: int

    @property
    def name(self) -> str:
        """The name of the cell in folders and tables."""
        return f"{self.task}-{self.size}-lr{self.lr:g}-{self.prompts}x{self.group}-{self.target}-seed{self.seed}"

    def arguments(self, law: str) -> tuple[str, ...]:
        """The arguments of `aepo train`."""
        settings = {
            "model": str(base_model(self.task, pretraining=SIZES[self.size])),
            "task": self.task,
            "control.law": law,
            "optimizer.lr": self.lr,
            "optimizer.warmup": 0,
            "optimizer.microbatch": "none",
            "policy.gradient_checkpointing": "false",
            "sampling.prompts": self.prompts,
            "sampling.group_size": self.group,
            "evaluation.every": 0,
            "checkpoint.every": CHECKPOINT_EVERY,
            "checkpoint.keep": 1000,
            **({"control.approach": 0} if law == "switch" else {}),
        }
        parts = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        return ("--method", "aepo", "--target", self.target, "--seed", str(self.seed), *parts)


def grid(seeds: list[int]) -> list[Cell]:
    """Every cell, for each seed."""
    axes = (("paths", "programs"), tuple(SIZES), (1e-4, 3e-4, 1e-3), (16, 64), (4, 8, 16), ("0.6x", "0.8x"), seeds)
    return [Cell(*values) for values in itertools.product(*axes)]


def result(folder: Path) -> dict[str, float]:
    """What a finished run and the entropies of its checkpoints say."""
    rows = read_rows(folder / METRICS)
    late = rows[len(rows) // 2 :]
    true = json.loads((folder / "entropy.json").read_text())
    return {
        "readings": root_mean_square([row["error"] for row in late]),
        "floor": root_mean_square([row["entropy_se"] for row in late]),
        "true": true["rmse"],
        "mean": true["mean_error"],
        "saturated": sum(row["saturated"] for row in late) / len(late),
        "reward": sum(row["reward"] for row in late) / len(late),
        "extra": sum(row["extra_completions"] for row in rows) / sum(row["completions"] for row in rows),
    }


def root_mean_square(values: list[float]) -> float:
    """The root of the mean of the squares."""
    return math.sqrt(math.fsum(value**2 for value in values) / len(values))


def carry_out(cell: Cell, law: str, out: Path) -> dict[str, float]:
    """Run a cell with a law, measure its checkpoints, and return its result."""
    job = Job(out / f"{cell.name}-{law}", cell.arguments(law), STEPS)
    launch([job], 1)
    if not (job.out / "entropy.json").exists():
        measure = [sys.executable, "-m", "aepo", "evaluate", str(job.out), "--entropy", str(PROMPTS_MEASURED)]
        subprocess.run(measure, check=True, capture_output=True)
    return result(job.out)


def good(found: dict[str, float]) -> bool:
    """Whether the readings are within 1.15 of the floor plus 0.005 nats."""
    return found["readings"] <= 1.15 * found["floor"] + 0.005


def table(found: dict[tuple[Cell, str], dict[str, float]]) -> Iterator[str]:
    """The lines of the report: a summary of each law, then every run."""
    yield "| law | cells | able | readings within 1.15 floor + 0.005 | true RMSE | true mean within 0.01 | extra |"
    yield "|---|---|---|---|---|---|---|"
    for law in dict.fromkeys(law for _, law in found):
        mine = [one for (_, name), one in found.items() if name == law]
        able = [one for one in mine if one["saturated"] < 0.5]
        near = f"{sum(map(good, able))} of {len(able)}"
        small = f"{sum(abs(one['mean']) <= 0.01 for one in able)} of {len(able)}"
        true = math.fsum(one["true"] for one in able) / max(len(able), 1)
        extra = math.fsum(one["extra"] for one in able) / max(len(able), 1)
        yield f"| {law} | {len(mine)} | {len(able)} | {near} | {true:.4f} | {small} | {extra:.0%} |"
    yield ""
    yield "| task | size | lr | prompts | group | target | seed | law | readings | floor | true | mean | saturated |"
    yield "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
    for (cell, law), one in found.items():
        numbers = " | ".join(f"{one[name]:.4f}" for name in ("readings", "floor", "true", "mean"))
        about = " | ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in astuple(cell))
        yield f"| {about} | {law} | {numbers} | {one['saturated']:.0%} |"


def main() -> None:
    """Run what is missing, as long as the time allows, and print the table of all that is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/law-grid"))
    parser.add_argument("--cells", type=int, default=24)
    parser.add_argument("--laws", nargs="+", default=["self-tuning", "pi", "switch"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[20])
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    every = [cell for cell in grid(options.seeds) if options.only in cell.name]
    cells = random.Random(0).sample(every, min(options.cells, len(every)))
    end, found = time.monotonic() + 60 * options.minutes, {}

    def work(pair: tuple[Cell, str]) -> None:
        if time.monotonic() < end:
            found[pair] = carry_out(*pair, options.out)
            print(pair[0].name, pair[1], {name: round(value, 4) for name, value in found[pair].items()}, flush=True)

    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(work, itertools.product(cells, options.laws)))
    pairs = [pair for pair in itertools.product(cells, options.laws) if pair in found]
    text = "\n".join(table({pair: found[pair] for pair in pairs})) + "\n"
    print(text)
    if options.report:
        options.report.write_text(text)


if __name__ == "__main__":
    main()
