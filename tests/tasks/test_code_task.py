"""Training, evaluation and grading of programs, end to end."""

import json
import os
import sys
import time
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path

import pytest

from aepo import cli
from aepo.config import make_config
from aepo.errors import InvalidValue
from aepo.evaluation.benchmarks import find
from aepo.evaluation.options import Options
from aepo.evaluation.questions import from_rows
from aepo.evaluation.run import run
from aepo.grading.code.sandbox import Sandbox
from aepo.tasks import Data
from aepo.tasks.code import Code, code_record
from aepo.tasks.rewards import Answered
from aepo.training import runner
from tests.tiny_models import byte_tokenizer, make_model

DATA = os.environ.get("AEPO_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="AEPO_TEST_DATA is not set: no real data to read")
try:
    Sandbox().check()
except InvalidValue as refusal:
    pytest.skip(f"no sandbox: {refusal}", allow_module_level=True)

ROWS = [
    {"task_id": n, "text": f"Add {n}.", "code": f"def f(x): return x + {n}", "test_list": [f"assert f(1) == {n + 1}"]}
    for n in range(8)
]
DETAILS = ("tests_passed", "tests_failed", "processor_seconds", "judged_by", "sandbox")


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    tokenizer = byte_tokenizer(pad="<|endoftext|>", eos="<|im_end|>")
    folder = tmp_path_factory.mktemp("qwen2")
    return make_model(folder, "qwen2", tokenizer=tokenizer, max_position_embeddings=8192)


def answered(code, **row):
    return Answered("", f"So:\n```python\n{code}\n```", code_record(row, "row")["answer"], row)


def test_the_reward_is_all_tests_or_their_share():
    tests = ["assert f(1) == 1", "assert f(2) == 2", "assert f(3) == 4"]
    items = [answered(code, tests=tests) for code in ("def f(x): return x", "def f(x): return x + (x == 3)", "x = 1")]
    verdicts = Code().judge(items)
    assert [v.reward for v in verdicts] == [0.0, 1.0, 0.0] and not any(v.failed for v in verdicts)
    assert [v.reward for v in Code(reward="share").judge(items)] == [2 / 3, 1.0, 0.0]
    assert verdicts[0].logged["tests_failed"] == [3] and verdicts[0].logged["tests_passed"] == 2
    assert "f(3) gave 3, wanted 4" in verdicts[0].reason
    assert {v.logged["judged_by"] for v in verdicts} == {"values"} and verdicts[0].logged["processor_seconds"] > 0
    weak = Code().judge([answered("def f(x): return x", tests=["assert f(1) < 2"])])
    assert weak[0].reward == 1.0 and weak[0].logged["judged_by"] == "asserts"


def test_what_was_begun_can_be_stopped():
    verifier, forever = Code(seconds=60, processes=1), [answered("while True: pass", tests=["assert f(1) == 1"])] * 3
    begun, began = verifier.start(forever), time.monotonic()
    begun.stop()
    with pytest.raises(CancelledError):
        begun.wait()
    (after,) = verifier.judge([answered("def f(x): return x", tests=["assert f(1) == 1"])])
    assert after.reward == 1.0 and time.monotonic() - began < 30


def test_a_completion_without_code_is_wrong_and_no_failure():
    (verdict,) = Code().judge(
        [Answered("", "no code here", code_record({"tests": ["assert f(1) == 1"]}, "r")["answer"], {})]
    )
    assert verdict.reward == 0.0 and not verdict.failed and "no closed fence" in verdict.reason


def test_rows_of_code_need_no_answer_and_their_solutions_pass(file):
    task = Data(train=str(file), verifier=Code(), held_out=2)
    problems = [task.train_problem(0, i) for i in range(6)]
    assert "Write the whole program in Python" in problems[0].text and "assert f(1)" in problems[0].text
    texts = [task.solution(problem.data) for problem in problems]
    verdicts = task.judge([problem.data for problem in problems], texts, [False] * 6)
    assert [verdict.reward for verdict in verdicts] == [1.0] * 6
    assert {p.id for p in task.eval_problems(2)} <= {str(row["task_id"]) for row in ROWS}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["task.style=think"], "task.style: got 'think'; must be one of code, code-chat, qwen-code, plain"),
        (["task.verifier.seconds=0"], "verifier.seconds: got 0"),
        (["task.verifier.reward=some"], "task.verifier.reward: got 'some'; must be one of all, share"),
    ],
)
def test_settings_that_cannot_work_are_refused(file, settings, words):
    with pytest.raises(InvalidValue, match=words):
        make_config(settings=["task=data", f"task.train='{file}'", "task.verifier=code", *settings])


def test_a_run_is_refused_before_it_starts_where_no_sandbox_works(file, tiny, tmp_path, monkeypatch):
    def refuse(sandbox):
        raise InvalidValue("sandbox", "none", "another machine")

    monkeypatch.setattr(Sandbox, "check", refuse)
    settings = ["task=data", f"task.train='{file}'", "task.verifier=code", f"model='{tiny}'", "evaluation.prompts=2"]
    with pytest.raises(InvalidValue, match="^verifier.sandbox: got 'none'; must be another machine"):
        runner.start(make_config(settings=settings), tmp_path / "run", quiet=True)


