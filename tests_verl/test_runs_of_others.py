"""verl for real, as in test_runs.py: verl's own GRPO, and other controls."""

from __future__ import annotations

import pytest
import torch

from aepo.methods import preset
from tests_verl.support.parity import Minibatch, gradient_norm, model_at
from tests_verl.support.run import OURS, STOCK, go

pytestmark = pytest.mark.minutes


def test_grpo_is_verls_grpo_step_by_step(work, runtime):
    stock = go(work, "stock", STOCK, [], 6, runtime)
    ours = go(work, "grpo", OURS, ["aepo.method=grpo", "aepo.surrogate.dual=3"], 6, runtime)
    for name in ("actor/grad_norm", "actor/entropy", "critic/score/mean", "response_length/mean"):
        assert ours.series(name) == pytest.approx(stock.series(name), rel=1e-5), name
    assert len(set(stock.series("critic/score/mean"))) > 3


REFERENCE = [
    *("actor_rollout_ref.actor.use_kl_loss=true", "actor_rollout_ref.actor.kl_loss_coef=0.1"),
    "+actor_rollout_ref.ref.fsdp_config.mixed_precision={param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}",
]
MICROBATCHES = [
    *("actor_rollout_ref.actor.use_dynamic_bsz=false", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2"),
    "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=false",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.ref.log_prob_use_dynamic_bsz=false",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=4",
]
METHODS = {
    "kl-cov+pos-adv-reweight": [],
    "archer": [*REFERENCE, *MICROBATCHES],
    "dcpo+entropy-reg": [],
    "dapo": [],
}


@pytest.mark.parametrize("name", METHODS)
def test_other_controls_two_updates_a_step(work, runtime, name):
    """Every step's fields against the core's; both updates of the first step replayed with torch's AdamW.

    Archer has its own reference model, and here a KL penalty on top and microbatches of two rows.
    """
    given = [f"aepo.method={name}", *METHODS[name], "actor_rollout_ref.actor.ppo_mini_batch_size=4"]
    found, dump, algorithm = go(work, f"two-{name}", OURS, given, 2, runtime), work / f"two-{name}/dump", preset(name)
    micro, coefficient = (range(4), 0.1) if METHODS[name] else (range(1), 0.0)
    updates = [[number * len(micro) + place for place in micro] for number in (0, 1)]
    base = model_at(work, dump, 0)
    for step in range(2):
        model = model_at(work, dump, step)
        whole = Minibatch(dump, step, *updates[0], *updates[1])
        made = whole.check_fields(algorithm, model, base if METHODS[name] else None)
        if step > 0 and "ref_log_prob" in made:
            assert (made["ref_log_prob"] - made["old_log_probs"]).abs().max() > 1e-3
        first = Minibatch(dump, step, *updates[0])
        first.check_weights(algorithm.aggregate)
        assert first.loss == pytest.approx(first.core_loss(algorithm, model, coefficient).item(), abs=1e-5)

    optimizer = torch.optim.AdamW(base.parameters(), lr=1e-3, betas=(0.9, 0.999), weight_decay=0.01)
    norms = []
    for numbers in updates:
        minibatch = Minibatch(dump, 0, *numbers)
        minibatch.check_weights(algorithm.aggregate)
        loss = minibatch.core_loss(algorithm, base, coefficient)
        loss.backward()
        assert minibatch.loss == pytest.approx(loss.item(), abs=1e-5)
        norms.append(gradient_norm(base))
        optimizer.step()
        optimizer.zero_grad()
    assert found.rows[1]["actor/grad_norm"] == pytest.approx(sum(norms) / 2, rel=1e-3)
    assert found.rows[1]["aepo/ratio"] != 1.0
