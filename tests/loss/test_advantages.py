import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aepo.algorithm import Algorithm
from aepo.control.both import Both
from aepo.control.dynamic_sampling import DynamicSampling
from aepo.control.overlong import OverlongShaping
from aepo.errors import InvalidValue
from aepo.loss.advantages import (
    ADVANTAGES,
    MaximumLikelihood,
    PassAtK,
    QuantileBaseline,
    group_mean,
    group_mean_std,
    leave_one_out,
    maximum_likelihood,
    pass_at_k,
    quantile_baseline,
)


def test_grpo_golden_values():
    rewards, groups = torch.tensor([1.0, 0, 0, 0, 0]), torch.zeros(5, dtype=torch.long)
    expected = torch.tensor([1.7889, -0.4472, -0.4472, -0.4472, -0.4472])
    torch.testing.assert_close(group_mean_std(rewards, groups), expected, atol=5e-5, rtol=0)


def test_group_mean_and_leave_one_out_by_hand():
    rewards, groups = torch.tensor([1.0, 0, 0, 0]), torch.zeros(4, dtype=torch.long)
    torch.testing.assert_close(group_mean(rewards, groups), torch.tensor([0.75, -0.25, -0.25, -0.25]))
    # 1 - 0, and 0 - 1/3.
    torch.testing.assert_close(leave_one_out(rewards, groups), torch.tensor([1.0, -1 / 3, -1 / 3, -1 / 3]))


@pytest.mark.parametrize("name", ADVANTAGES)
def test_groups_do_not_touch_each_other_whatever_their_order(name):
    rewards = torch.tensor([1.0, 0.0, 3.0, 7.0, 0.0])
    groups = torch.tensor([4, 4, 9, 9, 4])
    whole = ADVANTAGES[name]()(rewards, groups)
    for group in (4, 9):
        rows = groups == group
        torch.testing.assert_close(whole[rows], ADVANTAGES[name]()(rewards[rows], groups[rows]))


@pytest.mark.parametrize("name", ADVANTAGES)
@pytest.mark.parametrize("rewards", [[1.0], [0.1, 0.1, 0.1], [0.0, 0.0], [1e6 + 0.1] * 7, [0.1] * 10])
def test_nothing_to_compare_is_exactly_zero(name, rewards):
    for dtype in (torch.float32, torch.float64):  # ten times 0.1 in float64 do not add up to 1
        advantages = ADVANTAGES[name]()(torch.tensor(rewards, dtype=dtype), torch.zeros(len(rewards), dtype=torch.long))
        assert advantages.tolist() == [0.0] * len(rewards)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=9))
def test_advantages_of_a_group_sum_to_zero(rewards):
    for name in ("group-mean-std", "group-mean", "leave-one-out", "pass-at-k"):
        advantages = ADVANTAGES[name]()(torch.tensor(rewards), torch.zeros(len(rewards), dtype=torch.long))
        assert abs(advantages.double().sum().item()) < 1e-5


