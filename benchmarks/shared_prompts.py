"""What it saves to compute a prompt once for all its completions: passes of one microbatch, both ways in one run.

python benchmarks/shared_prompts.py --model smollm2 [--rounds 3] [--out benchmarks/results/shared_prompts_cpu.md]

One or two prompts of eight completions, whose lengths are drawn evenly. It needs 4 GB of memory. "forced"
makes packs also where the count of operations says that plain rows cost less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from aepo.config import PolicyConfig
from aepo.control.base import Needs
from aepo.engines.collate import collate
from aepo.model import policy as policy_module
from aepo.model.policy import Policy, trimmed
from aepo.model.shared import packs_for
from aepo.types import Batch, Completion, Prompt, Rollout, Sample

GROUP = 8
WAYS = ("plain", "shared")


@dataclass(frozen=True)
class Case:
    """`Case` holds the number of prompts, the mean length of a prompt, and the shortest and longest answer, tokens."""

    prompts: int

    prompt: int
    shortest: int
    longest: int


CASES = (Case(2, 50, 8, 24), Case(2, 50, 16, 32), Case(1, 200, 16, 32), Case(1, 50, 64, 128))


def make_batch(case: Case, vocabulary: int) -> Batch:
    draw = torch.Generator().manual_seed(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, vocabulary, (count,), generator=draw).tolist())

    def between(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=draw))

    rows = []
    for group in range(case.prompts):
        prompt = Prompt(str(group), tokens(between(case.prompt - 4, case.prompt + 4)), {})
        for _ in range(GROUP):
            answer = tokens(between(case.shortest, case.longest))
            completion = Completion(prompt, group, 1.0, answer, (0.0,) * len(answer), False)
            rows.append(Sample(Rollout(completion, 0.0), 1.0))
    return collate(rows, 0)


def seconds(policy: Policy, batch: Batch, gradient: bool) -> float:
    policy.model.zero_grad()
    begin = time.process_time()
    if gradient:
        policy.statistics(batch, Needs(), entropy=False).logprobs.sum().backward()
    else:
        with torch.no_grad():
            policy.statistics(batch, Needs())
    return time.process_time() - begin


def measure(policy: Policy, case: Case, rounds: int) -> str:
    """Return a row of the table."""
    batch = make_batch(case, policy.vocabulary)
    assert policy.share_prompts() and policy.sharing is not None
    size = policy.sharing
    chosen = packs_for(trimmed(batch), size)
    packs = chosen or [list(range(first, first + 2)) for first in range(0, len(batch), 2)]
    policy_module.packs_for = lambda part, model: packs
    width = trimmed(batch).attention_mask.shape[1]
    prompts = batch.attention_mask[:, : batch.prompt_width].sum(1)
    longest = max(int(prompts[rows[0]] + batch.mask[rows].sum()) - len(rows) for rows in packs)
    counted = size.operations(len(packs), longest) / size.operations(len(batch), width)
    cells = []
    for gradient in (False, True):
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        for turn in range(rounds + 1):
            for way in WAYS[:: 1 if turn % 2 else -1]:
                policy.sharing = size if way == "shared" else None
                spent = seconds(policy, batch, gradient)
                if turn:  # the first round warms up
                    times[way].append(spent)
        ratio = statistics.median(s / p for s, p in zip(times["shared"], times["plain"], strict=True))
        cells += [f"{statistics.median(times[way]):.3g}" for way in WAYS] + [f"**{ratio:.2f}**"]
    policy.sharing = None
    policy_module.packs_for = packs_for
    name = f"{case.prompts} x {GROUP}: {case.prompt}, {case.shortest} to {case.longest}" + (
        "" if chosen else " (forced)"
    )
    return f"| {name} | {counted:.2f} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--lora", type=int, default=None, help="rank of an adapter; without it all weights are trained")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", type=int, nargs="+", default=range(len(CASES)), help="numbers of cases, from 0")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = PolicyConfig(lora_rank=options.lora, gradient_checkpointing=options.checkpointing)
    policy = Policy.load(options.model, settings=settings)
    trained = "all weights" if options.lora is None else f"an adapter of rank {options.lora}"
    again = ", gradient checkpointing" if options.checkpointing else ""
    lines = [
        "# A prompt computed once for its completions",
        "",
        f"`python benchmarks/shared_prompts.py --model {options.model} --rounds {options.rounds}`: {trained}{again}.",
        "One microbatch of prompts x completions, float32, one thread; median CPU seconds of",
        f"{options.rounds} interleaved rounds, and the median ratio of pairs. The output layer is part of the passes,",
        "not of the count.",
        "",
        "| tokens of prompt, answer | counted | scoring: plain | shared | ratio | update: plain | shared | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for number in options.cases:
        lines.append(measure(policy, CASES[number], options.rounds))
        print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
