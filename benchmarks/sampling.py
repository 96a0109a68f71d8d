"""Tokens per second of `HFSampler` and of transformers' `generate`, on the CPU, both sides in one run.

    python benchmarks/sampling.py                      # print the tables
    python benchmarks/sampling.py --write 2026-11-21   # also write them to benchmarks/results

Both sides draw from the whole vocabulary at temperature 1 (`generate`: do_sample, dynamic cache, top_k and
top_p off) from the same weights. The rounds alternate between them, so that both see the same load of the
machine. A row gives tokens per second of CPU time in each side's best round and their ratio, and the median
of the rounds' ratios in elapsed time.

Equal tokens: neither side is told of an end-of-sequence token, so both sample exactly max_tokens for every
row. The tables "with ends" tell both of the same end tokens and count the tokens up to and including the
first one; there `generate` goes on with all rows until the last has ended.

The last table is the choice of FINISHED_SHARE: `HFSampler` alone, at the shapes with ends.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

import aepo.sampling.hf as hf
from aepo.sampling.hf import HFSampler
from aepo.types import Prompt, Request

RESULTS = Path(__file__).parent / "results" / "sampling_cpu.md"
PAD = 0


@dataclass(frozen=True)
class Shape:
    """`ends`: how many token ids end a completion; the weights are random, so about ends / vocab of all tokens."""

    name: str
    architecture: str
    hidden: int
    layers: int
    feed_forward: int
    vocab: int
    prompt: tuple[int, int]
    max_tokens: int
    prompts: int = 64
    count: int = 8
    ends: int = 0


SHAPES = (
    Shape("prompt 32, 32 new tokens", "Qwen2", 128, 4, 512, 2000, (32, 32), 32),
    Shape("prompt 32, 32 new tokens, with ends", "Qwen2", 128, 4, 512, 2000, (32, 32), 32, ends=120),
    Shape("built-in model, Paths", "Qwen3", 64, 2, 192, 104, (3, 3), 9),
    Shape("built-in model, Paths, with ends", "Qwen3", 64, 2, 192, 104, (3, 3), 9, ends=20),
    Shape("built-in model, Paths, 768 rows, with ends", "Qwen3", 64, 2, 192, 104, (3, 3), 9, count=12, ends=20),
    Shape("small, prompts of 3 to 6", "Qwen2", 128, 4, 512, 105, (3, 6), 14),
    Shape("small, prompts of 3 to 6, with ends", "Qwen2", 128, 4, 512, 105, (3, 6), 14, ends=14),
)


def build(shape: Shape) -> PreTrainedModel:
    torch.manual_seed(0)
    config, model = {
        "Qwen2": (Qwen2Config, Qwen2ForCausalLM),
        "Qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }[shape.architecture]
    sizes = {"vocab_size": shape.vocab, "hidden_size": shape.hidden, "intermediate_size": shape.feed_forward}
    sizes |= {"num_hidden_layers": shape.layers, "num_attention_heads": 4, "num_key_value_heads": 4}
    if shape.architecture == "Qwen3":
        sizes["head_dim"] = shape.hidden // 4
    ids = {"pad_token_id": PAD, "bos_token_id": None, "eos_token_id": None}
    return model(config(**sizes, **ids, tie_word_embeddings=True, max_position_embeddings=256)).eval()


def requests_of(shape: Shape) -> list[Request]:
    rng = random.Random(0)
    lengths = [rng.randint(*shape.prompt) for _ in range(shape.prompts)]
    prompts = [tuple(rng.randrange(1, shape.vocab) for _ in range(length)) for length in lengths]
    return [Request(Prompt(str(n), tokens, {}), n, shape.count) for n, tokens in enumerate(prompts)]


def ours(model: PreTrainedModel, shape: Shape, requests: list[Request]) -> Callable[[], int]:
    sampler = HFSampler(model, eos_token_ids=range(1, shape.ends + 1), pad_token_id=PAD)
    generator = torch.Generator().manual_seed(0)

    def sample() -> int:
        completions = sampler.sample(requests, max_tokens=shape.max_tokens, generator=generator)
        return sum(len(completion.tokens) for completion in completions)

    return sample


def theirs(model: PreTrainedModel, shape: Shape, requests: list[Request]) -> Callable[[], int]:
    rows = [request.prompt.tokens for request in requests for _ in range(request.count)]
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    ends = list(range(1, shape.ends + 1)) or None
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "use_cache": True}

    def generate() -> int:
        tokens = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=shape.max_tokens,
            pad_token_id=PAD,
            eos_token_id=ends,
            **options,
        )[:, width:]
        if ends is None:
            return tokens.numel()
        ended = torch.isin(tokens, torch.tensor(ends)).long()
        return int((ended.cumsum(1) - ended == 0).sum())  # up to and including the first end

    return generate


def measure(shape: Shape, repeats: int) -> str:
    """One row of the table."""
    model, requests = build(shape), requests_of(shape)
    sides = [theirs(model, shape, requests), ours(model, shape, requests)]
    cpu: list[list[float]] = [[], []]
    wall: list[list[float]] = [[], []]
    for repeat in range(repeats + 1):
        for number, side in enumerate(sides):
            clock, used = time.perf_counter(), time.process_time()
            tokens = side()
            if repeat:  # the first round warms up
                cpu[number].append(tokens / (time.process_time() - used))
                wall[number].append(tokens / (time.perf_counter() - clock))
    other, mine = max(cpu[0]), max(cpu[1])
    rounds = statistics.median(b / a for a, b in zip(*wall, strict=True))
    return (
        f"| {shape.name} | {shape.prompts * shape.count} | {model.num_parameters() / 1e6:.1f} M "
        f"| {other:,.0f} | {mine:,.0f} | {mine / other:.2f} | {rounds:.2f} |"
    )


def table(threads: int, repeats: int) -> list[str]:
    torch.set_num_threads(threads)
    lines = [
        f"## {threads} thread{'s' if threads > 1 else ''}",
        "",
        "| shape | rows | parameters | `generate` | `HFSampler` | ratio | ratio, elapsed time |",
        "|---|---|---|---|---|---|---|",
    ]
    for shape in SHAPES:
        lines.append(measure(shape, repeats))
        print(lines[-1], flush=True)
    return [*lines, ""]


def shares_table(repeats: int) -> list[str]:
    """Tokens per second of CPU time, best round, for each share of ended rows at which they leave the batch."""
    torch.set_num_threads(1)
    shares = {"any": 1e-9, "1/64": 1 / 64, "1/16": 1 / 16, "1/4": 1 / 4, "1/2": 1 / 2, "never": 2.0}
    chosen = hf.FINISHED_SHARE
    lines = [
        "## Share of ended rows at which they leave the batch",
        "",
        f"| shape | {' | '.join(shares)} |",
        f"|---|{'---|' * len(shares)}",
    ]
    for shape in SHAPES:
        if shape.ends:
            side = ours(build(shape), shape, requests_of(shape))
            speeds: dict[str, list[float]] = {name: [] for name in shares}
            for _ in range(repeats):
                for name, hf.FINISHED_SHARE in shares.items():
                    used = time.process_time()
                    speeds[name].append(side() / (time.process_time() - used))
            cells = " | ".join(f"{max(speed):,.0f}" for speed in speeds.values())
            lines.append(f"| {shape.name} | {cells} |")
            print(lines[-1], flush=True)
    hf.FINISHED_SHARE = chosen
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--write", metavar="DATE", help="write the tables to benchmarks/results, with this date")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    tables = [line for threads in arguments.threads for line in table(threads, arguments.repeats)]
    tables += shares_table(arguments.repeats)
    if arguments.write:
        RESULTS.write_text("\n".join([*header(arguments.repeats, arguments.write), *tables]))


def header(repeats: int, date: str) -> list[str]:
    return [
        "# Sampling on the CPU: `HFSampler` against transformers' `generate`",
        "",
        f"{date}, 2 shared CPU cores ({platform.machine()}), torch {torch.__version__}, transformers "
        f"{transformers.__version__}. Command: `python benchmarks/sampling.py --repeats {repeats} --write {date}`",
        "",
        "Float32, random weights, temperature 1, whole vocabulary. The two sides alternate round by round. A row",
        "gives tokens per second of CPU time, best round of each, and their ratio; then the median of the rounds'",
        "ratios in elapsed time, which shares the cores with whatever else ran. Without ends both sides sample",
        "exactly max_tokens for every row: neither is told of an end-of-sequence token. With ends both are told",
        "of the same ones, and only tokens up to the first of them count.",
        "",
    ]


if __name__ == "__main__":
    main()
