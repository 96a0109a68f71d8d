import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aepo.cli.grade import Grade as Grade_
from aepo.errors import InvalidValue
from aepo.grading.base import Grade
from aepo.grading.exact import ExactGrader
from aepo.grading.files import grade_file
from aepo.grading.math import MathGrader
from aepo.grading.pool import GradingPool
from aepo.grading.table import GRADERS
from tests.graders import Obedient, Stillborn, Unready


def alive(pid):
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    return True


def children():
    listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    return [line for line in listed.stdout.splitlines() if "ps -o" not in line]


def test_a_worker_imports_neither_torch_nor_the_rest():
    program = "import aepo.grading.pool, aepo.grading.worker, aepo.grading.table, sys; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "sympy", "numpy"} & set(shown.stdout.split())


def test_grades_come_back_in_order_from_several_processes():
    pairs = [("sleep" if i % 3 == 0 else str(i), str(i)) for i in range(30)]
    with GradingPool(Obedient(), processes=2, seconds=20) as pool:
        grades = pool.grade(pairs)
        assert [grade.correct for grade in grades] == [i % 3 != 0 for i in range(30)]
        assert [grade.reason.split(":")[1] for grade in grades] == [completion for completion, _ in pairs]
        workers = {grade.reason.split(":")[0] for grade in grades}
        assert len(workers) == 2
        # The same processes serve the next call.
        assert {grade.reason.split(":")[0] for grade in pool.grade(pairs)} == workers
        assert pool.failures == 0 and pool.grade([]) == []
    assert not any(map(alive, workers))


def test_what_hangs_costs_its_own_item_only(monkeypatch):
    monkeypatch.setattr("aepo.grading.pool._PATIENCE", 0.02)
    with GradingPool(Obedient(), processes=1, seconds=50) as pool:
        hung = pool.grade([("hang", "hang")])[0]
        monkeypatch.setattr("aepo.grading.pool._PATIENCE", 20)
        assert pool.grade([("good", "good")])[0].correct and pool.failures == 1
    assert hung == Grade(False, "no verdict within 1 s on the clock", failed=True)


def test_what_computes_too_long_or_crashes_costs_its_own_item_only_and_is_counted():
    bad = {
        "spin": "no verdict within 1 s of processor time",
        "exit": "the grading process ended (exit status 3)",
        "segfault": "the grading process ended (SIGSEGV)",
        "memory": "the grader raised MemoryError: ",
        "recursion": "the grader raised RecursionError: ",
        "raise": "the grader raised ZeroDivisionError: ",
    }
    pairs = [pair for deed in bad for pair in ((deed, deed), ("good", "good"))]
    before = children()
    with GradingPool(Obedient(), processes=2, seconds=1, memory_mb=512) as pool:
        grades = pool.grade(pairs)
        assert pool.failures == len(bad)
        assert pool.grade([("exit", "")])[0].failed and pool.failures == len(bad) + 1
    for (deed, _), grade in zip(pairs, grades, strict=True):
        if deed == "good":
            assert grade.correct and not grade.failed
        else:
            assert grade.reason.startswith(bad[deed]) and grade.failed and not grade.correct
    assert children() == before, "a process, or its remains, is left over"


def test_the_limit_is_the_workers_processor_time_and_not_the_clock():
    # A worker that waits longer than the limit computes less than it; one that computes as long is ended.
    with GradingPool(Obedient(), processes=1, seconds=0.2) as pool:
        patient, busy = pool.grade([("nap", "nap"), ("spin", "spin")])
    assert patient.correct and not patient.failed, patient
    assert busy.failed and busy.reason == "no verdict within 0.2 s of processor time"


def test_the_memory_limit_is_the_workers_alone():
    with GradingPool(Obedient(), processes=1, seconds=5, memory_mb=300) as pool:
        assert "MemoryError" in pool.grade([("memory", "")])[0].reason
    assert len(bytearray(2**29)) == 2**29


