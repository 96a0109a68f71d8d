"""Stopping a run, going on with it, and what its folder holds."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from aepo.config import read_toml
from aepo.errors import InvalidValue
from aepo.training import runner
from aepo.training.callbacks import Callback
from aepo.training.checkpoint import steps_saved
from aepo.training.progress import sample_line
from tests.training.test_step import metrics, same_weights, small, weights


class StopAfter(Callback):
    def __init__(self, step):
        self.step, self.evaluations = step, []

    def on_step(self, row):
        return row["step"] == self.step

    def on_evaluation(self, step, evaluation):
        self.evaluations.append(step)


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(quick_model, tmp_path):
    config = small(quick_model, "aepo", 5, "checkpoint.every=0")
    runner.start(config, tmp_path / "whole", quiet=True)
    stop = StopAfter(3)
    runner.start(config, tmp_path / "cut", quiet=True, callbacks=[stop])
    assert steps_saved(tmp_path / "cut") == [3] and stop.evaluations == [0, 2]
    runner.resume(tmp_path / "cut", quiet=True)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert same_weights(weights(tmp_path / "cut", 5), weights(tmp_path / "whole", 5))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_after_the_step_with_a_checkpoint_and_says_how_to_go_on(quick_model, tmp_path, number, status):
    out = tmp_path / "run"
    settings = ["threads=1", "sampling.prompts=4", "evaluation.every=0", "checkpoint.every=0", f"model={quick_model}"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "aepo", "train", "--steps", "100000", "--out", str(out), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    log = out / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (log.exists() and log.read_text().count("\n") >= 2) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    said, _ = process.communicate(timeout=240)
    (step,) = steps_saved(out)
    assert process.returncode == status
    assert said.rstrip().endswith(f"stopped after step {step}; go on with: aepo train --resume {out}")
    assert [row["step"] for row in metrics(out)] == list(range(1, step + 1))


def test_a_finished_run_is_prolonged_and_the_folder_says_so(quick_model, tmp_path):
    runner.start(small(quick_model, "grpo", 2), tmp_path / "run", quiet=True)
    runner.resume(tmp_path / "run", quiet=True, settings=["steps=4", "optimizer.lr=1e-5"])
    runner.start(small(quick_model, "grpo", 4), tmp_path / "whole", quiet=True)
    assert len(metrics(tmp_path / "run")) == 4 and metrics(tmp_path / "run")[:2] == metrics(tmp_path / "whole")[:2]
    assert read_toml(tmp_path / "run" / "config.toml")["steps"] == 4
    change = json.loads((tmp_path / "run" / "changes.jsonl").read_text())
    assert change["after_step"] == 2 and change["settings"] == ["steps=4", "optimizer.lr=1e-5"]
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-4" / "state.json").read_text())
    assert state["step"] == 4


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("seed=3", "a setting that may change in a run"),
        ("control.target=0.1", "a setting that may change in a run"),
        ("steps=1", "steps: got 1; must be at least the 2 steps that are done"),
    ],
)
def test_what_must_not_change_is_refused(quick_model, tmp_path, setting, words):
    runner.start(small(quick_model, "grpo", 2), tmp_path / "run", quiet=True)
    before = (tmp_path / "run" / "config.toml").read_text()
    with pytest.raises(InvalidValue, match=words):
        runner.resume(tmp_path / "run", quiet=True, settings=[setting])
    assert (tmp_path / "run" / "config.toml").read_text() == before


def test_a_folder_without_a_finished_step_is_used_again(quick_model, tmp_path, monkeypatch):
    def boom(*_):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(runner, "train_step", boom)
        runner.start(small(quick_model, "grpo", 2), tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "config.toml").exists()
    runner.start(small(quick_model, "grpo", 2), tmp_path / "run", quiet=True)
    assert len(metrics(tmp_path / "run")) == 2
    with pytest.raises(InvalidValue, match=r"^out: got .*a new folder"):
        runner.start(small(quick_model, "grpo", 2), tmp_path / "run", quiet=True)


def test_the_base_model_is_evaluated_as_step_0_and_checkpoints_come_when_they_are_set(quick_model, tmp_path):
    runner.start(small(quick_model, "grpo", 4, "checkpoint.every=0"), tmp_path / "run", quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 2, 4] and steps_saved(tmp_path / "run") == [4]


def test_a_run_of_version_0_1_is_not_resumed(quick_model, tmp_path):
    runner.start(small(quick_model, "grpo", 2), tmp_path / "run", quiet=True)
    file = tmp_path / "run" / "metrics.jsonl"
    file.write_text(file.read_text().replace('"step": 1,', '"step": 0,'))
    with pytest.raises(InvalidValue, match="version 0.1 counted steps from 0"):
        runner.resume(tmp_path / "run", quiet=True)


def test_the_header_says_what_is_trained_on_what(quick_model, tmp_path, capsys):
    runner.start(small(quick_model, "aepo", 1), tmp_path / "run")
    said = capsys.readouterr().out
    for words in (
        "method: aepo, target at least 0.6x nats; 1 steps of 6 prompts x 4",
        f"model: {quick_model}",
        "M trained, float32 on cpu",
        "a completion ends at",
        "task: paths, the task's own reward; right: reward > 0.5",
        "optimizer: AdamW, lr 0.0003, constant, 2 updates in a step",
        f"folder: {tmp_path / 'run'}",
        "evaluation before training: pass@1",
    ):
        assert words in said, words


def test_a_run_that_begins_again_has_one_evaluation_of_the_base_model(quick_model, tmp_path):
    """A kill after the first step and before the first checkpoint leaves rows, but no checkpoint."""
    config = small(quick_model, "grpo", 2, "checkpoint.every=0")
    runner.start(config, tmp_path / "run", quiet=True)
    before = (tmp_path / "run" / "evaluations.jsonl").read_text()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    runner.resume(tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "evaluations.jsonl").read_text() == before
    assert [json.loads(line)["step"] for line in before.splitlines()] == [0, 2]


def test_ctrl_c_while_the_run_loads_says_how_to_go_on(quick_model, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runner, "probe", interrupted)
        runner.start(small(quick_model, "grpo", 1), tmp_path / "run")
    assert capsys.readouterr().out.endswith(f"stopped; go on with: aepo train --resume {tmp_path / 'run'}\n")
    runner.resume(tmp_path / "run", quiet=True)
    assert len(metrics(tmp_path / "run")) == 1


def test_a_sample_in_the_terminal_holds_nothing_that_a_terminal_obeys():
    sample = {"prompt": "p", "prompt_text": "a\x1b[2Jb", "completion": "c\x07\x9b1md", "reward": 1.0, "temperature": 1}
    assert sample_line(sample) == "    a\ufffd[2Jb -> c\ufffd\ufffd1md  (reward 1)"
