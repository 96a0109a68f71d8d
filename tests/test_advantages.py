import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aepo.advantages import ADVANTAGES, group_mean, group_mean_std, leave_one_out


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
    whole = ADVANTAGES[name](rewards, groups)
    for group in (4, 9):
        rows = groups == group
        torch.testing.assert_close(whole[rows], ADVANTAGES[name](rewards[rows], groups[rows]))


@pytest.mark.parametrize("name", ADVANTAGES)
@pytest.mark.parametrize("rewards", [[1.0], [0.1, 0.1, 0.1], [0.0, 0.0], [1e6 + 0.1] * 7, [0.1] * 10])
def test_nothing_to_compare_is_exactly_zero(name, rewards):
    for dtype in (torch.float32, torch.float64):  # ten times 0.1 in float64 do not add up to 1
        advantages = ADVANTAGES[name](torch.tensor(rewards, dtype=dtype), torch.zeros(len(rewards), dtype=torch.long))
        assert advantages.tolist() == [0.0] * len(rewards)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=9))
def test_advantages_of_a_group_sum_to_zero(rewards):
    for function in ADVANTAGES.values():
        advantages = function(torch.tensor(rewards), torch.zeros(len(rewards), dtype=torch.long))
        assert abs(advantages.double().sum().item()) < 1e-5


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="rewards and groups"):
        group_mean(torch.zeros(3), torch.zeros(2, dtype=torch.long))
