import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aepo.config import PolicyConfig, make_config
from aepo.errors import InvalidValue
from aepo.model.policy import Policy
from tests.tiny_models import (
    byte_tokenizer,
    make_model,
    refused,
)


def test_a_model_without_end_of_sequence_is_refused(tmp_path):
    folder = make_model(tmp_path, tokenizer=byte_tokenizer(eos=None), eos=None)
    refused("^model: got .*; must be one with an end-of-sequence token", folder)


def test_a_tokenizer_with_more_ids_than_the_embedding_is_refused(tmp_path):
    refused(
        r"^model: got .*it has 257, the tokenizer's last id is 257",
        make_model(tmp_path, vocab_size=257, pad_token_id=None),
    )


def test_pickled_weights_are_refused(llama, tmp_path):
    folder = make_model(tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused("^model: got", folder)


def test_a_model_that_lacks_weights_is_refused(tmp_path):
    folder = make_model(tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    refused(r"^model: got .*missing: \['lm_head.weight'\]", folder)


def test_a_model_with_code_of_its_own_is_refused_unless_trusted(tmp_path):
    folder = make_model(tmp_path)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "mine"}
    config["auto_map"] = {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"}
    (folder / "config.json").write_text(json.dumps(config))
    code = "from transformers import LlamaConfig, LlamaForCausalLM\n"
    code += "class MyConfig(LlamaConfig):\n    model_type = 'mine'\n"
    code += "class MyModel(LlamaForCausalLM):\n    config_class = MyConfig\n"
    (folder / "mine.py").write_text(code)
    refused("^model: got .*policy.trust_remote_code=true", folder)
    assert type(Policy.load(folder, settings=PolicyConfig(trust_remote_code=True)).model).__name__ == "MyModel"


def test_flash_attention_that_is_not_there_is_refused(llama):
    if not torch.cuda.is_available():
        refused("^policy.attention: got 'flash_attention_2'", llama, attention="flash_attention_2", dtype="bfloat16")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("dtype=float16", "policy.dtype: got 'float16'; must be one of float32, bfloat16"),
        ("attention=flash_attention_2", "policy.dtype: got 'float32'; must be bfloat16"),
        ("lora_rank=0", "policy.lora_rank: got 0"),
        ("lora_alpha=0", "policy.lora_alpha: got 0"),
        ("lora_targets=q_proj", "policy.lora_targets: got 'q_proj'; must be all-linear, or a list"),
        ("lora_targets=[]", "policy.lora_targets: got"),
    ],
)
def test_bad_settings_are_refused(setting, words):
    with pytest.raises(InvalidValue, match=f"^{words}"):
        make_config(settings=[f"policy.{setting}"])


def test_settings_are_read_and_a_negative_kl_is_refused():
    config = make_config(settings=["policy.lora_targets=['q_proj']", "policy.lora_rank=8", "policy.revision=v1"])
    assert config.policy == PolicyConfig(lora_targets=("q_proj",), lora_rank=8, revision="v1")
    with pytest.raises(InvalidValue, match="^kl_coefficient: got -1.0"):
        make_config(settings=["kl_coefficient=-1"])


# --- the hub -----------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """What huggingface.co answers for files: one model at two revisions, nothing else."""

    folders: dict[str, Path]

    def do_HEAD(self) -> None:
        if self.path.startswith("/api/models/some/model/tree/"):
            return self._answer(404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "No such folder"})
        _, owner, name, *rest = self.path.split("/")
        if (owner, name) != ("some", "model"):
            return self._answer(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        if rest[:1] != ["resolve"] or rest[1] not in self.folders:
            return self._answer(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Revision not found"})
        file = self.folders[rest[1]] / rest[2]
        if not file.is_file():
            return self._answer(404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        commit = {"main": "a", "v1": "b"}.get(rest[1], rest[1][0]) * 40
        return self._answer(200, {"ETag": f'"{commit[:8]}{file.name}"', "X-Repo-Commit": commit}, file.read_bytes())

    do_GET = do_HEAD

    def _answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments) -> None:
        pass


SCRIPT = """
from aepo.errors import InvalidValue
from aepo.config import PolicyConfig
from aepo.model.policy import Policy
for name, revision in (("some/model", None), ("some/model", "v1"), ("some/model", "v2"), ("other/model", None)):
    try:
        print(Policy.load(name, settings=PolicyConfig(revision=revision)).model.config.model_type)
    except InvalidValue as error:
        print(error)
"""


def on_hub(tmp_path, **environment) -> list[str]:
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), **environment}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    return result.stdout.splitlines()


def test_a_model_on_the_hub_is_loaded_at_its_revision_and_a_wrong_name_is_one_line(models, tmp_path):
    folders = {"main": models["llama"], "a" * 40: models["llama"], "v1": models["qwen3"], "b" * 40: models["qwen3"]}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("ThisHub", (Hub,), {"folders": folders}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        lines = on_hub(tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
    assert lines[:2] == ["llama", "qwen3"] and len(lines) == 4
    assert lines[2].startswith("model: got 'some/model'; must be") and "v2" in lines[2]
    assert lines[3].startswith("model: got 'other/model'; must be")


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path):
    lines = on_hub(tmp_path, HF_HUB_OFFLINE="1")
    assert len(lines) == 4 and all(line.startswith("model: got '") for line in lines)


@pytest.mark.parametrize("terminal", [True, False])
def test_downloads_show_their_bars_in_a_terminal_alone(terminal):
    program = "import sys; sys.stderr.isatty = lambda: %r; import aepo.model.loading, huggingface_hub.utils as hub; "
    program += "print(hub.are_progress_bars_disabled())"
    found = subprocess.run([sys.executable, "-c", program % terminal], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(not terminal)
