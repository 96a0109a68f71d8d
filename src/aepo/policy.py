"""The policy: a Hugging Face causal language model, loaded, scored and saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from aepo.checks import InvalidValue
from aepo.control.base import Needs
from aepo.entropy import token_statistics
from aepo.types import Batch, TokenStats

# Its bars for reading a file of a few megabytes would drown ours.
transformers_logging.disable_progress_bar()

# Rows scored at once without gradient, so that activations stay small.
SCORING_ROWS = 1024


class Policy:
    """A model, its tokenizer, and the one pass that yields log-probabilities and entropy."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.eos_token_ids = _eos_token_ids(model, tokenizer)
        self.pad_token_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else self.eos_token_ids[0]
        self._check_head()

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu") -> Policy:
        """A model in Hugging Face format (safetensors), in float32."""
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InvalidValue("model", str(folder), f"a model in Hugging Face format ({reason})") from None
        model.to(device)
        return cls(model, tokenizer)

    def save(self, folder: Path) -> None:
        """Weights, configuration and tokenizer, in Hugging Face format."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.device
        return device

    def encode(self, text: str) -> tuple[int, ...]:
        """Prompt text -> token ids."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, completions: Sequence[Sequence[int]]) -> list[str]:
        """Completion token ids -> text without the end-of-sequence token.

        Other special tokens stay: left out, a stray one in the middle of an answer would make it look right.
        """
        answers = [tokens[:-1] if tokens and tokens[-1] in self.eos_token_ids else tokens for tokens in completions]
        texts: list[str] = self.tokenizer.batch_decode([list(answer) for answer in answers])
        return texts

    def score(self, batch: Batch, needs: Needs) -> TokenStats:
        """Log-probabilities and entropies of all completion tokens at the present weights, no gradient."""
        with torch.no_grad():
            parts = [
                self.statistics(batch.select(rows), needs) for rows in torch.arange(len(batch)).split(SCORING_ROWS)
            ]
        return TokenStats(
            logprobs=torch.cat([part.logprobs for part in parts]),
            entropy=torch.cat([part.entropy for part in parts]),
            tempered={t: torch.cat([part.tempered[t] for part in parts]) for t in needs.temperatures},
            kept_entropy=torch.cat([p.kept_entropy for p in parts if p.kept_entropy is not None])
            if needs.kept
            else None,
        )

    def statistics(self, batch: Batch, needs: Needs, entropy: bool = True) -> TokenStats:
        """One forward pass of these rows, with gradient where it is enabled; see `TokenStats`."""
        mask = batch.mask.bool()
        hidden = self._hidden(batch)[mask]
        head = self.model.get_output_embeddings()
        stats = token_statistics(
            hidden,
            head.weight,
            batch.input_ids[:, batch.prompt_width :][mask],
            bias=head.bias,
            temperatures=needs.temperatures,
            entropy=entropy,
            kept=needs.kept,
        )
        return TokenStats(
            logprobs=_scatter(stats.logprobs, mask),
            entropy=_scatter(stats.entropy, mask) if entropy else torch.zeros_like(batch.mask),
            tempered={t: _scatter(values, mask) for t, values in zip(needs.temperatures, stats.tempered, strict=True)},
            kept_entropy=_scatter(stats.kept_entropy, mask) if needs.kept else None,
        )

    def _hidden(self, batch: Batch) -> Tensor:
        """Hidden states that predict the completion tokens, [B, T, D]."""
        positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
        output = self.model.base_model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=positions,
            use_cache=False,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden[:, batch.prompt_width - 1 : -1]

    def _check_head(self) -> None:
        """Refuse a model whose logits are not a plain linear map of its last hidden states."""
        ids = torch.tensor([[self.eos_token_ids[0]]], device=self.device)
        head = self.model.get_output_embeddings()
        with torch.no_grad():
            logits = self.model(input_ids=ids).logits.float()
            hidden = self.model.base_model(input_ids=ids).last_hidden_state
            linear = torch.nn.functional.linear(hidden, head.weight, head.bias).float()
        if not torch.allclose(logits, linear, rtol=1e-2, atol=1e-2):
            kind = type(self.model).__name__
            raise InvalidValue("model", kind, "one whose logits are a linear head (no soft-capping or scaling)")


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    """[N] back to [B, T], zero outside the mask; differentiable."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)


def _eos_token_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The model's generation config says; else the tokenizer."""
    ids = model.generation_config.eos_token_id
    ids = tokenizer.eos_token_id if ids is None else ids
    if ids is None:
        raise InvalidValue("model", model.name_or_path, "one with an end-of-sequence token")
    return (ids,) if isinstance(ids, int) else tuple(ids)