def test_long_completions_are_cut_to_their_end_and_the_reason_says_so():
    with GradingPool(MathGrader(), processes=1, seconds=20, max_chars=1000) as pool:
        kept, lost = pool.grade([("x" * 5000 + r"\boxed{4}", "4"), (r"\boxed{4}" + "x" * 5000, "4")])
    assert kept == Grade(True, "the same text (read: the last 1000 of 5009 characters)")
    assert not lost.correct and lost.reason.startswith("no boxed answer (read: the last 1000 of 5009")


def test_text_that_utf8_cannot_hold_is_graded():
    strange = "\ud800 \x00 \udfff \\boxed{4}"
    with GradingPool(MathGrader(), processes=1, seconds=20) as pool:
        first, second = pool.grade([(strange, "4"), ("\\boxed{\ud800}", "\ud800")])
    assert first.correct and second.reason.encode()


def test_a_grader_that_cannot_start_is_one_line():
    before = children()
    with pytest.raises(InvalidValue, match="got 'unready'.*RuntimeError: no library"), GradingPool(Unready()) as pool:
        pool.grade([("a", "a")])
    with pytest.raises(InvalidValue, match="exit status 7"), GradingPool(Stillborn()) as pool:
        pool.grade([("a", "a")])
    assert children() == before


def test_a_pool_that_is_dropped_leaves_no_process():
    before = children()
    pool = GradingPool(Obedient(), processes=1)
    pool.grade([("a", "a")])
    assert len(children()) == len(before) + 1
    del pool
    gc.collect()
    assert children() == before


def test_an_interrupted_call_leaves_no_stale_reply():
    with GradingPool(Obedient(), processes=1, seconds=30) as pool:
        pool.grade([("a", "a")])
        signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            pool.grade([("hang", "a")])
        assert pool.grade([("b", "b")])[0].reason.endswith(":b")


def test_a_worker_goes_when_the_program_is_killed():
    program = (
        "from aepo.grading.pool import GradingPool; from tests.graders import Obedient\n"
        "pool = GradingPool(Obedient(), 1); print(pool.grade([('a', 'a')])[0].reason, flush=True); input()"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        worker = parent.stdout.readline().split(":")[0]
        assert alive(worker)
        parent.kill()
    until = time.monotonic() + 10
    while alive(worker) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(worker)


@pytest.mark.parametrize("name", ["processes", "seconds", "max_chars", "memory_mb"])
def test_bad_settings_are_refused(name):
    with pytest.raises(InvalidValue, match=f"^{name}: got 0"):
        GradingPool(MathGrader(), **{name: 0})
    pool = GradingPool(MathGrader())
    pool.close()
    with pytest.raises(ValueError, match="closed"):
        pool.grade([("a", "a")])


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_a_file_is_graded_line_by_line(tmp_path):
    rows = [
        {"completion": r"\boxed{4}", "answer": 4, "id": "first"},
        {"completion": r"\boxed{5}", "answer": 4.0},
        {"completion": r"\boxed{\frac{1}{2}}", "answer": ["1/3", "0.5"]},
    ]
    path = write(tmp_path / "in.jsonl", *map(json.dumps, rows), "")
    summary = grade_file(path, path, MathGrader(), processes=1, seconds=20)
    graded = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["correct"] for row in graded] == [True, False, True]
    assert [{key: row[key] for key in given} for row, given in zip(graded, rows, strict=True)] == rows
    assert graded[1]["reason"] == "not the same: 5" and not any(row["failed"] for row in graded)
    assert (summary.count, summary.correct, summary.failures) == (3, 2, 0)
    assert summary.line().startswith("3 graded, 66.7% correct, 0 failures, ")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"completion": "a"}', "line 2: got ['completion']; must be an object with 'answer'"),
        (b'{"answer": "a"}', "line 2: got ['answer']; must be an object with 'completion'"),
        (b"{nonsense", "line 2: got '{nonsense'; must be one JSON object in UTF-8"),
        (b"[1]", "line 2: got '[1]'; must be one JSON object"),
        (b'{"completion": 3, "answer": "a"}', "line 2: completion: got 'int'; must be a text"),
        (b'{"completion": "a", "answer": null}', "line 2: answer: got None; must be a text"),
        (b'{"completion": "\xff", "answer": "a"}', "line 2: got"),
        (b"[" * 100_000, "line 2: got '[[["),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"completion": "a", "answer": "b"}\n' + line + b"\n")
    with pytest.raises(InvalidValue) as caught:
        grade_file(path, tmp_path / "out.jsonl", MathGrader(), 1, 5)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_missing_or_empty_file_is_named(tmp_path):
    with pytest.raises(InvalidValue, match="readable JSONL file"):
        grade_file(tmp_path / "none", tmp_path / "out", MathGrader(), 1, 5)
    with pytest.raises(InvalidValue, match="at least one line"):
        grade_file(write(tmp_path / "empty", ""), tmp_path / "out", MathGrader(), 1, 5)


