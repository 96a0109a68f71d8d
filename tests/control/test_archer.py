import math
from dataclasses import replace

import pytest
import torch

from aepo.control.archer import Archer
from aepo.control.base import Needs
from aepo.engines.collate import collate
from aepo.errors import InvalidValue
from aepo.loss.policy_loss import policy_loss
from aepo.loss.surrogates import Clip
from aepo.model.policy import Policy
from aepo.training.checkpoint import TrainState
from aepo.training.step import train_step
from aepo.types import BatchStatistics, Metric
from tests import builders as b
from tests.training.test_step import make_run, small


def rows(**kwargs):
    """Two completions of 5 and 3 tokens; the 0.8-quantiles are 0.4 + 0.2 * (0.5 - 0.4) = 0.42 and 7.6."""
    entropy = torch.tensor([[0.1, 0.5, 0.2, 0.4, 0.3], [6.0, 8.0, 7.0, 9.0, 9.0]])
    samples = [b.sample(1.0, 1.0, tokens=(1,) * 5), b.sample(0.0, -1.0, tokens=(1,) * 3)]
    return b.marked(Archer(), b.scored(samples, entropy=entropy, **kwargs))


def one(entropy_is_high: bool, advantage: float = 1.0, **kwargs):
    batch = b.scored([b.sample(1.0, advantage, tokens=(1,))], **kwargs)
    return replace(batch, marks={"reasoning": torch.tensor([[float(entropy_is_high)]]), "kinds": torch.ones(1, 1)})


def test_golden_each_completion_is_split_at_its_own_quantile():
    batch = rows()
    assert batch.marks["reasoning"].tolist() == [[0, 1, 0, 0, 0], [0, 1, 0, 0, 0]]
    bounds = Archer().bounds(batch, batch.old, {})
    expected = torch.tensor([[0.2, 0.5, 0.2, 0.2, 0.2], [0.2, 0.5, 0.2, 0.2, 0.2]])
    assert torch.equal(bounds.low, expected) and torch.equal(bounds.high, expected)


def test_golden_equal_entropies_are_all_knowledge():
    batch = b.marked(Archer(), b.scored([b.sample(1.0, tokens=(1, 2, 3))], entropy=0.7))
    assert batch.marks["reasoning"].sum() == 0


def test_golden_k3_on_knowledge_tokens_alone():
    # log pi_ref - log pi = log 2: 2 - 1 - 0.693147 = 0.306853, times 0.001. Of 8 tokens 6 are knowledge tokens.
    batch = rows(logprobs=-1.0, reference=-1.0 + math.log(2))
    penalty = Archer().penalty(batch, batch.old, {})
    k = 0.001 * 0.306853 * 8 / 6
    expected = torch.tensor([[k, 0, k, k, k], [k, 0, k, 0, 0]])
    torch.testing.assert_close(penalty, expected, atol=1e-8, rtol=0)


def test_golden_each_kl_is_the_mean_over_its_own_tokens():
    """By token-mean: beta_k times the mean k3 of the knowledge tokens plus beta_r times that of the others."""
    reference = torch.tensor([[-1.0, -0.5, -1.5, -1.0, -2.0], [-1.2, -0.2, -1.0, 0.0, 0.0]])
    batch, control = rows(logprobs=-1.0, reference=reference), Archer(beta_k=0.3, beta_r=0.7)
    mean = (control.penalty(batch, batch.old, {}) * batch.batch.mask).sum().item() / 8
    # k3(d) = e^d - 1 - d of the differences: knowledge 0, -.5, 0, -1, -.2, 0; reasoning .5, .8
    knowledge = (0.106531 + 0.367879 + 0.018731) / 6
    reasoning = (0.148721 + 0.425541) / 2
    assert mean == pytest.approx(0.3 * knowledge + 0.7 * reasoning, abs=1e-5)


def test_the_kl_counts_trained_tokens_alone():
    batch = rows(logprobs=-1.0, reference=0.0)
    untrained = replace(batch, batch=replace(batch.batch, trained=torch.tensor([True, False])))
    marks = Archer().mark(untrained, {})
    assert marks["kinds"][0].tolist() == pytest.approx([5 / 4, 5.0, 5 / 4, 5 / 4, 5 / 4])


