from dataclasses import replace

import pytest

from aepo.control.base import hooks
from aepo.control.both import Both
from aepo.control.dynamic_sampling import DynamicSampling
from aepo.control.overlong import OverlongShaping
from aepo.errors import InvalidValue
from tests import builders as b


def rewards(control, *lengths, reward=1.0, max_tokens=10):
    rollouts = [b.sample(reward, tokens=(1,) * n).rollout for n in lengths]
    return control.reward(rollouts, {}, b.place(max_tokens=max_tokens))


def test_golden_the_three_regimes_of_length():
    """L_max 20, L_c 4: nothing up to 16, then a quarter for each token."""
    control = OverlongShaping(longest=20, buffer=4)
    assert rewards(control, 1, 16, 17, 18, 20) == pytest.approx([1.0, 1.0, 0.75, 0.5, 0.0])
    assert rewards(control, 16, 20, reward=0.0) == [0.0, -1.0]
    doubled = OverlongShaping(longest=20, buffer=4, factor=2.0)
    assert rewards(doubled, 18, 20, reward=0.0) == [-1.0, -2.0]


def test_golden_the_papers_numbers():
    """20480 and a fifth of it, 4096: half of the buffer costs a half."""
    control = OverlongShaping(longest=20480)
    assert rewards(control, 16384, 18432, 20480) == pytest.approx([1.0, 0.5, 0.0])


def test_the_limit_is_the_samplers_unless_it_is_set():
    assert rewards(OverlongShaping(), 8, 9, 10) == pytest.approx([1.0, 0.5, 0.0])
    assert rewards(OverlongShaping(buffer=5), 5, 6, 10) == pytest.approx([1.0, 0.8, 0.0])
    assert rewards(OverlongShaping(buffer=1), 9, 10) == [1.0, 0.0]
    assert rewards(OverlongShaping(buffer=1.0), 5) == [0.5]


def cut(sample):
    return replace(
        sample, rollout=replace(sample.rollout, completion=replace(sample.rollout.completion, truncated=True))
    )


def test_truncated_rows_are_not_trained_on_when_filtered():
    rows = [b.sample(1.0), cut(b.sample(0.0, number=1))]
    extra = [b.sample(1.0, extra=True, group=9), cut(b.sample(0.0, extra=True, group=9))]
    assert OverlongShaping().mix(rows, extra, {}, b.place()) == [*rows, *extra]
    filtered = OverlongShaping(filter_truncated=True).mix(rows, extra, {}, b.place())
    assert filtered == [rows[0], replace(rows[1], trained=False), extra[0]]


def test_dapo_has_both_parts():
    both = Both(first=DynamicSampling(), second=OverlongShaping())
    rollouts = [b.sample(1.0, tokens=(1,) * n).rollout for n in (8, 9)]
    assert both.reward(rollouts, both.initial_state(), b.place()) == pytest.approx([1.0, 0.5])
    assert both.penalty(b.scored([b.sample(1.0)]), None, both.initial_state()) is None
    assert hooks(OverlongShaping()) == ("reward", "mix")


@pytest.mark.parametrize(
    "bad",
    [{"longest": 0}, {"buffer": 0}, {"buffer": 0.0}, {"buffer": 1.5}, {"factor": 0.0}, {"buffer": 5, "longest": 4}],
)
def test_bad_values_are_refused(bad):
    with pytest.raises(InvalidValue, match=rf"^control\.{next(iter(bad))}: got"):
        OverlongShaping(**bad)


def test_a_buffer_longer_than_what_is_sampled_is_refused_when_that_is_known():
    with pytest.raises(InvalidValue, match=r"^control\.buffer: got 11"):
        rewards(OverlongShaping(buffer=11), 5)
