"""The keys that each trainer logs, their names here, and the meaning of its entropy; docs/doctor.md has the sources."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from aepo.doctor.types import EntropyMeaning, LogRow

_SAMPLED = (
    "compare it with no exact entropy, and use it in no loss: its gradient is not an entropy bonus (docs/entropy.md)"
)
EXACT = EntropyMeaning("exact", "the exact entropy, per token")


def _derive_nothing(_: LogRow) -> LogRow:
    return {}


@dataclass(frozen=True)
class Dialect:
    """`Dialect` describes the keys of one trainer's log."""

    name: str
    """The name of the trainer."""
    marks: tuple[frozenset[str], ...]
    """Sets of keys. A log that has all keys of one set was written by this trainer."""
    keys: Mapping[str, tuple[str, ...]]
    """Name in this package -> the trainer's keys for it. The first key that the log has counts."""
    entropies: Mapping[str, EntropyMeaning] = field(default_factory=dict)
    """Entropy key of the trainer -> what it measures."""
    derive: Callable[[LogRow], LogRow] = _derive_nothing
    """A function from a row under this package's names to the measurements that follow from it."""


def _marks(*groups: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(group.split()) for group in groups)


def _same_rewards(row: LogRow) -> LogRow:
    """Return `no_advantage`: 1 if all advantages of the batch are 0, so that all its groups are dead, else 0."""
    if "advantage_high" in row and "advantage_low" in row:
        return {"no_advantage": float(row["advantage_high"] == row["advantage_low"] == 0)}
    return {"no_advantage": float(row["reward_spread"] == 0)} if "reward_spread" in row else {}


def _one_sided_groups(row: LogRow) -> LogRow:
    if "groups_all_good" not in row or "groups_all_bad" not in row:
        return {}
    return {"dead_groups": row["groups_all_good"] + row["groups_all_bad"]}


_OURS = """entropy target_entropy sampled_entropy reward dead_groups length truncated mismatch ratio clip_fraction
approximate_kl gradient_norm saturated alarm command coefficient reward_failures"""

AEPO = Dialect(
    name="aepo",
    marks=_marks("entropy sampled_entropy dead_groups seconds_sampling", "entropy target_entropy dead_groups"),
    keys={**{name: (name,) for name in _OURS.split()}, "evaluation": ("evaluation/pass@1",)},
    entropies={"entropy": EXACT},
)


