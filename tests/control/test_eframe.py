import copy
import json
from dataclasses import replace

import pytest
import torch

from aepo.control.base import ExtraGroup, FollowUp
from aepo.control.eframe import EFRame
from aepo.errors import InvalidValue
from aepo.loss.advantages import group_mean_std
from aepo.methods import METHODS
from tests import builders as b
from tests.control.test_dynamic_sampling import group
from tests.control.test_overlong import cut

PLACE = b.place(prompts=2, group_size=2)


def asked(control, *groups):
    return control.follow_up([s.rollout for rows in groups for s in rows], control.initial_state(), PLACE)


def explored(number, prompt, *rewards):
    return group(number, *rewards, temperature=1.2, prompt=prompt, extra=True)


# --- exploration --------------------------------------------------------------------------------------------


def test_golden_prompts_without_a_right_answer_are_explored_once():
    easy, hard = group(0, 1.0, 0.0), group(1, 0.0, 0.0)
    assert asked(EFRame(), easy, hard) == FollowUp(extra=(ExtraGroup(1, 20, 1.2),))
    assert not asked(EFRame(), easy, hard, explored(2, hard[0].rollout.completion.prompt, *[0.0] * 20))
    assert not asked(EFRame(), easy, group(1, 1.0, 1.0))
    other = group(2, 0.0, 1.0, temperature=1.5, prompt=hard[0].rollout.completion.prompt)  # another control's
    assert asked(EFRame(), easy, hard, other) == FollowUp(extra=(ExtraGroup(1, 20, 1.2),))


def test_filling_draws_new_prompts_until_as_many_rows_are_kept_as_the_step_has():
    dead, good = group(0, 1.0, 1.0), group(1, 1.0, 0.0)
    fill = EFRame(max_rounds=3)
    assert not asked(EFRame(), dead, good)
    assert asked(fill, dead, good) == FollowUp(prompts=2)  # two rows of four
    more = [group(2, 1.0, 1.0), group(3, 0.0, 1.0)]
    assert not asked(fill, dead, good, *more)
    dry = [group(2, 1.0, 1.0), group(3, 1.0, 1.0)]
    assert asked(fill, dead, good, *dry) == FollowUp(prompts=2)
    assert not asked(fill, dead, good, *dry, group(4, 1.0, 1.0), group(5, 1.0, 1.0))  # three rounds
    # Hard prompts of a later round are explored before more are drawn.
    hard = group(2, 0.0, 0.0)
    assert asked(fill, dead, good, hard, dry[1]).extra == (ExtraGroup(2, 20, 1.2),)
    assert not asked(fill)


def test_truncated_positives_do_not_fill():
    right, wrong = group(0, 1.0, 0.0)
    half = [cut(right), wrong]
    assert asked(EFRame(max_rounds=2), half, group(1, 1.0, 0.0)) == FollowUp(prompts=2)  # three of four kept


# --- filter -------------------------------------------------------------------------------------------------


def test_golden_which_explored_answers_pass_for_each_number_of_right_ones():
    """Of 20: right ones pass up to 9 right, wrong ones from 11 on, none at 10."""
    for right in range(1, 20):
        rewards = torch.tensor([1.0] * right + [0.0] * (20 - right))
        advantages = group_mean_std(rewards, torch.zeros(20, dtype=torch.long)).tolist()
        extra = [b.sample(r, a, group=7, extra=True, temperature=1.2) for r, a in zip(rewards, advantages, strict=True)]
        kept = [s.rollout.reward for s in EFRame().mix([], extra, {}, PLACE)]
        assert kept == ([1.0] * right if right <= 9 else [0.0] * (20 - right) if right >= 11 else [])
        if right == 1:
            assert advantages[0] == pytest.approx(4.249, abs=1e-3)
            assert advantages[1] == pytest.approx(-0.224, abs=1e-3)


def test_golden_the_filter_of_ordinary_rows():
    rows = [b.sample(1.0, a, number=i) for i, a in enumerate((0.04, -0.04, 0.06, -0.06, 0.0))]
    mixed = EFRame().mix(rows, [], {}, PLACE)
    assert [s.trained for s in mixed] == [False, False, True, True, False]
    assert [s.rollout for s in mixed] == [s.rollout for s in rows]


def test_truncated_positives_are_dropped_and_truncated_negatives_kept():
    rows = [cut(b.sample(1.0, 0.5)), cut(b.sample(0.0, -0.5, number=1))]
    assert [s.trained for s in EFRame().mix(rows, [], {}, PLACE)] == [False, True]
    extra = [cut(b.sample(0.0, a, group=5, extra=True, temperature=1.2)) for a in (1.5, -1.5)]
    assert EFRame().mix([], extra, {}, PLACE) == [extra[1]]


def test_extra_rows_of_other_controls_pass_through():
    extra = [b.sample(1.0, 0.3, group=5, extra=True, temperature=1.5), b.sample(1.0, 0.0, group=-1, extra=True)]
    assert EFRame().mix([], extra, {}, PLACE) == extra


# --- replay -------------------------------------------------------------------------------------------------


def measured(number, *advantages, trained=True, entropy=0.5):
    rows = [
        replace(b.sample(float(a > 0), a, tokens=(number,) * (i + 1), number=i), trained=trained)
        for i, a in enumerate(advantages)
    ]
    batch = b.scored(rows, logprobs=-0.25 * (number + 1))
    result = b.measured(entropy, batch=batch)
    return replace(result, scored=replace(batch, step=b.place(number, prompts=2, group_size=2)))


