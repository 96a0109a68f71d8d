import math

import pytest

from aepo.analysis.tracking import settling_index, tracking


def row(step, entropy, target=0.5, extra=0):
    return {
        "step": step,
        "entropy": entropy,
        "error": None if target is None else target - entropy,
        "saturated": 0.0,
        "completions": 10 + extra,
        "extra_completions": extra,
    }


@pytest.mark.parametrize(
    ("errors", "expected"),
    [([-0.7, -0.3, 0.05, -0.02], 2), ([0.0, 0.2, 0.0], 2), ([0.0, 0.0], 0), ([0.2], None), ([0.0, math.nan], None)],
)
def test_settled_means_from_then_on(errors, expected):
    assert settling_index(errors) == expected


def test_errors_after_settling():
    held = tracking([row(0, 1.2), row(1, 0.9, extra=5), row(2, 0.56), row(3, 0.52, extra=5)])
    assert held.settling_step == 2
    assert held.mean_error == pytest.approx(-0.04)
    assert held.rmse == pytest.approx(math.sqrt((0.06**2 + 0.02**2) / 2))
    assert held.extra_share == pytest.approx(10 / 40)


def test_a_run_without_a_target_is_measured_against_one_given():
    held = tracking([row(0, 0.8, None), row(1, 0.7, None), row(2, 0.6, None)], target=0.5)
    assert held.settling_step == 2 and held.last_third_rmse == pytest.approx(0.1)
    assert math.isnan(tracking([row(0, 0.8, None)]).last_third_rmse)
