"""What a GPU computes, and what a run on it writes. Each test also runs on the CPU, so that it is known to work."""

import pytest
import torch

from aepo.config import PolicyConfig, make_config
from aepo.entropy.statistics import token_statistics
from aepo.model.policy import Policy
from aepo.sampling.hf import HFSampler
from aepo.training import runner
from aepo.training.folder import METRICS, read_rows
from aepo.types import Prompt, Request
from tests.tiny_models import drawn, make_model, mismatch

pytestmark = pytest.mark.gpu
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
]


@pytest.mark.parametrize("device", DEVICES)
def test_a_real_vocabulary_in_bfloat16(device):
    """Two tiles, the second one shorter, against float64."""
    draw = torch.Generator().manual_seed(0)
    rows, width, vocabulary = 24, 64, 152_064
    hidden = torch.randn(rows, width, generator=draw).to(device, torch.bfloat16).requires_grad_()
    weight = 2 * torch.randn(vocabulary, width, generator=draw) / width**0.5
    weight = weight.to(device, torch.bfloat16).requires_grad_()
    labels = torch.randint(vocabulary, (rows,), generator=draw).to(device)
    found = token_statistics(hidden, weight, labels, temperatures=(0.8,), chunk=16)
    (found.logprobs.sum() + found.entropy.sum() + found.tempered.sum()).backward()

    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    z = exact[0] @ exact[1].t()
    logs, heated = z.log_softmax(-1), (z / 0.8).log_softmax(-1)
    place = labels[:, None]
    entropy = -(logs.exp() * logs).sum(-1)
    wanted = (logs.gather(1, place)[:, 0], entropy, heated.gather(1, place)[:, 0])
    sum(map(torch.sum, wanted)).backward()
    for got, want in zip((found.logprobs, found.entropy, found.tempered[0]), wanted, strict=True):
        assert (got - want).abs().max() < 1e-4
    for got, want in zip((hidden, weight), exact, strict=True):
        assert (got.grad - want.grad).abs().max() < 0.02 * want.grad.abs().max()


@pytest.mark.parametrize("device", DEVICES)
def test_the_sampler_and_the_scoring_agree(llama, device):
    policy = Policy.load(llama, device)
    assert mismatch(policy, drawn(policy)) < 1e-4


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("settings", [PolicyConfig(), PolicyConfig(attention="eager"), PolicyConfig(dtype="bfloat16")])
def test_static_decoding_draws_the_scored_probabilities(llama, device, settings):
    """Two looks of the host, so that a graph is replayed before and after rows have left."""
    policy = Policy.load(llama, device, settings)
    options = {"eos_token_ids": range(0, 272, 16), "pad_token_id": policy.pad_token_id}
    sampler = HFSampler(policy.model, decode="static", **options)
    requests = [Request(Prompt(text, policy.encode(text), {}), i, 8) for i, text in enumerate(("2 + 2 =", "why?"))]
    completions = sampler.sample(requests, max_tokens=40, generator=torch.Generator().manual_seed(0))
    assert sampler.graphs and len({len(completion.tokens) for completion in completions}) > 4
    assert mismatch(policy, completions) < (0.3 if settings.dtype == "bfloat16" else 1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_they_agree_in_bfloat16_to_its_rounding(llama, device):
    policy = Policy.load(llama, device, PolicyConfig(dtype="bfloat16"))
    assert mismatch(policy, drawn(policy)) < 0.3


@pytest.mark.parametrize("device", DEVICES)
def test_vllm_samples_with_the_newest_weights(tmp_path, device):
    """On a GPU they are handed over in place; `ipc` raises where they arrive with other values than through files."""
    pytest.importorskip("vllm", reason="needs vLLM: pip install 'aepo[vllm]'")
    from aepo.sampling.vllm import VLLMSampler
    from aepo.sampling.vllm_local import LocalVLLMBackend

    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    policy = Policy.load(make_model(tmp_path, "qwen2", **sizes), device)
    settings = {"enforce_eager": True, "kv_cache_memory_bytes": 2**28}
    backend = LocalVLLMBackend(weights="ipc" if device == "cuda" else "files", **settings)
    sampler = VLLMSampler(backend, eos_token_ids=policy.eos_token_ids)
    request = Request(Prompt("a", policy.encode("2 + 2 ="), {}), 0, 8)
    try:
        for seed in range(3):
            with torch.no_grad():
                for weight in policy.model.parameters():
                    weight.mul_(1.1)
            sampler.refresh(policy)
            drawn_now = sampler.sample([request], max_tokens=12, generator=torch.Generator().manual_seed(seed))
            assert mismatch(policy, drawn_now) < 1e-3
    finally:
        backend.close()


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_is_resumed(quick_model, tmp_path, monkeypatch, device):
    monkeypatch.setattr(runner, "plot_run", lambda run: None)  # a machine with a GPU may lack matplotlib
    settings = [f"device={device}", "steps=2", "sampling.prompts=4", "sampling.group_size=4", "evaluation.every=0"]
    settings += ["control.target=1.0"]
    config = make_config(method="aepo", overrides={"model": str(quick_model)}, settings=settings)
    runner.start(config, tmp_path / "run", quiet=True)
    runner.resume(tmp_path / "run", quiet=True, settings=["steps=4"])
    rows = read_rows(tmp_path / "run" / METRICS)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["entropy"] > 0 and row["updates_skipped"] == 0 for row in rows)
