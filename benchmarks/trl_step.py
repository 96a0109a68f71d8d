"""The processor time of a GRPO step: `aepo train --method grpo` beside TRL's `GRPOTrainer`, in turns in one process.

    python benchmarks/trl_step.py [--steps 9] [--out benchmarks/results/trl_step_cpu.md]

It needs the extras `train` and `trl` and takes a few minutes. All sides train the same weights on the same prompts with
the same reward, in float32, with one optimizer step for each minibatch. After each step of TRL, each of our sides does
a step, so that all see the same state of the machine. Imports, loading and the first step, in which code is compiled,
are not counted.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer

from aepo.config import make_config
from aepo.tasks.base import Problem, Task
from aepo.training import runner
from aepo.training.activity import Activity
from aepo.training.step import train_step

VOCABULARY, PROMPT, LENGTH, PROMPTS, GROUP, MINIBATCHES, RATE, WARMUP = 8200, 16, 48, 32, 8, 4, 1e-5, 1
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 720,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
TRL = "TRL GRPOTrainer"
OURS = {
    "aepo train --method grpo": (),
    "the same, each row computes its own prompt": ("policy.share_prompts=false",),
}
PARTS = ("sampling", "scoring", "update")


class Words(Task):
    """Prompts of random words, with a reward that is nearly never the same in a whole group."""

    @property
    def max_tokens(self) -> int:
        return LENGTH

    def train_problem(self, seed: int, index: int) -> Problem:
        draw = random.Random(seed * 1_000_003 + index)
        return Problem(str(index), " ".join(f"w{draw.randrange(VOCABULARY - 2)}" for _ in range(PROMPT)), {})

    def eval_problems(self, count: int) -> list[Problem]:
        return [self.train_problem(-1, index) for index in range(count)]

    def reward(self, problem: Mapping[str, Any], text: str, truncated: bool) -> float:
        return float(zlib.crc32(text.encode()) % 2)


def save_model(folder: Path) -> int:
    """Write a random Qwen3 with a tokenizer of whole words, and return its number of parameters."""
    words = ["<pad>", "<end>", *(f"w{number}" for number in range(VOCABULARY - 2))]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, vocab_size=VOCABULARY, tie_word_embeddings=True, **ends))
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>").save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass
class Work:
    """What a side did in each step, and the tokens that went through its layers."""

    parts: list[dict[str, float]] = field(default_factory=list)
    """CPU seconds of each part of each step."""
    tokens: list[int] = field(default_factory=list)
    """Sampled tokens of each step."""
    forward: int = 0
    """Tokens, padding included, in passes without gradient, all steps."""
    trained: int = 0
    """Tokens, padding included, in passes with gradient, all steps."""

    def watch(self, model: Any) -> None:
        """Count the tokens of every pass from now on."""

        def count(module: Any, arguments: Any, named: Mapping[str, Any]) -> None:
            tokens = named["input_ids"].numel()
            if torch.is_grad_enabled():
                self.trained += tokens
            else:
                self.forward += tokens

        model.base_model.register_forward_pre_hook(count, with_kwargs=True)

    @property
    def seconds(self) -> list[float]:
        return [sum(step.values()) for step in self.parts]


class Meter(Activity):
    """Gives the CPU seconds between two calls to a part of the step."""

    def __init__(self) -> None:
        super().__init__()
        self.start()

    def start(self) -> None:
        self.seconds, self._part, self._since = dict.fromkeys(PARTS, 0.0), PARTS[0], time.process_time()

    def begin(self, what: str, rows: int = 0) -> str:
        """Begin a part, and return the one that it ends. Rewards count as sampling, as in the run's own clock."""
        now, before = time.process_time(), self._part
        self.seconds[before] += now - self._since
        self._part, self._since = what if what in PARTS else before, now
        return before

    def stop(self) -> dict[str, float]:
        self.begin("")
        return self.seconds


class Side:
    """One of our sides: a run that `aepo train` would make, and its state."""

    def __init__(self, folder: Path, task: Task, settings: Sequence[str]) -> None:
        always = ["evaluation.every=0", "device=cpu", "optimizer.warmup=0", f"optimizer.lr={RATE}"]
        always += [f"optimizer.minibatches={MINIBATCHES}", f"sampling.prompts={PROMPTS}"]
        always += [f"sampling.group_size={GROUP}"]
        config = make_config(method="grpo", overrides={"model": str(folder)}, settings=[*always, *settings])
        run, self.state = runner._prepare(replace(config, task=task), None, quiet=True)
        self.meter, self.work = Meter(), Work()
        self.run = replace(run, activity=self.meter)
        self.work.watch(run.policy.model)

    def step(self) -> None:
        self.meter.start()
        self.state, row, _ = train_step(self.run, self.state)
        self.work.parts.append(self.meter.stop())
        self.work.tokens.append(row["tokens"])


