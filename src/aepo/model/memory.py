"""`fitted` chooses the microbatch and gradient checkpointing so that an update fits into the memory of the device.

    bytes of a row = tokens x layers x b                       activations that the backward pass needs
                   = tokens x (4 hidden layers + b)            with gradient checkpointing
    b              = 1.3 (20 hidden + w (3 queries + 4 keys + 4 feed_forward)) + (4 + 2 w) heads x tokens

w is 2 in bfloat16 and 4 in float32. The bracket counts what a layer of the Llama family keeps for each token: inputs
and outputs of two norms in float32; queries, keys and values before and after the rotation; the output of attention;
three tensors of the feed-forward block. Models with more norms and mixed precision keep up to 1.3 times as much. The
last term is for attention that keeps its T x T matrix (`eager`). Logits are computed in tiles and not kept
(docs/entropy.md). Weights, gradients and AdamW take 4, 4 and 8 bytes a parameter.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from typing import Any

import torch

from aepo.config import Config
from aepo.control.base import most_needed

GIB = 2**30

# Share of the memory that a run plans with. The rest is for the allocator's gaps, tiles of logits and other programs.
SHARE = 0.8
# What other layers keep in proportion to those of the Llama family; see the test.
MORE = 1.3
# Names of configurations for the number of tokens that a layer looks back at most, or chooses among all.
_LOOKS_BACK = re.compile(
    r"(sliding_windows?(_size)?|attention_window(_size)?|window_size|local_attention_window_len"
    r"|attention_chunk_size|index_topk(_blocks)?)"
)
# With fewer rows than this in a microbatch, recomputing activations costs less than the small products.
FEW = 8


@dataclass(frozen=True)
class Sizes:
    """`Sizes` holds the sizes of a decoder that its memory depends on."""

    parameters: int
    """Number of parameters."""
    trained: int
    """Number of trained parameters."""
    layers: int
    """Number of layers."""
    hidden: int
    """Width of the hidden states."""
    queries: int
    """Width of the queries of a layer: heads x width of a head."""
    keys: int
    """Width of the keys of a layer: key heads x width of a head."""
    feed_forward: int
    """Inner width of the feed-forward block; of a mixture of experts, that of the experts of one token."""
    eager_heads: int = 0
    """Number of heads whose T x T matrix is kept; 0 if the kind of attention keeps none."""
    looks_back: int | None = None
    """Number of tokens that the layer with the shortest sight looks back; None if every layer sees all tokens."""

    def operations(self, rows: int, width: int) -> float:
        """Return the operations of a forward pass below the output layer: products with weights, and attention.

        Args:
            rows: Number of rows.
            width: Tokens of a row, padding included.
        """
        weights = self.hidden * (2 * self.queries + 2 * self.keys + 3 * self.feed_forward)
        return float(rows * width * self.layers * (2 * weights + 4 * self.queries * width))

    def row(self, tokens: int, width: int, checkpointing: bool) -> float:
        """Return the bytes that the backward pass of one row needs.

        Args:
            tokens: Tokens of the prompt and the completion.
            width: Bytes of a number in the forward pass: 2 in bfloat16, 4 in float32.
            checkpointing: Whether activations are computed a second time.
        """
        layer = MORE * (20 * self.hidden + width * (3 * self.queries + 4 * self.keys + 4 * self.feed_forward))
        layer += (4 + 2 * width) * self.eager_heads * tokens
        kept = 4 * self.hidden * self.layers + layer if checkpointing else self.layers * layer
        return float(tokens * kept)


def sizes(model: Any) -> Sizes:
    """Return the sizes of a model of transformers; it may be on the meta device."""
    known = model.config.get_text_config()
    queries = size_named(known, 0, "num_attention_heads", "num_heads")  # a recurrent model has none
    heads = size_named(known, queries, "num_key_value_heads")
    width = size_named(known, known.hidden_size // max(1, queries), "head_dim")
    inner = size_named(known, 4 * known.hidden_size, "intermediate_size", "n_inner", "ffn_dim")
    experts = size_named(known, 0, "num_experts_per_tok")
    if experts:
        inner = experts * size_named(known, inner, "moe_intermediate_size")
    return Sizes(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trained=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        layers=known.num_hidden_layers,
        hidden=known.hidden_size,
        queries=queries * width,
        keys=heads * width,
        feed_forward=inner,
        eager_heads=queries if known._attn_implementation == "eager" else 0,
        looks_back=looks_back(known),
    )


def size_named(config: Any, otherwise: int, *names: str) -> int:
    """Return the first of these settings that is a number; architectures name their sizes in different ways."""
    for name in names:
        try:
            value = getattr(config, name, None)
        except RuntimeError:  # transformers refuses a size that differs between layers
            continue
        if isinstance(value, int):
            return value
    return otherwise


def looks_back(config: Any) -> int | None:
    """Return the smallest window of a text model's configuration; None if it names none."""
    found = [value for name, value in vars(config).items() if _LOOKS_BACK.fullmatch(name) and type(value) is int]
    return min((value for value in found if value > 0), default=None)


