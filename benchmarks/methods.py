"""How every method behaves on the built-in job: 100 steps of each, one seed, from the same base model.

python benchmarks/methods.py [--out runs/methods] [--steps 100] [--report docs/results-methods.md] [--only NAME ...]

A row: exact entropy in the first step and over the last ten (nats per token), reward over the last ten, completions
sampled relative to GRPO's, and processor seconds of a step relative to GRPO's (medians; one thread a run, two runs side
by side on a shared machine, so good to about a tenth). Finished runs are not repeated. Closed loops aim at 0.8 nats,
which GRPO passes at about a third of the run: with the defaults the table would compare targets instead of methods.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aepo.engines.preflight import targets
from aepo.methods import METHODS
from aepo.training.folder import METRICS, read_rows
from aepo.training.processes import Job, launch

TARGET, LAST = "0.8", 10
HEADER = (
    "method",
    "target",
    "entropy, first step",
    "entropy, end",
    "reward, end",
    "completions / GRPO's",
    "seconds / GRPO's",
)


def arguments(name: str, seed: int) -> tuple[str, ...]:
    aimed = [part for field, _ in targets(METHODS[name].algorithm.control) for part in ("--set", f"{field}={TARGET}")]
    quiet = ("--set", "evaluation.every=0", "--set", "checkpoint.every=0")
    return ("--method", name, "--seed", str(seed), *aimed, *quiet)


def mean(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    return statistics.fmean(row[key] for row in rows)


def line(name: str, rows: Sequence[Mapping[str, Any]], grpo: Sequence[Mapping[str, Any]]) -> str:
    aimed = dict(targets(METHODS[name].algorithm.control))
    ratio = {
        "completions": mean(rows, "completions") / mean(grpo, "completions"),
        "seconds": statistics.median(r["seconds_cpu"] for r in rows)
        / statistics.median(r["seconds_cpu"] for r in grpo),
    }
    cells = [
        f"[{name}](methods/{METHODS[name].page}.md)",
        TARGET if aimed else "",
        f"{rows[0]['entropy']:.3f}",
        f"{mean(rows[-LAST:], 'entropy'):.3f}",
        f"{mean(rows[-LAST:], 'reward'):.3f}",
        f"{ratio['completions']:.2f}",
        f"{ratio['seconds']:.2f}",
    ]
    return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, default=None)
    parser.add_argument("--only", nargs="*", default=list(METHODS))
    options = parser.parse_args()
    names = ["grpo", *(name for name in options.only if name != "grpo")]
    jobs = {
        name: Job(
            options.out / f"{name}-seed{options.seed}-{options.steps}", arguments(name, options.seed), options.steps
        )
        for name in names
    }
    launch(list(jobs.values()))
    rows = {name: read_rows(job.out / METRICS) for name, job in jobs.items()}
    table = [" | ".join(HEADER), " | ".join(["---"] * len(HEADER))]
    table += [line(name, found, rows["grpo"]) for name, found in rows.items()]
    text = "".join(f"| {row} |\n" for row in table)
    print(text)
    if options.report:
        options.report.write_text(text)


if __name__ == "__main__":
    main()
