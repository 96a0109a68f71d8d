"""The stream of a model's weights equals what `save_merged` writes."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from aepo.config import PolicyConfig
from aepo.model import merged
from aepo.model.merged import merged_weights
from aepo.model.policy import Policy
from tests.tiny_models import BF16, CLASSES, LORA, stir


def same(stream, folder) -> int:
    """Compare names, dtypes, shapes and bits; return the number of weights."""
    written = load_file(folder / "model.safetensors")
    found = dict(stream)
    assert found.keys() == written.keys()
    for name, tensor in written.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    return len(written)


@pytest.mark.parametrize("settings", [PolicyConfig(), LORA, BF16], ids=["whole", "lora", "bfloat16"])
@pytest.mark.parametrize("kind", CLASSES)
def test_the_stream_equals_the_file_and_leaves_the_model_as_it_was(kind, settings, models, tmp_path):
    policy = stir(Policy.load(models[kind], settings=settings))
    before = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    names = [name for name, _ in policy.merged_weights()]
    assert len(names) == len(set(names))
    assert ("lm_head.weight" in names) is (kind != "qwen2")  # qwen2 is tied
    policy.save_merged(tmp_path)
    same(policy.merged_weights(), tmp_path)
    after = policy.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_an_adapter_on_some_layers_is_added_to_these(llama, tmp_path):
    settings = PolicyConfig(lora_rank=4, lora_targets=("q_proj", "layers.1.mlp.up_proj"))
    policy = stir(Policy.load(llama, settings=settings))
    base = dict(Policy.load(llama).merged_weights())
    changed = {name for name, tensor in policy.merged_weights() if not torch.equal(tensor, base[name])}
    assert changed == {
        *(f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)),
        "model.layers.1.mlp.up_proj.weight",
    }
    policy.save_merged(tmp_path)
    same(policy.merged_weights(), tmp_path)


def test_at_most_one_decoder_layer_is_copied_at_a_time(llama, monkeypatch):
    policy = stir(Policy.load(llama, settings=LORA))
    own = {tensor.data_ptr() for tensor in policy.model.state_dict().values()}
    copies, copied = [], copy.deepcopy
    monkeypatch.setattr(merged.copy, "deepcopy", lambda layer: copies.append(layer) or copied(layer))
    stream = policy.merged_weights()
    for name, tensor in stream:
        if name.startswith("model.layers.0."):
            assert len(copies) == 7
        assert (tensor.data_ptr() in own) is not ("_proj." in name)
    assert len(copies) == 14


def test_experts_have_the_names_of_the_files(tmp_path):
    """In memory, transformers 5 holds the experts of a layer in one tensor."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=64, num_experts=4, num_experts_per_tok=2, **sizes))
    assert "model.layers.0.mlp.experts.gate_up_proj" in model.state_dict()
    model.save_pretrained(tmp_path)
    names = [name for name, _ in merged_weights(model)]
    assert "model.layers.1.mlp.experts.3.up_proj.weight" in names
    assert same(merged_weights(model), tmp_path) == 45
