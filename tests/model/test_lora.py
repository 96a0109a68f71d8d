import shutil
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from aepo.config import PolicyConfig
from aepo.model.policy import Policy
from aepo.training import runner
from tests.tiny_models import CLASSES, LORA, gradients, logprobs, make_model, refused, stir
from tests.training.test_step import metrics, same_weights, small


@pytest.mark.parametrize("kind", CLASSES)
def test_an_adapter_starts_as_the_base_model_and_alone_is_trained(kind, models):
    policy = Policy.load(models[kind], settings=LORA)
    torch.testing.assert_close(logprobs(policy), logprobs(Policy.load(models[kind])), atol=1e-6, rtol=0)
    trained = {name for name, p in policy.model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 7 * 2 and all("lora_" in name for name in trained)  # A and B, 7 layers of 2 blocks
    assert gradients(policy).keys() == trained


def test_a_new_adapter_is_a_function_of_the_seed_and_leaves_other_randomness_alone(llama):
    torch.manual_seed(5)
    first = torch.rand(1)
    torch.manual_seed(5)
    a, b, c = (Policy.load(llama, settings=LORA, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), first)
    a, b, c = (torch.cat([p.flatten() for p in x.model.parameters() if p.requires_grad]) for x in (a, b, c))
    assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.filterwarnings("error::FutureWarning")
def test_an_adapter_and_checkpointing_warn_of_nothing(llama, tmp_path):
    settings = replace(LORA, gradient_checkpointing=True)
    Policy.load(llama, settings=settings).save(tmp_path)
    Policy.load(tmp_path, settings=settings)


def test_an_adapter_is_saved_and_loaded_exactly(llama, tmp_path):
    policy = stir(Policy.load(llama, settings=LORA))
    policy.save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= names
    assert "model.safetensors" not in names
    for settings in (LORA, PolicyConfig()):
        again = Policy.load(tmp_path, settings=settings)
        assert torch.equal(logprobs(again), logprobs(policy))
        named = zip(policy.model.named_parameters(), again.model.named_parameters(), strict=True)
        assert all(a == b and p.requires_grad == q.requires_grad and torch.equal(p, q) for (a, p), (b, q) in named)


def test_merged_weights_are_a_plain_model_that_says_the_same(llama, tmp_path):
    policy = stir(Policy.load(llama, settings=LORA))
    policy.save_merged(tmp_path)
    merged = Policy.load(tmp_path)
    assert merged.adapter is None and not (tmp_path / "adapter_config.json").exists()
    torch.testing.assert_close(logprobs(merged), logprobs(policy), atol=1e-4, rtol=0)
    assert (logprobs(merged) - logprobs(Policy.load(llama))).abs().max() > 0.1
    assert policy.adapter is not None and any(p.requires_grad for p in policy.model.parameters())


def test_without_the_adapter_is_the_base_model_from_the_same_weights(llama):
    policy = stir(Policy.load(llama, settings=LORA))
    tuned, base = logprobs(policy), policy.without_adapter()
    torch.testing.assert_close(logprobs(base), logprobs(Policy.load(llama)), atol=1e-6, rtol=0)
    assert (tuned - logprobs(base)).abs().max() > 0.1 and torch.equal(logprobs(policy), tuned)
    assert base.model is policy.model and gradients(policy)


def test_targets_are_the_layers_that_get_an_adapter(llama):
    policy = Policy.load(llama, settings=replace(LORA, lora_targets=("q_proj", "layers.1.mlp.up_proj")))
    trained = {n.split(".lora_")[0] for n, p in policy.model.named_parameters() if p.requires_grad}
    assert trained == {
        *("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"),
        "model.layers.1.mlp.up_proj",
    }


@pytest.mark.parametrize("target", ["c_attn", "proj", "lm_head"])
def test_an_unknown_target_is_refused(target, llama):
    words = f"^policy.lora_targets: got '{target}'; must be all-linear, or linear layers of the model: down_proj"
    refused(words, llama, lora_rank=4, lora_targets=("q_proj", target))


def test_another_rank_than_the_saved_one_is_refused(llama, tmp_path):
    Policy.load(llama, settings=LORA).save(tmp_path)
    refused("^policy.lora_rank: got 8; must be 4, the rank of the adapter", tmp_path, lora_rank=8)


def test_an_adapter_whose_base_is_gone_names_the_base(tmp_path):
    base = make_model(tmp_path / "base")
    Policy.load(base, settings=LORA).save(tmp_path / "adapter")
    base.rename(tmp_path / "moved")
    refused("^model: got '.*/base'", tmp_path / "adapter")


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_corrupt_adapter_is_named(damage, llama, tmp_path):
    Policy.load(llama, settings=LORA).save(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]) if damage == "cut" else path.unlink()
    refused("^model: got '.*/adapter'", tmp_path / "adapter")


def test_without_peft_an_adapter_is_refused(llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    refused(r"^policy.lora_rank: got 4; .* pip install 'aepo\[lora\]'", llama, lora_rank=4)


# --- in the loop --------------------------------------------------------------------------------------------


def test_a_resumed_lora_run_ends_bit_equal_to_one_that_was_not_stopped(quick_model, tmp_path):
    """With a KL to the model under the adapter; checkpoints hold the adapter alone."""
    settings = ("policy.lora_rank=4", "kl_coefficient=0.1", "checkpoint.keep=4", "optimizer.lr=1e-3")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    runner.start(small(quick_model, "entropy-reg", 4, *settings), whole, quiet=True)
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "checkpoints" / "step-4")
    runner.resume(stopped, quiet=True)
    assert metrics(stopped) == metrics(whole) and len(metrics(whole)) == 4
    files = [run / "checkpoints" / "step-4" / "adapter_model.safetensors" for run in (whole, stopped)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not (files[0].parent / "model.safetensors").exists()
    before = load_file(whole / "checkpoints" / "step-2" / "adapter_model.safetensors")
    assert not same_weights(before, load_file(files[0]))
    assert all(row["mismatch"] < 1e-5 for row in metrics(whole))


def test_another_seed_starts_another_adapter(quick_model):
    runs = [
        runner._prepare(small(quick_model, "grpo", 4, "policy.lora_rank=4", f"seed={seed}"), None, True)[0]
        for seed in (1, 2)
    ]
    a, b = (torch.cat([p.flatten() for p in run.policy.model.parameters() if p.requires_grad]) for run in runs)
    assert not torch.equal(a, b)
