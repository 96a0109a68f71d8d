import pytest
from hypothesis import given
from hypothesis import strategies as st

from aepo.control.laws import LAWS, PI, Constant, Proportional, Switch
from aepo.errors import InvalidValue


def commands(law, errors):
    integral, out = 0.0, []
    for error in errors:
        command, integral = law(error, integral)
        out.append(command)
    return out


def test_switch_and_its_tie():
    assert commands(Switch(), [0.1, -0.1, 0.0]) == [1, -1, -1]  # v1: H >= target goes to T_low
    assert commands(Switch(tie="high"), [0.0]) == [1]  # the code: entropy <= target goes to T_high


def test_proportional():
    assert commands(Proportional(gain=4), [0.1, -0.2, 1.0, -1.0]) == pytest.approx([0.4, -0.8, 1, -1])


def test_pi_by_hand():
    # gain * (e + sum(e) / steps): 2 * (.1 + .1/10), 2 * (.1 + .2/10), 2 * (-.1 + .1/10)
    assert commands(PI(gain=2, integral_steps=10), [0.1, 0.1, -0.1]) == pytest.approx([0.22, 0.24, -0.18])


def test_pi_removes_the_error_that_proportional_leaves():
    def settle(law):
        entropy, integral = 1.2, 0.0
        for _ in range(600):
            command, integral = law(0.5 - entropy, integral)
            entropy += 0.02 * command - 0.01
        return entropy

    assert settle(PI(gain=4, integral_steps=20)) == pytest.approx(0.5, abs=1e-3)
    assert settle(Proportional(gain=4)) == pytest.approx(0.5 - 0.125, abs=1e-3)


def test_a_long_start_far_above_the_target_leaves_nothing_to_unwind():
    law = PI(gain=5, integral_steps=20)
    integral = 0.0
    for _ in range(200):
        command, integral = law(-0.7, integral)
        assert command == -1
    # Naive integration would hold -140 nats here and stay at -1 for a thousand steps.
    assert abs(integral) <= 20 / 5
    command, _ = law(0.25, integral)
    assert command > 0


def test_dead_band_counts_the_excess_only():
    assert commands(PI(gain=1, integral_steps=10, dead_band=0.1), [0.05, -0.1, 0.3]) == pytest.approx([0, 0, 0.22])


@pytest.mark.parametrize("law", [cls() for cls in LAWS.values()])
@given(errors=st.lists(st.floats(-3, 3), max_size=30))
def test_commands_stay_in_range(law, errors):
    assert all(-1 <= command <= 1 for command in commands(law, errors))


@pytest.mark.parametrize("law", [PI(), Switch(), Proportional()])
def test_closed_loops_push_towards_the_target(law):
    assert law(0.3, 0.0)[0] > 0 > law(-0.3, 0.0)[0]


@pytest.mark.parametrize(
    ("cls", "field", "value"),
    [(PI, "gain", 0.0), (PI, "integral_steps", -1.0), (PI, "dead_band", -0.1), (Proportional, "gain", float("nan"))]
    + [(Constant, "command", 2.0)],
)
def test_bad_settings_are_refused_by_name(cls, field, value):
    with pytest.raises(InvalidValue, match=f"law.{field}: got"):
        cls(**{field: value})


def test_an_integral_that_another_gain_left_behind_unwinds():
    """A run that continues with a larger gain starts with a sum of errors beyond the new limit."""
    law, integral = PI(gain=10, integral_steps=30), 30.0  # 30 / 30 * 10 = 10 times the limit
    for _ in range(100):
        command, integral = law(-0.3, integral)
    assert command < -0.9 and integral < 9.0
