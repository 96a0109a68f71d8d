"""Code problems: rows of all forms, the code of an answer, values and outputs."""

import base64
import json
import os
import pickle
import zlib
from pathlib import Path

import pytest

from aepo.errors import InvalidValue
from aepo.grading.code.answer import code_of, last_fence
from aepo.grading.code.formats import problem_of, statement_of
from aepo.grading.code.output import same_output
from aepo.grading.code.problem import Call, CodeProblem, Program, Stdio
from aepo.grading.code.values import Unreadable, equal

DATA = os.environ.get("AEPO_TEST_DATA")


# --- the code of an answer ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("no code", None),
        ("```python\nx = 1\n```", "x = 1\n"),
        ("```\nx = 1\n```\nand\n```py\nx = 2\n```\nbye", "x = 2\n"),
        ("```python\nx = 1\n```\n```python\nx = 2", "x = 1\n"),
        ("```python\nx = 1", None),
        ("```python\nx = 1\n```python\nx = 2\n```", "x = 2\n"),
        ("~~~python\ns = '''\n```\n'''\n~~~", "s = '''\n```\n'''\n"),
        ("````\n```\nx\n```\n````", "```\nx\n```\n"),
        ("```python\r\nx = 1\r\n```\r\n", "x = 1\r\n"),
        ("text ```x = 1``` text", None),
        ("    ```\nx\n    ```", None),
        ("```\n```", ""),
    ],
)
def test_the_code_is_the_last_closed_fence(text, code):
    assert last_fence(text) == code


def test_a_stub_is_continued_by_a_fence_or_by_the_text():
    problem = CodeProblem((), before="import math\n", stub="import math\n\n\ndef f(x):\n    '''Doc.'''\n", entry="f")
    whole = "def f(x):\n    return x\n"
    assert code_of(f"```python\n{whole}```", problem) == whole
    assert code_of("    return x\n\nprint(f(1))", problem) == problem.stub + "    return x\n"
    assert code_of("```\n    return x\n```", problem) == problem.stub + "    return x\n"
    assert code_of(f"{whole}\ndef g(): pass", problem) == f"{whole}\ndef g(): pass"
    assert code_of("```python\n    return x", problem) is None
    assert code_of("def f(x): return x", CodeProblem(())) is None


# --- values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "text", "strict", "loose"),
    [
        (2, "2", True, True),
        (2, "3", False, False),
        (2, "2.0", True, True),
        (1, "true", True, False),
        (True, "1", True, False),
        (None, "null", True, True),
        (None, "0", False, False),
        (0, "null", False, False),
        (0.3, "0.30000000000000004", False, True),
        (3, "3.0000000001", False, False),
        ("2", '"2"', True, True),
        ("2", "2", False, False),
        ([1, 2], "[1,2]", True, True),
        ([1, 2], '{"t":[1,2]}', False, True),
        ((1, 2), '{"t":[1,2]}', True, True),
        ((1, 2), "[1,2]", False, True),
        ([1, 2], "[1,2,3]", False, False),
        ([[0.1], [0.2]], "[[0.1],[0.2]]", True, True),
        ({1, 2}, '{"s":[2,1]}', True, True),
        ({1, 2}, "[1,2]", False, False),
        ({1: [2]}, '{"d":[1,[2]]}', True, True),
        ({"1": 2}, '{"d":[1,2]}', False, True),
        ({1: 2}, '{"d":[1,3]}', False, False),
        ({(1, 2): 3}, '{"d":[{"t":[1,2]},3]}', True, True),
        (10**40, '{"i":"%x"}' % 10**40, True, True),
        (b"ab", '{"b":"6162"}', True, True),
        (1j, '{"c":["0x0.0p+0","0x1.0p+0"]}', True, True),
        (0.5, '{"q":[1,2]}', True, True),
        (float("inf"), "Infinity", True, True),
        (float("nan"), "NaN", False, False),
        ([], "[]", True, True),
        ((), '{"t":[]}', True, True),
        ({}, '{"d":[]}', True, True),
    ],
)
def test_values_compare_as_python_does_or_as_json_would(expected, text, strict, loose):
    assert equal(expected, text) is strict
    assert equal(expected, text, loose=True) is loose


@pytest.mark.parametrize(
    "text",
    ["", "[", "2 2", '{"x":1}', '{"t":[1],"s":[2]}', "9" * 5000, "[" * 10**5, '{"q":[1,0]}', '{"b":"zz"}', '{"i":7}'],
)
def test_what_no_sandbox_writes_is_no_value(text):
    for expected in (2, "2", [2], {2}, {2: 2}, (2,)):
        try:
            assert not equal(expected, text)
        except Unreadable:
            continue


def test_a_value_that_is_made_to_be_slow_is_not_built():
    """Multiples of 2^61 - 1 all have the hash 0; a set of 40 000 of them takes minutes."""
    keys = ",".join(f'{{"i":"{(2**61 - 1) * n:x}"}}' for n in range(1, 40_000))
    for form in ('{"s":[KEYS]}', '{"d":[KEYS]}', '{"d":[{"s":[KEYS]},1]}', '{"t":[KEYS]}'):
        text = form.replace("KEYS", keys)
        for expected in ({1}, {1: 1}, 1, (1,)):
            try:
                assert not equal(expected, text)
            except Unreadable:
                continue


