"""verl for real: Ray, two FSDP2 workers over gloo, two rollout replicas, a tiny model.

One run starts as a user starts it, from the command line with a Ray of its own. All others share two
Rays of two nodes and a fork server: a third of the time. `support/jobs.py` has the runs,
which go on while tests compare.
"""

from __future__ import annotations

import re
import signal
from dataclasses import replace

import pytest
import torch

from aepo.control.aepo import AEPO
from aepo.control.laws import Switch
from aepo.control.schedules import Target
from aepo.integrations.verl.evidence import read as read_evidence
from aepo.loss.advantages import group_mean_std
from aepo.methods import preset
from tests_verl.support import toy
from tests_verl.support.jobs import METHODS, STEPS, TARGET
from tests_verl.support.parity import Minibatch, gradient_norm, model_at

pytestmark = pytest.mark.minutes
ALGORITHM = replace(preset("aepo"), control=AEPO(law=Switch(), target=Target(TARGET), approach=0))


@pytest.fixture
def aepo(finished):
    return finished[0]


# --- the trainer ----------------------------------------------------------------------------------------------------


@pytest.mark.runs("stock", "grpo")
def test_grpo_is_verls_grpo_step_by_step(finished):
    stock, ours = finished
    for name in ("actor/grad_norm", "actor/entropy", "critic/score/mean", "response_length/mean"):
        assert ours.series(name) == pytest.approx(stock.series(name), rel=1e-5), name
    assert len(set(stock.series("critic/score/mean"))) > 3


@pytest.mark.runs("aepo")
def test_temperature_switches_both_ways(aepo):
    assert len(aepo.rows) == STEPS
    temperatures = [aepo.rows[step].get("aepo/extra_temperature") for step in range(1, STEPS + 1)]
    low, high = (ALGORITHM.control.distribution.temperature(direction) for direction in (-1, 1))
    assert temperatures[0] is None
    switches = [t for t, before in zip(temperatures[1:], temperatures, strict=False) if t != before]
    assert switches[:3] == [low, high, low]
    entropy, target = aepo.series("aepo/entropy"), aepo.series("aepo/target_entropy")
    for place, temperature in enumerate(temperatures[1:], start=1):
        assert temperature == (high if entropy[place - 1] < target[place - 1] else low)
    assert aepo.series("aepo/ratio") == pytest.approx([1.0] * STEPS, abs=1e-6)


@pytest.mark.runs("aepo")
@pytest.mark.parametrize("step", [3, 8])
def test_extra_rows_were_drawn_at_their_temperature(aepo, work, step):
    """The engine's own log-probabilities are those of softmax(logits / T), and old ones those at T = 1."""
    minibatch, model = Minibatch(work / "aepo/dump", step, 0), model_at(work, work / "aepo/dump", step)
    batch, temperature = minibatch.part.batch, aepo.rows[step + 1]["aepo/extra_temperature"]
    sampler = minibatch.fields["sampler"]
    with torch.no_grad():
        plain, tempered = (minibatch.statistics(model, t).logprobs for t in (None, temperature))
    extra, ordinary = (rows.bool() for rows in (batch.mask * batch.extra[:, None], minibatch.part.ordinary))
    torch.testing.assert_close(sampler[ordinary], plain[ordinary], rtol=0, atol=1e-5)
    torch.testing.assert_close(sampler[extra], tempered[extra], rtol=0, atol=1e-5)
    torch.testing.assert_close(minibatch.part.old.logprobs[extra], plain[extra], rtol=0, atol=1e-5)
    assert (plain - tempered)[extra].abs().mean() > 0.02


@pytest.mark.runs("aepo")
def test_the_sensor_reads_the_ordinary_rows_alone(aepo, work):
    """By plain transformers, from the rows of both ranks; verl's own number has the tempered rows in it."""
    for step in (0, 4, STEPS - 1):
        minibatch = Minibatch(work / "aepo/dump", step, 0)
        with torch.no_grad():
            stats = minibatch.statistics(model_at(work, work / "aepo/dump", step))
        ordinary = minibatch.part.ordinary.bool()
        measured = stats.entropy[ordinary].double().mean().item()
        assert aepo.rows[step + 1]["aepo/entropy"] == pytest.approx(measured, abs=1e-5)
        assert int(ordinary.any(1).sum()) == 32


