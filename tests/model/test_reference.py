"""k3, the optional KL to the model that a run starts from, and where that model comes from."""

import math
from dataclasses import replace

import pytest
import torch

from aepo.control.base import Needs
from aepo.engines.collate import collate
from aepo.loss.policy_loss import k3
from aepo.model.policy import Policy
from aepo.training import runner
from aepo.training.checkpoint import TrainState
from aepo.training.step import train_step
from aepo.types import Metric
from tests.tiny_models import stir
from tests.training.test_step import make_run, small


def test_golden_k3():
    # d = log 2: 2 - 1 - 0.693147; d = -log 2: 0.5 - 1 + 0.693147
    logprobs = torch.tensor([-1.0, -1.0, -1.0], dtype=torch.float64, requires_grad=True)
    values = k3(logprobs, logprobs.detach() + torch.tensor([math.log(2), 0.0, -math.log(2)]))
    torch.testing.assert_close(values.detach(), torch.tensor([0.306853, 0.0, 0.193147]).double(), atol=1e-6, rtol=0)
    values.sum().backward()
    # 1 - exp(d): descending raises log pi where it is under the reference, lowers it where it is above.
    torch.testing.assert_close(logprobs.grad, torch.tensor([-1.0, 0.0, 0.5]).double(), atol=1e-6, rtol=0)


def test_k3_of_samples_estimates_the_kl():
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    exact = (policy * (policy / reference).log()).sum()
    torch.testing.assert_close((policy * k3(policy.log(), reference.log())).sum(), exact)


def test_no_gradient_flows_into_the_reference():
    reference = torch.zeros(1, requires_grad=True)
    assert not k3(torch.zeros(1), reference).requires_grad


def prepared(model, *settings: str):
    return runner._prepare(small(model, "grpo", 4, *settings), None, quiet=True)[0]


def test_a_reference_is_loaded_only_where_it_is_needed(quick_model):
    assert prepared(quick_model).reference is None
    run = prepared(quick_model, "kl_coefficient=0.1")
    assert run.reference.model is not run.policy.model
    assert not any(p.requires_grad for p in run.reference.model.parameters())
    assert all(p.requires_grad for p in run.policy.model.parameters())
    shared = prepared(quick_model, "kl_coefficient=0.1", "policy.lora_rank=4")
    assert shared.reference.model is shared.policy.model


@pytest.mark.parametrize("settings", [(), ("policy.lora_rank=8",)])
def test_the_kl_pulls_towards_the_reference(settings, quick_model):
    """A policy that was pushed away comes back with a strong KL, and does not without one; its base stays put."""
    base, ends = Policy.load(quick_model), {}
    for coefficient in (0.0, 1.0):
        run = prepared(quick_model, f"kl_coefficient={coefficient}", "optimizer.lr=1e-2", *settings)
        stir(run.policy, 0.1 if settings else 0.05)
        state = TrainState()
        for _ in range(6):
            state, _, samples = train_step(run, state)
        batch = collate(samples, run.policy.pad_token_id)
        logprobs, reference = (p.score(batch, Needs()).logprobs for p in (run.policy, base))
        ends[coefficient] = Metric.of(k3(logprobs, reference), batch.mask).mean
        if coefficient:
            torch.testing.assert_close(run.reference.score(batch, Needs()).logprobs, reference, atol=1e-5, rtol=0)
    assert ends[1.0] < 0.7 * ends[0.0], ends


def test_a_kl_to_itself_changes_nothing_at_the_first_update(quick_model):
    """At pi = pi_ref the penalty and its gradient are zero."""
    after = []
    for coefficient in (0.0, 1.0):
        settings = [f"kl_coefficient={coefficient}", "optimizer.minibatches=1"]
        run = make_run(small(quick_model, "grpo", 5, *settings))
        run = replace(run, reference=Policy.load(quick_model).frozen())
        train_step(run, TrainState())
        after.append(torch.cat([p.detach().flatten() for p in run.policy.model.parameters()]))
    torch.testing.assert_close(after[0], after[1], atol=5e-6, rtol=0)