def test_golden_pass_at_k():
    """2508.10751 for N = 8, two right, k = 4: Rbar .785714, s .410326."""
    rewards = torch.tensor([0.0, 1, 0, 0, 1, 0, 0, 0])
    expected = torch.where(rewards > 0, 0.522233, -0.174078)
    torch.testing.assert_close(
        pass_at_k(rewards > 0.5, torch.zeros(8, dtype=torch.long), 4), expected, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("right", [0, 5, 6, 8])
def test_pass_at_k_is_zero_where_every_choice_of_k_has_a_right_one_or_none(right):
    # With fewer than k = 4 wrong ones among 8, any four hold a right one.
    rewards = torch.tensor([1.0] * right + [0.0] * (8 - right))
    assert pass_at_k(rewards > 0.5, torch.zeros(8, dtype=torch.long), 4).abs().max() == 0


def test_pass_at_k_of_a_group_smaller_than_k():
    rewards, groups = torch.tensor([1.0, 0.0, 0.0]), torch.zeros(3, dtype=torch.long)
    assert torch.equal(pass_at_k(rewards > 0.5, groups, 4), pass_at_k(rewards > 0.5, groups, 3))


def test_golden_maxrl():
    """Right (1 - p) / p and wrong -1: 3 and -1 at p = 1/4, each by the 1e-6 beside the mean smaller."""
    groups = torch.zeros(4, dtype=torch.long)
    one = maximum_likelihood(torch.tensor([1.0, 0, 0, 0]), groups)
    torch.testing.assert_close(one, torch.tensor([2.999988, -0.999996, -0.999996, -0.999996]))
    two = maximum_likelihood(torch.tensor([1.0, 1, 0, 0]), groups)
    torch.testing.assert_close(two, torch.tensor([1.0, 1, -1, -1]), atol=3e-6, rtol=0)
    partial = maximum_likelihood(torch.tensor([0.5, 0.0, 0.25, 0.25]), groups)  # mean 1/4
    torch.testing.assert_close(partial, torch.tensor([1.0, -1, 0, 0]), atol=5e-6, rtol=0)


def test_maxrl_estimates_the_gradient_of_the_truncated_logarithm():
    """One action that is right with probability p: the mean over groups of G, by enumeration, of
    sum_i A_i dlog pi(y_i)/dp / G is d/dp of -sum_{k < G} (1 - p)^k / k, which tends to 1/p, that of log p.
    """
    p, size = 0.3, 4
    total = 0.0
    for right in range(size + 1):
        rewards = torch.tensor([1.0] * right + [0.0] * (size - right))
        advantages = maximum_likelihood(rewards, torch.zeros(size, dtype=torch.long)).double()
        scores = torch.where(rewards > 0, 1 / p, -1 / (1 - p)).double()
        chance = math.comb(size, right) * p**right * (1 - p) ** (size - right)
        total += chance * (advantages * scores).sum().item() / size
    expected = sum((1 - p) ** (k - 1) for k in range(1, size))
    assert total == pytest.approx(expected, rel=1e-4)


def test_maxrl_refuses_negative_rewards():
    with pytest.raises(InvalidValue, match=r"^reward: got -1.0; must be 0 or more with the advantage maxrl"):
        maximum_likelihood(torch.tensor([1.0, -1.0]), torch.zeros(2, dtype=torch.long))
    for control in (OverlongShaping(), Both(first=OverlongShaping(), second=DynamicSampling())):
        with pytest.raises(InvalidValue, match=r"^advantage.name: got 'maxrl'; must be one that takes the negative"):
            Algorithm(advantage=MaximumLikelihood(), control=control)


def test_golden_quantile_baseline_is_a_gate():
    """K = 0.4: up to an accuracy of 0.6 only right answers count, above it only wrong ones."""
    groups = torch.zeros(5, dtype=torch.long)
    few, many = torch.tensor([1.0, 1, 1, 0, 0]), torch.tensor([1.0, 1, 1, 1, 0])
    std_few, std_many = 0.3**0.5, 0.2**0.5  # unbiased, of 3 of 5 and of 4 of 5
    torch.testing.assert_close(quantile_baseline(few, groups, 0.4), few / std_few, atol=1e-5, rtol=0)
    torch.testing.assert_close(quantile_baseline(many, groups, 0.4), (many - 1) / std_many, atol=1e-5, rtol=0)
    # A higher K closes the gate earlier: at 0.6, an accuracy of 0.4 is the last for right answers.
    assert (quantile_baseline(few, groups, 0.6) <= 0).all() and (quantile_baseline(1 - few, groups, 0.6) >= 0).all()


@pytest.mark.parametrize(
    ("make", "field"),
    [(lambda: PassAtK(k=1), "advantage.k"), (lambda: QuantileBaseline(quantile=1.0), "advantage.quantile")],
)
def test_bad_settings_are_refused_by_name(make, field):
    with pytest.raises(InvalidValue, match=f"^{field}: got"):
        make()


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="rewards and groups"):
        group_mean(torch.zeros(3), torch.zeros(2, dtype=torch.long))
