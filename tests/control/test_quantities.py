"""Other quantities than the entropy of all tokens: what they read, and that a loop holds them in their own unit."""

import math
from dataclasses import replace

import pytest
import torch

from aepo.control.aepo import AEPO
from aepo.control.closed_loop import ClosedLoop
from aepo.control.distributions import ByLength, Shorter
from aepo.control.laws import Constant, Seen
from aepo.control.quantities import QUANTITIES, Entropy, Length, Quantity, TokenShare
from aepo.control.schedules import Target
from aepo.control.self_tuning import SelfTuning
from aepo.convert import make_algorithm
from aepo.errors import InvalidValue
from aepo.methods import preset
from aepo.types import Metric
from tests import builders as b


def batch():
    """Two groups, one of them half right, and an extra row; entropies are ten times the row plus the position."""
    rows = [
        b.sample(1.0, group=0, tokens=(7, 8, 9)),
        b.sample(0.0, group=0, tokens=(7,)),
        b.sample(1.0, group=1, tokens=(8, 8)),
        b.sample(1.0, group=2, tokens=(7, 7, 7), extra=True),
    ]
    entropy = 10 * torch.arange(4.0)[:, None] + torch.arange(3.0)
    return b.scored(rows, entropy=entropy)


def read(quantity: Quantity) -> float:
    return Metric.of(*quantity.values(batch())).mean


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [
        (Entropy(), (0 + 1 + 2 + 10 + 20 + 21) / 6),
        (Entropy(first_token=1), (1 + 2 + 21) / 3),
        (Entropy(last_token=0), (0 + 10 + 20) / 3),
        (Entropy(most_accuracy=0.5), (0 + 1 + 2 + 10) / 4),
        (Entropy(least_accuracy=0.6), (20 + 21) / 2),
        (Length(), (3 + 1 + 2) / 3),
        (TokenShare(tokens=(7, 9)), 3 / 6),
        (TokenShare(), 0.0),
    ],
)
def test_golden_what_each_reads_on_the_ordinary_rows(quantity, expected):
    assert read(quantity) == pytest.approx(expected)


def measured(length: int, step: int):
    rows = [b.sample(1.0, group=g, tokens=(7,) * (length + g % 2)) for g in range(8)]
    return replace(b.measured(0.5, step=step, batch=b.scored(rows)), prompts={g: f"p{g}" for g in range(8)})


def test_a_loop_holds_it_in_its_own_unit_and_reports_it_by_name():
    control = ClosedLoop(target=Target("0.5x"), quantity=Length(), law=SelfTuning(), variates=True)
    before = control.initial_state()
    after = control.update(before, measured(20, 0))
    assert after["command"] < 0
    found = control.report(before, after)
    assert (found.quantity, found.quantity_reading, found.quantity_target) == ("length", 20.5, 10.25)
    assert found.target_entropy is None and found.error == pytest.approx(-10.25)
    assert found.entropy_estimate == pytest.approx(20.5)


def test_the_law_serves_a_quantity_of_any_size_alike():
    """Three hundred tokens or a share of a thousandth: the commands are those of the entropy, to rounding."""
    readings = [1.0, 0.98, 0.97, 0.99, 0.95, 0.9]
    found = []
    for unit in (1.0, 300.0, 1e-3):
        memory, commands = {}, []
        for reading in readings:
            seen = Seen(unit * reading, ((0.9 * unit, 0.9 * unit),) * 3, 0.01 * unit, commands[-1] if commands else 0.0)
            command, memory = SelfTuning()(seen, memory)
            commands.append(command)
        found.append(commands)
    assert found[1] == pytest.approx(found[0], abs=1e-6) and found[2] == pytest.approx(found[0], abs=1e-6)


def test_longer_or_shorter_positives_as_the_command_asks():
    rows = [b.sample(1.0, 0.0, group=g, extra=True, tokens=(7,) * n) for g, n in enumerate([2, 9] * 20)]
    control = preset("aepo-length").control
    control = replace(control, positives="sampled")
    for command, length in ((1.0, 9), (-1.0, 2)):
        kept = control.mix([b.sample(1.0)], rows, control.state_at(command), b.place(prompts=8, group_size=4))
        assert {len(s.rollout.completion.tokens) for s in kept if s.extra} == {length}


def test_candidates_are_drawn_to_choose_from():
    asked = {}
    for distribution, settings in ((ByLength(), {"quantity": Length()}), (Shorter(), {"law": Constant()})):
        control = AEPO(distribution=distribution, per_prompt=1, **settings)
        asked[distribution.name] = len(control.plan(control.state_at(-1.0), b.place(prompts=64, group_size=1)))
    assert asked == {"length": 48, "shorter": 48}  # three for each of 0.25 * 64 positives


@pytest.mark.parametrize("direction", [1, -1])
def test_reweighting_by_length_keeps_the_mean_weight_of_a_group_at_one(direction):
    rows = [b.sample(1.0, group=0, tokens=(7,) * n) for n in (1, 3, 4)] + [b.sample(0.0, group=0, tokens=(7,) * 9)]
    found = ByLength(scale=3.0).log_ratio(b.scored(rows), direction)[:, 0].exp()
    assert float(found[:3].mean()) == pytest.approx(1.0)
    assert float(found[2] / found[0]) == pytest.approx(math.exp(direction * 3 / 3.0))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"control.quantity": "lenght"},
            "control.quantity.name: got 'lenght', which is unknown; .*did you mean length",
        ),
        ({"control.quantity.first_token": 4, "control.quantity.last_token": 2}, "quantity.last_token: got 2"),
        ({"control.quantity.most_accuracy": 1.5}, "quantity.most_accuracy: got 1.5"),
        ({"control.quantity": "length"}, "distribution: got 'temperature'; must be one that moves the quantity length"),
        ({"control.distribution": "length"}, "distribution: got 'length'; must be one that moves the quantity entropy"),
        ({"control.quantity": "token-share"}, r"quantity.tokens: got \(\); must be a list of token numbers"),
        ({"control.quantity": {"name": "token-share", "tokens": [-1]}}, r"quantity.tokens: got \(-1,\)"),
        (
            {"control.distribution": "shorter"},
            "control.law: got 'self-tuning'; must be constant with distribution shorter",
        ),
    ],
)
def test_bad_settings_are_refused(settings, words):
    with pytest.raises(InvalidValue, match=words):
        make_algorithm("aepo", settings)


@pytest.mark.parametrize("name", QUANTITIES)
def test_every_quantity_is_a_choice_by_name_of_every_loop(name):
    settings = {"control.quantity": {"name": name, "tokens": [3]} if name == "token-share" else name}
    assert isinstance(make_algorithm("entropic", settings).control.quantity, QUANTITIES[name])
