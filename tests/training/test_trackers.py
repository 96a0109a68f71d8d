import importlib.util
import json
import sys

import pytest

from aepo.errors import InvalidValue
from aepo.training import runner
from aepo.training.trackers import BACKENDS, Forward, check_installed, numbers
from tests.training.test_step import metrics, small

FAKE = """
import json, pathlib
LOG = pathlib.Path(__file__).with_name("calls.jsonl")
def note(*call):
    with LOG.open("a") as file:
        file.write(json.dumps(call) + "\\n")
class Run:
    def log(self, values, step):
        note("log", step, values)
    def finish(self):
        note("finish")
def init(**settings):
    note("init", settings)
    return Run()
def log(values, step):
    note("log", step, values)
def finish():
    note("finish")
"""


@pytest.fixture(params=["wandb", "trackio"])
def fake(request, tmp_path, monkeypatch):
    """A package of this name that writes down how it is called."""
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / f"{request.param}.py").write_text(FAKE)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, request.param, raising=False)
    yield request.param, lambda: [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]
    sys.modules.pop(request.param, None)


def test_rows_go_to_the_tracker_and_a_resumed_run_stays_one(fake, quick_model, tmp_path):
    name, calls = fake
    config = small(quick_model, "grpo", 2, f"tracker={name}")
    runner.start(config, tmp_path / "run", quiet=True)
    made, *logged, end = calls()
    assert made[0] == "init" and end == ["finish"]
    assert made[1]["project"] == "aepo" and made[1]["config"]["steps"] == 2 and made[1]["resume"] == "allow"
    rows = metrics(tmp_path / "run")
    assert [(call[1], call[2]["entropy"]) for call in logged] == [(row["step"], row["entropy"]) for row in rows]
    assert logged[1][2]["evaluation/pass@1"] == rows[1]["evaluation"]["pass@1"]
    runner.resume(tmp_path / "run", quiet=True)
    again = [call for call in calls() if call[0] == "init"]
    assert len(again) == 2 and again[0][1]["name"] == again[1][1]["name"] == (tmp_path / "run/tracker.txt").read_text()


def test_tensorboard_for_real(quick_model, tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs: pip install 'aepo[tensorboard]'"
    )
    runner.start(small(quick_model, "grpo", 3, "tracker=tensorboard"), tmp_path / "run", quiet=True)
    found = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    found.Reload()
    rows = metrics(tmp_path / "run")
    events = found.Scalars("entropy")
    assert [event.step for event in events] == [1, 2, 3]
    assert [event.value for event in events] == pytest.approx([row["entropy"] for row in rows])
    assert [event.step for event in found.Scalars("evaluation/pass@1")] == [2, 3]


class Failing:
    def __init__(self, run, settings, first):
        self.closed = 0

    def log(self, step, values):
        raise ConnectionError("no network\nand more")

    def close(self):
        self.closed += 1


def test_a_tracker_that_fails_is_said_once_and_stops_nothing(quick_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(BACKENDS, "tensorboard", Failing)
    runner.start(small(quick_model, "grpo", 3, "tracker=tensorboard"), tmp_path / "run")
    said = capsys.readouterr().out
    assert len(metrics(tmp_path / "run")) == 3
    assert said.count("tracker: tensorboard failed (ConnectionError: no network); the run goes on") == 1
    assert said.count("tensorboard failed 3 times; metrics.jsonl has every row") == 1


def test_a_tracker_that_does_not_even_start(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("no key")

    monkeypatch.setitem(BACKENDS, "wandb", broken)
    said = []
    with Forward("wandb", tmp_path, {}, 0, said.append) as tracker:
        tracker.step({"step": 0, "entropy": 1.0})
    assert tracker.failures == 1 and len(said) == 2 and "no key" in said[0]


def test_a_missing_package_is_one_line_before_anything_starts(quick_model, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "trackio" else found(name))
    with pytest.raises(InvalidValue, match=r"trackio is not installed; .* pip install 'aepo\[trackio\]'") as error:
        runner.start(small(quick_model, "grpo", 1, "tracker=trackio"), tmp_path / "run", quiet=True)
    assert len(str(error.value).splitlines()) == 1 and not (tmp_path / "run").exists()
    check_installed("none")


def test_a_folder_of_its_name_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "notatracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InvalidValue, match="notatracker is not installed"):
        check_installed("notatracker")


def test_golden_numbers_of_a_row():
    row = {"step": 3, "alarm": True, "error": None, "ratio": float("nan"), "evaluation": {"pass@1": 0.5}, "name": "x"}
    assert numbers(row) == {"step": 3.0, "alarm": 1.0, "evaluation/pass@1": 0.5}
