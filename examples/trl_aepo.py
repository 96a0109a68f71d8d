"""A plain TRL script, and the five lines that hold its entropy: those that end in `# was: ...`, the line of plain GRPO.

python examples/trl_aepo.py                        a random model of 20 words, on the CPU, without a network
python examples/trl_aepo.py Qwen/Qwen3-0.6B        a model of the hub, or a folder
"""

from __future__ import annotations

import sys

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from aepo.integrations.trl import AEPOTrainer, EntropyControlConfig  # was: from trl import GRPOConfig, GRPOTrainer

WORDS = ["<pad>", "<end>", *(letter * length for letter in "abcdefghij" for length in (1, 2))]


def even_start(completions, **_):
    """The job: answers whose first word has an even number of letters. Put yours in its place."""
    return [float(bool(text.split()) and len(text.split()[0]) % 2 == 0) for text in completions]


def tiny():
    """Random weights and one token for each word, so that this runs anywhere in seconds."""
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 2, "vocab_size": len(WORDS), "pad_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(0)
    config = Qwen2Config(**sizes, initializer_range=0.15)
    return Qwen2ForCausalLM(config), tokenizer


name = sys.argv[1] if len(sys.argv) > 1 else None
model, tokenizer = (name, None) if name else tiny()
small = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}
small |= {"learning_rate": 3e-3, "lr_scheduler_type": "constant"}

args = EntropyControlConfig(  # was: args = GRPOConfig(
    output_dir="runs/trl",
    method="aepo",  # was:
    target="0.6x" if name else "2.0",  # was:
    max_steps=80,
    max_completion_length=256 if name else 6,
    per_device_train_batch_size=64,
    num_generations=8,
    logging_steps=5,
    save_strategy="no",
    report_to=[],
    **({} if name else small),
)
trainer = AEPOTrainer(  # was: trainer = GRPOTrainer(
    model=model,
    reward_funcs=even_start,
    args=args,
    train_dataset=Dataset.from_dict({"prompt": ["a bb c", "dd e", "f gg hh", "i j"] * 16}),
    processing_class=tokenizer,
)
trainer.train()
