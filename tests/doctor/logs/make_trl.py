"""The TRL runs under trl/ and tensorboard/: python make_trl.py NAME (README.md says with what installed)."""

import random
import sys
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer


def share(completions, **_):
    return [float("w3" in text.split()) for text in completions]


def parity(completions, **_):
    return [float(len(text.split()) % 2 == 0) for text in completions]


def never(completions, **_):
    return [0.0 for _ in completions]


# Name: learning rate, completions of a prompt, longest completion, steps, reward, updates of a rollout.
RUNS = {
    "healthy": (3e-3, 8, 64, 30, parity, 2),
    "resumed": (0.1, 8, 64, 30, parity, 2),
    "tensorboard": (3e-3, 8, 64, 12, parity, 2),
    "onpolicy": (3e-3, 8, 64, 12, parity, 1),
    "dead": (1e-3, 2, 64, 16, never, 1),
    "cut": (1e-3, 8, 3, 16, share, 1),
    "explode": (0.5, 8, 64, 20, share, 2),
}

name = sys.argv[1]
rate, group, longest, steps, reward, iterations = RUNS[name]
torch.set_num_threads(1)
torch.manual_seed(0)
random.seed(0)
words = ["<pad>", "<eos>", *(f"w{number}" for number in range(10))]
vocabulary = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="w0"))
vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
shape = LlamaConfig(
    vocab_size=12, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0, eos_token_id=1, bos_token_id=1,
)  # fmt: skip
settings = GRPOConfig(
    output_dir=f"trl/{name}", learning_rate=rate, num_generations=group, max_completion_length=longest,
    max_steps=steps, num_iterations=iterations, per_device_train_batch_size=16, generation_batch_size=16,
    logging_steps=1, save_steps=steps // 2, lr_scheduler_type="constant", beta=0.0, seed=0, use_cpu=True, bf16=False,
    gradient_checkpointing=False, disable_tqdm=True, log_completions=name in ("healthy", "dead"),
    report_to="tensorboard" if name == "tensorboard" else "none",
)  # fmt: skip
trainer = GRPOTrainer(
    model=LlamaForCausalLM(shape),
    reward_funcs=[reward],
    args=settings,
    train_dataset=Dataset.from_list([{"prompt": " ".join(random.choices(words[2:], k=3))} for _ in range(64)]),
    processing_class=PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="<pad>", eos_token="<eos>"),
)
# The resumed run goes on from the healthy one's checkpoint, copied without optimizer.pt and scheduler.pt.
halfway = Path("halfway")
trainer.train(resume_from_checkpoint=str(halfway) if name == "resumed" else None)
trainer.save_state()
