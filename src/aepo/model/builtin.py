"""`base_model` trains the built-in base model on a task's generic data and caches it.

The model is a small transformer that is trained from scratch. The cached folder is an ordinary Hugging Face model:
Qwen3 architecture and a tokenizer with one token per word. The architecture is not Qwen2, because for that model type
`AutoTokenizer` of transformers 5 ignores the saved tokenizer class and splits words in another way.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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

from aepo.model.cache import cache_folder, cached, digest
from aepo.tasks import TASKS, Task

# Increase VERSION with every change, here or in a task's data, that makes another model from the same fields.
VERSION = 1
PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"

Progress = Callable[[int, int, float], None]


@runtime_checkable
class PretrainingTask(Protocol):
    """`PretrainingTask` is what a task must offer, besides `Task`, to have its own base model."""

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every word that a prompt or a completion can contain."""

    @property
    def pretraining_key(self) -> Mapping[str, Any]:
        """Everything that the examples depend on, besides the seed, as plain values."""

    def pretraining_examples(self, seed: int) -> Iterator[tuple[str, str]]:
        """Yield (prompt, completion) pairs without end."""


@dataclass(frozen=True)
class Pretraining:
    """`Pretraining` holds the sizes of a base model and the settings of its training."""

    hidden: int = 64
    """Width of the hidden states."""
    layers: int = 2
    """Number of transformer layers."""
    heads: int = 4
    """Number of attention heads."""
    feed_forward: int = 192
    """Width of the feed-forward layers."""
    max_positions: int = 64
    """Largest length of a prompt with its completion, tokens."""
    steps: int = 600
    """Number of optimizer steps."""
    batch: int = 256
    """Number of examples in one optimizer step."""
    lr: float = 3e-3
    """Peak learning rate. It is reached after `warmup` steps and then decreases linearly to zero."""
    warmup: int = 50
    """Number of steps in which the learning rate rises to its peak."""
    weight_decay: float = 0.01
    """Weight decay of AdamW."""
    grad_norm: float = 1.0
    """Largest gradient norm; a larger gradient is clipped to it."""


# Settings for tests: training takes about two seconds, and the model knows almost nothing.
QUICK = Pretraining(hidden=32, layers=2, heads=2, feed_forward=64, steps=30, batch=64, warmup=5)


def base_model(
    task: str | Task | PretrainingTask,
    *,
    seed: int = 0,
    cache: Path | None = None,
    pretraining: Pretraining | None = None,
    progress: Progress | None = None,
) -> Path:
    """Return the folder of the base model for a task. The model is trained first if it is not in the cache.

    The same arguments give the same weights on one machine with the same number of threads.

    Args:
        task: A name in `TASKS`, or a task.
        seed: Seed of the weights and of the examples.
        cache: The folder that holds all base models. The default is $AEPO_CACHE, or else ~/.cache/aepo.
        pretraining: Sizes and training settings; None means the defaults of `Pretraining`.
        progress: A function that is called after every step with (steps done, steps in all, loss in nats per token).

    Raises:
        ValueError: There is no task of this name.
        TypeError: The task has no pre-training data.
    """
    chosen = _task(task)
    setup = pretraining or Pretraining()
    recipe = _recipe(chosen, setup, seed)
    parent = cache or cache_folder()
    folder = parent / f"{type(chosen).__name__.lower()}-{digest(json.dumps(recipe).encode())[:16]}"

    def make(folder: Path) -> None:
        tokenizer = make_tokenizer(chosen.vocabulary)
        _save(folder, pretrain(chosen, tokenizer, setup, seed, progress), tokenizer, recipe)

    return cached(folder, make)


def make_tokenizer(words: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per word.

    Words are separated by spaces, and decoding puts the spaces back.
    """
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
    """Train a new model by next-token prediction on completions.

    PyTorch's global random state stays unchanged.
    """
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
    """Return right-padded token ids, [B, T], and labels, [B, T].

    A label is the token id for completion and end-of-sequence tokens, and -100 for all others.
    """
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


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    yield
    if shown:
        logging.enable_progress_bar()


def _recipe(task: PretrainingTask, setup: Pretraining, seed: int) -> dict[str, Any]:
    """Return everything that determines the weights, as plain values."""
    return {
        "version": VERSION,
        "task": type(task).__name__,
        "data": dict(task.pretraining_key),
        "pretraining": asdict(setup),
        "seed": seed,
    }
