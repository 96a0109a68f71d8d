"""GSPO, CISPO, GMPO, SAPO, DPPO and VESPO: golden values of one input, and what holds of each."""

import dataclasses
import math

import pytest
import torch

from aepo.algorithm import Algorithm
from aepo.control.archer import Archer
from aepo.control.entropy_adv import EntropyAdv
from aepo.control.hapo import HAPO
from aepo.control.moving_bound import MovingBound
from aepo.errors import InvalidValue
from aepo.loss.aggregates import AGGREGATES
from aepo.loss.policy_loss import policy_loss
from aepo.loss.surrogates import (
    CISPO,
    DPPO,
    GMPO,
    GSPO,
    SAPO,
    SURROGATES,
    VESPO,
    Bounds,
    Clip,
    GradientPreservingClip,
    Ratio,
)
from aepo.methods import preset

OLD = torch.tensor([[-1.0, -2.0, -0.5], [-1.5, -0.7, 0.0]], dtype=torch.float64)
NEW = torch.tensor([[-0.7, -2.1, -0.4], [-2.0, -0.8, 0.0]], dtype=torch.float64)
MASK = torch.tensor([[1.0, 1, 1], [1, 1, 0]], dtype=torch.float64)
ADVANTAGES = torch.tensor([[1.0, 1, 1], [-1, -1, 0]], dtype=torch.float64)
TOKENS, ROWS, SUMS = "token-mean", "sequence-mean-token-mean", "sequence-mean-token-sum"


def loss_and_gradient(surrogate, aggregate, new=NEW, advantages=ADVANTAGES, bounds=None):
    """The loss of the five tokens and d loss / d log pi of each: three of row 1, two of row 2."""
    logprobs = new.clone().requires_grad_()
    weights = AGGREGATES[aggregate](MASK)
    output = policy_loss(logprobs, OLD, advantages, weights, surrogate, bounds=bounds)
    output.loss.backward()
    assert logprobs.grad[1, 2] == 0
    return output.loss.item(), logprobs.grad[MASK.bool()].tolist(), output.clipped.mean


# log r = (.3, -.1, .1 | -.5, -.1), r = (1.349859, .904837, 1.105171 | .606531, .904837), A = +1 on row 1, -1 on row 2.
GOLDEN = {
    # PPO: -min(r A, clip(r) A) = -1.28, -.904837, -1.105171, .8, .904837; sum / 5 = -.317034
    "clip": (Clip(low=0.2, high=0.28), TOKENS, -0.317034, (0, -0.180967, -0.221034, 0, 0.180967), 2),
    # s = exp(.1) and exp(-.3): (-1.105171 + .8) / 2; the second row is clipped
    "gspo": (GSPO(low=0.2, high=0.28), ROWS, -0.152585, (-0.184195,) * 3 + (0, 0), 2),
    # The same rows times their lengths: (-1.105171 * 3 + .8 * 2) / 2
    "luspo": (GSPO(low=0.2, high=0.28), SUMS, -0.857756, (-0.552585,) * 3 + (0, 0), 2),
    # At the paper's bounds both rows are clipped: (-1.0004 + .9997) / 2
    "gspo, its own bounds": (GSPO(), ROWS, -0.000350, (0,) * 5, 5),
    # Weights 1.28, .904837, 1.105171, .8, .904837 times -A log pi, / 5
    "cispo": (
        CISPO(low=0.2, high=0.28),
        TOKENS,
        0.182871,
        (-0.256, -0.180967, -0.221034, 0.16, 0.180967),
        0,
    ),
    # Open below, 1.2 above
    "cispo, open below": (
        CISPO(low=1.0, high=0.2),
        TOKENS,
        0.249059,
        (-0.24, -0.180967, -0.221034, 0.121306, 0.180967),
        0,
    ),
    # g = (.3, -.1, .1 | -.4, -.1): (-exp(.1) + exp(-.25)) / 2; the gradient of row 2 is exp(-.25) / 2 / 2
    "gmpo": (GMPO(), ROWS, -0.163185, (-0.184195,) * 3 + (0, 0.194700), 1),
    # 4 p (1 - p) r A with p = sigmoid(tau (r - 1)), / 3 / 2 and / 2 / 2
    "sapo": (SAPO(), ROWS, -0.227768, (-0.218230, -0.150465, -0.183687, 0.145342, 0.225646), 0),
    # p - q = (.128706, -.012879, .063789 | -.087795, -.047256): the first token is above .1
    "dppo, tv": (
        DPPO(low=0.1, high=0.1),
        TOKENS,
        0.081059,
        (0, -0.180967, -0.221034, 0.121306, 0.180967),
        1,
    ),
    # D = (.033548, .000750, .008944 | .028386, .004490): the first token of each row is above .02
    "dppo, kl": (
        DPPO(divergence="kl", low=0.02, high=0.02),
        TOKENS,
        0.323671,
        (0, -0.180967, -0.221034, 0, 0.180967),
        2,
    ),
    # W = exp(.3), exp(-.6): phi = exp(2 * .3 + 3 (1 - W)) = .637900, exp(-3 * .6 + 2 (1 - W)) = .407535; / 5
    "vespo": (VESPO(), TOKENS, 0.180034, (-0.127580,) * 3 + (0.081507,) * 2, 0),
}


