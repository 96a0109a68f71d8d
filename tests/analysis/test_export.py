"""`aepo export`: a plain folder that gives the run's greedy answers, its card, and the hub."""

import json
import sys

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from aepo import cli
from aepo.analysis.export import export
from aepo.errors import InvalidValue
from aepo.model.policy import Policy
from aepo.training import runner
from tests.training.test_step import small


@pytest.fixture(scope="module")
def runs(quick_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runner.start(small(quick_model, "aepo", 3), folder / "full", quiet=True)
    # The entropy bonus moves the weights even where no answer is right.
    lora = small(quick_model, "entropy-reg", 3, "policy.lora_rank=4", "optimizer.lr=1e-2")
    runner.start(lora, folder / "lora", quiet=True)
    return folder


def greedy(model, tokenizer, prompt: str) -> list[int]:
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False).input_ids])
    return model.generate(ids, do_sample=False, max_new_tokens=12)[0].tolist()


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_folder_gives_the_runs_greedy_answers_without_peft(kind, runs, quick_model, tmp_path, monkeypatch, capsys):
    checkpoint = runs / kind / "checkpoints" / "step-3"
    policy = Policy.load(checkpoint)
    out = export(runs / kind, tmp_path / "out", None, None, None)
    said = capsys.readouterr().out
    assert f"written: {out} (step 3, " in said and ("LoRA merged" in said) == (kind == "lora")
    monkeypatch.setitem(sys.modules, "peft", None)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert not list(out.glob("adapter*")) and model.dtype == torch.float32
    assert model.generation_config.eos_token_id == policy.eos_token_ids[0]
    assert not list(tmp_path.glob(".*"))
    problems = runner.make_config(runs / kind / "config.toml").task.eval_problems(6)
    answers = [greedy(model, tokenizer, problem.text) for problem in problems]
    assert answers == [greedy(policy.model, policy.tokenizer, problem.text) for problem in problems]
    ids = torch.tensor([list(policy.encode(problems[0].text))])
    base = AutoModelForCausalLM.from_pretrained(quick_model)
    if kind == "lora":  # so the adapter is not lost
        assert (model(ids).logits - base(ids).logits).abs().max() > 0.1
    torch.testing.assert_close(model(ids).logits, policy.model(ids).logits, atol=1e-5, rtol=1e-5)


def test_the_weights_have_the_dtype_that_was_asked_for(runs, tmp_path):
    out = export(runs / "lora" / "checkpoints" / "step-3", tmp_path / "out", None, "bf16", None)
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert "bf16" in (out / "README.md").read_text()


def test_the_card_says_how_the_model_was_made_and_no_path_of_this_machine(runs, quick_model, tmp_path):
    out = export(runs / "full", tmp_path / "out", None, None, None)
    text = (out / "README.md").read_text()
    rows = [json.loads(line) for line in (runs / "full" / "metrics.jsonl").read_text().splitlines()]
    for said in (
        f"| base model | {quick_model.name} (all weights, float32) |",
        "| method | aepo |",
        "| entropy target | 0.6x |",
        "| data | the task paths |",
        "| reward | the task's own |",
        "| steps | 3 of 3, each ",
        "aepo 0.1.0",
        "arxiv.org/abs/2510.08141",
        f"| reward, first step | {rows[0]['reward']:.3f} |",
        f"| pass@1 after step 3 | {rows[2]['evaluation']['pass@1']:.3f} |",
        "library_name: transformers",
    ):
        assert said in text
    assert "learning rate | " in text and str(tmp_path.parent) not in text and str(quick_model.parent) not in text


def test_the_card_of_data_names_the_file_its_digest_and_the_judge(runs, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    text = (runs / "full" / "config.toml").read_text()
    head, _, tail = text.partition("[task]")
    tail = tail[tail.index("\n[") :]
    task = (
        '[task]\nname = "data"\ntrain = "/home/me/mine.jsonl"\nheld_out = 8\nrewards = ["/home/me/r.py:f", "graded"]\n'
    )
    (run / "config.toml").write_text(f"{head}{task}reward_weights = [1.0, 0.5]\n{tail}")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step-3").symlink_to(runs / "full" / "checkpoints" / "step-3")
    # The data is gone, which the ends of completions do not need.
    text = (export(run, tmp_path / "out", None, None, None) / "README.md").read_text()
    assert "| data | mine.jsonl; evaluated on 4 rows of it |" in text
    assert "| reward | 1 r.py:f + 0.5 graded |" in text and "/home/me" not in text


def command(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["aepo", "export", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as end:
        return end.code or 0
    return 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["nowhere"], "RUN: got 'nowhere'; must be a run folder"),
        (["full", "--step", "7"], "--step: got 7; must be a step with a checkpoint: "),
        (["full", "--to", "taken"], "--to: got 'taken'; must be a new or an empty folder"),
        (["full", "--to", "taken/file"], "--to: got 'taken/file'; must be a new or an empty folder"),
        (["fresh"], "RUN: got 'fresh'; must be a run with a checkpoint"),
        (["full/checkpoints/step-3", "--step", "3"], "--step: got 3; must be left out"),
        (["full", "--private"], "--private: got True; must be given together with --push"),
    ],
)
def test_refusals_are_one_line(arguments, line, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").symlink_to(runs / "full")
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / "config.toml").write_text("steps = 3\n")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    assert command(monkeypatch, *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"aepo: {line}") and len(said.splitlines()) == 1
    assert (tmp_path / "taken" / "file").read_text() == "mine"


def test_a_folder_is_pushed_and_a_hub_that_refuses_is_one_line(runs, tmp_path, monkeypatch, capsys):
    calls = []

    class Api:
        def create_repo(self, name, private, exist_ok):
            calls.append(("create", name, private, exist_ok))
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{name}")

        def upload_folder(self, folder_path, repo_id, commit_message):
            assert (folder_path / "README.md").exists() and (folder_path / "model.safetensors").exists()
            calls.append(("upload", repo_id))
            if repo_id == "me/closed":
                raise OSError("403 Forbidden\nand more")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert command(monkeypatch, runs / "full", "--to", tmp_path / "a", "--push", "me/mine", "--private") == 0
    assert calls == [("create", "me/mine", True, True), ("upload", "me/mine")]
    assert "pushed: https://huggingface.co/me/mine" in capsys.readouterr().out
    assert command(monkeypatch, runs / "full", "--to", tmp_path / "b", "--push", "me/closed") == 2
    said = capsys.readouterr().err
    assert "--push: got 'me/closed'" in said and "(403 Forbidden)" in said and len(said.splitlines()) == 1
    assert (tmp_path / "b" / "README.md").exists()


def test_a_hub_without_a_network_is_one_line(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    with pytest.raises(InvalidValue, match=r"--push: got 'me/mine'; must be OWNER/NAME of a repository") as error:
        export(runs / "full", tmp_path / "out", None, None, "me/mine")
    assert len(str(error.value).splitlines()) == 1