@pytest.mark.parametrize(
    ("expected", "given", "same"),
    [
        ("3\n", "3", True),
        ("3", "3  \n\n\n", True),
        ("1 2\n3", "1  2 \n3\n", True),
        ("1\n2\n3", "1", False),
        ("1", "1\n2\n3", False),
        ("1 2", "1\n2", False),
        ("0.3333333", "0.33333331", True),
        ("0.5", ".5", True),
        ("3", "3.0", False),
        ("3.0", "3", True),
        ("0.5", "nan", False),
        ("1.0", "1_0", False),
        ("yes", "YES", False),
        ("", "", True),
        ("", "0", False),
        ("1000000.5", "1000000.6", True),
        ("2.0", "2.00001", False),
    ],
)
def test_outputs_are_compared_by_tokens_and_lines(expected, given, same):
    assert same_output(expected, given) is same


# --- rows ---------------------------------------------------------------------------------------------------


def problem(**row):
    return problem_of(row, "row 1")


def packed(text, protocol=4):
    return base64.b64encode(zlib.compress(pickle.dumps(text, protocol))).decode()


STDIO = [{"input": "1 2", "output": "3", "testtype": "stdin"}]
FUNCTIONAL = [{"input": "[1, 2]\n3", "output": "[3]", "testtype": "functional"}]


@pytest.mark.parametrize(
    ("row", "tests"),
    [
        ({"tests": ["assert f(1) == 2"]}, (Call("f", "1", "2"),)),
        ({"tests": ["assert 2 == f(1, k=[2])"]}, (Call("f", "1, k=[2]", "2"),)),
        ({"tests": ["assert f(-1) is None"]}, (Call("f", "-1", "None", loose=True),)),
        ({"tests": ["assert f(1) < 2"]}, (Program("assert f(1) < 2"),)),
        ({"tests": ["assert f(x) == 2"]}, (Program("assert f(x) == 2"),)),
        ({"tests": [{"stdin": "a", "stdout": "b"}]}, (Stdio("a", "b"),)),
        ({"tests": [{"function": "f", "args": [1, "a"], "value": None}]}, (Call("f", "1, 'a'", "None", True, True),)),
        (
            {
                "entry_point": "f",
                "prompt": "def f(x):\n",
                "test": "def check(c):\n    assert True\n    assert c(1) == 2\n",
            },
            (Call("f", "1", "2"),),
        ),
        (
            {"entry_point": "f", "prompt": "def f(x):\n", "test": "def check(c):\n    x = 1\n    assert c(x) == 2\n"},
            (Program("def check(c):\n    x = 1\n    assert c(x) == 2\n", "check(f)"),),
        ),
        (
            {
                "test_list": ["assert f(1) == 2"],
                "test_setup_code": "x = 3",
                "challenge_test_list": ["assert f(x) == 4"],
            },
            (Call("f", "1", "2"), Program("x = 3\nassert f(x) == 4")),
        ),
        ({"test_cases": ["assert f(1) == 2"]}, (Call("f", "1", "2"),)),
        ({"public_test_cases": json.dumps(STDIO)}, (Stdio("1 2", "3"),)),
        (
            {"public_test_cases": json.dumps(STDIO), "private_test_cases": packed(json.dumps(STDIO))},
            (Stdio("1 2", "3"), Stdio("1 2", "3")),
        ),
        (
            {"public_test_cases": json.dumps(FUNCTIONAL), "metadata": '{"func_name": "f"}'},
            (Call("f", "[1, 2], 3", "[3]", True, True),),
        ),
        ({"input_output": '{"inputs": ["1\\n"], "outputs": ["2\\n"]}'}, (Stdio("1\n", "2\n"),)),
        ({"input_output": "{'inputs': ['1'], 'outputs': ['2']}"}, (Stdio("1", "2"),)),
        (
            {"input_output": '{"inputs": [[1, [2]]], "outputs": [[3]], "fn_name": "f"}'},
            (Call("f", "1, [2]", "[3]", True, True, True),),
        ),
        (
            {"reward_model": {"ground_truth": '{"inputs": [["1", "2"]], "outputs": [["3"]]}'}},
            (Stdio("1\n2", "3"),),
        ),
        ({"reward_model": {"ground_truth": '{"assert_case": ["assert f(1) == 2"]}'}}, (Call("f", "1", "2"),)),
        (
            {"public_tests": {"input": ["1"], "output": ["2"]}, "private_tests": {"input": ["3"], "output": ["4"]}},
            (Stdio("1", "2"), Stdio("3", "4")),
        ),
        (
            {
                "verification_info": {
                    "language": "python",
                    "test_cases": [
                        {"type": "stdin_stdout", "input": "1", "output": "2"},
                        {"type": "function_call", "fn_name": "f", "input": [1], "output": [2]},
                    ],
                }
            },
            (Stdio("1", "2"), Call("f", "1", "[2]", True, True, True)),
        ),
        (
            {"test": "from solution import f as g\n\ndef test_one():\n    assert g(1) == 2\n    assert g(2) == 3\n"},
            (Call("f", "1", "2"), Call("f", "2", "3")),
        ),
    ],
)
def test_rows_of_every_form_have_the_same_inner_form(row, tests):
    found = problem(**row)
    assert found.tests == tests
    assert CodeProblem.from_json(found.to_json()) == found
    assert found.weak is any(isinstance(test, Program) for test in tests)


