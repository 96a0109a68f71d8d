import json

import pytest

from aepo.cli import FitLaw, Report, Watch
from aepo.errors import InvalidValue
from aepo.training import runner
from aepo.training.folder import FILES, cut_back, is_number, read_metrics, read_rows
from tests.run_folders import folder, row
from tests.training.test_step import metrics, same_weights, small, weights

HALF = '{"step": 2, "entr'


def broken(path, line: str, place: int):
    """A run of five steps with this line put in before line `place`."""
    run = folder(path, [row(step, 0.5) for step in range(5)])
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines.insert(place - 1, line)
    (run / "metrics.jsonl").write_text("\n".join(lines))
    return run


def test_a_half_written_last_line_is_left_out(tmp_path):
    assert [r["step"] for r in read_rows(broken(tmp_path / "r", HALF, 6) / "metrics.jsonl")] == [0, 1, 2, 3, 4]
    assert read_rows(tmp_path / "nowhere") == []


def test_a_blank_line_holds_nothing(tmp_path):
    assert len(read_metrics(broken(tmp_path / "r", "", 3))) == 5


LINES = {"half": HALF, "list": "[1, 2]", "no step": '{"entropy": 1}', "float": '{"step": 1.0}', "deep": "[" * 10**5}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_any_other_line_is_refused_with_its_file_and_number(tmp_path, line):
    run = broken(tmp_path / "r", line, 3)
    for read in (lambda: read_rows(run / "metrics.jsonl"), lambda: read_metrics(run), lambda: cut_back(run, 4)):
        with pytest.raises(InvalidValue, match=r"metrics.jsonl, line 3: got '.{1,60}'; must be a JSON object") as error:
            read()
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("command", [Watch, lambda run: Report((run,)), lambda run: FitLaw((run,))])
def test_a_broken_line_in_the_middle_is_no_shorter_run(tmp_path, command):
    with pytest.raises(InvalidValue, match="line 3"):
        command(broken(tmp_path / "r", HALF, 3)).run()


def test_cutting_back_changes_nothing_where_a_file_is_broken(tmp_path):
    run = broken(tmp_path / "r", HALF, 6)
    (run / "samples.jsonl").write_text(f"{HALF}\n{json.dumps({'step': 0})}\n")
    before = {name: (run / name).read_text() for name in FILES if (run / name).exists()}
    with pytest.raises(InvalidValue, match="samples.jsonl, line 1"):
        cut_back(run, 2)
    assert before == {name: (run / name).read_text() for name in before}


def test_a_run_whose_last_line_is_half_written_is_resumed(quick_model, tmp_path):
    for name in ("whole", "cut"):
        runner.start(small(quick_model, "grpo", 4, "checkpoint.every=1", "checkpoint.keep=9"), tmp_path / name, True)
    cut = tmp_path / "cut"
    for file in ("metrics.jsonl", "samples.jsonl"):
        (cut / file).write_text((cut / file).read_text()[:-20])
    for step in (3, 4):
        (cut / "checkpoints" / f"step-{step}").rename(tmp_path / f"taken-{step}")
    runner.resume(cut, quiet=True)
    assert metrics(cut) == metrics(tmp_path / "whole")
    assert same_weights(weights(cut, 4), weights(tmp_path / "whole", 4))


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("error", "x", "a number"),
        ("entropy", 10**400, "a number"),
        ("completions", [1], "a number"),
        ("evaluation", "x", "a table of numbers"),
        ("evaluation", {"pass@1": "x"}, "a table of numbers"),
        ("entropy_by_position", "abc", "a list of numbers"),
    ],
    ids=["text", "huge", "list", "no table", "no number in a table", "no list"],
)
def test_a_key_that_holds_something_else_is_named(tmp_path, key, value, wanted):
    rows = [row(0, 0.5), {**row(1, 0.5), key: value}]
    with pytest.raises(InvalidValue, match=f"metrics.jsonl, line 2, {key}: got .*; must be {wanted}, or left out"):
        read_metrics(folder(tmp_path / "r", rows))


def test_a_key_may_be_missing_null_or_nan_and_others_are_anything(tmp_path):
    rows = [{"step": 0}, {"step": 1, "entropy": None, "reward": float("nan"), "alarm": True, "mine": "x"}]
    assert len(read_metrics(folder(tmp_path / "r", rows))) == 2


def test_a_file_that_is_no_text_or_no_file_is_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b"\x80\n")
    (tmp_path / "samples.jsonl").mkdir()
    for name in ("metrics.jsonl", "samples.jsonl"):
        with pytest.raises(InvalidValue, match="a file that can be read"):
            read_rows(tmp_path / name)


def test_numbers():
    assert all(map(is_number, (0, -1.5, 10**300)))
    assert not any(map(is_number, (True, None, "1", float("nan"), float("inf"), 10**400)))