def test_the_command(tmp_path):
    path = write(tmp_path / "in.jsonl", json.dumps({"completion": r"\boxed{4}", "answer": "4"}))

    def command(*arguments):
        return subprocess.run([sys.executable, "-m", "aepo", "grade", *arguments], capture_output=True, text=True)

    shown = command(str(path), "--grader", "exact", "--processes", "1")
    assert shown.returncode == 0 and shown.stdout.startswith("1 graded, 100.0% correct, 0 failures, "), shown.stderr
    assert json.loads((tmp_path / "in.graded.jsonl").read_text())["correct"] is True
    refused = command(str(tmp_path / "none.jsonl"))
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "readable JSONL file" in refused.stderr


def test_the_command_says_why_answers_are_wrong_and_where_it_wrote(tmp_path, capsys):
    rows = [(r"\boxed{4}", "4"), (r"\boxed{5}", "4"), ("none", "4"), (r"\boxed{\frac{1}{3}}", "0.33")]
    path = write(tmp_path / "in.jsonl", *(json.dumps({"completion": text, "answer": known}) for text, known in rows))
    Grade_(path).run()
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("4 graded, 25.0% correct, 0 failures, ")
    assert shown[1] == "wrong: 2 not the same, 1 no boxed answer"
    assert shown[2] == "  row 2: known 4; not the same: 5" and shown[3] == "  row 3: known 4; no boxed answer"
    assert shown[-1] == f"written: {tmp_path / 'in.graded.jsonl'}"
    Grade_(path, rounded=True).run()
    assert capsys.readouterr().out.startswith("4 graded, 50.0% correct")
    for wrong in ({"units": True}, {"rounded": True, "grader": "exact"}):
        with pytest.raises(InvalidValue, match="^--(units|rounded): .*--grader"):
            Grade_(path, **wrong).run()


def test_rows_of_an_evaluation_are_graded_against_the_known_answer(tmp_path):
    row = {"benchmark": "b", "pass": "p", "text": r"so \boxed{5}", "answer": "5", "known": "4", "correct": True}
    write(tmp_path / "samples.jsonl", json.dumps(row))
    out = tmp_path / "out.jsonl"
    assert grade_file(tmp_path, out, MathGrader(), 1, 20).correct == 0
    assert json.loads(out.read_text())["correct"] is False
    write(tmp_path / "samples.jsonl", json.dumps({name: row[name] for name in row if name != "known"}))
    with pytest.raises(InvalidValue, match="line 1: .* must be a row with `known`"):
        grade_file(tmp_path, out, MathGrader(), 1, 20)


def test_progress_is_said_between_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("aepo.grading.files._CHUNK", 2)
    path = write(tmp_path / "in.jsonl", *[json.dumps({"completion": "4", "answer": "4"})] * 5)
    said = []
    grade_file(path, tmp_path / "out", ExactGrader(), 1, 20, lambda *numbers: said.append(numbers))
    assert said == [(2, 5), (4, 5), (5, 5)]


def test_every_grader_is_listed_under_its_name():
    assert list(GRADERS) == ["math", "exact", "qwen"] and all(kind.name == name for name, kind in GRADERS.items())