def test_pytest_files_keep_what_is_no_plain_assert_as_a_program():
    text = "import pytest\nfrom solution import f\n\n"
    text += "def test_error():\n    with pytest.raises(ValueError):\n        f(-1)\n"
    (found,) = problem(test=text).tests
    assert isinstance(found, Program) and found.function == "test_error()" and found.text.endswith(text)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "x"}, "row 1, tests: got 'columns question'; must be one of the columns tests, entry_point"),
        ({"tests": []}, "one of the columns"),
        ({"tests": "assert f(1)"}, "row 1, tests: got 'assert f.1.'; must be JSON"),
        ({"tests": ["f(1)"]}, "row 1, tests 1: got 'f.1.'; must be an assert"),
        ({"tests": ["assert f("]}, "row 1, tests 1: .* must be Python"),
        ({"tests": [{"stdin": "a"}]}, "row 1, tests 1: .*assert text, {stdin, stdout}"),
        ({"tests": [{"stdin": "a", "stdout": 3}]}, "row 1, tests 1: got 'int'; must be a text"),
        ({"entry_point": "f", "prompt": "def f():", "test": "x = 1"}, "check.candidate"),
        ({"input_output": '{"inputs": [1], "outputs": []}'}, "1 inputs and 0 outputs"),
        ({"input_output": '{"inputs": [], "outputs": []}'}, "at least one test"),
        ({"input_output": "{"}, "row 1, input_output: .*JSON"),
        ({"public_test_cases": json.dumps(FUNCTIONAL)}, "func_name"),
        ({"verification_info": {"language": "cpp", "test_cases": []}}, "language: got 'cpp'; must be python"),
        ({"test": "x = 1"}, "functions whose names begin with test"),
    ],
)
def test_a_row_that_cannot_be_judged_is_refused_by_name(row, words):
    with pytest.raises(InvalidValue, match=words) as refusal:
        problem(**row)
    assert "\n" not in str(refusal.value)


class Hostile:
    ran = False

    def __reduce__(self):
        return setattr, (Hostile, "ran", True)


@pytest.mark.parametrize("content", [Hostile(), ["a"], 3, ("[]", "[]")])
@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_pickle_is_never_run(content, protocol):
    row = {"public_test_cases": json.dumps(STDIO), "private_test_cases": packed(content, protocol)}
    with pytest.raises(InvalidValue, match="row 1, private_test_cases: got 'a pickle "):
        problem(**row)
    assert not Hostile.ran


def test_a_packed_text_is_read_from_every_protocol_that_writes_one():
    text = json.dumps(STDIO * 300)
    for protocol in range(2, 6):
        row = {"public_test_cases": "[]", "private_test_cases": packed(text, protocol), "metadata": "{}"}
        assert len(problem(**{**row, "public_test_cases": json.dumps(STDIO)}).tests) == 301
    for broken in ("!!", base64.b64encode(b"x").decode(), base64.b64encode(zlib.compress(b"x")).decode()):
        with pytest.raises(InvalidValue, match="private_test_cases"):
            problem(public_test_cases=json.dumps(STDIO), private_test_cases=broken)


def test_the_statement_says_what_the_tests_need():
    row = {
        "prompt": "def f(x):\n    '''Add one.'''\n",
        "entry_point": "f",
        "test": "def check(c):\n    assert c(1) == 2",
    }
    assert "```python\ndef f(x):" in statement_of(row, problem(**row))
    row = {"text": "Add one.", "test_list": ["assert f(1) == 2"]}
    assert statement_of(row, problem(**row)).endswith("```python\nassert f(1) == 2\n```")
    row = {"question_content": "Add.", "starter_code": "class Solution:\n", "public_test_cases": json.dumps(STDIO)}
    assert "class Solution:" in statement_of(row, problem(**row))
    row = {"question": "Add.", "input_output": '{"inputs": ["1\\n"], "outputs": ["2\\n"]}'}
    assert "standard input" in statement_of(row, problem(**row))
    assert statement_of({"prompt": "x", "tests": ["assert f(1) == 2"]}, problem(tests=["assert f(1) == 2"])) is None


@pytest.mark.skipif(not DATA, reason="AEPO_TEST_DATA is not set: no real data to read")
def test_most_real_problems_are_judged_by_values():
    weak = {}
    for name in ("HumanEval", "mbpp"):
        lines = (Path(DATA) / "code" / f"{name}.jsonl").read_text().splitlines()
        problems = [problem_of(json.loads(line), name) for line in lines]
        weak[name] = (sum(found.weak for found in problems), len(problems))
    assert weak == {"HumanEval": (21, 164), "mbpp": (7, 974)}
