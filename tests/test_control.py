"""One contract for every control: pure, plain state, shapes kept, padding untouched; and a page in the docs."""

import copy
import json
from pathlib import Path

import pytest
import torch

from aepo.algorithm import PRESETS
from aepo.control import CONTROLS, ClosedLoop
from aepo.types import TokenStats

from . import builders as b

ROOT = Path(__file__).parents[1]
ALL = {**{name: cls() for name, cls in CONTROLS.items()}, **{name: p.control for name, p in PRESETS.items()}}


def states(control):
    """The first state and the one after a measured step."""
    first = control.initial_state()
    return [first, control.update(first, b.measured(0.9))]


def batch(control, state):
    """Four ordinary rows of two groups and two extra ones, of different lengths, scored as the control needs."""
    rows = [
        b.sample(float(i % 2), 1.0 - 2.0 * (i % 2 == 0), group=i // 2, tokens=(1,) * (i + 1), number=i)
        for i in range(4)
    ]
    extra = [b.sample(1.0, 0.5, group=9, extra=True, temperature=1.5, number=i) for i in range(2)]
    samples = control.mix(rows, extra, state, b.step(prompts=2, group_size=2))
    tempered = {t: torch.tensor(-0.4) for t in control.needs(state).temperatures}
    return b.scored(samples, logprobs=-0.5, entropy=0.7, tempered=tempered)


@pytest.mark.parametrize("name", ALL)
def test_state_is_plain_json_and_never_changed_in_place(name):
    control = ALL[name]
    state = control.initial_state()
    before = copy.deepcopy(state)
    after = control.update(state, b.measured(0.9, mixed=0.8))
    assert state == before
    assert json.loads(json.dumps(after)) == after


@pytest.mark.parametrize("name", ALL)
def test_moments_are_functions_of_their_arguments(name):
    control = ALL[name]
    for state in states(control):
        assert control.plan(state, b.step()) == control.plan(state, b.step())
        scored = batch(control, state)
        assert torch.equal(
            control.shape(scored.batch.advantages, scored, state), control.shape(scored.batch.advantages, scored, state)
        )


@pytest.mark.parametrize("name", ALL)
def test_every_ordinary_row_stays_in_the_batch_for_the_sensor(name):
    control = ALL[name]
    for state in states(control):
        ordinary = batch(control, state).batch
        assert (~ordinary.extra).sum() == 4


@pytest.mark.parametrize("name", ALL)
def test_shapes_are_kept_and_padding_gets_nothing(name):
    control = ALL[name]
    for state in states(control):
        scored = batch(control, state)
        shaped = control.shape(scored.batch.advantages, scored, state)
        assert shaped.shape == scored.batch.mask.shape and not shaped.requires_grad
        assert (shaped[scored.batch.mask == 0] == 0).all() and shaped.isfinite().all()
        new = TokenStats(scored.old.logprobs, scored.old.entropy)
        penalty = control.penalty(scored, new, state)
        assert penalty is None or penalty.shape == scored.batch.mask.shape


@pytest.mark.parametrize("name", [name for name in ALL if isinstance(ALL[name], ClosedLoop)])
def test_closed_loops_push_up_below_the_target_and_down_above_it(name):
    control = ALL[name]
    target = control.target.at(0, 1.0)
    low = control.update(control.initial_state(), b.measured(target - 0.3, mixed=target - 0.3))
    high = control.update(control.initial_state(), b.measured(target + 0.3, mixed=target + 0.3))
    assert low["command"] > 0 > high["command"]
    assert low["error"] == pytest.approx(0.3) and high["error"] == pytest.approx(-0.3)


@pytest.mark.parametrize("name", CONTROLS)
def test_every_control_has_a_name_a_docstring_and_a_page(name):
    assert CONTROLS[name].name == name
    assert CONTROLS[name].__doc__
    if name != "none":
        assert (ROOT / "docs" / "methods" / f"{name}.md").exists()


def test_every_preset_is_a_control_of_the_table():
    assert {type(p.control) for p in PRESETS.values()} == set(CONTROLS.values())
