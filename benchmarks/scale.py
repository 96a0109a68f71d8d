"""The cost model of a step (aepo.planning.cost): fitted to CPU steps, tested on held-out ones, and tables.

    python benchmarks/scale.py fit [--out FILE] [--keep FILE]  # about 4 minutes of one core
    python benchmarks/scale.py tables                          # the papers' setting on 1, 8, 64 and 512 H100s
    python benchmarks/scale.py published                       # beside step times that others have published

`fit` runs `train_step` for each case below: two steps to warm up, then five; what counts is the median of the CPU
seconds of sampling (with rewards), scoring and update. The constants are fitted to the cases marked FIT,
by least squares of relative errors over constants that are not negative; the cases marked HELD are then predicted.
What the prediction is given of a held-out case: its settings, and the mean completion length and the share of usable
extra completions that it showed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import platform
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

import aepo.training.step
from aepo.config import Config, make_config
from aepo.model.builtin import base_model, make_tokenizer
from aepo.model.policy import Policy
from aepo.planning.cost import H100, Lengths, Machine, Model, Work, seconds, table
from aepo.planning.dry_run import Assumed, architecture, work_of
from aepo.tasks import Problem, Task
from aepo.training.checkpoint import TrainState
from aepo.training.runner import make_sampler
from aepo.training.step import Clock, Run, make_optimizer, train_step

ROOT = Path(__file__).parents[1]
FIT, HELD = "fit", "held out"
PARTS = ("sampling", "scoring", "update")
CONSTANTS = ("decode", "score", "update", "elementwise", "bandwidth", "iteration", "launch", "row")


# --- the cases ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A random Qwen3 with tied embeddings; `ends`: how many of its tokens end a completion."""

    hidden: int
    layers: int
    vocabulary: int
    ends: int


SHAPES = {
    "1.1M": Shape(hidden=128, layers=4, vocabulary=2000, ends=120),
    "3.4M": Shape(hidden=192, layers=6, vocabulary=4000, ends=200),
    "11M": Shape(hidden=320, layers=6, vocabulary=6000, ends=300),
}


@dataclass(frozen=True)
class Case:
    """longest: the limit of a completion, tokens. extra: completions drawn once more of each prompt, 0 for GRPO."""

    name: str
    use: str
    model: str
    prompts: int
    group: int
    prompt: int = 0
    longest: int = 0
    extra: int = 0
    minibatches: int = 4
    microbatch: int | None = None


CASES = (
    Case("paths, 64 x 8", FIT, "builtin", 64, 8),
    Case("paths, 32 x 16", FIT, "builtin", 32, 16),
    Case("paths, 64 x 8 + 4", FIT, "builtin", 64, 8, extra=4),
    Case("1.1M, 16 x 8", FIT, "1.1M", 16, 8, prompt=16, longest=32),
    Case("1.1M, 8 x 8, long prompts", FIT, "1.1M", 8, 8, prompt=64, longest=32, minibatches=2),
    Case("1.1M, 8 x 4, long", FIT, "1.1M", 8, 4, prompt=16, longest=96, minibatches=1),
    Case("1.1M, 16 x 8, microbatches", FIT, "1.1M", 16, 8, prompt=16, longest=32, microbatch=8),
    Case("1.1M, 16 x 8 + 8", FIT, "1.1M", 16, 8, prompt=16, longest=32, extra=8),
    Case("3.4M, 8 x 8", FIT, "3.4M", 8, 8, prompt=16, longest=32, minibatches=2),
    Case("3.4M, 4 x 4, long prompts", FIT, "3.4M", 4, 4, prompt=64, longest=32, minibatches=1),
    Case("3.4M, 8 x 4 + 4", FIT, "3.4M", 8, 4, prompt=16, longest=48, extra=4, minibatches=2),
    Case("paths, 128 x 4 + 2", HELD, "builtin", 128, 4, extra=2),
    Case("1.1M, 24 x 4, long", HELD, "1.1M", 24, 4, prompt=32, longest=80),
    Case("1.1M, 24 x 4 + 4, long", HELD, "1.1M", 24, 4, prompt=32, longest=80, extra=4),
    Case("3.4M, 16 x 4, one minibatch", HELD, "3.4M", 16, 4, prompt=40, longest=40, minibatches=1),
    Case("11M, 6 x 8", HELD, "11M", 6, 8, prompt=16, longest=32, minibatches=2),
    Case("11M, 6 x 8 + 8", HELD, "11M", 6, 8, prompt=16, longest=32, extra=8, minibatches=2),
)


