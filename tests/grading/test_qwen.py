"""The grader `qwen` against verdicts and prompts of the original program, Qwen2.5-Math's evaluation.

qwen_verdicts.json and PROMPTS are facts: what the original gave on the rows of benchmarks/qwen_rows.py and on the
problems of the benchmark files. AEPO_QWEN_ORIGINAL (see benchmarks/qwen_original.py) runs the original again.
"""

import hashlib
import os
import sys
from pathlib import Path

import pytest

from aepo.evaluation.benchmarks import BENCHMARKS, find
from aepo.evaluation.questions import from_rows
from aepo.grading.base import Grade
from aepo.grading.qwen import QwenGrader
from aepo.grading.qwen_equal import equal
from aepo.grading.qwen_text import chosen, extracted, normalised

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from qwen_original import kept, original, ours
from qwen_rows import OWN, cases

# The first 16 digits of SHA-256 over all prompts of a file, each with a zero byte after it.
PROMPTS = {
    "aime24": ("12ce21d5e5319aa0", "1e9d95659da8c778", "a28e756eb475f88f"),
    "amc23": ("b4aeb2db8aa8a8c0", "1592d5cc38e00528", "5278c53ba86d3c96"),
    "college_math": ("afa6c19a7a599668", "9aab4d8d54007869", "99db6442ef29e03e"),
    "gsm8k": ("f2c328ec4da7ff4f", "bd6ae16ca92c6c10", "68a1fcd692d8a9c9"),
    "math500": ("26f18b7af9e057b4", "45e116def2379ce1", "918eeb8448fb2f2f"),
    "minerva_math": ("17db2c26e2ea0662", "c5541f710643d83e", "cae1e1a43fc6dc86"),
    "olympiadbench": ("f51397551ef3ba6a", "feef2b8fc2161b95", "1843ac9fe82c5539"),
}
# Rows to which the original says right because its fork of latex2sympy reads the beginning of both texts and leaves out
# the rest: prose before eigenvectors, and sets and a product of matrices with words after them.
BEGINNINGS = {4648, *range(4683, 4686), *range(4687, 4691), 4759, 4874, 4891, 4892, 4934}
BEGINNINGS |= {4921, 5187, 5464, 5472, 5500, 5576}
STYLES = ("qwen25-math-cot", "qwen-boxed", "cot")


@pytest.fixture(scope="module")
def data():
    folder = os.environ.get("AEPO_TEST_DATA")
    if not folder:
        pytest.skip("AEPO_TEST_DATA does not name a folder with benchmarks/*.jsonl")
    return Path(folder)


def differences(found, theirs):
    mine = ours(found)
    rows = zip(found, theirs, mine, strict=True)
    return [
        (case.name, case.completion[-90:], case.answer, other, own) for case, other, own in rows if other is not own
    ]


def test_verdicts_are_those_of_the_original(data):
    found = cases(data)
    theirs = kept(found)
    sixteenth = [i for i, verdict in enumerate(theirs) if i % 16 == 0 and verdict is not None]
    chosen_rows = [i for i in sixteenth if i not in BEGINNINGS]
    assert len(found) > 13_000 and len(chosen_rows) > 800
    assert not differences([found[i] for i in chosen_rows], [theirs[i] for i in chosen_rows])


def test_only_the_original_says_right_to_texts_that_begin_alike(data):
    found = cases(data)
    theirs = kept(found)
    rows = [5472, 5576]
    assert set(rows) <= BEGINNINGS and all(theirs[i] for i in BEGINNINGS)
    assert len(differences([found[i] for i in rows], [theirs[i] for i in rows])) == len(rows)


def test_verdicts_are_those_of_the_original_when_it_runs(data):
    folder = os.environ.get("AEPO_QWEN_ORIGINAL")
    if not folder:
        pytest.skip("AEPO_QWEN_ORIGINAL does not name a folder with the original program and its environment")
    found = cases(data)[-600:]
    theirs = original(Path(folder), found)
    assert not differences(found, theirs)


