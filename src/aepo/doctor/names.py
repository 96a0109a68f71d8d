"""The keys that each trainer logs, their names here, and the meaning of its entropy; docs/doctor.md has the sources."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache

from aepo.doctor.dialect import EXACT, SAMPLED, SPREAD, Dialect, marks, same_rewards
from aepo.doctor.names_large_scale import AREAL, NEMO_RL, PRIME_RL, ROLL, ROLLOUT_STEP, SKYRL, SLIME
from aepo.doctor.types import EntropyMeaning, LogRow

SWIFT_STEP = "global_step/max_steps"
"""ms-swift's key for the step; its value is a text such as 240/960."""


def _one_sided_groups(row: LogRow) -> LogRow:
    if "groups_all_good" not in row or "groups_all_bad" not in row:
        return {}
    return {"dead_groups": row["groups_all_good"] + row["groups_all_bad"]}


_OURS = """entropy target_entropy sampled_entropy reward dead_groups length truncated mismatch ratio clip_fraction
approximate_kl gradient_norm saturated alarm command coefficient reward_failures"""

AEPO = Dialect(
    name="aepo",
    marks=marks("entropy sampled_entropy dead_groups seconds_sampling", "entropy target_entropy dead_groups"),
    keys={**{name: (name,) for name in _OURS.split()}, "evaluation": ("evaluation/pass@1",)},
    entropies={"entropy": EXACT},
)


