import pytest

from aepo.config import default_config, make_config, override, to_dict, to_toml
from aepo.control.aepo import AEPO
from aepo.control.both import Both
from aepo.control.entropy_reg import EntropyReg
from aepo.control.laws import PI, Switch
from aepo.control.schedules import Schedule, Target
from aepo.convert import parse_setting
from aepo.errors import InvalidValue
from aepo.loss.advantages import GroupMean
from aepo.loss.surrogates import Clip, Ratio
from aepo.methods import METHODS


@pytest.mark.parametrize("method", METHODS)
def test_every_preset_survives_the_round_trip_through_toml(method, tmp_path):
    config = default_config(method)
    file = tmp_path / "config.toml"
    file.write_text(to_toml(config))
    assert make_config(file) == config


def test_none_survives_the_round_trip():
    config = override(default_config("aepo-reference"), {"surrogate": {"dual": "none"}})
    assert config.surrogate == Clip(dual=None)
    assert override(default_config("aepo-reference"), to_dict(config)).surrogate == Clip(dual=None)


def test_later_sources_win(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text('method = "grpo"\nsteps = 7\nseed = 3\n[optimizer]\nlr = 1e-5\n')
    config = make_config(file, overrides={"steps": 9}, settings=["optimizer.lr=2e-5"])
    assert (config.method, config.steps, config.seed, config.optimizer.lr) == ("grpo", 9, 3, 2e-5)
    assert make_config(file, method="entropy-reg").control == EntropyReg()


def test_settings_reach_every_depth():
    config = make_config(
        settings=[
            "control.law=switch",
            "control.distribution.high=1.2",
            "control.count_high=60",
            "control.target=0.7",
            "surrogate.name=ratio",
            "task.max_moves=9",
        ]
    )
    assert isinstance(config.control, AEPO)
    assert config.control.law == Switch() and config.control.count_high == 60
    assert config.control.target.spec == "0.7" and config.surrogate == Ratio()


def test_settings_that_only_work_together_are_checked_together():
    config = make_config(settings=["control.distribution.low=2.0", "control.distribution.high=3.0"])
    assert (config.control.distribution.low, config.control.distribution.high) == (2.0, 3.0)
    for settings in (["control.law=switch", "control.law.tie=high"], ["control.law.tie=high", "control.law=switch"]):
        assert make_config(settings=settings).control.law == Switch(tie="high")


def test_a_table_without_a_name_changes_the_one_that_is_there():
    config = make_config(settings=["control.law=pi", "control.law.gain=2", "control.law.dead_band=0.01"])
    assert config.control.law == PI(gain=2.0, integral_steps=PI().integral_steps, dead_band=0.01)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["sampling.temperature=0"], "sampling.temperature: got 0.0; must be a positive number"),
        (["sampling.temperature=0.005", "sampling.engine=vllm"], "from 0.01 to 2 with vLLM"),
        (["sampling.temperature=2.5", "sampling.engine=vllm"], "from 0.01 to 2 with vLLM"),
        (["sampling.top_k=0"], "sampling.top_k: got 0; must be at least 1, or none"),
        (["sampling.min_p=1"], "sampling.min_p: got 1.0; must be a share"),
        (["sampling.stop=''"], "sampling.stop: got ''; must be texts that are not empty"),
        (["sampling.stop=['a', '']"], "sampling.stop: got .*must be texts that are not empty"),
        (["sampling.stop=3"], "sampling.stop: got 3; must be text or a list"),
    ],
)
def test_settings_of_sampling_that_cannot_work_are_refused(settings, words):
    with pytest.raises(InvalidValue, match=f"^{words}" if words.startswith("sampling") else words):
        make_config(settings=settings)


def test_chat_and_sampling_settings_are_the_same_in_toml_and_on_the_command_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"problem": "p", "answer": 1}\n{"problem": "q", "answer": 2}\n')
    file = tmp_path / "run.toml"
    file.write_text(
        f"""
        [task]
        name = "data"
        train = "{tmp_path / "rows.jsonl"}"
        style = "chat"
        system_prompt = "Be brief."
        [task.chat_template_kwargs]
        enable_thinking = false
        depth = 2
        [sampling]
        stop = ["</a>", "]]"]
        top_k = 20
        [evaluation]
        prompts = 1
        """
    )
    config = make_config(file)
    assert config.task.chat_template_kwargs == {"enable_thinking": False, "depth": 2}
    assert config.sampling.stops == ("</a>", "]]") and config.task.system_prompt == "Be brief."
    start = ["task=data", f"task.train='{tmp_path / 'rows.jsonl'}'", "task.style=chat", "task.system_prompt=Be brief."]
    more = ["sampling.stop=['</a>', ']]']", "sampling.top_k=20", "evaluation.prompts=1"]
    for kwargs in (
        ["task.chat_template_kwargs.enable_thinking=false", "task.chat_template_kwargs.depth=2"],
        ["task.chat_template_kwargs={enable_thinking = false, depth = 2}"],
        ['task.chat_template_kwargs={"enable_thinking": false, "depth": 2}'],
    ):
        assert make_config(settings=[*start, *more, *kwargs]) == config
    (tmp_path / "again.toml").write_text(to_toml(config))
    assert make_config(tmp_path / "again.toml") == config
    assert make_config(file, settings=["task.chat_template_kwargs.depth=3"]).task.chat_template_kwargs["depth"] == 3
    assert make_config(settings=["sampling.stop=</a>"]).sampling.stops == ("</a>",)