def _with_ours(keys: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
    """Add the keys that this package's plug-in logs under `aepo/`; they count before the trainer's own keys."""
    names = [*keys, *(name for name in _OURS.split() if name not in keys)]
    return {name: (*([f"aepo/{name}"] if name in _OURS.split() else []), *keys.get(name, ())) for name in names}


_VERL_COMMON = {
    "reward": ("critic/score/mean", "critic/rewards/mean"),
    "reference_kl": ("actor/kl_loss", "actor/reward_kl_penalty"),
    "teacher_kl": ("actor/distillation/loss", "distillation/loss"),
    "loss": ("actor/pg_loss",),
    "advantage_high": ("critic/advantages/max",),
    "advantage_low": ("critic/advantages/min",),
    "length": ("response_length/mean",),
    "length_max": ("response_length/max",),
    "truncated": ("response_length/clip_ratio",),
    "approximate_kl": ("actor/ppo_kl",),
    "gradient_norm": ("actor/grad_norm",),
    "learning_rate": ("actor/lr",),
}

EASYR1 = Dialect(
    name="EasyR1",
    marks=_marks("actor/entropy_loss actor/pg_clipfrac_higher", "actor/pg_clipfrac_higher critic/score/mean"),
    keys={
        **_VERL_COMMON,
        "entropy": ("actor/entropy_loss",),
        "clip_fraction": ("actor/pg_clipfrac_higher",),
        "clip_fraction_low": ("actor/pg_clipfrac_lower",),
    },
    entropies={
        "actor/entropy_loss": EntropyMeaning(
            "sampled", "a sampled estimate (mean of -log pi over the tokens drawn), under the name of a loss", _SAMPLED
        )
    },
    derive=_same_rewards,
)

VERL = Dialect(
    name="verl",
    marks=_marks("actor/pg_loss", "actor/ppo_kl", "critic/score/mean", "actor/entropy", "rollout_corr/kl"),
    keys=_with_ours(
        {
            **_VERL_COMMON,
            "entropy": ("actor/entropy", "actor/entropy_loss"),
            "clip_fraction": ("actor/pg_clipfrac",),
            "mismatch_kl": ("rollout_corr/kl",),
            "mismatch_probability": ("training/rollout_probs_diff_mean",),
            "mismatch_correlation": ("training/rollout_actor_probs_pearson_corr",),
        }
    ),
    entropies={
        "aepo/entropy": EXACT,
        "actor/entropy": EntropyMeaning(
            "exact", "the exact entropy per token, aggregated as the loss is (loss_agg_mode)"
        ),
        "actor/entropy_loss": EntropyMeaning(
            "exact",
            "the exact entropy under the name that verl gave it before actor/entropy",
            "the name is that of a loss, the number is not: read it as the entropy, higher is more random",
        ),
    },
    derive=_same_rewards,
)

TRL_PPO = Dialect(
    name="TRL PPO",
    marks=_marks("objective/entropy objective/kl", "objective/rlhf_reward policy/clipfrac_avg"),
    keys={
        "entropy": ("policy/entropy_avg", "objective/entropy"),
        "reward": ("objective/scores", "objective/rlhf_reward"),
        "clip_fraction": ("policy/clipfrac_avg",),
        "approximate_kl": ("policy/approxkl_avg",),
        "loss": ("loss/policy_avg",),
        "ratio": ("val/ratio",),
        "learning_rate": ("lr", "learning_rate"),
        "entropy_sum": ("objective/entropy",),
    },
    entropies={
        "policy/entropy_avg": EntropyMeaning("exact", "the exact entropy, its mean over the update's passes"),
        "objective/entropy": EntropyMeaning(
            "sum",
            "a sampled sum over a completion, (-logprobs).sum(1).mean(): it grows with the length",
            "divide by the mean length before you compare, or read policy/entropy_avg",
        ),
    },
)

TRL = Dialect(
    name="TRL",
    marks=_marks(
        "frac_reward_zero_std",
        "completions/mean_length reward",
        "completions/clipped_ratio",
        "clip_ratio/region_mean",
        "reward reward_std completion_length",
    ),
    keys=_with_ours(
        {
            "entropy": ("entropy",),
            "reward": ("reward",),
            "dead_groups": ("frac_reward_zero_std",),
            "reward_spread": ("reward_std",),
            "evaluation": ("eval_reward",),
            "reference_kl": ("kl",),
            "loss": ("loss",),
            "length": ("completions/mean_length", "completion_length"),
            "length_max": ("completions/max_length",),
            "truncated": ("completions/clipped_ratio",),
            "clip_fraction": ("clip_ratio/region_mean", "clip_ratio"),
            "mismatch": ("sampling/sampling_logp_difference/mean",),
            "gradient_norm": ("grad_norm",),
            "learning_rate": ("learning_rate",),
        }
    ),
    entropies={
        "aepo/entropy": EXACT,
        "entropy": EntropyMeaning(
            "exact", "the exact entropy per token of the distribution divided by the sampling temperature"
        ),
    },
    derive=_same_rewards,
)

TINKER = Dialect(
    name="tinker-cookbook",
    marks=_marks("optim/entropy", "env/all/reward/total", "optim/kl_sample_train_v1"),
    keys={
        "entropy": ("optim/entropy",),
        "reward": ("env/all/reward/total",),
        "evaluation": ("test/env/all/reward/total",),
        "reference_kl": ("kl_policy_base",),
        "teacher_kl": ("teacher_kl",),
        "groups_all_good": ("env/all/by_group/frac_all_good",),
        "groups_all_bad": ("env/all/by_group/frac_all_bad",),
        "length": ("env/all/ac_tokens_per_turn",),
        "mismatch_kl": ("optim/kl_sample_train_v2", "optim/kl_sample_train_v1"),
        "learning_rate": ("optim/lr",),
    },
    entropies={
        "optim/entropy": EntropyMeaning(
            "sampled", "a sampled estimate: minus the mean log-probability of the tokens drawn", _SAMPLED
        )
    },
    derive=_one_sided_groups,
)

OPENRLHF = Dialect(
    name="OpenRLHF",
    marks=_marks("policy_loss actor_lr", "policy_loss response_length", "response_length group_reward_std"),
    keys={
        "entropy": ("entropy_loss",),
        "reward": ("reward",),
        "reward_spread": ("group_reward_std",),
        "reference_kl": ("kl",),
        "loss": ("policy_loss",),
        "length": ("response_length",),
        "truncated": ("truncated", "response_clip_ratio"),
        "clip_fraction": ("ppo_clip_ratio",),
        "approximate_kl": ("ppo_kl",),
        "mismatch_kl": ("vllm_kl",),
        "gradient_norm": ("actor_grad_norm",),
        "learning_rate": ("actor_lr",),
    },
    entropies={
        "entropy_loss": EntropyMeaning(
            "exact",
            "the exact entropy per token under the name of a loss; of the tempered distribution since PR 1319",
            "read it as the entropy, higher is more random; across that version it is not the same number",
        )
    },
    derive=_same_rewards,
)

# The first dialect whose marks fit counts: EasyR1 writes verl's keys too, so it stands before verl.
DIALECTS = (AEPO, EASYR1, VERL, TRL_PPO, TRL, TINKER, OPENRLHF)


def recognise(keys: Collection[str]) -> Dialect | None:
    """Return the dialect of the trainer that writes these keys, or None if no known trainer does."""
    present = set(keys)
    return next((dialect for dialect in DIALECTS if any(mark <= present for mark in dialect.marks)), None)