def _with_ours(keys: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
    """Add the keys that this package's plug-in logs under `aepo/`; they count before the trainer's own keys."""
    names = [*keys, *(name for name in _OURS.split() if name not in keys)]
    return {name: (*([f"aepo/{name}"] if name in _OURS.split() else []), *keys.get(name, ())) for name in names}


_VERL_COMMON = {
    "reward": ("critic/score/mean", "critic/rewards/mean"),
    "advantage_high": ("critic/advantages/max",),
    "advantage_low": ("critic/advantages/min",),
    "length": ("response_length/mean",),
    "length_max": ("response_length/max",),
    "truncated": ("response_length/clip_ratio",),
    "approximate_kl": ("actor/ppo_kl",),
    "reference_kl": ("actor/kl_loss", "actor/reward_kl_penalty", "critic/kl"),
    "teacher_kl": ("actor/distillation/loss", "distillation/loss"),
    "gradient_norm": ("actor/grad_norm",),
    "learning_rate": ("actor/lr",),
    "loss": ("actor/pg_loss",),
}

EASYR1 = Dialect(
    name="EasyR1",
    marks=marks("actor/entropy_loss actor/pg_clipfrac_higher", "actor/pg_clipfrac_higher critic/score/mean"),
    keys={
        **_VERL_COMMON,
        "entropy": ("actor/entropy_loss",),
        "clip_fraction": ("actor/pg_clipfrac_higher",),
        "clip_fraction_low": ("actor/pg_clipfrac_lower",),
    },
    entropies={
        "actor/entropy_loss": EntropyMeaning(
            "sampled", "a sampled estimate (mean of -log pi over the tokens drawn), under the name of a loss", SAMPLED
        )
    },
    derive=same_rewards,
    derive_from=SPREAD,
)

VERL = Dialect(
    name="verl",
    marks=marks("actor/pg_loss", "actor/ppo_kl", "critic/score/mean", "actor/entropy", "rollout_corr/kl"),
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
    derive=same_rewards,
    derive_from=SPREAD,
)

TRL_PPO = Dialect(
    name="TRL PPO",
    marks=marks("objective/entropy objective/kl", "objective/rlhf_reward policy/clipfrac_avg"),
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
    marks=marks(
        "frac_reward_zero_std",
        "completions/mean_length reward",
        "completions/clipped_ratio",
        "clip_ratio/region_mean",
        "reward reward_std",
    ),
    keys=_with_ours(
        {
            "entropy": ("entropy", "entropy/mean"),
            "reward": ("reward",),
            "reward_spread": ("reward_std",),
            "dead_groups": ("frac_reward_zero_std",),
            "evaluation": ("eval_reward",),
            "length": ("completions/mean_length", "completion_length"),
            "length_max": ("completions/max_length",),
            "truncated": ("completions/clipped_ratio",),
            "clip_fraction": ("clip_ratio/region_mean", "clip_ratio"),
            "reference_kl": ("kl",),
            "mismatch": ("sampling/sampling_logp_difference/mean",),
            "gradient_norm": ("grad_norm",),
            "learning_rate": ("learning_rate",),
            "loss": ("loss",),
        }
    ),
    entropies={
        "aepo/entropy": EXACT,
        "entropy": EntropyMeaning(
            "exact", "the exact entropy per token of the distribution divided by the sampling temperature"
        ),
        "entropy/mean": EntropyMeaning("exact", "the exact entropy, its mean over a completion and then over them"),
    },
    derive=same_rewards,
    derive_from=SPREAD,
)

# ms-swift builds on TRL's trainer and keeps its keys; only the step has a form of its own.
SWIFT = replace(TRL, name="ms-swift", marks=marks(f"{SWIFT_STEP} reward"))

TINKER = Dialect(
    name="tinker-cookbook",
    marks=marks("optim/entropy", "env/all/reward/total", "optim/kl_sample_train_v1"),
    keys={
        "entropy": ("optim/entropy",),
        "reward": ("env/all/reward/total",),
        "groups_all_good": ("env/all/by_group/frac_all_good",),
        "groups_all_bad": ("env/all/by_group/frac_all_bad",),
        "length": ("env/all/ac_tokens_per_turn",),
        "evaluation": ("test/env/all/reward/total",),
        "reference_kl": ("kl_policy_base",),
        "teacher_kl": ("teacher_kl",),
        "mismatch_kl": ("optim/kl_sample_train_v2", "optim/kl_sample_train_v1"),
        "learning_rate": ("optim/lr",),
    },
    entropies={
        "optim/entropy": EntropyMeaning(
            "sampled", "a sampled estimate: minus the mean log-probability of the tokens drawn", SAMPLED
        )
    },
    derive=_one_sided_groups,
    derive_from=("groups_all_good", "groups_all_bad"),
)

OPENRLHF = Dialect(
    name="OpenRLHF",
    marks=marks(
        "policy_loss actor_lr", "policy_loss response_length", "response_length group_reward_std", "rollout/reward_mean"
    ),
    keys={
        "entropy": ("entropy_loss",),
        "reward": ("rollout/reward_mean", "reward"),
        "reward_spread": ("group_reward_std",),
        "length": ("rollout/response_length_mean", "response_length"),
        "truncated": ("rollout/truncated_rate", "truncated", "response_clip_ratio"),
        "clip_fraction": ("ppo_clip_ratio",),
        "approximate_kl": ("ppo_kl",),
        "reference_kl": ("kl",),
        "mismatch_kl": ("vllm_kl",),
        "gradient_norm": ("actor_grad_norm",),
        "learning_rate": ("actor_lr",),
        "loss": ("policy_loss",),
    },
    entropies={
        "entropy_loss": EntropyMeaning(
            "exact",
            "the exact entropy per token under the name of a loss; of the tempered distribution since PR 1319",
            "read it as the entropy, higher is more random; across that version it is not the same number",
        )
    },
    derive=same_rewards,
    derive_from=SPREAD,
)

# The first dialect whose marks fit counts: EasyR1 and ROLL write verl's keys too, so they stand before verl.
DIALECTS = (
    AEPO, EASYR1, ROLL, VERL, TRL_PPO, SWIFT, TRL, TINKER, SLIME, OPENRLHF, PRIME_RL, SKYRL, NEMO_RL, AREAL,
)  # fmt: skip

STEPS = (
    "global_step", "training/global_step", "trainer/global_step", SWIFT_STEP, "step", ROLLOUT_STEP, "progress/batch",
    "_step", "Step",
)  # fmt: skip
"""The names of steps. The trainer's own counters come first: W&B's `_step` counts the calls of its log function."""


ANYBODYS = ("loss", "grad_norm", "learning_rate", "lr")
"""Keys that every trainer of neural networks logs, so that they tell nothing about who wrote the log."""


@cache
def known_keys() -> frozenset[str]:
    """Return every key that some trainer's log is recognised by or read from, steps included."""
    read = {key for dialect in DIALECTS for wanted in dialect.keys.values() for key in wanted}
    marking = {key for dialect in DIALECTS for mark in dialect.marks for key in mark}
    return frozenset(read | marking | {*STEPS})


def recognise(keys: Collection[str]) -> Dialect | None:
    """Return the dialect of the trainer that writes these keys, or None if no known trainer does."""
    present = set(keys)
    return next((dialect for dialect in DIALECTS if any(mark <= present for mark in dialect.marks)), None)


def recognise_one_metric(keys: Collection[str]) -> Dialect | None:
    """Return the first dialect that reads one of the keys: a chart has one metric, and a metric can lack the marks.

    If trainers log different entropies under the key, the dialect says that the entropy's meaning is unknown.
    """
    present = set(keys).difference(STEPS, ANYBODYS)
    readers = [
        dialect
        for dialect in (VERL, TRL, *DIALECTS)
        if any(present.intersection(wanted) for wanted in dialect.keys.values())
    ]
    if not readers:
        return None
    kinds = {dialect.entropies[key].kind for dialect in readers for key in present if key in dialect.entropies}
    if len(kinds) < 2:
        return readers[0]
    several = " or ".join(sorted({dialect.name for dialect in readers}))
    says = f"of {several}, which log different numbers under this name"
    unknown = EntropyMeaning("unknown", says)
    return replace(readers[0], entropies={**readers[0].entropies, **dict.fromkeys(present, unknown)})
