import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aepo.evaluate import Evaluation, pass_at_k


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"), [(10, 3, 5, 11 / 12), (4, 1, 2, 0.5), (7, 3, 1, 3 / 7), (5, 0, 3, 0.0), (5, 3, 3, 1.0)]
)
def test_golden_values(n, c, k, expected):
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)


@given(st.integers(1, 8), st.data())
def test_it_is_the_share_of_subsets_with_a_correct_sample(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(combinations(range(n), k))
    expected = sum(any(i < c for i in subset) for subset in subsets) / len(subsets)
    assert pass_at_k(n, c, k) == pytest.approx(expected)


@pytest.mark.parametrize("p", [0.03, 0.4])
def test_it_is_unbiased_where_the_plug_in_is_not(p):
    n, k = 16, 4
    chance = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    truth = 1 - (1 - p) ** k
    assert sum(w * pass_at_k(n, c, k) for c, w in enumerate(chance)) == pytest.approx(truth, abs=1e-12)
    assert sum(w * (1 - (1 - c / n) ** k) for c, w in enumerate(chance)) < truth - 1e-3


def test_large_n_is_exact():
    assert pass_at_k(1024, 1, 1024) == 1.0
    assert pass_at_k(1024, 1, 512) == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [(4, 2, 5), (4, 2, 0), (4, 5, 1), (4, -1, 1)])
def test_impossible_counts_are_refused(bad):
    with pytest.raises(ValueError, match="pass@k: got"):
        pass_at_k(*bad)


def test_the_mean_is_over_problems():
    evaluation = Evaluation(("a", "b"), (0, 4), samples=4, temperature=1.0)
    assert evaluation.row() == {
        "pass@1": 0.5,
        "pass@2": 0.5,
        "pass@4": 0.5,
        "problems": 2,
        "samples": 4,
        "reward_failures": 0,
    }
