"""What is told while a step works."""

from __future__ import annotations

from aepo.training import activity as under_test
from aepo.training import progress
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
