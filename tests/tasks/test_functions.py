import asyncio
import math

import pytest

from aepo.errors import InvalidValue
from aepo.tasks.functions import Function
from aepo.tasks.rewards import Answered

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


# --- called as in their own trainers ------------------------------------------------------------------------

CHAT = Answered("p", "2", "2", {}, tokens=(5, 9), messages=(("system", "s"), ("user", "u")))


@pytest.mark.parametrize(
    "parameters",
    [
        "completions, **kwargs",
        "completions, prompts, **kw",  # in this order
        "completions, completion_ids, **_",
        "*, answer, completions, prompts, completion_ids",
        "completions, answer",  # no **kwargs: it gets what it names
        "prompts, completions, level, log_extra, log_metric",
    ],
)
def test_trl_functions_get_each_argument_under_its_own_name(tmp_path, parameters):
    body = "    here = locals()\n    here.update(here.pop('kwargs', {}), **here.pop('kw', {}), **here.pop('_', {}))\n"
    checks = "    assert here.get('prompts', ['p'] * 3) == ['p'] * 3 and here.get('level', [0, 1, 2]) == [0, 1, 2]\n"
    checks += "    assert here.get('answer', ['2'] * 3) == ['2'] * 3\n"
    checks += "    assert len(here.get('completion_ids', '123')) == 3\n"
    score = "    return [float(c.strip() == '2') for c in completions]\n"
    verdicts = function(tmp_path, f"def f({parameters}):\n{body}{checks}{score}").judge(ITEMS)
    assert [v.reward for v in verdicts] == [1.0, 0.0, 1.0], [v.reason for v in verdicts]


def test_trl_functions_get_messages_in_rows_of_messages_and_texts_elsewhere(tmp_path):
    source = "def f(prompts, completions, completion_ids):\n"
    source += "    chat = prompts[0] == [{'role': 'system', 'content': 's'}, {'role': 'user', 'content': 'u'}]\n"
    source += "    answer = completions[0] == [{'role': 'assistant', 'content': '2'}] and completion_ids[0] == [5, 9]\n"
    source += "    return [float(chat and answer and (prompts[1], completions[1]) == ('p', '2'))] * 2\n"
    assert [v.reward for v in function(tmp_path, source).judge([CHAT, ITEMS[0]])] == [1.0, 1.0]


def test_a_column_of_the_data_reaches_a_trl_function_as_it_stands_in_the_data(tmp_path):
    item = Answered("p", "2", "2", {"answer": "1 + 1 = 2 #### 2"})
    source = "def f(completions, answer):\n    return [float('####' in a) for a in answer]\n"
    assert function(tmp_path, source).judge([item])[0].reward == 1.0


@pytest.mark.parametrize(
    "values", ["np.array([1, 0, 1])", "torch.tensor([1.0, 0.0, 1.0])", "(True, False, np.float32(1))", "[1, 0, True]"]
)
def test_results_of_any_usual_kind(tmp_path, values):
    source = f"import numpy as np, torch\ndef f(completions, **kw):\n    return {values}\n"
    assert [v.reward for v in function(tmp_path, source).judge(ITEMS)] == [1.0, 0.0, 1.0]


def test_none_is_no_score_and_no_failure(tmp_path):
    verdicts = function(tmp_path, "def f(completions, **kw):\n    return [1.0, None, 0.5]\n").judge(ITEMS)
    assert [v.failed for v in verdicts] == [False] * 3
    assert math.isnan(verdicts[1].reward) and (verdicts[0].reward, verdicts[2].reward) == (1.0, 0.5)


def test_async_functions_also_inside_a_running_loop(tmp_path):
    source = "import asyncio\nasync def f(completions, **kw):\n    await asyncio.sleep(0)\n    return [1.0] * 3\n"
    judge = function(tmp_path, source)

    async def inside():
        return judge.judge(ITEMS)

    assert [v.reward for v in judge.judge(ITEMS)] == [v.reward for v in asyncio.run(inside())] == [1.0] * 3


