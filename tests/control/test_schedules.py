import pytest

from aepo.control.schedules import Schedule, Target
from aepo.errors import InvalidValue


@pytest.mark.parametrize(
    ("spec", "step", "expected"),
    [
        ("0.5", 7, 0.5),
        ("0.6x", 7, 0.72),
        ("linear(1,0.5,100)", 0, 1.0),
        ("linear(1,0.5,100)", 25, 0.875),
        ("linear(1,0.5,100)", 500, 0.5),
        ("linear(1x,0.5x,100)", 50, 0.9),
        ("cosine(1,0.5,100)", 25, 0.75 + 0.25 * 0.7071068),
        ("cosine(1,0.5,100)", 100, 0.5),
        ("sine(0.6, 0.2, 80)", 0, 0.6),
        ("sine(0.6,0.2,80)", 20, 0.8),
        ("sine(0.6,0.2,80)", 60, 0.4),
        ("piecewise(0:0.8,100:0.4)", 99, 0.8),
        ("piecewise(0:0.8,100:0.4)", 100, 0.4),
        ("piecewise(0:0.8,100:0.5x)", 150, 0.6),
        ("inverse-sqrt(0.8)", 0, 0.8),
        ("inverse-sqrt(0.8)", 15, 0.2),
    ],
)
def test_values_by_hand(spec, step, expected):
    assert Target(spec).at(step, first_entropy=1.2) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "spec",
    ["", "nan", "-0.5", "inf", "half", "0.5y", "linear(1,2)", "linear(1,2,0)", "sine(1,2,1.5)", "cosine(a,1,2)"]
    + ["piecewise(5:0.3)", "piecewise(0:0.3,0:0.4)", "piecewise(0.3)", "piecewise(0:1,x:2)", "square(1,2,3)"],
)
def test_anything_else_is_refused_in_one_line(spec):
    with pytest.raises(InvalidValue, match="^target: got") as caught:
        Target(spec)
    assert "\n" not in str(caught.value)


def test_a_target_equals_its_twin():
    assert Target("0.5") == Target("0.5") != Target("0.6")


def test_a_coefficient_may_be_negative_but_not_a_multiple_of_an_entropy():
    assert Schedule("linear(-0.1,0.1,10)").at(5) == pytest.approx(0.0)
    assert Schedule("-0.03").at(9) == -0.03
    with pytest.raises(InvalidValue, match="^schedule: got '0.5x'"):
        Schedule("0.5x")
