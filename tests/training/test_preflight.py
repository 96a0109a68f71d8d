from dataclasses import replace

import pytest

from aepo.config import default_config, make_config
from aepo.control.aepo import AEPO
from aepo.control.base import HOOKS, NoControl
from aepo.control.both import Both
from aepo.control.schedules import Target
from aepo.engines.capabilities import LOOP
from aepo.engines.preflight import implausible_targets, targets
from aepo.errors import InvalidValue
from aepo.tasks import Paths
from aepo.training import runner
from aepo.training.preflight import preflight
from tests.training.test_step import small

ONE_UPDATE = ("optimizer.minibatches=1", "optimizer.epochs=1")


def said(method: str, *settings: str) -> str:
    return "\n".join(preflight(make_config(method=method, settings=settings)))


@pytest.mark.parametrize("method", ["grpo", "aepo", "entropy-reg", "dr-grpo"])
def test_good_settings_need_no_words(method):
    assert preflight(default_config(method)) == []


def test_a_ratio_that_is_always_one():
    words = "the ratio is always 1"
    assert words in said("grpo", *ONE_UPDATE, "surrogate.high=0.28")
    assert words not in said("grpo", "surrogate.high=0.28")
    assert said("grpo", *ONE_UPDATE) == ""  # the plain clip does nothing there either, and is not missed


@pytest.mark.parametrize("method", ["gspo", "cispo", "gmpo", "sapo", "dppo", "vespo"])
def test_a_surrogate_that_acts_off_policy_alone(method):
    words = f"the surrogate {method} acts as a plain policy gradient"
    assert words in said(method, *ONE_UPDATE)
    assert said(method) == ""


def test_positives_that_a_clip_of_rows_leaves_out():
    words = "control.positive_loss = reinforce"
    assert words in said("aepo+gspo") and words in said("aepo+luspo")
    assert words not in said("aepo+gspo", "control.positive_loss=reinforce")
    assert words not in said("aepo+gspo", *ONE_UPDATE)
    assert words not in said("aepo-reweighted+gspo")
    assert said("aepo+cispo") == ""


def test_a_temperature_together_with_top_p():
    assert "temperature other than 1" in said("aepo", "sampling.top_p=0.99")
    assert "temperature other than 1" not in said("grpo", "sampling.top_p=0.99")
    assert "sensor" in said("grpo", "sampling.top_p=0.99")


@pytest.mark.parametrize("setting", ["temperature=0.7", "top_p=0.9", "top_k=20", "min_p=0.05"])
def test_one_sentence_says_what_another_distribution_does_to_the_sensor(setting):
    name, value = setting.split("=")
    (sentence,) = preflight(make_config(method="grpo", settings=[f"sampling.{setting}"]))
    assert sentence.startswith(f"sampling.{name} = {value} cuts or tempers")
    assert "sensor" in sentence and "stay those of the whole distribution at T = 1" in sentence


def test_several_changes_of_the_distribution_are_one_sentence():
    (sentence,) = preflight(make_config(method="grpo", settings=["sampling.temperature=1.2", "sampling.top_k=20"]))
    assert sentence.startswith("sampling.temperature = 1.2 and sampling.top_k = 20 cut or temper")
    assert said("grpo", "sampling.temperature=1.0", "sampling.top_k=none", "sampling.min_p=0", "sampling.stop=x") == ""


@pytest.mark.parametrize(("size", "words"), [(2, "50%"), (4, "12%"), (5, "")])
def test_a_group_too_small(size, words):
    assert words in said("grpo", f"sampling.group_size={size}")
    assert bool(said("grpo", f"sampling.group_size={size}")) == bool(words)


def test_pass_at_the_whole_group_trains_nothing():
    assert "nothing trains" in said("grpo", "advantage=pass-at-k", "advantage.k=8")
    assert said("grpo", "advantage=pass-at-k", "advantage.k=4") == ""


def test_a_ramp_longer_than_the_run():
    assert "still changes" in said("aepo", "control.target=linear(1,0.5,300)")
    assert said("aepo", "control.target=linear(1,0.5,200)") == ""
    assert said("aepo", "control.target=sine(0.6,0.1,80)") == ""


def test_rpo_without_solutions(monkeypatch):
    assert said("rpo") == ""
    monkeypatch.setattr(Paths, "solution", lambda self, problem: None)
    assert "rpo adds nothing" in said("rpo")


@pytest.mark.parametrize("method", ["kl-cov", "moving-bound", "hapo", "archer", "clip-higher"])
def test_methods_that_need_a_ratio_that_moves(method):
    assert "never act" in said(method, *ONE_UPDATE) and "never act" not in said(method)


def test_a_target_beyond_what_the_base_model_makes_plausible():
    config = make_config(settings=["control.target=linear(0.5x,3.0,100)"])
    (sentence,) = implausible_targets(config.control, config.steps, entropy=1.3)
    assert "control.target" in sentence and "1.3" in sentence
    assert implausible_targets(default_config("aepo").control, 200, entropy=1.3) == []
    assert implausible_targets(default_config("aepo").control, 200, entropy=0.2) == []
    assert implausible_targets(
        default_config("aepo-v6").control, 200, entropy=0.2
    )  # 0.5 nats, two and a half times the base's


def test_an_engine_without_what_the_control_needs():
    blind = replace(LOOP, name="blind", entropy_gradient=False, hooks=frozenset(HOOKS) - {"plan"})
    (sentence,) = preflight(default_config("entropy-reg"), blind)
    assert "gradient through the entropy" in sentence and "blind" in sentence
    (sentence,) = preflight(default_config("aepo"), blind)
    assert "'plan'" in sentence
    assert preflight(default_config("entropy-adv"), blind) == []


def test_targets_are_found_inside_a_pair():
    pair = Both(first=NoControl(), second=AEPO(target=Target("0.7")))
    assert dict(targets(pair)) == {"control.second.target": Target("0.7")}


def test_strict_refuses_before_anything_is_written(quick_model, tmp_path):
    for settings in (("sampling.top_p=0.9",), ("control.target=99",)):
        config = small(quick_model, "aepo", 2, *settings)
        with pytest.raises(InvalidValue, match="^preflight: got"):
            runner.start(config, tmp_path / "run", quiet=True, strict=True)
    assert not (tmp_path / "run").exists()


def test_without_strict_it_is_said_and_the_run_goes_on(quick_model, tmp_path, capsys):
    runner.start(small(quick_model, "aepo", 1, "sampling.top_p=0.9", "control.target=99"), tmp_path / "run")
    printed = capsys.readouterr().out
    assert printed.count("preflight: ") == 4  # the group of four, the sensor, the temperature, the target
