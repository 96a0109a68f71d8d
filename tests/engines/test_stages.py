import pytest
import torch

from aepo.control.base import Measured, Scored
from aepo.engines.stages import measurements
from aepo.types import Metric
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
