"""Defaults that depend on the model, learning-rate schedules, and intervals by time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from aepo.config import OptimizerConfig, default_config, make_config
from aepo.defaults import by_model
from aepo.errors import InvalidValue
from aepo.training.intervals import Due


def test_the_built_in_model_keeps_the_defaults_of_the_classes():
    assert by_model({}) == {} and by_model({"model": "builtin"}) == {}
    assert make_config().optimizer == OptimizerConfig()


@pytest.mark.parametrize("rank, rate", [(None, 1e-6), ("none", 1e-6), (16, 1e-5)])
def test_other_models(rank, rate, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = make_config(overrides={"model": "some/model", "policy.lora_rank": rank})
    assert config.optimizer.lr == rate and config.optimizer.warmup == 10
    assert config.optimizer.microbatch == config.policy.gradient_checkpointing == "auto"
    assert config.evaluation.every == config.checkpoint.every == "auto"
    assert config.policy.dtype == "float32"


@pytest.mark.parametrize("steps, warmup", [(4, 0), (50, 5), (1000, 10)])
def test_the_warm_up_takes_no_more_than_a_tenth_of_the_run(steps, warmup):
    assert make_config(overrides={"model": "some/model", "steps": steps}).optimizer.warmup == warmup


def test_bfloat16_where_the_device_has_it(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    assert make_config(overrides={"model": "some/model"}).policy.dtype == "bfloat16"
    assert make_config(overrides={"model": "some/model", "device": "cpu"}).policy.dtype == "float32"
    assert make_config().policy.dtype == "float32"


def test_what_a_file_or_a_setting_says_wins(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text('model = "some/model"\n[optimizer]\nlr = 2e-6\n[policy]\nlora_rank = 8\n')
    config = make_config(file, settings=["optimizer.warmup=0", "evaluation.every=7"])
    assert (config.optimizer.lr, config.optimizer.warmup, config.evaluation.every) == (2e-6, 0, 7)
    assert config.checkpoint.every == "auto"


@pytest.mark.parametrize(
    "setting", ["optimizer.microbatch=0", "optimizer.microbatch=many", "evaluation.every=-1", "checkpoint.minutes=0",
                "optimizer.warmup=-1", "optimizer.schedule=step", "policy.gradient_checkpointing=sometimes"],
)  # fmt: skip
def test_refused(setting):
    with pytest.raises(InvalidValue) as refused:
        make_config(settings=[setting])
    assert refused.value.field == setting.partition("=")[0]


def test_schedules():
    constant = OptimizerConfig(lr=1.0, warmup=4)
    assert [constant.rate(step, 10) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    linear = replace(constant, schedule="linear")
    assert [round(linear.rate(step, 8), 6) for step in (3, 4, 5, 7)] == [1.0, 1.0, 0.75, 0.25]
    cosine = replace(constant, schedule="cosine", warmup=0)
    assert math.isclose(cosine.rate(4, 8), 0.5) and cosine.rate(0, 8) == 1.0 and 0 < cosine.rate(7, 8) < 0.05


def test_intervals_by_time():
    now = [0.0]
    config = default_config()
    by_time = replace(config, evaluation=replace(config.evaluation, every="auto", minutes=2))
    due = Due(by_time, clock=lambda: now[0])
    now[0] = 119.0
    assert not due.evaluation(1)
    now[0] = 121.0
    assert due.evaluation(2)
    now[0] = 500.0  # the evaluation took long: its own time does not count
    due.done("evaluation")
    now[0] = 610.0
    assert not due.evaluation(3)
    assert due.checkpoint(50) and not due.checkpoint(51)


@pytest.mark.parametrize(
    ("settings", "hold"),
    [
        (["model=some/model"], "at-least"),
        (["model=some/model", "control.weight=1"], "at-least"),
        (["model=some/model", "control.target=0.4"], "at"),
        (["model=some/model", "control.hold=at-most"], "at-most"),
        (["model=some/model", "control.law=switch"], "at"),
        ([], "at"),
    ],
)
def test_without_a_target_the_entropy_of_a_users_model_is_only_kept_up(settings, hold):
    assert make_config(settings=settings).control.hold == hold


@pytest.mark.parametrize("method", ["aepo-v1", "dcpo", "entropic", "aepo-length"])
def test_methods_with_a_target_of_their_own_hold_it(method):
    assert make_config(method=method, settings=["model=some/model"]).control.hold == "at"
