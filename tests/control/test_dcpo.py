"""DCPO (2601.12730) is a setting of AEPO; these are its own definitions."""

import pytest
import torch

from aepo.loss.aggregates import token_mean
from aepo.loss.policy_loss import policy_loss
from aepo.loss.surrogates import Clip
from aepo.methods import METHODS
from tests import builders as b

DCPO = METHODS["dcpo"].algorithm.control
LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0])
CORRECT = torch.tensor([1.0, 1.0, 0.0, 0.0])


def after(entropy):
    """The state after a step of this entropy; the target is 0.5."""
    return DCPO.update(DCPO.initial_state(), b.measured(entropy))


def rows(*rewards, advantages=None, tokens=(1,)):
    advantages = advantages or [0.0] * len(rewards)
    return [b.sample(r, a, tokens=tokens, number=i) for i, (r, a) in enumerate(zip(rewards, advantages, strict=True))]


def shaped(entropy, rewards, advantages, log_rho=0.0):
    """A' of one-token completions whose log pi^T - log pi is `log_rho`."""
    state = after(entropy)
    (temperature,) = DCPO.needs(state).temperatures
    batch = b.scored(rows(*rewards, advantages=advantages), logprobs=-1.0, tempered={temperature: -1.0 + log_rho})
    return DCPO.shape(batch.batch.advantages, batch, state)[:, 0].tolist()


@pytest.mark.parametrize(
    ("entropy", "a"),
    [(0.45, 0.05 / 0.55), (0.55, 0.05 / 0.55), (0.0, 0.1 / 0.6), (1.0, 0.1 / 0.6)],  # .0909 and .1667
)
def test_golden_the_weight(entropy, a):
    """a = x / (1 + x), x = min(|H0 - H|, 0.1) / c, here c = 1/2; A' = (1 - a) A + a R rho."""
    rho = 1.5
    values = shaped(entropy, [1.0, 0.0], [1.0, -1.0], log_rho=torch.tensor(rho).log())
    assert values == pytest.approx([(1 - a) + a * rho, -(1 - a)], rel=1e-5)


@pytest.mark.parametrize(("right", "of"), [(1, 8), (1, 4), (4, 4)])
def test_golden_the_weight_grows_where_few_are_right(right, of):
    c = right / of
    values = shaped(0.0, [1.0] * right + [0.0] * (of - right), [0.0] * of)
    assert values[0] == pytest.approx((0.1 / c) / (1 + 0.1 / c))


def test_golden_without_a_right_answer_nothing_changes():
    assert shaped(0.0, [0.0, 0.0], [0.3, -0.3], log_rho=0.7) == pytest.approx([0.3, -0.3])


def test_wrong_answers_get_what_is_left_of_their_advantage():
    a = 0.1 / 0.6
    values = shaped(0.0, [1.0, 0.0, 0.0, 1.0], [0.0, -0.4, 0.4, 0.0], log_rho=3.0)
    assert values[1:3] == pytest.approx([-0.4 * (1 - a), 0.4 * (1 - a)])


@pytest.mark.parametrize(("entropy", "temperature"), [(0.2, 1.2), (0.8, 0.8)])
def test_golden_the_temperature_of_the_target_distribution(entropy, temperature):
    assert DCPO.needs(after(entropy)).temperatures == (temperature,)
    assert DCPO.plan(after(entropy), b.place()) == ()  # nothing is drawn


def test_answers_of_an_all_correct_group_contribute():
    assert shaped(0.0, [1.0, 1.0], [0.0, 0.0]) == pytest.approx([0.1 / 1.1] * 2)


@pytest.mark.parametrize(("entropy", "temperature"), [(0.0, 1.2), (1.0, 0.8)])
def test_golden_the_gradient_is_that_of_the_target_distribution(entropy, temperature):
    """Enumerated: E_pi[A' grad log pi] = (1 - a) E_pi[A grad log pi] + a E_{pi^T}[R grad log pi]."""
    logprobs, tempered = LOGITS.log_softmax(-1), (LOGITS / temperature).log_softmax(-1)
    advantages = [0.9, 0.2, -0.3, -0.8]
    samples = [b.sample(r, a, tokens=(t,)) for t, (r, a) in enumerate(zip(CORRECT.tolist(), advantages, strict=True))]
    batch = b.scored(samples, logprobs=logprobs[:, None], tempered={temperature: tempered[:, None]})
    new = DCPO.shape(batch.batch.advantages, batch, after(entropy))[:, 0]
    jacobian = torch.eye(4) - LOGITS.softmax(-1)
    a = 0.1 / 0.6
    plain = (logprobs.exp() * torch.tensor(advantages)) @ jacobian
    reinforce = (tempered.exp() * CORRECT) @ jacobian
    torch.testing.assert_close((logprobs.exp() * new) @ jacobian, (1 - a) * plain + a * reinforce)


def test_no_gradient_flows_into_rho():
    logits = LOGITS.clone().requires_grad_()
    logprobs = logits.log_softmax(-1)
    state = after(0.0)

    def gradient(tempered):
        samples = [b.sample(r, 0.1, tokens=(t,)) for t, r in enumerate(CORRECT.tolist())]
        batch = b.scored(samples, logprobs=logprobs.detach()[:, None], tempered={1.2: tempered[:, None]})
        advantages = DCPO.shape(batch.batch.advantages, batch, state)
        weights = token_mean(batch.batch.mask)
        loss = policy_loss(logprobs[:, None], logprobs.detach()[:, None], advantages, weights, Clip()).loss
        return torch.autograd.grad(loss, logits, retain_graph=True)[0]

    tempered = (logits / 1.2).log_softmax(-1)
    torch.testing.assert_close(gradient(tempered), gradient(tempered.detach()))


def test_it_is_grpo_at_the_target_and_in_the_first_step():
    batch = b.scored(rows(1.0, 0.0, advantages=[0.7, -0.7]), logprobs=-1.0, tempered={1.2: -0.2, 0.8: -0.2})
    for state in (after(0.5), DCPO.initial_state()):  # a = 0
        assert torch.equal(DCPO.shape(batch.batch.advantages, batch, state), batch.batch.advantages)
        assert DCPO.needs(state).temperatures == ()


def test_with_rho_of_one_it_is_grpo_with_the_reward_mixed_in():
    """rho = 1 leaves (1 - a) A + a R, GRPO's update with another baseline; nothing of the temperature."""
    a = 0.1 / 0.6
    assert shaped(0.0, [1.0, 0.0], [0.7, -0.7]) == pytest.approx([(1 - a) * 0.7 + a, -(1 - a) * 0.7])
    # a = 0 and rho = 1 together are GRPO; so is a group of R = A.
    assert shaped(0.0, [1.0, 0.0], [1.0, 0.0]) == pytest.approx([1.0, 0.0])


def test_every_ordinary_row_is_trained_on():
    ordinary = rows(1.0, 0.0)
    assert DCPO.mix(ordinary, [], after(0.0), b.place()) == ordinary
