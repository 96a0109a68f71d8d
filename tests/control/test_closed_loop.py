"""What the base class of closed loops adds to a law: the way to the target, one-sided control, and what is missing."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from aepo.control.adapted import Adapted
from aepo.control.aent import AEnt
from aepo.control.aepo import AEPO
from aepo.control.aer import AER
from aepo.control.closed_loop import ALARM_AFTER, ClosedLoop, missing_authority
from aepo.control.laws import PI, Law, Proportional, Switch
from aepo.control.moving_bound import MovingBound
from aepo.control.positive_reweight import PositiveReweight
from aepo.control.repo import REPO
from aepo.control.sac_dual import SACDual
from aepo.control.schedules import Target
from aepo.control.self_tuning import SelfTuning
from aepo.convert import SETTINGS, make_algorithm
from aepo.errors import InvalidValue
from tests import builders as b


def states(control, entropies):
    state, found = control.initial_state(), []
    for number, entropy in enumerate(entropies):
        state = control.update(state, b.measured(entropy, step=number))
        found.append(state)
    return found


def commands(control, entropies):
    return [state["command"] for state in states(control, entropies)]


def loop(target="0.6", **settings):
    return ClosedLoop(target=Target(target), **{"law": Proportional(gain=5.0), **settings})


# --- the way to the target --------------------------------------------------------------------------------------


def test_an_entropy_that_falls_by_itself_is_left_alone_until_the_target():
    falling = [1.2 - 0.05 * step for step in range(12)]
    assert commands(loop(approach=50), falling) == pytest.approx([0.0] * 12)
    assert commands(loop(approach=0), falling)[0] == -1


def test_one_that_does_not_fall_is_pushed_along_the_line():
    found = states(loop(approach=10), [1.1] * 15)
    line = [1.1 - 0.05 * min(step, 10) for step in range(15)]
    assert [s["command"] for s in found] == pytest.approx([5 * max(-0.2, at - 1.1) for at in line])
    assert [s["error"] for s in found] == pytest.approx(
        [0.6 - 1.1] * 15
    )  # what is logged is the distance to the target


def test_a_short_run_has_a_third_of_its_steps_for_the_way():
    control, steps = loop(approach=50), 12
    state = control.initial_state()
    for number in range(6):
        measured = b.measured(1.0, step=number)
        short = replace(measured, scored=replace(measured.scored, step=b.place(number, steps=steps)))
        state = control.update(state, short)
    assert state["command"] == -1  # the line from 1.0 to 0.6 ended at step 4
    assert commands(control, [1.0] * 6)[-1] == pytest.approx(5 * -0.4 * 5 / 33)


def test_from_the_target_on_it_is_held_on_both_sides():
    control = loop(approach=50)
    assert commands(control, [1.2, 0.59, 0.7])[-1] == pytest.approx(-0.5)
    assert commands(control, [1.2, 0.61, 0.7])[-1] == 0


def test_a_target_above_is_approached_from_below():
    assert commands(loop("1.0", approach=20), [0.5, 0.6, 0.7]) == pytest.approx([0, 0, 0])
    assert commands(loop("1.0", approach=20), [0.5] * 3) == pytest.approx([0, 0.125, 0.25])


def test_a_schedule_is_followed_from_the_first_step():
    assert commands(loop("linear(1x,0.5x,100)", approach=50), [1.0, 1.1])[-1] == pytest.approx(5 * (0.995 - 1.1))


def test_the_switch_does_nothing_on_the_way():
    assert commands(loop(law=Switch(), approach=50), [1.2, 1.1, 0.5]) == [0, 0, 1]


@pytest.mark.parametrize("after", [PI(), Proportional(), Switch(), SelfTuning()])
@pytest.mark.parametrize("before", [PI(), Switch(), SelfTuning()])
def test_a_run_that_goes_on_with_another_law_begins_its_memory_anew(before, after):
    state = states(loop(law=before), [0.9, 0.8, 0.5])[-1]
    changed = loop(law=after).update(state, b.measured(0.3, step=3))
    assert changed["command"] > 0 and changed["first_entropy"] == 0.9
    if type(before) is not type(after):
        fresh = loop(law=after).update({**state, "law": {}}, b.measured(0.3, step=3))
        assert changed == fresh


# --- one side only ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [PI(), Proportional(), Switch(), SelfTuning()])
def test_at_least_only_raises_and_at_most_only_lowers(law):
    entropies = [0.9, 0.8, 0.3, 0.4, 0.9, 0.2]
    least, most = (commands(loop(law=law, hold=side), entropies) for side in ("at-least", "at-most"))
    assert min(least) == 0 < max(least)
    assert max(most) == 0 > min(most)


@pytest.mark.parametrize(("hold", "entropy"), [("at-least", 0.9), ("at-most", 0.3)])
def test_being_on_the_free_side_is_no_saturation_and_no_alarm(hold, entropy):
    last = states(loop(law=PI(), hold=hold), [entropy] * (ALARM_AFTER + 5))[-1]
    assert last["command"] == 0 and last["saturated"] == 0 and not last["alarm"]


def test_the_word_is_a_setting_and_others_are_refused():
    assert make_algorithm("aepo", {"control.hold": "at-least"}).control.hold == "at-least"
    with pytest.raises(InvalidValue, match=r"control\.hold: got 'above'; must be one of at, at-least, at-most"):
        make_algorithm("aepo", {"control.hold": "above"})


# --- what is missing ----------------------------------------------------------------------------------------------


def collapsing(control):
    return states(control, [max(0.05, 1.0 - 0.03 * step) for step in range(3 * ALARM_AFTER)])


def test_an_alarm_of_the_self_tuning_law_says_how_much_authority_is_missing():
    advice = [s["advice"] for s in collapsing(loop(law=SelfTuning())) if s["alarm"]]
    assert "times the control's authority (the largest command moves 0.0" in advice[0]
    assert all(s["advice"] is None for s in collapsing(loop()) if not s["alarm"])


def test_golden_the_missing_authority_is_measured_against_the_largest_command():
    state = {"error": 0.3, "drift": -0.12, "authority_up": 0.02, "authority_down": 0.5}
    words = missing_authority(state, most=1.95)  # 1.5 * 0.12 / (1.95 * 0.02)
    assert "about 4.6 times" in words and "the largest command moves 0.039 nats" in words


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"positives": "reweighted", "reach": 1.0}, "raise control.weight, or control.reach up to 1.95"),
        ({"positives": "reweighted", "law": Switch()}, "raise control.weight"),
        ({"positives": "reweighted"}, "move the temperatures further from 1"),
        ({}, "too few right answers are found"),  # the test's steps have no extra completions
    ],
)
def test_aepo_says_which_of_count_weight_and_temperatures_would_give_it(settings, words):
    control = AEPO(target=Target("0.9"), approach=0, variates=False, **settings)
    assert words in next(s["advice"] for s in collapsing(control) if s["alarm"])


# --- laws for coefficients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [PI(), SelfTuning()])
@pytest.mark.parametrize("kind", [SACDual, AER])
def test_a_coefficient_can_follow_a_law(kind, law):
    control: Adapted = kind(target=Target("0.6"), law=law)
    low, high = (states(control, [1.0, *[entropy] * 30])[-1]["coefficient"] for entropy in (0.9, 0.3))
    assert low == pytest.approx(control.low) and high == pytest.approx(control.high)
    assert control.at_command(0.0) == pytest.approx(
        (control.low * control.high) ** 0.5 if kind is SACDual else (control.low + control.high) / 2
    )


BAND = {"entropy_low": 0.6, "entropy_high": 0.7, "low": 0.001, "high": 0.003, "start": 0.001}
WITH_A_LAW = {
    "repo": lambda law, **settings: REPO(target=Target("0.6"), law=law, **settings),
    "repo, centred": lambda law, **settings: REPO(target=Target("0.6"), law=law, form="centred", **settings),
    "moving-bound": lambda law, **settings: MovingBound(target=Target("0.6"), law=law, **settings),
    "positive-reweight": lambda law, **settings: PositiveReweight(threshold=Target("0.6"), law=law, **settings),
    "aent": lambda law, **settings: AEnt(law=law, **{**BAND, **settings}),
}
LEAST_AND_MOST = {
    "repo": (-0.05, 0.05),
    "repo, centred": (-0.05, 0.05),
    "moving-bound": (0.0, 2.5),
    "positive-reweight": (1.0, 0.0),  # a small weight of the positives raises the entropy
    "aent": (0.001, 0.003),
}


@pytest.mark.parametrize("law", [PI(), SelfTuning(), Switch()])
@pytest.mark.parametrize("name", WITH_A_LAW)
def test_a_law_takes_a_control_to_its_limits(name, law):
    control = WITH_A_LAW[name](law)
    low, high = (states(control, [1.0, *[entropy] * 30])[-1]["coefficient"] for entropy in (0.9, 0.3))
    assert (low, high) == pytest.approx(LEAST_AND_MOST[name])


@pytest.mark.parametrize(
    ("name", "coefficient"),
    [("repo", 0.01), ("moving-bound", 1.5), ("positive-reweight", 0.4), ("aent", 0.0022)],
)
def test_golden_the_coefficient_of_a_command(name, coefficient):
    # An error of 0.1 nats at a gain of 2: a command of 0.2.
    state = states(WITH_A_LAW[name](Proportional(gain=2.0)), [0.5])[-1]
    assert state["command"] == pytest.approx(0.2) and state["error"] == pytest.approx(0.1)
    assert state["coefficient"] == pytest.approx(coefficient)


@dataclass(frozen=True)
class Told(Law):
    """A law that remembers what it was told of the command that acted."""

    name: ClassVar[str] = "told"

    def __call__(self, seen, memory):
        return -0.5, {"acted": [*memory.get("acted", []), seen.command]}


@pytest.mark.parametrize(
    ("name", "settings", "first"),
    [
        ("repo", {}, 0.02),
        ("repo", {"start": -0.05}, -1.0),
        ("moving-bound", {}, -1.0),
        ("positive-reweight", {}, 1.0),
        ("positive-reweight", {"start": 0.25}, 0.5),
        ("aent", {}, -1.0),
        ("aent", {"start": 0.0025}, 0.5),
    ],
)
def test_a_law_is_told_which_command_the_start_is_worth(name, settings, first):
    state = states(WITH_A_LAW[name](Told(), **settings), [0.5, 0.5])[-1]
    assert state["law"]["acted"] == pytest.approx([first, -0.5])


def test_the_targets_ahead_are_those_of_the_next_steps():
    @dataclass(frozen=True)
    class Ahead(Told):
        def __call__(self, seen, memory):
            return 0.0, {"bands": seen.bands}

    ramp = REPO(target=Target("linear(1x,0.5x,10)"), law=Ahead())
    bands = states(ramp, [0.8, 0.8])[-1]["law"]["bands"]
    assert [low for low, _ in bands] == pytest.approx([0.76, 0.72, 0.68]) and all(low == high for low, high in bands)


@pytest.mark.parametrize("name", ["repo-r", "repo", "moving-bound", "pos-adv-reweight", "aent"])
def test_the_law_of_every_control_that_holds_a_target_is_a_setting(name):
    assert make_algorithm(name, {}).control.law is None
    assert make_algorithm(name, {"control.law": "self-tuning"}).control.law == SelfTuning()


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("pos-adv-stage", {}, "none with schedule stage"),
        ("aent", {"control.adapt": False}, "none with adapt false"),
    ],
)
def test_a_law_that_could_not_act_is_refused(name, settings, words):
    with pytest.raises(InvalidValue, match=f"^control.law: got 'pi'; must be {words}"):
        make_algorithm(name, {"control.law": "pi", **settings})


def test_without_a_law_the_own_rule_moves_it():
    assert states(SACDual(target=Target("0.6")), [0.5])[-1]["coefficient"] == pytest.approx(1e-3 * 2.718281828**0.01)


def test_a_law_of_a_coefficient_is_a_setting():
    algorithm = make_algorithm("sac-dual", {"control.law": "pi", "control.law.gain": 2.0})
    assert algorithm.control.law == PI(gain=2.0)
    assert SETTINGS.override(make_algorithm("sac-dual", {}), SETTINGS.to_dict(algorithm)) == algorithm
    assert make_algorithm("sac-dual", {}).control.law is None
    assert SETTINGS.override(algorithm, {"control": {"law": "none"}}).control.law is None
