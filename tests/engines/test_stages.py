import math

import pytest
import torch

from aepo.algorithm import Algorithm
from aepo.control.aepo import AEPO
from aepo.control.base import Measured, Scored
from aepo.control.both import Both
from aepo.control.dynamic_sampling import DynamicSampling
from aepo.engines.stages import loss, measurements
from aepo.types import BatchStatistics, Metric
from tests import builders as b


def row(*groups: list[float], extra: tuple[list[float], ...] = ()) -> dict:
    """What is logged of a batch with ordinary groups of these rewards, and extra groups of those."""
    kinds = [(rewards, False) for rewards in groups] + [(rewards, True) for rewards in extra]
    samples = [
        b.sample(reward, group=group, extra=is_extra, number=number, temperature=1.5 if is_extra else 1.0)
        for group, (rewards, is_extra) in enumerate(kinds)
        for number, reward in enumerate(rewards)
    ]
    scored: Scored = b.scored(samples, logprobs=-1.0, entropy=torch.tensor(0.7))
    reward = Metric.of(scored.batch.rewards, ~scored.batch.extra)
    drawn = [sample for sample in samples if sample.extra]
    measured = Measured(Metric.of(scored.entropy, scored.ordinary), Metric(0.0, 0), reward, reward, drawn, scored)
    return measurements(measured, samples, sampler=True)


@pytest.mark.parametrize(
    ("groups", "dead"),
    [
        ([[1.0, 1.0, 1.0]], 1.0),
        ([[0.0, 0.0, 0.0]], 1.0),
        ([[0.0, 1.0, 0.0]], 0.0),
        ([[0.3, 0.3], [0.3, 0.4]], 1 / 2),
        ([[1.0, 1.0], [0.0, 0.0], [0.0, 1.0], [1.0, 0.0]], 2 / 4),
        ([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.0]], 3 / 4),
        ([[1.0], [0.0, 1.0]], 1 / 2),
    ],
    ids=["all right", "all wrong", "mixed", "partial rewards", "two of four", "three of four", "a group of one"],
)
def test_a_dead_group_has_equal_rewards_right_or_wrong(groups, dead):
    assert row(*groups)["dead_groups"] == pytest.approx(dead)


def test_extra_groups_are_not_counted_as_dead_or_alive():
    ordinary = ([0.0, 1.0], [0.0, 0.0])
    assert row(*ordinary, extra=([1.0, 1.0], [0.0, 0.0], [1.0, 1.0]))["dead_groups"] == 1 / 2
    assert row(*ordinary, extra=([0.0, 1.0], [0.0, 1.0]))["dead_groups"] == 1 / 2


# --- the loss of positives ----------------------------------------------------------------------------------


def gradients(control, moved: float = 0.5) -> tuple[list[float], float]:
    """d loss / d log pi of an ordinary and an extra row of one token, A = 1 and 2, log ratio `moved`; clip share."""
    samples = [b.sample(1.0, 1.0, tokens=(1,)), b.sample(1.0, 2.0, tokens=(1,), extra=True)]
    part = b.scored(samples, logprobs=-1.0)
    logprobs = torch.full((2, 1), moved - 1.0, requires_grad=True)
    algorithm = Algorithm(control=control)
    output = loss(algorithm, part, BatchStatistics(logprobs), part.batch.mask / 2, control.initial_state())
    output.loss.backward()
    return logprobs.grad.flatten().tolist(), output.clipped.mean


def test_golden_positives_are_clipped_as_all_rows_or_not_at_all():
    """At a log ratio of 0.5 the ratio 1.65 is beyond 1.2: no gradient. By REINFORCE the positive has -A / 2 = -1."""
    assert gradients(AEPO()) == ([0.0, 0.0], 1.0)
    assert gradients(AEPO(positive_loss="reinforce")) == ([0.0, -1.0], 0.5)
    both = Both(first=AEPO(positive_loss="reinforce"), second=DynamicSampling())
    assert gradients(both) == ([0.0, -1.0], 0.5)


@pytest.mark.parametrize("control", [AEPO(), AEPO(positive_loss="reinforce")])
def test_before_the_weights_move_positives_have_one_gradient(control):
    assert gradients(control, moved=0.0) == ([-0.5, -1.0], 0.0)


def test_a_positive_trained_by_reinforce_has_no_ratio():
    """The ratio of the surrogate would scale the gradient by 0.9 and by 1.1."""
    for ratio in (0.9, 1.1):
        (ordinary, positive), _ = gradients(AEPO(positive_loss="reinforce"), moved=math.log(ratio))
        assert (ordinary, positive) == (pytest.approx(-ratio / 2), pytest.approx(-1.0))
