"""The doctor as a backend of verl's `Tracking`; the trainer is a stand-in with what the doctor touches."""

from __future__ import annotations

import json
from types import SimpleNamespace

from verl.utils.tracking import Tracking

from aepo.doctor.live import DoctorConfig
from aepo.integrations.verl.doctor import attach


def trainer(folder, save_freq: int) -> SimpleNamespace:
    saved: list[bool] = []
    return SimpleNamespace(
        config=SimpleNamespace(trainer=SimpleNamespace(default_local_dir=str(folder), save_freq=save_freq)),
        logger=Tracking("project", "experiment", default_backend=[]),
        total_training_steps=100,
        saved=saved,
        _save_checkpoint=lambda: saved.append(True),
    )


def row(step: int) -> dict[str, float]:
    entropy = 1.0 + 0.01 * (step % 2) if step < 20 else 0.02 + 0.001 * (step % 2)
    return {"actor/entropy": entropy, "critic/score/mean": 0.4 + 0.01 * (step % 3), "actor/pg_loss": 0.1}


def run(folder, options: DoctorConfig, save_freq: int = 5) -> SimpleNamespace:
    """verl's loop as far as the doctor sees it."""
    made = trainer(folder, save_freq)
    attach(made, options)
    step = 1
    while step <= made.total_training_steps:
        made.logger.log(data=row(step), step=step)
        step += 1
    made.logger.finish()
    return made


def test_a_collapse_ends_the_run_with_a_checkpoint(tmp_path):
    done = run(tmp_path, DoctorConfig(every=5, stop_on="sure"))
    assert 20 < done.total_training_steps < 50 and done.saved == [True]
    told = [json.loads(line) for line in (tmp_path / "doctor.jsonl").read_text().splitlines()]
    assert told[-1]["kind"] == "collapse" and told[-1]["step"] == done.total_training_steps


def test_without_checkpoints_none_is_written_and_a_warning_ends_nothing(tmp_path):
    assert run(tmp_path / "a", DoctorConfig(every=5, stop_on="sure"), save_freq=-1).saved == []
    assert run(tmp_path / "b", DoctorConfig(every=5)).total_training_steps == 100
    off = run(tmp_path / "c", DoctorConfig(every=0, stop_on="sure"))
    assert off.total_training_steps == 100 and not (tmp_path / "c").exists()
