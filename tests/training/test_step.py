import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from aepo.config import Config, make_config
from aepo.engines.collate import collate
from aepo.errors import InvalidValue
from aepo.methods import METHODS
from aepo.model import policy as policy_module
from aepo.model import shared
from aepo.model.policy import Policy
from aepo.tasks import Paths, Task
from aepo.training import runner
from aepo.training.checkpoint import TrainState, steps_saved
from aepo.training.evaluate import evaluate
from aepo.training.progress import RunLog
from aepo.training.step import Run, make_optimizer, minibatches, train_step
from aepo.types import Completion, Prompt, Rollout, Sample
from tests import builders as b

SMALL = [
    "threads=1",
    "sampling.prompts=6",
    "sampling.group_size=4",
    "optimizer.minibatches=2",
    "evaluation.every=2",
    "evaluation.prompts=4",
    "evaluation.samples=4",
    "checkpoint.every=2",
]
WALL_CLOCK = ("seconds", "seconds_cpu", "seconds_sampling", "seconds_scoring", "seconds_update")


# The updates of the built-in model, for a model of its size in a folder.
BUILTIN = ("optimizer.lr=3e-4", "optimizer.warmup=0")


def small(model: Path, method: str = "aepo", steps: int = 5, *settings: str) -> Config:
    return make_config(method=method, settings=[*SMALL, *BUILTIN, f"model='{model}'", f"steps={steps}", *settings])


def make_run(config: Config) -> Run:
    policy = Policy.load(config.model)
    sampler = runner.make_sampler(policy, config)
    return Run(config, config.algorithm, config.task, policy, sampler, make_optimizer(policy, config.optimizer))


def metrics(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in WALL_CLOCK} for row in rows]


def weights(run: Path, step: int) -> dict:
    return load_file(run / "checkpoints" / f"step-{step}" / "model.safetensors")


def same_weights(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("method", METHODS)
def test_every_preset_trains_and_fills_its_folder(method, quick_model, tmp_path, monkeypatch):
    # The quick model is hardly ever right; a verdict that it often gets makes every method do its work.
    monkeypatch.setattr(Paths, "reward", lambda self, problem, text, truncated: float(len(text.split()) % 2))
    runner.start(small(quick_model, method, 3), tmp_path / "run", quiet=True)
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(0 < row["entropy"] < 6 and (row["mismatch"] or 0) < 1e-3 for row in rows)
    assert rows[-1]["evaluation"]["samples"] == 4
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        *("config.toml", "environment.json", "metrics.jsonl", "samples.jsonl", "evaluations.jsonl", "checkpoints"),
        *("plot.png", "plot.svg", ".lock"),
    }
    assert Policy.load(tmp_path / "run" / "checkpoints" / "step-3").model.config.model_type == "qwen3"


def test_the_same_seed_gives_the_same_run_and_another_seed_another(quick_model, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        runner.start(small(quick_model, "aepo", 3, f"seed={seed}"), tmp_path / name, quiet=True)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b") != metrics(tmp_path / "c")
    assert same_weights(weights(tmp_path / "a", 3), weights(tmp_path / "b", 3))


def test_killed_at_any_moment_a_resumed_run_ends_as_if_it_never_was(quick_model, tmp_path):
    """SIGKILL at several moments, resume each time; weights and metrics are bit-equal to an undisturbed run."""
    settings = [part for setting in [*SMALL, f"model='{quick_model}'"] for part in ("--set", setting)]
    command = [sys.executable, "-m", "aepo", "train", "--steps", "12", *settings]
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, stdout=subprocess.DEVNULL)
    killed = tmp_path / "killed"
    kills = 0
    for rows_before in (1, 4, 7):
        arguments = ["--resume", str(killed)] if killed.exists() else ["--out", str(killed), *command[4:]]
        process = subprocess.Popen([*command[:4], *arguments], stdout=subprocess.DEVNULL)
        while process.poll() is None and _count(killed / "metrics.jsonl") < rows_before:
            time.sleep(0.01)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == 3
    subprocess.run([*command[:4], "--resume", str(killed)], check=True, stdout=subprocess.DEVNULL)
    assert metrics(killed) == metrics(tmp_path / "whole")
    assert (killed / "samples.jsonl").read_text() == (tmp_path / "whole" / "samples.jsonl").read_text()
    assert same_weights(weights(killed, 12), weights(tmp_path / "whole", 12))


