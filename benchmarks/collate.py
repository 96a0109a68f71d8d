"""Seconds of CPU that padding rows into tensors takes (`aepo.engines.collate`), once a step, on one driver.

python benchmarks/collate.py [--rows 64] [--tokens 8192]
"""

from __future__ import annotations

import argparse
import random
import time
from statistics import median

from aepo.engines.collate import collate
from aepo.types import Completion, Prompt, Rollout, Sample


def sample(draw: random.Random, group: int, most: int) -> Sample:
    length = draw.randint(1, most)
    tokens, logprobs = tuple(draw.choices(range(150_000), k=length)), tuple(-draw.random() for _ in range(length))
    prompt = Prompt(id=str(group), tokens=tuple(range(100)), problem={})
    return Sample(Rollout(Completion(prompt, group, 1.0, tokens, logprobs, truncated=False), 1.0), 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=8192, help="of the longest completion; lengths are uniform")
    options = parser.parse_args()
    draw = random.Random(0)
    samples = [sample(draw, number // 8, options.tokens) for number in range(options.rows)]
    seconds = []
    for _ in range(7):
        start = time.process_time()
        collate(samples, pad_token_id=0)
        seconds.append(time.process_time() - start)
    print(f"{options.rows} rows of 1 to {options.tokens} tokens: {median(seconds):.3f} s of CPU, median of 7")


if __name__ == "__main__":
    main()
