"""The keys of trainers that spread sampling and training over many machines; docs/doctor.md has the sources.

Their keys stand here as on W&B, without `train/`. Where a console prints other words, its reader translates them.
"""

from __future__ import annotations

from aepo.doctor.dialect import SAMPLED, SPREAD, Dialect, marks, same_rewards
from aepo.doctor.types import EntropyMeaning

ROLLOUT_STEP = "rollout/step"
NAMED_A_LOSS = EntropyMeaning(
    "exact",
    "the exact entropy per token under the name of a loss",
    "the name is that of a loss, the number is not: read it as the entropy, higher is more random",
)

SLIME = Dialect(
    name="slime / miles",
    marks=marks(
        "rollout/raw_reward",
        "train_rollout_logprob_abs_diff",
        "entropy_loss pg_clipfrac",
        "rollout/response_len/mean rollout/truncated_ratio",
    ),
    keys={
        "entropy": ("entropy_loss",),
        "reward": ("rollout/raw_reward", "rollout/rewards"),
        "length": ("rollout/response_lengths", "rollout/response_len/mean"),
        "truncated": ("rollout/truncated", "rollout/truncated_ratio"),
        "clip_fraction": ("pg_clipfrac",),
        "approximate_kl": ("ppo_kl",),
        "reference_kl": ("kl_loss", "rollout/kl"),
        "mismatch": ("train_rollout_logprob_abs_diff",),
        "gradient_norm": ("grad_norm",),
        "learning_rate": ("lr-pg_0",),
        "loss": ("loss", "pg_loss"),
    },
    entropies={
        "entropy_loss": NAMED_A_LOSS,
    },
    streams=("step", ROLLOUT_STEP),
)

PRIME_RL = Dialect(
    name="prime-rl",
    marks=marks("mismatch_kl/all/mean", "entropy/all/mean", "reward/all/mean", "mismatch_kl/mean entropy/mean"),
    keys={
        "entropy": ("entropy/all/mean", "entropy/mean"),
        "reward": ("reward/all/mean", "reward/mean", "effective/agent/reward/mean"),
        "length": ("seq_len/all/mean", "seq_len/mean", "effective/num_output_tokens/mean"),
        "truncated": ("is_truncated/all/mean", "is_truncated/mean"),
        "mismatch_kl": ("mismatch_kl/all/mean", "mismatch_kl/mean"),
        "gradient_norm": ("optim/grad_norm",),
        "learning_rate": ("optim/lr",),
        "loss": ("loss/mean",),
    },
    entropies={
        key: EntropyMeaning("exact", "the exact entropy per token of the tempered distribution")
        for key in ("entropy/all/mean", "entropy/mean")
    },
    streams=("step", ROLLOUT_STEP),
)

SKYRL = Dialect(
    name="SkyRL",
    marks=marks(
        "policy/policy_entropy",
        "policy/policy_loss loss/avg_final_rewards",
        "reward/avg_raw_reward trainer/global_step",
    ),
    keys={
        "entropy": ("policy/policy_entropy",),
        "reward": ("reward/avg_raw_reward", "loss/avg_final_rewards", "loss/avg_raw_rewards"),
        "length": ("generate/avg_num_tokens",),
        "clip_fraction": ("policy/loss_metrics/clip_ratio", "policy/ppo_clip_ratio"),
        "reference_kl": ("policy/policy_kl",),
        "mismatch": (
            "policy/rollout_train_logprobs_abs_diff_mean",
            "policy/minibatch_rollout_logprobs_abs_diff_mean",
        ),
        "gradient_norm": ("policy/grad_norm", "policy/raw_grad_norm"),
        "learning_rate": ("policy/policy_lr",),
        "loss": ("policy/policy_loss", "policy/final_loss"),
    },
    entropies={"policy/policy_entropy": EntropyMeaning("exact", "the exact entropy per token")},
)

