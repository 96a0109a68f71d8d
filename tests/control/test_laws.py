from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aepo.control.closed_loop import LAWS
from aepo.control.laws import PI, Constant, Proportional, Seen, Switch
from aepo.control.self_tuning import SelfTuning
from aepo.errors import InvalidValue


def seen(error: float, **named) -> Seen:
    """A reading that is `error` nats under a target of 1 at every step."""
    return replace(Seen.at(1.0 - error, 1.0), **named)


def commands(law, errors, **named):
    memory, out = {}, []
    for error in errors:
        command, memory = law(seen(error, **named), memory)
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
        entropy, memory = 1.2, {}
        for _ in range(600):
            command, memory = law(seen(0.5 - entropy), memory)
            entropy += 0.02 * command - 0.01
        return entropy

    assert settle(PI(gain=4, integral_steps=20)) == pytest.approx(0.5, abs=1e-3)
    assert settle(Proportional(gain=4)) == pytest.approx(0.5 - 0.125, abs=1e-3)


def test_a_long_start_far_above_the_target_leaves_nothing_to_unwind():
    law = PI(gain=5, integral_steps=20)
    memory = {}
    for _ in range(200):
        command, memory = law(seen(-0.7), memory)
        assert command == -1
    # Naive integration would hold -140 nats here and stay at -1 for a thousand steps.
    assert abs(memory["integral"]) <= 20 / 5
    command, _ = law(seen(0.25), memory)
    assert command > 0


def test_dead_band_counts_the_excess_only():
    assert commands(PI(gain=1, integral_steps=10, dead_band=0.1), [0.05, -0.1, 0.3]) == pytest.approx([0, 0, 0.22])


@pytest.mark.parametrize("law", [cls() for cls in LAWS.values()])
@given(errors=st.lists(st.floats(-3, 3), max_size=30))
def test_commands_stay_in_range(law, errors):
    assert all(-1 <= command <= 1 for command in commands(law, errors))


@pytest.mark.parametrize("law", [PI(), Switch(), Proportional(), SelfTuning()])
def test_closed_loops_push_towards_the_target(law):
    assert law(seen(0.3), {})[0] > 0 > law(seen(-0.3), {})[0]


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
    law, memory = PI(gain=10, integral_steps=30), {"integral": 30.0}  # 30 / 30 * 10 = 10 times the limit
    for _ in range(100):
        command, memory = law(seen(-0.3), memory)
    assert command < -0.9 and memory["integral"] < 9.0


@pytest.mark.parametrize("law", [cls() for cls in LAWS.values()])
def test_a_one_sided_loop_never_commands_the_other_side(law):
    errors = [0.4, -0.4] * 20
    assert all(0 <= command <= 1 for command in commands(law, errors, low=0.0))
    assert all(-1 <= command <= 0 for command in commands(law, errors, high=0.0))


def test_one_sided_pi_winds_nothing_up_on_the_side_that_it_may_not_push():
    memory = {}
    for _ in range(200):
        command, memory = PI()(seen(-0.3, low=0.0), memory)
        assert command == 0
    assert PI()(seen(0.05, low=0.0), memory)[0] > 0.4


@pytest.mark.parametrize("law", [PI(), Proportional()])
def test_inside_a_band_there_is_no_error(law):
    inside = Seen(0.7, ((0.5, 0.9),) * 3)
    assert law(inside, {})[0] == 0
    assert Seen(0.45, ((0.5, 0.9),) * 3).error == pytest.approx(0.05)
    assert Seen(1.1, ((0.5, 0.9),) * 3).error == pytest.approx(-0.2)
