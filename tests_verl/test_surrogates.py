"""verl's registered losses beside the core's, on one input in float64: loss and gradient to 1e-6."""

from __future__ import annotations

import pytest
import torch
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.workers.config import ActorConfig

from aepo.loss.aggregates import AGGREGATES
from aepo.loss.policy_loss import policy_loss
from aepo.loss.surrogates import CISPO, DPPO, GMPO, GSPO, SAPO, Clip

ROWS, TOKENS = "sequence-mean-token-mean", "token-mean"
VERL_NAMES = {ROWS: "seq-mean-token-mean", TOKENS: "token-mean"}
# verl's name, its bounds (low, high, c), the surrogate and the aggregate of the core.
LOSSES = {
    "vanilla": ("vanilla", (0.2, 0.28, 1.3), Clip(0.2, 0.28, dual=1.3), TOKENS),
    "gspo": ("gspo", (0.2, 0.28, 3.0), GSPO(0.2, 0.28), ROWS),
    "gspo, its own bounds": ("gspo", (3e-4, 4e-4, 3.0), GSPO(), ROWS),
    "cispo": ("cispo", (0.2, 0.28, 3.0), CISPO(0.2, 0.28), TOKENS),
    "cispo, open below": ("cispo", (10.0, 0.2, 3.0), CISPO(1.0, 0.2), TOKENS),
    "sapo": ("sapo", (0.2, 0.2, 3.0), SAPO(), ROWS),
    "geo_mean": ("geo_mean", (0.4, 0.4, 3.0), GMPO(), ROWS),
    "geo_mean, uneven": ("geo_mean", (0.1, 0.2, 3.0), GMPO(0.1, 0.2), ROWS),
    "dppo_tv": ("dppo_tv", (0.05, 0.1, 3.0), DPPO(low=0.05, high=0.1, cap=3.0), TOKENS),
    "dppo_tv, cap": ("dppo_tv", (0.5, 0.5, 1.1), DPPO(low=0.5, high=0.5, cap=1.1), TOKENS),
    "dppo_kl": ("dppo_kl", (0.01, 0.02, 3.0), DPPO("kl", 0.01, 0.02, cap=3.0), TOKENS),
}


def rows(seed: int, shared: bool):
    """log pi_old, log pi, A and mask of 6 rows; with `shared` one advantage for all tokens of a row."""
    torch.manual_seed(seed)
    lengths = torch.tensor([5, 1, 3, 4, 2, 5])
    mask = (torch.arange(5)[None] < lengths[:, None]).double()
    old = -3 * torch.rand(6, 5, dtype=torch.float64) * mask
    new = torch.minimum(old + 0.3 * torch.randn(6, 5, dtype=torch.float64), torch.tensor(-1e-3)) * mask
    advantages = torch.randn(6, 1 if shared else 5, dtype=torch.float64) * mask
    return old, new, advantages, mask


@pytest.mark.parametrize("shared", [True, False], ids=["row advantages", "token advantages"])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_are_verls(name, shared):
    theirs_name, (low, high, c), surrogate, aggregate = LOSSES[name]
    if isinstance(surrogate, GMPO) and not shared:
        pytest.skip("verl takes the mean of a row's advantages; the core keeps each token's own")
    config = ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        use_dynamic_bsz=True,
        clip_ratio=low,
        clip_ratio_low=low,
        clip_ratio_high=high,
        clip_ratio_c=c,
    )
    stopped = 0.0
    for seed in range(5):
        old, new, advantages, mask = rows(seed, shared)
        theirs, ours = (new.clone().requires_grad_() for _ in range(2))
        right, _ = get_policy_loss_fn(theirs_name)(
            old_log_prob=old,
            log_prob=theirs,
            advantages=advantages,
            response_mask=mask,
            loss_agg_mode=VERL_NAMES[aggregate],
            config=config,
        )
        right.backward()
        output = policy_loss(ours, old, advantages, AGGREGATES[aggregate](mask), surrogate)
        output.loss.backward()
        assert output.loss.item() == pytest.approx(right.item(), abs=1e-6)
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=0)
        stopped += output.clipped.mean
    assert (stopped > 0) == (not isinstance(surrogate, CISPO | SAPO) and name != "dppo_tv, cap")