@dataclass(frozen=True)
class Fit:
    """`Fit` says how an update is cut so that it fits into the memory."""

    microbatch: int | None
    """Rows in one forward and backward pass; None takes the whole minibatch."""
    checkpointing: bool
    """Whether activations are computed a second time."""
    needed: float
    """Bytes that an update needs by this estimate."""
    memory: float
    """Bytes of memory that the device has."""
    saved: float | None = None
    """Share of the operations below the output layer that are saved because a prompt of several rows is computed once;
    None if each row computes its own.
    """

    def applied(self, config: Config) -> Config:
        """Return the settings with what was chosen in place of `auto`."""
        return replace(
            config,
            optimizer=replace(config.optimizer, microbatch=self.microbatch),
            policy=replace(
                config.policy, gradient_checkpointing=self.checkpointing, share_prompts=self.saved is not None
            ),
        )

    def problems(self) -> list[str]:
        """Return a sentence if the update probably does not fit."""
        if self.needed <= self.memory:
            return []
        return [
            f"an update needs about {self.needed / GIB:.1f} GiB and the device has {self.memory / GIB:.1f}: LoRA "
            "(policy.lora_rank=32), bfloat16, a shorter task.max_response or a larger device would do"
        ]


def fitted(config: Config, model: Sizes, prompt: int, memory: float) -> Fit:
    """Return the largest microbatch that fits, with gradient checkpointing only if few rows fit without it.

    What the settings name stays; `auto` leaves the choice to this function.

    Args:
        config: The settings of the run.
        model: The sizes of the model.
        prompt: Tokens of the longest prompt.
        memory: Bytes of memory of the device.
    """
    sampling, optimizer, policy = config.sampling, config.optimizer, config.policy
    tokens = prompt + config.task.max_tokens
    rows = -(-sampling.prompts * sampling.group_size // optimizer.minibatches)
    width = 2 if policy.dtype == "bfloat16" else 4
    references = policy.lora_rank is None and (config.kl_coefficient > 0 or most_needed(config.control).reference)
    held = (4.0 * (1 + references) + 2.0 * (width == 2)) * model.parameters + 12.0 * model.trained
    free = max(0.0, SHARE * memory - held)

    asked = optimizer.microbatch if isinstance(optimizer.microbatch, int) else rows
    again = policy.gradient_checkpointing
    if again == "auto":
        again = free < min(FEW, asked) * model.row(tokens, width, False)
    each = model.row(tokens, width, again)
    size = asked
    if optimizer.microbatch == "auto":
        size = max(1, int(free / each))
    # Extra rows of a control can double a minibatch, so that one of many rows is cut although its ordinary rows fit.
    whole = optimizer.microbatch is None or (optimizer.microbatch == "auto" and size >= 2 * rows)
    return Fit(None if whole else size, again, held + min(size, rows) * each, memory)


def memory_of(device: torch.device) -> float:
    """Return the bytes of memory of a device; those of the machine for a CPU."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf.
        return 8.0 * 2**30
