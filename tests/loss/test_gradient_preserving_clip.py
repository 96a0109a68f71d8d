"""CE-GPPO's surrogate: a clip that leaves a limited gradient beyond its bounds."""

import math

import pytest
import torch

from aepo.algorithm import Algorithm
from aepo.errors import InvalidValue
from aepo.loss.surrogates import Bounds, Clip, GradientPreservingClip
from aepo.loss.tokens import Tokens
from tests import originals


def from_log(log_ratio):
    """Return tokens of this log ratio, [B, T]."""
    old = torch.full_like(log_ratio.detach(), math.log(0.01))
    return Tokens.of(log_ratio + old, old, torch.ones_like(log_ratio, dtype=torch.bool))


def slope(surrogate, ratio, advantage, bounds=None):
    """The objective of one token and its gradient by log pi."""
    log = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    value = surrogate(from_log(log), torch.tensor([[advantage]], dtype=torch.float64), bounds)
    value.sum().backward()
    return value.item(), log.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (0.5, -1.0, -0.5 * 0.8),  # below the lower bound: beta1 (1 - low) A
        (0.9, -2.0, -0.9 * 2.0),  # inside: r A
        (1.5, 1.0, 0.25 * 1.28),  # above the upper bound: beta2 (1 + high) A
        (0.5, 1.0, 0.5),  # the other side of A > 0 is not clipped
        (1.5, -1.0, -1.5),
    ],
)
def test_golden_value_and_gradient_are_the_same_number(ratio, advantage, expected):
    surrogate = GradientPreservingClip(low=0.2, high=0.28, beta1=0.5, beta2=0.25)
    assert slope(surrogate, ratio, advantage) == pytest.approx((expected, expected))


def test_golden_the_dual_clip_leaves_no_gradient():
    assert slope(GradientPreservingClip(dual=3.0), 5.0, -1.0) == pytest.approx((-3.0, 0.0))
    assert slope(GradientPreservingClip(dual=None), 5.0, -1.0) == pytest.approx((-5.0, -5.0))


@pytest.mark.parametrize("case", originals.cases("ce-gppo"))
def test_golden_the_authors_function(case):
    algorithm = Algorithm(surrogate=GradientPreservingClip(**case["settings"]))
    found = originals.loss_and_gradient(algorithm, originals.scored(case["input"]), case["input"])
    originals.agrees(found, case)


def test_without_its_multiples_the_gradient_is_that_of_ppos_clip():
    for ratio in (0.3, 0.79, 0.81, 1.0, 1.19, 1.21, 4.0):
        for advantage in (-1.5, 2.0):
            ours, ppo = (
                slope(surrogate, ratio, advantage)[1]
                for surrogate in (GradientPreservingClip(beta1=0.0, beta2=0.0, dual=3.0), Clip(dual=3.0))
            )
            assert ours == pytest.approx(ppo)


def test_bounds_of_a_control_stand_in_for_its_own():
    assert slope(GradientPreservingClip(), 1.5, 1.0, Bounds(low=0.2, high=0.4))[1] == pytest.approx(1.4)
    assert slope(GradientPreservingClip(), 1.3, 1.0, Bounds(low=0.2, high=0.4))[1] == pytest.approx(1.3)


def test_clipped_says_which_tokens_are_beyond_a_bound():
    ratio, advantages = torch.tensor([[0.5, 0.5, 1.5, 1.5, 11.0]]), torch.tensor([[1.0, -1.0, 1.0, -1.0, -1.0]])
    assert GradientPreservingClip().clipped(from_log(ratio.log()), advantages).tolist() == [
        [False, True, True, False, True]
    ]


def test_a_ratio_that_underflows_gives_no_nan():
    log = torch.tensor([[-200.0]], requires_grad=True)
    GradientPreservingClip()(from_log(log), torch.tensor([[-1.0]])).sum().backward()
    assert log.grad.isfinite().all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("low", 0.0),
        ("low", 1.5),
        ("high", 0.0),
        ("high", math.inf),
        ("beta1", -0.1),
        ("beta2", math.nan),
        ("dual", 1.0),
    ],
)
def test_bad_values_are_refused(field, value):
    with pytest.raises(InvalidValue, match=rf"^surrogate\.{field}: got"):
        GradientPreservingClip(**{field: value})
