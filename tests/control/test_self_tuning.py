"""The self-tuning law on processes that the test makes itself: drift, authority and noise are known here, not to it."""

import json
import math
import random
import statistics

import pytest
import torch

from aepo.control.closed_loop import LAWS
from aepo.control.laws import PI, Seen
from aepo.control.self_tuning import LEAD, SelfTuning
from aepo.errors import InvalidValue

HELD = lambda step: 0.8


def run(
    law,
    target=HELD,
    *,
    scale,
    noise,
    drift=-0.4,
    up=0.6,
    momentum=0.0,
    first=1.3,
    steps=250,
    seed=0,
    known=True,
    low=-1.0,
):
    """True entropies, readings and commands of a process whose drift is drift * scale, and authority up * scale, scale.

    A share `momentum` of an update's movement goes on in the next. With known=False the law is not told how noisy the
    readings are.
    """
    draws, entropy, command, memory, rows, moved = random.Random(seed), first, 0.0, {}, [], 0.0
    for step in range(steps):
        reading = entropy + draws.gauss(0, noise)
        bands = tuple((target(step + ahead),) * 2 for ahead in range(3))
        rows.append((entropy, reading, target(step), command))
        told = Seen(reading, bands, noise if known else math.nan, command, low=low)
        after, memory = law(told, memory)
        memory = json.loads(json.dumps(memory))
        authority = scale * (up if command > 0 else 1.0)
        moved = momentum * moved + (1 - momentum) * (drift * scale + authority * command)
        entropy = max(0.0, entropy + moved + draws.gauss(0, 0.2 * scale))
        command = after
    return rows, memory


def error(rows, last=100, column=0):
    return math.sqrt(statistics.fmean((row[column] - row[2]) ** 2 for row in rows[-last:]))


@pytest.mark.parametrize("noise", [0.01, 0.03])
@pytest.mark.parametrize("scale", [0.004, 0.015, 0.05])
def test_readings_are_as_near_the_target_as_their_noise_allows_whatever_the_learning_rate(scale, noise):
    found = [error(run(SelfTuning(), scale=scale, noise=noise, seed=seed)[0], column=1) for seed in range(3)]
    # Two updates, each with noise 0.2 * scale, lie between a reading and what its command acts on.
    assert statistics.fmean(found) <= 1.15 * math.hypot(noise, 0.4 * scale) + 0.003


def test_one_setting_does_where_one_gain_cannot():
    """PI with the gain of the built-in job: a constant error at small steps, swings at large ones."""
    for scale in (0.004, 0.2):
        pi, ours = (error(run(law, scale=scale, noise=0.01, first=0.9, drift=-0.3)[0]) for law in (PI(), SelfTuning()))
        assert ours < 0.7 * pi, scale


def test_the_estimates_are_those_of_the_process():
    rows, memory = run(SelfTuning(), lambda step: 0.8 + 0.1 * (step // 20 % 2), scale=0.02, noise=0.01, steps=400)
    assert memory["drift"] == pytest.approx(-0.008, abs=0.004)
    assert memory["up"] == pytest.approx(0.012, abs=0.005)
    assert memory["down"] == pytest.approx(0.02, abs=0.008)
    assert memory["entropy"] == pytest.approx(rows[-1][0], abs=0.015)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_ramp_is_followed_without_lag(momentum):
    """The momentum alone would let the entropy lag by nine steps of the ramp, 0.036 nats."""
    ramp = lambda step: max(0.6, 1.3 - 0.004 * step)
    rows, _ = run(SelfTuning(), ramp, scale=0.02, noise=0.01, momentum=momentum)
    assert abs(statistics.fmean(entropy - target for entropy, _, target, _ in rows[60:160])) < 0.01


def test_a_slow_sine_is_followed_as_well_as_a_constant():
    sine = lambda step: 0.8 + 0.15 * math.sin(2 * math.pi * step / 60)
    process = {"scale": 0.05, "noise": 0.02, "drift": -0.1}
    constant, moving = (error(run(SelfTuning(), t, **process)[0], column=1) for t in (HELD, sine))
    assert moving < 1.25 * constant


def test_a_start_far_above_the_target_winds_nothing_up():
    rows, _ = run(SelfTuning(), scale=0.01, noise=0.02, first=2.0)
    assert rows[60][3] == -1
    assert max(target - entropy for entropy, _, target, _ in rows) < 0.05


def test_one_that_may_only_raise_lets_the_entropy_fall_to_the_target_by_itself():
    rows, _ = run(SelfTuning(), scale=0.015, noise=0.02, low=0.0)
    assert min(row[3] for row in rows) == 0
    assert error(rows) < 0.02


def test_a_reading_without_a_standard_error_is_judged_by_its_own_changes():
    rows, memory = run(SelfTuning(), scale=0.015, noise=0.03, known=False)
    assert memory["se"] == pytest.approx(0.03, rel=0.5)
    assert error(rows) < 0.02


@pytest.mark.parametrize("scale", [0.004, 0.05])
def test_the_momentum_of_the_optimizer_makes_no_swings(scale):
    """One update in a step and Adam's 0.9: PI swings or lags, and the command that looks one step ahead would swing."""
    process = {"scale": scale, "noise": 0.01, "momentum": 0.9, "first": 1.0, "drift": -0.3}
    pi, ours = (error(run(law, **process)[0]) for law in (PI(), SelfTuning()))
    assert ours < 0.7 * pi


def test_the_command_is_the_best_one_under_what_is_not_known():
    """With one draw of everything unknown after another, no other command has a smaller expected squared distance."""
    law, memory = SelfTuning(gain=1.0), {}
    for reading, command in ((1.0, 0.0), (0.99, 0.0), (0.99, 0.5), (1.0, -0.5)):
        chosen, memory = law(Seen(reading, ((0.99, 0.99),) * 3, 0.01, command), memory)
    draw = torch.Generator().manual_seed(0)
    x, P, weights = (torch.tensor(memory[name], dtype=torch.float64) for name in ("x", "P", "weights"))
    which = torch.multinomial(weights, 200_000, replacement=True, generator=draw)
    roots = torch.linalg.cholesky(P + 1e-14 * torch.eye(5, dtype=torch.float64))
    states = x[which] + (roots[which] @ torch.randn(200_000, 5, 1, generator=draw, dtype=torch.float64))[:, :, 0]
    settled = states[:, 0] + LEAD[which] * states[:, 1]

    def expected(u: float) -> float:
        moved = settled + states[:, 2] + states[:, 3] * max(u, 0) + states[:, 4] * min(u, 0)
        return float((moved - 0.99).square().mean())

    assert 0 < abs(chosen) < 1
    assert all(expected(chosen) < expected(chosen + change) for change in (-0.1, 0.1))


@pytest.mark.parametrize("gain", [0.0, 1.5, float("nan")])
def test_a_gain_that_is_no_share_is_refused(gain):
    with pytest.raises(InvalidValue, match=r"law\.gain: got"):
        SelfTuning(gain=gain)


def test_it_is_a_law_by_name():
    assert LAWS["self-tuning"] is SelfTuning
