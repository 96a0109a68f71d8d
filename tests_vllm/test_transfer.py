"""vLLM's own transfer of weights, run on a CPU: what CUDA and NCCL do are stand-ins (`standin.py`)."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

from aepo.errors import InvalidValue
from aepo.sampling import vllm_transfer
from aepo.sampling.vllm import VLLMSampler
from aepo.sampling.vllm_local import LocalVLLMBackend
from tests.sampling.test_hf import request

from . import standin
from .models import KINDS, logprob_error, tiny
from .test_vllm import EOS, LONGER_THAN_A_BLOCK, kill, mixed, run


@pytest.fixture(scope="module")
def standins():
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        for one in standin.patches():
            stack.enter_context(one)
        patch.setattr(vllm_transfer, "check_device", lambda way, device: None)
        patch.setattr(vllm_transfer, "CHUNK", 2**14)  # several messages for each update
        yield


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def engine(kind, standins):
    engine = LocalVLLMBackend(weights="ipc", kv_cache_memory_bytes=2**28, worker_extension_cls=standin.NAME)
    engine.refresh(tiny(kind, seed=0))
    yield engine
    engine.close()


@pytest.fixture
def calls(engine, monkeypatch) -> list[str]:
    """The methods of the worker that are called."""
    called: list[str] = []
    call = LocalVLLMBackend._call
    monkeypatch.setattr(
        LocalVLLMBackend, "_call", lambda self, method, given: called.append(method) or call(self, method, given)
    )
    return called


def test_weights_without_files_are_the_ones_sampled_from_as_with_files(engine, kind, calls):
    sampler = VLLMSampler(engine, eos_token_ids=[EOS])
    requests = [*mixed(5), request(LONGER_THAN_A_BLOCK, 20, 1.0, 9)]
    assert logprob_error(tiny(kind, seed=0).model, run(sampler, requests)) < 1e-4
    for seed in (1, 2, 3):
        calls.clear()
        other = tiny(kind, seed)
        sampler.refresh(other)
        completions = run(sampler, requests)
        assert logprob_error(other.model, completions) < 1e-4
        assert ("aepo_load" in calls) is (seed == 1)  # the first transfer is compared with a folder
        assert calls.count("update_weights") > 3
    checksums = engine._call("compute_weight_checksums", {})
    with engine._new_scratch(other.model) as folder:
        other.save_merged(folder)
        engine._call("aepo_load", {"folder": folder})
    assert engine._call("compute_weight_checksums", {}) == checksums
    engine._forget()
    by_files = run(sampler, requests)
    assert [c.tokens for c in by_files] == [c.tokens for c in completions]
    assert torch.tensor([c.logprobs[0] for c in by_files]).allclose(torch.tensor([c.logprobs[0] for c in completions]))
