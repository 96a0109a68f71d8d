"""What entropy control costs inside verl: seconds of a step beside verl's own GRPO, in turns, at equal completions.

    .venv-verl/bin/python benchmarks/verl_overhead.py [--repeats 2] > benchmarks/results/verl_overhead_cpu.md

The job is that of tests_verl: a random Qwen2 of 107 thousand parameters, two FSDP2 workers over gloo, two rollout
replicas on the CPU, 32 prompts of 4 completions. At full command AEPO draws about as many again; the last case is
verl's own GRPO with as many completions, all of which it trains on. The last column says how many were drawn.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests_verl.support import toy  # noqa: E402
from tests_verl.support.run import OURS, STOCK, run, settings  # noqa: E402

STEPS, WARM_UP, GROUP = 12, 4, 4
PARTS = ("step", "gen", "old_log_prob", "adv", "update_actor", "update_weights")
# name: module, prompts, settings.
CASES: Mapping[str, tuple[str, int, list[str]]] = {
    "verl's GRPO": (STOCK, 32, []),
    "ours, method grpo": (OURS, 32, ["aepo.method=grpo", "aepo.surrogate.dual=3"]),
    "ours, aepo, full command": (OURS, 32, ["aepo.method=aepo", "aepo.law=switch", "aepo.target=9.0"]),
    "verl's GRPO, 62 prompts": (STOCK, 62, []),
}
HEAD = """# Entropy control inside verl: what it costs on a CPU

`.venv-verl/bin/python benchmarks/verl_overhead.py --repeats {repeats}`: median seconds of a step, {repeats} turns of
{steps} steps after {warm_up} of warm-up, {cores} cores. `gen` is the wait for the rollout engine; the adapter's own
part at the driver is `adv` (mark, shape, minibatches, weights)."""


def measure(work: Path, name: str, turn: int) -> list[Mapping[str, float]]:
    module, prompts, extra = CASES[name]
    out = work / f"{list(CASES).index(name)}-{turn}"
    sizes = [f"data.train_batch_size={prompts}", f"actor_rollout_ref.actor.ppo_mini_batch_size={prompts}"]
    done = run(module, [*settings(work, out, STEPS), *sizes, *extra], out)
    if done.code:
        sys.exit(done.text[-3000:])
    return [done.rows[step] for step in range(WARM_UP + 1, STEPS + 1)]


def line(name: str, rows: list[Mapping[str, float]], stock: float) -> str:
    parts = [median(row[f"timing_s/{part}"] for row in rows) for part in PARTS]
    drawn = median(row.get("aepo/completions", CASES[name][1] * GROUP) for row in rows)
    numbers = " | ".join(f"{seconds:.3f}" for seconds in parts)
    return f"| {name} | {numbers} | {parts[0] / stock:.3f} | {drawn:g} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2)
    repeats = parser.parse_args().repeats
    before = os.getloadavg()[0]
    found: dict[str, list[list[Mapping[str, float]]]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        toy.make(work)
        for turn in range(repeats):
            for name in CASES:
                found[name].append(measure(work, name, turn))
                print(f"{name}, turn {turn}", file=sys.stderr)
    together = {name: [row for rows in turns for row in rows] for name, turns in found.items()}
    stock = median(row["timing_s/step"] for row in together["verl's GRPO"])
    print(HEAD.format(repeats=repeats, steps=STEPS - WARM_UP, warm_up=WARM_UP, cores=os.cpu_count()))
    print(", ".join(f"{name} {version(name)}" for name in ("verl", "ray", "torch")), end="; ")
    print(f"load average {before:.1f} before and {os.getloadavg()[0]:.1f} after.\n")
    print("| | " + " | ".join(PARTS) + " | ratio of steps | completions |")
    print("|---" * (len(PARTS) + 3) + "|")
    for name, rows in together.items():
        print(line(name, rows, stock))
    print("\nEach turn's median step, seconds:\n")
    for name, turns in found.items():
        medians = ", ".join(f"{median(row['timing_s/step'] for row in rows):.3f}" for rows in turns)
        print(f"- {name}: {medians}")


if __name__ == "__main__":
    main()