NEMO_RL = Dialect(
    name="NeMo-RL",
    marks=marks("gen_kl_error", "token_mult_prob_error", "mean_gen_tokens_per_sample reward"),
    keys={
        "entropy": ("approx_entropy",),
        "reward": ("total_reward", "reward"),
        "advantage_high": ("advantages/max",),
        "advantage_low": ("advantages/min",),
        "length": ("mean_gen_tokens_per_sample",),
        "truncated": ("truncation_rate",),
        "ratio": ("probs_ratio",),
        "reference_kl": ("kl_penalty",),
        "mismatch_kl": ("gen_kl_error",),
        "gradient_norm": ("grad_norm",),
        "learning_rate": ("lr",),
        "loss": ("loss",),
    },
    entropies={
        "approx_entropy": EntropyMeaning(
            "sampled", "a sampled estimate: minus the mean log-probability, with importance weights", SAMPLED
        )
    },
    derive=same_rewards,
    derive_from=SPREAD,
)


def _areal(*names: str) -> tuple[str, ...]:
    """Return the keys of these statistics; older versions call the scope grpo_actor and have no `update`."""
    scopes = ("ppo_actor/update", "ppo_actor", "grpo_actor/update", "grpo_actor")
    return tuple(f"{scope}/{name}" for scope in scopes for name in names)


AREAL = Dialect(
    name="AReaL",
    marks=tuple(frozenset({key}) for key in _areal("entropy/avg", "task_reward/avg")),
    keys={
        "entropy": _areal("entropy/avg"),
        "reward": (*_areal("task_reward/avg"), "rollout/reward/avg", "rollout/reward"),
        "advantage_high": _areal("advantages/max"),
        "advantage_low": _areal("advantages/min"),
        "length": _areal("seq_len/avg"),
        "truncated": _areal("no_eos_ratios/avg"),
        "clip_fraction": _areal("clip_ratio/avg"),
        "approximate_kl": _areal("approx_kl/avg"),
        "ratio": _areal("importance_weight/avg"),
        "mismatch_kl": _areal("behave_approx_kl/avg"),
        "gradient_norm": _areal("grad_norm", "grad_norm/avg"),
        "learning_rate": _areal("lr", "lr/avg"),
        "loss": _areal("actor_loss/avg"),
    },
    entropies={
        key: EntropyMeaning("exact", "the exact entropy per token of the tempered distribution")
        for key in _areal("entropy/avg")
    },
    derive=same_rewards,
    derive_from=SPREAD,
)

ROLL = Dialect(
    name="ROLL",
    marks=marks(
        "critic/entropy/mean",
        "rollout/score/mean",
        "actor/train_infer_diff_mean",
        "actor/ppo_ratio_clipfrac",
        "tokens/response_length/mean",
    ),
    keys={
        "entropy": ("critic/entropy/mean", "actor/entropy", "actor/entropy_loss"),
        "reward": ("critic/score/mean", "rollout/score/mean", "critic/rewards/mean"),
        "advantage_high": ("critic/advantages/max",),
        "advantage_low": ("critic/advantages/min",),
        "length": ("tokens/response_length/mean", "rollout/response_length/mean"),
        "clip_fraction": ("actor/ppo_ratio_clipfrac", "actor/clipfrac"),
        "approximate_kl": ("actor/approxkl",),
        "reference_kl": ("critic/kl", "actor/kl_loss"),
        "gradient_norm": ("actor_train/grad_norm", "actor/grad_norm"),
        "learning_rate": ("actor/lr",),
        "loss": ("actor/total_loss", "actor/pg_loss"),
    },
    entropies={
        "critic/entropy/mean": EntropyMeaning("exact", "the exact entropy per token"),
        "actor/entropy": EntropyMeaning("exact", "the exact entropy per token"),
        "actor/entropy_loss": NAMED_A_LOSS,
    },
    derive=same_rewards,
    derive_from=SPREAD,
)
