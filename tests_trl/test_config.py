"""What cannot work is refused in one line that names the field, before a model is loaded."""

from __future__ import annotations

import json

import pytest
from transformers import HfArgumentParser

from aepo.control.laws import Switch
from aepo.errors import InvalidValue
from aepo.integrations.trl import AEPOTrainer, EntropyControlConfig
from aepo.integrations.trl import losses as under_test
from aepo.integrations.trl.losses import own_loss
from aepo.loss.surrogates import Clip
from aepo.methods import METHODS

from .tiny import config, even_start, model, prompts, tokenizer, trainer

NEVER = {"target": None}
REFUSED = {
    "method": [
        ({"method": None}, "a name of"),
        ({"method": "apeo"}, "one of grpo"),
        ({"method": "hapo", **NEVER}, "'token_temperature', which hapo"),
        ({"method": "dapo", **NEVER}, "'follow_up', which dynamic-sampling"),
        ({"method": "eframe", **NEVER}, "'follow_up', which eframe"),
        ({"method": "archer", **NEVER}, "base model"),
        ({"method": "rpo", **NEVER}, "reference solutions"),
        ({"method": "aepo+rpo"}, "reference solutions"),
    ],
    "control.target": [({"target": "high"}, "target"), ({"method": "grpo", "target": "0.5"}, "no entropy control")],
    "control.law.name": [({"law": "pid"}, "one of")],
    "control.join": [
        ({"settings": {"control.join": "append"}}, "replace"),
        ({"settings": {"control": {"join": "append"}}}, "replace"),
    ],
    "control.per_prompt": [({"settings": {"control.per_prompt": 4}}, "none")],
    "control": [({"settings": {"control.weigth": 2.0}}, "did you mean weight")],
    "settings": [({"settings": "control.weight=2"}, "a table")],
    "aggregate": [({"settings": {"surrogate": "gspo"}}, "sequence-mean-token-mean")],
    "temperature": [({"temperature": 0.9}, "1.0")],
    "generation_kwargs": [
        ({"generation_kwargs": {"temperature": 0.9}}, "without a temperature"),
        ({"generation_kwargs": {"do_sample": False}}, "without do_sample"),
        ({"generation_kwargs": {"num_beams": 4}}, "without num_beams"),
    ],
    "scale_rewards": [({"scale_rewards": "none"}, "dr-grpo"), ({"scale_rewards": False}, "dr-grpo")],
    "mask_truncated_completions": [({"mask_truncated_completions": True}, "overlong")],
    "num_generations": [({"method": "pass-at-k", "num_generations": 2, **NEVER}, "at least")],
    "loss_type": [
        ({"method": "dr-grpo", "loss_type": "grpo", **NEVER}, "'dr_grpo' or left out"),
        ({"method": "entropy-reg", "loss_type": "cispo", **NEVER}, "dapo"),
        ({"method": "clip-higher", "loss_type": "cispo", **NEVER}, "luspo"),
    ],
    "epsilon_high": [({"method": "clip-higher", "epsilon_high": 0.3, **NEVER}, "0.28 or left out")],
    "beta": [({"method": "entropy-reg", "beta": 0.04, **NEVER}, "0.0: the loss of the method entropy-reg")],
    "use_liger_kernel": [({"method": "entropy-reg", "use_liger_kernel": True, **NEVER}, "False: the loss")],
}


@pytest.mark.parametrize(
    "field, changes, says",
    [(field, changes, says) for field, cases in REFUSED.items() for changes, says in cases],
    ids=lambda value: str(value)[:40],
)
def test_bad_values_give_one_line(tmp_path, field, changes, says):
    with pytest.raises(InvalidValue) as refused:
        config(tmp_path, **changes)
    assert refused.value.field == field and says in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("found", ["1.4.0", "1.15.0", "1.17.0", "2.0.0"])
def test_other_versions_of_trl(tmp_path, monkeypatch, found):
    monkeypatch.setattr(under_test, "version", lambda name: found)
    with pytest.raises(InvalidValue, match=f"trl: got '{found}'; must be from 1.5 to 1.16, and not 1.15.0, which"):
        config(tmp_path)


@pytest.mark.parametrize("found, refused", [("1.13.0", True), ("1.14.0", False), ("1.16.0", False)])
def test_liger_where_it_only_scores(tmp_path, monkeypatch, found, refused):
    monkeypatch.setattr(under_test, "version", lambda name: found)
    monkeypatch.setattr(EntropyControlConfig, "use_liger_kernel", True)
    if not refused:
        config(tmp_path, use_liger_kernel=True)
        return
    with pytest.raises(InvalidValue, match="use_liger_kernel"):
        config(tmp_path, use_liger_kernel=True)


def test_a_recipe_carries_over(tmp_path):
    table = {"control": {"law": {"name": "switch"}, "distribution": {"high": 1.2, "low": 0.8}, "weight": 1.0}}
    made = config(tmp_path, target="cosine(0.8,0.4,100)", settings=table).algorithm.control
    assert (made.law, made.distribution.high, made.weight) == (Switch(), 1.2, 1.0)
    assert made.target.spec == "cosine(0.8,0.4,100)" and made.join == "replace"
    assert table["control"]["weight"] == 1.0 and "target" not in table["control"]


