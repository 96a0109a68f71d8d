"""The parts of benchmarks/gpu.py: tests, statistics, step and hold. Each runs in a process of its own."""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import json
import os
import random
import statistics as stats
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
VARIANTS = {
    "ours default": "own tiles (Triton on a GPU)",
    "plain eager": "plain",
    "TRL chunked": "TRL",
    "Liger": "Liger",
    "cut-cross-entropy": "cut-cross-entropy (log-probs alone)",
    "ours compiled": "own tiles, compiled",
    "plain compiled": "plain, compiled",
    "ours eager": "own tiles, eager",
}
"""Variants of benchmarks/token_statistics.py, the most wanted first, and their names in the table."""


@dataclass(frozen=True)
class Sizes:
    """Everything that is smaller on a CPU."""

    # The token statistics: tokens x width x vocabulary.
    tokens: int = 16_384
    width: int = 3_584
    vocabulary: int = 152_064
    dtype: str = "bfloat16"
    repeats: int = 7
    # A random model: the sizes of Qwen2.5-0.5B with a head of its own, 0.63 B parameters.
    model: Mapping[str, int] | None = None
    # Sampling alone and a whole step: prompts x group completions.
    prompts: int = 32
    group: int = 8
    prompt_tokens: int = 64
    new_tokens: int = 256
    step_tokens: int = 128
    steps: int = 4
    microbatches: int = 8  # of TRL, which does not choose them itself
    # The held run.
    hold_prompts: int = 16
    hold_tokens: int = 32
    hold_steps: int = 400


QWEN3 = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 151_936,
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 1024,
}
SIZES = {
    "cuda": Sizes(model=QWEN3),
    "cpu": Sizes(
        tokens=256,
        width=64,
        vocabulary=4096,
        dtype="float32",
        repeats=2,
        model=TINY,
        prompts=4,
        group=4,
        prompt_tokens=8,
        new_tokens=16,
        step_tokens=12,
        steps=2,
        microbatches=2,
        hold_prompts=4,
        hold_tokens=12,
        hold_steps=9,
    ),
}


class Record:
    """The results of a part. Every change is on the disk at once, whole or not at all."""

    def __init__(self, path: Path, part: str, limit: float) -> None:
        self.path = path
        self._start, self._limit = time.monotonic(), limit
        self.data: dict[str, Any] = {"part": part, "complete": False, "facts": {}, "results": [], "left_out": []}
        self.write()

    def left(self) -> float:
        """Seconds until the limit."""
        return self._limit - (time.monotonic() - self._start)

    def fact(self, **facts: Any) -> None:
        self.data["facts"] |= facts
        self.write()

    def add(self, **row: Any) -> None:
        self.data["results"].append(row)
        print(json.dumps(row), flush=True)
        self.write()

    def leave_out(self, what: str, why: str) -> None:
        self.data["left_out"].append({"what": what, "why": why})
        print(f"left out: {what}: {why}", flush=True)
        self.write()

    def write(self) -> None:
        self.data["seconds"] = round(time.monotonic() - self._start, 1)
        write_atomically(self.path, json.dumps(self.data, indent=2) + "\n")

    def finish(self) -> None:
        self.data["complete"] = True
        self.write()


def write_atomically(path: Path, text: str) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.replace(path)


@dataclass(frozen=True)
class Given:
    """What a part is told."""

    device: str
    model: str | None
    scratch: Path
    variants: Sequence[str]

    @property
    def sizes(self) -> Sizes:
        return SIZES[self.device]


# --- clocks and memory ----------------------------------------------------------------------------------------


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def timed(step: Callable[[], Any], device: str, repeats: int) -> float:
    """Median milliseconds of a call: by events on the device, by the clock on a CPU."""
    found = []
    for _ in range(repeats):
        if device == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            step()
            end.record()
            end.synchronize()
            found.append(begin.elapsed_time(end))
        else:
            clock = time.perf_counter()
            step()
            found.append(1000 * (time.perf_counter() - clock))
    return stats.median(found)


