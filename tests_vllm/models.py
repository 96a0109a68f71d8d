"""Random models that vLLM's CPU attention takes (heads of 32), and what the suite compares with."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from aepo.model.merged import merged_weights
from aepo.types import Completion
from tests.sampling.test_hf import next_logprobs

VOCAB = 8
LIMIT = 512  # positions
KINDS = {"qwen2 tied": (Qwen2Config, Qwen2ForCausalLM, True), "qwen3 untied": (Qwen3Config, Qwen3ForCausalLM, False)}


@dataclass
class Tiny:
    """A policy as far as `refresh` needs one."""

    model: Any

    def save_merged(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        tokenizer().save_pretrained(folder)  # the server wants one

    def merged_weights(self):
        return merged_weights(self.model)


def tokenizer() -> PreTrainedTokenizerFast:
    """The text of a token is its number; spaces are between them."""
    words = WordLevel({str(token): token for token in range(VOCAB)}, unk_token="0")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words))


def tiny(kind: str, seed: int) -> Tiny:
    """Next-token distributions far from uniform, different with every context and every seed."""
    config, model, tied = KINDS[kind]
    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": LIMIT, "initializer_range": 0.25}
    ids = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    return Tiny(model(config(vocab_size=VOCAB, tie_word_embeddings=tied, **sizes, **ids)).eval())


def logprob_error(model: Any, completions: list[Completion]) -> float:
    """Largest difference between the sampler's log-probs and those of one full forward pass."""
    worst = 0.0
    for completion in completions:
        prompt, tokens = completion.prompt.tokens, completion.tokens
        full = next_logprobs(model, (*prompt, *tokens), completion.temperature)[len(prompt) - 1 : -1]
        expected = full.gather(-1, torch.tensor(tokens)[:, None]).squeeze(-1)
        worst = max(worst, (expected - torch.tensor(completion.logprobs)).abs().max().item())
    return worst


def same_source(some: list[Completion], others: list[Completion]) -> float:
    """p-value of the chi-square test that equally many completions of two samplers have one distribution."""
    assert len(some) == len(others)
    counts = [Counter(c.tokens for c in completions) for completions in (some, others)]
    pairs = [(counts[0][tokens], counts[1][tokens]) for tokens in counts[0] | counts[1]]
    rare = [pair for pair in pairs if sum(pair) < 10]
    cells = [pair for pair in pairs if sum(pair) >= 10]
    if sum(map(sum, rare)) > 0:
        cells.append((sum(a for a, _ in rare), sum(b for _, b in rare)))
    statistic = sum((a - b) ** 2 / (a + b) for a, b in cells)
    return torch.special.gammaincc(torch.tensor((len(cells) - 1) / 2), torch.tensor(statistic / 2)).item()
