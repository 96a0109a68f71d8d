import math

import numpy as np
import pytest

from aepo.analysis.law_fit import Points, fit_law, predict
from aepo.cli import FitLaw
from aepo.errors import InvalidValue
from tests.run_folders import folder
from tests.run_folders import row as full_row


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
    # Without the law: the mean of the ten rewards before.
    missed = bent.reward[10:] - bent.reward[:10].mean()
    assert fit.constant_rmse == pytest.approx(math.sqrt((missed**2).mean()))


def test_golden_no_change_is_each_runs_own_last_ten_points():
    """Two runs that stay at 0.2 and 0.8 after another beginning: predicting no change errs nowhere."""
    entropies = np.linspace(1.0, 0.5, 20)
    runs = [Points.of(entropies.tolist(), [0.5] * 4 + [level] * 16) for level in (0.2, 0.8)]
    assert fit_law(runs).constant_rmse == pytest.approx(0.0)
    # With half held out the ten points before are those of the beginning, too.
    before = (4 * 0.5 + 6 * 0.2) / 10
    assert fit_law(runs, held_out=0.5).constant_rmse == pytest.approx(before - 0.2)
    assert "the mean of each run's own last 10 points before" in fit_law(runs).lines()[2]
    # A run of one point is known by it, and has none to predict.
    assert fit_law([*runs, Points.of([0.7], [0.1])], held_out=0.6).held_out == 24


def test_the_intervals_cover_the_truth_about_as_often_as_they_say():
    covered = 0
    for seed in range(40):
        fit = fit_law([exact(np.linspace(1.1, 0.2, 60), noise=0.05, seed=seed)], seed=seed)
        covered += fit.a_interval[0] <= 0.2 <= fit.a_interval[1]
    assert 33 <= covered <= 40, covered


def test_golden_three_runs_or_more_are_drawn_anew():
    """Without noise, runs at a = 0.1, 0.2, 0.3: one draw in 27 is of one run only, so 95 % reach from 0.1 to 0.3."""
    runs = [exact(np.linspace(1.1, 0.2, 300), a=a) for a in (0.1, 0.2, 0.3)]
    fit = fit_law(runs)
    assert fit.a_interval == pytest.approx((0.1, 0.3), abs=0.02) and "bootstrap over runs" in fit.lines()[1]
    pair = fit_law(runs[::2])
    assert "the runs as they are" in pair.lines()[1]
    # A run without a point is none.
    assert fit_law([*runs[::2], Points.of([], [])]) == pair


def test_the_interval_covers_an_a_that_differs_between_runs(monkeypatch):
    """a is 0.2 on average; the runs' own are told apart by their many points, which a draw of points alone would take
    for certainty about a."""
    monkeypatch.setattr("aepo.analysis.law_fit.RESAMPLES", 400)
    draw, covered = np.random.default_rng(0), 0
    for seed in range(40):
        slopes = 0.2 + 0.05 * draw.standard_normal(8)
        runs = [exact(np.linspace(1.1, 0.2, 400), a=a, noise=0.02, seed=8 * seed + i) for i, a in enumerate(slopes)]
        low, high = fit_law(runs, seed=seed).a_interval
        covered += low <= 0.2 <= high
    assert covered >= 33, covered


def test_last_points_at_one_entropy_are_said_to_test_no_curve():
    """A transient and then a target held: there is a range to fit, and none to predict."""
    held = exact([*np.linspace(1.3, 0.8, 20), *[0.8] * 40])
    assert "H of the last points is from 0.800 to 0.800: predicting them tests no curve" in fit_law([held]).lines()
    assert not any("no curve" in line for line in fit_law([exact(np.linspace(1.3, 0.2, 60))]).lines())


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


def test_a_runs_points():
    rows = [
        {"step": s, "entropy": 1.0 - s / 10, "reward": s / 10, **({"evaluation": {"pass@1": 0.5}} if s % 2 else {})}
        for s in range(4)
    ]
    assert Points.of_rows(rows, "reward").reward.tolist() == [0.0, 0.1, 0.2, 0.3]
    evaluated = Points.of_rows(rows, "pass@1")
    assert evaluated.entropy.tolist() == [0.9, 0.7] and evaluated.reward.tolist() == [0.5, 0.5]
    # What lacks a number is no point.
    rows = [{"step": 0}, {"step": 1, "entropy": None, "reward": 0.5}, {"step": 2, "entropy": 1e50, "reward": 0.5}]
    rows.append({"step": 3, "entropy": 0.5, "reward": 0.5, "evaluation": {"pass@2": 0.5}})
    assert (len(Points.of_rows(rows, "reward")), len(Points.of_rows(rows, "pass@1"))) == (1, 0)
    assert predict(0.2, 0.6, np.array([0.0])).tolist() == [pytest.approx(0.4)]


def test_the_command(tmp_path, capsys):
    """Beside each run of a comparison lies the file it was started from, which a pattern matches."""
    for seed in range(2):
        rows = [full_row(step, 1.0 - step / 50, reward=0.1 + step / 100) for step in range(30)]
        folder(tmp_path / f"grpo-seed{seed}", rows, seed=seed)
        (tmp_path / f"grpo-seed{seed}.toml").write_text("")
    FitLaw(tuple(sorted(tmp_path.glob("grpo-*")))).run()
    said = capsys.readouterr()
    assert "on 60 points" in said.out and said.err == (
        "aepo: left out, no run folders: 2 ('grpo-seed0.toml', 'grpo-seed1.toml')\n"
    )
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "metrics.jsonl").mkdir()
    for bad, words in ((tmp_path / "grpo-seed0.toml", "a run folder"), (tmp_path / "metrics", "can be read")):
        with pytest.raises(InvalidValue, match=f"RUN: got .*{words}"):
            FitLaw((bad,)).run()