def test_the_samples_of_a_run_say_how_programs_were_judged(file, tiny, tmp_path):
    settings = ["steps=1", "threads=1", "evaluation.every=0", "evaluation.prompts=2", "sampling.prompts=2"]
    settings += ["sampling.group_size=2", "task.max_response=4", "task.held_out=2", f"model='{tiny}'"]
    config = make_config(settings=["task=data", f"task.train='{file}'", "task.verifier=code", *settings])
    runner.start(config, tmp_path / "run", quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert rows and all(
        row["logged"]["judged_by"] == "values" and "no closed fence" in row["logged"]["reason"] for row in rows
    )


@needs_data
def test_mbpps_training_split_trains_two_steps(tiny, tmp_path):
    lines = (Path(DATA) / "code" / "mbpp.jsonl").read_text().splitlines()
    for name, ids in (("train", range(511, 975)), ("eval", range(11, 511))):
        kept = [line for line in lines if json.loads(line)["task_id"] in ids]
        assert len(kept) == len(ids)
        (tmp_path / f"{name}.jsonl").write_text("\n".join(kept))
    settings = [
        *("task=data", f"task.train='{tmp_path}/train.jsonl'", f"task.eval='{tmp_path}/eval.jsonl'"),
        *("task.verifier=code", "task.max_prompt=5000", "task.max_response=6", f"model='{tiny}'"),
        *("steps=2", "threads=1", "sampling.prompts=4", "sampling.group_size=2", "optimizer.microbatch=2"),
        *("evaluation.every=2", "evaluation.prompts=2", "evaluation.samples=2"),
    ]
    runner.start(make_config(settings=settings), tmp_path / "run", quiet=True)
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(logged) == 2 and logged[1]["evaluation"]["samples"] == 2
    assert all(row["entropy"] > 0 and row["reward_failures"] == 0 for row in logged)


# --- evaluation and grading ---------------------------------------------------------------------------------


@needs_data
def test_the_benchmarks_of_programs_are_found_by_name():
    found = find(("humaneval", "MBPP"), Path(DATA) / "code")
    assert [(item.name, len(item.rows), item.code) for item in found] == [("humaneval", 164, True), ("mbpp", 500, True)]
    asked = from_rows(found[0], None, None, None, None)
    assert (asked.style, asked.grader) == ("qwen-code", "code") and "<|im_start|>user\nComplete" in asked.problems[
        0
    ].text
    for change, words in (
        (("boxed", None), "--prompt: got 'boxed'"),
        ((None, "math"), "--grader: got 'math'; must be code"),
    ):
        with pytest.raises(InvalidValue, match=words):
            from_rows(found[0], *change, None, None)


def test_a_file_of_programs_is_evaluated_and_every_row_says_how(file, tiny, tmp_path):
    out = tmp_path / "out"
    made = run(Options(str(tiny), data=file, grader="code", n=2, temperature=1.0, max_tokens=4, limit=3, out=out))
    rows = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and made["results"][0]["scores"]["pass@1"]["mean"] == 0.0
    assert all(set(DETAILS) <= set(row["logged"]) and row["logged"]["sandbox"] == "bubblewrap" for row in rows)
    assert made["settings"]["benchmarks"][0]["grader"] == "code" and made["results"][0]["failures"] == 0


def test_a_file_of_completions_is_graded(tmp_path, monkeypatch, capsys):
    rows = [
        {"completion": "```python\ndef f(x): return x\n```", "tests": ["assert f(1) == 1", "assert f(2) == 3"]},
        {"completion": "```\nprint(input())\n```", "tests": [{"stdin": "a", "stdout": "a"}]},
        {
            "completion": "    return x\n",
            "prompt": "def f(x):\n",
            "entry_point": "f",
            "test": "def check(c):\n    assert c(1) < 2\n",
        },
    ]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(sys, "argv", ["aepo", "grade", str(file), "--grader", "code"])
    cli.main()
    graded = [json.loads(line) for line in (tmp_path / "a.graded.jsonl").read_text().splitlines()]
    assert [row["correct"] for row in graded] == [False, True, True]
    assert [row["tests_failed"] for row in graded] == [[2], [], []]
    assert [row["judged_by"] for row in graded] == ["values", "values", "asserts"]
    assert [row["tests"] for row in graded[:2]] == [row["tests"] for row in rows[:2]]
    assert "3 graded, 66.7% correct, 0 failures" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "arguments", "words"),
    [
        ({"completion": "x"}, [], "line 1, tests: got 'columns completion'"),
        ({"tests": ["assert f(1) == 1"]}, [], "an object with 'completion'"),
        ({"completion": 1, "tests": ["assert f(1) == 1"]}, [], "completion: got 'int'"),
        ({"completion": "x", "tests": ["assert f(1) == 1"]}, ["--seconds", "0.5"], "--seconds"),
        ({"completion": "x", "tests": ["assert f(1) == 1"]}, ["--processes", "0"], "processes: got 0"),
    ],
)
def test_a_file_that_cannot_be_graded_is_refused_in_one_line(tmp_path, monkeypatch, capsys, row, arguments, words):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(row) + "\n")
    monkeypatch.setattr(sys, "argv", ["aepo", "grade", str(file), "--grader", "code", *arguments])
    with pytest.raises(SystemExit) as ending:
        cli.main()
    shown = capsys.readouterr().err
    assert ending.value.code == 2 and words in shown and shown.count("\n") == 1


def test_an_evaluation_draws_on_while_programs_are_judged(file, tiny, tmp_path, monkeypatch):
    """The second unit is drawn before the verdicts of the first are waited for, and the rows keep their order."""
    events = []
    begin = Code.start

    def start(self, items):
        events.append("begun")
        begun = begin(self, items)
        return replace(begun, wait=lambda: (events.append("waited"), begun.wait())[1])

    monkeypatch.setattr(Code, "start", start)
    monkeypatch.setattr("aepo.evaluation.samples.UNIT_ROWS", 2)
    run(Options(str(tiny), data=file, grader="code", n=2, temperature=1.0, max_tokens=4, limit=3, out=tmp_path / "out"))
    assert events == ["begun", "begun", "waited", "begun", "waited", "waited"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [(row["number"], row["sample"]) for row in rows] == [(n, s) for n in range(3) for s in range(2)]
