"""What a step of AEPO costs beside a step of GRPO that samples as many completions. Interleaved, in one run.

python benchmarks/step_cost.py [--rounds 15] [--out benchmarks/results/step_cost_cpu.md]

GRPO draws 64 prompts x 12; AEPO 64 x 8 ordinary and 64 x 4 extra, at full command, and trains on as many positives
as it finds (up to all of them). Each side has its own model and optimizer; both start from the same base model.

"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from aepo.config import make_config
from aepo.model.builtin import base_model
from aepo.model.policy import Policy
from aepo.training.checkpoint import TrainState
from aepo.training.runner import make_sampler
from aepo.training.step import Run, make_optimizer, train_step

PARTS = ("seconds", "seconds_sampling", "seconds_scoring", "seconds_update")


def make_run(method: str, settings: list[str]) -> tuple[Run, TrainState]:
    config = make_config(method=method, settings=settings)
    policy = Policy.load(base_model(config.task))
    run = Run(
        config,
        config.algorithm,
        config.task,
        policy,
        make_sampler(policy, config),
        make_optimizer(policy, config.optimizer),
    )
    return run, TrainState(control=config.control.initial_state())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    full = ["control.law=constant", "control.start=hot", "control.draw=all", "control.per_prompt=4"]
    sides = {
        "GRPO": make_run("grpo", ["sampling.group_size=12"]),
        "AEPO": make_run("aepo", [*full, "control.count_high=1.0"]),
    }
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for turn in range(options.rounds + 1):
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            run, state = sides[name]
            begin = time.process_time()
            state, row, _ = train_step(run, state)
            row["cpu"] = time.process_time() - begin
            sides[name] = run, state
            if turn:  # the first round warms up
                rows[name].append(row)
    text = report(rows, options.rounds)
    print(text)
    if options.out:
        options.out.write_text(text)


def report(rows: dict[str, list[dict[str, float]]], rounds: int) -> str:
    lines = [
        "# A step of AEPO beside a step of GRPO with as many completions",
        "",
        f"`python benchmarks/step_cost.py --rounds {rounds}`: one thread, {rounds} interleaved steps of each, medians.",
        "",
        "| | GRPO | AEPO | ratio |",
        "|---|---|---|---|",
    ]
    for key in ("completions", "extra_completions", "extra_used", "tokens", "cpu", *PARTS):
        grpo, aepo = (statistics.median(row[key] for row in rows[side]) for side in ("GRPO", "AEPO"))
        ratio = f"{aepo / grpo:.3f}" if grpo else ""
        unit = " (s)" if key == "cpu" or key.startswith("seconds") else ""
        lines.append(f"| {key}{unit} | {grpo:.4g} | {aepo:.4g} | {ratio} |")
    pairs = list(zip(rows["AEPO"], rows["GRPO"], strict=True))
    paired = [a["cpu"] / g["cpu"] for a, g in pairs]
    per_token = [a["cpu"] / a["tokens"] * g["tokens"] / g["cpu"] for a, g in pairs]
    lines += [
        "",
        f"CPU seconds a step, AEPO / GRPO, median of pairs: {statistics.median(paired):.3f}; "
        f"per sampled token: {statistics.median(per_token):.3f}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
