"""The policy: a Hugging Face causal language model, scored and saved."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aepo.config import PolicyConfig
from aepo.control.base import Needs
from aepo.engines.collate import scatter
from aepo.engines.linear_head import check_linear_head
from aepo.entropy.statistics import token_statistics
from aepo.errors import InvalidValue
from aepo.model.loading import Loaded, load
from aepo.types import Batch, BatchStatistics

# Tokens scored at once without gradient, padding included, so that activations stay small.
SCORING_TOKENS = 2**15


class Policy:
    """A model, its tokenizer, and the one pass that yields log-probabilities and entropy.

    model: the causal language model with the adapter's layers inside, if there is one. adapter: peft's view of it.
    """

    def __init__(self, loaded: Loaded, settings: PolicyConfig = PolicyConfig()) -> None:
        self.model = loaded.model.eval()
        self.tokenizer = loaded.tokenizer
        self.adapter = loaded.adapter
        self._adapter_off = False
        self.checkpointing = settings.gradient_checkpointing
        self.eos_token_ids = _eos_token_ids(self.model, self.tokenizer)
        pad = self.tokenizer.pad_token_id
        self.pad_token_id: int = self.eos_token_ids[0] if pad is None else pad
        self._dtype: torch.dtype = getattr(torch, settings.dtype)
        if self._dtype != torch.float32:
            self._lower_precision()
        self._check_head()
        if self.checkpointing:
            _enable_checkpointing(self.model)

    @classmethod
    def load(
        cls, folder: str | Path, device: str = "cpu", settings: PolicyConfig = PolicyConfig(), seed: int = 0
    ) -> Policy:
        """A model in Hugging Face format: a folder, a folder with a LoRA adapter, or a name on the hub.

        seed: of the weights of a new adapter. Raises `InvalidValue` in one line for what cannot be used.
        """
        loaded = load(str(folder), settings, seed)
        loaded.model.to(device)
        return cls(loaded, settings)

    def save(self, folder: Path) -> None:
        """What `load` needs: weights (with an adapter: the adapter's alone), configuration and tokenizer."""
        if self.adapter is None:
            self.model.save_pretrained(folder)
        else:
            # "auto" would ask the hub whether the base model's vocabulary was resized; here it never is.
            self.adapter.save_pretrained(folder, save_embedding_layers=False)
        self.tokenizer.save_pretrained(folder)

    def save_merged(self, folder: Path) -> None:
        """A whole model, the adapter added to its weights, that needs no peft. Takes memory for a second copy."""
        model = self.model if self.adapter is None else copy.deepcopy(self.adapter).merge_and_unload()
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def frozen(self) -> Policy:
        """The same policy, never to be trained: a reference."""
        self.model.requires_grad_(False)
        return self

    def without_adapter(self) -> Policy:
        """The model under the adapter, from the same weights: a reference without a second copy."""
        base = copy.copy(self)
        base._adapter_off = True
        return base

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.device
        return device

    def encode(self, text: str) -> tuple[int, ...]:
        """Prompt text -> token ids."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> tuple[int, ...]:
        """(role, content) turns -> token ids by the tokenizer's chat template, up to where the answer begins.

        Raises `InvalidValue` when there is no template, or when it refuses the turns.
        """
        name = self.model.name_or_path
        if not self.tokenizer.chat_template:
            raise InvalidValue("model", name, "one whose tokenizer has a chat template, for prompts of chat messages")
        turns = [{"role": role, "content": content} for role, content in messages]
        try:
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates are programs, and raise what they like
            roles = [role for role, _ in messages]
            raise InvalidValue("messages", roles, f"turns that the chat template of {name} takes ({error})") from None
        return self.encode(text)

    def decode(self, completions: Sequence[Sequence[int]]) -> list[str]:
        """Completion token ids -> text without the end-of-sequence token.

        Other special tokens stay: left out, a stray one in the middle of an answer would make it look right.
        """
        answers = [tokens[:-1] if tokens and tokens[-1] in self.eos_token_ids else tokens for tokens in completions]
        texts: list[str] = self.tokenizer.batch_decode([list(answer) for answer in answers])
        return texts

    def score(self, batch: Batch, needs: Needs) -> BatchStatistics:
        """Log-probabilities and entropies of all completion tokens at the present weights, no gradient."""
        order = by_length(batch)
        with torch.no_grad(), self.adapter.disable_adapter() if self._adapter_off else nullcontext():
            parts = [self.statistics(batch.select(rows), needs) for rows in _chunks(batch, order)]
        return BatchStatistics.joined(parts).select(order.argsort())

    def statistics(self, batch: Batch, needs: Needs, entropy: bool = True) -> BatchStatistics:
        """One forward pass of these rows, with gradient where it is enabled; see `BatchStatistics`."""
        if self.checkpointing:  # transformers recomputes activations in train mode alone; there is no dropout
            self.model.train(torch.is_grad_enabled())
        mask = batch.mask.bool()
        head = self.model.get_output_embeddings()
        stats = token_statistics(
            self._hidden(trimmed(batch)).to(self._dtype),
            head.weight.to(self._dtype),
            batch.input_ids[:, batch.prompt_width :][mask],
            bias=None if head.bias is None else head.bias.to(self._dtype),
            temperatures=needs.temperatures,
            entropy=entropy,
            kept=needs.kept,
        )
        return scatter(stats, mask, needs.temperatures)

    def _hidden(self, batch: Batch) -> Tensor:
        """Hidden states that predict the completion tokens, [N, D], row by row."""
        positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
        output = self.model.base_model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=positions,
            use_cache=False,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden[:, batch.prompt_width - 1 : -1][batch.mask.bool()]

    def _lower_precision(self) -> None:
        """The transformer under autocast, and logits of 16-bit factors in float32, as `token_statistics` has them.

        Both sit in the modules, so that a sampler that calls the model computes what the update computes.
        """
        body, head = self.model.base_model, self.model.get_output_embeddings()
        body.forward = torch.autocast(self.device.type, dtype=self._dtype)(body.forward)
        head.forward = partial(_product, head, self._dtype)

    def _check_head(self) -> None:
        """Refuse a model whose logits are not a plain linear map of its last hidden states."""
        check_linear_head(self.model, partial(_product, self.model.get_output_embeddings(), self._dtype))


def trimmed(batch: Batch) -> Batch:
    """Without the columns that are padding in every row."""
    prompts, width = batch.attention_mask[:, : batch.prompt_width], batch.prompt_width
    first = width - int(prompts.sum(1).max())
    last = int(batch.mask.sum(1).max())
    columns = slice(first, width + last)
    return Batch(
        **{
            **vars(batch),
            "input_ids": batch.input_ids[:, columns],
            "attention_mask": batch.attention_mask[:, columns],
            **{name: getattr(batch, name)[:, :last] for name in ("mask", "advantages", "sampling_logprobs")},
        }
    )


def by_length(batch: Batch) -> Tensor:
    """Indices of the rows, the one with the most tokens first, [B]."""
    return batch.attention_mask.sum(1).argsort(descending=True, stable=True)


def _chunks(batch: Batch, order: Tensor) -> Iterator[Tensor]:
    """Rows in this order, as many at a time as fit into `SCORING_TOKENS` with their padding; at least one."""
    prompts = batch.attention_mask[:, : batch.prompt_width].sum(1).tolist()
    answers = batch.mask.sum(1).long().tolist()
    chunk: list[int] = []
    prompt = answer = 0
    for row in order.tolist():
        wider, longer = max(prompt, prompts[row]), max(answer, answers[row])
        if chunk and (len(chunk) + 1) * (wider + longer) > SCORING_TOKENS:
            yield torch.tensor(chunk, device=order.device)
            chunk, wider, longer = [], prompts[row], answers[row]
        chunk.append(row)
        prompt, answer = wider, longer
    yield torch.tensor(chunk, device=order.device)


def _product(head: Any, dtype: torch.dtype, hidden: Tensor) -> Tensor:
    """Logits in float32 of factors rounded to `dtype`."""
    bias = None if head.bias is None else head.bias.to(dtype).float()
    return F.linear(hidden.to(dtype).float(), head.weight.to(dtype).float(), bias)


def _eos_token_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The model's generation config says; else the tokenizer."""
    ids = model.generation_config.eos_token_id
    ids = tokenizer.eos_token_id if ids is None else ids
    if ids is None or ids == []:
        raise InvalidValue("model", model.name_or_path, "one with an end-of-sequence token")
    return (ids,) if isinstance(ids, int) else tuple(ids)


def _enable_checkpointing(model: Any) -> None:
    """Recompute activations in the backward pass; transformers renamed the method in 5.24."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
