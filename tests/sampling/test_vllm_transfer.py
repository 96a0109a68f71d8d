"""What a transfer of weights without files refuses, and what its messages hold; `tests_vllm` runs it with vLLM."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from aepo.config import make_config
from aepo.errors import InvalidValue
from aepo.sampling import vllm_transfer
from aepo.sampling.vllm_local import LocalVLLMBackend
from aepo.sampling.vllm_server import ServerVLLMBackend
from aepo.sampling.vllm_transfer import Client, Source, check_workers, handles, plain_handles
from aepo.training.runner import check_machine

# What torch's `reduce_tensor` gives for a CUDA tensor of bytes, in the order of `rebuild_cuda_tensor`.
HANDLE = (
    *(torch.Tensor, torch.Size([16]), (1,), 0, torch.TypedStorage, torch.uint8, 0, bytes(range(66)), 2**21, 512),
    *(False, b"\x00counter\xff", 3, b"event", True),
)
WORKER = {"gpu": "GPU-1", "dtypes": ["float32"], "quantization": None, "replicas": 1, "backend": "ipc"}


def test_handles_of_memory_cross_json_unchanged():
    there = handles(json.loads(json.dumps(plain_handles({"GPU-1": HANDLE, "GPU-2": HANDLE}))))
    assert there == {"GPU-1": HANDLE, "GPU-2": HANDLE}
    assert hash(there["GPU-1"]) == hash(HANDLE)  # vLLM keeps an open handle by this key


def test_a_message_cannot_name_other_objects_of_torch():
    with pytest.raises(KeyError):
        handles({"GPU-1": [{"torch": "load"}]})


def test_a_sender_reaches_the_workers_method_by_method():
    calls = []
    client = Client(lambda method, arguments: calls.append((method, dict(arguments))) or [])
    client.init_weight_transfer_engine({"packed": True})
    client.start_weight_update()
    client.update_weights({"names": ["a"]})
    info = {"names": ["a"], "ipc_handles": {"GPU-1": HANDLE}, "ipc_handles_pickled": None, "tensor_sizes": [16]}
    client.update_weights(info)
    client.finish_weight_update()
    plain = {"names": ["a"], "ipc_handles": plain_handles({"GPU-1": HANDLE}), "tensor_sizes": [16]}
    assert calls == [
        ("init_weight_transfer_engine", {"init_info": {"packed": True}}),
        ("start_weight_update", {}),
        ("update_weights", {"update_info": {"names": ["a"]}}),
        ("aepo_update", {"update_info": plain}),
        ("finish_weight_update", {}),
        ("aepo_repack", {}),
    ]


def test_floats_are_rounded_to_vllms_dtype_before_they_are_sent():
    weights = {"a": torch.tensor([1.0, 1.001953125, 0.1]), "steps": torch.tensor([3])}
    policy = SimpleNamespace(merged_weights=lambda: iter(weights.items()))
    as_they_are, rounded = dict(Source(policy, None)), dict(Source(policy, torch.bfloat16))
    assert as_they_are["a"] is weights["a"]
    assert torch.equal(rounded["a"], weights["a"].bfloat16()) and rounded["steps"] is weights["steps"]


@pytest.mark.parametrize(
    ("way", "workers", "own", "message"),
    [
        (
            "ipc",
            [{**WORKER, "quantization": "fp8"}],
            "GPU-1",
            r"got 'ipc'; must be files with quantised weights \(fp8\)",
        ),
        ("ipc", [WORKER, WORKER], "GPU-1", r"got 'ipc'; must be files or nccl with 2 workers of vLLM"),
        ("ipc", [{**WORKER, "replicas": 2}], "GPU-1", r"got 'ipc'; must be files or nccl with 2 workers of vLLM"),
        ("ipc", [WORKER], "GPU-2", r"got 'ipc'; must be files or nccl: vLLM is on another GPU than the policy"),
        ("nccl", [WORKER], "GPU-2", r"got 'nccl, and vLLM has ipc'; must be files, or a vLLM .*weight-transfer-config"),
        ("nccl", [{**WORKER, "backend": None}], "GPU-2", r"got 'nccl, and vLLM has None'; must be files, or a vLLM"),
        ("nccl", [WORKER, {**WORKER, "gpu": "GPU-2"}], "GPU-2", r"got 'nccl'; must be files or ipc: .* NCCL refuses"),
    ],
)
def test_a_vllm_that_cannot_take_the_weights_is_refused_in_one_line(way, workers, own, message):
    workers = [{**worker, "backend": way} if "vLLM has" not in message else worker for worker in workers]
    with pytest.raises(InvalidValue, match=f"^sampling.weights: {message}") as error:
        check_workers(way, workers, own)
    assert "\n" not in str(error.value)


def test_a_vllm_that_can_is_not():
    check_workers("ipc", [WORKER], "GPU-1")
    check_workers("nccl", [{**WORKER, "backend": "nccl"}] * 2, "GPU-2")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["sampling.weights=ipc"], "sampling.weights: got 'ipc'; must be files with sampling.engine=hf"),
        (["sampling.weights=auto"], "sampling.weights: got 'auto'; must be files with sampling.engine=hf"),
        (
            ["sampling.engine=vllm", "sampling.weights=ipc", "sampling.server=http://a:1", "sampling.scratch=/tmp"],
            "sampling.weights: got 'ipc'; must be files or nccl with sampling.server",
        ),
        (
            ["sampling.engine=vllm", "sampling.weights=nccl"],
            "sampling.weights: got 'nccl'; must be files or ipc without sampling.server",
        ),
        (
            ["sampling.engine=vllm", "sampling.server=http://a:1", "sampling.weights=files"],
            "sampling.server: got 'http://a:1'; must be given together with .*sampling.scratch",
        ),
    ],
)
def test_settings_that_cannot_work_together_are_refused(settings, message):
    with pytest.raises(InvalidValue, match=f"^{message}"):
        make_config(settings=settings)


def test_nccl_needs_no_common_folder():
    config = make_config(settings=["sampling.engine=vllm", "sampling.server=http://a:1", "sampling.weights=nccl"])
    assert config.sampling.scratch is None


@pytest.mark.parametrize("more", [["sampling.weights=ipc"], ["sampling.weights=nccl", "sampling.server=http://a:1"]])
def test_without_a_gpu_only_files_are_taken(more, monkeypatch):
    config = make_config(settings=["sampling.engine=vllm", "device=cpu", *more])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(InvalidValue, match=r"^sampling.weights: got '(ipc|nccl)'; must be files, or auto, with .* cpu"):
        check_machine(config)


@pytest.fixture
def vllm(monkeypatch):
    """A vLLM that has transfers of weights, as far as looking for it goes."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())