def after(control, *steps):
    state = control.initial_state()
    for step in steps:
        before = copy.deepcopy(state)
        new = control.update(state, step)
        assert state == before
        state = new
    assert json.loads(json.dumps(state)) == state
    return state


def test_golden_rows_above_the_threshold_are_stored_with_what_replay_needs():
    state = after(EFRame(), measured(1, 1.5, 0.9, -1.0, -1.25))
    assert state["buffer"] == [
        {"prompt": [5, 6], "completion": [1], "logprobs": [-0.5], "advantage": 1.5, "reward": 1.0},
        {"prompt": [5, 6], "completion": [1] * 4, "logprobs": [-0.5] * 4, "advantage": -1.25, "reward": 0.0},
    ]


def test_rows_that_were_not_trained_on_are_not_stored():
    assert after(EFRame(), measured(3, 1.5, trained=False))["buffer"] == []
    assert after(EFRame(), measured(3, 1.5, entropy=float("nan")))["buffer"] == []


@pytest.mark.parametrize(("size", "kept"), [(2, [2, 3]), (3, [1, 2, 3]), (None, [0, 1, 2, 3])])
def test_golden_the_buffer_is_first_in_first_out(size, kept):
    state = after(EFRame(replay_size=size), *(measured(i, 2.0) for i in range(4)))
    assert [row["completion"] for row in state["buffer"]] == [[i] for i in kept]


def test_the_default_capacity_is_two_steps_of_rows():
    state = after(EFRame(), *(measured(i, 2.0, -2.0) for i in range(6)))
    assert len(state["buffer"]) == 8 and state["buffer"][0]["completion"] == [2]


def replayed(control, state, number):
    return control.replay(state, b.place(number, prompts=2, group_size=2))


def test_golden_replay_is_due_every_fifth_step():
    state = after(EFRame(), measured(0, 2.0))
    assert [n for n in range(15) if replayed(EFRame(), state, n)] == [4, 9, 14]
    assert [n for n in range(5) if replayed(EFRame(replay_freq=2), state, n)] == [1, 3]
    assert replayed(EFRame(), EFRame().initial_state(), 4) == ()


def test_what_is_replayed_has_its_old_logprobs_and_advantage():
    (row,) = replayed(EFRame(), after(EFRame(), measured(1, 2.0)), 4)
    completion = row.rollout.completion
    assert completion.prompt.tokens == (5, 6) and completion.tokens == (1,)
    assert completion.logprobs == (-0.5,) and completion.temperature == 1.0
    assert row.advantage == 2.0 and row.rollout.reward == 1.0 and row.trained and not row.extra


@pytest.mark.parametrize(("steps", "count"), [(3, 3), (4, 4), (5, 4), (7, 4), (8, 8), (9, 8)])
def test_how_much_of_the_buffer_is_replayed(steps, count):
    """Rows 4, capacity 8: less than 4 all, then 4, and when full all; the choice in the order of the buffer."""
    state = after(EFRame(), *(measured(i, 2.0) for i in range(steps)))
    rows = replayed(EFRame(), state, 9)
    order = [row.rollout.completion.tokens[0] for row in rows]
    assert len(rows) == count and order == sorted(set(order))
    assert rows == replayed(EFRame(), state, 9)
    assert len(state["buffer"]) == min(steps, 8)


def test_a_full_buffer_of_any_size_is_replayed_whole():
    control = EFRame(replay_size=6)
    assert len(replayed(control, after(control, *(measured(i, 2.0) for i in range(6))), 9)) == 6


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("count", 1),
        ("temperature", 0.0),
        ("ordinary_threshold", -0.1),
        ("explored_threshold", float("nan")),
        ("replay_threshold", -1.0),
        ("max_rounds", 0),
        ("replay_size", 0),
        ("replay_freq", 0),
    ],
)
def test_bad_values_are_refused(field, value):
    with pytest.raises(InvalidValue, match=rf"^control\.{field}: got"):
        EFRame(**{field: value})


def test_golden_a_signed_replay_keeps_right_rows_alone():
    samples = [b.sample(1.0, 1.2, number=0), b.sample(0.0, -1.5, number=1), b.sample(1.0, 0.9, number=2)]
    for how, kept in (("absolute", [pytest.approx(1.2), -1.5]), ("signed", [pytest.approx(1.2)])):
        control = EFRame(replay_by=how)
        state = control.update(control.initial_state(), b.measured(0.5, batch=b.scored(samples)))
        assert [row["advantage"] for row in state["buffer"]] == kept


def test_golden_uec_rl_keeps_explored_rows_of_smaller_advantage():
    ordinary = [b.sample(float(a > 0), a, number=i) for i, a in enumerate((0.04, 0.06, -0.06))]
    explored = [
        b.sample(float(a > 0), a, group=1, extra=True, temperature=1.1, number=i)
        for i, a in enumerate((0.5, 0.6, -0.6))
    ]
    rows = METHODS["uec-rl"].algorithm.control.mix(ordinary, explored, {}, PLACE)
    assert [(row.advantage, row.extra) for row in rows if row.trained] == [
        (0.06, False),
        (-0.06, False),
        (0.6, True),
        (-0.6, True),
    ]
