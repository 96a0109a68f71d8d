"""`Policy` is a Hugging Face causal language model that can encode, score, decode, and be saved."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aepo.config import PolicyConfig
from aepo.control.base import Needs
from aepo.engines.collate import Look, collate, scatter
from aepo.engines.ends import find_ends
from aepo.engines.linear_head import logit_transform, real_tokens
from aepo.engines.positions import Room, positions
from aepo.entropy.statistics import token_statistics
from aepo.model.encoding import Encoding
from aepo.model.forward import CHANGE, check_padding
from aepo.model.loading import Loaded, load
from aepo.model.memory import Sizes, sizes
from aepo.model.merged import merged_weights
from aepo.model.shared import by_prompt, packs_for, plain_hidden, shared_hidden, sharing_error
from aepo.types import Batch, BatchStatistics, Prompt, Sample

# Largest number of tokens, padding included, in one scoring pass without gradient. It keeps activations small.
SCORING_TOKENS = 2**15


class Policy:
    """`Policy` holds a model and its tokenizer, and computes log-probabilities and entropy in one forward pass.

    Attributes:
        model: The causal language model, with the adapter's layers inside if there is an adapter.
        tokenizer: The tokenizer of the model.
        adapter: peft's view of the model; None without an adapter.
        checkpointing: Whether the backward pass recomputes activations.
        images: What turns images into tokens and patches; None for a model of text.
        sharing: The sizes of the model, by which rows with the same prompt share its computation where that pays; None
            if each row computes its own.
        encoding: What turns a prompt into tokens.
        ends: The tokens that end a completion, with the places that name them.
        room: How long a prompt and its completion may be.
        pad_token_id: The padding token; the first end-of-sequence token if the tokenizer has none.
    """

    def __init__(self, loaded: Loaded, settings: PolicyConfig = PolicyConfig()) -> None:
        self.model = loaded.model.eval()
        self.tokenizer = loaded.tokenizer
        self.adapter = loaded.adapter
        self._adapter_off = False
        self.checkpointing = False
        self.sharing: Sizes | None = None
        self.images = loaded.images
        self.encoding = Encoding(self.tokenizer, self.model.name_or_path, self.images)
        self.end_at()
        self.room = Room(positions(self.model.config), settings.over_length)
        pad = self.tokenizer.pad_token_id
        self.pad_token_id: int = self.eos_token_ids[0] if pad is None else pad
        self._dtype: torch.dtype = getattr(torch, settings.dtype)
        if self._dtype != torch.float32:
            self._lower_precision()
        self._transform = logit_transform(self.model, partial(_product, self._head, self._dtype))
        check_padding(self.model, real_tokens(self.model), self.pad_token_id, self._dtype)
        self._left_out: Tensor | None = None
        if self.images is not None:
            self._leave_out(self.images.places)
        if settings.gradient_checkpointing is True:
            self.recompute_activations()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str = "cpu",
        settings: PolicyConfig = PolicyConfig(),
        seed: int = 0,
        template: str | None = None,
    ) -> Policy:
        """Load a model in Hugging Face format.

        Args:
            folder: A folder, a folder with a LoRA adapter, or a name on the hub.
            device: The device of the weights.
            settings: The settings of the policy.
            seed: Seed of the weights of a new adapter.
            template: The text of a chat template that replaces the tokenizer's own; None keeps it.

        Raises:
            InvalidValue: The model cannot be used. The message is one line.
        """
        loaded = load(str(folder), settings, seed)
        if template is not None:
            loaded.tokenizer.chat_template = template
        loaded.model.to(device)
        return cls(loaded, settings)

    def save(self, folder: Path) -> None:
        """Write what `load` needs: weights, configuration and tokenizer.

        With an adapter, only the adapter's weights are written.
        """
        if self.adapter is None:
            self.model.save_pretrained(folder)
        else:
            # The default "auto" would ask the hub whether the base model's vocabulary was resized. It never is here.
            self.adapter.save_pretrained(folder, save_embedding_layers=False)
        self.save_language(folder)

    def save_language(self, folder: Path) -> None:
        """Write what turns texts and images into tokens."""
        self.tokenizer.save_pretrained(folder)
        if self.images is not None:
            self.images.save(folder)

    def save_merged(self, folder: Path) -> None:
        """Write a whole model that does not need peft: the adapter is added to the weights.

        With an adapter this needs memory for a second copy of the model.
        """
        model = self.model if self.adapter is None else copy.deepcopy(self.adapter).merge_and_unload()
        model.save_pretrained(folder)
        self.save_language(folder)

    def merged_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the names and tensors that `save_merged` writes, without a second copy of the model."""
        return merged_weights(self.model)

    def frozen(self) -> Policy:
        """Freeze the weights and return the same policy, for use as a reference."""
        self.model.requires_grad_(False)
        return self

    def without_adapter(self) -> Policy:
        """Return the model without its adapter, for use as a reference.

        It shares the weights of this policy, so there is no second copy.
        """
        base = copy.copy(self)
        base._adapter_off = True
        return base

    def recompute_activations(self) -> None:
        """Make the backward pass recompute activations.

        transformers renamed the method in version 5.24, so both names are tried.
        """
        model: Any = self.model
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        self.checkpointing = True

    def share_prompts(self) -> bool:
        """Compute a prompt of several rows once from now on, where that pays, if the model can.

        Returns:
            Whether the model can: its hidden states are the same in both ways, which is measured. A model of images
            cannot.
        """
        if self.images is not None:
            return False
        ids = real_tokens(self.model)[0].tolist()
        if sharing_error(self.model, ids, self.pad_token_id) <= CHANGE[self._dtype]:
            self.sharing = sizes(self.model)
        return self.sharing is not None

    @property
    def vocabulary(self) -> int:
        """Return V, the number of logits of a token."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        device: torch.device = self.model.device
        return device

    def end_at(self, prompts: Sequence[str] = ()) -> None:
        """Determine the tokens that end a completion, given the texts of some plain prompts (`find_ends`)."""
        model = self.model
        self.ends = find_ends(self.tokenizer, model.generation_config, model.config, model.name_or_path, prompts)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Return the ids of the tokens that end a completion."""
        return self.ends.ids

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a text alone, without special tokens; `encoding` encodes prompts."""
        return self.encoding.text(text)

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> tuple[int, ...]:
        """Return the token ids of chat turns, each (role, content), up to where the answer begins; see `Encoding.chat`.

        Raises:
            InvalidValue: The tokenizer has no chat template, or the template refuses the turns.
        """
        return self.encoding.chat(messages)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Return the samples as one batch on the policy's device, with the images of their prompts."""
        return collate(samples, self.pad_token_id, self.look).to(self.device)

    @property
    def look(self) -> Look | None:
        """Return what gives the pixels of a prompt's images and its positions; None for a model of text."""
        return None if self.images is None else partial(self.images.look, self.model)

    def decode(self, completions: Sequence[Sequence[int]], special_tokens: bool = True) -> list[str]:
        """Return the text of each completion, without the end-of-sequence token.

        Args:
            completions: The tokens of each completion.
            special_tokens: Whether other special tokens stay in the text. If they were left out, an answer with a
                special token in its middle could look right to a grader.
        """
        answers = [tokens[:-1] if tokens and tokens[-1] in self.eos_token_ids else tokens for tokens in completions]
        texts: list[str] = self.tokenizer.batch_decode(
            [list(answer) for answer in answers], skip_special_tokens=not special_tokens
        )
        return texts

    def decode_prompts(self, prompts: Sequence[Prompt]) -> list[str]:
        """Return the text of each prompt for people, with one token for each image."""
        tokens = [prompt.tokens if self.images is None else self.images.collapsed(prompt.tokens) for prompt in prompts]
        return self.decode(tokens)

    def score(self, batch: Batch, needs: Needs, report: Callable[[int], None] = lambda done: None) -> BatchStatistics:
        """Compute the statistics of all completion tokens with the present weights, without gradient.

        Args:
            batch: The rows to score.
            needs: The statistics that the control needs besides log-probability and entropy.
            report: Gets the number of rows that are done, after each chunk.
        """
        order = by_length(batch) if self.sharing is None else by_prompt(batch)
        parts: list[BatchStatistics] = []
        done = 0
        with torch.no_grad(), self.adapter.disable_adapter() if self._adapter_off else nullcontext():
            for rows in _chunks(batch, order):
                parts.append(self.statistics(batch.select(rows), needs))
                done += len(rows)
                report(done)
        return BatchStatistics.joined(parts).select(order.argsort())

    def statistics(self, batch: Batch, needs: Needs, entropy: bool = True) -> BatchStatistics:
        """Compute the statistics of all completion tokens in one forward pass, with gradient where it is enabled.

        Args:
            batch: The rows.
            needs: The further statistics that are computed; see `BatchStatistics`.
            entropy: Whether the entropy is computed.
        """
        if self.checkpointing:  # transformers recomputes activations only in train mode; there is no dropout
            self.model.train(torch.is_grad_enabled())
        mask = batch.mask.bool()
        head, bias = self._head, self._bias()
        stats = token_statistics(
            self._hidden(trimmed(batch)).to(self._dtype),
            head.weight.to(self._dtype),
            batch.input_ids[:, batch.prompt_width :][mask],
            bias=None if bias is None else bias.to(self._dtype),
            transform=self._transform,
            temperatures=needs.temperatures,
            entropy=entropy,
            kept=needs.kept,
        )
        return scatter(stats, mask, needs.temperatures)

    def _hidden(self, batch: Batch) -> Tensor:
        """Return the hidden states that predict the completion tokens, [N, D], row by row."""
        packs = None if self.sharing is None else packs_for(batch, self.sharing)
        return plain_hidden(self.model, batch) if packs is None else shared_hidden(self.model, batch, packs)

    def _lower_precision(self) -> None:
        """Run the transformer under autocast, and compute logits in float32 from factors rounded to the lower dtype.

        `token_statistics` computes logits in the same way. Both changes are in the modules themselves, so that a
        sampler that calls the model computes the same values as the update.
        """
        body, head = self.model.base_model, self._head
        body.forward = torch.autocast(self.device.type, dtype=self._dtype)(body.forward)
        head.forward = partial(_product, head, self._dtype)

    def _leave_out(self, tokens: Sequence[int]) -> None:
        """Remove the tokens of images from the distribution: an answer that held one could not be scored.

        The output layer itself gives them a logit of -inf, so that no sampler that calls the model can draw one. The
        scoring does the same by the bias.
        """
        self._left_out = torch.tensor(tokens, device=self.device)
        self._head.forward = partial(_without, self._head.forward, self._left_out)

    def _bias(self) -> Tensor | None:
        """Return the bias of the LM head, [V], with -inf for the tokens that are no part of the distribution."""
        bias: Tensor | None = self._head.bias
        if self._left_out is None:
            return bias
        whole = self._head.weight.new_zeros(self.vocabulary) if bias is None else bias
        return whole.index_fill(0, self._left_out, -torch.inf)

    @contextmanager
    def rounded_once(self) -> Iterator[None]:
        """Round the weights to the lower precision once, inside the `with` block, and not in every pass.

        For passes without gradient over the same weights, such as decoding: its short passes cost less than the
        rounding. The rounded weights take memory inside the block. In float32 nothing is rounded.
        """
        if self._dtype == torch.float32:
            yield
            return
        head, product = self._head, self._head.forward
        # autocast keeps the rounded copies of weights with gradient alone, until the outermost context ends.
        frozen = [weight for weight in self.model.parameters() if not weight.requires_grad]
        weight, bias = head.weight.detach().to(self._dtype).float(), self._bias()
        bias = None if bias is None else bias.detach().to(self._dtype).float()
        try:
            for parameter in frozen:
                parameter.requires_grad_(True)
            exact = torch.autocast(self.device.type, enabled=False)
            head.forward = exact(lambda hidden: F.linear(hidden.to(self._dtype).float(), weight, bias))
            with torch.autocast(self.device.type, dtype=self._dtype):
                yield
        finally:
            head.forward = product
            for parameter in frozen:
                parameter.requires_grad_(False)

    @property
    def dtype(self) -> str:
        """Return the dtype of the forward pass, as `policy.dtype` names it."""
        return str(self._dtype).removeprefix("torch.")

    @property
    def _head(self) -> Any:
        """Return the LM head."""
        return self.model.get_output_embeddings()


