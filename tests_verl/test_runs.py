"""verl for real: Ray, two FSDP2 workers over gloo, two rollout replicas, a tiny model. About two minutes a run."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from aepo.control.aepo import AEPO
from aepo.control.laws import Switch
from aepo.control.schedules import Target
from aepo.loss.advantages import group_mean_std
from aepo.methods import preset
from tests_verl.support import toy
from tests_verl.support.parity import Minibatch, gradient_norm, model_at
from tests_verl.support.run import OURS, STOCK, Finished, finish, rows, run, settings, start

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
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("verl")
    toy.make(folder)
    return folder


def go(work: Path, name: str, module: str, extra: list[str], steps: int, cluster: str = "") -> Finished:
    out = work / name
    (out / "dump").mkdir(parents=True)
    found = run(module, [*settings(work, out, steps, cluster), *extra], out, AEPO_TEST_DUMP=str(out / "dump"))
    assert found.code == 0, found.text[-4000:]
    return found


@pytest.fixture(scope="session")
def aepo(work) -> Finished:
    return go(work, "aepo", OURS, AEPO_RUN, STEPS)


# --- the trainer ----------------------------------------------------------------------------------------------------


def test_grpo_is_verls_grpo_step_by_step(work):
    stock = go(work, "stock", STOCK, [], 10)
    ours = go(work, "grpo", OURS, ["aepo.method=grpo", "aepo.surrogate.dual=3"], 10)
    for name in ("actor/grad_norm", "actor/entropy", "critic/score/mean", "response_length/mean"):
        assert ours.series(name) == pytest.approx(stock.series(name), rel=1e-5), name
    assert len(set(stock.series("critic/score/mean"))) > 3


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


REFERENCE = [
    *("actor_rollout_ref.actor.use_kl_loss=true", "actor_rollout_ref.actor.kl_loss_coef=0"),
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
    "archer": REFERENCE,
    "kl-cov": [],
    "dcpo": [],
    "dapo": [],
    "grpo": [*REFERENCE, "actor_rollout_ref.actor.kl_loss_coef=0.1", *MICROBATCHES],
}


@pytest.mark.parametrize("name", METHODS)
def test_other_controls_two_updates_a_step(work, name):
    """Every step's fields against the core's; both updates of the first step replayed with torch's AdamW."""
    given = [f"aepo.method={name}", *METHODS[name], "actor_rollout_ref.actor.ppo_mini_batch_size=4"]
    found, dump, algorithm = go(work, f"two-{name}", OURS, given, 3), work / f"two-{name}/dump", preset(name)
    micro, coefficient = (range(4), 0.1) if name == "grpo" else (range(1), 0.0)
    updates = [[number * len(micro) + place for place in micro] for number in (0, 1)]
    base = model_at(work, dump, 0)
    for step in range(3):
        model = model_at(work, dump, step)
        whole = Minibatch(dump, step, *updates[0], *updates[1])
        made = whole.check_fields(algorithm, model, base if set(REFERENCE) <= {*METHODS[name]} else None)
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


def test_dynamic_sampling_draws_until_enough_groups_differ(work):
    """With AEPO, whose extra rows are beside the groups; the data go on behind the last prompt that was drawn."""
    found = go(work, "rounds", OURS, ["aepo.method=aepo+dynamic-sampling"], 4)
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


# --- nodes, interruption --------------------------------------------------------------------------------------------


def test_two_nodes_train_what_one_does(aepo, work):
    from ray.cluster_utils import Cluster

    from tests_verl.support.run import environment

    before = dict(os.environ)
    os.environ.update(environment(work / "nodes"))  # a cluster's processes have its environment, not the driver's
    cluster = Cluster()
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=16, num_gpus=1, include_dashboard=False)
        found = go(work, "nodes", OURS, AEPO_RUN, STEPS, cluster.address)
    finally:
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)
    assert found.series("aepo/entropy") == pytest.approx(aepo.series("aepo/entropy"), rel=1e-6)
    assert found.series("aepo/extra_used") == aepo.series("aepo/extra_used")


def workers(process) -> list[psutil.Process]:
    """The processes that train, among all that this run started."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "WorkerDict" in " ".join(child.cmdline())]


def test_a_killed_worker_ends_the_run_and_the_last_checkpoint_goes_on(aepo, work):
    out = work / "killed"
    arguments = [*settings(work, out, STEPS), *AEPO_RUN, "trainer.save_freq=2"]
    process = start(OURS, arguments, out)
    deadline = time.monotonic() + 400
    while len(rows(out)) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    workers(process)[0].send_signal(signal.SIGKILL)
    killed = finish(process, out, 120)
    assert killed.code not in (0, -signal.SIGKILL)
    assert re.search(r"ActorDiedError|actor died|Worker.*died", killed.text)

    saved = int((out / "save/latest_checkpointed_iteration.txt").read_text())
    state = json.loads((out / f"save/global_step_{saved}/aepo.json").read_text())
    assert saved in (4, 6, 8) and state["step"] == saved
    assert state["state"]["command"] == aepo.rows[saved + 1]["aepo/command"]
    shutil.move(out / "metrics.jsonl", out / "before.jsonl")
    resumed = run(OURS, arguments, out)
    assert resumed.code == 0, resumed.text[-4000:]
    assert sorted(resumed.rows) == list(range(saved + 1, STEPS + 1))
    for name in ("aepo/entropy", "aepo/target_entropy", "aepo/reward", "aepo/extra_used", "actor/grad_norm"):
        assert resumed.series(name) == pytest.approx(aepo.series(name)[saved:], rel=1e-6), name

    other = run(OURS, [*settings(work, out, STEPS), "aepo.method=entropic"], out)
    assert other.code != 0 and "one with the control aepo" in other.text
