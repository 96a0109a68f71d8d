"""verl for real, as in test_runs.py: verl's own GRPO, other controls, rounds of sampling, and the smoke test."""

from __future__ import annotations

import pytest
import torch

from aepo.integrations.verl.evidence import read as read_evidence
from aepo.methods import preset
from tests_verl.support import toy
from tests_verl.support.parity import Minibatch, gradient_norm, model_at
from tests_verl.support.run import OURS, PACKED, SMOKE, STOCK, go, run, settings

pytestmark = pytest.mark.minutes


def test_grpo_is_verls_grpo_step_by_step(work, runtime):
    stock = go(work, "stock", STOCK, [], 10, runtime)
    ours = go(work, "grpo", OURS, ["aepo.method=grpo", "aepo.surrogate.dual=3"], 10, runtime)
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
    "entropy-reg+pos-adv-reweight": [],
    "archer": [*REFERENCE, *MICROBATCHES],
    "kl-cov": [],
    "dcpo": [],
    "dapo": [],
}


@pytest.mark.parametrize("name", METHODS)
def test_other_controls_two_updates_a_step(work, runtime, name):
    """Every step's fields against the core's; both updates of the first step replayed with torch's AdamW.

    Archer has its own reference model, and here a KL penalty on top and microbatches of two rows.
    """
    given = [f"aepo.method={name}", *METHODS[name], "actor_rollout_ref.actor.ppo_mini_batch_size=4"]
    found, dump, algorithm = go(work, f"two-{name}", OURS, given, 3, runtime), work / f"two-{name}/dump", preset(name)
    micro, coefficient = (range(4), 0.1) if METHODS[name] else (range(1), 0.0)
    updates = [[number * len(micro) + place for place in micro] for number in (0, 1)]
    base = model_at(work, dump, 0)
    for step in range(3):
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


def test_dynamic_sampling_draws_until_enough_groups_differ(work, runtime):
    """With AEPO, whose extra rows are beside the groups; the data go on behind the last prompt that was drawn."""
    found = go(work, "rounds", OURS, ["aepo.method=aepo+dynamic-sampling"], 4, runtime)
    problems = [toy.problem(index)["prompt"][0]["content"] for index in range(64)]
    drawn, rounds = 0, []
    for step, row in found.rows.items():
        batch = Minibatch(work / "rounds/dump", step - 1, 0).part.batch
        rounds.append((row["aepo/completions"] - row["aepo/extra_completions"]) / 32)
        kept = batch.trained & ~batch.extra
        groups, sizes = batch.groups[kept].unique(return_counts=True)
        assert sizes.tolist() == [4] * 8
        assert all(set(batch.rewards[kept & (batch.groups == group)].tolist()) == {0.0, 1.0} for group in groups)
        differing = (1 - row["aepo/dead_groups"]) * rounds[-1] * 8
        assert differing >= 8
        seen = {problems[(drawn + place) % 64] for place in range(8 * int(rounds[-1]))}
        assert {toy.content(ids, work) for ids in batch.input_ids[kept]} <= seen
        drawn += 8 * int(rounds[-1])
    assert min(rounds) >= 1 and max(rounds) > 1
    assert found.rows[4]["aepo/extra_used"] > 0 and found.rows[4]["aepo/extra_temperature"] < 1


# --- the smoke test, bf16, LoRA -------------------------------------------------------------------------------------

BF16 = [
    f"++{config}.fsdp_config.mixed_precision={{param_dtype:bf16,reduce_dtype:fp32,buffer_dtype:fp32}}"
    for config in ("actor_rollout_ref.actor", "actor_rollout_ref.ref")
]
LORA = ["actor_rollout_ref.model.lora_rank=4", "actor_rollout_ref.model.lora.merge=True"]


def test_the_smoke_test_says_right_with_lora_in_bf16_on_packed_sequences(work, runtime):
    """On its sums, with the model `sharp` and with what verl needs on a CPU.

    The engine computes in float32, so that the correction has something to do.
    """
    out = work / "smoked"
    own = ("data.train_files", "data.val_files", "data.max", "actor_rollout_ref.model.path")
    given = [word for word in settings(work, out, 4, runtime) if not word.startswith(own)]
    small = ("data.max_response_length=12", "actor_rollout_ref.actor.optim.lr=1e-7")
    tested = [PACKED, *BF16, *LORA, "algorithm.rollout_correction.rollout_is=token"]
    words = ["--model", str(work / "sharp"), "--out", str(out / "smoke"), *given, *small, *tested]
    found = run(SMOKE, words, out, runtime)
    lines = [line for line in found.text.splitlines() if line[:5] in ("right", "WRONG", "not c", "verdi")]
    assert found.code == 0, "\n".join(lines) or found.text[-4000:]
    assert lines[-1].startswith("verdict: right")
    for name in ("sensor", "ordinary", "tempered", "scores", "plan", "state"):
        assert any(line.split()[:2] == ["right", name] for line in lines), name
    scores = [line for line in lines if "old_log_probs: median distance from log pi " in line]
    assert any("T = 0.67" in line for line in scores) and any("T = 1.5" in line for line in scores)
    assert (out / "smoke/checkpoints/global_step_2/actor/lora_train_meta.json").exists()
    for step in read_evidence(out / "smoke/evidence"):
        assert 1e-6 < abs(step.logged["mismatch_weight"] - 1) < 0.01 and step.logged["mismatch_cut_tokens"] == 0
