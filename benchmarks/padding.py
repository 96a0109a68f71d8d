"""The share of a pass that is padding: whole-batch columns, trimmed columns, rows sorted by length. In one run.

python benchmarks/padding.py [--rounds 5] [--out benchmarks/results/padding_cpu.md]

Completion lengths are log-normal and cut at the limit, as those of reasoning models are: a few long, most short.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from aepo.control.base import Needs
from aepo.engines.collate import collate
from aepo.model import policy as policy_module
from aepo.model.loading import Loaded
from aepo.model.policy import Policy, by_length, trimmed
from aepo.types import Batch, Completion, Prompt, Rollout, Sample

ROWS, LIMIT, MICROBATCH = 128, 256, 16


def make_batch() -> Batch:
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(10, 60, (ROWS,), generator=draw).tolist()
    answers = (30 * torch.randn(ROWS, generator=draw).mul(0.9).exp()).long().clamp(1, LIMIT).tolist()
    samples = []
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        completion = Completion(
            Prompt(str(number), (5,) * prompt, {}), number, 1.0, (6,) * answer, (0.0,) * answer, False
        )
        samples.append(Sample(Rollout(completion, 0.0), 1.0))
    return collate(samples, 0)


def make_policy() -> Policy:
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        eos_token_id=1,
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0})), pad_token="a")
    return Policy(Loaded(LlamaForCausalLM(config), tokenizer))


def padding(widths: list[tuple[int, int]], tokens: int) -> float:
    return 1 - tokens / sum(rows * columns for rows, columns in widths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    policy, batch = make_policy(), make_batch()
    shuffled, longest_first = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1)), by_length(batch)
    tokens = int(batch.attention_mask.sum())
    ways = {
        "whole columns, any order": (shuffled, lambda part: part),
        "trimmed columns, any order": (shuffled, trimmed),
        "trimmed columns, by length": (longest_first, trimmed),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    share: dict[str, float] = {}
    hidden = policy._hidden
    widths: list[tuple[int, int]] = []
    policy._hidden = lambda part: widths.append(tuple(part.input_ids.shape)) or hidden(part)
    for turn in range(options.rounds + 1):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            order, cut = ways[name]
            policy_module.trimmed = cut
            widths.clear()
            begin = time.process_time()
            for rows in order.split(MICROBATCH):
                policy.statistics(batch.select(rows), Needs()).logprobs.sum().backward()
            if turn:  # the first round warms up
                times[name].append(time.process_time() - begin)
            share[name] = padding(widths, tokens)
    text = report(times, share, batch, options.rounds)
    print(text)
    if options.out:
        options.out.write_text(text)


def report(times: dict[str, list[float]], share: dict[str, float], batch: Batch, rounds: int) -> str:
    lengths = batch.mask.sum(1)
    base = next(iter(times))
    lines = [
        "# Padding in the update's passes",
        "",
        f"`python benchmarks/padding.py --rounds {rounds}`: one thread, {rounds} interleaved rounds, median CPU",
        f"seconds of forward and backward over {ROWS} rows in microbatches of {MICROBATCH}; a random Llama of two",
        f"layers. Completions: median {lengths.median():.0f}, mean {lengths.mean():.0f}, longest {lengths.max():.0f}.",
        "",
        "| | padding | CPU seconds | ratio, median of pairs |",
        "|---|---|---|---|",
    ]
    for name, seconds in times.items():
        ratio = statistics.median(s / b for s, b in zip(seconds, times[base], strict=True))
        lines.append(f"| {name} | {share[name]:.1%} | {statistics.median(seconds):.3g} | {ratio:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
