"""Two methods in one run: three pairs through the loop, and what a pair refuses."""

import json

import pytest

from aepo.config import make_config
from aepo.control.aepo import AEPO
from aepo.control.base import hooks
from aepo.control.both import Both
from aepo.control.clip_cov import ClipCov
from aepo.control.dynamic_sampling import DynamicSampling
from aepo.control.entropy_reg import EntropyReg
from aepo.control.hapo import HAPO
from aepo.control.moving_bound import MovingBound
from aepo.control.rpo import RPO
from aepo.errors import InvalidValue
from aepo.loss.surrogates import Clip
from aepo.methods import preset
from aepo.tasks import Paths
from aepo.training import runner
from aepo.training.checkpoint import TrainState
from aepo.training.step import train_step
from tests import builders as b
from tests.training.test_step import make_run, small


@pytest.fixture(autouse=True)
def often_right(monkeypatch):
    """The quick model hardly ever finds a path; this verdict it gets about half the time."""
    monkeypatch.setattr(Paths, "reward", lambda self, problem, text, truncated: float(len(text.split()) % 2))


def test_aepo_with_clip_higher_is_aepo_on_another_surrogate(quick_model):
    algorithm = preset("aepo+clip-higher")
    assert (algorithm.control, algorithm.surrogate) == (AEPO(), Clip(low=0.2, high=0.28))
    run = make_run(small(quick_model, "aepo+clip-higher", 5, "control.start=hot", "surrogate.high=1e-4"))
    _, row, _ = train_step(run, TrainState(control=run.algorithm.control.initial_state()))
    assert row["extra_used"] > 0 and row["clip_fraction"] > 0


def test_aepo_with_dynamic_sampling_trains_on_full_groups_and_on_positives(quick_model):
    run = make_run(small(quick_model, "aepo+dynamic-sampling", 5, "control.start=hot", "control.max_rounds=0"))
    after, row, samples = train_step(run, TrainState(control=run.algorithm.control.initial_state()))
    trained = [s for s in samples if s.trained and not s.extra]
    rewards = {s.rollout.completion.group: set() for s in trained}
    for s in trained:
        rewards[s.rollout.completion.group].add(s.rollout.reward)
    assert len(rewards) == 6 and all(len(found) == 2 for found in rewards.values())
    assert row["extra_used"] > 0 and all(s.rollout.reward == 1 for s in samples if s.extra)
    # Every ordinary completion is measured, also those that are not trained on, and the stream moved on by all prompts.
    assert row["completions"] - row["extra_completions"] == sum(not s.extra for s in samples) == 4 * after.position
    assert after.control["first"]["command"] is not None and row["target_entropy"] == 0.6 * row["entropy"]


def test_aepo_with_clip_cov_reshapes_what_aepo_mixed(quick_model):
    run = make_run(small(quick_model, "aepo+clip-cov", 5, "control.start=hot", "control.low=-9", "control.high=9"))
    _, row, _ = train_step(run, TrainState(control=run.algorithm.control.initial_state()))
    assert row["extra_used"] > 0
    pair = run.algorithm.control
    rows = [b.sample(float(i % 2), 1.0 - 2 * (i % 2), number=i) for i in range(4)]
    scored = b.scored([*rows, b.sample(1.0, 2.0, extra=True)], logprobs=-0.5)
    shaped = pair.shape(scored.batch.advantages, scored, pair.initial_state())
    assert (shaped != scored.batch.advantages).sum() == 1  # one token, the least that Clip-Cov takes


def test_hapos_token_temperature_leaves_aepos_extra_rows_alone(quick_model):
    run = make_run(small(quick_model, "aepo+hapo", 5, "control.start=hot", "control.tau=0.5"))
    state = TrainState(control=run.algorithm.control.initial_state())
    for _ in range(2):
        state, row, samples = train_step(run, state)
    assert row["mismatch"] is None and row["extra_used"] > 0
    assert {s.rollout.completion.temperature for s in samples if s.extra} == {row["extra_temperature"]}


def test_a_pair_survives_a_resume(quick_model, tmp_path):
    config = small(quick_model, "aepo+dynamic-sampling", 4, "control.max_rounds=0")
    runner.start(config, tmp_path / "whole", quiet=True)
    runner.start(small(quick_model, "aepo+dynamic-sampling", 4, "control.max_rounds=0"), tmp_path / "cut", quiet=True)
    for folder in (tmp_path / "cut" / "checkpoints").glob("step-4"):
        (folder / "state.json").unlink()
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    runner.resume(tmp_path / "cut", quiet=True)
    states = [json.loads((tmp_path / run / "checkpoints/step-4/state.json").read_text()) for run in ("whole", "cut")]
    assert states[0] == states[1] and states[0]["control"]["first"]["command"] is not None


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (AEPO(), AEPO(), "only one has the hook plan"),
        (HAPO(), MovingBound(), "only one has the hook bounds"),
        (HAPO(), HAPO(), "only one has the hook token_temperature"),
    ],
)
def test_pairs_that_would_both_answer_are_refused(first, second, words):
    with pytest.raises(InvalidValue, match=words):
        Both(first=first, second=second)


def test_the_second_acts_on_what_the_first_left_and_each_reads_its_own_state():
    pair = Both(first=ClipCov(low=-9.0, high=9.0), second=EntropyReg())
    state = pair.initial_state()
    assert state == {"first": {}, "second": {}} and pair.needs(state).entropy_gradient
    assert "shape" in hooks(pair)
    batch = b.scored([b.sample(1.0, 1.0)], entropy=0.5)
    assert pair.penalty(batch, batch.old, state).tolist() == EntropyReg().penalty(batch, batch.old, {}).tolist()
    rows = [b.sample(1.0), b.sample(1.0)]
    mixed = Both(first=RPO(), second=DynamicSampling()).mix(rows, [], {"first": {}, "second": {}}, b.place(prompts=1))
    assert not any(s.trained for s in mixed)  # a constant group: the second's doing


def test_a_pair_acts_at_the_moments_of_its_parts_and_at_no_other():
    assert hooks(preset("aepo+clip-cov").control) == ("plan", "mix", "mark", "shape", "reshape", "update")
    assert set(hooks(preset("dapo").control)) == {"follow_up", "reward", "mix"}
    # So a pair that heats no token may sample with vLLM.
    assert make_config(method="aepo+clip-cov", settings=["sampling.engine=vllm"]).sampling.engine == "vllm"
    with pytest.raises(InvalidValue, match=r"sampling.engine: got 'vllm'"):
        make_config(method="hapo+dynamic-sampling", settings=["sampling.engine=vllm"])
