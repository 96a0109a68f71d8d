import pytest
from hypothesis import given
from hypothesis import strategies as st

from aepo.engines.right import RightRule
from aepo.errors import InvalidValue
from aepo.types import Completion, Prompt, Rollout


def rollout(reward, prompt=0, group=None, verdict=None):
    completion = Completion(
        Prompt(f"p{prompt}", (prompt,), {}), prompt if group is None else group, 1.0, (1,), (-1.0,), False
    )
    return Rollout(completion, reward, verdict=verdict)


def right(rule, *rollouts):
    return [found.right for found in RightRule.of(rule).marked(rollouts)]


def test_a_threshold_is_exceeded_not_reached():
    assert right(0.7, rollout(0.7), rollout(0.71), rollout(1.0)) == [False, True, True]
    assert RightRule.of(0.7).describe() == "reward > 0.7"


def test_auto_is_one_half_where_that_says_something():
    assert right("auto", rollout(0.4), rollout(0.6), rollout(0.5)) == [False, True, False]


def test_auto_takes_the_best_of_each_prompt_where_no_reward_of_the_step_exceeds_one_half():
    rewards = [rollout(0.0), rollout(0.4), rollout(0.2, prompt=1), rollout(0.2, prompt=1)]
    assert right("auto", *rewards) == [False, True, False, False]
    assert right("auto", *rewards, rollout(1.0, prompt=2)) == [False, False, False, False, True]


def test_rewards_of_zero_and_one_are_the_same_with_auto_and_one_half():
    for rewards in ([0.0, 0.0], [0.0, 1.0], [1.0, 1.0]):
        rows = [rollout(reward) for reward in rewards]
        assert right("auto", *rows) == right(0.5, *rows)


def test_best_compares_extra_and_ordinary_completions_of_a_prompt():
    rows = [rollout(0.2), rollout(0.2), rollout(0.9, group=7), rollout(-3.0, prompt=1), rollout(-1.0, prompt=1)]
    assert right("best", *rows) == [False, False, True, False, True]


def test_the_functions_own_verdict_wins_over_the_reward():
    rows = [rollout(-1.0, verdict=True), rollout(1.0, verdict=False), rollout(0.9)]
    assert right("auto", *rows) == [True, False, True]
    assert right("verdict", *rows) == [True, False, False]
    assert right(0.5, *rows) == [False, True, True]


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8))
def test_best_marks_some_but_never_all_of_a_prompt(rewards):
    found = right("best", *map(rollout, rewards))
    assert any(found) == (max(rewards) > min(rewards)) and not all(found)


@pytest.mark.parametrize(("value", "words"), [("bst", "did you mean best"), (float("nan"), "a finite threshold")])
def test_a_rule_that_does_not_exist_is_refused(value, words):
    with pytest.raises(InvalidValue, match=rf"^task\.right: got .*{words}"):
        RightRule.of(value)


def test_an_evaluation_judges_a_completion_alone():
    assert RightRule.of("best").alone(0.6) and not RightRule.of("best").alone(0.4)
    assert not RightRule().alone(float("nan")) and RightRule().alone(-1.0, verdict=True)
    assert RightRule.of("best").describe(alone=True) == "reward > 0.5"
