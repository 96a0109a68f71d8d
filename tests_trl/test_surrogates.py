"""TRL's own losses beside the core's, on one input in float64: loss and gradient to 1e-6."""

from __future__ import annotations

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from aepo.loss.aggregates import AGGREGATES
from aepo.loss.policy_loss import policy_loss
from aepo.loss.surrogates import CISPO, GSPO, SAPO, VESPO, Clip

from .tiny import even_start, model, prompts, tokenizer

ROWS, SUMS, TOKENS = "sequence-mean-token-mean", "sequence-mean-token-sum", "token-mean"
SEQUENCE = {"importance_sampling_level": "sequence"}
BOUNDS = {"epsilon": 0.2, "epsilon_high": 0.28}
# TRL's settings, the surrogate and the aggregate of the core.
LOSSES = {
    "dapo": ({"loss_type": "dapo", **BOUNDS}, Clip(0.2, 0.28), TOKENS),
    "delta": ({"loss_type": "dapo", **BOUNDS, "delta": 1.3}, Clip(0.2, 0.28, dual=1.3), TOKENS),
    "gspo": ({"loss_type": "grpo", **BOUNDS, **SEQUENCE}, GSPO(0.2, 0.28), ROWS),
    "luspo": ({"loss_type": "luspo", **BOUNDS, **SEQUENCE}, GSPO(0.2, 0.28), SUMS),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.2}, CISPO(high=0.2), TOKENS),
    "cispo 5": ({"loss_type": "cispo", "epsilon_high": 5.0}, CISPO(), TOKENS),
    "sapo": ({"loss_type": "sapo"}, SAPO(), ROWS),
    "sapo 2, 3": (
        {"loss_type": "sapo", "sapo_temperature_pos": 2.0, "sapo_temperature_neg": 3.0},
        SAPO(2.0, 3.0),
        ROWS,
    ),
    "vespo": ({"loss_type": "vespo"}, VESPO(), TOKENS),
}


def rows(seed: int, shared: bool):
    """log pi_old, log pi, A and mask of 6 rows; with `shared` one advantage for all tokens of a row."""
    torch.manual_seed(seed)
    lengths = torch.tensor([5, 1, 3, 4, 2, 5])
    mask = (torch.arange(5)[None] < lengths[:, None]).double()
    old = -3 * torch.rand(6, 5, dtype=torch.float64) * mask
    new = (old + 0.3 * torch.randn(6, 5, dtype=torch.float64)) * mask
    advantages = torch.randn(6, 1 if shared else 5, dtype=torch.float64) * mask
    return old, new, advantages, mask


@pytest.mark.parametrize("shared", [True, False], ids=["row advantages", "token advantages"])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_are_trls(tmp_path, name, shared):
    settings, surrogate, aggregate = LOSSES[name]
    if isinstance(surrogate, GSPO) and not shared:
        pytest.skip("TRL takes the mean of a row's advantages: own_loss")
    plain = {"use_cpu": True, "bf16": False, "report_to": [], "max_completion_length": 5, "num_generations": 2}
    trainer = GRPOTrainer(
        model=model(),
        reward_funcs=even_start,
        args=GRPOConfig(output_dir=str(tmp_path), per_device_train_batch_size=6, **plain, **settings),
        train_dataset=prompts(),
        processing_class=tokenizer(),
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    clipped = 0.0
    for seed in range(5):
        old, new, advantages, mask = rows(seed, shared)
        theirs, ours = (new.clone().requires_grad_() for _ in range(2))
        scores = (theirs, torch.zeros_like(new), None)
        trainer._get_per_token_logps_and_entropies = lambda *given, scores=scores, **named: scores
        ids = torch.ones(6, 5, dtype=torch.long)
        inputs = {"prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": mask.long()}
        inputs |= {"advantages": advantages, "old_per_token_logps": old, "num_items_in_batch": mask.sum()}
        right = trainer._compute_loss(trainer.model, inputs)
        right.backward()
        output = policy_loss(ours, old, advantages, AGGREGATES[aggregate](mask), surrogate)
        output.loss.backward()
        assert output.loss.item() == pytest.approx(right.item(), abs=1e-6)
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=0)
        clipped += output.clipped.mean
    assert (clipped > 0) == isinstance(surrogate, Clip | GSPO)
