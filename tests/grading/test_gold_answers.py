"""The grader on the benchmarks' own answers and on hostile ones; the scripts in benchmarks/ do the same in full."""

import os
import sys
from pathlib import Path

import pytest

from aepo.grading.math import MathGrader
from aepo.grading.pool import GradingPool
from aepo.grading.text import accepted, last_boxed

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import answer_kinds
from adversarial_grading import cases
from gold_answers import FILES, boxed, changed, of_kinds, read, respelled

LINES = {
    "aime24": 30,
    "amc23": 40,
    "college_math": 2818,
    "gsm8k": 1319,
    "math500": 500,
    "minerva_math": 272,
    "olympiadbench": 675,
}
# (file, line): why the grader does not know this answer, or this solution's box. There are none.
EXCEPTIONS: dict[tuple[str, int], str] = {}
# Another spelling of the gold answer that is not recognised, because what the file holds is no formula.
UNREAD = {
    ("college_math", 429): "prose: 3000 @ 4.6 %",
    ("college_math", 522): "prose: 25 @ 18",
    ("college_math", 747): "the answer breaks off after a minus sign",
    ("college_math", 1103): "minutes and seconds of arc",
    ("college_math", 1261): "minutes and seconds of arc",
    ("college_math", 1386): "minutes and seconds of arc",
    ("college_math", 1634): r"\mid for the bars of an absolute value",
    ("college_math", 1703): "a set, and the other spelling adds 0 to it",
    ("college_math", 1764): "dots for left-out terms",
    ("college_math", 2082): "a word: max.",
    ("olympiadbench", 97): "the answer is not well formed: t(0,4]",
}


@pytest.fixture(scope="module")
def data():
    folder = os.environ.get("AEPO_TEST_DATA")
    if not folder:
        pytest.skip("AEPO_TEST_DATA does not name a folder with benchmarks/*.jsonl")
    return {file: read(Path(folder), file) for file in FILES}


@pytest.fixture(scope="module")
def pool():
    with GradingPool(MathGrader(), processes=2, seconds=30) as pool:
        yield pool


def otherwise(pool, cases, wanted):
    grades = pool.grade([(completion, gold.answer) for gold, completion in cases])
    pairs = zip(cases, grades, strict=True)
    return {
        (g.file, g.line): (last_boxed(text), grade)
        for (g, text), grade in pairs
        if grade.correct != wanted or grade.failed
    }


def test_every_gold_answer_is_right_in_a_box(data, pool):
    assert {file: len(golds) for file, golds in data.items()} == LINES
    golds = [gold for file in data.values() for gold in file]
    found = otherwise(pool, [(gold, boxed(accepted(gold.answer)[-1])) for gold in golds], True)
    assert found.keys() == EXCEPTIONS.keys(), found


def test_every_gold_solution_that_boxes_its_answer_is_right(data, pool):
    solved = [(gold, gold.solution) for file in data.values() for gold in file if last_boxed(gold.solution) is not None]
    found = otherwise(pool, solved, True)
    assert len(solved) == 802 and found.keys() == EXCEPTIONS.keys(), found


def test_gold_answers_in_another_spelling_are_right(data, pool):
    golds = [gold for file in data.values() for gold in file[::40]] + [data[file][line - 1] for file, line in UNREAD]
    spelled = [(gold, boxed(text)) for gold in golds if (text := respelled(gold.answer)) is not None]
    found = otherwise(pool, spelled, True)
    assert len(spelled) > 90 and found.keys() == UNREAD.keys(), found


def test_answers_that_are_proven_to_be_others_are_wrong(data, pool):
    golds = [gold for file in data.values() for gold in file[::40]]
    others = [(gold, boxed(text)) for gold in golds for _, text in changed(gold.answer)]
    found = otherwise(pool, others, False)
    assert len(others) > 400 and not found, found


@pytest.mark.parametrize(("make", "wanted"), [(answer_kinds.spelled, True), (answer_kinds.changed, False)])
def test_answers_of_every_kind(data, pool, make, wanted):
    golds = [gold for file in data.values() for gold in file[::60]]
    made = of_kinds(golds, make)
    found = otherwise(pool, [(gold, completion) for _, gold, completion in made], wanted)
    assert len({kind for kind, _, _ in made}) >= 13 and len(made) > 500 and not found, found


def test_hostile_answers_neither_hang_nor_end_the_program_nor_are_right():
    hostile = cases(54, seed=1)
    with GradingPool(MathGrader(), processes=2, seconds=0.5, memory_mb=1024) as pool:
        grades = pool.grade([(completion, answer) for _, completion, answer in hostile])
        assert pool.grade([(r"\boxed{4}", "4")])[0].correct
    assert len(grades) == 54 and not any(grade.correct for grade in grades)
    assert pool.failures == sum(grade.failed for grade in grades) > 0