@pytest.mark.parametrize("case", GOLDEN.values(), ids=GOLDEN)
def test_golden_loss_and_gradient(case):
    surrogate, aggregate, loss, gradient, clipped = case
    value, slopes, share = loss_and_gradient(surrogate, aggregate)
    assert value == pytest.approx(loss, abs=1e-6)
    assert slopes == pytest.approx(gradient, abs=1e-6)
    assert share == pytest.approx(clipped / 5)


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.5, 1.0, -2.489837, -1.410022),
        (0.5, 1.0, -1.510163, -0.470007),
        (1.5, -1.0, 2.393585, 1.401210),
        (1.0, 1.0, -2.0, -1.0),
    ],
)
def test_golden_sapos_gate(ratio, advantage, value, slope):
    logprobs = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    output = policy_loss(logprobs, torch.zeros(1, 1), torch.full((1, 1), advantage), torch.ones(1, 1), SAPO())
    output.loss.backward()
    assert (output.loss.item(), logprobs.grad.item()) == pytest.approx((value, slope), abs=1e-6)


@pytest.mark.parametrize(
    ("weight", "advantage", "phi"), [(0.5, 1, 1.120422), (2, 1, 0.199148), (0.5, -1, 0.339785), (2, -1, 1.082682)]
)
def test_golden_vespos_weight(weight, advantage, phi):
    """phi(.5) = .5^2 exp(3 * .5) = 1.120422 and .5^3 exp(2 * .5) = .339785."""
    logprobs = torch.tensor([[math.log(weight) - 1.0, -1.0]], dtype=torch.float64, requires_grad=True)
    old, sign = torch.full((1, 2), -1.0), torch.full((1, 2), float(advantage))
    policy_loss(logprobs, old, sign, torch.ones(1, 2), VESPO()).loss.backward()
    assert logprobs.grad.tolist() == [pytest.approx([-advantage * phi] * 2, abs=1e-6)]


def test_golden_dppos_cap():
    """log r = 3.5 is a ratio of 33.1; TV .033, so the token stays, with weight 20."""
    logprobs = torch.tensor([[-3.4]], dtype=torch.float64, requires_grad=True)
    output = policy_loss(logprobs, torch.full((1, 1), -6.9), torch.ones(1, 1), torch.ones(1, 1), DPPO())
    output.loss.backward()
    assert logprobs.grad.item() == pytest.approx(-20.0)


def test_dppo_lets_an_unlikely_token_move_far_and_a_likely_one_hardly():
    for old, new, kept in ((1e-4, 2e-3, True), (0.7, 0.9, False), (0.7, 0.84, True)):
        logprobs = torch.tensor([[math.log(new)]], requires_grad=True)
        policy_loss(
            logprobs, torch.tensor([[math.log(old)]]), torch.ones(1, 1), torch.ones(1, 1), DPPO()
        ).loss.backward()
        assert (logprobs.grad.item() != 0) == kept


BASE = [preset(name) for name in ("gspo", "luspo", "cispo", "gmpo", "sapo", "dppo", "vespo", "grpo", "kl-cov")]


@pytest.mark.parametrize("algorithm", BASE, ids=lambda a: f"{a.surrogate.name}-{a.aggregate}")
def test_before_the_policy_moves_the_gradient_is_reinforce(algorithm):
    """-A times the token's weight, for every surrogate, with advantages that differ from token to token."""
    torch.manual_seed(0)
    advantages = torch.randn(2, 3, dtype=torch.float64) * MASK
    _, gradient, clipped = loss_and_gradient(algorithm.surrogate, algorithm.aggregate, OLD, advantages)
    weights = AGGREGATES[algorithm.aggregate](MASK)
    assert gradient == pytest.approx((-advantages * weights)[MASK.bool()].tolist()) and clipped == 0


