"""A random model of 20 words, and a job that pays for its first word: what GRPO collapses on, and AEPO holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from aepo.integrations.trl import EntropyControlConfig, EntropyControlTrainer

WORDS = [f"w{number}" for number in range(20)]
PAD, END = "<pad>", "<end>"
# Arguments of the trainer that a test may give in place of those here.
REPLACEABLE = ("peft_config", "train_dataset", "reward_funcs", "processing_class")
KINDS = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, False),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, True),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM, False),
}


def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: number for number, word in enumerate([PAD, END, *WORDS])}
    made = Tokenizer(WordLevel(words, unk_token=PAD))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=PAD, eos_token=END, padding_side="left")


def model(seed: int = 0, kind: str = "qwen2") -> Any:
    """Next-word distributions far from uniform, different with every context."""
    config, cls, tied = KINDS[kind]
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64, "initializer_range": 0.15}
    ids = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1}
    return cls(config(vocab_size=len(WORDS) + 2, tie_word_embeddings=tied, **sizes, **ids)).eval()


def lora(rank: int) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def prompts(count: int = 64) -> Dataset:
    """Prompts of one to three words, so that some are padded."""
    texts = [
        " ".join(WORDS[(number * step) % len(WORDS)] for step in range(1, number % 3 + 2)) for number in range(count)
    ]
    return Dataset.from_dict({"prompt": texts})


def even_start(completions: list[str], **_: Any) -> list[float]:
    """1 for a completion whose first word has an even number: half of the words are right."""
    firsts = [(text.split() or ["w1"])[0] for text in completions]
    return [float(first in WORDS and int(first[1:]) % 2 == 0) for first in firsts]


def config(folder: Path, **changes: Any) -> EntropyControlConfig:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "target": "1.5",
        "per_device_train_batch_size": 64,
        "num_generations": 8,
        "max_completion_length": 6,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "constant",
        "max_steps": 6,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "seed": 1,
        "disable_tqdm": True,
    }
    return EntropyControlConfig(**{**settings, **changes})


def trainer(
    folder: Path, policy: Any = None, cls: Any = EntropyControlTrainer, args: Any = None, **changes: Any
) -> Any:
    extra = {name: changes.pop(name) for name in REPLACEABLE if name in changes}
    return cls(
        **{
            "model": policy or model(),
            "reward_funcs": even_start,
            "args": args or config(folder, **changes),
            "train_dataset": prompts(),
            "processing_class": tokenizer(),
            **extra,
        }
    )


def series(done: Any, name: str) -> list[float]:
    """A metric's values, step by step."""
    return [row[name] for row in done.state.log_history if name in row]