class Peak:
    """The largest memory since the last `reset`, megabytes: allocated on the device, or resident on a CPU."""

    def __init__(self, device: str) -> None:
        self.device = device

    def reset(self) -> None:
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")

    def now(self) -> float:
        return torch.cuda.memory_allocated() / 2**20 if self.device == "cuda" else self._resident("VmRSS")

    def most(self) -> float:
        return torch.cuda.max_memory_allocated() / 2**20 if self.device == "cuda" else self._resident("VmHWM")

    @staticmethod
    def _resident(which: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(which)) / 1024


def forget(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def reason(error: BaseException) -> str:
    """The error's first line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:300]


# --- tests ----------------------------------------------------------------------------------------------------

MARK = "pytest.mark.gpu"


def tests(given: Given, record: Record) -> None:
    """All tests with the mark `gpu`, all files at once. Files without it are not imported: they may need more packages.

    The file of the Triton kernels takes longest: it compiles a kernel for each of many cases.
    """
    root = HERE.parent
    files = sorted(path for path in (root / "tests").rglob("test_*.py") if MARK in path.read_text())
    running: dict[Path, subprocess.Popen[bytes]] = {}
    for file in files:
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "-p", "no:cacheprovider"]
        command += [f"--junitxml={given.scratch / file.stem}.xml", str(file.relative_to(root))]
        with (given.scratch / f"{file.stem}.txt").open("w") as text:
            running[file] = subprocess.Popen(command, cwd=root, stdout=text, stderr=subprocess.STDOUT)
    clock = time.perf_counter()
    while running:
        time.sleep(0.2)
        over = record.left() < 0
        for file, process in list(running.items()):
            if over:
                process.kill()
                process.wait()
            elif process.poll() is None:
                continue
            del running[file]
            passed, output = process.returncode == 0, (given.scratch / f"{file.stem}.txt").read_text()
            output += "no time was left" * over
            print(output, flush=True)
            row = {"file": str(file.relative_to(root)), "passed": passed, "seconds": time.perf_counter() - clock}
            record.add(
                **row, **cases(given.scratch / f"{file.stem}.xml"), **({} if passed else {"output": output[-3000:]})
            )
    failed = [row["file"] for row in record.data["results"] if not row["passed"]]
    if failed or not record.data["results"]:
        raise SystemExit(f"tests failed: {', '.join(failed) or 'none was found'}")


def cases(report: Path) -> dict[str, Any]:
    """The number of tests that ran, and why others were skipped."""
    if not report.exists():
        return {"ran": 0, "skipped": []}
    from xml.etree import ElementTree

    found = list(ElementTree.parse(report).iter("testcase"))
    skips = [(case.get("name"), skip.get("message")) for case in found for skip in case.findall("skipped")]
    return {"ran": len(found) - len(skips), "skipped": [f"{name}: {why}" for name, why in skips]}


# --- token statistics -----------------------------------------------------------------------------------------


def statistics(given: Given, record: Record) -> None:
    """Forward and backward of each variant beside the four products with the head that every tiled way needs."""
    import token_statistics as known

    sizes, device = given.sizes, given.device
    names = {"tokens": [sizes.tokens], "width": sizes.width, "vocabulary": sizes.vocabulary, "spread": 2.0}
    hidden, weight, labels = known.inputs(argparse.Namespace(**names, device=device, dtype=sizes.dtype))
    products = floor(hidden.detach(), weight.detach(), device, sizes.repeats)
    flops = 8.0 * sizes.tokens * sizes.width * sizes.vocabulary
    record.fact(
        shape=f"{sizes.tokens} x {sizes.width} x {sizes.vocabulary}",
        dtype=sizes.dtype,
        floor_ms=products,
        floor_tflops=flops / products / 1e9,
        head_gradient_mb=4 * sizes.width * sizes.vocabulary / 2**20,
    )
    forget(device)
    record.fact(tiles_ms=tile_products(hidden.detach(), weight.detach(), device, sizes.repeats))
    missing: dict[str, str] = {}
    for further in (1, 0, 2):
        for name in given.variants:
            if name in missing or (name == "cut-cross-entropy" and further):
                continue
            title = f"{VARIANTS[name]}, {1 + further} temperature{'s' * bool(further)}"
            if record.left() < (25 if device == "cuda" else 10):
                record.leave_out(title, "no time was left")
                continue
            try:
                found = measure(known, name, (hidden, weight, labels), further, given)
            except ImportError as error:
                missing[name] = f"not installed ({reason(error)})"
                record.leave_out(VARIANTS[name], missing[name])
            except Exception as error:  # another project's kernel, or too little memory: the others are measured
                record.leave_out(title, f"does not run here ({reason(error)})")
            else:
                beside = found["peak_mb"] - record.data["facts"]["head_gradient_mb"]
                row = {"variant": name, "temperatures": 1 + further, "of_floor": found["ms"] / products}
                same = name not in known.SAME_LOSS or as_others(found["loss"], 1 + further, record, sizes.dtype)
                record.add(**row, beside_mb=beside, **found, same_loss=same)
            hidden.grad = weight.grad = None
            forget(device)
            torch.compiler.reset()
    record.fact(floor_again_ms=floor(hidden.detach(), weight.detach(), device, sizes.repeats), **triton_state())


def as_others(loss: float, temperatures: int, record: Record, dtype: str) -> bool:
    """Whether the loss is that of the first variant with as many temperatures."""
    rows = record.data["results"]
    first = next((row["loss"] for row in rows if row["temperatures"] == temperatures), loss)
    return bool(abs(loss - first) <= (1e-3 if dtype == "float32" else 0.05))


def measure(
    known: Any, name: str, inputs: tuple[Tensor, Tensor, Tensor], further: int, given: Given
) -> dict[str, float]:
    hidden, weight, labels = inputs
    loss, device, peak = known.VARIANTS[name](), given.device, Peak(given.device)

    def step() -> Tensor:
        hidden.grad = weight.grad = None
        value: Tensor = loss(hidden, weight, labels, known.FURTHER_TEMPERATURES[:further])
        value.backward()
        return value.detach()

    for _ in range(2):  # compiles, tunes
        value = step()
    milliseconds = timed(step, device, given.sizes.repeats)
    hidden.grad = weight.grad = None
    forget(device)
    peak.reset()
    before = peak.now()
    step()
    synchronize(device)
    return {"ms": milliseconds, "peak_mb": peak.most() - before, "loss": value.item()}


def floor(hidden: Tensor, weight: Tensor, device: str, repeats: int) -> float:
    """Milliseconds of four products, each whole: the logits, the logits again, the gradients of both factors."""

    def products() -> None:
        for _ in range(2):
            z = hidden @ weight.t()
        _ = z @ weight
        _ = z.t() @ hidden

    products()
    return timed(products, device, repeats)


def tile_products(hidden: Tensor, weight: Tensor, device: str, repeats: int) -> float:
    """Milliseconds of the same products as `token_statistics` calls them: in tiles, with sums in float32."""
    from aepo.entropy.tiles import _Head, default_chunk

    head = _Head.of(weight, None)
    total = torch.zeros_like(weight, dtype=head.dtype)
    tiles = hidden.split(default_chunk(hidden.device, len(weight)))
    room = hidden.new_empty(len(tiles[0]), len(weight), dtype=head.dtype)

    def products() -> None:
        for tile in tiles:
            z = room[: len(tile)]
            for _ in range(2):
                head.logits(tile, z)
            dz = z.to(weight.dtype)
            head.hidden_gradient(dz)
            head.add_weight_gradient(total, dz, tile)

    products()
    return timed(products, device, repeats)


def triton_state() -> dict[str, Any]:
    """Whether the kernels that were asked for ran: where one fails, eager code takes its place without a word."""
    from aepo.entropy import kernels

    named = {"Triton": kernels._TRITON, "compiled": kernels._COMPILED}
    parts = {
        f"{name} {part}": getattr(kernel, part)
        for name, kernel in named.items()
        for part in ("reduce", "differentiate")
    }
    fallen = [name for name, part in parts.items() if part.failed]
    return {
        "fell_back_to_eager": fallen,
        "ran": [name for name, part in parts.items() if part.made and not part.failed],
    }


# --- the model and its tasks ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """The model of the parts `step` and `hold`."""

    folder: str
    name: str
    real: bool


def find_model(given: Given, record: Record) -> Found:
    """The folder that was named, or on a GPU the packaged model, or a random one."""
    from aepo.errors import InvalidValue
    from aepo.model.packaged import local_folder

    found = None
    if given.model:
        found = Found(local_folder(given.model), Path(given.model).name, True)
    elif given.device == "cuda":
        try:
            found = Found(local_folder("smollm2"), "smollm2", True)
        except InvalidValue as error:
            record.leave_out("the packaged model smollm2", reason(error))
    if found is None:
        found = Found(str(random_model(given)), "random Qwen3", False)
    record.fact(model=found.name, pretrained=found.real)
    return found


def random_model(given: Given) -> Path:
    """A model with random weights and a tokenizer of whole words, in Hugging Face format; made once for all parts."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    from aepo.tasks.words import NOUNS

    folder = given.scratch / "model"
    if folder.exists():
        return folder
    shape = given.sizes.model or TINY
    words = ["<pad>", "<end>", *NOUNS]
    words += [f"w{n}" for n in range(shape["vocab_size"] - len(words))]
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    torch.manual_seed(0)
    with torch.device(given.device):
        model = Qwen3ForCausalLM(
            Qwen3Config(
                **shape,
                tie_word_embeddings=False,
                max_position_embeddings=4096,
                bos_token_id=None,
                eos_token_id=1,
                pad_token_id=0,
            )
        )
    # Logits with a deviation of 2.5: as far from uniform as those of a language model, so that training moves them.
    torch.nn.init.normal_(model.lm_head.weight, std=2.5 / shape["hidden_size"] ** 0.5)
    part = folder.with_name("model.new")
    model.to(torch.bfloat16).save_pretrained(part)
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>").save_pretrained(part)
    part.rename(folder)
    return folder


def words_task(max_tokens: int, words: int, reward: Callable[[str], float]) -> Any:
    """A task whose prompts are random words, with any reward of the text."""
    from aepo.tasks.base import Problem, Task
    from aepo.tasks.words import NOUNS

    class Words(Task):
        @property
        def max_tokens(self) -> int:
            return max_tokens

        def train_problem(self, seed: int, index: int) -> Problem:
            draw = random.Random(seed * 1_000_003 + index)
            return Problem(str(index), " ".join(draw.choices(NOUNS, k=words)), {})

        def eval_problems(self, count: int) -> list[Problem]:
            return [self.train_problem(-1, index) for index in range(count)]

        def reward(self, problem: Mapping[str, Any], text: str, truncated: bool) -> float:
            return reward(text)

    return Words()


def coin(text: str) -> float:
    """A reward that is nearly never the same in a whole group, whatever the model writes."""
    return float(zlib.crc32(text.encode()) % 2)


def even(text: str) -> float:
    """1 if most words end with an even digit: something that a random model can learn."""
    words = text.split()
    return float(2 * sum(word[-1] in "02468" for word in words) > len(words))


def prepared(method: str, settings: Sequence[str], given: Given, model: Found, task: Any = None) -> Any:
    """The objects of a run and its first state, as `aepo train` makes them."""
    from aepo.config import make_config
    from aepo.training import runner

    always = ["evaluation.every=0", f"device={given.device}"]
    overrides = {"model": model.folder}
    config = make_config(method=method, overrides=overrides, settings=[*always, *settings])
    return runner._prepare(config if task is None else replace(config, task=task), None, quiet=True)


# --- sampling and whole steps ---------------------------------------------------------------------------------

# How `HFSampler` decodes.
WAYS: tuple[Literal["dynamic", "static"], ...] = ("dynamic", "static")


def step(given: Given, record: Record) -> None:
    """Sampling beside transformers' `generate`, then whole steps of `aepo train` beside TRL's trainer."""
    model, sizes = find_model(given, record), given.sizes
    task = words_task(sizes.step_tokens, sizes.prompt_tokens, coin)
    rows = sizes.prompts * sizes.group
    record.fact(
        sampling=f"{rows} rows, prompts of {sizes.prompt_tokens} words, {sizes.new_tokens} new tokens",
        step=f"{sizes.prompts} x {sizes.group} completions of at most {sizes.step_tokens} tokens, one update",
    )
    settings = [f"sampling.prompts={sizes.prompts}", f"sampling.group_size={sizes.group}", "optimizer.minibatches=1"]
    settings += ["optimizer.warmup=0"]
    run, state = prepared("grpo", settings, given, model, task)
    record.fact(
        parameters=sum(parameter.numel() for parameter in run.policy.model.parameters()),
        dtype=run.config.policy.dtype,
        microbatch=run.microbatch or rows,
        gradient_checkpointing=run.policy.checkpointing,
    )
    sampling(given, record, run, task)
    whole_steps("aepo train --method grpo", given, record, run, state)
    del run, state
    forget(given.device)
    full = ["control.law=constant", "control.start=hot", "control.draw=all"]
    full += [f"control.per_prompt={sizes.group // 2}", "control.count_high=1.0"]
    if record.left() > (15 if given.device == "cuda" else 5):
        whole_steps(
            "aepo train --method aepo, full command",
            given,
            record,
            *prepared("aepo", [*settings, *full], given, model, task),
        )
    else:
        record.leave_out("aepo train --method aepo, full command", "no time was left")
    forget(given.device)
    trl_steps(given, record, model, task)


def sampling(given: Given, record: Record, run: Any, task: Any) -> None:
    """Neither side is told of an end, so that both draw the same number of tokens."""
    from aepo.sampling.hf import HFSampler
    from aepo.sampling.prompts import take_prompts
    from aepo.types import Request

    sizes, device = given.sizes, given.device
    prompts = take_prompts(task, run.policy, 0, 0, sizes.prompts)
    requests = [Request(prompt, number, sizes.group) for number, prompt in enumerate(prompts)]
    pad = run.policy.pad_token_id
    samplers = [HFSampler(run.policy.model, eos_token_ids=(), pad_token_id=pad, decode=way) for way in WAYS]
    generator = torch.Generator().manual_seed(0)
    listed = [request.prompt.tokens for request in requests for _ in range(request.count)]
    width = max(map(len, listed))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in listed], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in listed], device=device)
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "use_cache": True}
    options |= {"attention_mask": mask, "pad_token_id": pad, "eos_token_id": None}

    def ours(sampler: HFSampler, tokens: int) -> int:
        completions = sampler.sample(requests, max_tokens=tokens, generator=generator)
        return sum(len(completion.tokens) for completion in completions)

    @torch.no_grad()
    def theirs(tokens: int) -> int:
        found = run.policy.model.generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, **options)
        return int(found[:, width:].numel())

    sides: list[tuple[str, Callable[[int], int]]] = [
        (f"HFSampler, {sampler.decode}", partial(ours, sampler)) for sampler in samplers
    ]
    for name, side in (*sides, ("transformers generate", theirs)):
        if record.left() < (20 if device == "cuda" else 5):
            record.leave_out(name, "no time was left")
            continue
        peak = Peak(device)
        try:
            side(4)
            forget(device)
            peak.reset()
            drawn: list[int] = []
            spent = timed(lambda side=side, drawn=drawn: drawn.append(side(sizes.new_tokens)), device, 1) / 1000
        except Exception as error:
            record.leave_out(name, f"does not run here ({reason(error)})")
            continue
        row = {"tokens": drawn[0], "tokens_per_second": drawn[0] / spent, "seconds": spent, "peak_mb": peak.most()}
        if name == "HFSampler, static":
            row["graphs"] = samplers[1].graphs and device == "cuda"
        record.add(kind="sampling", name=name, **row)
        forget(device)


