"""`by_model` gives the defaults of a run that depend on the model and on the machine.

The dataclasses of `aepo.config` hold the defaults of the built-in model, which is small and trains in float32 on a CPU.
docs/models.md has the evidence for the values of other models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

# Learning rates of published RLVR recipes, and what LoRA takes in proportion to them (docs/models.md).
FULL_RATE, LORA_RATE = 1e-6, 1e-5
# Steps over which the learning rate rises to its value, and the largest share of the run that they take.
WARMUP, WARMUP_SHARE = 10, 0.1


def by_model(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults that differ from the dataclasses' own, by dotted name.

    Args:
        given: The settings that the user gives, as nested tables.
    """
    model = given.get("model", "builtin")
    if model == "builtin":
        return {}
    policy = given.get("policy")
    adapter = isinstance(policy, Mapping) and policy.get("lora_rank") not in (None, "none")
    steps = given.get("steps")
    warmup = min(WARMUP, int(WARMUP_SHARE * steps)) if type(steps) is int else WARMUP
    return {
        "optimizer.lr": LORA_RATE if adapter else FULL_RATE,
        "optimizer.warmup": max(0, warmup),
        "optimizer.microbatch": "auto",
        "policy.gradient_checkpointing": "auto",
        "policy.share_prompts": "auto",
        "policy.dtype": "bfloat16" if has_bfloat16(given.get("device", "auto")) else "float32",
        "evaluation.every": "auto",
        "checkpoint.every": "auto",
    }


def has_bfloat16(device: object) -> bool:
    """Return whether the run is on a GPU that computes with bfloat16."""
    return device in ("auto", "cuda") and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