def test_callable_objects(tmp_path):
    source = "class F:\n    def __call__(self, completions, **kw):\n        return [0.5] * len(completions)\nf = F()\n"
    assert [v.reward for v in function(tmp_path, source).judge(ITEMS)] == [0.5] * 3


@pytest.mark.parametrize(
    ("parameters", "right"),
    [
        ("solution_str, ground_truth", "solution_str.strip() == ground_truth"),
        ("ground_truth, solution_str, **kw", "solution_str.strip() == ground_truth"),
        ("extra_info, solution_str", "solution_str.strip() == '2' and extra_info['num_turns'] is None"),
    ],
)
def test_verl_functions_with_their_usual_parameters_in_any_order(tmp_path, parameters, right):
    verdicts = function(tmp_path, f"def f({parameters}):\n    return float({right})\n").judge(ITEMS)
    assert [v.reward for v in verdicts] == [1.0, 0.0, 1.0]


def test_verls_batch_manager_and_its_ground_truth(tmp_path):
    source = "def f(data_sources, solution_strs, ground_truths, extra_infos):\n"
    source += "    return [{'score': float(s.strip() == g[0])} for s, g in zip(solution_strs, ground_truths)]\n"
    items = [Answered("p", i.completion, "x", {"reward_model": {"ground_truth": ["2"]}}) for i in ITEMS]
    assert [v.reward for v in function(tmp_path, source).judge(items)] == [1.0, 0.0, 1.0]


def test_easyr1_lengths_are_tokens(tmp_path):
    source = "def f(reward_input):\n    return {'overall': reward_input['response_length']}\n"
    assert function(tmp_path, source).judge([CHAT])[0].reward == 2.0


@pytest.mark.parametrize("raised", ["raise SystemExit(0)", "exit()", "raise ValueError('no')"])
def test_a_failure_names_the_place_in_the_users_file_and_an_input(tmp_path, raised):
    (verdict, *_) = function(tmp_path, f"def f(completions, **kw):\n    {raised}\n").judge(ITEMS)
    assert verdict.failed and "for the completion '2' with the answer '2'" in verdict.reason
    assert "exit" in raised.lower() or "ValueError: no at mine.py:2" in verdict.reason


# --- what TRL offers, limits, repetitions, processes --------------------------------------------------------


def test_trl_functions_log_columns_and_metrics_and_see_the_step(tmp_path):
    source = "def f(completions, trainer_state, log_extra, log_metric, **kw):\n"
    source += "    log_extra('length', [len(c) for c in completions])\n    log_extra('short', [1])\n"
    source += "    log_metric('seen', 7)\n    return [trainer_state.global_step / trainer_state.max_steps] * 3\n"
    items = [Answered("p", i.completion, "2", {}, place=(3, 12)) for i in ITEMS]
    verdicts = function(tmp_path, source).judge(items)
    assert [v.reward for v in verdicts] == [0.25] * 3
    assert [v.logged for v in verdicts] == [{"length": 1}, {"length": 1}, {"length": 2}]
    assert verdicts[0].metrics == {"seen": 7.0}


@pytest.mark.parametrize(
    ("table", "right", "parts"),
    [
        ("{'score': -1.0, 'acc': True}", True, {"acc": 1.0}),
        ("{'score': 1.0, 'acc': 0.0, 'note': 'x'}", False, {"acc": 0.0}),
        ("{'score': 0.3}", None, {}),
    ],
)
def test_a_table_may_hold_a_verdict_of_its_own(tmp_path, table, right, parts):
    source = f"def f(data_source, solution_str, ground_truth, extra_info):\n    return {table}\n"
    (verdict, *_) = function(tmp_path, source).judge(ITEMS)
    assert verdict.right is right and verdict.parts == parts


