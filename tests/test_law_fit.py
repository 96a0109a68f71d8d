import json
import math

import numpy as np
import pytest

from aepo.checks import InvalidValue
from aepo.law_fit import Points, fit_law, predict


def exact(entropies, a=0.2, b=0.6, noise=0.0, seed=0):
    draw = np.random.default_rng(seed)
    rewards = [b - a * math.exp(h) + noise * draw.standard_normal() for h in entropies]
    return Points.of(list(entropies), rewards)


def test_golden_exact_points_give_the_law_back():
    fit = fit_law([exact(np.linspace(1.1, 0.2, 30))])
    assert (fit.a, fit.b) == (pytest.approx(0.2, abs=1e-9), pytest.approx(0.6, abs=1e-9))
    assert fit.a_interval == pytest.approx((0.2, 0.2)) and fit.b_interval == pytest.approx((0.6, 0.6))
    assert fit.rmse < 1e-12 and fit.held_out_rmse < 1e-12 < fit.constant_rmse
    assert (fit.points, fit.held_out) == (30, 9)


def test_golden_the_held_out_error_is_that_of_the_rest():
    """A line through the first part; the last three rewards are 0.1 off it."""
    points = exact(np.linspace(1.0, 0.1, 13))
    bent = Points(points.entropy, points.reward + np.where(np.arange(13) >= 10, 0.1, 0.0))
    fit = fit_law([bent], held_out=3 / 13)
    assert fit.held_out == 3 and fit.held_out_rmse == pytest.approx(0.1)
    assert 0 < fit.rmse < 0.1
    # Without the law: the mean of the three rewards before.
    missed = bent.reward[10:] - bent.reward[7:10].mean()
    assert fit.constant_rmse == pytest.approx(math.sqrt((missed**2).mean()))


def test_the_intervals_cover_the_truth_about_as_often_as_they_say():
    covered = 0
    for seed in range(40):
        fit = fit_law([exact(np.linspace(1.1, 0.2, 60), noise=0.05, seed=seed)], seed=seed)
        covered += fit.a_interval[0] <= 0.2 <= fit.a_interval[1]
    assert 33 <= covered <= 40, covered


def test_a_set_of_runs_is_fitted_together():
    fit = fit_law([exact(np.linspace(1.0, 0.8, 9)), exact(np.linspace(0.5, 0.3, 9))])
    assert fit.a == pytest.approx(0.2) and fit.points == 18 and fit.held_out == 6


def test_reward_that_does_not_depend_on_entropy_is_said():
    noise = np.random.default_rng(3).normal(0.5, 0.1, 100)
    lines = fit_law([Points.of(np.linspace(1, 0.2, 100).tolist(), noise.tolist())]).lines()
    assert "a = 0 is inside its interval" in lines[3] and "2511.05993" in lines[-1]
    assert "against the law" in fit_law([exact(np.linspace(1, 0.2, 30), a=-0.2)]).lines()[3]


@pytest.mark.parametrize(
    ("points", "words"),
    [
        (exact(np.linspace(1.0, 0.2, 9)), "points: got 9; must be at least 10"),
        (exact(np.linspace(0.55, 0.5, 50)), r"entropy: got '0.503 to 0.547 nats per token \(0.045\) in 50 points'"),
        # All the movement is in the part that is to be predicted.
        (exact([0.9] * 30 + [0.2] * 12), "the first 70%"),
        (exact(np.linspace(1.0, 0.2, 12)), "points: got 8"),
        (Points.of([1.0] * 20, [math.nan] * 20), "points: got 0"),
    ],
)
def test_too_little_is_refused_with_the_numbers(points, words):
    with pytest.raises(InvalidValue, match=words) as error:
        fit_law([points])
    assert len(str(error.value).splitlines()) == 1


def test_a_run_folders_points(tmp_path):
    rows = [
        {"step": s, "entropy": 1.0 - s / 10, "reward": s / 10, **({"evaluation": {"pass@1": 0.5}} if s % 2 else {})}
        for s in range(4)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert Points.of_run(tmp_path, "reward").reward.tolist() == [0.0, 0.1, 0.2, 0.3]
    evaluated = Points.of_run(tmp_path, "pass@1")
    assert evaluated.entropy.tolist() == [0.9, 0.7] and evaluated.reward.tolist() == [0.5, 0.5]
    with pytest.raises(InvalidValue, match="a run folder with steps"):
        Points.of_run(tmp_path / "nowhere", "reward")
    assert predict(0.2, 0.6, np.array([0.0])).tolist() == [pytest.approx(0.4)]