def meter(device: str) -> Any:
    """A listener of a run that takes the time and the memory of each activity, with a synchronized device."""
    from aepo.training.activity import Activity

    class Meter(Activity):
        def __init__(self) -> None:
            super().__init__()
            self._peak, self._name, self._since = Peak(device), "", time.perf_counter()
            self.seconds: dict[str, float] = {}
            self.megabytes: dict[str, float] = {}

        def begin(self, what: str, rows: int) -> None:
            super().begin(what, rows)
            self.end()
            self._name = what

        def end(self) -> None:
            synchronize(device)
            now, name = time.perf_counter(), self._name
            if name:
                self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
                self.megabytes[name] = max(self._peak.most(), self.megabytes.get(name, 0.0))
            self._peak.reset()
            self._name, self._since = "", time.perf_counter()

    return Meter()


def whole_steps(name: str, given: Given, record: Record, run: Any, state: Any) -> None:
    from aepo.training.step import train_step

    found, longest = [], 0.0
    for number in range(given.sizes.steps + 1):
        if record.left() < 2 * longest + 3:
            record.leave_out(f"{name}: steps {number} to {given.sizes.steps}", "no time was left")
            break
        run = replace(run, activity=meter(given.device))
        clock = time.perf_counter()
        try:
            state, row, _ = train_step(run, state)
        except torch.OutOfMemoryError as error:
            record.leave_out(name, f"does not fit ({reason(error)})")
            return
        run.activity.end()
        spent = time.perf_counter() - clock
        longest = max(longest, spent)
        if number:  # the first step warms up
            found.append((spent, row, run.activity))
    if not found:
        return
    seconds = stats.median(spent for spent, _, _ in found)
    tokens = stats.median(row["tokens"] for _, row, _ in found)
    parts = {}
    for part in ("sampling", "rewards", "scoring", "update"):
        own = stats.median(activity.seconds.get(part, 0.0) for _, _, activity in found)
        peak = max(activity.megabytes.get(part, 0.0) for _, _, activity in found)
        parts[part] = {"seconds": own, "share": own / seconds, "tokens_per_second": tokens / own if own else None}
        parts[part]["peak_mb"] = peak
    record.add(
        kind="step",
        name=name,
        steps=len(found),
        seconds=seconds,
        tokens=tokens,
        tokens_per_second=tokens / seconds,
        peak_mb=max(part["peak_mb"] for part in parts.values()),
        completions=found[-1][1]["completions"],
        parts=parts,
    )


