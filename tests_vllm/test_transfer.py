"""vLLM's own transfer of weights, run on a CPU: what CUDA and NCCL do are stand-ins (`standin.py`)."""

from __future__ import annotations

import json
import warnings
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch

from aepo.errors import InvalidValue
from aepo.sampling import vllm_transfer
from aepo.sampling.vllm import VLLMSampler
from aepo.sampling.vllm_local import LocalVLLMBackend
from aepo.sampling.vllm_server import ServerVLLMBackend
from tests.sampling.test_hf import request

from . import standin
from .models import KINDS, logprob_error, tiny
from .server import serving
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
        assert calls.count("aepo_update") > 3
    checksums = engine._call("compute_weight_checksums", {})
    with engine._new_scratch(other.model) as folder:
        other.save_merged(folder)
        engine._call("aepo_load", {"folder": folder})
    assert engine._call("compute_weight_checksums", {}) == checksums
    engine._forget()
    by_files = run(sampler, requests)
    assert [c.tokens for c in by_files] == [c.tokens for c in completions]
    assert torch.tensor([c.logprobs[0] for c in by_files]).allclose(torch.tensor([c.logprobs[0] for c in completions]))


def only(kind: str) -> None:
    if kind != next(iter(KINDS)):
        pytest.skip("one model's engine is enough")


def test_a_dead_engine_is_started_again_with_the_weights_that_were_sent_last(engine, kind):
    only(kind)
    sampler, other = VLLMSampler(engine, eos_token_ids=[EOS]), tiny(kind, seed=4)
    sampler.refresh(other)
    assert engine._scratch is None  # no second copy of the model stays in memory
    kill(engine)
    assert logprob_error(other.model, run(sampler, mixed(5))) < 1e-4
    last = tiny(kind, seed=5)
    sampler.refresh(last)
    assert engine._sent is last and logprob_error(last.model, run(sampler, mixed(5))) < 1e-4


def test_files_are_taken_where_weights_arrive_with_other_values_and_the_choice_is_open(engine, kind, monkeypatch):
    only(kind)
    sampler, other = VLLMSampler(engine, eos_token_ids=[EOS]), tiny(kind, seed=6)
    sampler.refresh(other)
    engine._transfer = None  # the next transfer is compared again

    def wrong(self):
        for name, tensor in self.policy.merged_weights():
            yield name, tensor + (1e-3 if name == "model.norm.weight" else 0)

    monkeypatch.setattr(vllm_transfer.Source, "__iter__", wrong)
    monkeypatch.setattr(engine, "_must", False)  # weights=auto
    with pytest.warns(RuntimeWarning, match="through files from now on: its weights differ"):
        sampler.refresh(other)
    assert logprob_error(other.model, run(sampler, mixed(5))) < 1e-4
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        last = tiny(kind, seed=7)
        sampler.refresh(last)
    assert logprob_error(last.model, run(sampler, mixed(5))) < 1e-4


# --- nccl, to a server ----------------------------------------------------------------------------------------


def test_a_server_gets_weights_without_a_common_folder(standins, tmp_path, monkeypatch):
    kind = next(iter(KINDS))
    monkeypatch.setattr(vllm_transfer, "gpu", lambda device: "the trainer's")
    monkeypatch.setenv("VLLM_HOST_IP", "127.0.0.1")
    tiny(kind, seed=0).save_merged(tmp_path / "model")
    more = ("--weight-transfer-config", '{"backend": "nccl"}')
    with serving(tmp_path / "model", tmp_path / "log", *more, extension=standin.Extension) as url:
        backend = ServerVLLMBackend(url, weights="nccl")
        sampler = VLLMSampler(backend, eos_token_ids=[EOS])
        requests = [*mixed(5), request(LONGER_THAN_A_BLOCK, 20, 1.0, 9)]
        assert logprob_error(tiny(kind, seed=0).model, run(sampler, requests)) < 1e-4
        for seed in (1, 2):
            other = tiny(kind, seed)
            sampler.refresh(other)
            assert logprob_error(other.model, run(sampler, requests)) < 1e-4
        backend.close()
        again = tiny(kind, seed=3)  # another trainer connects
        sampler.refresh(again)
        assert logprob_error(again.model, run(sampler, requests)) < 1e-4
        monkeypatch.setattr(vllm_transfer, "gpu", lambda device: "")
        backend.close()
        with pytest.raises(InvalidValue, match=r"^sampling.weights: got 'nccl'; must be .*vLLM is on the policy's GPU"):
            sampler.refresh(again)
    slow = ServerVLLMBackend(url, weights="nccl", timeout=0.2)
    monkeypatch.setattr(slow, "_send", lambda policy: __import__("time").sleep(2))
    with pytest.raises(RuntimeError, match=r"did not take the weights in 0.2 s"):
        slow.refresh(again)


def test_vllms_receiver_of_nccl_gets_every_weight_from_vllms_sender(standins, monkeypatch):
    """Both of vLLM's engines in this process, one in a thread; the worker's model only keeps what it shall load."""
    from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

    monkeypatch.setattr(vllm_transfer, "gpu", lambda device: "the trainer's")
    monkeypatch.setenv("VLLM_HOST_IP", "127.0.0.1")
    loaded: dict[str, torch.Tensor] = {}
    model = SimpleNamespace(load_weights=lambda weights: loaded.update((name, x.clone()) for name, x in weights))
    parallel = SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)
    config = SimpleNamespace(parallel_config=parallel, model_config=None)
    worker = NCCLWeightTransferEngine(SimpleNamespace(backend="nccl"), config, torch.device("cpu"), model)
    facts = {"gpu": "", "dtypes": ["bfloat16"], "quantization": None, "replicas": 1, "backend": "nccl"}
    methods = {
        "aepo_facts": lambda: facts,
        "init_weight_transfer_engine": lambda init_info: worker.init_transfer_engine(worker.parse_init_info(init_info)),
        "update_weights": lambda update_info: worker.update_weights(update_info),
    }
    called: list[str] = []

    def call(method, arguments):
        called.append(method)
        return [methods.get(method, lambda: None)(**json.loads(json.dumps(arguments)))]  # as over HTTP

    policy = tiny("qwen3 untied", seed=0)
    transfer = vllm_transfer.Transfer("nccl", call, policy)
    for seed in (0, 1):
        loaded.clear()
        other = tiny("qwen3 untied", seed)
        transfer.send(other)
        expected = dict(other.merged_weights())
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[name], weight.bfloat16()) for name, weight in expected.items())
    round_trip = ["start_weight_update", "update_weights", "finish_weight_update", "aepo_repack"]
    assert called == ["aepo_facts", "init_weight_transfer_engine", *round_trip * 2]
    transfer.close()
