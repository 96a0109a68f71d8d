import math

import pytest

from aepo.errors import InvalidValue
from aepo.tasks import Data
from aepo.tasks.rewards import Answered, Verdict, Verifier
from aepo.tasks.weighted import Weighted

ITEMS = [Answered("p", text, "2", {}) for text in ("2", "3")]


class Fixed(Verifier):
    def __init__(self, *verdicts):
        self.verdicts = list(verdicts)

    def judge(self, items):
        return self.verdicts


def judged(*judges, weights=()):
    return Weighted(tuple((f"r{n}", Fixed(*verdicts)) for n, verdicts in enumerate(judges)), weights).judge(ITEMS)


def test_golden_the_weighted_sum_and_its_parts():
    found = judged([Verdict(1.0), Verdict(0.0)], [Verdict(0.5), Verdict(1.0)], weights=(2.0, 0.2))
    assert [v.reward for v in found] == pytest.approx([2.1, 0.2])
    assert found[0].parts == {"r0": 1.0, "r1": 0.5} and not any(v.failed for v in found)


def test_no_score_of_one_judge_counts_nothing_and_of_all_is_no_score():
    none = Verdict(math.nan, reason="no score")
    found = judged([none, none], [Verdict(0.5), none])
    assert found[0].reward == 0.5 and math.isnan(found[1].reward) and not found[1].failed


def test_a_failed_judge_fails_the_sum():
    found = judged([Verdict(1.0)] * 2, [Verdict(math.nan, failed=True, reason="boom"), Verdict(1.0)])
    assert found[0].failed and math.isnan(found[0].reward) and found[0].reason == "r1: boom" and found[1].reward == 2.0


def test_the_first_verdict_of_its_own_decides_what_is_right():
    found = judged([Verdict(0.1)] * 2, [Verdict(0.0, right=True), Verdict(1.0, right=False)])
    assert [v.right for v in found] == [True, False]


def test_one_weight_for_each_reward_or_none():
    with pytest.raises(InvalidValue, match=r"^task\.reward_weights: got \[1\.0\]; must be a list of 2"):
        Data(rewards=("graded", "m:f"), reward_weights=(1.0,))
    with pytest.raises(InvalidValue, match=r"^task\.reward_weights: got \[1\.0\]; must be left out"):
        Data(reward_weights=(1.0,))


def test_a_task_with_several_rewards(tmp_path):
    (tmp_path / "mine.py").write_text("def brief(completions, **kw):\n    return [len(c) < 12 for c in completions]\n")
    (tmp_path / "rows.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n{"problem": "1+2", "answer": "3"}\n')
    task = Data(
        train=str(tmp_path / "rows.jsonl"),
        rewards=("graded", f"{tmp_path / 'mine.py'}:brief"),
        reward_weights=(1.0, 0.1),
    )
    problem = task.train_problem(0, 0)
    right, long = f"\\boxed{{{problem.data['answer']}}}", f"so it is \\boxed{{{problem.data['answer']}}}, I think"
    found = task.judge([problem.data] * 3, [right, long, "no"], [False] * 3)
    assert [v.reward for v in found] == pytest.approx([1.1, 1.0, 0.1])
    assert [v.right for v in found] == [True, True, False] and found[0].parts == {"graded": 1.0, "brief": 1.0}
