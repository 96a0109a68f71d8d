"""The estimate of an update's memory, against the tensors that the backward pass really keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import Gemma2Config, GPT2Config, LlamaConfig, Qwen3Config, Qwen3MoeConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from aepo.config import OptimizerConfig, PolicyConfig, default_config
from aepo.model.memory import Fit, Sizes, fitted, sizes

SMALL = {
    "hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2,
    "intermediate_size": 700, "vocab_size": 100, "max_position_embeddings": 512, "pad_token_id": 0,
}  # fmt: skip
MODELS = {
    "llama": LlamaConfig(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=64),
    "gemma2": Gemma2Config(**SMALL, head_dim=32, attn_implementation="eager"),
    "gpt2": GPT2Config(
        n_embd=256, n_layer=3, n_head=8, vocab_size=100, n_positions=512, bos_token_id=0, eos_token_id=0
    ),
    "experts": Qwen3MoeConfig(**SMALL, moe_intermediate_size=128, num_experts=8, num_experts_per_tok=2),
}


def kept(model, ids: torch.Tensor, half: bool) -> int:
    """Return the bytes of the tensors that the backward pass keeps, without parameters and their rounded copies."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    tensors: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        tensors.append(tensor)
        return tensor

    same = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with same, torch.autocast("cpu", torch.bfloat16, enabled=half):
        model.base_model(ids)
    found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    rounded = sum(2 * p.numel() for p in model.base_model.parameters() if p.dim() > 1) if half else 0
    return sum(size for place, size in found.items() if place not in own) - rounded


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_activations(name, half):
    model = AutoModelForCausalLM.from_config(MODELS[name]).eval()
    ids = torch.randint(0, 100, (2, 256))
    estimated = 2 * sizes(model).row(256, 2 if half else 4, checkpointing=False)
    assert 0.65 < estimated / kept(model, ids, half) < 1.5


def test_recomputed_activations_keep_the_inputs_of_the_layers():
    model = AutoModelForCausalLM.from_config(MODELS["llama"]).train()
    (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)(
        {"use_reentrant": False}
    )
    # Two inputs of each layer are saved beside its hidden states, and the last norm; none is as large.
    one_layer = sizes(model).row(256, 4, False) / 3
    saved = kept(model, torch.randint(0, 100, (2, 256)), half=False)
    assert saved < 2 * (sizes(model).row(256, 4, True) - one_layer) * 2


BIG = Sizes(parameters=8_000_000_000, trained=40_000_000, layers=32, hidden=4096, queries=4096, keys=1024,
            feed_forward=14336)  # fmt: skip
GIB = 2**30


def run(**changes):
    config = default_config()
    tables = {"optimizer": OptimizerConfig(microbatch="auto"), "policy": PolicyConfig(gradient_checkpointing="auto")}
    return replace(config, **{**tables, **changes})


def test_small_models_take_whole_minibatches():
    tiny = Sizes(parameters=10**6, trained=10**6, layers=2, hidden=64, queries=64, keys=64, feed_forward=256)
    fit = fitted(run(), tiny, prompt=20, memory=16 * GIB)
    assert fit.microbatch is None and not fit.checkpointing and fit.problems() == []


def test_large_models_recompute_and_cut():
    half = PolicyConfig(dtype="bfloat16", gradient_checkpointing="auto", lora_rank=16)
    fit = fitted(run(policy=half), BIG, prompt=2000, memory=80 * GIB)
    assert fit.checkpointing and fit.microbatch is not None and 1 <= fit.microbatch < 128
    more = fitted(run(policy=half), BIG, prompt=2000, memory=160 * GIB)
    assert more.microbatch > fit.microbatch
    assert fit.needed <= 80 * GIB and fit.problems() == []


def test_what_does_not_fit_is_said():
    full = replace(BIG, trained=BIG.parameters)
    fit = fitted(run(), full, prompt=2000, memory=80 * GIB)
    assert fit.microbatch == 1 and fit.checkpointing
    assert "GiB" in fit.problems()[0] and "policy.lora_rank" in fit.problems()[0]


@pytest.mark.parametrize("microbatch, checkpointing", [(7, False), (None, True), (1, "auto")])
def test_what_the_user_sets_stays(microbatch, checkpointing):
    config = run(
        optimizer=OptimizerConfig(microbatch=microbatch), policy=PolicyConfig(gradient_checkpointing=checkpointing)
    )
    fit = fitted(config, BIG, prompt=100, memory=200 * GIB)
    assert fit.microbatch == microbatch
    assert checkpointing == "auto" or fit.checkpointing is checkpointing


def test_applied():
    config = Fit(4, True, 0.0, 1.0).applied(run())
    assert config.optimizer.microbatch == 4 and config.policy.gradient_checkpointing is True
