"""The smoke test around its checks: arguments, refusals, runs that end badly. test_runs.py has whole runs of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from aepo.errors import InvalidValue
from aepo.integrations.verl import smoke
from aepo.integrations.verl.__main__ import compose, overrides
from aepo.integrations.verl.settings import get, read, remarks


def composed(tmp_path: Path, steps: int, *given: str):
    return compose(overrides(smoke.arguments("some/model", tmp_path, given, steps)))


def test_its_settings_are_verls_for_one_gpu(tmp_path):
    config = composed(tmp_path, smoke.STOP)
    chosen = read(config)
    assert chosen.method == "aepo" and chosen.evidence == tmp_path / "evidence" and remarks(config) == []
    assert get(config, "trainer.n_gpus_per_node") == 1 and get(config, "actor_rollout_ref.rollout.name") == "vllm"
    reward = get(config, "reward.custom_reward_function")
    assert (reward["path"], reward["name"]) == (smoke.__file__, smoke.compute_score.__name__)


def test_overrides_count_but_not_against_the_checks(tmp_path):
    given = ("actor_rollout_ref.rollout.gpu_memory_utilization=0.3", "trainer.save_freq=99", "aepo.evidence=elsewhere")
    first, second = (composed(tmp_path, steps, *given) for steps in (smoke.STOP, smoke.STEPS))
    assert get(first, "actor_rollout_ref.rollout.gpu_memory_utilization") == 0.3
    assert read(first).evidence == tmp_path / "evidence"
    saves = [(get(each, "trainer.total_training_steps"), get(each, "trainer.save_freq")) for each in (first, second)]
    assert saves == [(2, 2), (4, -1)]


def test_a_run_that_ends_badly_is_no_verdict(tmp_path, monkeypatch, capsys):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no GPU here\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    assert smoke.main(["--model", "some/model", "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[-2:] == ["no GPU here", "verdict: none, because verl ended with status 3 in part 1"]
    assert (tmp_path / "out/sums.parquet").exists()
    with pytest.raises(InvalidValue, match="--out: got .*; must be a new or an empty folder"):
        smoke.main(["--model", "some/model", "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model", "/no/such/folder"], "--model: got '/no/such/folder'; must be a folder that exists"),
        (["--model", "some/model", "--out", __file__], "--out: got .*; must be a new or an empty folder"),
        (["--model", "some/model", "aepo.target=abc"], "control.target: got 'abc'"),
    ],
)
def test_mistakes_are_refused_before_verl_starts(tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidValue, match=told):
        smoke.main(words)
    assert not list(tmp_path.iterdir())


def test_evidence_is_a_folder(tmp_path):
    with pytest.raises(InvalidValue, match=r"^aepo\.evidence: got 3; must be a folder"):
        read(compose(overrides([*smoke.arguments("m", tmp_path, (), 2), "aepo.evidence=3"])))


def test_the_reward_of_the_sums():
    row = smoke.problem(0)
    right = row["reward_model"]["ground_truth"]
    assert smoke.compute_score("sums", f"1 + 2, so it is {right}.", right) == 1.0
    assert smoke.compute_score("sums", f"{right}, or 7", right) == smoke.compute_score("sums", "", right) == 0.0
    assert smoke.problem(0) == row != smoke.problem(1)