def gradient(batch, ratio: float, control=None) -> float:
    """d loss / d log pi of one token; the reference is at log pi_old."""
    control = control or Archer()
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    new = BatchStatistics(logprobs, batch.old.entropy)
    policy_loss(
        logprobs, batch.old.logprobs, batch.batch.advantages, batch.batch.mask, Clip(),
        control.penalty(batch, new, {}), control.bounds(batch, batch.old, {}),
    ).loss.backward()  # fmt: skip
    return logprobs.grad.item()


def test_golden_the_gradient_of_both_kinds():
    # k3 with x = 1 / ratio: d/d log pi = 1 - x.
    assert gradient(one(True, reference=0.0), 1.3) == pytest.approx(-1.3)
    assert gradient(one(False, reference=0.0), 1.3) == pytest.approx(0.001 * (1 - 1 / 1.3), rel=1e-4)
    assert gradient(one(True, reference=0.0), 1.6) == 0
    assert gradient(one(True, -1.0, reference=0.0), 0.6) == pytest.approx(0.6)
    assert gradient(one(False, -1.0, reference=0.0), 0.6) == pytest.approx(0.001 * (1 - 1 / 0.6), rel=1e-4)


def test_the_kl_pulls_towards_the_reference_and_is_zero_at_it():
    control = Archer(beta_k=1.0)
    assert gradient(one(False, 0.0, reference=0.0), 1.0, control) == 0
    assert (
        gradient(one(False, 0.0, reference=0.0), 1.1, control)
        > 0
        > gradient(one(False, 0.0, reference=0.0), 0.9, control)
    )


def test_without_kl_it_needs_no_reference():
    assert Archer().needs({}).reference
    assert not Archer(beta_k=0.0).needs({}).reference
    batch = one(False)
    assert Archer(beta_k=0.0).penalty(batch, batch.old, {}) is None


def test_the_same_limits_and_betas_by_share_are_grpo_with_kl():
    batch, control = rows(logprobs=-1.0, reference=-0.5), Archer(eps_r=0.2, beta_k=0.001 * 6 / 8, beta_r=0.001 * 2 / 8)
    assert (control.bounds(batch, batch.old, {}).high == 0.2).all()
    penalty = control.penalty(batch, batch.old, {})
    torch.testing.assert_close(penalty, 0.001 * (math.exp(0.5) - 1.5) * batch.batch.mask)


@pytest.mark.parametrize(
    ("field", "value"), [("rho", 1.5), ("eps_k", 0.0), ("eps_r", 1.5), ("beta_k", -1.0), ("beta_r", float("nan"))]
)
def test_bad_values_are_refused(field, value):
    with pytest.raises(InvalidValue, match=rf"^control\.{field}: got"):
        Archer(**{field: value})


# --- in the loop ------------------------------------------------------------------------------------------------


def start(quick_model, **settings):
    """A run whose reference is the model it starts from, and whose policy has been pushed away from it."""
    config = replace(small(quick_model, "grpo", 5, "optimizer.lr=3e-3"), control=Archer(**settings))
    run = replace(make_run(config), reference=Policy.load(quick_model))
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in run.policy.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=noise)
    return run


def distance(run, samples) -> float:
    """Mean k3 of the policy against the reference on these samples, nats per token."""
    batch = collate(samples, run.policy.pad_token_id)
    new, reference = (policy.score(batch, Needs()).logprobs for policy in (run.policy, run.reference))
    return Metric.of((reference - new).exp() - 1 - (reference - new), batch.mask).mean


def test_a_run_trains_towards_the_frozen_base_model(quick_model):
    """With a strong KL the policy comes back to the base model, without one it does not; the base model stays put."""
    ends = {}
    for beta in (0.0, 1.0):
        run = start(quick_model, beta_k=beta, beta_r=beta)
        before = [p.clone() for p in run.reference.model.parameters()]
        state = TrainState(control=run.algorithm.control.initial_state())
        gaps = []
        for _ in range(6):
            state, row, samples = train_step(run, state)
            gaps.append(distance(run, samples))
            assert math.isfinite(row["gradient_norm"])
        assert all(torch.equal(p, q) for p, q in zip(before, run.reference.model.parameters(), strict=True))
        ends[beta] = gaps[-1]
        if beta:
            assert row["gradient_norm"] > 0
    assert ends[1.0] < 0.7 * ends[0.0], ends
