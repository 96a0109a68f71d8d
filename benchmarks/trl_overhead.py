"""What entropy control costs inside TRL: CPU seconds of a round beside plain `GRPOTrainer`, in turns.

    python benchmarks/trl_overhead.py [--repeats 5] [--threads 1] > benchmarks/results/trl_overhead_cpu.md

Every answer is right, so AEPO draws exactly the positives that it uses: a quarter of the ordinary completions.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from statistics import median

import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from aepo.integrations.trl import EntropyControlConfig, EntropyControlTrainer

VOCABULARY, LENGTH, GROUP, ROWS, STEPS = 4096, 48, 8, 32, 4
# name: rows, and what the trainer of this package is told; None for TRL's own.
CASES = {
    "GRPOTrainer": (ROWS, None),
    "ours, method grpo": (ROWS, {"method": "grpo"}),
    "ours, entropy-reg (own loss)": (ROWS, {"method": "entropy-reg"}),
    "ours, aepo, full command": (ROWS, {"method": "aepo", "target": "9.0"}),
    "GRPOTrainer, as many completions as aepo": (ROWS * 5 // 4, None),
}
# TRL scores the rows itself where the policy moves within a round.
MOVING = {"GRPOTrainer, two iterations": (ROWS, None), "ours, method grpo, two iterations": (ROWS, {"method": "grpo"})}


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_step_begin(self, args, state, control, **_):
        if not self.steps:
            self.last = time.process_time()

    def on_step_end(self, args, state, control, **_):
        now = time.process_time()
        self.steps.append(now - self.last)
        self.last = now


def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: number for number, word in enumerate(["<pad>", "<end>", *(f"w{n}" for n in range(VOCABULARY - 2))])}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<end>")


def policy() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1}
    return Qwen2ForCausalLM(Qwen2Config(**sizes))


def seconds(rows: int, ours: dict[str, str] | None, iterations: int) -> list[float]:
    """Of each step but the first two, in which AEPO does not act."""
    shared = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": rows // 4,
        "gradient_accumulation_steps": 4,
        "num_iterations": iterations,
        "num_generations": GROUP,
        "max_completion_length": LENGTH,
        "max_steps": (STEPS + 2) * iterations,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }
    args = GRPOConfig(**shared) if ours is None else EntropyControlConfig(**shared, **ours)
    clock = Clock()
    (GRPOTrainer if ours is None else EntropyControlTrainer)(
        model=policy(),
        reward_funcs=lambda completions, **_: [1.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_dict({"prompt": [f"w{n} w{n + 1}" for n in range(64)]}),
        processing_class=tokenizer(),
        callbacks=[clock],
    ).train()
    rounds = [sum(clock.steps[at : at + iterations]) for at in range(0, len(clock.steps), iterations)]
    return rounds[2:]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    taken: dict[str, list[float]] = {name: [] for name in (*CASES, *MOVING)}
    sys.stdout, real = sys.stderr, sys.stdout  # TRL prints its metrics
    for _ in range(given.repeats):
        for name, (rows, ours) in CASES.items():
            taken[name] += seconds(rows, ours, 1)
        for name, (rows, ours) in MOVING.items():
            taken[name] += seconds(rows, ours, 2)
    sys.stdout = real
    report(taken, given)


def report(taken: dict[str, list[float]], given: argparse.Namespace) -> None:
    middle = {name: median(values) for name, values in taken.items()}
    plain, aepo = middle["GRPOTrainer"], middle["ours, aepo, full command"]
    more, moving = middle["GRPOTrainer, as many completions as aepo"], [middle[name] for name in MOVING]
    versions = f"TRL {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
    model = f"Qwen2, 4 layers of 256, vocabulary {VOCABULARY}"
    print("# Entropy control inside TRL: what it costs on a CPU\n")
    print(f"`python benchmarks/trl_overhead.py --repeats {given.repeats} --threads {given.threads}`")
    print(f"{versions}. {model}; {ROWS} ordinary completions")
    print(f"of {LENGTH} tokens a round in 4 microbatches. CPU seconds, median over {given.repeats} x {STEPS}")
    print("rounds, the trainers in turns.\n")
    print("| trainer | CPU seconds of a round | least and most |\n| --- | --- | --- |")
    for name, values in taken.items():
        print(f"| {name} | {middle[name]:.3f} | {min(values):.3f} to {max(values):.3f} |")
    total = ROWS * 5 // 4
    ratios = {
        "the adapter alone: method grpo over GRPOTrainer": middle["ours, method grpo"] / plain,
        "the same with two iterations, where TRL scores the rows anyway": moving[1] / moving[0],
        "entropy-reg over GRPOTrainer": middle["ours, entropy-reg (own loss)"] / plain,
        f"aepo over GRPOTrainer at {ROWS} ordinary completions, aepo's {total - ROWS} extra ones on top": aepo / plain,
        f"aepo over GRPOTrainer at {total} completions each": aepo / more,
    }
    print("\n| ratio | |\n| --- | --- |")
    for name, ratio in ratios.items():
        print(f"| {name} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
