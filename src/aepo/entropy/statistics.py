"""This module computes the statistics of tokens: log-probability, exact entropy, log-probability at temperature T.

    pi(a)   = softmax(z)_a            z [V] the logits of one token's position, temperature 1
    H       = -sum_a pi(a) log pi(a)  exact entropy, nats
    pi^T(a) = softmax(z / T)_a        what a sampler at temperature T draws from

`token_statistics` computes them from hidden states and the LM head, with gradients. It works over tiles of rows, so
the [N, V] logits never exist as a whole. `logits_statistics` computes the same from logits that exist already.

Each row's largest logit m is subtracted before its sums are taken. With s = z - m:

    S_T = sum_a exp(s_a / T)    M = sum_a exp(s_a) s_a
    log pi^T(y) = s_y / T - log S_T        H = log S_1 - M / S_1

The usual form `logsumexp(z) - sum pi z` is the same number, but its rounding error in float32 is ten times larger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aepo.entropy import kernels
from aepo.entropy.partial import FLOOR, Kept
from aepo.entropy.tiles import Fused, Plan, Results, default_chunk
from aepo.entropy.transform import LogitTransform
from aepo.errors import require
from aepo.types import Metric


@dataclass(frozen=True)
class TokenStatistics:
    """`TokenStatistics` holds the statistics of N tokens, in float32, or in float64 when the inputs are float64.

    A statistic that was not asked for is None; `tempered` is then empty.
    """

    logprobs: Tensor
    """[N], log pi(label) at temperature 1, nats."""
    entropy: Tensor | None
    """[N], exact entropy of pi at temperature 1, nats."""
    tempered: Tensor
    """[K, N], log pi^T(label) for each of the K temperatures that were asked for, in their order, nats."""
    kept_entropy: Tensor | None
    """[N], exact entropy over the kept part of the vocabulary, nats."""
    kept_logprobs: Tensor | None = None
    """[N], log-probability of the label after renormalisation over the kept part of the vocabulary, nats; -1e20 if the
    label is not kept. It has no gradient.
    """


def token_statistics(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    transform: LogitTransform = LogitTransform(),
    temperatures: Sequence[float] = (),
    entropy: bool = True,
    kept: Kept | None = None,
    chunk: int | None = None,
    compile: bool | None = None,
) -> TokenStatistics:
    """Return the statistics of the tokens `labels`, computed from the hidden states that predict them.

    Gradients flow from all statistics to hidden, weight and bias. Rows without an upstream gradient cost nothing in
    the backward pass, and a statistic that is not asked for costs nothing.

    The extra memory is one tile of logits (`chunk` rows; three tiles in eager code), and the gradient of the LM head in
    float32. Gradients are accumulated in float32 or wider. For 16-bit inputs the logits are float32: bf16 logits alone
    put 0.01 nats of noise into the entropy. Autocast does not apply here.

    Args:
        hidden: The hidden states, [N, D].
        weight: The weight of the LM head, [V, D], of hidden's dtype; its output is y = hidden weight^T + bias.
        labels: The tokens, [N], int64. The caller leaves padding out.
        bias: The bias of the LM head, [V], of hidden's dtype. A bias of -inf removes a token from the vocabulary, if
            there is no soft cap.
        transform: What makes the logits z of the LM head's output y: a scale, a soft cap. By default z = y.
        temperatures: K temperatures T at which log pi^T(label) is taken.
        entropy: Whether the exact entropy is taken.
        kept: The part of the vocabulary for `kept_entropy` and `kept_logprobs`; None for neither.
        chunk: Rows of a tile; None for a tile of about 32 MiB on the CPU and 512 MiB elsewhere.
        compile: True runs the elementwise part through torch.compile, False never does. None takes Triton on CUDA;
            elsewhere torch.compile for many logits and eager code for few. Where an implementation does not work
            (no C++ compiler, no Triton), eager code gives the same numbers, only slower.

    Raises:
        ValueError: Shapes or dtypes do not fit, a label is outside [0, V), a temperature is not positive and finite, or
            `chunk` is below 1.
        RuntimeError: A second derivative is asked for.
    """
    _check_operands(hidden, weight, bias, labels)
    _check_labels(labels, weight.shape[0])
    _check_temperatures(temperatures)
    require(chunk is None or chunk >= 1, "chunk", chunk, "a positive number of rows, or None")
    rows, vocabulary = hidden.shape[0], weight.shape[0]
    plan = Plan(
        temperatures=(1.0, *map(float, temperatures)),
        entropy=entropy,
        kept=kept,
        chunk=chunk or default_chunk(hidden.device, vocabulary),
        kernel=kernels.choose(hidden.device, rows * vocabulary, compile),
        transform=None if transform.plain else transform,
    )
    fused: Callable[..., Results] = Fused.apply
    logprobs, exact, kept_entropy, kept_logprobs = fused(hidden, weight, bias, labels, plan)
    return TokenStatistics(logprobs[0], exact, logprobs[1:], kept_entropy, kept_logprobs)


def logits_statistics(
    logits: Tensor, labels: Tensor, *, temperatures: Sequence[float] = (), kept: Kept | None = None
) -> TokenStatistics:
    """Return the statistics of `token_statistics` from logits that exist already, by plain autograd.

    It is the reference that `token_statistics` is tested against. For a small vocabulary it is all that is needed.

    Args:
        logits: The logits, [..., V].
        labels: The tokens, [...], int64.
        temperatures: K temperatures T at which log pi^T(label) is taken.
        kept: The part of the vocabulary for `kept_entropy` and `kept_logprobs`; None for neither.

    Returns:
        Statistics [...], `tempered` [K, ...], in float32 or wider.

    Raises:
        ValueError: Shapes or dtypes do not fit, a label is outside [0, V), or a temperature is not positive and finite.
    """
    require(logits.is_floating_point() and logits.dim() > 0, "logits", _kind(logits), "floating, [..., V]")
    places = tuple(logits.shape[:-1])
    require(labels.shape == places, "labels", _kind(labels), f"of shape {places}")
    _check_labels(labels, logits.shape[-1])
    _check_temperatures(temperatures)
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    shifted = z - z.detach().amax(-1, keepdim=True)
    chosen = shifted.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    shifted = shifted.clamp_min(FLOOR)
    weights = shifted.exp()
    total = weights.sum(-1)
    among = None if kept is None else _renormalised(z, kept)
    tempered = [chosen / t - (shifted / t).exp().sum(-1).log() for t in temperatures]
    return TokenStatistics(
        logprobs=chosen - total.log(),
        entropy=total.log() - (weights * shifted).sum(-1) / total,
        tempered=torch.stack(tempered) if tempered else chosen.new_empty(0, *chosen.shape),
        kept_entropy=None if among is None else -(among.exp() * among).sum(-1),
        kept_logprobs=None if among is None else among.detach().gather(-1, labels.unsqueeze(-1)).squeeze(-1),
    )


def _renormalised(z: Tensor, kept: Kept) -> Tensor:
    """Return the log-probabilities after renormalisation over the kept tokens, FLOOR for the others."""
    inside = z >= kept.threshold(z.detach().flatten(0, -2)).view(*z.shape[:-1], 1)
    return z.masked_fill(~inside, FLOOR).log_softmax(-1).clamp_min(FLOOR)


def sampled_entropy(logprobs: Tensor, mask: Tensor) -> Metric:
    """Return the one-sample estimate of the entropy, the mean of -log pi(y) over the sampled tokens y.

    The estimate is unbiased only if y was drawn from pi itself. For tokens that were drawn at another temperature, with
    top-p or from an older policy, it measures a cross-entropy. It carries no gradient, on purpose: on-policy
    E[grad log pi(y)] = 0, so its naive gradient is noise of mean zero and no entropy bonus. For a bonus use the exact
    entropy of `token_statistics`.

    Args:
        logprobs: log pi(y) at temperature 1, nats, any shape.
        mask: The same shape; nonzero where a token counts.

    Returns:
        The estimate as (total, count), in nats and tokens.

    Raises:
        ValueError: The shapes differ.
    """
    require(mask.shape == logprobs.shape, "mask", _kind(mask), f"of shape {tuple(logprobs.shape)}")
    return Metric.of(-logprobs.detach(), mask)


# The checks of the arguments.


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def _check_operands(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> None:
    require(hidden.dim() == 2 and hidden.is_floating_point(), "hidden", _kind(hidden), "floating, [N, D]")
    rows, width = hidden.shape
    fits = weight.dim() == 2 and weight.shape[0] > 0 and weight.shape[1] == width
    wanted = f"{hidden.dtype} [V, {width}], to go with hidden"
    require(fits and weight.dtype == hidden.dtype, "weight", _kind(weight), wanted)
    if bias is not None:
        fits = bias.shape == weight.shape[:1] and bias.dtype == weight.dtype
        require(fits, "bias", _kind(bias), f"{weight.dtype} [{weight.shape[0]}], to go with weight")
    require(labels.shape == (rows,), "labels", _kind(labels), f"of shape [{rows}], one per row of hidden")


def _check_labels(labels: Tensor, vocabulary: int) -> None:
    require(labels.dtype == torch.int64, "labels", labels.dtype, "torch.int64")
    if labels.numel():
        low, high = torch.stack(labels.aminmax()).tolist()
        outside = low if low < 0 else high
        require(0 <= outside < vocabulary, "labels", outside, f"token ids in [0, {vocabulary})")


def _check_temperatures(temperatures: Sequence[float]) -> None:
    for temperature in temperatures:
        require(0 < temperature < math.inf, "temperatures", temperature, "positive, finite numbers")
