"""What is refused, in one line and before Ray; and that the command line and the scripts compose."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest

from aepo.control.laws import PI
from aepo.errors import InvalidValue
from aepo.integrations.verl.__main__ import compose, overrides
from aepo.integrations.verl.settings import TESTED, check_version, read, remarks
from aepo.methods import METHODS
from tests_verl.support.run import ROOT, settings

LARGE = ["data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=8", "actor_rollout_ref.rollout.n=4"]
REFERENCE = ["actor_rollout_ref.actor.use_kl_loss=true", "actor_rollout_ref.actor.kl_loss_coef=0"]


def config(*given: str):
    return compose(overrides([*LARGE, *given]))


def test_settings_are_those_of_aepo_train():
    chosen = read(
        config(
            *("aepo.method=aepo", "aepo.target=cosine(0.8,0.4,100)", "aepo.law=switch", "aepo.seed=3"),
            *("aepo.control.distribution.high=1.5", "aepo.surrogate.dual=3", "aepo.aggregate=sequence-mean-token-sum"),
        )
    )
    control = chosen.algorithm.control
    assert (control.target.spec, control.law.name, control.distribution.high) == ("cosine(0.8,0.4,100)", "switch", 1.5)
    assert (chosen.algorithm.surrogate.dual, chosen.algorithm.aggregate) == (3.0, "sequence-mean-token-sum")
    assert (chosen.seed, chosen.kl_coefficient) == (3, 0.0)


def test_a_share_of_the_first_entropy_is_text_for_hydra():
    assert read(config("aepo.target=0.6x")).algorithm.control.target.spec == "0.6x"


@pytest.mark.parametrize(
    ("text", "law"),
    [
        ("pi", PI()),
        ('{name="pi",gain=5.0}', PI(gain=5.0)),
        ("{name:pi,gain:5.0}", PI(gain=5.0)),
    ],
)
def test_a_law_is_a_name_or_a_table_as_in_toml_or_for_hydra(text, law):
    assert read(config(f"aepo.law={text}")).algorithm.control.law == law


@pytest.mark.parametrize(("text", "value"), [("True", True), ("true", True), ("False", False)])
def test_true_is_written_in_any_way(text, value):
    assert read(config(f"aepo.new_state={text}")).new_state is value


def test_the_last_value_of_a_setting_counts():
    assert read(config("aepo.target=0.5", "aepo.target=0.6")).algorithm.control.target.spec == "0.6"


def test_what_hydra_cannot_read_is_one_line():
    with pytest.raises(InvalidValue, match="overrides: got .*train_bach_size") as caught:
        config("data.train_bach_size=8")
    assert "\n" not in str(caught.value)


def test_the_kl_penalty_is_verls_setting():
    assert read(config("actor_rollout_ref.actor.use_kl_loss=true")).kl_coefficient == 0.001


REFUSED = {
    "trainer.v1.trainer_mode": "sync",
    "algorithm.adv_estimator": "gae",
    "algorithm.use_kl_in_reward": "true",
    "algorithm.filter_groups.enable": "true",
    "algorithm.rollout_correction.rollout_is": "batch",
    "algorithm.rollout_correction.rollout_rs": "token_k1",
    "algorithm.rollout_correction.rollout_is_batch_normalize": "true",
    "algorithm.rollout_correction.bypass_mode": "true",
    "actor_rollout_ref.rollout.temperature": "0.7",
    "actor_rollout_ref.rollout.agent.default_agent_loop": "single_turn_agent",
    "actor_rollout_ref.rollout.n": "1",
    "actor_rollout_ref.actor.entropy_coeff": "0.001",
    "actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-mean",
    "actor_rollout_ref.actor.policy_loss.loss_mode": "clip_cov",
    "actor_rollout_ref.actor.clip_ratio_high": "0.28",
    "actor_rollout_ref.actor.clip_ratio_c": "10",
    "actor_rollout_ref.actor.strategy": "megatron",
    "actor_rollout_ref.actor.shuffle": "true",
    "actor_rollout_ref.actor.ppo_mini_batch_size": "3",
    "actor_rollout_ref.actor.ppo_epochs": "0",
    "data.train_batch_size": "null",
    "trainer.v1.sampler.sync_refill_failed_groups": "true",
    "skip.rollout_tq.enable": "true",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_that_would_undo_the_method_is_refused_by_name(name):
    read(config())
    with pytest.raises(InvalidValue, match=f"^{re.escape(name)}: got") as caught:
        read(config(f"{name}={REFUSED[name]}"))
    assert "\n" not in str(caught.value)


def runs(name: str, base) -> bool:
    try:
        read({**base, "aepo": {"method": name}})
    except InvalidValue as error:
        assert error.field == "aepo.method" and "the engine verl" in str(error)
        return False
    return True


def test_exactly_these_methods_are_refused():
    base = config(*REFERENCE)
    refused = {name for name in METHODS if not runs(name, base)}
    assert refused == {"aent", "siren", "hapo", "eframe", "lp-reg", "rpo", "uec-rl"}


def test_what_further_rounds_need_is_refused_by_name():
    read(config("aepo.method=dapo", "aepo.control.first.prompts_per_round=16"))
    with pytest.raises(
        InvalidValue, match=r"prompts_per_round: got 12; must be a multiple of data\.gen_batch_size \(8\)"
    ):
        read(config("aepo.method=dapo", "aepo.control.first.prompts_per_round=12"))
    colocated = ["reward.reward_model.enable=true", "reward.reward_model.enable_resource_pool=false"]
    read(config("aepo.method=grpo", *colocated))
    with pytest.raises(InvalidValue, match="enable_resource_pool"):
        read(config("aepo.method=dapo", *colocated))


def test_sequence_parallelism_without_flash_attention_is_refused():
    parallel = "actor_rollout_ref.actor.ulysses_sequence_parallel_size=2"
    other = "+actor_rollout_ref.model.override_config.attn_implementation=sdpa"
    read(config(parallel))
    read(config(other))
    with pytest.raises(InvalidValue, match="attn_implementation: got 'sdpa'; must be flash_attention_2 with ulysses"):
        read(config(parallel, other))


def test_a_method_with_a_reference_model_asks_for_verls():
    with pytest.raises(InvalidValue, match="use_kl_loss"):
        read(config("aepo.method=archer"))


@pytest.mark.parametrize("wrong", ["aepo.targett=1", "aepo.seed=-1", "aepo.method=no-such", "aepo.control.weight=0"])
def test_a_wrong_setting_of_ours_is_one_line(wrong):
    with pytest.raises(InvalidValue, match=r"must be"):
        read(config(wrong))


def test_other_versions_are_refused_with_the_list():
    check_version(TESTED[0])
    with pytest.raises(InvalidValue, match=r"verl: got '0\.9\.0'; must be one of 0\.9\.1"):
        check_version("0.9.0")


def test_what_may_not_be_meant_is_said():
    (small,) = remarks(config())
    assert small.startswith("actor_rollout_ref.rollout.n = 4: even at an accuracy of one half 12% of the groups")
    eight = "actor_rollout_ref.rollout.n=8"
    assert remarks(config(eight)) == []
    assert "rounds the entropy" in remarks(config(eight, "actor_rollout_ref.model.use_remove_padding=false"))[0]
    exact = [
        eight,
        "actor_rollout_ref.model.use_remove_padding=false",
        "actor_rollout_ref.actor.fsdp_config.dtype=float32",
    ]
    assert remarks(config(*exact)) == []
    assert "top_p" in remarks(config(eight, "actor_rollout_ref.rollout.top_p=0.9"))[0]
    assert "the ratio is always 1" in remarks(config(eight, "aepo.method=moving-bound"))[0]


def test_the_launcher_refuses_before_ray_starts(tmp_path):
    arguments = [*settings(tmp_path, tmp_path, 1), "aepo.method=aent"]
    done = subprocess.run(
        [sys.executable, "-m", "aepo.integrations.verl", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith("aepo: aepo.method: got 'aent'")
    assert "ray init" not in done.stdout and "Started a local Ray" not in done.stderr


SCRIPTS = sorted((ROOT / "recipes/verl").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_every_script_composes(script: Path, tmp_path):
    """Run with a `python` that prints its arguments, and compose what it would have been given."""
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    variables = {"PATH": f"{tmp_path}:/usr/bin:/bin", "DATA": "/data", "NODES": "4"}
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, env=variables, check=True)
    module, *arguments = done.stdout.splitlines()[1:]
    assert module == "aepo.integrations.verl"
    composed = compose(overrides(arguments))
    assert read(composed).method == re.search(r"aepo\.method=(\S+)", script.read_text())[1]
    assert remarks(composed) == []


def test_every_setting_of_the_papers_has_a_script_with_its_numbers():
    """Against the recipes of `aepo train`, which say where each number is from."""
    papers = list((ROOT / "recipes/dapo17k").glob("v*-*.toml"))
    assert {file.stem for file in papers} <= {script.stem for script in SCRIPTS} and len(papers) >= 16
    for file in papers:
        script = (ROOT / f"recipes/verl/{file.stem}.sh").read_text()
        recipe = resolved(file)
        model, group, longest = re.search(r"^train (\S+) (\d+) (\d+)", script, re.MULTILINE).groups()
        assert model == recipe["model"] and f"aepo.method={recipe['method']} " in script
        assert (int(group), int(longest)) == (recipe["sampling"]["group_size"], recipe["task"]["max_response"])
        control = recipe.get("control", {})
        for name in {"target", "alpha", "kappa", "coefficient"} & set(control):
            assert float(re.search(rf"aepo\.(?:control\.)?{name}=(\S+)", script)[1]) == float(control[name])


def resolved(file: Path) -> dict:
    """A recipe's tables, each with the nearest file's values."""
    own = tomllib.loads(file.read_text())
    base = own.pop("extends", None)
    return {**(resolved(file.parent / base) if base else {}), **own}


def test_the_scripts_name_the_versions_that_verl_expects():
    words = (ROOT / "recipes/verl/common.bash").read_text()
    wanted = [line for line in requires("verl") or [] if line.endswith(('extra == "vllm"', 'extra == "fsdp"'))]
    for name, text in (("vllm", "vLLM"), ("torch", "torch"), ("transformers", "transformers")):
        (pinned,) = {found[1] for line in wanted if (found := re.match(rf"{name}==([\d.]+);", line))}
        assert f"{text} {pinned}" in words


def test_the_doctor_has_its_own_table():
    chosen = read(config("aepo.doctor.stop_on=sure", "aepo.doctor.every=3"))
    assert (chosen.doctor.stop_on, chosen.doctor.every, chosen.doctor.webhook) == ("sure", 3, None)
    assert read(config()).doctor.stop_on == "never"
    for wrong in ("aepo.doctor.stop=sure", "aepo.doctor.stop_on=maybe", "aepo.doctor.every=x"):
        with pytest.raises(InvalidValue, match=r"doctor"):
            read(config(wrong))
