"""Prompt and completion beyond the model's positions: train, dry run, calibrate and evaluate say the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from aepo import cli
from aepo.config import PolicyConfig, make_config
from aepo.engines.positions import Room
from aepo.errors import InvalidValue
from aepo.model.policy import Policy
from aepo.planning.calibrate import measure
from aepo.planning.dry_run import dry_run
from aepo.sampling.hf import HFSampler
from aepo.training import runner
from aepo.types import Prompt, Request
from tests.tiny_models import byte_tokenizer, make_model, mismatch

POSITIONS = 32


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    """Learned positions: one token more is an index error."""
    folder = tmp_path_factory.mktemp("gpt2")
    sizes = {"vocab_size": 272, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(**sizes, eos_token_id=256, initializer_range=0.2)).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def short_llama(tmp_path_factory) -> Path:
    """Rotary positions: more of them are computed in silence."""
    return make_model(tmp_path_factory.mktemp("llama"), max_position_embeddings=POSITIONS)


@pytest.fixture(params=["gpt2", "short_llama"])
def model(request) -> Path:
    return request.getfixturevalue(request.param)


def config(model: Path, tmp_path: Path, response: int, *settings: str):
    rows = [{"problem": "x" * length, "answer": "1"} for length in (4, 9, 5, 12, 6, 7, 8, 3)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row | {"problem": f"{i}{row['problem']}"}) + "\n" for i, row in enumerate(rows)))
    given = [f"model={model}", "task=data", f"task.train={file}", "task.style=plain", "task.held_out=2", "steps=1"]
    given += [f"task.max_response={response}", "sampling.prompts=4", "sampling.group_size=2", "evaluation.prompts=2"]
    given += ["evaluation.samples=1", "optimizer.minibatches=1", "device=cpu", *settings]
    return make_config(method="grpo", settings=given)


def evaluated(model: Path, tmp_path: Path, response: int, *options: str) -> None:
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps({"problem": "y" * n, "answer": "1"}) + "\n" for n in (5, 13)))
    command = ["aepo", "evaluate", str(model), "--data", str(file), "--prompt", "plain", "--max-tokens", str(response)]
    command += ["--n", "1", "--temperature", "1", "--device", "cpu", "--out", str(tmp_path / "out"), *options]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command)
        cli.main()


def test_all_refuse_before_the_work_starts(model, tmp_path, capsys):
    long = config(model, tmp_path, 20)
    words = r"^prompt and completion: got '13 \+ 20 tokens'; must be at most the model's 32 positions together; or set"
    for call in (
        lambda: runner.start(long, tmp_path / "run", quiet=True),
        lambda: dry_run(long),
        lambda: measure(long, prompts=2, samples=4),
    ):
        with pytest.raises(InvalidValue, match=words + r" policy.over_length=cut$"):
            call()
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit) as ended:
        evaluated(model, tmp_path, 20)
    assert ended.value.code == 2
    assert "13 + 20 tokens" in (said := capsys.readouterr().err) and "--over-length cut" in said
    assert not (tmp_path / "out").exists()


def test_what_fits_to_the_last_position_runs(model, tmp_path):
    runner.start(config(model, tmp_path, 19), tmp_path / "run", quiet=True)
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["step"] == 0


def test_all_cut_where_they_are_told_to(model, tmp_path, capsys):
    long = config(model, tmp_path, 100, "policy.over_length=cut")
    dry_run(long)
    assert measure(long, prompts=2, samples=4).limit == 100
    runner.start(long, tmp_path / "run", quiet=True)
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert 0 < row["tokens"] <= 8 * (POSITIONS - 4)
    evaluated(model, tmp_path, 100, "--over-length", "cut")
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert found["notes"] == [
        "asked: a completion ends at the model's 32 positions: after the longest prompt it has 19 tokens, not 100"
    ]
    assert found["settings"]["over_length"] == "cut"


def drawn(policy: Policy, room: Room, max_tokens: int, **options):
    sampler = HFSampler(policy.model, eos_token_ids=(), pad_token_id=policy.pad_token_id, room=room, **options)
    prompts = [tuple(range(60, 60 + length)) for length in (3, 20, 31, 9)]
    requests = [Request(Prompt(str(i), tokens, {}), i, 2) for i, tokens in enumerate(prompts)]
    return sampler.sample(requests, max_tokens=max_tokens, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rows", [None, 3])
def test_a_cut_completion_is_the_start_of_the_whole_one(short_llama, rows):
    """The same draws with and without a limit, and each row ends at the last position."""
    policy = Policy.load(short_llama)
    cut = drawn(policy, Room(POSITIONS, "cut"), 40, max_rows=rows)
    whole = drawn(policy, Room(), 40, max_rows=rows)
    for short, long in zip(cut, whole, strict=True):
        assert len(short.prompt.tokens) + len(short.tokens) == POSITIONS and short.truncated
        assert short.tokens == long.tokens[: len(short.tokens)] and len(short.logprobs) == len(short.tokens)


def test_learned_positions_are_never_left(gpt2):
    policy = Policy.load(gpt2, settings=PolicyConfig(over_length="cut"))
    completions = drawn(policy, policy.room, 40)
    assert all(len(c.prompt.tokens) + len(c.tokens) == POSITIONS for c in completions)
    assert mismatch(policy, completions) < 1e-5


def test_the_sampler_refuses_what_no_check_saw(gpt2):
    policy = Policy.load(gpt2)
    with pytest.raises(InvalidValue, match=r"got '31 \+ 2 tokens'|got '20 \+ 13 tokens'"):
        drawn(policy, policy.room, 2)
