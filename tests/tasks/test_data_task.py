import json
import os
from pathlib import Path

import pytest

from aepo.errors import InvalidValue
from aepo.tasks import Data, Gym
from aepo.tasks.styles import STYLES, render

DATA = os.environ.get("AEPO_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="AEPO_TEST_DATA is not set: no real data to read")


@pytest.fixture
def file(tmp_path) -> str:
    rows = [{"id": f"r{i}", "problem": f"What is {i} + 0?", "answer": i, "solution": f"It is {i}."} for i in range(20)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_every_epoch_is_a_shuffle_of_all_training_rows_and_of_no_other(file):
    task = Data(train=file, held_out=5)
    held = {p.id for p in task.eval_problems(5)}
    epochs = [[task.train_problem(3, i + 15 * epoch).id for i in range(15)] for epoch in range(2)]
    assert all(sorted(epoch) == sorted({f"r{i}" for i in range(20)} - held) for epoch in epochs)
    assert epochs[0] != epochs[1] and [task.train_problem(4, i).id for i in range(15)] != epochs[0]


def test_a_training_row_that_is_in_the_evaluation_file_is_left_out(file, tmp_path):
    held = tmp_path / "held.jsonl"
    held.write_text(json.dumps({"problem": "What is 7 + 0?", "answer": "7"}) + "\n")
    task = Data(train=file, eval=str(held))
    assert "r7" not in {task.train_problem(0, i).id for i in range(19)}
    assert [p.text for p in task.eval_problems(1)] == [render("boxed", "What is 7 + 0?").text]


def test_rewards_and_solutions_come_from_the_row(file):
    task = Data(train=file)
    problem = task.train_problem(0, 0)
    answer = problem.id[1:]
    assert task.reward(problem.data, f"\\boxed{{{answer}}}", False) == 1.0
    assert task.reward(problem.data, "\\boxed{99}", False) == 0.0
    assert task.solution(problem.data) == f"It is {answer}."


def test_long_prompts_are_refused_or_skipped_before_the_run(file):
    length = lambda problem: 50 if problem.id in ("r3", "r4") else 10
    with pytest.raises(InvalidValue, match=r"^prompt: got '50 tokens in row r[34] .* at most task.max_prompt = 20"):
        Data(train=file, max_prompt=20).fitted(length)
    task = Data(train=file, max_prompt=20, long_prompts="skip", held_out=5).fitted(length)
    seen = {task.train_problem(0, i).id for i in range(100)} | {p.id for p in task.eval_problems(3)}
    assert not seen & {"r3", "r4"}
    with pytest.raises(InvalidValue, match=r"task\.max_prompt: got 5"):
        Data(train=file, max_prompt=5, long_prompts="skip").fitted(length)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Data().eval_problems(1), "task.train: got ''"),
        (lambda: Data(style="poem"), "task.style: got 'poem', which is unknown; must be one of plain"),
        (lambda: Data(held_out=-1), "task.held_out"),
        (lambda: Data(max_response=0), "task.max_response"),
        (lambda: Gym(dataset="nonsense").eval_problems(1), "task.dataset: got 'nonsense'"),
        (lambda: Gym(eval_rows=0), "task.eval_rows"),
    ],
)
def test_bad_settings_are_refused_by_name(make, words):
    with pytest.raises(InvalidValue, match=words):
        make()


@pytest.mark.parametrize("style", STYLES)
def test_every_style_holds_the_problem_once_and_a_chat_style_its_turns(style):
    shown = render(style, "P?")
    assert shown.text.count("P?") == 1
    assert all(role in ("system", "user") for role, _ in shown.messages)


def test_golden_the_prompts_of_qwens_evaluation():
    assert render("qwen25-math-cot", "P?").text == (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\nP?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render("qwen-boxed", "P?").text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nP?\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_reasoning_gym_gives_problems_without_end_and_its_own_score():
    task = Gym(dataset="basic_arithmetic", eval_rows=8)
    held = {p.text for p in task.eval_problems(8)}
    problems = [task.train_problem(1, i) for i in range(12)]
    assert len({p.text for p in problems}) > 8 and not {p.text for p in problems} & held
    assert task.train_problem(1, 3) == problems[3] and task.train_problem(2, 3) != problems[3]
    right = problems[0].data["entry"]["answer"]
    assert task.reward(problems[0].data, f"so \\boxed{{{right}}}", False) == 1.0
    assert task.reward(problems[0].data, right, False) == 1.0
    assert task.reward(problems[0].data, f"\\boxed{{{right}1}}", False) < 1.0


@needs_data
def test_dapo_17k_is_read_whole():
    task = Data(train=str(Path(DATA) / "dapo17k.parquet"), held_out=100)
    problems = [task.train_problem(0, i) for i in range(17_000)]
    assert len({p.id for p in problems}) == 17_000 and all(p.data["answer"] for p in problems)


@needs_data
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("aime24", 30),
        ("amc23", 40),
        ("math500", 500),
        ("gsm8k", 1319),
        ("minerva_math", 272),
        ("olympiadbench", 675),
        ("college_math", 2818),
    ],
)
def test_the_benchmarks_are_read_whole(name, rows):
    task = Data(train=str(Path(DATA) / "dapo17k.parquet"), eval=str(Path(DATA) / "benchmarks" / f"{name}.jsonl"))
    assert len(task.eval_problems(rows)) == rows
