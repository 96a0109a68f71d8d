import pytest
import torch

from aepo.config import make_config
from aepo.control.entropy_reg import EntropyReg
from aepo.control.schedules import Schedule
from aepo.entropy.statistics import logits_statistics
from aepo.errors import InvalidValue
from aepo.loss.aggregates import token_mean
from aepo.loss.policy_loss import policy_loss
from aepo.loss.surrogates import Clip
from aepo.types import BatchStatistics
from tests import builders as b

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0])
W = torch.tensor([0.326688, -0.116701, -0.130076, -0.079911])  # p (log p + H); dH/dlogits = -w


def loss_gradient(control, logits):
    leaf = logits.clone().requires_grad_()
    stats = logits_statistics(leaf[None], torch.tensor([0]))
    new = BatchStatistics(stats.logprobs[None], stats.entropy[None])
    scored = b.scored([b.sample(0.0, tokens=(1,))])
    mask = scored.batch.mask
    loss = policy_loss(
        new.logprobs, new.logprobs.detach(), torch.zeros_like(mask), token_mean(mask), Clip(),
        control.penalty(scored, new, {}),
    ).loss  # fmt: skip
    loss.backward()
    return leaf.grad


def test_golden_the_gradient_is_the_exact_entropys():
    # Minimising -lambda H: the loss gradient is +lambda w, so a step down raises entropy.
    torch.testing.assert_close(
        loss_gradient(EntropyReg(coefficient=Schedule("0.03")), LOGITS), 0.03 * W, atol=1e-7, rtol=0
    )


def test_a_negative_coefficient_lowers_entropy():
    torch.testing.assert_close(loss_gradient(EntropyReg(coefficient=Schedule("-1")), LOGITS), -W, atol=1e-6, rtol=0)


def test_a_uniform_policy_gets_no_gradient():
    assert loss_gradient(EntropyReg(coefficient=Schedule("1")), torch.zeros(5)).abs().max() < 1e-7


def test_it_asks_for_the_entropy_gradient_and_nothing_else():
    needs = EntropyReg().needs({})
    assert needs.entropy_gradient and needs.temperatures == ()


def test_golden_a_scheduled_coefficient_is_read_at_the_step():
    control = EntropyReg(coefficient=Schedule("inverse-sqrt(0.1)"))
    batch = b.scored([b.sample(0.0, tokens=(1,))], entropy=1.0, step=b.place(3))
    penalty = control.penalty(batch, batch.old, {})
    assert penalty.tolist() == [[pytest.approx(-0.05)]]  # 0.1 / sqrt(4)


@pytest.mark.parametrize("value", ["nan", "inf", "much"])
def test_bad_coefficients_are_refused(value):
    with pytest.raises(InvalidValue, match=r"^control\.coefficient: got"):
        make_config(method="entropy-reg", settings=[f"control.coefficient='{value}'"])
