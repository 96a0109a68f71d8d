"""One contract for every control: pure, plain state, shapes kept, padding untouched; and a page in the docs."""

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from aepo.control import CONTROLS
from aepo.control.closed_loop import ClosedLoop
from aepo.control.quantities import Entropy
from aepo.control.schedules import Target
from aepo.loss.surrogates import Bounds
from aepo.methods import METHODS
from aepo.types import BatchStatistics
from tests import builders as b

ROOT = Path(__file__).parents[2]
ALL = {**{name: cls() for name, cls in CONTROLS.items()}, **{name: m.algorithm.control for name, m in METHODS.items()}}


def states(control):
    """The first state and the one after a measured step."""
    first = control.initial_state()
    return [first, control.update(first, b.measured(0.9, batch=batch(control, first)))]


def ordinary_rows():
    """Two groups of two, one of each right."""
    return [
        b.sample(float(i % 2), 1.0 - 2.0 * (i % 2 == 0), group=i // 2, tokens=(1,) * (i + 1), number=i)
        for i in range(4)
    ]


def batch(control, state):
    """Four ordinary rows of two groups and two extra ones, of different lengths, scored as the control needs."""
    rows = ordinary_rows()
    extra = [b.sample(1.0, 0.5, group=9, extra=True, temperature=1.5, number=i) for i in range(2)]
    samples = control.mix(rows, extra, state, b.step(prompts=2, group_size=2))
    tempered = {t: torch.tensor(-0.4) for t in control.needs(state).temperatures}
    kept = 0.6 if control.needs(state).kept else None
    reference = -0.7 if control.needs(state).reference else None
    entropy = torch.tensor([0.7, 0.2, 1.3, 0.9])
    return b.scored(samples, logprobs=-0.5, entropy=entropy, tempered=tempered, kept=kept, reference=reference)


@pytest.mark.parametrize("name", ALL)
def test_state_is_plain_json_and_never_changed_in_place(name):
    control = ALL[name]
    state = control.initial_state()
    before = copy.deepcopy(state)
    after = control.update(state, b.measured(0.9, mixed=0.8, batch=batch(control, state)))
    assert state == before
    assert json.loads(json.dumps(after)) == after


def run(control, state):
    """Every moment of a step in its order, on small data: what came out of each."""
    step = b.step(prompts=2, group_size=2)
    scored = batch(control, state)
    marked = replace(scored, marks=control.mark(scored, state))
    new = BatchStatistics(
        scored.old.logprobs + 0.1,
        scored.old.entropy,
        kept_entropy=scored.old.kept_entropy,
        kept_logprobs=scored.old.kept_logprobs,
    )
    rollouts = [s.rollout for s in ordinary_rows()]
    shaped = control.shape(scored.batch.advantages, marked, state)
    return {
        "plan": control.plan(state, step),
        "follow_up": control.follow_up(rollouts, state, step),
        "reward": control.reward(rollouts, state, step),
        "mark": marked.marks,
        "shape": shaped,
        "reshape": control.reshape(shaped, marked, new, state),
        "bounds": control.bounds(marked, new, state),
        "penalty": control.penalty(marked, new, state),
        "replay": control.replay(state, step),
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, Bounds):
        return all(same(torch.as_tensor(x), torch.as_tensor(y)) for x, y in ((a.low, b.low), (a.high, b.high)))
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


@pytest.mark.parametrize("name", ALL)
def test_moments_are_functions_of_their_arguments(name):
    for state in states(ALL[name]):
        before = copy.deepcopy(state)
        assert same(run(ALL[name], state), run(ALL[name], state))
        assert state == before


@pytest.mark.parametrize("name", ALL)
def test_every_ordinary_row_stays_in_the_batch_for_the_sensor(name):
    control = ALL[name]
    for state in states(control):
        ordinary = batch(control, state).batch
        assert (~ordinary.extra).sum() == 4


@pytest.mark.parametrize("name", ALL)
def test_shapes_are_kept_and_padding_gets_nothing(name):
    for state in states(ALL[name]):
        mask = batch(ALL[name], state).batch.mask
        results = run(ALL[name], state)
        for key in ("shape", "reshape"):
            assert results[key].shape == mask.shape and not results[key].requires_grad
            assert (results[key][mask == 0] == 0).all() and results[key].isfinite().all()
        assert all(values.shape == mask.shape for values in results["mark"].values())
        assert results["penalty"] is None or results["penalty"].shape == mask.shape
        assert len(results["reward"]) == 4


@pytest.mark.parametrize("name", ALL)
def test_what_is_reported_can_be_logged(name):
    control = ALL[name]
    first, second = states(control)
    report = vars(control.report(first, second))
    assert json.loads(json.dumps(report)) == report
    for before, after in ((first, first), (first, second), (second, second)):
        assert isinstance(control.report(before, after).saturated, float)
        assert isinstance(control.report(before, after).alarm, bool)


HOLD_ENTROPY = [name for name, c in ALL.items() if isinstance(c, ClosedLoop) and c.quantity == Entropy()]


@pytest.mark.parametrize("name", HOLD_ENTROPY)
def test_closed_loops_push_up_below_the_target_and_down_above_it(name):
    control = replace(ALL[name], target=Target("0.5"), approach=0)
    target = 0.5
    low = control.update(control.initial_state(), b.measured(target - 0.3, mixed=target - 0.3))
    high = control.update(control.initial_state(), b.measured(target + 0.3, mixed=target + 0.3))
    assert low["command"] > 0 > high["command"]
    assert low["error"] == pytest.approx(0.3) and high["error"] == pytest.approx(-0.3)


# --- the table ----------------------------------------------------------------------------------------------


def _file(name):
    return name.replace("-", "_")


@pytest.mark.parametrize("name", CONTROLS)
def test_every_control_has_a_name_a_docstring_a_method_a_page_and_golden_values(name):
    assert CONTROLS[name].name == name
    assert CONTROLS[name].__doc__
    if name not in ("none", "both"):
        parts = [part for method in METHODS.values() for part in method.algorithm.control.parts]
        page, tests = ROOT / "docs" / "methods" / f"{name}.md", ROOT / "tests" / "control" / f"test_{_file(name)}.py"
        missing = {
            "a row in METHODS (src/aepo/methods.py)": not any(isinstance(part, CONTROLS[name]) for part in parts),
            f"the page {page}": not page.exists(),
            f"a test_golden_... in {tests}": not tests.exists() or "\ndef test_golden_" not in tests.read_text(),
        }
        assert not [what for what, gone in missing.items() if gone]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_complete_row_and_a_page(name):
    method = METHODS[name]
    assert all(getattr(method, field.name) for field in fields(method))
    assert (ROOT / "docs" / "methods" / f"{method.page}.md").exists()
    assert method.paper == "-" or re.fullmatch(r"\d{4}\.\d{5}", method.paper)
