"""A random Qwen2 over bytes, problems that are one letter, and a reward for an answer whose first byte is even."""

from __future__ import annotations

from pathlib import Path

import torch

END, PAD = "<|endoftext|>", "<|pad|>"
END_ID = 256  # after the bytes


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **ignored) -> float:
    """verl's reward function."""
    return float(bool(solution_str) and ord(solution_str[0]) % 2 == 0)


def make(folder: Path, seed: int = 0) -> None:
    """folder/model, folder/train.parquet and folder/test.parquet; folder/sharp is the model with larger logits."""
    import pandas

    make_model(folder / "model", seed)
    make_model(folder / "sharp", seed, sharpness=8.0)
    for name in ("train", "test"):
        rows = [problem(index) for index in range(64)]
        pandas.DataFrame(rows).to_parquet(folder / f"{name}.parquet")


def problem(index: int) -> dict:
    """One row as verl's data sets have them."""
    return {
        "data_source": "toy",
        "prompt": [{"role": "user", "content": chr(ord("A") + index % 26) * (1 + index // 26)}],
        "reward_model": {"style": "rule", "ground_truth": ""},
        "extra_info": {"index": index},
    }


def content(tokens: torch.Tensor, folder: Path) -> str:
    """The problem that a row of tokens, a prompt and its completion, begins with."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / "model").decode(tokens.tolist()).replace(PAD, "").partition(":")[0]


def make_model(folder: Path, seed: int, sharpness: float = 1.0) -> None:
    """sharpness: what the output layer is multiplied by. At 1 the model is so flat that no token tells T from 1."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {word: number for number, word in enumerate([*alphabet, END, PAD])}
    tokenizer = Tokenizer(BPE(words, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)
    wrapped.chat_template = "{% for message in messages %}{{ message['content'] }}:{% endfor %}"
    wrapped.save_pretrained(folder)

    torch.manual_seed(seed)
    ids = {"bos_token_id": None, "eos_token_id": words[END], "pad_token_id": words[PAD]}
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(
        vocab_size=len(words),
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        **sizes,
        **ids,
    )
    model = Qwen2ForCausalLM(config)
    model.lm_head.weight.data *= sharpness
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)