def trl_steps(given: Given, record: Record, model: Found, task: Any) -> None:
    """The same prompts, rewards and rows in TRL's trainer, without vLLM. It takes its own gradient accumulation."""
    name, sizes, device = "TRL GRPOTrainer", given.sizes, given.device
    for package in ("trl", "datasets"):
        if importlib.util.find_spec(package) is None:
            record.leave_out(name, f"not installed ({package})")
            return
    if record.left() < (25 if device == "cuda" else 10):
        record.leave_out(name, "no time was left")
        return
    try:
        found = _trl(given, model, task)
    except Exception as error:
        record.leave_out(name, f"does not run here ({reason(error)})")
        return
    seconds, tokens = stats.median(found["seconds"]), stats.median(found["tokens"])
    record.add(
        kind="step",
        name=name,
        steps=len(found["seconds"]),
        seconds=seconds,
        tokens=tokens,
        tokens_per_second=tokens / seconds,
        peak_mb=found["peak_mb"],
        completions=sizes.prompts * sizes.group,
        parts={},
        version=found["version"],
    )


def _trl(given: Given, model: Found, task: Any) -> dict[str, Any]:
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    sizes, device = given.sizes, given.device
    rows, peak = sizes.prompts * sizes.group, Peak(device)
    lengths: list[int] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.tokens: list[float] = []

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            synchronize(device)
            lengths.clear()
            self.last = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            synchronize(device)
            self.seconds.append(time.perf_counter() - self.last)
            self.tokens.append(sum(lengths))

    def reward(completions: Sequence[str], completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        lengths.extend(map(len, completion_ids))
        return [task.reward({}, text, False) for text in completions]

    args = trl.GRPOConfig(
        output_dir=str(given.scratch / "trl"),
        per_device_train_batch_size=rows // sizes.microbatches,
        gradient_accumulation_steps=sizes.microbatches,
        num_generations=sizes.group,
        max_completion_length=sizes.step_tokens,
        max_steps=sizes.steps + 1,
        learning_rate=1e-6,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        use_vllm=False,
        use_cpu=device == "cpu",
        bf16=device == "cuda",
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    clock = Clock()
    prompts = [task.train_problem(0, number).text for number in range(sizes.prompts * (sizes.steps + 1))]
    peak.reset()
    trl.GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32),
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=AutoTokenizer.from_pretrained(model.folder),
        callbacks=[clock],
    ).train()
    return {
        "seconds": clock.seconds[1:],
        "tokens": clock.tokens[1:],
        "peak_mb": peak.most(),
        "version": trl.__version__,
    }