def test_what_excludes_ipc_is_refused_before_vllm_starts(vllm, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for settings, message in (
        ({"tensor_parallel_size": 2}, "with 2 workers"),
        ({"data_parallel_size": 2, "pipeline_parallel_size": 2}, "with 4 workers"),
        ({"quantization": "fp8"}, r"quantised weights \(fp8\)"),
    ):
        with pytest.raises(InvalidValue, match=f"^sampling.weights: got 'ipc'; must be files .*{message}"):
            LocalVLLMBackend(weights="ipc", **settings)
        assert LocalVLLMBackend(weights="auto", **settings)._in_place is False
    assert LocalVLLMBackend(weights="auto")._in_place and LocalVLLMBackend(weights="ipc")._in_place
    assert LocalVLLMBackend()._in_place is False


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (RuntimeError("its weights differ"), RuntimeError, "^vLLM did not take the weights: its weights differ$"),
        (
            InvalidValue("sampling.weights", "ipc", "files"),
            InvalidValue,
            "^sampling.weights: got 'ipc'; must be files$",
        ),
    ],
)
def test_a_transfer_that_fails_is_raised_with_ipc_and_replaced_by_files_with_auto(
    error, raised, message, vllm, monkeypatch
):
    def fail(self, call):
        raise error

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(LocalVLLMBackend, "_watched", fail)
    saved = []
    policy = SimpleNamespace(save_merged=saved.append, model=torch.nn.Linear(1, 1))
    for weights in ("ipc", "auto"):
        backend = LocalVLLMBackend(weights=weights)
        monkeypatch.setattr(backend, "_llm", object())
        monkeypatch.setattr(LocalVLLMBackend, "update", lambda self, folder: None)
        if weights == "ipc":
            with pytest.raises(raised, match=message):
                backend.refresh(policy)
            assert not saved
        else:
            with pytest.warns(RuntimeWarning, match="through files from now on"):
                backend.refresh(policy)
            assert len(saved) == 1 and backend._in_place is False


def test_auto_takes_files_without_a_gpu(vllm, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert LocalVLLMBackend(weights="auto")._in_place is False


def test_a_vllm_without_transfers_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    for make in (lambda: LocalVLLMBackend(weights="ipc"), lambda: ServerVLLMBackend("http://a:1", weights="nccl")):
        with pytest.raises(InvalidValue, match=r"^sampling.weights: got '(ipc|nccl)'; must be files without vLLM 0.32"):
            make()


def test_a_server_without_nccl_needs_a_folder():
    with pytest.raises(InvalidValue, match=r"^scratch: got None; must be a folder with weights=files"):
        ServerVLLMBackend("http://a:1")


def test_the_gpu_of_a_policy_on_a_cpu_has_no_name():
    assert vllm_transfer.gpu(torch.device("cpu")) == ""