def test_methods_set_what_they_choose_of_the_loss(tmp_path):
    assert config(tmp_path, method="dr-grpo", target=None).loss_type == "dr_grpo"
    assert config(tmp_path, method="aepo+clip-higher").epsilon_high == 0.28
    assert config(tmp_path, loss_type="cispo", epsilon_high=5.0).loss_type == "cispo"


CHOSEN = {
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence", "epsilon": 2e-3, "epsilon_high": 2.5e-3},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "sapo": {"loss_type": "sapo", "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05},
    "vespo": {"loss_type": "vespo", "vespo_k_pos": 2.0, "vespo_lambda_neg": 2.0},
    "gmpo": {"loss_type": "grpo", "importance_sampling_level": "token"},
    "dppo": {"loss_type": "dapo"},
    "aepo+gspo": {"loss_type": "grpo", "importance_sampling_level": "token"},
    "aepo+cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
}


@pytest.mark.parametrize("method", CHOSEN)
def test_other_surrogates_are_trls_where_it_has_them(tmp_path, method):
    made = config(tmp_path, method=method, target="0.5" if "aepo" in method else None)
    assert {name: getattr(made, name) for name in CHOSEN[method]} == CHOSEN[method]
    assert own_loss(made.algorithm) == (method in ("gmpo", "dppo", "aepo+gspo"))


def test_a_cap_below_is_not_trls_cispo(tmp_path):
    made = config(tmp_path, method="cispo", target=None, settings={"surrogate.low": 0.2})
    assert own_loss(made.algorithm) and made.loss_type == "dapo"


def test_luspo_before_it_summed(tmp_path, monkeypatch):
    monkeypatch.setattr(under_test, "version", lambda name: "1.9.0")
    assert own_loss(config(tmp_path, method="luspo", target=None).algorithm)
    with pytest.raises(InvalidValue, match="^loss_type: got 'luspo'; must be another one with TRL below 1.10"):
        config(tmp_path, loss_type="luspo")


def test_own_loss_clips_where_trl_would(tmp_path):
    made = config(tmp_path, method="entropy-reg", target=None, epsilon=0.1, epsilon_high=0.3)
    assert made.algorithm.surrogate == Clip(0.1, 0.3)


def test_from_a_command_line(tmp_path):
    line = ["--output_dir", str(tmp_path), "--target", "0.6x", "--law", json.dumps({"name": "switch"})]
    line += ["--settings", json.dumps({"control.weight": 1.5}), "--use_cpu", "--bf16", "false"]
    (parsed,) = HfArgumentParser(EntropyControlConfig).parse_args_into_dataclasses(line)
    assert parsed.algorithm.control.weight == 1.5 and parsed.algorithm.control.law == Switch()


def test_what_trl_would_do_in_silence_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="top_p = 0.9 cuts"):
        config(tmp_path, top_p=0.9)
    with pytest.warns(UserWarning, match="top_p = 0.9 cuts"):
        config(tmp_path, generation_kwargs={"top_p": 0.9})
    with pytest.warns(UserWarning, match="moving-bound never acts"):
        config(tmp_path, method="moving-bound", target=None)
    with pytest.warns(UserWarning, match="shuffles"):
        config(tmp_path, method="aepo-reference", target=None)


def test_the_trainer_wants_its_own_arguments(tmp_path):
    from trl import GRPOConfig

    plain = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(InvalidValue, match="args: got 'GRPOConfig'; must be an EntropyControlConfig"):
        AEPOTrainer(model(), even_start, plain, train_dataset=prompts(), processing_class=tokenizer())


def test_tools_are_refused(tmp_path):
    with pytest.raises(InvalidValue, match="tools"):
        AEPOTrainer(model(), even_start, config(tmp_path), train_dataset=prompts(), tools=[print])


def test_a_head_that_is_not_linear_is_refused_where_it_is_read(tmp_path):
    capped = model()
    plain = capped.forward
    capped.forward = lambda *given, **named: _capped(plain(*given, **named))
    with pytest.raises(
        InvalidValue, match="^model: got .*whose logits of up to .* differ by .*soft-capped as named \\(none\\)$"
    ):
        trainer(tmp_path, policy=capped, method="entropy-reg", target=None)


def test_a_loss_of_ours_has_no_load_balancing(tmp_path):
    if not hasattr(config(tmp_path), "router_aux_loss_coef"):
        pytest.skip("this TRL has no such loss")
    named = {"policy": model(kind="qwen3_moe"), "router_aux_loss_coef": 0.01}
    assert trainer(tmp_path, **named).aux_loss_enabled
    with pytest.raises(InvalidValue, match="router_aux_loss_coef: got 0.01; must be 0.0"):
        trainer(tmp_path, method="entropy-reg", target=None, **named)
    trainer(tmp_path, method="entropy-reg", target=None, policy=model(kind="qwen3_moe"), router_aux_loss_coef=0.0)


def _capped(output):
    output.logits = (output.logits / 2).tanh()
    return output


def test_every_method_is_offered_or_refused_as_the_table_says(tmp_path):
    from aepo.engines.capabilities import runs_on

    for name, method in METHODS.items():
        offered = "trl" in runs_on(method.algorithm)
        if offered:
            config(tmp_path, method=name, target=None)
        else:
            with pytest.raises(InvalidValue, match="method"):
                config(tmp_path, method=name, target=None)