# --- a held target --------------------------------------------------------------------------------------------


def hold(given: Given, record: Record) -> None:
    """AEPO at a target until the time is over; a random model shows that it runs, and not that it holds."""
    from aepo.training.step import train_step

    sizes, model = given.sizes, find_model(given, record)
    adapter = importlib.util.find_spec("peft") is not None
    target = "0.8x" if model.real else "0.95x"
    settings = [f"control.target={target}", f"steps={sizes.hold_steps}", "control.approach=10"]
    settings += ["control.distribution.high=1.2", "control.distribution.low=0.8"]
    settings += [f"sampling.prompts={sizes.hold_prompts}", "optimizer.minibatches=2", "optimizer.warmup=0"]
    settings += ["policy.lora_rank=16", "optimizer.lr=5e-4"] if adapter else ["optimizer.lr=1e-5"]
    task = None if model.real else words_task(sizes.hold_tokens, sizes.prompt_tokens, even)
    if model.real:
        from transformers import AutoTokenizer

        chat = getattr(AutoTokenizer.from_pretrained(model.folder), "chat_template", None)
        settings += ["task=sentences", f"task.max_response={sizes.hold_tokens}"]
        settings += [] if chat else ["task.style=plain"]
    record.fact(
        task="sentences" if model.real else "words that end with an even digit",
        target=target,
        trained="LoRA, rank 16, learning rate 5e-4" if adapter else "all weights, learning rate 1e-5 (no peft)",
        completions=f"{sizes.hold_prompts} x 8 a step, at most {sizes.hold_tokens} tokens",
    )
    run, state = prepared("aepo", settings, given, model, task)
    for row in held_steps(run, state, record, sizes.hold_steps, train_step):
        kept = (
            "step",
            "entropy",
            "entropy_se",
            "target_entropy",
            "error",
            "reward",
            "completions",
            "extra_completions",
        )
        record.add(**{key: row.get(key) for key in (*kept, "saturated", "seconds")})
        record.fact(**held(record.data["results"]))