def trimmed(batch: Batch) -> Batch:
    """Return the batch without the columns that are padding in every row."""
    prompts, width = batch.attention_mask[:, : batch.prompt_width], batch.prompt_width
    first = width - int(prompts.sum(1).max())
    last = int(batch.mask.sum(1).max())
    columns = slice(first, width + last)
    return Batch(
        **{
            **vars(batch),
            "input_ids": batch.input_ids[:, columns],
            "attention_mask": batch.attention_mask[:, columns],
            "positions": None if batch.positions is None else batch.positions[:, :, columns],
            **{name: getattr(batch, name)[:, :last] for name in ("mask", "advantages", "sampling_logprobs")},
        }
    )


def by_length(batch: Batch) -> Tensor:
    """Return the indices of the rows, [B]; the row with the most tokens is first."""
    return batch.attention_mask.sum(1).argsort(descending=True, stable=True)


def _chunks(batch: Batch, order: Tensor) -> Iterator[Tensor]:
    """Yield the rows in the given order, in chunks.

    A chunk holds as many rows as fit into `SCORING_TOKENS` with their padding, and at least one.
    """
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
    """Return logits in float32, from factors that are rounded to `dtype`."""
    bias = None if head.bias is None else head.bias.to(dtype).float()
    return F.linear(hidden.to(dtype).float(), head.weight.to(dtype).float(), bias)


def _without(forward: Callable[[Tensor], Tensor], tokens: Tensor, hidden: Tensor) -> Tensor:
    """Return the logits of an output layer with -inf for these tokens."""
    return forward(hidden).index_fill(-1, tokens, -torch.inf)
