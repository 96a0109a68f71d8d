import json
import math

import pytest
import torch

from aepo.config import make_config
from aepo.errors import InvalidValue
from aepo.evaluation.entropy import COMPLETIONS, _within, policy_entropy
from aepo.evaluation.options import Options
from aepo.evaluation.run import run as evaluate
from aepo.model.policy import Policy
from aepo.sampling.prompts import take_prompts
from aepo.training import runner
from aepo.training.folder import read_rows
from aepo.training.runner import make_sampler


@pytest.fixture(scope="module")
def trained(quick_model, tmp_path_factory):
    out = tmp_path_factory.mktemp("entropy") / "run"
    settings = ["steps=3", "sampling.prompts=4", "sampling.group_size=4", "checkpoint.every=1", "checkpoint.keep=9"]
    settings += ["evaluation.every=0", f"model={quick_model}"]
    runner.start(make_config(None, "aepo", {"control.target": "0.9x"}, settings), out)
    return out


def test_every_checkpoint_is_measured_on_the_same_prompts(trained, capsys):
    evaluate(Options(str(trained), entropy=24))
    found = json.loads((trained / "entropy.json").read_text())
    rows = {row["step"]: row for row in read_rows(trained / "metrics.jsonl")}
    assert [one["step"] for one in found["entropies"]] == [1, 2, 3]
    for one in found["entropies"][:-1]:
        assert one["reading"] == rows[one["step"] + 1]["entropy"]
        assert one["target"] == pytest.approx(0.9 * rows[1]["entropy"])
    assert found["entropies"][-1]["reading"] is None
    errors = [one["target"] - one["entropy"] for one in found["entropies"][1:]]
    assert found["mean_error"] == pytest.approx(sum(errors) / 2)
    assert found["rmse"] == pytest.approx(math.sqrt(sum(e**2 for e in errors) / 2))
    shown = capsys.readouterr().out
    assert "24 prompts x 2 completions" in shown and max(map(len, shown.splitlines())) <= 80


def test_it_is_the_entropy_of_the_policy_and_its_error_that_of_the_draw(quick_model):
    config = make_config(None, "grpo", {}, [f"model={quick_model}"])
    policy = Policy.load(quick_model)
    sampler = make_sampler(policy, config)
    sampler.refresh(policy)
    prompts = take_prompts(config.task, policy, 0, 0, 32)
    found = [policy_entropy(policy, sampler, prompts, config.task.max_tokens, seed) for seed in range(12)]
    values = torch.tensor([value for value, _ in found])
    said = math.sqrt(sum(se**2 for _, se in found) / len(found))
    assert said == pytest.approx(float(values.std()), rel=0.6)
    assert policy_entropy(policy, sampler, prompts, config.task.max_tokens, 0) == found[0]


def test_the_variance_within_prompts_by_hand():
    # Differences of 2 and 4 within the pairs: variances 2 and 8 of one completion, twice each.
    assert COMPLETIONS == 2
    assert _within([1.0, 3.0, 10.0, 6.0]) == pytest.approx(2 * 2 + 2 * 8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"entropy": 0}, "--entropy: got 0; must be at least 1 prompt"),
        ({"entropy": 8, "benchmark": ("aime24",)}, r"--benchmark: got \('aime24',\); must be left out with --entropy"),
        ({"entropy": 8, "max_tokens": 4}, "--max-tokens: got 4; must be left out with --entropy"),
        ({"entropy": 8, "temperature": 0.6}, "--temperature: got 0.6; must be left out with --entropy"),
    ],
)
def test_what_has_no_meaning_with_it_is_refused(options, words):
    with pytest.raises(InvalidValue, match=words):
        evaluate(Options("builtin", **options))