@pytest.mark.parametrize("algorithm", BASE, ids=lambda a: f"{a.surrogate.name}-{a.aggregate}")
def test_the_gradient_does_not_depend_on_the_microbatch(algorithm):
    torch.manual_seed(0)
    new, weights = OLD + 0.1 * torch.randn(2, 3, dtype=torch.float64), AGGREGATES[algorithm.aggregate](MASK)
    found = []
    for parts in ([[0, 1]], [[0], [1]]):
        logprobs = new.clone().requires_grad_()
        for rows in parts:
            policy_loss(logprobs[rows], OLD[rows], ADVANTAGES[rows], weights[rows], algorithm.surrogate).loss.backward()
        found.append(logprobs.grad)
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("algorithm", BASE, ids=lambda a: f"{a.surrogate.name}-{a.aggregate}")
def test_padding_does_not_count_in_a_row_even_as_nan(algorithm):
    plain = loss_and_gradient(algorithm.surrogate, algorithm.aggregate)
    broken = NEW.clone()
    broken[1, 2] = math.nan
    assert loss_and_gradient(algorithm.surrogate, algorithm.aggregate, broken) == plain


def test_cispo_takes_bounds_of_tokens():
    """A weight of at most 1.1 for the first token only: 1.1 * -1 / 5."""
    high = torch.full((2, 3), 4.0)
    high[0, 0] = 0.1
    _, gradient, _ = loss_and_gradient(CISPO(), TOKENS, bounds=Bounds(low=1.0, high=high))
    assert gradient == pytest.approx((-0.22, -0.180967, -0.221034, 0.121306, 0.180967), abs=1e-6)


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "field", "values"),
    [
        (GSPO, "low", (0.0, 1.5)),
        (GSPO, "high", (0.0, math.inf)),
        (CISPO, "low", (0.0, 10.0)),
        (CISPO, "high", (-1.0, math.nan)),
        (GMPO, "low", (0.0, math.nan)),
        (GMPO, "high", (-0.4,)),
        (SAPO, "tau_positive", (0.0, math.inf)),
        (SAPO, "tau_negative", (-1.0,)),
        (DPPO, "low", (0.0,)),
        (DPPO, "high", (-0.1,)),
        (DPPO, "cap", (0.5,)),
        *((VESPO, field.name, (0.0, math.inf)) for field in dataclasses.fields(VESPO)),
    ],
)
def test_bad_values_are_refused(cls, field, values):
    for value in values:
        with pytest.raises(InvalidValue, match=rf"^surrogate\.{field}: got"):
            cls(**{field: value})


@pytest.mark.parametrize(
    ("surrogate", "aggregate"), [(GSPO(), TOKENS), (GSPO(), "fixed-length"), (GMPO(), TOKENS), (GMPO(), SUMS)]
)
def test_aggregates_that_weigh_rows_by_length_are_refused(surrogate, aggregate):
    with pytest.raises(InvalidValue, match=rf"^aggregate: got '{aggregate}'; must be sequence-mean-token-mean"):
        Algorithm(surrogate=surrogate, aggregate=aggregate)


@pytest.mark.parametrize("cls", SURROGATES.values())
@pytest.mark.parametrize("control", [Archer(), HAPO(), MovingBound()])
def test_bounds_of_the_token_ratio_need_a_surrogate_that_has_them(cls, control):
    aggregate = (cls.aggregates or (TOKENS,))[0]
    Algorithm(surrogate=cls(), aggregate=aggregate, control=EntropyAdv())
    if cls in (Clip, CISPO, GradientPreservingClip):
        assert Algorithm(surrogate=cls(), aggregate=aggregate, control=control).control == control
    else:
        with pytest.raises(InvalidValue, match=rf"^surrogate.name: got '{cls.name}'; must be a surrogate whose bounds"):
            Algorithm(surrogate=cls(), aggregate=aggregate, control=control)


def test_ratio_acts_as_without_a_clip():
    assert not Ratio().acts_off_policy and not Clip().acts_off_policy and Clip(dual=3.0).acts_off_policy