@pytest.mark.runs("aepo")
@pytest.mark.parametrize("step", [0, 1, 5, 8, STEPS - 1])
def test_the_batch_gives_the_cores_loss_and_gradient(aepo, work, step):
    minibatch, model = Minibatch(work / "aepo/dump", step, 0), model_at(work, work / "aepo/dump", step)
    batch = minibatch.part.batch
    minibatch.check_weights(ALGORITHM.aggregate)
    expected = torch.zeros(len(batch))
    real = batch.mask.any(1)
    ordinary = real & ~batch.extra
    expected[ordinary] = group_mean_std(batch.rewards[ordinary], batch.groups[ordinary])
    expected[batch.extra] = ALGORITHM.control.weight
    torch.testing.assert_close(batch.advantages, expected[:, None] * batch.mask, rtol=1e-6, atol=1e-6)
    assert bool((batch.rewards[batch.extra] == 1).all())
    assert int(batch.extra.sum()) == aepo.rows[step + 1]["aepo/extra_used"]

    loss = minibatch.core_loss(ALGORITHM, model)
    loss.backward()
    assert minibatch.loss == pytest.approx(loss.item(), abs=1e-5)
    assert aepo.rows[step + 1]["actor/grad_norm"] == pytest.approx(gradient_norm(model), rel=1e-4)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.runs(f"two-{name}")) for name in METHODS])
def test_other_controls_two_updates_a_step(work, finished, name):
    """Every step's fields against the core's; both updates of the first step replayed with torch's AdamW.

    Archer has its own reference model, and here a KL penalty on top and microbatches of two rows.
    """
    [found], dump, algorithm = finished, work / f"two-{name}/dump", preset(name)
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


# --- nodes, interruption --------------------------------------------------------------------------------------------


@pytest.mark.runs("aepo", "killed")
def test_two_nodes_a_killed_worker_and_the_last_checkpoint_train_what_one_node_does(finished):
    """Both parts of a run on two nodes that was interrupted, step by step against the run on one node that was not."""
    aepo, found = finished
    assert found.killed.code not in (0, -signal.SIGKILL)
    assert re.search(r"ActorDiedError|actor died|Worker.*died", found.killed.text)
    assert found.saved in (4, 6, 8) and found.state["step"] == found.saved
    assert found.state["state"]["command"] == aepo.rows[found.saved + 1]["aepo/command"]
    assert found.resumed.code == 0, found.resumed.text[-4000:]
    assert sorted(found.resumed.rows) == list(range(found.saved + 1, STEPS + 1))
    for name in ("aepo/entropy", "aepo/target_entropy", "aepo/reward", "aepo/extra_used", "actor/grad_norm"):
        killed, resumed, whole = (each.series(name) for each in (found.killed, found.resumed, aepo))
        assert killed == pytest.approx(whole[: len(killed)], rel=1e-6), name
        assert resumed == pytest.approx(whole[found.saved :], rel=1e-6), name
    assert found.refused.code == 2 and "one with the control aepo" in found.refused.text
    assert "ray init" not in found.refused.text


# --- packing --------------------------------------------------------------------------------------------------------


@pytest.mark.runs("aepo", "packed")
def test_packed_sequences_are_trained_on_as_padded_ones_and_a_right_engine_is_not_corrected(finished):
    """Without padding each rank's rows are one long row; every number of a step is that of the padded run.

    The engine's draws are those of the policy, tempered rows included, so that a correction has nothing to do. A ratio
    to log pi at T = 1 would mask the tempered rows.
    """
    aepo, found = finished
    for name in ("aepo/entropy", "aepo/target_entropy", "aepo/reward", "aepo/extra_used", "actor/grad_norm"):
        assert found.series(name) == pytest.approx(aepo.series(name)[:4], rel=1e-4), name
    assert found.rows[4]["aepo/extra_used"] > 0
    assert found.series("aepo/mismatch_cut_rows") == [0.0] * 4
    assert found.series("aepo/mismatch_weight") == pytest.approx([1.0] * 4, abs=1e-4)
    assert found.rows[4]["aepo/mismatch_extra"] < 1e-4


# --- rounds ---------------------------------------------------------------------------------------------------------


@pytest.mark.runs("rounds")
def test_dynamic_sampling_draws_until_enough_groups_differ(work, finished):
    """With AEPO, whose extra rows are beside the groups; the data go on behind the last prompt that was drawn."""
    [found] = finished
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


@pytest.mark.runs("smoked")
def test_the_smoke_test_says_right_with_lora_in_bf16_on_packed_sequences(work, finished):
    """The engine computes in float32, so that the correction has something to do."""
    [found], out = finished, work / "smoked"
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
