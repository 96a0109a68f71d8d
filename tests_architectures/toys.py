"""Two-layer random models of many architectures of transformers, and what the package does with each.

`python -m tests_architectures.toys` prints the table of docs/models.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from aepo.engines.linear_head import CAPS, DIVIDED, MULTIPLIED
from tests.tiny_models import byte_tokenizer

# Names that configurations have for sizes. Each configuration gets those that it knows.
SIZES: Mapping[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("head_dim", "kv_channels", "v_head_dim", "qk_rope_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "moe_intermediate_size", "shared_intermediate_size"), 16),
    **dict.fromkeys(("mamba_d_state", "state_size", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "mamba_n_groups"), 1),
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "rotary_dim": 4,
    "initializer_range": 0.2,
    "vocab_size": 272,
    "pad_token_id": 257,
    "bos_token_id": None,
    "eos_token_id": 256,
}
LATENT = {"num_key_value_heads": 4}  # attention over a compressed cache has as many key heads as query heads
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "layer_types": ["linear_attention", "full_attention"]}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_chunk_size": 8}

# Architectures that work, with what their toy has besides.
WORK: Mapping[str, Mapping[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "bloom": {},
    "codegen": {},
    "cohere": {"logit_scale": 0.5},
    "cohere2": {"logit_scale": 1 / 16},
    "cohere2_moe": {"logit_scale": 0.5},
    "ctrl": {},
    "cwm": {"bos_token_id": 258},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "diffllama": {},
    "doge": {},
    "dots1": {},
    "ernie4_5": {},
    "ernie4_5_moe": {},
    "exaone4": {},
    "exaone_moe": {},
    "falcon": {"head_dim": ...},
    "falcon_h1": {**MAMBA, "mamba_d_ssm": 64, "mamba_expand": 2, "lm_head_multiplier": 0.3},
    "falcon_mamba": {},
    "flex_olmo": {},
    "gemma": {},
    "gemma2": {"final_logit_softcapping": 3.0},
    "gemma3_text": {"final_logit_softcapping": 2.0},
    "gemma3n_text": {"num_kv_shared_layers": 0, "final_logit_softcapping": 3.0},
    "gemma4_text": {"final_logit_softcapping": 3.0},
    "glm": {},
    "glm4": {},
    "glm4_moe": {},
    "glm4_moe_lite": LATENT,
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {},
    "gpt_oss": {},
    "gptj": {},
    "granite": {"logits_scaling": 8.0},
    "granitemoe": {"logits_scaling": 4.0},
    "granitemoehybrid": {**MAMBA, "layer_types": ["mamba", "attention"], "logits_scaling": 3.0},
    "granitemoeshared": {"logits_scaling": 6.0},
    "helium": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": {},
    "hyperclovax": {"logits_scaling": 4.0},
    "jais2": {},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "jetmoe": {},
    "lfm2": {},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "llama": {},
    "longcat_flash": LATENT,
    "mamba": {},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "minicpm3": {**LATENT, "dim_model_base": 8},
    "minimax_m2": {},
    "ministral": {},
    "mistral": {},
    "mixtral": {},
    "mpt": {"logit_scale": 0.5},
    "nanochat": {"final_logit_softcapping": 4.0},
    "nemotron": {},
    "nemotron_h": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {},
    "olmo_hybrid": {},
    "olmoe": {},
    "opt": {},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phimoe": {},
    "qwen2": {},
    "qwen2_moe": {},
    "qwen3": {},
    "qwen3_5_text": LINEAR,
    "qwen3_moe": {},
    "qwen3_next": LINEAR,
    "seed_oss": {},
    "smollm3": {},
    "solar_open": {},
    "stablelm": {},
    "starcoder2": {},
    "vaultgemma": {"final_logit_softcapping": 3.0},
    "xglm": {"pad_token_id": 1},
    "youtu": LATENT,
    "zamba2": {"layers_block_type": ["mamba", "hybrid"]},
}
# Architectures that are refused: what their toy has besides, and the reason, as a part of the line.
REFUSED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "bart": ({}, "reads from left to right"),
    "bert": ({}, "linear map of its hidden states"),
    "cpmant": ({}, "leaves masked padding out"),
    "dory": ({}, "cannot be sampled here"),
    "llama4_text": ({}, "a model of their own"),
    "minimax": ({}, "cannot be sampled here"),
    "openai-gpt": ({}, "cache does not work here"),
    "recurrent_gemma": (
        {"block_types": ["recurrent", "attention"], "logits_soft_cap": 3.0},
        "leaves masked padding out",
    ),
    "rwkv": ({}, "leaves masked padding out"),
    "xlstm": ({"v_head_dim": ..., "num_heads": 2}, "leaves masked padding out"),
}
# The reasons, for people.
WHY: Mapping[str, str] = {
    "reads from left to right": "reads later tokens",
    "leaves masked padding out": "reads masked padding",
    "linear map of its hidden states": "the logits are something else",
    "cannot be sampled here": "has a cache of its own",
    "cache does not work here": "has no cache",
    "a model of their own": "has no part without the output layer",
}
# transformers' own step with a cache differs from its pass over a whole row by so many nats.
ROUGH: Mapping[str, float] = {"nemotron_h": 1e-2, "zamba2": 1e-2}


def toy(kind: str, changes: Mapping[str, Any]) -> Any:
    """Return a random model of this architecture with two layers."""
    config_class = CONFIG_MAPPING[kind]
    known: set[str] = set()
    for base in config_class.__mro__:
        known |= set(getattr(base, "__annotations__", {})) | set(base.__dict__.get("attribute_map", {}))
    settings = {name: value for name, value in SIZES.items() if name in known} | dict(changes)
    config = config_class(**{name: value for name, value in settings.items() if value is not ...})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():  # some configurations have no width of the weights, and biases start at 0
            if parameter.dim() == 2 or not parameter.any():
                parameter.data += 0.1 * torch.randn(parameter.shape)
    return model.eval()


def saved(kind: str, changes: Mapping[str, Any], folder: Path) -> Path:
    """Write the toy in Hugging Face format and return its folder."""
    toy(kind, changes).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def table() -> str:
    """Return the table of docs/models.md: what works, by what its toy's logits have, and what is refused."""
    factors, caps = (*MULTIPLIED, *DIVIDED, "dim_model_base"), CAPS
    rows: dict[str, list[str]] = {"plain logits": [], "logits times a factor": [], "soft-capped logits": []}
    for kind, changes in WORK.items():
        named = [name for name in (*factors, *caps) if name in changes and kind != "mpt"]
        group = "plain logits" if not named else "soft-capped logits" if named[0] in caps else "logits times a factor"
        rows[group].append(f"`{kind}` ({named[0]})" if named else f"`{kind}`")
    for kind, (_, reason) in REFUSED.items():
        rows.setdefault(f"refused: {WHY[reason]}", []).append(f"`{kind}`")
    lines = [f"| {group} | {', '.join(kinds)} |" for group, kinds in rows.items()]
    return "\n".join(["| | architectures (`model_type`) |", "|---|---|", *lines]) + "\n"


if __name__ == "__main__":
    print(table(), end="")