class Metered(GRPOTrainer):
    """TRL's trainer with the CPU seconds of its parts."""

    meter: Meter

    def _generate(self, *given, **named):
        before = self.meter.begin("sampling")
        drawn = super()._generate(*given, **named)
        self.meter.begin(before)
        return drawn

    def _generate_and_score_completions(self, *given, **named):
        before = self.meter.begin("scoring")
        batch = super()._generate_and_score_completions(*given, **named)
        self.meter.begin(before)
        return batch


class InTurns(TrainerCallback):
    """After each step of TRL (all minibatches of a call of its sampling), each of our sides does one."""

    def __init__(self, meter: Meter, work: Work, sides: Sequence[Side]) -> None:
        self.meter, self.work, self.sides = meter, work, sides

    def on_train_begin(self, args, state, control, **_):
        self._next()

    def on_step_end(self, args, state, control, **_):
        if state.global_step % MINIBATCHES:
            return
        self.work.parts.append(self.meter.stop())
        done = len(self.work.parts)
        for side in self.sides if done % 2 else self.sides[::-1]:
            side.step()
        print(f"step {done}", file=sys.stderr, flush=True)
        self._next()

    def _next(self) -> None:
        self.meter.start()
        self.meter.begin("update")


def measure(folder: Path, steps: int) -> dict[str, Work]:
    """Do the steps of all sides, the first one included."""
    task, theirs, meter = Words(), Work(), Meter()
    sides = {name: Side(folder, task, settings) for name, settings in OURS.items()}

    def reward(completions: Sequence[str], completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        theirs.tokens.append(sum(map(len, completion_ids)))
        return [task.reward({}, text, False) for text in completions]

    prompts = [task.train_problem(0, number).text for number in range(PROMPTS * steps)]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs.watch(model)
    trainer = Metered(
        model=model,
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            per_device_train_batch_size=PROMPTS * GROUP // MINIBATCHES,
            gradient_accumulation_steps=1,
            steps_per_generation=MINIBATCHES,
            num_generations=GROUP,
            max_completion_length=LENGTH,
            max_steps=steps * MINIBATCHES,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            shuffle_dataset=False,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[InTurns(meter, theirs, list(sides.values()))],
    )
    trainer.meter = meter
    trainer.train()
    return {TRL: theirs, **{name: side.work for name, side in sides.items()}}


def report(found: Mapping[str, Work], parameters: int, steps: int) -> str:
    versions = f"TRL {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
    lines = [
        "# A GRPO step beside TRL's",
        "",
        f"`python benchmarks/trl_step.py --steps {steps}`: {versions}, one thread. Random Qwen3 of "
        f"{parameters / 1e6:.1f} M parameters,",
        f"{VOCABULARY} tokens, {PROMPTS} x {GROUP} completions of at most {LENGTH} tokens, prompts of {PROMPT}, "
        f"{MINIBATCHES} minibatches, float32. CPU seconds of a step:",
        f"median and range of {steps} steps, the sides in turns; the ratio is the median of the pairs.",
        "",
        "| | CPU seconds | least and most | ratio | least and most |",
        "|---|---|---|---|---|",
    ]
    theirs = found[TRL].seconds[WARMUP:]
    for name, work in found.items():
        own = work.seconds[WARMUP:]
        ratios = [a / b for a, b in zip(own, theirs, strict=True)]
        lines.append(
            f"| {name} | {median(own):.2f} | {min(own):.2f} to {max(own):.2f} "
            f"| {median(ratios):.3f} | {min(ratios):.3f} to {max(ratios):.3f} |"
        )
    lines += [
        "",
        "CPU seconds of the first step and of the parts (medians), and tokens of a step (means over all steps):",
        "",
    ]
    lines += [
        "| | first step | sampling | scoring | update | sampled | in passes without gradient | with gradient |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, work in found.items():
        count = len(work.parts)
        seconds = [work.seconds[0], *(median(step[part] for step in work.parts[WARMUP:]) for part in PARTS)]
        tokens = [sum(work.tokens) / count, work.forward / count, work.trained / count]
        cells = [*(f"{value:.2f}" for value in seconds), *(f"{value:.0f}" for value in tokens)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=9, help="steps that are counted")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        parameters = save_model(Path(folder))
        sys.stdout, real = sys.stderr, sys.stdout  # TRL prints its metrics
        try:
            found = measure(Path(folder), options.steps + WARMUP)
        finally:
            sys.stdout = real
    text = report(found, parameters, options.steps)
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
