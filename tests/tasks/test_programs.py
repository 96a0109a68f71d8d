"""The built-in task of short functions."""

import itertools
import math
import random

import pytest

from aepo.errors import InvalidValue
from aepo.grading.code.judge import grade
from aepo.grading.code.sandbox import Sandbox
from aepo.tasks import TASKS, Programs
from aepo.tasks.programs import STATEMENTS, _after, _bodies, _start, source


@pytest.fixture(scope="module")
def task():
    return Programs(kinds=tuple(STATEMENTS))


def problem_of(task, prompt):
    """The problem of this prompt, among all that can be asked for."""
    return next(p for p in (task._problem(*key) for key in task._functions) if p.text == prompt)


@pytest.mark.parametrize(
    ("prompt", "body", "right"),
    [
        ("int 6 4 :", "x*=3 x+=1 x+=1 x*=2", True),
        ("int 6 4 :", "x*=3 x+=1 x+=1 x+=1 x-=1 x*=2", True),
        ("int 6 4 :", "x*=2 x*=3 x+=3 x+=1", True),
        ("int 6 4 :", "x*=2 x*=3 x+=3 x+=1 x+=1 x-=1", True),
        ("int 6 4 :", "x*=2 x*=3 x+=3 x+=1 x+=1 x-=1 x+=1 x-=1", False),
        ("int 6 4 :", "x+=1 x*=2 x*=3", False),
        ("int 6 4 :", "", False),
        ("int 6 4 :", "x+=x x=3*x x-=-3 x-=-1", True),
        ("int 6 4 :", "x*=6 x+=4", False),
        ("int 6 4 :", "x.reverse()", False),
        ("list d c b a :", "x.reverse()", True),
        ("list d c b a :", "x.reverse() x.append(x.pop(0)) x.insert(0,x.pop())", True),
        ("list d c b a :", "x.pop() x.pop() x.pop() x.pop() x.pop()", False),
        ("list b c d :", "x.pop(0)", True),
        ("list b c d :", "x.pop()", False),
        ("list b c d :", "del(x[0])", True),
        ("items 2 -1 0 :", "x[1]-=1 x[0]+=2", True),
        ("items 2 -1 0 :", "x[0]+=1 x[1]-=2 x[0]+=1 x[1]+=1", True),
        ("items 2 -1 0 :", "x[2]+=1 x[0]+=2 x[1]-=1 x[2]-=1", True),
        ("items 2 -1 0 :", "x[0]+=2 x[1]-=2", False),
        ("items 2 -1 0 :", "x[0]+=2 x[1]-=1 x[0]+=3", False),
        ("items 2 -1 0 :", "x[0]+=1 x[0]-=1 x[0]+=1 x[0]-=1 x[0]+=2 x[1]-=1 x[2]+=1 x[2]-=1", False),
        ("list b c d a :", "x[:]=x[1:]+x[:1]", True),
    ],
)
def test_golden_a_body_is_right_if_it_computes_the_function(task, prompt, body, right):
    """6 x + 4 is 2 (3 x + 2), or 6 x with 4 added; a limit of six statements holds for all."""
    problem = problem_of(task, prompt)
    assert task.reward(problem.data, body, False) == float(right)
    assert task.reward(problem.data, body, True) == 0.0


def test_no_other_text_runs(task, monkeypatch):
    monkeypatch.setattr("aepo.tasks.programs._value", lambda *given: pytest.fail("ran"))
    for text in ("x=__import__('os')", "x+=1;print(x)", "import os", "x+=1 exit()"):
        assert task.reward(problem_of(task, "int 1 1 :").data, text, False) == 0.0


def test_bodies_are_counted_as_enumeration_counts_them():
    for kind, statements in STATEMENTS.items():
        counted = {}
        for body in itertools.product(statements, repeat=3):
            function = _start(kind)
            for statement in body:
                function = function and _after(function, statement)
            if function:
                counted[function] = counted.get(function, 0) + 1
        assert _bodies(kind, 3)[2] == counted


def test_every_prompt_has_many_right_bodies_and_a_shortest_one(task):
    for kind, function in task._train:
        assert sum(level.get(function, 0) for level in _bodies(kind, 6)) >= 680
    for index in range(0, 128, 9):
        problem = task.train_problem(0, index)
        body = task.solution(problem.data)
        assert task.reward(problem.data, body, False) == 1.0 and len(body.split()) <= 3


def test_the_ceiling_is_the_root_of_its_definition():
    """Mean over prompts of log of the sum over right bodies of exp(-ceiling (statements + 1)) is 0, by enumeration."""
    small = Programs(max_statements=3, kinds=("int", "list"), eval_functions=60, train_functions=30)
    lengths = {key: [] for key in small._train}
    for kind, statements in STATEMENTS.items():
        for length in (1, 2, 3):
            for body in itertools.product(statements, repeat=length):
                function = _start(kind)
                for statement in body:
                    function = function and _after(function, statement)
                if (kind, function) in lengths:
                    lengths[kind, function].append(length)
    logs = [math.log(sum(math.exp(-small.ceiling() * (n + 1)) for n in found)) for found in lengths.values()]
    assert abs(sum(logs) / len(logs)) < 1e-9 and len(logs) == 30


def test_both_spellings_of_a_step_do_the_same():
    for kind in ("int", "list"):
        statements = STATEMENTS[kind]
        for first, second in zip(statements[::2], statements[1::2], strict=True):
            assert first != second and _after(_start(kind), first) == _after(_start(kind), second)


def test_training_and_evaluation_share_no_function(task):
    train = {task.train_problem(0, index).id for index in range(128)}
    held = {problem.id for problem in task.eval_problems(256)}
    assert len(train) == 128 and len(held) == 256 and not train & held


def test_examples_are_right_and_their_words_are_known(task):
    problems = {task._problem(*key).text: task._problem(*key) for key in task._functions}
    words = set(task.vocabulary)
    assert len(words) == len(task.vocabulary)
    for prompt, body in itertools.islice(task.pretraining_examples(3), 300):
        assert set(prompt.split()) | set(body.split()) <= words
        assert task.reward(problems[prompt].data, body, False) == 1.0


def test_the_sandbox_gives_the_same_verdicts(task):
    """The statements run in this process, because no other text does; as Python they mean the same."""
    try:
        Sandbox().check()
    except InvalidValue as refusal:
        pytest.skip(f"no sandbox: {refusal}")
    rng = random.Random(0)
    for index in range(8):
        problem = task.train_problem(1, index)
        words = STATEMENTS[problem.data["kind"]]
        bodies = [task.solution(problem.data), " ".join(rng.choice(words) for _ in range(4))]
        for body in bodies:
            found = grade(task.program(body), task.code_problem(problem.data))
            assert float(found.correct) == task.reward(problem.data, body, False), (problem.text, body, found.reason)
            assert found.mode == "values"
    assert task.program("x+=1 x*=2") == source(["x+=1", "x*=2"]) == "def f(x):\n    x+=1\n    x*=2\n    return x\n"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"max_statements": 9}, "task.max_statements: got 9; must be from 1 to 8"),
        ({"kinds": ("text",)}, "task.kinds"),
        ({"kinds": ()}, "task.kinds"),
        ({"eval_functions": 10**6}, "task.eval_functions"),
        ({"train_functions": 0}, "task.train_functions"),
    ],
)
def test_settings_that_cannot_work_are_refused(setting, words):
    assert TASKS["programs"] is Programs
    with pytest.raises(InvalidValue, match=words):
        Programs(**setting)