def _count(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_checkpoints_are_pruned_but_the_best_stays(quick_model, tmp_path):
    config = small(quick_model, "grpo", 9, "checkpoint.every=1", "checkpoint.keep=2", "evaluation.every=3")
    runner.start(config, tmp_path / "run", quiet=True)
    scores = {row["step"]: row["evaluation"]["pass@1"] for row in metrics(tmp_path / "run") if "evaluation" in row}
    best = max(scores, key=lambda step: (scores[step], -step))
    assert steps_saved(tmp_path / "run") == sorted({8, 9, best})


# --- one step -----------------------------------------------------------------------------------------------


def test_tempered_rows_never_enter_the_sensor(quick_model):
    """The same step with and without extra rows measures the same entropy, whatever their temperature."""
    plain = make_run(small(quick_model, "grpo"))
    _, row, _ = train_step(plain, TrainState())
    hot = make_run(small(quick_model, "aepo", 5, "control.start=hot", "control.draw=all"))
    state = TrainState(control=hot.algorithm.control.initial_state())
    _, hot_row, samples = train_step(hot, state)
    assert hot_row["extra_completions"] == 24 and hot_row["extra_temperature"] == 1.5
    assert {s.rollout.completion.temperature for s in samples if s.extra} <= {1.5}
    assert hot_row["entropy"] == pytest.approx(row["entropy"], abs=1e-5)
    assert hot_row["reward"] == row["reward"]


def test_microbatches_change_memory_not_the_step(quick_model):
    after = []
    for size in ("none", 5):
        run = make_run(small(quick_model, "entropy-reg", 5, f"optimizer.microbatch={size}", "optimizer.minibatches=1"))
        train_step(run, TrainState())
        after.append(torch.cat([p.detach().flatten() for p in run.policy.model.parameters()]))
    torch.testing.assert_close(after[0], after[1], atol=2e-6, rtol=0)


def test_minibatches_hold_every_trained_row_once_and_spread_the_extra_ones():
    samples = [b.sample(0.0, extra=i >= 20) for i in range(28)]
    samples[3] = replace(samples[3], trained=False)
    batch = b.scored(samples).batch
    parts = minibatches(batch, 4, b.step().generator("test"))
    assert sorted(torch.cat(parts).tolist()) == [i for i in range(28) if i != 3]
    assert [batch.extra[part].sum().item() for part in parts] == [2, 2, 2, 2]
    kept = minibatches(batch, 4, None)
    assert torch.cat(kept).tolist() == [i for i in range(28) if i != 3]
    assert [batch.extra[part].sum().item() for part in kept] == [0, 0, 2, 6]


def test_minibatches_of_whole_prompts_spread_those_with_extra_rows():
    """Six prompts of three rows, two of them with an extra row."""
    samples = []
    for group in range(6):
        prompt = Prompt(str(group), (group, 7), {})
        for row in range(4 if group in (1, 4) else 3):
            completion = Completion(prompt, group, 1.0, (5,), (-1.0,), truncated=True)
            samples.append(Sample(Rollout(completion, 0.0), 0.0, extra=row == 3, trained=not (group == 5 and row == 0)))
    batch = collate(samples, 0)
    parts = minibatches(batch, 2, b.step().generator("test"), whole=True)
    assert sorted(torch.cat(parts).tolist()) == [i for i, sample in enumerate(samples) if sample.trained]
    assert [batch.extra[part].sum().item() for part in parts] == [1, 1]
    assert not set(batch.groups[parts[0]].tolist()) & set(batch.groups[parts[1]].tolist())
    drawn = [minibatches(batch, 2, torch.Generator().manual_seed(seed), whole=True) for seed in range(8)]
    assert len({tuple(sorted(tuple(part.tolist()) for part in parts)) for parts in drawn}) > 2
    assert len(minibatches(batch, 7, b.step().generator("test"), whole=True)) == 7  # fewer prompts: rows are spread


@pytest.mark.parametrize("method", ["grpo", "aepo", "entropy-reg"])
def test_a_shared_prompt_changes_no_step(quick_model, tmp_path, monkeypatch, method):
    """The prompts are long and equal within a group; the sizes are those of a run."""
    found, packs = [], []
    original = shared.shared_hidden
    monkeypatch.setattr(policy_module, "shared_hidden", lambda *a: packs.append(len(a[2])) or original(*a))
    rows = [{"prompt": f"{'1 + ' * (9 + n)}1 =", "answer": str(10 + n)} for n in range(6)]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["task=data", f"task.train={data}", "task.max_response=6", "sampling.prompts=4", "sampling.group_size=4"]
    given += ["optimizer.minibatches=1", "optimizer.microbatch=8", f"model={quick_model}", "evaluation.every=0"]
    for share in ("false", "true"):
        out = tmp_path / share
        runner.start(
            make_config(method=method, settings=[*given, "steps=2", f"policy.share_prompts={share}"]), out, True
        )
        found.append((metrics(out), weights(out, 2)))
        assert bool(packs) is (share == "true")
    for plain, packed in zip(found[0][0], found[1][0], strict=True):
        assert packed["entropy"] == pytest.approx(plain["entropy"], abs=1e-5)
        assert packed["gradient_norm"] == pytest.approx(plain["gradient_norm"], rel=1e-3, abs=1e-6)


def test_a_run_that_shares_goes_on_as_if_it_had_not_stopped(quick_model, tmp_path):
    settings = ["policy.share_prompts=true", "optimizer.minibatches=2", "checkpoint.every=1"]
    runner.start(small(quick_model, "aepo", 4, *settings), tmp_path / "whole", quiet=True)
    runner.start(small(quick_model, "aepo", 2, *settings), tmp_path / "cut", quiet=True)
    runner.resume(tmp_path / "cut", quiet=True, settings=["steps=4"])
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert same_weights(weights(tmp_path / "cut", 4), weights(tmp_path / "whole", 4))


def test_replaced_rows_are_measured_and_not_trained_on(quick_model):
    run = make_run(small(quick_model, "aepo", 5, "control.join=replace", "control.start=hot", "control.draw=all"))
    state = TrainState(control=run.algorithm.control.initial_state())
    _, row, samples = train_step(run, state)
    assert sum(not s.extra for s in samples) == 24  # all ordinary rows are there for the sensor
    assert sum(s.trained for s in samples) == 24
    assert row["extra_used"] == sum(s.extra for s in samples)


def test_an_entropy_bonus_raises_entropy_and_its_negative_lowers_it(quick_model):
    """Signs, end to end: the same steps with + and - coefficient end far apart on the right sides."""
    ends = {}
    for coefficient in (1.0, -1.0):
        run = make_run(small(quick_model, "entropy-reg", 5, f"control.coefficient={coefficient}", "optimizer.lr=3e-3"))
        state = TrainState()
        for _ in range(8):
            state, row, _ = train_step(run, state)
        ends[coefficient] = row["entropy"]
    assert ends[1.0] > ends[-1.0] + 0.2


class Flaky:
    """A task whose verifier raises on some completions and returns NaN on others."""

    def __init__(self, task, always: bool = False) -> None:
        self._task, self._always, self._calls = task, always, 0

    def __getattr__(self, name: str):
        return getattr(self._task, name)

    def judge(self, *items):
        return Task.judge(self, *items)

    def reward(self, problem, text, truncated):
        self._calls += 1
        if self._always or self._calls % 5 == 0:
            raise RuntimeError("no verdict")
        return float("nan") if self._calls % 5 == 1 else self._task.reward(problem, text, truncated)


def test_a_reward_that_raises_or_is_nan_is_counted_and_left_out(quick_model):
    run = make_run(small(quick_model, "grpo"))
    _, row, samples = train_step(replace(run, task=Flaky(run.task)), TrainState())
    assert row["reward_failures"] == 9 and len(samples) == 15 and row["completions"] == 24
    assert row["gradient_norm"] == row["gradient_norm"]


def test_a_reward_that_fails_in_evaluation_is_counted(quick_model):
    run = make_run(small(quick_model, "grpo"))
    result = evaluate(run.policy, run.sampler, Flaky(run.task), problems=5, samples=4)
    assert result.reward_failures == 8 and result.row()["reward_failures"] == 8


def test_a_refused_start_leaves_no_folder_behind(tmp_path):
    with pytest.raises(InvalidValue, match="^model: got"):
        runner.start(make_config(settings=[f"model='{tmp_path}'"]), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_step_whose_rewards_all_fail_trains_nothing_and_says_why(quick_model):
    run = make_run(small(quick_model, "grpo"))
    before = torch.cat([p.detach().flatten().clone() for p in run.policy.model.parameters()])
    state, row, samples = train_step(replace(run, task=Flaky(run.task, always=True)), TrainState())
    assert (state.step, state.position, samples) == (1, 6, []) and row["reward"] is None and row["trained"] == 0
    assert row["reward_failures"] == 24
    assert torch.equal(before, torch.cat([p.detach().flatten() for p in run.policy.model.parameters()]))


# --- bad input ----------------------------------------------------------------------------------------------


def aepo(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "aepo", *arguments], capture_output=True, text=True, cwd=cwd, timeout=120
    )


def refused(result: subprocess.CompletedProcess, words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert words in result.stderr and len(result.stderr.strip().splitlines()) == 1, result.stderr


def test_bad_input_ends_in_one_line_and_code_2_before_any_work(quick_model, tmp_path):
    refused(aepo("train", "--set", "control.distribution.low=-1", cwd=tmp_path), "distribution.low: got -1.0")
    assert list(tmp_path.iterdir()) == []
    refused(aepo("train", "--set", f"model='{tmp_path}'", "--out", "run", cwd=tmp_path), "model: got")
    refused(aepo("train", "--resume", "nowhere", cwd=tmp_path), "resume: got 'nowhere'")


def test_a_run_is_never_overwritten(quick_model, tmp_path):
    runner.start(small(quick_model, "grpo", 1), tmp_path / "run", quiet=True)
    with pytest.raises(InvalidValue, match="out: got .* go on with: aepo train --resume"):
        runner.start(small(quick_model, "grpo", 1), tmp_path / "run", quiet=True)


@pytest.mark.parametrize("file", ["state.json", "optimizer.safetensors", "model.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_corrupt_checkpoint_is_named(file, damage, quick_model, tmp_path):
    runner.start(small(quick_model, "grpo", 2), tmp_path / "run", quiet=True)
    path = tmp_path / "run" / "checkpoints" / "step-2" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]) if damage == "cut" else path.unlink()
    with pytest.raises(InvalidValue, match="step-2"):
        runner.resume(tmp_path / "run", quiet=True)


@pytest.mark.parametrize("limit", [4_000, 40_000])
def test_a_disk_that_takes_no_more_ends_in_one_line_and_loses_nothing(limit, quick_model, tmp_path):
    """A limit on file size makes real writes fail: of the log (4 kB), of the checkpoint's weights (40 kB)."""
    run = tmp_path / "run"
    settings = [part for setting in [*SMALL, f"model='{quick_model}'"] for part in ("--set", setting)]
    script = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0})); sys.argv[0] = 'aepo'; "
    script = script.format(limit) + "from aepo.__main__ import main; main()"
    arguments = [sys.executable, "-c", script, "train", "--steps", "12", "--out", str(run), *settings]
    refused(subprocess.run(arguments, capture_output=True, text=True, timeout=120), "cannot be written")
    subprocess.run([sys.executable, "-m", "aepo", "train", "--resume", str(run)], check=True, capture_output=True)
    assert [row["step"] for row in metrics(run)] == list(range(1, 13))


def test_an_alarm_is_said(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    with RunLog(tmp_path / "run", make_config(settings=["steps=60"]), 0) as log:
        for number in range(1, 61):
            row = {
                "step": number, "entropy": 0.2, "target_entropy": 0.9, "error": 0.7, "reward": 0.5, "command": 1.0,
                "saturated": 1.0, "alarm": number == 30, "extra_completions": 0, "seconds": 0.1,
            }  # fmt: skip
            log.step(row, [])
    assert capsys.readouterr().out.count("alarm: the control has been at its limit for 20 steps") == 1
