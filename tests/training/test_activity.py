"""What is told while a step works."""

from __future__ import annotations

import io
import re
import sys

import pytest

from aepo import bars
from aepo.config import make_config
from aepo.model import builtin
from aepo.planning.calibrate import calibration_config, measure
from aepo.training import activity as under_test
from aepo.training import progress, runner
from aepo.training.activity import Activity
from aepo.training.checkpoint import TrainState
from aepo.training.progress import RunLog
from aepo.training.step import train_step

from .test_step import make_run, small


def test_a_step_tells_each_of_its_parts_up_to_the_last_row(quick_model, monkeypatch):
    run = make_run(small(quick_model, "grpo", 1, "optimizer.microbatch=3"))
    monkeypatch.setattr(under_test, "OFTEN", 0.0)
    seen: list[tuple[str, int, int]] = []
    run.activity.show = lambda *what: seen.append(what)
    run.sampler.report = run.activity.at
    train_step(run, TrainState(control=run.config.control.initial_state()))
    assert list(dict.fromkeys(what for what, _, _ in seen)) == ["sampling", "rewards", "scoring", "update"]
    for name in ("sampling", "scoring", "update"):
        counts = [(done, rows) for what, done, rows in seen if what == name]
        assert counts == sorted(counts) and counts[-1][0] == counts[-1][1] > 0, name


def test_reports_are_rare(monkeypatch):
    monkeypatch.setattr(under_test, "OFTEN", 60.0)
    seen: list[int] = []
    activity = Activity()
    activity.show = lambda what, done, rows: seen.append(done)
    activity.begin("sampling", 100)
    for _ in range(100):
        activity.advance(1)
    assert seen == [0]


def test_without_a_terminal_a_long_step_says_what_it_does(quick_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    (tmp_path / "run").mkdir()
    with RunLog(tmp_path / "run", small(quick_model), 0) as log:
        log.activity("sampling", 0, 24)
        log.activity("sampling", 7, 24)
    assert capsys.readouterr().out == "  sampling: 7 of 24 rows\n"


def test_an_evaluation_counts_all_its_rows_and_not_those_of_a_part(quick_model, monkeypatch):
    monkeypatch.setattr(under_test, "OFTEN", 0.0)
    run = make_run(small(quick_model, "grpo", 1, "evaluation.prompts=5", "evaluation.samples=2048"))
    seen: list[tuple[str, int, int]] = []
    run.activity.show = lambda *what: seen.append(what)
    run.sampler.report = run.activity.at
    runner._evaluate(run)
    counts = [done for _, done, _ in seen]
    assert {(what, rows) for what, _, rows in seen} == {("evaluation", 5 * 2048)}
    assert counts == sorted(counts) and counts[-1] == 5 * 2048


def test_a_long_part_of_a_step_shows_the_time_that_it_has_left(quick_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    (tmp_path / "run").mkdir()
    with RunLog(tmp_path / "run", small(quick_model), 0) as log:
        now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: now)
        log.activity("evaluation", 0, 400)
        now += 10
        log.activity("evaluation", 100, 400)
    assert capsys.readouterr().out == "  evaluation: 100 of 400 rows, 30 s left\n"


WORK = {
    "evaluation of the base model": lambda model: runner.evaluate_base(small(model)),
    "calibration": lambda model: measure(calibration_config(str(model), "paths", ["threads=1"]), 8, 8),
    "training of the base model": lambda _: runner.model_folder(make_config()),
}


@pytest.fixture
def quick_builtin(tmp_path, monkeypatch):
    """The built-in base model is not in the cache, and quick to train."""
    monkeypatch.setenv("AEPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(builtin, "Pretraining", lambda: builtin.QUICK)


@pytest.mark.parametrize("work", WORK)
def test_elsewhere_lines_say_how_far_the_work_is(work, quick_model, quick_builtin, monkeypatch, capsys):
    monkeypatch.setattr(under_test, "OFTEN", 0.0)
    monkeypatch.setattr(bars, "LINE_EVERY", 0.0)
    monkeypatch.setattr(bars.Bar, "line", lambda bar, text, _: f"{text}: {bar._done} of {bar._total} {bar._unit}")
    WORK[work](quick_model)
    said = "".join(capsys.readouterr()).splitlines()
    assert any(
        re.fullmatch(r"(built-in )?base model: [1-9]\d* of (16|64) completions|.*: \d+ of 30 steps", line)
        for line in said
    )
    assert max(map(len, said)) <= 80


@pytest.mark.parametrize("work", WORK)
def test_on_a_terminal_a_bar_says_how_far_the_work_is(work, quick_model, quick_builtin, monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    for name, value in {"COLUMNS": "80", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    WORK[work](quick_model)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).replace("\r", "\n")
    lines = [line for line in shown.splitlines() if "left" in line]
    assert lines and "base model" in lines[-1] and max(map(len, lines)) <= 80