COUNTED = "import pathlib\nfile = pathlib.Path({!r})\n"
COUNTED += "def f(completions, **kw):\n    file.write_text(file.read_text() + 'x')\n"
COUNTED += "    if len(file.read_text()) < {}:\n        raise OSError('a network that is away')\n    return [1.0] * 3\n"


@pytest.mark.parametrize(
    ("succeeds", "retries", "calls", "failed"), [(2, 1, 2, False), (3, 1, 2, True), (3, 2, 3, False)]
)
def test_a_call_that_raised_is_repeated_and_then_counted(tmp_path, succeeds, retries, calls, failed):
    log = tmp_path / "calls"
    log.write_text("")
    verdicts = function(tmp_path, COUNTED.format(str(log), succeeds), retries=retries).judge(ITEMS)
    assert [v.failed for v in verdicts] == [failed] * 3 and log.read_text() == "x" * calls


HANGS = {
    "computes": "    while True:\n        pass\n",
    "waits": "    import time\n    time.sleep(60)\n",
    "catches exceptions": "    while True:\n        try:\n            while True: 1\n        except Exception: 2\n",
}


@pytest.mark.parametrize("body", HANGS)
def test_a_call_that_hangs_ends_at_its_limit_and_is_not_repeated(tmp_path, body):
    source = "def f(data_source, solution_str, ground_truth, extra_info):\n    if solution_str != '3': return 1.0\n"
    source += HANGS[body]
    judge = function(tmp_path, source, seconds=0.3, wall_seconds=1.0, retries=50)
    verdicts = judge.judge(ITEMS)
    assert [v.failed for v in verdicts] == [False, True, False] and verdicts[1].reason.startswith("limit: it took ")


@pytest.mark.parametrize("signature", ["verl", "trl"])
def test_killable_processes_give_the_same_verdicts_and_survive_what_ends_a_process(tmp_path, signature):
    bad = "    if {} == '3': os._exit(3)\n"
    sources = {
        "verl": "import os\ndef f(data_source, solution_str, ground_truth, extra_info):\n"
        + bad.format("solution_str")
        + "    return float(solution_str.strip() == ground_truth)\n",
        "trl": "import os\ndef f(completions, answer, **kw):\n"
        + bad.format("completions[-1]")
        + "    return [float(c.strip() == a) for c, a in zip(completions, answer)]\n",
    }
    judge = function(tmp_path, sources[signature], processes=2)
    assert [v.reward for v in judge.judge([ITEMS[0], ITEMS[2]])] == [1.0, 1.0]
    verdicts = judge.judge([ITEMS[0], ITEMS[2], ITEMS[1]])
    assert verdicts[-1].failed and "its process ended (exit status 3)" in verdicts[-1].reason
    assert [v.failed for v in verdicts] == ([False, False, True] if signature == "verl" else [True] * 3)
    assert [v.reward for v in judge.judge([ITEMS[0]])] == [1.0], "a new process takes its place"


def test_a_process_stuck_outside_python_is_killed(tmp_path):
    source = "import ctypes\ndef f(completions, **kw):\n"
    source += "    ctypes.PyDLL(None).sleep(60)\n    return [1.0] * 3\n"  # PyDLL keeps the interpreter's lock
    import aepo.tasks.isolated as isolated

    judge = function(tmp_path, source, processes=1, wall_seconds=0.5)
    grace, isolated._GRACE_SECONDS = isolated._GRACE_SECONDS, 0.5
    try:
        verdicts = judge.judge(ITEMS)
    finally:
        isolated._GRACE_SECONDS = grace
    assert all(v.failed for v in verdicts)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"seconds": 0.0}, "verifier.seconds"),
        ({"wall_seconds": -1.0}, "verifier.wall_seconds"),
        ({"retries": -1}, "verifier.retries"),
        ({"processes": -1}, "verifier.processes"),
    ],
)
def test_limits_that_cannot_work_are_refused(settings, field):
    with pytest.raises(InvalidValue, match=rf"^{field}: got"):
        Function(path="m:f", **settings)
