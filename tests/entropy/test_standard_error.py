import math

import pytest
import torch

from aepo.entropy.standard_error import cluster_sums, standard_error


def drawn(prompts: int, group: int, draw: torch.Generator, level: float = 1.0):
    """Entropies of completions of unequal length: each prompt has a level of its own, and long ones are lower."""
    own = level + 0.4 * torch.randn(prompts, 1, generator=draw)
    lengths = torch.randint(1, 9, (prompts, group), generator=draw)
    tokens = own[:, :, None] - 0.05 * lengths[:, :, None] + 0.3 * torch.randn(prompts, group, 8, generator=draw)
    mask = torch.arange(8) < lengths[:, :, None]
    return tokens.flatten(0, 1), mask.flatten(0, 1), torch.arange(prompts).repeat_interleave(group)


def test_it_is_how_far_readings_lie_from_one_another():
    """The mean of many steps' squared standard errors is the variance of their means; rows alone would say a third."""
    draw = torch.Generator().manual_seed(0)
    steps = [drawn(32, 8, draw) for _ in range(1500)]
    means = torch.tensor([values[mask].mean() for values, mask, _ in steps])
    said = math.sqrt(sum(standard_error(*step) ** 2 for step in steps) / len(steps))
    assert said == pytest.approx(float(means.std()), rel=0.05)
    alone = math.sqrt(sum(standard_error(v, m, torch.arange(len(v))) ** 2 for v, m, _ in steps) / len(steps))
    assert alone < 0.5 * said


def test_by_hand():
    # Prompt 0: 1 + 3 over 2 tokens. Prompt 1: 2 over 1 token. y = 2; residuals 0 and 0.
    values = torch.tensor([[1.0, 3.0], [2.0, 9.0]])
    mask = torch.tensor([[1, 1], [1, 0]])
    assert standard_error(values, mask, torch.tensor([4, 7])) == 0
    # y = 8 / 3; residuals 4 - 16/3 and 4 - 8/3, so SE^2 = 2 * 2 * (16 / 9) / 9.
    values[1, 0] = 4.0
    assert standard_error(values, mask, torch.tensor([4, 7])) == pytest.approx(math.sqrt(64 / 81))


@pytest.mark.parametrize("mask", [[[0, 0], [0, 0]], [[1, 1], [0, 0]]])
def test_fewer_than_two_prompts_say_nothing(mask):
    assert math.isnan(standard_error(torch.ones(2, 2), torch.tensor(mask), torch.tensor([0, 1])))


def test_nan_outside_the_mask_does_not_count():
    values = torch.tensor([[1.0, math.nan], [3.0, math.nan]])
    mask = torch.tensor([[True, False], [True, False]])
    numbers, sums, counts = cluster_sums(values, mask, torch.tensor([5, 2]))
    assert (numbers.tolist(), sums.tolist(), counts.tolist()) == ([2, 5], [3.0, 1.0], [1.0, 1.0])
    assert standard_error(values, mask, torch.tensor([5, 2])) == 1.0
