import math
from dataclasses import replace

import pytest
import torch

from aepo.control.edge_grpo import EDGE
from aepo.errors import InvalidValue
from tests import builders as b


def two(entropy):
    """A right answer of two tokens and a wrong one of one token."""
    rows = [b.sample(1.0, 1.0, tokens=(1, 1)), b.sample(0.0, -1.0, tokens=(1,))]
    return b.scored(rows, entropy=torch.tensor(entropy))


def shaped(scored, **fields):
    return EDGE(**fields).shape(scored.batch.advantages, scored, {})


def test_golden_confident_answers_weigh_more_by_their_true_lengths():
    # Means 2 and 1 (not 1/2, as over the padded length), their mean 1.5: factors 0.75 and 1.5.
    assert shaped(two([[1.0, 3.0], [1.0, 9.0]])).tolist() == [[0.75, 0.75], [-1.5, 0.0]]


def test_golden_a_factor_is_at_most_the_bound():
    # Means 2 and 0, their mean 1: factors 0.5 and, for zero entropy, the bound.
    assert shaped(two([[1.0, 3.0], [0.0, 0.0]])).tolist() == [[0.5, 0.5], [-10.0, 0.0]]
    # Means 2 and 0.01, their mean 1.005: 0.5025, and 100.5 is bounded by 4.
    found = shaped(two([[1.0, 3.0], [0.01, 0.0]]), most=4.0)
    assert found[0].tolist() == pytest.approx([0.5025, 0.5025]) and found[1, 0].item() == pytest.approx(-4)


@pytest.mark.parametrize("entropy", [0.0, 0.7])
def test_equal_entropies_are_the_base_algorithm(entropy):
    scored = two([[entropy] * 2] * 2)
    torch.testing.assert_close(shaped(scored), scored.batch.advantages)


def test_untrained_rows_do_not_enter_the_mean():
    scored = two([[1.0, 3.0], [1.0, 0.0]])
    without = replace(scored, batch=replace(scored.batch, trained=torch.tensor([True, False])))
    assert shaped(without)[0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("value", [0.9, math.inf, math.nan])
def test_bad_values_are_refused(value):
    with pytest.raises(InvalidValue, match=r"^control\.most: got"):
        EDGE(most=value)
