"""verl for real: Ray, two FSDP2 workers over gloo, two rollout replicas, a tiny model.

One run starts as a user starts it, from the command line with a Ray of its own. All others share a Ray of two nodes and
a fork server: a third of the time. This file has AEPO's runs; test_runs_of_others.py has the rest, so that two
processes of pytest have equal parts.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import replace

import psutil
import pytest
import torch

from aepo.control.aepo import AEPO
from aepo.control.laws import Switch
from aepo.control.schedules import Target
from aepo.integrations.verl.evidence import read as read_evidence
from aepo.loss.advantages import group_mean_std
from aepo.methods import preset
from tests_verl.support import toy
from tests_verl.support.parity import Minibatch, gradient_norm, model_at
from tests_verl.support.run import OURS, PACKED, SMOKE, Finished, finish, go, rows, run, settings, start

pytestmark = pytest.mark.minutes
STEPS = 12
# The entropy is above the target, soon below it, and above it again.
TARGET = "piecewise(0:5.52,7:5.0)"
AEPO_RUN = [
    "aepo.method=aepo",
    "aepo.law=switch",
    "aepo.control.approach=0",
    f"aepo.target={TARGET}",
    "actor_rollout_ref.actor.optim.lr=5e-3",
]
ALGORITHM = replace(preset("aepo"), control=AEPO(law=Switch(), target=Target(TARGET), approach=0))


@pytest.fixture(scope="session")
def aepo(work) -> Finished:
    """From the command line, with one node and a Ray of its own."""
    return go(work, "aepo", OURS, AEPO_RUN, STEPS, None)


# --- the trainer ----------------------------------------------------------------------------------------------------


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


# --- nodes, interruption --------------------------------------------------------------------------------------------


def workers() -> list[psutil.Process]:
    """The processes that train, among all that these tests started."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            found += [child] if "WorkerDict" in " ".join(child.cmdline()) else []
    return found


def test_two_nodes_a_killed_worker_and_the_last_checkpoint_train_what_one_node_does(aepo, work, runtime):
    """Both parts of a run on two nodes that was interrupted, step by step against the run on one node that was not."""
    out = work / "killed"
    arguments = [*settings(work, out, STEPS, runtime), *AEPO_RUN, "trainer.save_freq=2"]
    others = {each.pid for each in workers()}
    process = start(OURS, arguments, out, runtime)
    deadline = time.monotonic() + 400
    while len(rows(out)) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    next(each for each in workers() if each.pid not in others).send_signal(signal.SIGKILL)
    killed = finish(process, out, 120)
    assert killed.code not in (0, -signal.SIGKILL)
    assert re.search(r"ActorDiedError|actor died|Worker.*died", killed.text)

    saved = int((out / "save/latest_checkpointed_iteration.txt").read_text())
    state = json.loads((out / f"save/global_step_{saved}/aepo.json").read_text())
    assert saved in (4, 6, 8) and state["step"] == saved
    assert state["state"]["command"] == aepo.rows[saved + 1]["aepo/command"]
    shutil.move(out / "metrics.jsonl", out / "before.jsonl")
    resumed = run(OURS, arguments, out, runtime)
    assert resumed.code == 0, resumed.text[-4000:]
    assert sorted(resumed.rows) == list(range(saved + 1, STEPS + 1))
    for name in ("aepo/entropy", "aepo/target_entropy", "aepo/reward", "aepo/extra_used", "actor/grad_norm"):
        assert killed.series(name) == pytest.approx(aepo.series(name)[: len(killed.rows)], rel=1e-6), name
        assert resumed.series(name) == pytest.approx(aepo.series(name)[saved:], rel=1e-6), name

    other = run(OURS, [*arguments, "aepo.method=entropic"], out, runtime)
    assert other.code == 2 and "one with the control aepo" in other.text
    assert "ray init" not in other.text


# --- packing --------------------------------------------------------------------------------------------------------


def test_packed_sequences_are_trained_on_as_padded_ones_and_a_right_engine_is_not_corrected(aepo, work, runtime):
    """Without padding each rank's rows are one long row; every number of a step is that of the padded run.

    The engine's draws are those of the policy, tempered rows included, so that a correction has nothing to do. A ratio
    to log pi at T = 1 would mask the tempered rows.
    """
    narrow = "algorithm.rollout_correction.rollout_is_threshold=0.99_1.01"
    given = [*AEPO_RUN, PACKED, "algorithm.rollout_correction.rollout_is=sequence", narrow]
    found = go(work, "packed", OURS, given, 4, runtime)
    for name in ("aepo/entropy", "aepo/target_entropy", "aepo/reward", "aepo/extra_used", "actor/grad_norm"):
        assert found.series(name) == pytest.approx(aepo.series(name)[:4], rel=1e-4), name
    assert found.rows[4]["aepo/extra_used"] > 0
    assert found.series("aepo/mismatch_cut_rows") == [0.0] * 4
    assert found.series("aepo/mismatch_weight") == pytest.approx([1.0] * 4, abs=1e-4)
    assert found.rows[4]["aepo/mismatch_extra"] < 1e-4


# --- rounds ---------------------------------------------------------------------------------------------------------


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
