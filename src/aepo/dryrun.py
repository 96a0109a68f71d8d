"""`aepo train RECIPE --dry-run`: the model, the data, the memory and the cost of a run, on paper.

Counted for one optimizer over all weights (or the adapter), on one device:

    memory   = 4 P weights + (4 + 8) P_trained gradients and AdamW + 2 P bfloat16 copies + 4 P again for a reference
               + KV cache of `sampling.max_rows` completions + activations (not counted: they follow the microbatch)
    work     = 2 P per sampled token + 2 P per scored token + 6 P per trained token (8 P with gradient checkpointing)
    GPU time = work / (peak * utilisation)

P: parameters of the model, P_trained: those that are trained. Tokens are an upper bound: every completion is as long as
the limit. Sampling is bound by memory more than by arithmetic, so it has a utilisation of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aepo.checks import InvalidValue
from aepo.config import Config
from aepo.control.base import Step
from aepo.preflight import preflight

# One H100 in bfloat16; shares of it that trainers and samplers of this size are known to reach.
PEAK, TRAINING_SHARE, SAMPLING_SHARE = 990e12, 0.35, 0.10
GIB = 2**30


@dataclass(frozen=True)
class Model:
    """What the architecture says. kv_bytes: per token of the cache, in bfloat16."""

    kind: str
    parameters: int
    trained: int
    kv_bytes: int


@dataclass(frozen=True)
class Paper:
    """Upper bounds of one step. memory: bytes, without activations. hours: of one GPU, for the whole run."""

    completions: int
    extra: int
    sampled_tokens: int
    memory: dict[str, float]
    step_flops: dict[str, float]
    hours: float


def dry_run(config: Config) -> None:
    """Print what is known; `InvalidValue` where something cannot work."""
    for sentence in preflight(config):
        print(f"preflight: {sentence}")
    problem = config.task.train_problem(config.seed, 0)
    print(f"data: the first prompt is {problem.text.strip()[:120]!r}")
    model = architecture(config)
    print(f"model: {config.model}, {model.kind}, {model.parameters:,} parameters, {model.trained:,} of them trained")
    for line in lines(config, on_paper(config, model)):
        print(line)


def architecture(config: Config) -> Model:
    """From the model's configuration alone, without its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from aepo.runner import model_folder

    name: str | Path = model_folder(config) if config.model == "builtin" else config.model
    settings = {"trust_remote_code": config.policy.trust_remote_code, "revision": config.policy.revision}
    try:
        known: Any = AutoConfig.from_pretrained(name, **{k: v for k, v in settings.items() if v is not None})
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(known)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InvalidValue(
            "model", str(name), f"a model in Hugging Face format that can be reached ({reason})"
        ) from None
    parameters = sum(p.numel() for p in model.parameters())
    heads = getattr(known, "num_key_value_heads", known.num_attention_heads)
    width = getattr(known, "head_dim", None) or known.hidden_size // known.num_attention_heads
    kv_bytes = 2 * 2 * known.num_hidden_layers * heads * width
    return Model(type(model).__name__, parameters, _trained(model, config), kv_bytes)


def _trained(model: Any, config: Config) -> int:
    """All parameters, or the adapter's: rank * (inputs + outputs) of every linear layer that gets one."""
    rank, targets = config.policy.lora_rank, config.policy.lora_targets
    if rank is None:
        return sum(p.numel() for p in model.parameters())
    head = model.get_output_embeddings()
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head]
    chosen = [m for name, m in layers if targets == "all-linear" or name.split(".")[-1] in targets]
    if not chosen:
        raise InvalidValue("policy.lora_targets", targets, "names of linear layers of this model")
    return sum(rank * (m.in_features + m.out_features) for m in chosen)


def on_paper(config: Config, model: Model) -> Paper:
    """The bounds, from the settings and the model's size."""
    sampling, control = config.sampling, config.control
    ordinary = sampling.prompts * sampling.group_size
    step = Step(1, config.steps, sampling.prompts, sampling.group_size, config.task.max_tokens, config.seed)
    extra = sum(group.count for group in control.plan({**control.initial_state(), "command": 1.0}, step))
    longest = config.task.max_tokens
    prompt = getattr(config.task, "max_prompt", 64)
    sampled, read = (ordinary + extra) * longest, (ordinary + extra) * (prompt + longest)
    trained = config.optimizer.epochs * read
    recomputed = 2 * model.parameters * config.policy.gradient_checkpointing
    references = 1 + (config.kl_coefficient > 0 or control.needs(control.initial_state()).reference)
    flops = {
        "sampling": 2.0 * model.parameters * sampled,
        "scoring": 2.0 * model.parameters * read * references,
        "update": (6.0 * model.parameters + recomputed) * trained,
    }
    seconds = flops["sampling"] / (PEAK * SAMPLING_SHARE)
    seconds += (flops["scoring"] + flops["update"]) / (PEAK * TRAINING_SHARE)
    half = config.policy.dtype == "bfloat16"
    memory = {
        "weights": 4.0 * model.parameters,
        "gradients and AdamW": 12.0 * model.trained,
        "bfloat16 copies": 2.0 * model.parameters * half,
        "reference": 4.0 * model.parameters * (references - 1) * (config.policy.lora_rank is None),
        "KV cache": float(model.kv_bytes * (prompt + longest) * (sampling.max_rows or ordinary + extra)),
    }
    return Paper(ordinary + extra, extra, sampled, memory, flops, config.steps * seconds / 3600)


def lines(config: Config, paper: Paper) -> list[str]:
    """The bounds, with the formula and its inputs."""
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in paper.memory.items() if size)
    sampling = config.sampling
    work = ", ".join(f"{name} {flops:.2e}" for name, flops in paper.step_flops.items())
    return [
        f"step: {sampling.prompts} prompts x {sampling.group_size} completions, up to {paper.extra} extra, "
        f"at most {paper.sampled_tokens:,} sampled tokens ({paper.completions} x {config.task.max_tokens})",
        f"memory: at least {sum(paper.memory.values()) / GIB:.1f} GiB ({parts}), and activations",
        f"work: at most {sum(paper.step_flops.values()):.2e} operations a step ({work})",
        f"GPU time: at most {paper.hours:.1f} hours of one GPU for {config.steps} steps = steps x (sampling / "
        f"({PEAK:.2e} x {SAMPLING_SHARE}) + (scoring + update) / ({PEAK:.2e} x {TRAINING_SHARE})) / 3600",
    ]
