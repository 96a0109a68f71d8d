"""The built-in base model: a small transformer trained from scratch on a task's generic data, and cached.

The folder that `base_model` returns is an ordinary Hugging Face model: Qwen3 architecture and a tokenizer
with one token per word. Not Qwen2: for that model type `AutoTokenizer` of transformers 5 ignores the saved
tokenizer class and splits words its own way.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
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
from transformers.utils import logging

from aepo.tasks import TASKS, Task

# Raise it with any change here or in a task's data that leads to another model from the same fields.
VERSION = 1
PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
MANIFEST = "manifest.json"

Progress = Callable[[int, int, float], None]


@runtime_checkable
class PretrainingTask(Protocol):
    """What a task must offer, beside `Task`, to have a base model of its own."""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every word of a prompt or completion."""

    @property
    def pretraining_key(self) -> Mapping[str, Any]:
        """All that the examples depend on, beside the seed, as plain values."""

    def pretraining_examples(self, seed: int) -> Iterator[tuple[str, str]]:
        """(prompt, completion) pairs without end."""


@dataclass(frozen=True)
class Pretraining:
    """Model and training of a base model.

    hidden, layers, heads, feed_forward: sizes of the transformer. steps: optimizer steps of `batch` examples.
    lr: peak learning rate, reached after `warmup` steps, then linear to zero. weight_decay: AdamW's.
    grad_norm: clipping. max_positions: longest prompt and completion, in tokens.
    """

    hidden: int = 64
    layers: int = 2
    heads: int = 4
    feed_forward: int = 192
    max_positions: int = 64
    steps: int = 600
    batch: int = 256
    lr: float = 3e-3
    warmup: int = 50
    weight_decay: float = 0.01
    grad_norm: float = 1.0


# For tests: a model that knows almost nothing, in about two seconds.
QUICK = Pretraining(hidden=32, layers=2, heads=2, feed_forward=64, steps=30, batch=64, warmup=5)


def base_model(
    task: str | Task | PretrainingTask,
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
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=parent) as work:
            tokenizer = make_tokenizer(chosen.vocabulary)
            model = pretrain(chosen, tokenizer, setup, seed, progress)
            _save(Path(work) / "model", model, tokenizer, recipe)
            _publish(Path(work), folder)
    return folder


def make_tokenizer(words: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """One token per word; words are separated by spaces, and decoding puts the spaces back."""
    vocabulary = {word: number for number, word in enumerate((PAD, EOS, UNKNOWN, *words))}
    inner = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    inner.pre_tokenizer = WhitespaceSplit()
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
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), setup.grad_norm)
        optimizer.step()
        if progress is not None:
            progress(step + 1, setup.steps, loss.item())
    model.eval()
    return model


def _task(task: str | Task | PretrainingTask) -> PretrainingTask:
    if isinstance(task, str):
        if task not in TASKS:
            raise ValueError(f"no task {task!r}; there are {', '.join(sorted(TASKS))}")
        task = TASKS[task]()
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


def _save(folder: Path, model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: dict[str, Any]) -> None:
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    with _no_progress_bar():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=2))
    digests = {path.name: _digest(path.read_bytes()) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(digests, indent=2))


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    yield
    if shown:
        logging.enable_progress_bar()


def _publish(work: Path, folder: Path) -> None:
    """Rename work/model to `folder`; a broken one there is taken away, a whole one of another process stays."""
    if folder.exists() and not _whole(folder):
        with suppress(FileNotFoundError):
            folder.rename(work / "broken")
    try:
        (work / "model").rename(folder)
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
    return {
        "version": VERSION,
        "task": type(task).__name__,
        "data": dict(task.pretraining_key),
        "pretraining": asdict(setup),
        "seed": seed,
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
