import math
from dataclasses import replace

import pytest
import torch

from aepo.control.hapo import HAPO, Signal
from aepo.errors import InvalidValue
from aepo.loss.policy_loss import policy_loss
from aepo.loss.surrogates import Bounds, Clip
from aepo.types import BatchStatistics
from tests import builders as b

ENTROPIES = [0.01, 0.05, 0.1, 0.5, 2.0]
H = [-1.0, -0.5886, -0.4114, 0.0, 1.0]
PRESET = Clip(low=0.2, high=0.28, dual=10.0)
OFF = {"adaptive_temperature": False, "token_group": False, "redistribution": False, "adaptive_clip": False}


def five(advantage: float = 1.0):
    """One completion with the five entropies, log pi_old = 0."""
    return b.scored([b.sample(1.0, advantage, tokens=(1, 2, 3, 4, 5))], entropy=torch.tensor([ENTROPIES]))


def with_h(h: float, advantage: float = 1.0):
    """One token with this h~."""
    batch = b.scored([b.sample(1.0, advantage, tokens=(1,))])
    return replace(batch, marks={"h": torch.tensor([[h]])})


def moved(batch, ratio: float) -> BatchStatistics:
    return BatchStatistics(batch.old.logprobs + math.log(ratio), batch.old.entropy)


# --- the signal ---------------------------------------------------------------------------------------------


def test_golden_the_signal_is_zero_at_the_quantile_and_one_at_both_ends():
    assert HAPO().mark(five(), {})["h"][0].tolist() == pytest.approx(H, abs=1e-4)


def test_golden_the_literal_sign_makes_certain_tokens_positive():
    h = HAPO(sign="literal").mark(five(), {})["h"][0]
    assert h.tolist() == pytest.approx([1.0, 0.5886, 0.4114, 0.0, 1.0], abs=1e-4)


def test_golden_sigma_is_about_the_quantile():
    # logs - log 0.5: -3.9120, -2.3026, -1.6094, 0, 1.3863; sqrt((15.304 + 5.302 + 2.590 + 1.922) / 5) = 2.2414
    signal = Signal.of(torch.tensor([ENTROPIES]), torch.ones(1, 5), 0.8, False)
    assert signal.quantile == pytest.approx(math.log(0.5))
    assert signal.sigma == pytest.approx(2.2414, abs=1e-4)
    assert signal.h_max == pytest.approx(1.3863 / 2.2414, abs=1e-4)
    assert signal.h_min == pytest.approx(-3.9120 / 2.2414, abs=1e-4)


def test_golden_a_zero_entropy_counts_as_1e_8():
    # Two logs, 0 and log 1e-8 = -18.4207; the quantile is the upper one, so log 1e-4 lies half way.
    signal = Signal.of(torch.tensor([[0.0, 1.0]]), torch.ones(1, 2), 1.0, False)
    assert signal(torch.tensor([0.0, 1e-4, 1.0])).tolist() == pytest.approx([-1.0, -0.5, 0.0])


def test_the_statistics_are_over_the_whole_batch_and_the_trained_tokens():
    split = b.scored(
        [b.sample(1.0, tokens=(1, 2, 3)), b.sample(0.0, tokens=(1, 2)), replace(b.sample(0.0), trained=False)],
        entropy=torch.tensor([[0.01, 0.05, 0.1], [0.5, 2.0, 9.0], [7.0, 0.001, 9.0]]),
    )
    h = HAPO().mark(split, {})["h"]
    assert h[:2].flatten()[:5].tolist() == pytest.approx(H, abs=1e-4)
    assert h[1, 2] == 0 and h[2].tolist() == [1.0, -1.0, 0.0]  # padding; limited outside the range


def test_equal_entropies_give_no_signal():
    batch = b.scored([b.sample(1.0, tokens=(1, 2, 3))], entropy=0.7)
    assert HAPO().mark(batch, {})["h"].tolist() == [[0.0, 0.0, 0.0]]


# --- A: temperature -----------------------------------------------------------------------------------------


