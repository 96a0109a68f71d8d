"""A run that was stopped goes on as the one that was not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aepo.errors import InvalidValue

from .job import Job, run, spread
from .tiny import trainer

RUN = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4, "learning_rate": 1e-2, "target": "1.0"}
CASES = {
    "plain": ({}, None),
    "adapter": ({"learning_rate": 3e-2}, 4),
    "accumulated": ({"per_device_train_batch_size": 16, "gradient_accumulation_steps": 4}, None),
    "two updates a round": ({"per_device_train_batch_size": 32, "steps_per_generation": 2}, None),
    "own loss": ({"method": "sac-dual", "target": None}, None),
    "two controls": ({"method": "aepo+entropy-adv"}, None),
}


def stopped(whole: str) -> str:
    checkpoint = Path(whole) / "checkpoint-4"
    assert checkpoint.is_dir()
    return str(checkpoint)


@pytest.mark.parametrize("changes, lora", CASES.values(), ids=CASES)
def test_state_and_entropies_are_equal(tmp_path, changes, lora):
    whole = run(Job(str(tmp_path / "whole"), {**RUN, **changes}, lora=lora))
    again = run(Job(str(tmp_path / "again"), {**RUN, **changes}, lora=lora, resume=stopped(tmp_path / "whole")))
    rounds = whole["rounds"] // 2
    assert again["rounds"] == whole["rounds"] and again["state"] == whole["state"]
    assert again["entropy"][-rounds:] == whole["entropy"][rounds:]
    assert again["weights"] == whole["weights"]
    assert len(set(whole["entropy"])) == len(whole["entropy"])


def test_on_two_processes(tmp_path):
    changes = {**RUN, "per_device_train_batch_size": 32}
    whole = Job(str(tmp_path / "whole"), changes, lora=4)
    again = Job(str(tmp_path / "again"), changes, lora=4, resume=str(tmp_path / "whole" / "checkpoint-4"))
    before, after = spread([whole, again], tmp_path)
    for rank in range(2):
        assert after[rank]["state"] == before[rank]["state"] and after[rank]["weights"] == before[rank]["weights"]
    assert after[0]["entropy"][-4:] == before[0]["entropy"][4:]


def test_what_a_checkpoint_holds(tmp_path):
    run(Job(str(tmp_path), RUN))
    data = json.loads((tmp_path / "checkpoint-4" / "aepo_state.json").read_text())
    assert data["method"] == "aepo" and data["rounds"] == 4 and abs(data["state"]["command"]) <= 1


def test_a_checkpoint_without_a_state_is_refused(tmp_path):
    run(Job(str(tmp_path), RUN))
    (tmp_path / "checkpoint-4" / "aepo_state.json").unlink()
    with pytest.raises(InvalidValue, match="resume_from_checkpoint.*aepo_state.json"):
        trainer(tmp_path, **RUN).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def test_a_checkpoint_of_another_method_is_refused(tmp_path):
    run(Job(str(tmp_path), RUN))
    with pytest.raises(InvalidValue, match="method: got 'dcpo'; must be 'aepo', which the checkpoint"):
        trainer(tmp_path, **{**RUN, "method": "dcpo"}).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
