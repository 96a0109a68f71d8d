"""The doctor as a callback of TRL's own trainer and of ours."""

from __future__ import annotations

import json
from typing import Any

import pytest
from trl import GRPOConfig, GRPOTrainer

from aepo.errors import InvalidValue
from aepo.integrations.trl import DoctorCallback

from .tiny import config, model, prompts, tokenizer, trainer


def never(completions: list[str], **_: Any) -> list[float]:
    return [0.0 for _ in completions]


def plain(folder, callback, reward, **changes) -> GRPOTrainer:
    """TRL's own trainer, without anything of this package but the callback."""
    ours = config(folder)
    settings = {name: getattr(ours, name) for name in WANTED}
    return GRPOTrainer(
        model=model(),
        reward_funcs=reward,
        args=GRPOConfig(**{**settings, **changes}),
        train_dataset=prompts(),
        processing_class=tokenizer(),
        callbacks=[callback],
    )


WANTED = (
    "output_dir", "per_device_train_batch_size", "num_generations", "max_completion_length", "learning_rate",
    "lr_scheduler_type", "logging_steps", "save_strategy", "report_to", "use_cpu", "bf16", "gradient_checkpointing",
    "seed", "disable_tqdm",
)  # fmt: skip


def test_a_run_without_reward_is_stopped_with_a_checkpoint(tmp_path, capsys):
    run = plain(tmp_path, DoctorCallback(every=5, stop_on="sure"), never, max_steps=30)
    run.train()
    assert run.state.global_step in (5, 10)
    assert (tmp_path / f"checkpoint-{run.state.global_step}").is_dir()
    told = [json.loads(line) for line in (tmp_path / "doctor.jsonl").read_text().splitlines()]
    assert any(row["kind"] == "dead groups" and row["stop"] for row in told)
    assert "doctor: dead groups (sure" in capsys.readouterr().out


def test_a_warning_stops_nothing(tmp_path):
    run = plain(tmp_path, DoctorCallback(every=5), never, max_steps=12)
    run.train()
    assert run.state.global_step == 12 and (tmp_path / "doctor.jsonl").exists()


def test_a_resumed_run_knows_its_older_rows(tmp_path):
    changes = {"save_strategy": "steps", "save_steps": 6}
    plain(tmp_path, DoctorCallback(every=0), never, max_steps=6, **changes).train()
    run = plain(tmp_path, DoctorCallback(every=10, stop_on="sure"), never, max_steps=12, **changes)
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert run.state.global_step == 10


def test_our_own_trainer_takes_it_too(tmp_path):
    run = trainer(tmp_path, max_steps=12, reward_funcs=never)
    run.add_callback(DoctorCallback(every=5, stop_on="sure"))
    run.train()
    assert run.state.global_step in (5, 10)


def test_bad_arguments_are_refused():
    with pytest.raises(InvalidValue, match=r"doctor.stop_on"):
        DoctorCallback(stop_on="maybe")  # type: ignore[arg-type]
