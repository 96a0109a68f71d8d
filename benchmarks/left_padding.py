"""What left padding costs the sampler: prompts of many lengths beside prompts of their mean length, in one run.

    python benchmarks/left_padding.py [--rounds 5]

`padded` samples for prompts of log-normal lengths in one batch that is padded on the left. `parts` computes prompts of
like length at once, as `HFSampler` does (`aepo.sampling.prefill`). `even` samples for prompts of the mean length: as
many prompt tokens, no padding and no mask, which is what a batch without padding could reach at best. `sorted` makes
four calls with a quarter of the prompts each, sorted by length. All draw the same number of tokens. Processor time of a
call, as a ratio to `even`: the median of the rounds, which alternate between the sides.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from aepo.sampling import prefill
from aepo.sampling.hf import HFSampler
from aepo.types import Prompt, Request

DEFAULT = prefill.LEAST_SHARE
VOCAB, PROMPTS, GROUP, PARTS = 2000, 32, 4, 4
# Median and sigma of the log-normal prompt lengths, and tokens of each answer.
SHAPES = ((100, 0.5, 64), (100, 0.5, 256), (1000, 0.5, 64))


def build() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192}
    return Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, pad_token_id=0, bos_token_id=None, eos_token_id=None)).eval()


def requests_of(lengths: Sequence[int]) -> list[Request]:
    rng = random.Random(1)
    prompts = [tuple(rng.randrange(1, VOCAB) for _ in range(length)) for length in lengths]
    return [Request(Prompt(str(n), tokens, {}), n, GROUP) for n, tokens in enumerate(prompts)]


def spent(sampler: HFSampler, calls: Sequence[Sequence[Request]], tokens: int, parts: bool) -> float:
    """Return the processor seconds of these calls, with prompts of like length at once or with all at once."""
    prefill.LEAST_SHARE = DEFAULT if parts else 1.0
    generator, start = torch.Generator().manual_seed(0), time.process_time()
    for requests in calls:
        sampler.sample(requests, max_tokens=tokens, generator=generator)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    sampler = HFSampler(build(), eos_token_ids=(), pad_token_id=0)
    print("| prompts, median (mean, longest) | answer | padding of the prompts | even, s | padded | parts | sorted |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for median, sigma, tokens in SHAPES:
        rng = random.Random(0)
        lengths = sorted(round(median * rng.lognormvariate(0, sigma)) for _ in range(PROMPTS))
        mean = round(statistics.mean(lengths))
        uneven, even = requests_of(lengths), requests_of([mean] * PROMPTS)
        size = PROMPTS // PARTS
        parted = [uneven[first : first + size] for first in range(0, PROMPTS, size)]
        sides = ((even, True), (uneven, False), (uneven, True))
        times = []
        for _ in range(rounds):
            row = [spent(sampler, [calls], tokens, parts) for calls, parts in sides]
            times.append([*row, spent(sampler, parted, tokens, True)])
        ratios = [statistics.median(row[side] / row[0] for row in times) for side in (1, 2, 3)]
        print(
            f"| {median} ({mean}, {lengths[-1]}) | {tokens} | {1 - mean / lengths[-1]:.0%} | "
            f"{statistics.median(row[0] for row in times):.1f} | {' | '.join(f'{ratio:.2f}' for ratio in ratios)} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
