import importlib.util
import json
import sys
import tomllib
import typing
from pathlib import Path

import pytest

from aepo.config import Config
from aepo.errors import InvalidValue
from aepo.training import runner
from aepo.training.folder import read_rows
from aepo.training.trackers import BACKENDS, Forward, check_installed, numbers
from tests.training.test_step import metrics, small

FAKE = """
import json, pathlib
LOG = pathlib.Path(__file__).with_name("calls.jsonl")
def note(*call):
    with LOG.open("a") as file:
        file.write(json.dumps(call) + "\\n")
def Table(columns, data, **_):
    return {"columns": columns, "data": data}
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
    made, *logged, table, end = calls()
    assert made[0] == "init" and end == ["finish"]
    assert made[1]["project"] == "aepo" and made[1]["config"]["steps"] == 2 and made[1]["resume"] == "allow"
    rows = metrics(tmp_path / "run")
    assert [(call[1], call[2]["entropy"]) for call in logged] == [(row["step"], row["entropy"]) for row in rows]
    assert logged[1][2]["evaluation/pass@1"] == rows[1]["evaluation"]["pass@1"]
    shown, sent = read_rows(tmp_path / "run" / "samples.jsonl"), table[2]["samples"]
    assert table[:2] == ["log", 2] and len(sent["data"]) == len(shown) == 8
    for row, sample in zip(sent["data"], shown, strict=True):
        cells = dict(zip(sent["columns"], row, strict=True))
        assert cells == {key: sample.get(key) for key in cells} and {"prompt_text", "answer"} <= cells.keys()
    runner.resume(tmp_path / "run", quiet=True)
    again = [call for call in calls() if call[0] == "init"]
    assert len(again) == 2 and again[0][1]["name"] == again[1][1]["name"] == (tmp_path / "run/tracker.txt").read_text()


MLFLOW = """
import json, pathlib, types
LOG = pathlib.Path(__file__).with_name("calls.jsonl")
RUNS = {}
def note(*call):
    with LOG.open("a") as file:
        file.write(json.dumps(call) + "\\n")
def info(key):
    return types.SimpleNamespace(info=types.SimpleNamespace(run_id=key))
def set_experiment(name):
    note("experiment", name)
    return types.SimpleNamespace(experiment_id="7")
class MlflowClient:
    def search_runs(self, experiments, query, max_results):
        assert experiments == ["7"]
        return [info(key) for key, name in RUNS.items() if query == f"attributes.run_name = '{name}'"]
def start_run(run_id=None, run_name=None):
    note("start", run_id, run_name)
    if run_id is None:
        run_id = f"id{len(RUNS)}"
        RUNS[run_id] = run_name
    return info(run_id)
def log_params(values):
    note("params", values)
def log_dict(values, file, run_id):
    note("dict", values, file)
def log_metrics(values, step, run_id):
    assert not any("@" in name for name in values)
    note("metrics", step, values)
def log_table(values, file, run_id):
    note("table", values, file)
def end_run():
    note("end")
"""

SWANLAB = (
    FAKE
    + """
import types
class Rows:
    def add(self, headers, rows):
        self.headers, self.rows = headers, rows
echarts = types.SimpleNamespace(Table=Rows)
class Run:
    def log(self, values, step):
        note("log", step, {k: v if k != "samples" else [v.headers, v.rows] for k, v in values.items()})
"""
)


def package(tmp_path, monkeypatch, name, text):
    folder = tmp_path / "packages"
    folder.mkdir()
    (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return lambda: [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]


SAMPLE = {"step": 1, "prompt_text": "2+2=", "completion": "4", "answer": None, "rewards": {"a": 1.0}, "reward": 1.0}


def two_sessions(name, run):
    """A run of two steps that is resumed for one more."""
    run.mkdir()
    for first, steps in ((0, (1, 2)), (2, (3,))):
        with Forward(name, run, {"steps": 9, "control": {"target": "0.6x"}}, first, pytest.fail) as tracker:
            for step in steps:
                tracker.step({"step": step, "evaluation": {"pass@1": 0.5}}, [{**SAMPLE, "step": step}])
        assert tracker.failures == 0


def test_mlflow_gets_parameters_numbers_and_one_table(tmp_path, monkeypatch):
    calls = package(tmp_path, monkeypatch, "mlflow", MLFLOW)
    two_sessions("mlflow", tmp_path / "it's")
    made = calls()
    assert [call[0] for call in made if call[0] == "params"] == ["params"]  # they may not change in a resumed run
    assert ["params", {"steps": "9", "control.target": "0.6x"}] in made and made[0] == ["experiment", "aepo"]
    assert [call[1:] for call in made if call[0] == "start"][1] == ["id0", None]
    assert [call[1:] for call in made if call[0] == "metrics"] == [
        [n, {"evaluation/pass_at_1": 0.5}] for n in (1, 2, 3)
    ]
    first, second = (call[1:] for call in made if call[0] == "table")
    assert first[1] == "samples.json" and first[0]["step"] == [1, 2] and second[0]["step"] == [3]
    assert first[0]["rewards"] == ['{"a": 1.0}'] * 2 and made[-1] == ["end"]


def test_swanlab_gets_numbers_and_tables(tmp_path, monkeypatch):
    calls = package(tmp_path, monkeypatch, "swanlab", SWANLAB)
    two_sessions("swanlab", tmp_path / "my run")
    made = calls()
    starts = [call[1] for call in made if call[0] == "init"]
    assert starts[0]["id"] == starts[1]["id"] and set(starts[0]["id"]) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")
    assert starts[0]["resume"] == "allow" and starts[0]["log_dir"] == str(tmp_path / "my run" / "swanlab")
    assert ["log", 3, {"evaluation/pass@1": 0.5}] in made
    tables = [call[1:] for call in made if call[0] == "log" and "samples" in call[2]]
    assert [step for step, _ in tables] == [2, 3]
    headers, rows = tables[0][1]["samples"]
    assert [dict(zip(headers, row, strict=True))["answer"] for row in rows] == ["", ""]


@pytest.mark.parametrize("name", sorted(set(BACKENDS) - {"wandb"}))
def test_the_real_package_where_it_is_installed(name, tmp_path, monkeypatch):
    pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    two_sessions(name, tmp_path / "run")


def test_every_tracker_can_be_chosen_and_installed():
    choices = typing.get_args(typing.get_type_hints(Config)["tracker"])
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(choices) == {"none", *BACKENDS}
    assert set(BACKENDS) <= set(extras["optional-dependencies"])


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
    (shown,) = found.Tensors("samples/text_summary")
    text = shown.tensor_proto.string_val[0].decode()
    assert text.startswith("| step | prompt") and len(text.splitlines()) == 2 + 3 * 4


class Failing:
    def __init__(self, run, settings, first):
        self.closed = 0

    def log(self, step, values):
        raise ConnectionError("no network\nand more")

    def table(self, step, rows):
        raise ConnectionError("no network")

    def close(self):
        self.closed += 1


def test_a_tracker_that_fails_is_said_once_and_stops_nothing(quick_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(BACKENDS, "tensorboard", Failing)
    runner.start(small(quick_model, "grpo", 3, "tracker=tensorboard"), tmp_path / "run")
    said = capsys.readouterr().out
    assert len(metrics(tmp_path / "run")) == 3
    assert said.count("tracker: tensorboard failed (ConnectionError: no network); the run goes on") == 1
    assert said.count("tensorboard failed 4 times; metrics.jsonl has every row") == 1


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