@dataclass(frozen=True)
class Words(Task):
    """Prompts of half to all of `longest_prompt` random words; half of all answers are right, by a checksum."""

    longest_prompt: int
    longest: int
    vocabulary: int

    @property
    def max_tokens(self) -> int:
        return self.longest

    def train_problem(self, seed: int, index: int) -> Problem:
        draws = torch.Generator().manual_seed(seed * 100_003 + index)
        count = int(torch.randint(self.longest_prompt // 2, self.longest_prompt + 1, (), generator=draws))
        words = torch.randint(0, self.vocabulary - 3, (count,), generator=draws).tolist()
        return Problem(f"{seed}-{index}", " ".join(f"w{word}" for word in words), {"index": index})

    def eval_problems(self, count: int) -> list[Problem]:
        return [self.train_problem(1, index) for index in range(count)]

    def reward(self, problem: Mapping[str, Any], text: str, truncated: bool) -> float:
        return float(zlib.crc32(f"{problem['index']} {text}".encode()) & 1)


def random_model(shape: Shape, folder: Path) -> Path:
    tokenizer = make_tokenizer(tuple(f"w{number}" for number in range(shape.vocabulary - 3)))
    sizes = {"hidden_size": shape.hidden, "intermediate_size": 4 * shape.hidden, "num_hidden_layers": shape.layers}
    ids = {"pad_token_id": 0, "eos_token_id": list(range(1, shape.ends + 1)), "bos_token_id": None}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": shape.vocabulary}
    torch.manual_seed(0)
    heads["head_dim"] = shape.hidden // 4
    model = Qwen3ForCausalLM(Qwen3Config(**sizes, **heads, **ids, tie_word_embeddings=True))
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prepared(case: Case, scratch: Path) -> tuple[Run, TrainState]:
    """As `aepo train` would, at full command from the first step on; the weights hardly move."""
    full = ["control.law=constant", "control.start=hot", "control.draw=all", "control.count_high=0.25"]
    settings = [
        *(f"sampling.prompts={case.prompts}", f"sampling.group_size={case.group}", "optimizer.lr=1e-7"),
        f"optimizer.minibatches={case.minibatches}",
        *([f"optimizer.microbatch={case.microbatch}"] if case.microbatch else []),
        *([*full, f"control.per_prompt={case.extra}"] if case.extra else []),
    ]
    config = make_config(method="aepo" if case.extra else "grpo", settings=settings)
    if case.model == "builtin":
        folder = base_model(config.task)
    else:
        shape, folder = SHAPES[case.model], scratch / case.model
        if not folder.exists():
            random_model(shape, folder)
        config = replace(config, task=Words(case.prompt, case.longest, shape.vocabulary), model=str(folder))
    policy = Policy.load(folder)
    run = Run(
        config=config,
        algorithm=config.algorithm,
        task=config.task,
        policy=policy,
        sampler=make_sampler(policy, config),
        optimizer=make_optimizer(policy, config.optimizer),
    )
    return run, TrainState(control=config.control.initial_state())


# --- measuring and fitting ----------------------------------------------------------------------------------


class ProcessClock(Clock):
    """CPU seconds of this process instead of elapsed ones: the machine has other users."""

    def lap(self, name: str) -> None:
        now = time.process_time()
        self._laps[f"cpu_{name}"] = now - getattr(self, "_lap", self._process)
        self._lap = now


def measure(case: Case, scratch: Path, steps: int) -> dict[str, Any]:
    """Medians of CPU seconds, and what the model is told of the case."""
    run, state = prepared(case, scratch)
    rows = []
    for number in range(2 + steps):
        state, row, samples = train_step(run, state)
        if number >= 2:
            prompts = [len(sample.rollout.completion.prompt.tokens) for sample in samples]
            rows.append({**row, "prompt": statistics.fmean(prompts)})
    extra = sum(row["extra_completions"] for row in rows)
    told = {
        "length": sum(row["tokens"] for row in rows) / sum(row["completions"] for row in rows),
        "prompt": statistics.fmean(row["prompt"] for row in rows),
        "extra_accuracy": max(sum(row["extra_used"] for row in rows) / extra, 1e-9) if extra else 1.0,
    }
    measured = {part: statistics.median(row[f"cpu_{part}"] for row in rows) for part in PARTS}
    spread = max(row["seconds_cpu"] for row in rows) / min(row["seconds_cpu"] for row in rows)
    work = work_of(run.config, architecture(run.config), Assumed(accuracy=0.5, **told))
    return {"told": told, "measured": measured, "spread": spread, "work": work}


def quantities(work: Work) -> dict[str, dict[str, float]]:
    """For each constant, the seconds of each part on a machine where it alone costs anything, one second a unit."""
    found = {}
    for name in CONSTANTS:
        spent = seconds(work, replace(Machine(), **{name: 1.0}))
        found[name] = {"sampling": spent.sampling + spent.host, "scoring": spent.scoring, "update": spent.update}
    return found


def fit(results: list[dict[str, Any]]) -> dict[str, float]:
    """The price of each constant, seconds a unit: of all sets of them, the non-negative one that fits best."""
    rows = []
    for result in results:
        counted = quantities(result["work"])
        rows += [[counted[name][part] / result["measured"][part] for name in CONSTANTS] for part in PARTS]
    matrix = numpy.array(rows)
    scale = matrix.max(axis=0)
    best, prices = math.inf, numpy.zeros(len(CONSTANTS))
    for chosen in itertools.product([False, True], repeat=len(CONSTANTS)):
        columns = numpy.flatnonzero(chosen)
        if len(columns) == 0:
            continue
        solved = numpy.linalg.lstsq(matrix[:, columns] / scale[columns], numpy.ones(len(rows)), rcond=None)[0]
        error = float(((matrix[:, columns] / scale[columns] @ solved - 1) ** 2).sum())
        if (solved >= 0).all() and error < best:
            best, prices = error, numpy.zeros(len(CONSTANTS))
            prices[columns] = solved / scale[columns]
    return dict(zip(CONSTANTS, prices.tolist(), strict=True))


def predicted(work: Work, prices: Mapping[str, float]) -> dict[str, float]:
    counted = quantities(work)
    return {part: sum(prices[name] * counted[name][part] for name in CONSTANTS) for part in PARTS}


def off(guess: float, truth: float) -> str:
    return f"{guess / truth - 1:+.0%}"


def fit_report(results: dict[str, dict[str, Any]], prices: Mapping[str, float], steps: int) -> list[str]:
    lines = [
        "# The cost model of a step on the CPU",
        "",
        f"2 shared cores ({platform.machine()}), torch {torch.__version__}, transformers {transformers.__version__}.",
        f"One thread. `python benchmarks/scale.py fit --steps {steps}`: medians of {steps} steps, CPU seconds of the",
        "process, since the machine had other users.",
        "",
        "## Constants",
        "",
        "| constant | fitted |",
        "|---|---|",
    ]
    for name, price in prices.items():
        per_unit = name in ("iteration", "launch", "row")
        value = f"{price * 1e6:.3g} us" if per_unit else f"{1 / price:.3g} per s" if price else "free (0)"
        lines.append(f"| {name} | {value} |")
    for use in (FIT, HELD):
        lines += ["", f"## {use.capitalize()}: measured, and the prediction's error", "", *errors(results, prices, use)]
    return [*lines, "", "## What the extra completions add", "", *added(results, prices), ""]


def errors(results: dict[str, dict[str, Any]], prices: Mapping[str, float], use: str) -> list[str]:
    lines = [
        "| case | spread | length | sampling (s) | off | scoring (s) | off | update (s) | off | step (s) | off |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    misses: dict[str, list[float]] = {part: [] for part in (*PARTS, "step")}
    for case in CASES:
        if case.use != use:
            continue
        result = results[case.name]
        truth, guess = result["measured"], predicted(result["work"], prices)
        pairs = {part: (truth[part], guess[part]) for part in PARTS}
        pairs["step"] = (sum(truth.values()), sum(guess.values()))
        cells = [case.name, f"{result['spread']:.2f}", f"{result['told']['length']:.1f}"]
        for part, (true, told) in pairs.items():
            cells += [f"{true:.3f}", off(told, true)]
            misses[part].append(abs(told / true - 1))
        lines.append(f"| {' | '.join(cells)} |")
    means = ", ".join(
        f"{part} {statistics.fmean(values):.0%} (worst {max(values):.0%})" for part, values in misses.items()
    )
    return [*lines, "", f"Mean absolute error: {means}. Spread: the slowest measured step over the fastest."]


def added(results: dict[str, dict[str, Any]], prices: Mapping[str, float]) -> list[str]:
    """Pairs of cases that differ in the extra completions alone."""
    lines = ["| case | use | measured | predicted |", "|---|---|---|---|"]
    for case in CASES:
        plain = [
            other for other in CASES if case.extra and replace(case, extra=0, name=other.name, use=other.use) == other
        ]
        for other in plain:
            both = results[case.name], results[other.name]
            with_extra, without = (sum(r["measured"].values()) for r in both)
            guesses = [sum(predicted(r["work"], prices).values()) for r in both]
            shown = [off(with_extra, without), off(*guesses)]
            lines.append(f"| {case.name} | {case.use} | {' | '.join(shown)} |")
    return lines


def run_fit(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    aepo.training.step.Clock = ProcessClock  # type: ignore[misc]
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for case in CASES:
            results[case.name] = measure(case, Path(scratch), options.steps)
            shown = {part: round(value, 4) for part, value in results[case.name]["measured"].items()}
            print(case.name, shown, f"{time.process_time():.0f} s of CPU so far", flush=True)
    if options.keep:
        options.keep.write_text(json.dumps({name: {**r, "work": asdict(r["work"])} for name, r in results.items()}))
    prices = fit([results[case.name] for case in CASES if case.use == FIT])
    text = "\n".join(fit_report(results, prices, options.steps))
    print(text)
    if options.out:
        options.out.write_text(text)


# --- tables for the papers' setting, and published step times -----------------------------------------------

# From the model's config.json on the hub, which a dry run reads; here, so that the tables need no network.
QWEN = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
GPUS = (1, 8, 64, 512)
RECIPE = ROOT / "recipes" / "dapo17k" / "v6-qwen2.5-7b-{}.toml"
# A mean completion of 1 000 tokens, of 8 192 at most, after a prompt of 200; half of the ordinary completions are right
# and two fifths of the extra ones.
ASSUMED = Assumed(length=1000, prompt=200, accuracy=0.5, extra_accuracy=0.4)
VARIANTS: tuple[tuple[str, str, list[str], Assumed, dict[str, Any]], ...] = (
    ("`aepo-v6`: 60 positives, a quarter of the prompts again, replacing", "aepo", [], ASSUMED, {}),
    ("the same, extra ones in a second call", "aepo", [], ASSUMED, {"one_call": False}),
    ("`aepo` at full command: 1 024 positives, appended", "aepo", ["method=aepo"], ASSUMED, {}),
    ("the same, replacing", "aepo", ["method=aepo", "control.join=replace"], ASSUMED, {}),
    ("`aepo` at a third of its command", "aepo", ["method=aepo"], replace(ASSUMED, command=1 / 3), {}),
    (
        "the same, a tenth of the extra ones right",
        "aepo",
        ["method=aepo"],
        replace(ASSUMED, command=1 / 3, extra_accuracy=0.1),
        {},
    ),
    ("`aepo-reweighted`: none drawn", "aepo", ["method=aepo-reweighted"], ASSUMED, {}),
    ("an entropy bonus (`entropy-reg`)", "entropy-reg", [], ASSUMED, {}),
    ("a reference model (`kl_coefficient`)", "grpo", ["kl_coefficient=0.001"], ASSUMED, {}),
)


def folder_of(config: Mapping[str, Any], scratch: Path) -> Path:
    (scratch / "config.json").write_text(json.dumps(config))
    rows = [json.dumps({"problem": f"What is {number} + 1?", "answer": str(number + 1)}) for number in range(600)]
    (scratch / "rows.jsonl").write_text("\n".join(rows))
    return scratch


def paper_config(recipe: str, settings: list[str], scratch: Path) -> Config:
    """A recipe as it stands, but for rows and config.json from a folder instead of the hub."""
    method = next((s.removeprefix("method=") for s in settings if s.startswith("method=")), None)
    settings = [s for s in settings if not s.startswith("method=")]
    own = Path(str(RECIPE).format("grpo" if method else recipe))
    return make_config(own, method, settings=[f"model='{scratch}'", f"task.train='{scratch}/rows.jsonl'", *settings])


def run_tables(options: argparse.Namespace) -> None:
    assumed = replace(ASSUMED, length=options.length)
    with tempfile.TemporaryDirectory() as folder:
        scratch = folder_of(QWEN, Path(folder))
        plain = paper_config("grpo", [], scratch)
        model = architecture(plain)
        grpo = work_of(plain, model, assumed)
        aepo_work = work_of(paper_config("aepo", [], scratch), model, assumed)
        print(
            f"Qwen2.5-7B, 512 x 8 completions of {options.length:g} tokens, at most 8192. From the model, not measured."
        )
        print("\nGRPO\n", *table(grpo, H100, GPUS), sep="\n")
        print("\nAEPO v6\n", *table(aepo_work, H100, GPUS, grpo), sep="\n")
        print("\nWhat is added to a step of GRPO\n", *variants(model, grpo, scratch, options.length), sep="\n")
        print("\nOther settings of GRPO\n", *remedies(grpo), sep="\n")
        print(
            "\nWhat the assumptions are worth: GRPO's step (s), and what AEPO v6 adds\n",
            *swings(grpo, aepo_work),
            sep="\n",
        )


def variants(model: Model, grpo: Work, scratch: Path, length: float) -> list[str]:
    lines = [
        "| | drawn | scored | trained | " + " | ".join(map(str, GPUS)) + " |",
        "|---|---|---|---|" + "---|" * len(GPUS),
    ]
    for name, recipe, settings, assumed, changes in VARIANTS:
        config = paper_config(recipe, settings, scratch)
        work = replace(work_of(config, model, replace(assumed, length=length)), **changes)
        shares = (seconds(work, H100, n).total / seconds(grpo, H100, n).total for n in GPUS)
        cells = [
            name,
            f"+{work.extra}",
            str(work.scored),
            str(work.trained),
            *(f"{share - 1:+.1%}" for share in shares),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def remedies(grpo: Work) -> list[str]:
    """Seconds of a step, and GPU seconds per completion."""
    shorter = Lengths(min(grpo.lengths.mean, 4096), 4096, grpo.lengths.spread)
    many = {
        "prompts": 4 * grpo.prompts,
        "ordinary": 4 * grpo.ordinary,
        "scored": 4 * grpo.scored,
        "trained": 4 * grpo.trained,
    }
    choices: tuple[tuple[str, Work, Machine], ...] = (
        ("as it is", grpo, H100),
        ("four times the prompts, as many optimizer steps", replace(grpo, **many), H100),
        ("answers of at most 4 096 tokens", replace(grpo, lengths=shorter), H100),
        ("weights sharded over 8 GPUs instead of all", grpo, replace(H100, shard=8)),
    )
    lines = [
        "| | " + " | ".join(f"{n}: step (s), GPU s / completion" for n in GPUS) + " |",
        "|---|" + "---|" * len(GPUS),
    ]
    for name, work, machine in choices:
        spent = [seconds(work, machine, n).total for n in GPUS]
        cells = [f"{total:,.0f}, {total * n / work.ordinary:.2f}" for total, n in zip(spent, GPUS, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def swings(grpo: Work, aepo_work: Work) -> list[str]:
    """The tables' two works with one assumption changed at a time."""

    def alone(work: Work) -> Work:
        return work

    def spread(value: float) -> Callable[[Work], Work]:
        return lambda work: replace(work, lengths=replace(work.lengths, spread=value))

    changes: tuple[tuple[str, Callable[[Work], Work], Machine], ...] = (
        ("as assumed", alone, H100),
        ("lengths spread 0.5", spread(0.5), H100),
        ("lengths spread 1.1", spread(1.1), H100),
        ("`iteration` 50 us a layer", alone, replace(H100, iteration=5e-5)),
        ("`iteration` 200 us a layer", alone, replace(H100, iteration=2e-4)),
        (
            "half the rates of products",
            alone,
            replace(H100, decode=H100.decode / 2, score=H100.score / 2, update=H100.update / 2),
        ),
        ("a tenth of the network", alone, replace(H100, near=H100.near / 10, far=H100.far / 10)),
    )
    lines = ["| | " + " | ".join(map(str, GPUS)) + " |", "|---|" + "---|" * len(GPUS)]
    for name, change, machine in changes:
        pairs = [(seconds(change(grpo), machine, n).total, seconds(change(aepo_work), machine, n).total) for n in GPUS]
        lines.append(f"| {name} | " + " | ".join(f"{a:,.0f}, {b / a - 1:+.1%}" for a, b in pairs) + " |")
    return lines


# An H20: 148 TFLOP/s in bfloat16, 4.0 TB/s, 96 GB, NVLink as the H100's; the shares are the H100's.
H20 = replace(
    H100,
    decode=H100.decode * 148 / 989,
    score=H100.score * 148 / 989,
    update=H100.update * 148 / 989,
    weights=H100.weights * 4.0 / 3.35,
    bandwidth=H100.bandwidth * 4.0 / 3.35,
    cache=H100.cache * 96 / 80,
)


def run_published(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        scratch = folder_of(LLAMA, Path(folder))
        llama = architecture(paper_config("grpo", [], scratch))
        qwen = architecture(paper_config("grpo", [], folder_of(QWEN, scratch)))
    nemo = Work(
        model=llama,
        lengths=Lengths(960, 3996),
        prompts=64,
        prompt_tokens=100,
        ordinary=2048,
        extra=0,
        scored=2048,
        trained=2048,
        minibatches=4,
        microbatch=4,
        passes=2,
    )
    print("NeMo RL 0.4, Llama 3.1 8B, 2 048 completions on 16 H100: published 97.7 s a step\n")
    print(*table(nemo, H100, (16,)), sep="\n")
    print("\nverl, Qwen2.5-Math-7B, 8 192 completions of at most 28 672 tokens on H20s (mean length not published)\n")
    print("| GPUs | mean length | step | sampling | scoring | update |", "|---|---|---|---|---|---|", sep="\n")
    shown = {
        32: (790.10, 357.41, 107.71, 269.80),
        64: (365.28, 150.72, 70.26, 133.41),
        128: (356.30, 177.85, 53.92, 113.81),
    }
    for count, times in shown.items():
        print(f"| {count} | published | {' | '.join(f'{value:,.0f}' for value in times)} |")
        for mean in (1000, 2000):
            rows = {"ordinary": 8192, "extra": 0, "scored": 8192, "trained": 8192, "minibatches": 16, "microbatch": 16}
            work = Work(
                model=qwen, lengths=Lengths(mean, 28672), prompts=512, prompt_tokens=200, **rows, checkpointing=True
            )
            spent = seconds(work, H20, count)
            found = (spent.total, spent.sampling, spent.scoring, spent.update)
            print(f"| {count} | {mean} | {' | '.join(f'{value:,.0f}' for value in found)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    fitting = commands.add_parser("fit")
    fitting.add_argument("--steps", type=int, default=5)
    fitting.add_argument("--out", type=Path, default=None)
    fitting.add_argument("--keep", type=Path, default=None, help="write what was measured, as JSON")
    fitting.set_defaults(run=run_fit)
    tables = commands.add_parser("tables")
    tables.add_argument("--length", type=float, default=ASSUMED.length, help="mean tokens of a completion")
    tables.set_defaults(run=run_tables)
    published = commands.add_parser("published")
    published.set_defaults(run=run_published)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
