import math
from dataclasses import replace

import pytest
import torch

from aepo.algorithm import Algorithm
from aepo.control.base import Needs
from aepo.control.lp_reg import LpReg
from aepo.entropy.partial import FLOOR, MinP
from aepo.entropy.statistics import logits_statistics
from aepo.errors import InvalidValue
from aepo.loss.surrogates import Clip, Ratio
from aepo.loss.tokens import Tokens
from aepo.types import BatchStatistics
from tests import builders as b
from tests import originals

OLD = [-3.0, -2.5, -0.5, -1.0]
NEW = torch.tensor([[-3.2, -2.4, -0.5, -1.0]])
PROXY = torch.tensor([[-2.8, -2.6, -0.4, -0.9]])
WRONG = (-1.0, -1.0, -1.0, 1.0)


def batch(advantages=WRONG, proxy=PROXY):
    scored = b.scored([b.sample(0.0, tokens=(1,) * 4)], logprobs=torch.tensor(OLD))
    scored.batch.advantages[:] = torch.tensor(advantages)
    return replace(scored, old=replace(scored.old, kept_logprobs=proxy))


def penalty(control, scored, new=NEW):
    return control.penalty(b.marked(control, scored), BatchStatistics(new), {})


def test_golden_the_lowest_tokens_of_wrong_answers_that_are_under_the_proxy():
    # floor(0.7 * 3) = 2 of the three wrong tokens: -3.0 and -2.5. The second is above its proxy already.
    # k3 of d = 0.4: e^0.4 - 1.4 = 0.091825.
    assert penalty(LpReg(share=0.7), batch()).tolist() == [[pytest.approx(0.091825, abs=1e-6), 0, 0, 0]]
    # All three: the third has d = 0.1, e^0.1 - 1.1 = 0.005171. The right token is never chosen.
    found = penalty(LpReg(share=1.0, beta=2.0), batch())
    assert found.tolist() == [[pytest.approx(0.183649, abs=1e-6), 0, pytest.approx(0.010342, abs=1e-6), 0]]


def test_golden_a_share_of_less_than_one_token_chooses_none():
    assert not penalty(LpReg(share=0.3), batch()).any()


def test_golden_the_gradient_draws_a_token_up_and_is_one_minus_the_ratio_to_the_proxy():
    new = NEW.clone().requires_grad_()
    penalty(LpReg(share=0.7), batch(), new).sum().backward()
    assert new.grad.tolist() == [[pytest.approx(1 - math.exp(0.4), abs=1e-6), 0, 0, 0]]


def test_golden_a_token_far_under_the_proxy_has_the_largest_term_and_no_gradient():
    # d = 3: e^3 - 4 = 16.1, cut at 10.
    new = torch.tensor([[-5.8, -2.4, -0.5, -1.0]], requires_grad=True)
    found = penalty(LpReg(share=0.7), batch(), new)
    found.sum().backward()
    assert found[0, 0].item() == 10.0 and not new.grad.any()


def test_a_token_outside_the_proxy_has_no_term_and_no_nan():
    proxy = torch.tensor([[FLOOR, FLOOR, -0.4, -0.9]])
    new = NEW.clone().requires_grad_()
    found = penalty(LpReg(share=0.7), batch(proxy=proxy), new)
    found.sum().backward()
    assert not found.any() and not new.grad.any()


@pytest.mark.parametrize("case", originals.cases("lp-reg"))
def test_golden_the_authors_function(case):
    settings, given = case["settings"], case["input"]
    surrogate = Clip(low=settings["low"], high=settings["high"])
    control = LpReg(share=settings["share"], beta=settings["beta"], selection="microbatch")
    proxy = torch.tensor(given["proxy"], dtype=torch.float64)
    part = originals.scored(given, kept_logprobs=proxy.masked_fill(proxy <= -1e4, FLOOR))
    originals.agrees(originals.loss_and_gradient(Algorithm(surrogate=surrogate, control=control), part, given), case)


def test_the_batch_is_chosen_once_by_the_policy_that_sampled():
    scored = batch(advantages=(-1.0,) * 4, proxy=torch.zeros(1, 4))
    moved = torch.tensor([[-0.1, -0.2, -9.0, -8.0]])  # the order turned round
    whole, parts = (penalty(LpReg(share=0.5, selection=how), scored, moved) for how in ("batch", "microbatch"))
    assert (whole > 0).tolist() == [[True, True, False, False]]
    assert (parts > 0).tolist() == [[False, False, True, True]]


def test_it_asks_for_the_proxy_and_nothing_else():
    assert LpReg(rho=0.1).needs({}) == Needs(kept=MinP(0.1))


def test_golden_on_one_softmax_the_update_raises_an_unlikely_token_and_not_the_noise():
    """A wrong answer of the token 2 (p .084), and of the token 4 (p .0015), which is below 0.02 of the largest."""
    logits = torch.log(torch.tensor([0.6, 0.3, 0.084, 0.0145, 0.0015], dtype=torch.float64))
    moves = {}
    for token in (2, 4):
        leaf, label = logits.clone().requires_grad_(), torch.tensor([token])
        stats = logits_statistics(leaf[None], label, kept=MinP(0.02))
        scored = b.scored([b.sample(0.0, -1.0, tokens=(token,))])
        old = BatchStatistics(stats.logprobs[None].detach(), kept_logprobs=stats.kept_logprobs[None])
        control = LpReg(share=1.0)
        part = b.marked(control, replace(scored, old=old))
        new = BatchStatistics(stats.logprobs[None])
        (gradient,) = torch.autograd.grad(control.penalty(part, new, {}).sum(), leaf)
        moves[token] = -gradient[token].item()
        tokens = Tokens.of(new.logprobs, old.logprobs, torch.ones_like(new.logprobs, dtype=torch.bool))
        plain = Ratio()(tokens, torch.tensor([[-1.0]])).item()
        assert plain == -1.0
    assert moves[2] > 0 and moves[4] == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [("rho", 0.0), ("rho", 1.1), ("share", 0.0), ("share", 2.0), ("beta", 0.0), ("beta", math.nan)],
)
def test_bad_values_are_refused(field, value):
    with pytest.raises(InvalidValue, match=rf"^control\.{field}: got"):
        LpReg(**{field: value})
