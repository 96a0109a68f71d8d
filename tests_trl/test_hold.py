"""The target is held: on one process and on two, however the rows are spread over updates, and by an adapter."""

from __future__ import annotations

from statistics import fmean

import pytest

from .job import Job, run, spread

STEPS = {"max_steps": 70, "per_device_train_batch_size": 128, "learning_rate": 2e-3}
# The mean over the last third; a single step's entropy moves by about 0.2 nats at this learning rate.
CLOSE = 0.12


def last_third(answer):
    return fmean(answer["entropy"][-len(answer["entropy"]) // 3 :])


def test_without_control_entropy_collapses(tmp_path):
    answer = run(Job(str(tmp_path), {**STEPS, "method": "grpo", "target": None}))
    assert last_third(answer) < 0.9


@pytest.mark.parametrize("target", [1.0, 2.0])
def test_one_process(tmp_path, target):
    answer = run(Job(str(tmp_path), {**STEPS, "target": str(target)}))
    assert last_third(answer) == pytest.approx(target, abs=CLOSE)
    assert fmean(answer["reward"][-20:]) > 0.85


SPREADS = {
    "accumulated": {"per_device_train_batch_size": 32, "gradient_accumulation_steps": 4},
    "four updates a round": {"per_device_train_batch_size": 32, "steps_per_generation": 4, "max_steps": 200},
    "two iterations": {"num_iterations": 2, "max_steps": 120, "learning_rate": 1e-3},
    "reweighted": {"method": "aepo-reweighted", "settings": {"control.count_low": 0.25}},
    "another loss of TRL's": {"loss_type": "dr_grpo"},
}


@pytest.mark.parametrize("changes", SPREADS.values(), ids=SPREADS)
def test_however_the_rows_are_spread(tmp_path, changes):
    answer = run(Job(str(tmp_path), {**STEPS, "target": "1.5", **changes}))
    assert last_third(answer) == pytest.approx(1.5, abs=CLOSE)


def test_an_adapter(tmp_path):
    answer = run(Job(str(tmp_path), {**STEPS, "target": "1.5", "learning_rate": 1e-2}, lora=8))
    assert last_third(answer) == pytest.approx(1.5, abs=CLOSE)


def test_two_processes(tmp_path):
    changes = {**STEPS, "target": "1.5", "per_device_train_batch_size": 64}
    jobs = [Job(str(tmp_path), changes), Job(str(tmp_path), {**changes, "learning_rate": 1e-2}, lora=8)]
    for first, second in spread(jobs, tmp_path):
        assert first["processes"] == 2
        assert last_third(first) == pytest.approx(1.5, abs=CLOSE)
        for same in ("state", "rounds", "weights"):
            assert first[same] == second[same]