def test_golden_the_next_step_samples_at_one_plus_tau_h():
    control = HAPO()
    state = control.initial_state()
    assert control.token_temperature(state) is None
    state = control.update(state, b.measured(0.5, batch=five()))
    heat = control.token_temperature(state)(torch.tensor([*ENTROPIES, 1e-6, 50.0]))
    expected = [0.95, 1 - 0.05 * 0.5886, 1 - 0.05 * 0.4114, 1.0, 1.05, 0.95, 1.05]
    assert heat.tolist() == pytest.approx(expected, abs=1e-5)


def test_the_temperature_is_equal_and_hashable_for_equal_states():
    control = HAPO()
    state = control.update(control.initial_state(), b.measured(0.5, batch=five()))
    assert len({control.token_temperature(state), control.token_temperature(dict(state))}) == 1


def test_it_learns_from_ordinary_rows_alone():
    extra = b.scored(
        [b.sample(1.0, tokens=(1, 2, 3, 4, 5)), b.sample(1.0, extra=True, tokens=(1,))],
        entropy=torch.tensor([ENTROPIES, [30.0] * 5]),
    )
    control = HAPO()
    start = control.initial_state()
    assert control.update(start, b.measured(0.5, batch=extra)) == control.update(start, b.measured(0.5, batch=five()))


def test_tau_zero_samples_at_one():
    control = HAPO(tau=0.0)
    state = control.update(control.initial_state(), b.measured(0.5, batch=five()))
    assert control.token_temperature(state)(torch.tensor(ENTROPIES)).tolist() == [1.0] * 5


def test_a_step_that_measured_nothing_changes_nothing():
    control = HAPO()
    state = control.update(control.initial_state(), b.measured(0.5, batch=five()))
    assert control.update(state, b.measured(float("nan"))) == state


# --- B: token-level group advantage ---------------------------------------------------------------------------


def shaped(samples, control=None):
    batch = b.scored(samples)
    return (control or HAPO()).shape(batch.batch.advantages, batch, {}), batch.batch


def test_golden_a_short_right_answer_among_more_wrong_tokens():
    # mean 2/8, std sqrt(1/4 * 3/4) = 0.4330: 0.75 / 0.4330 and -0.25 / 0.4330
    result, batch = shaped([b.sample(1.0, 0.7), b.sample(0.0, -0.7, tokens=(1,) * 6)])
    assert result[0, :2].tolist() == pytest.approx([1.7321] * 2, abs=1e-4)
    assert result[1].tolist() == pytest.approx([-0.5774] * 6, abs=1e-4)
    assert result.sum().item() == pytest.approx(0.0, abs=1e-4) and (result[batch.mask == 0] == 0).all()


def test_golden_a_group_with_an_advantage_of_five_keeps_its_own():
    # One token in n right: A = sqrt(n - 1). 26 tokens: 5.0 (less 1e-6 / std); 37: 6.
    for wrong, expected in ((24, math.sqrt(24)), (36, 1.5)):
        result, _ = shaped([b.sample(1.0, 1.5, tokens=(1,)), b.sample(0.0, -0.5, tokens=(1,) * wrong)])
        assert result[0, 0].item() == pytest.approx(expected, abs=1e-3)
    assert result[1].tolist() == [-0.5] * 36


def test_groups_are_apart_extra_rows_and_dead_groups_aside():
    samples = [
        *(b.sample(1.0, 0.7), b.sample(0.0, -0.7)),
        *(b.sample(0.1, 0.3, group=1), b.sample(0.1, 0.3, group=1, tokens=(1,) * 7)),
        b.sample(1.0, 2.0, group=0, extra=True),
    ]
    result, _ = shaped(samples)
    assert result[0, :2].tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    assert result[1, :2].tolist() == pytest.approx([-1.0, -1.0], abs=1e-5)
    assert (result[2:4] == 0).all()
    assert result[4, :2].tolist() == [2.0, 2.0]


