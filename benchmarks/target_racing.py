"""Whether a target that is found by a race of short branches beats a fixed one, at equal cost.

python benchmarks/target_racing.py [--out runs/racing] [--seeds 51 52 53 54 55] [--report table.md]

Each seed has one race and a run of AEPO at each fixed target of TARGETS, on the built-in job, BUDGET completions each.
A race trains TRUNK steps at the middle target, then a branch of RACE steps for each target from that checkpoint. Each
branch is measured on the second half of the held-out problems, SAMPLES completions each; its score is the mean of
pass@1 and pass@SAMPLES. The best one goes on until the budget is used up. Branches that lost and the completions of
these measurements count. At the end all runs are measured on the first half of the held-out problems. Differences are
paired by problem and seed, with 95 % intervals over both. Finished parts are not repeated.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from aepo.evaluation.statistics import crossed_interval
from aepo.training.evaluate import pass_at_k
from aepo.training.folder import METRICS, read_rows
from aepo.training.processes import Job, launch

BUDGET, TARGETS = 76_800, ("0.5x", "0.75x", "1x")
TRUNK, RACE, SAMPLES = 30, 15, 16
HALF, FINAL = 128, 64


def train(out: Path, target: str, seed: int, steps: int, budget: int | None = None) -> Path:
    """Train, or go on, until that step or until the budget is used up."""
    fixed = ("--method", "aepo", "--target", target, "--seed", str(seed))
    settings = ["evaluation.every=0", "checkpoint.keep=1", f"budget_completions={budget or 'none'}"]
    arguments = (*fixed, *(part for setting in settings for part in ("--set", setting)))
    launch([Job(out, arguments, steps, ("completions", budget) if budget else None)], 1)
    return out


def branch(trunk: Path, out: Path, target: str) -> Path:
    """Copy a run that has ended, with another target."""
    if not out.exists():
        shutil.copytree(trunk, out.with_suffix(".copy"))
        replaced(out.with_suffix(".copy"), "target", f'"{target}"')
        out.with_suffix(".copy").rename(out)
    return out


def replaced(run: Path, name: str, value: str) -> None:
    """Change a setting of a run's config.toml."""
    file = run / "config.toml"
    text, count = re.subn(rf"(?m)^{name} = .*$", f"{name} = {value}", file.read_text())
    assert count == 1, (name, count)
    file.write_text(text)


def spent(run: Path) -> int:
    """Completions that a run has drawn."""
    return sum(row["completions"] for row in read_rows(run / METRICS))


def correct(run: Path, out: Path, problems: int, samples: int) -> np.ndarray:
    """Right answers of each of the first held-out problems, [problems]."""
    if not (out / "evaluation.json").exists():
        options = ["--limit", problems, "--n", samples, "--temperature", "1", "--out", out]
        command = [sys.executable, "-m", "aepo", "evaluate", run, *options]
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
    right: Counter[int] = Counter(dict.fromkeys(range(problems), 0))
    for row in map(json.loads, (out / "samples.jsonl").read_text().splitlines()):
        right[row["number"]] += bool(row["correct"])
    return np.array([right[number] for number in range(problems)])


def passes(right: np.ndarray, samples: int, k: int) -> np.ndarray:
    """pass@k of each problem."""
    return np.array([pass_at_k(samples, int(count), k) for count in right])


def race(folder: Path, seed: int) -> tuple[Path, str]:
    """Return the run that won, trained to the end, and its target."""
    trunk = train(folder / "trunk", TARGETS[1], seed, TRUNK)
    scores: dict[str, float] = {}
    cost = 0
    for target in TARGETS:
        run = train(branch(trunk, folder / f"race-{target}", target), target, seed, TRUNK + RACE)
        right = correct(run, folder / f"judged-{target}", 2 * HALF, SAMPLES)[HALF:]
        scores[target] = float((passes(right, SAMPLES, 1).mean() + passes(right, SAMPLES, SAMPLES).mean()) / 2)
        cost += spent(run) - spent(trunk) + HALF * SAMPLES
    best = max(scores, key=scores.__getitem__)
    winner = folder / f"race-{best}"
    own = spent(winner) - spent(trunk)
    last = branch(winner, folder / "winner", best)
    if spent(last) == spent(winner):
        replaced(last, "budget_completions", str(BUDGET - (cost - own)))
        replaced(last, "steps", str(BUDGET // 512))
    subprocess.run([sys.executable, "-m", "aepo", "train", "--resume", last], check=True, capture_output=True)
    print(f"seed {seed}: {', '.join(f'{t} {s:.3f}' for t, s in scores.items())}; {best} goes on", flush=True)
    return last, best


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/racing"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[51, 52, 53, 54, 55])
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    ends: dict[str, list[np.ndarray]] = {"race": [], **{target: [] for target in TARGETS}}
    steps: dict[str, list[int]] = {name: [] for name in ends}
    chosen = []
    for seed in options.seeds:
        folder = options.out / f"seed{seed}"
        last, best = race(folder, seed)
        chosen.append(best)
        runs = {"race": last}
        for target in TARGETS:
            runs[target] = train(folder / f"fixed-{target}", target, seed, BUDGET // 512, BUDGET)
        for name, run in runs.items():
            ends[name].append(correct(run, folder / f"end-{name}", HALF, FINAL))
            steps[name].append(len(read_rows(run / METRICS)))
    lines = [f"| run | steps | pass@1 | race less it | pass@{FINAL} | race less it |", "|---|---|---|---|---|---|"]
    for name, rights in ends.items():
        cells = [f"race ({', '.join(chosen)})" if name == "race" else name, f"{np.mean(steps[name]):.0f}"]
        for k in (1, FINAL):
            mine, won = (np.stack([passes(right, FINAL, k) for right in some]) for some in (rights, ends["race"]))
            apart = crossed_interval(won - mine)
            shown = "" if name == "race" else f"{apart.mean:+.3f} ({apart.low:+.3f} to {apart.high:+.3f})"
            cells += [f"{mine.mean():.3f}", shown]
        lines.append(f"| {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if options.report:
        options.report.write_text(text)


if __name__ == "__main__":
    main()
