from dataclasses import replace

import pytest

from aepo.control.aepo import AEPO
from aepo.control.base import FollowUp
from aepo.control.both import Both
from aepo.control.dynamic_sampling import DynamicSampling
from aepo.errors import InvalidValue
from tests import builders as b

PLACE = b.place(prompts=2, group_size=2)


def group(number, *rewards, temperature=1.0, prompt=None, **more):
    """One group's samples, all of one prompt object."""
    rows = [b.sample(r, group=number, number=i, temperature=temperature, **more) for i, r in enumerate(rewards)]
    prompt = prompt or rows[0].rollout.completion.prompt
    return [
        replace(s, rollout=replace(s.rollout, completion=replace(s.rollout.completion, prompt=prompt))) for s in rows
    ]


def asked(control, *groups):
    return control.follow_up([s.rollout for rows in groups for s in rows], {}, PLACE)


def test_golden_rounds_of_new_prompts_until_enough_groups_differ():
    control = DynamicSampling()
    constant, good = group(0, 1.0, 1.0), group(1, 0.0, 1.0)
    assert asked(control, constant, good) == FollowUp(prompts=2)
    assert asked(control, constant, good, group(2, 0.0, 0.0), group(3, 1.0, 1.0)) == FollowUp(prompts=2)
    assert not asked(control, constant, good, group(2, 0.0, 0.0), group(3, 1.0, 0.0))
    assert asked(DynamicSampling(prompts_per_round=6), constant, good) == FollowUp(prompts=6)


def test_ordinary_groups_are_those_at_the_temperature_of_ordinary_completions():
    """An extra group of a prompt whose ordinary group has no reward is not taken for it."""
    step = replace(PLACE, temperature=0.7)
    good = [s.rollout for n in (0, 1) for s in group(n, 0.0, 1.0, temperature=0.7)]
    extra = [s.rollout for n in (2, 3) for s in group(n, 0.0, 1.0, temperature=1.0)]
    assert not DynamicSampling().follow_up([*good, *extra], {}, step)
    assert DynamicSampling().follow_up([*good[:2], *extra], {}, step) == FollowUp(prompts=2)


def test_a_stream_of_constant_groups_ends_with_one_clear_line():
    groups = [group(i, 0.0, 0.0) for i in range(20)]
    assert asked(DynamicSampling(), *groups[:18]) == FollowUp(prompts=2)  # nine rounds of two
    with pytest.raises(InvalidValue, match=r"^control\.max_rounds: got 10; .*after 10 rounds .* 0 groups .* of 2"):
        asked(DynamicSampling(), *groups)
    assert asked(DynamicSampling(max_rounds=0), *groups) == FollowUp(prompts=2)
    assert asked(DynamicSampling(max_rounds=11), *groups) == FollowUp(prompts=2)
    # Rounds of three: 2 + 3 + 3 prompts are three rounds.
    smaller = DynamicSampling(prompts_per_round=3, max_rounds=3)
    assert asked(smaller, *groups[:5]) == FollowUp(prompts=3)
    with pytest.raises(InvalidValue, match="after 3 rounds"):
        asked(smaller, *groups[:8])


def test_extra_groups_do_not_count_and_a_problem_that_comes_twice_does():
    first, good = group(0, 0.0, 0.0), group(1, 0.0, 1.0)
    prompt = first[0].rollout.completion.prompt
    hot = group(2, 0.0, 1.0, temperature=1.5, prompt=prompt)
    same_temperature = group(2, 0.0, 1.0, prompt=prompt)
    assert asked(DynamicSampling(), first, good, hot) == FollowUp(prompts=2)
    assert asked(DynamicSampling(), first, good, same_temperature) == FollowUp(prompts=2)
    assert not asked(DynamicSampling(), first, good, group(2, 0.0, 1.0, prompt=replace(prompt)))


def test_nothing_at_all_is_left_to_the_loop():
    assert not DynamicSampling().follow_up([], {}, PLACE)


def test_golden_the_first_good_groups_are_trained_on_and_all_stay_for_the_sensor():
    rows = [
        *group(0, 1.0, 1.0),
        *group(1, 0.0, 1.0),
        *group(2, 0.0, 0.0),
        *group(3, 1.0, 0.0),
        *group(4, 0.0, 1.0),
    ]
    extra = group(5, 1.0, 1.0, extra=True, temperature=1.5)
    mixed = DynamicSampling().mix(rows, extra, {}, PLACE)
    assert [s.rollout for s in mixed] == [s.rollout for s in rows + extra]
    assert [s.trained for s in mixed] == [False] * 2 + [True] * 2 + [False] * 2 + [True] * 2 + [False] * 2 + [True] * 2


def test_rows_that_another_control_took_out_stay_out():
    rows = [replace(s, trained=False) for s in group(0, 0.0, 1.0)]
    assert not any(s.trained for s in DynamicSampling().mix(rows, [], {}, PLACE))


def test_it_goes_with_aepo():
    both = Both(first=AEPO(), second=DynamicSampling())
    rows = [s.rollout for s in [*group(0, 0.0, 0.0), *group(1, 1.0, 0.0)]]
    assert both.follow_up(rows, both.initial_state(), PLACE) == FollowUp(prompts=2)


def test_bad_values_are_refused():
    with pytest.raises(InvalidValue, match=r"^control\.prompts_per_round: got 0"):
        DynamicSampling(prompts_per_round=0)
