import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aepo.evaluation.answers import boxed, qwen, spelled, whole
from aepo.evaluation.options import Options, Pass, powers_of_two
from aepo.evaluation.scores import Tally, majority_at_k, scores
from aepo.evaluation.statistics import column_intervals
from aepo.training.evaluate import Evaluation, pass_at_k


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
    evaluation = Evaluation(("a", "b"), (0, 4), samples=4, temperature=1.0, reward=0.625)
    assert evaluation.row() == {
        "pass@1": 0.5,
        "pass@2": 0.5,
        "pass@4": 0.5,
        "reward": 0.625,
        "problems": 2,
        "samples": 4,
        "reward_failures": 0,
    }


# --- maj@k --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("votes", "silent", "expected"),
    [
        ([(3, 3), (2, 0)], 1, 1.0),
        ([(2, 2), (3, 0)], 1, 0.0),
        ([(2, 2), (2, 0)], 0, 1 / 2),
        ([(2, 0), (2, 2), (2, 0), (1, 1)], 0, 1 / 3),
        ([(1, 1)], 5, 1.0),
        ([], 4, 0.0),
        ([(4, 1), (1, 1)], 0, 1 / 4),
    ],
    ids=["most", "outvoted", "tie", "three tied", "silent ones do not vote", "nobody votes", "divided verdicts"],
)
def test_golden_the_majority_of_all(votes, silent, expected):
    assert majority_at_k(votes, silent, sum(count for count, _ in votes) + silent) == pytest.approx(expected)


def by_enumeration(votes, silent, k):
    cast = [i for i, (count, _) in enumerate(votes) for _ in range(count)] + [None] * silent
    shares = []
    for subset in combinations(cast, k):
        voted = [vote for vote in subset if vote is not None]
        most = max((voted.count(vote) for vote in voted), default=0)
        won = [votes[vote] for vote in set(voted) if voted.count(vote) == most]
        shares.append(sum(right / count for count, right in won) / len(won) if won else 0.0)
    return sum(shares) / len(shares)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize(("votes", "silent"), [([(2, 2), (3, 0)], 2), ([(1, 1), (1, 0), (4, 4), (2, 0)], 0)])
def test_the_majority_of_k_is_that_of_all_subsets(votes, silent, k):
    expected = by_enumeration(votes, silent, k)
    several = [majority_at_k(votes, silent, k, (seed,)) for seed in range(30)]
    assert np.mean(several) == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(30_000))
    assert np.std(several) < 0.025


@pytest.mark.parametrize("k", [0, 4])
def test_a_majority_of_more_than_there_are_is_refused(k):
    with pytest.raises(ValueError, match="maj@k: got"):
        majority_at_k([(2, 2)], 1, k)


def test_what_votes_alike():
    assert boxed(r"first \boxed{3}, then \boxed{\frac{2}{4}}") == boxed(r"\boxed{0.50}") == "1/2"
    assert boxed(r"\boxed{\left(1, 2\right)}") == boxed(r"\boxed{(1,2)}") != boxed(r"\boxed{(2,1)}")
    assert boxed("it is 3") is None and boxed(r"\boxed{}") is None
    assert spelled(r"\boxed{0.5}") != spelled(r"\boxed{1/2}") and spelled(" 34 35 ") == "3435"
    assert qwen("The answer is 3.") == qwen(r"\boxed{3}") == "3" and qwen("none at all") is None
    assert whole(" 34  35\n") == "34 35" and whole(" ") is None


# --- sums ---------------------------------------------------------------------------------------------------


def row(answer, correct, **others):
    plain = {"reward": float(correct), "tokens": 3, "truncated": False, "failed": False}
    return {"answer": answer, "correct": correct, **plain, **others}


def test_golden_the_sums_of_two_problems():
    tallies = [Tally("a"), Tally("b")]
    for line in (row("1", True), row("2", False), row("1", True), row(None, False, truncated=True, failed=True)):
        tallies[0].add(line)
    for _ in range(4):
        tallies[1].add(row("x", False))
    assert vars(tallies[0]) == {
        "id": "a", "samples": 4, "correct": 2, "silent": 1, "tokens": 12, "truncated": 1, "failed": 1,
        "votes": {"1": (2, 2), "2": (1, 0)}, "reward": 2.0, "rewarded": 4,
    }  # fmt: skip
    found = scores(tallies, Pass(1.0, 1.0, 4, (1, 2, 4)), seed=0)
    assert {name: score.mean for name, score in found.items() if name != "maj@2"} == pytest.approx(
        {"avg@4": 1 / 4, "reward": 1 / 4, "pass@1": 1 / 4, "pass@2": (5 / 6) / 2, "pass@4": 1 / 2, "maj@4": 1 / 2}
    )
    assert found["maj@2"].mean == pytest.approx(by_enumeration([(2, 2), (1, 0)], 1, 2) / 2, abs=0.03)
    assert found == scores(tallies, Pass(1.0, 1.0, 4, (1, 2, 4)), seed=0)
    assert [(s.low, s.high) for s in scores(tallies[:1], Pass(1.0, 1.0, 4, (1,)), 0).values()] == [(None, None)] * 3


def sides(values, seed):
    found = column_intervals(values, seed)
    return np.array([i.low for i in found]), np.array([i.high for i in found])


# --- intervals ----------------------------------------------------------------------------------------------


def test_an_interval_is_the_normal_one_where_that_is_known():
    values = np.array([[1.0, 1.0]] * 200 + [[0.0, 1.0]] * 200)
    low, high = sides(values, seed=0)
    assert low == pytest.approx([0.5 - 1.96 * 0.025, 1.0], abs=0.006)
    assert high == pytest.approx([0.5 + 1.96 * 0.025, 1.0], abs=0.006)
    assert (low != sides(values, seed=1)[0])[0] and (low == sides(values, seed=0)[0]).all()


def test_intervals_hold_the_truth_as_often_as_they_say():
    """40 problems whose pass@1 is spread as Beta(0.5, 1), mean 1/3, in 300 benchmarks."""
    draw = np.random.default_rng(0)
    low, high = sides(draw.beta(0.5, 1.0, size=(40, 300)), seed=0)
    shared = np.mean((low <= 1 / 3) & (high >= 1 / 3))
    assert 0.91 <= shared <= 0.97


# --- the passes ---------------------------------------------------------------------------------------------


def test_golden_the_papers_two_passes_and_a_single_one():
    assert Options("m").passes() == (
        Pass(0.1, 0.95, 32, (1,)),
        Pass(1.0, 1.0, 32, (1, 2, 4, 8, 16, 32)),
    )
    cold, warm = Options("m", n=3000).passes()
    assert (cold.n, warm.n, warm.ks[-1]) == (32, 3000, 1024)
    assert Options("m", n=8, k=(4, 1), temperature=0.6).passes() == (Pass(0.6, 1.0, 8, (1, 4)),)
    assert Options("m", n=1, top_p=0.9).passes() == (Pass(1.0, 0.9, 1, (1,)),)
    assert powers_of_two(100) == (1, 2, 4, 8, 16, 32, 64)
