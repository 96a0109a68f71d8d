"""`policy_loss` is the core's loss, which verl's workers call instead of `verl.workers.utils.losses.ppo_loss`.

The driver computes the weight of each token over the whole minibatch and sends it with the token. So the sum over all
ranks and microbatches is the loss of the minibatch, however the minibatch is split.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric
from verl.workers.utils.padding import no_padding_2_padding

from aepo.algorithm import Algorithm
from aepo.control.base import Scored
from aepo.engines import stages
from aepo.integrations.verl import rows
from aepo.loss.policy_loss import LossOutput, k3
from aepo.types import BatchStatistics

FIELDS = ("response_mask", "old_log_probs", "entropy", "advantages", "aepo_weights")
OPTIONAL = ("ref_log_prob", rows.CORRECTION)
# Names of the sums that the workers return as `aepo/NAME_total` and `aepo/NAME_count`.
SUMS = ("ratio", "clip_fraction", "approximate_kl", "mixed_sampled_entropy")


def policy_loss(
    model_output: dict[str, Tensor],
    data: Any,
    dp_group: Any = None,
    *,
    algorithm: Algorithm,
    kl_coefficient: float = 0.0,
) -> tuple[Tensor, dict[str, Metric]]:
    """Return the loss of a microbatch, and the sums for the log.

    The loss is multiplied by the number of data-parallel ranks, because verl averages the gradients over the ranks.

    Args:
        model_output: verl's log-probabilities and, where it was asked for, the entropy; both without padding.
        data: The microbatch of verl.
        dp_group: verl passes it; it is not used.
        algorithm: The algorithm whose loss is computed.
        kl_coefficient: The weight of k3(pi, pi_ref) on every trained token.

    Raises:
        RuntimeError: The loss needs the reference model, and verl sent no `ref_log_prob`.
    """
    state = json.loads(tu.get_non_tensor_data(data, "aepo_state", None))
    step = rows.step_from_json(tu.get_non_tensor_data(data, "aepo_step", None))
    fields = padded(data)
    part = rows.microbatch(fields, step)
    new = BatchStatistics(
        logprobs=no_padding_2_padding(model_output["log_probs"], data).float(),
        entropy=_entropy(model_output, data, part),
    )
    if part.ref_logprobs is None and (kl_coefficient > 0 or algorithm.control.needs(state).reference):
        raise RuntimeError("verl sent no ref_log_prob, so a penalty would silently be left out")
    penalty = None
    if part.ref_logprobs is not None and kl_coefficient > 0:
        penalty = kl_coefficient * k3(new.logprobs, part.ref_logprobs)
    output = stages.loss(algorithm, part, new, fields["aepo_weights"], state, penalty)
    return output.loss * data["dp_size"], _sums(output, new, fields["aepo_weights"] > 0)


def padded(data: Any) -> dict[str, Tensor]:
    """Return verl's ragged fields as padded tensors, by name, with the `prompt_mask`."""
    optional = [name for name in set(data.keys()) if name.startswith(rows.MARK) or name in OPTIONAL]
    tensors = data.select("prompts", "responses", *FIELDS, "aepo_rows", *optional).to_padded_tensor()
    fields: dict[str, Tensor] = dict(tensors.items())
    lengths = data["prompts"].offsets().diff()
    columns = torch.arange(fields["prompts"].shape[1], device=lengths.device)
    fields["prompt_mask"] = columns[None] < lengths[:, None]
    return fields


def _entropy(model_output: dict[str, Tensor], data: Any, part: Scored) -> Tensor:
    """Return the entropy with its gradient, [B, T], nats.

    If the update did not ask for the entropy, return zeros that nothing reads.
    """
    if "entropy" not in model_output:
        return torch.zeros_like(part.batch.mask)
    entropy: Tensor = no_padding_2_padding(model_output["entropy"], data).float()
    return entropy


def _sums(output: LossOutput, new: BatchStatistics, trained: Tensor) -> dict[str, Metric]:
    """Return totals and counts as sums.

    verl averages over microbatches; with sums the log still shows a mean over tokens.
    """
    surprise = -new.logprobs.detach()[trained].double().sum().item()
    totals = {
        "ratio": (output.ratio.total, output.ratio.count),
        "clip_fraction": (output.clipped.total, output.clipped.count),
        "approximate_kl": (output.approximate_kl.total, output.approximate_kl.count),
        "mixed_sampled_entropy": (surprise, trained.sum().item()),
    }
    return {
        f"aepo/{name}_{part}": Metric(value=value, aggregation=AggregationType.SUM)
        for name, pair in totals.items()
        for part, value in zip(("total", "count"), pair, strict=True)
    }
