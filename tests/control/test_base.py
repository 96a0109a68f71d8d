"""What all controls share: when a closed loop raises an alarm, and of which step a control reports what."""

from itertools import pairwise

import pytest

from aepo.control import CONTROLS
from aepo.control.aepo import AEPO
from aepo.control.base import Control, ControlReport
from aepo.control.closed_loop import ALARM_AFTER
from aepo.control.laws import Switch
from aepo.control.schedules import Target
from aepo.methods import preset
from tests import builders as b

# --- the alarm ----------------------------------------------------------------------------------------------


def alarms(errors: list[float]) -> list[int]:
    """The steps with an alarm when these are the errors (target - entropy) and the command is always at its limit."""
    control = AEPO(target=Target("5"), law=Switch(), approach=0)
    state, raised = control.initial_state(), []
    for number, error in enumerate(errors):
        state = control.update(state, b.measured(5 - error, step=number))
        assert state["saturated"] == 1.0
        raised += [number] if state["alarm"] else []
    return raised


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("share", "alarm"), [(1.5, True), (0.92, True), (0.88, False), (0.6, False), (0.2, False)])
def test_the_alarm_needs_an_error_that_keeps_more_than_nine_tenths_of_its_size(sign, share, alarm):
    errors = [sign * 1.0] * (ALARM_AFTER - 1) + [sign * share]
    assert alarms(errors) == [ALARM_AFTER - 1] * alarm


def test_each_alarm_compares_with_the_error_of_the_last_comparison():
    # 1.0 -> 0.8 shrinks; 0.8 -> 0.7 shrinks; 0.7 -> 0.65 does not shrink by a tenth.
    falling = [1.0] * 19 + [0.8] + [0.9] * 19 + [0.7] + [0.1] * 19 + [0.65]
    assert alarms(falling) == [59]


@pytest.mark.parametrize(("error", "alarm"), [(0.098, False), (0.102, True)])
def test_an_error_below_a_tenth_of_a_nat_raises_no_alarm(error, alarm):
    assert alarms([error] * ALARM_AFTER) == [ALARM_AFTER - 1] * alarm


# --- the report ---------------------------------------------------------------------------------------------

BEFORE = {"command": 0.1, "saturated": 1.0, "coefficient": 0.2, "target_entropy": 0.3, "error": 0.4, "alarm": True}
AFTER = {"command": 0.5, "saturated": 0.0, "coefficient": 0.6, "target_entropy": 0.7, "error": 0.8, "alarm": False}
REPORT = {"command": 0.1, "saturated": 1.0, "coefficient": 0.2, "target_entropy": 0.7, "error": 0.8, "alarm": False}


@pytest.mark.parametrize("name", [name for name in CONTROLS if name != "both"])
def test_a_step_reports_the_command_that_it_acted_on_and_what_it_measured(name):
    assert CONTROLS[name]().report(BEFORE, AFTER) == ControlReport(**REPORT)


def test_two_controls_report_in_the_same_way():
    pair = preset("aepo+clip-cov").control
    assert pair.report({"first": BEFORE, "second": {}}, {"first": AFTER, "second": {}}) == ControlReport(**REPORT)
    assert pair.report({"first": {}, "second": BEFORE}, {"first": {}, "second": AFTER}) == ControlReport(**REPORT)


def test_the_command_of_a_step_is_reported_in_the_next_one():
    control: Control = AEPO(target=Target("0.5"), law=Switch(), approach=0)
    states = [control.initial_state()]
    for number, entropy in enumerate((0.4, 0.7, 0.7)):
        states.append(control.update(states[-1], b.measured(entropy, step=number)))
    reports = [control.report(before, after) for before, after in pairwise(states)]
    assert [report.command for report in reports] == [None, 1.0, -1.0]
    assert [report.error for report in reports] == pytest.approx([0.1, -0.2, -0.2])