def test_values_are_toml_or_text():
    assert parse_setting("a.b=3") == ("a.b", 3)
    assert parse_setting("a=true") == ("a", True)
    assert parse_setting("a=0.6x") == ("a", "0.6x")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("optimiser.lr=1", "setting: got 'optimiser', which is unknown; .* did you mean optimizer"),
        ("optimizer.lrr=1", "optimizer: got 'lrr', which is unknown; .* did you mean lr"),
        ("optimizer.lr=fast", "optimizer.lr: got 'fast'; must be a number"),
        ("optimizer.lr=-1", "optimizer.lr: got -1.0; must be a positive"),
        ("optimizer.lr=nan", "optimizer.lr: got nan; must be a finite"),
        ("optimizer.minibatches=2.5", "optimizer.minibatches: got 2.5; must be an integer"),
        ("optimizer.minibatches=true", "optimizer.minibatches: got True; must be an integer"),
        ("optimizer.betas=[0.9]", "optimizer.betas: got .* a list of 2"),
        ("optimizer=3", "optimizer: got 3; must be a table"),
        ("sampling.group_size=1", "sampling.group_size: got 1; must be at least 2"),
        ("steps=0", "steps: got 0"),
        ("evaluation.prompts=300", "evaluation.prompts: got 300; must be at most task.eval_pairs"),
        ("optimizer.betas=[1.5,0.9]", "optimizer.betas: got"),
        ("task.walk_moves=[7,2]", "task.walk_moves: got"),
        ("task.eval_pairs=0", "task.eval_pairs: got 0"),
        ("device=tpu", "device: got 'tpu'; must be one of auto, cpu, cuda"),
        ("seed=-1", "seed: got -1"),
        ("control.target=nan", "control.target: got nan; must be a finite"),
        ("control.target=-0.5", "target: got '-0.5'"),
        ("control.distribution.high=-1.2", "distribution.high: got -1.2; must be at least distribution.low"),
        ("control.distribution.low=2.0", "distribution.high: got 1.5; must be at least distribution.low"),
        ("control.law=bang", "control.law.name: got 'bang', which is unknown; must be one of self-tuning, pi, switch"),
        ("control.law=3", "control.law: got 3; must be a name"),
        ("control.join=insert", "control.join: got 'insert'; must be one of append, replace"),
        ("control.name=aepoo", "control.name: got 'aepoo', which is unknown; must be one of .*, aepo, .*, none, "),
        ("advantage=mean", "advantage.name: got 'mean', which is unknown; must be one of group-mean-std"),
        ("aggregate=mean", "aggregate: got 'mean', which is unknown; must be one of token-mean"),
        ("no-equals-sign", "--set: got 'no-equals-sign'"),
    ],
)
def test_bad_settings_are_one_line_with_field_value_and_range(setting, words):
    with pytest.raises(InvalidValue, match=words) as caught:
        make_config(settings=[setting])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["steps = ", "\xff\xfe", None])
def test_a_file_that_cannot_be_read(tmp_path, text):
    file = tmp_path / "recipe.toml"
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidValue, match="^config: got"):
        make_config(file)


def test_a_target_without_a_closed_loop_is_refused():
    with pytest.raises(InvalidValue, match=r"control\.target: got 0\.5; must be left out"):
        make_config(method="grpo", settings=["control.target=0.5"])


def test_unknown_method():
    with pytest.raises(InvalidValue, match="method: got 'ppo', which is unknown; must be one of grpo"):
        make_config(method="ppo")


def test_joined_methods_take_each_axis_from_the_one_that_chooses_it():
    config = make_config(method="aepo+dr-grpo", settings=["control.target=0.7"])
    assert (config.advantage, config.aggregate) == (GroupMean(), "fixed-length")
    assert config.control == AEPO(target=Target("0.7"))
    both = make_config(method="aepo+entropy-reg", settings=["control.target=0.7", "control.coefficient=0.1"])
    assert both.control == Both(first=AEPO(target=Target("0.7")), second=EntropyReg(coefficient=Schedule("0.1")))


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("dr-grpo+rloo", "only one chooses the advantage"),
        ("aepo+aepo-v6", "only one has the hook plan"),
        ("aepo+", "method: got ''"),
    ],
)
def test_methods_that_cannot_be_joined_are_refused(method, words):
    with pytest.raises(InvalidValue, match=words):
        make_config(method=method)


def test_a_group_too_small_for_its_advantage_is_refused():
    with pytest.raises(InvalidValue, match=r"sampling\.group_size: got 3; must be at least 4 with the advantage pass"):
        make_config(settings=["advantage=pass-at-k", "sampling.group_size=3"])


@pytest.mark.parametrize(
    ("setting", "nearest"),
    [
        ("learning_rate=1e-6", "optimizer.lr"),
        ("optimizer.learning_rate=1e-6", "optimizer.lr"),
        ("num_generations=8", "sampling.group_size"),
        ("control.law=pii", "pi"),
        ("task=path", "paths"),
    ],
)
def test_an_unknown_name_is_called_unknown_with_the_nearest_known_one(setting, nearest):
    with pytest.raises(InvalidValue, match=rf"which is unknown; must be .*did you mean {nearest}\?$"):
        make_config(settings=[setting])
