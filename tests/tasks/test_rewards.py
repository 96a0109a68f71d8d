import math

import pytest

from aepo.errors import InvalidValue
from aepo.tasks.rewards import Answered, Function, Graded

ITEMS = [Answered("p", text, "2", {"data_source": "here", "level": n}) for n, text in enumerate(["2", "3", "2 "])]

TRL = "def f(prompts, completions, answer, level, **kw):\n    assert prompts[0] == 'p' and level == [0, 1, 2]\n"
TRL += "    return [float(c.strip() == a) for c, a in zip(completions, answer)]\n"
VERL = "def f(data_source, solution_str, ground_truth, extra_info=None):\n    assert data_source == 'here'\n"
VERL += "    right = solution_str.strip() == ground_truth\n"
EASY = "    right = [t['response'].strip() == t['ground_truth'] for t in reward_inputs]\n"
EASY += "    return [{'overall': float(r), 'format': 1.0} for r in right]\n"
ONE = "    return {'overall': float(reward_input['response'].strip() == reward_input['ground_truth'])}\n"
SIGNATURES = {
    "trl": TRL,
    "verl, a number": VERL + "    return float(right)\n",
    "verl, a table": VERL + "    return {'score': float(right), 'acc': right}\n",
    "easyr1, many": "def f(reward_inputs):\n" + EASY,
    "easyr1, one": "def f(reward_input):\n" + ONE,
}


def function(tmp_path, source, **settings):
    file = tmp_path / "mine.py"
    file.write_text(source)
    return Function(path=f"{file}:f", **settings)


@pytest.mark.parametrize("name", SIGNATURES)
def test_functions_of_every_signature(tmp_path, name):
    verdicts = function(tmp_path, SIGNATURES[name]).judge(ITEMS)
    assert [v.reward for v in verdicts] == [1.0, 0.0, 1.0] and not any(v.failed for v in verdicts)


@pytest.mark.parametrize(
    "source",
    [
        "def f(prompts, completions, **kw):\n    raise RuntimeError('no')\n",
        "def f(prompts, completions, **kw):\n    return [1.0]\n",
        "def f(prompts, completions, **kw):\n    return ['x'] * 3\n",
        "def f(reward_inputs):\n    return [{}] * 3\n",
        "def f(data_source, solution_str, ground_truth, extra_info):\n    return float('nan')\n",
    ],
)
def test_a_function_that_fails_is_counted_and_gives_no_reward(tmp_path, source):
    verdicts = function(tmp_path, source).judge(ITEMS)
    assert all(v.failed and math.isnan(v.reward) for v in verdicts) and len(verdicts) == 3


def test_one_failing_call_of_verls_kind_costs_one_completion(tmp_path):
    source = "def f(data_source, solution_str, ground_truth, extra_info):\n    return 1 / (solution_str != '3')\n"
    assert [v.failed for v in function(tmp_path, source).judge(ITEMS)] == [False, True, False]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("math.sqrt", "written as module:function"),
        ("no_such_module:f", "importable"),
        ("math:no_such_function", "importable"),
        ("math:pi", "a function"),
        ("nowhere/file.py:f", "importable"),
    ],
)
def test_paths_that_lead_nowhere_are_refused_before_work_starts(path, words):
    with pytest.raises(InvalidValue, match=rf"^verifier\.path: got .*{words}"):
        Function(path=path).check()


def test_a_signature_that_says_nothing_is_refused(tmp_path):
    with pytest.raises(InvalidValue, match=r"^verifier\.signature: got 'auto for"):
        function(tmp_path, "def f(a, b):\n    return 0\n").check()


def test_graded_is_the_graders_verdict():
    items = [Answered("", text, "2", {}) for text in (r"\boxed{2}", r"\boxed{3}", "2")]
    assert [v.reward for v in Graded(processes=1).judge(items)] == [1.0, 0.0, 0.0]