def test_prompts_are_those_of_the_original(data):
    for key, benchmark in BENCHMARKS.items():
        file = benchmark.file.removesuffix(".jsonl")
        if file not in PROMPTS:
            continue
        rows = find((key,), data / "benchmarks")[0]
        for style, known in zip(STYLES, PROMPTS[file], strict=True):
            texts = [problem.text + "\0" for problem in from_rows(rows, style, "qwen", None, None).problems]
            assert hashlib.sha256("".join(texts).encode()).hexdigest()[:16] == known, (file, style)


def test_the_answer_is_extracted_by_the_first_rule_that_applies():
    assert extracted("The final answer is $5$. I hope it is correct. \\boxed{6}") == "5"
    assert extracted(r"The answer is 7. \boxed{\frac{1}{2}} and then \boxed{8}.") == "8"
    assert extracted(r"\boxed{\frac{1}{2}") == r"\frac{1}{2}" and extracted(r"$\boxed 5$ done") == "5"
    assert extracted("So the answer is: 12.") == ": 12"[1:] and extracted("\u7b54\u6848\u662f 3\n\nelse") == "3"
    assert extracted("It costs 1,200 dollars, not 1,300.5") == "1300.5" and extracted("none") == ""
    assert extracted("A or B? B it is", choices=True) == "B"
    assert chosen("The answer is b, not c") == "B" and chosen("b or c") == "C" and chosen("17.") == "17"


def test_spelling_is_evened_out_with_the_originals_oddities():
    same = [
        ("12 cm", "12"),
        (r"12\text{ cm}", "12"),
        ("twenty-five", "25"),
        ("two million three hundred", "2000300"),
        ("zero point five", "0.5"),
        ("five apples", "5"),
        (r"x \in [1,2]", r"x\in[1,2]"),
        (r"x\in[1,2]", "[1,2]"),
        ("3j", "3i"),
        (r"\dfrac12", r"\frac{1}{2}"),
        ("3/4", r"\frac{3}{4}"),
        ("1.50", "1.50"),
        ("2.00", "2"),
        (".5", "0.5"),
        (r"\begin{bmatrix}1\end{bmatrix}", r"\begin{pmatrix}1\end{pmatrix}"),
        ("k = 5", "5"),
        ("kkk=5", "kkk=5"),
    ]
    assert [(text, normalised(text)) for text, _ in same] == same
    assert normalised("12 cm", units=True) == "12cm"


def test_it_is_lenient_where_the_original_is():
    for given, gold in (
        ("50", "0.5"),
        ("1000.09", "1000"),
        ("[1,2]", "(1,2)"),
        ("(1,2.0001)", "(1,2)"),
        ("b+a", "a+b"),
    ):
        assert equal(given, gold), (given, gold)
    for given, gold in (("1000.2", "1000"), ("6", "5"), ("(2,1)", "(1,2)"), ("x+2", "x+1"), ("1", "1,2")):
        assert not equal(given, gold), (given, gold)


def test_whole_completions():
    qwen = QwenGrader()
    assert qwen.grade("The answer is 50%.", "0.5").correct and qwen.grade(r"\boxed{12 \text{ cm}}", "#### 12").correct
    assert not qwen.grade(r"\boxed{8}", "7").correct and qwen.grade("hm", "7") == Grade(False, "no answer found")
    assert not QwenGrader(units=True).grade(r"\boxed{12 cm}", "12").correct
    assert QwenGrader(choices=True).grade("(B), not (A): B", "B").correct


def test_text_is_never_run(tmp_path):
    file = tmp_path / "made"
    for text in (f"open('{file}','w')", f"__import__('pathlib').Path('{file}').touch()", "().__class__"):
        QwenGrader().grade(rf"\boxed{{{text}}}", "5")
        for other in ("[", "x", r"\begin", "1"):
            equal(text, other)
            equal(other, text)
    assert not file.exists() and len(OWN) > 50