# --- C: redistribution ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("h", "ratio", "expected"),
    [
        (0.5, 1.0, 1.0),  # uncertain, not moving
        (0.5, 1.22, 1.5),  # past 1 + 0.28 * 1.5 / 2 = 1.21: amplified
        (0.5, 1.2, 1.0),  # past 1.14, the unadapted zone, but not past 1.21
        (-0.5, 1.0, 0.5),  # certain, not moving: damped
        (-0.5, 0.86, 0.5),  # within 1 - 0.2 * 1.5 / 2 = 0.85
        (-0.5, 0.84, 1.0),  # certain, moving
        (-1.0, 1.0, 0.0),
    ],
)
def test_golden_who_is_amplified_and_who_is_damped(h, ratio, expected):
    batch = with_h(h)
    result = HAPO().reshape(batch.batch.advantages, batch, moved(batch, ratio), {})
    assert result.item() == pytest.approx(expected)


def test_golden_without_d_the_neutral_zone_is_the_base_one():
    batch = with_h(0.5)
    control = HAPO(adaptive_clip=False)
    for ratio, expected in ((1.13, 1.0), (1.15, 1.5), (0.91, 1.0), (0.89, 1.5)):
        assert control.reshape(batch.batch.advantages, batch, moved(batch, ratio), {}).item() == pytest.approx(expected)


# --- D: bounds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("h", "low", "high"), [(-1.0, 0.4, 0.28), (1.0, 0.2, 0.56), (-0.5, 0.3, 0.28), (0, 0.2, 0.28)])
def test_golden_certain_tokens_get_room_to_fall_and_uncertain_ones_to_rise(h, low, high):
    bounds = HAPO().bounds(with_h(h), with_h(h).old, {})
    assert bounds.low.item() == pytest.approx(low) and bounds.high.item() == pytest.approx(high)


def gradient(control, h: float, ratio: float, advantage: float) -> float:
    batch = with_h(h, advantage)
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    new = BatchStatistics(logprobs, batch.old.entropy)
    advantages = control.reshape(batch.batch.advantages, batch, new, {})
    assert not advantages.requires_grad
    policy_loss(
        logprobs, batch.old.logprobs, advantages, batch.batch.mask, PRESET, bounds=control.bounds(batch, batch.old, {})
    ).loss.backward()
    return logprobs.grad.item()


def test_golden_the_gradient_of_an_uncertain_token_past_the_base_bound():
    assert gradient(HAPO(**OFF), 1.0, 1.5, 1.0) == 0  # clipped at 1.28
    assert gradient(HAPO(), 1.0, 1.5, 1.0) == pytest.approx(-3.0)  # bound 1.56; 1.5 * A * (1 + 1)
    assert gradient(HAPO(), -1.0, 0.7, -1.0) == pytest.approx(0.7)  # bound 0.6, moving, so not damped
    assert gradient(HAPO(**OFF), -1.0, 0.7, -1.0) == 0


# --- identities -----------------------------------------------------------------------------------------------


def test_with_all_parts_off_nothing_is_changed():
    control, batch = HAPO(**OFF), b.marked(HAPO(**OFF), five())
    state = control.update(control.initial_state(), b.measured(0.5, batch=batch))
    advantages = batch.batch.advantages
    assert control.token_temperature(state) is None and control.bounds(batch, batch.old, state) is None
    assert control.shape(advantages, batch, state) is advantages
    assert control.reshape(advantages, batch, moved(batch, 1.5), state) is advantages


def test_no_signal_and_tau_zero_are_dapo_with_the_token_group():
    batch = with_h(0.0)
    control = HAPO(tau=0.0)
    same = Bounds(low=torch.tensor([[0.2]]), high=torch.tensor([[0.28]]))
    bounds = control.bounds(batch, batch.old, {})
    assert torch.equal(bounds.low, same.low) and torch.equal(bounds.high, same.high)
    for ratio in (0.5, 1.0, 1.5):
        assert control.reshape(batch.batch.advantages, batch, moved(batch, ratio), {}).item() == 1.0


@pytest.mark.parametrize(
    ("field", "value"),
    [("rho", 1.2), ("tau", 1.0), ("tau", -0.1), ("beta", 1.5), ("low", 0.6), ("high", 0.0), ("beta", float("nan"))],
)
def test_bad_values_are_refused(field, value):
    with pytest.raises(InvalidValue, match=rf"^control\.{field}: got"):
        HAPO(**{field: value})