def held_steps(run: Any, state: Any, record: Record, most: int, train_step: Any) -> Iterator[dict[str, Any]]:
    longest = 0.0
    for number in range(most):
        if record.left() < 1.5 * longest + 3:
            record.leave_out(f"steps {number + 1} to {most}", "no time was left")
            return
        state, row, _ = train_step(run, state)
        longest = max(longest, row["seconds"]) if number else 0.0  # the first step warms up
        yield row


def held(rows: list[dict[str, Any]]) -> dict[str, Any]:
    from aepo.analysis.tracking import tracking

    found = tracking(rows)
    facts = {"steps": len(rows), "settled_at_step": found.settling_step, "of_floor": found.of_floor}
    facts |= {"last_third_rmse": found.last_third_rmse, "floor": found.floor, "extra_share": found.extra_share}
    facts |= {"first_entropy": rows[0]["entropy"], "last_third_entropy": found.last_third_entropy}
    return {key: None if value != value else value for key, value in facts.items()}


PARTS: dict[str, Callable[[Given, Record], None]] = {
    "tests": tests,
    "statistics": statistics,
    "step": step,
    "hold": hold,
}


def work(part: str, given: Given, path: Path, limit: float) -> None:
    """Run one part in this process."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    record = Record(path, part, limit)
    PARTS[part](given, record)
    record.finish()
