"""The built-in base model: a small transformer trained from scratch on a task's generic data, and cached.

The folder that `base_model` returns is an ordinary Hugging Face model: Qwen3 architecture and a tokenizer
with one token per word. Not Qwen2: for that model type `AutoTokenizer` of transformers 5 ignores the saved
tokenizer class and splits words its own way.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from aepo.tasks import TASKS

# Raise it with any change here or in a task's data that leads to another model from the same fields.
VERSION = 1
PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
MANIFEST = "manifest.json"

Progress = Callable[[int, int, float], None]


@runtime_checkable
class PretrainingTask(Protocol):
    """What a task must offer, beside `Task`, to have a base model of its own; also a dataclass."""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every word of a prompt or completion."""

    def pretraining_examples(self, seed: int) -> Iterator[tuple[str, str]]:
        """(prompt, completion) pairs without end."""


@dataclass(frozen=True)
class Pretraining:
    """Model and training of a base model.

    hidden, layers, heads, feed_forward: sizes of the transformer. steps: optimizer steps of `batch` examples.
    lr: peak learning rate, reached after `warmup` steps, then linear to zero. weight_decay: AdamW's.
    grad_norm: clipping. max_positions: longest prompt and completion, in tokens.
    """

    hidden: int = 96
    layers: int = 3
    heads: int = 4
    feed_forward: int = 384
    max_positions: int = 64
    steps: int = 600
    batch: int = 256
    lr: float = 2e-3
    warmup: int = 50
    weight_decay: float = 0.01
    grad_norm: float = 1.0


# For tests: a model that knows almost nothing, in about two seconds.
QUICK = Pretraining(hidden=32, layers=2, heads=2, feed_forward=64, steps=30, batch=64, warmup=5)


def base_model(
    task: str | PretrainingTask,
    *,
    seed: int = 0,
    cache: Path | None = None,
    pretraining: Pretraining | None = None,
    progress: Progress | None = None,
) -> Path:
    """The folder of the base model for `task` (a name in `TASKS`, or a task), trained unless it is cached.

    cache: where such folders are kept; else $AEPO_CACHE, else ~/.cache/aepo. progress is called after every
    step with (steps done, steps in all, loss in nats per token). The same arguments give the same weights on
    one machine at one number of threads.
    """
    chosen = _task(task)
    setup = pretraining or Pretraining()
    recipe = _recipe(chosen, setup, seed)
    parent = cache or Path(os.environ.get("AEPO_CACHE") or Path.home() / ".cache" / "aepo")
    folder = parent / f"{type(chosen).__name__.lower()}-{_digest(json.dumps(recipe).encode())[:16]}"
    if not _whole(folder):
        parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=parent))
        try:
            _build(unfinished, chosen, setup, seed, recipe, progress)
            _publish(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def make_tokenizer(words: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """One token per word; words are separated by spaces, and decoding puts the spaces back."""
    vocabulary = {word: number for number, word in enumerate((PAD, EOS, UNKNOWN, *words))}
    inner = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    inner.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def pretrain(
    task: PretrainingTask,
    tokenizer: PreTrainedTokenizerFast,
    setup: Pretraining,
    seed: int,
    progress: Progress | None = None,
) -> Qwen3ForCausalLM:
    """Train a new model by next-token prediction on completions; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(_config(tokenizer, setup))
    optimizer = torch.optim.AdamW(model.parameters(), lr=setup.lr, weight_decay=setup.weight_decay)
    examples = task.pretraining_examples(seed)
    for step in range(setup.steps):
        for group in optimizer.param_groups:
            group["lr"] = setup.lr * _schedule(step, setup)
        loss = _loss(model, *_collate(tokenizer, list(islice(examples, setup.batch))))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), setup.grad_norm)
        optimizer.step()
        if progress is not None:
            progress(step + 1, setup.steps, loss.item())
    return model.eval()


def _task(task: str | PretrainingTask) -> PretrainingTask:
    if isinstance(task, str):
        if task not in TASKS:
            raise ValueError(f"no task {task!r}; there are {', '.join(sorted(TASKS))}")
        return _task(TASKS[task]())
    if not isinstance(task, PretrainingTask):
        raise TypeError(f"{type(task).__name__} has no pre-training data, so it has no base model of its own")
    return task


def _config(tokenizer: PreTrainedTokenizerFast, setup: Pretraining) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=setup.hidden,
        intermediate_size=setup.feed_forward,
        num_hidden_layers=setup.layers,
        num_attention_heads=setup.heads,
        num_key_value_heads=setup.heads,
        head_dim=setup.hidden // setup.heads,
        max_position_embeddings=setup.max_positions,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )


def _schedule(step: int, setup: Pretraining) -> float:
    return min(1.0, (step + 1) / setup.warmup) * (1 - step / setup.steps)


def _collate(tokenizer: PreTrainedTokenizerFast, examples: list[tuple[str, str]]) -> tuple[Tensor, Tensor]:
    """Right-padded token ids [B, T], and the same as labels with all but completion and EOS at -100."""
    prompts, completions = (tokenizer(list(texts))["input_ids"] for texts in zip(*examples, strict=True))
    rows = [[*p, *c, tokenizer.eos_token_id] for p, c in zip(prompts, completions, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    columns = torch.arange(width)
    first = torch.tensor([len(p) for p in prompts])[:, None]
    end = torch.tensor([len(row) for row in rows])[:, None]
    return ids, torch.where((columns >= first) & (columns < end), ids, -100)


def _loss(model: Qwen3ForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    logits = model(input_ids=ids).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())


def _build(
    folder: Path,
    task: PretrainingTask,
    setup: Pretraining,
    seed: int,
    recipe: dict[str, Any],
    progress: Progress | None,
) -> None:
    tokenizer = make_tokenizer(task.vocabulary)
    model = pretrain(task, tokenizer, setup, seed, progress)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=2))
    digests = {path.name: _digest(path.read_bytes()) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(digests, indent=2))


def _publish(unfinished: Path, folder: Path) -> None:
    """Move a finished folder into place; when another process was faster, its folder stays."""
    if folder.exists() and not _whole(folder):
        shutil.rmtree(folder)
    try:
        unfinished.rename(folder)
    except OSError:
        if not _whole(folder):
            raise


def _whole(folder: Path) -> bool:
    """Whether every file is there as it was written."""
    try:
        digests = json.loads((folder / MANIFEST).read_text())
        return all(_digest((folder / name).read_bytes()) == digest for name, digest in digests.items())
    except (OSError, ValueError):
        return False


def _recipe(task: PretrainingTask, setup: Pretraining, seed: int) -> dict[str, Any]:
    """All that determines the weights, as plain values."""
    named = {field.name: getattr(task, field.name) for field in fields(task)}  # type: ignore[arg-type]
    return {
        "version": VERSION,
        "task": type(task).__name__,
        "task_fields": named,
        "pretraining": asdict(setup),
        "seed": seed,
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
