import math
from dataclasses import replace

import pytest

from aepo.cli import Calibrate, Train
from aepo.config import make_config
from aepo.errors import InvalidValue
from aepo.planning.calibrate import (
    PromptMeasurement,
    Proposal,
    calibration_config,
    dead_share,
    measure,
    proposals,
    ratio,
    recipe,
    summed_up,
)
from aepo.tasks import Data, Paths


def answered(correct, samples=4, entropy=2.0, tokens=4, truncated=0, lengths=None):
    ended = lengths or (1,) * (samples - truncated)
    return PromptMeasurement(entropy=entropy, tokens=tokens, correct=correct, lengths=tuple(ended), truncated=truncated)


def test_golden_a_ratio_and_its_error():
    """Entropies 1, 3 over 1, 3 tokens are 1 each: no error. 4 over 1 and 2 over 2: mean 2, residuals 2 and -2."""
    assert ratio([1.0, 3.0], [1, 3]) == (1.0, 0.0)
    mean, error = ratio([4.0, 2.0], [1, 2])
    assert mean == 2.0 and error == pytest.approx(math.sqrt(2 * (2**2 + 2**2)) / 3)


def test_golden_dead_groups():
    """Of 4 completions 2 right: of 6 pairs one is all right and one all wrong. 4 right: every group is dead."""
    assert dead_share([answered(2)], 2) == pytest.approx(1 / 3)
    assert dead_share([answered(2), answered(4)], 2) == pytest.approx(2 / 3)
    assert dead_share([answered(2)], 4) == 0.0


def test_golden_a_measurement():
    found = summed_up([answered(1, entropy=2.0), answered(3, entropy=6.0, truncated=1)], limit=9, failures=1)
    assert (found.entropy, found.accuracy, found.truncated) == (1.0, 0.5, 1 / 8)
    assert found.entropy_error == pytest.approx(math.sqrt(2 * 8) / 8)
    assert found.accuracy_error == pytest.approx(0.25)
    assert found.dead == {4: 0.0} and found.length == 1 and "verifier failures: 1" in found.lines()


def proposed(found, task=Paths()) -> dict[str, Proposal]:
    return {proposal.setting: proposal for proposal in proposals(found, task)}


def test_proposals_follow_from_what_was_measured():
    # Half of the prompts at one half, half of them never: larger groups revive nothing.
    half = summed_up([answered(8, 16, 20.0, 20), answered(0, 16, 22.0, 20)] * 8, limit=9)
    found = proposed(half)
    target = found["control.target"]
    assert target.value == f'"{make_config().control.target.spec}"' == '"0.6x"'
    assert all(words in target.reason for words in ("0.630 nats", "0.45x (0.473)", "0.75x (0.788)", "ended at 0.3x"))
    assert half.dead[4] - half.dead[16] < 0.1 and found["sampling.group_size"].value == "4"
    assert "task.max_response" not in found
    # Rare right answers: groups of 16 are worth it.
    rare = summed_up([answered(3, 32), answered(2, 32)] * 8, limit=9)
    assert proposed(rare)["sampling.group_size"].value == "32" and rare.dead[16] > rare.dead[32] + 0.1
    hopeless = proposed(summed_up([answered(0, 16)] * 8, limit=9))["sampling.group_size"]
    assert hopeless.value is None and "too hard" in hopeless.line() and hopeless.line().startswith("#")
    easy = proposed(summed_up([answered(16, 16)] * 8, limit=9))["sampling.group_size"]
    assert "too easy" in easy.reason


def test_golden_prompts_for_the_sensor():
    """An error of 0.1 nats over 64 prompts, 1.0 nats: 0.025 asks for 16 times as many."""
    found = replace(summed_up([answered(2, entropy=4.0)] * 64, limit=9), entropy_error=0.1)
    assert proposed(found)["sampling.prompts"].value == "1024"
    assert proposed(replace(found, entropy_error=0.05))["sampling.prompts"].value == "256"
    assert proposed(replace(found, entropy_error=0.0))["sampling.prompts"].value == "16"
    unsure = proposed(replace(found, entropy_error=0.2))["control.target"]
    assert unsure.value is None and "more --prompts" in unsure.reason


def test_golden_the_length():
    lengths = summed_up([answered(2, 4, lengths=(60, 61, 62, 70))] * 4, limit=500)
    assert proposed(lengths, Data())["task.max_response"].value == "128"
    cut = summed_up([answered(2, 4, truncated=1)] * 4, limit=500)
    assert proposed(cut, Data())["task.max_response"].value == "1000"


def test_a_model_is_measured_as_a_run_would(quick_model):
    """The entropy is the loop's own first one, within their errors; the recipe is one that `aepo train` reads."""
    config = calibration_config(str(quick_model), "paths", ["threads=1"])
    found = measure(config, prompts=24, samples=8)
    assert found == measure(config, prompts=24, samples=8)
    from aepo.training import runner
    from aepo.training.step import probe

    run, _ = runner._prepare(make_config(settings=[f"model='{quick_model}'", "threads=1"]), None, quiet=True)
    other = probe(run, 64).entropy.mean
    assert found.entropy == pytest.approx(other, abs=5 * found.entropy_error) and 0 < found.entropy_error < 0.5
    assert found.limit == 9 and 0 <= found.truncated <= 1
    assert found.entropy != measure(replace(config, seed=1), prompts=24, samples=8).entropy


def test_the_recipe_can_be_trained_with(quick_model, tmp_path, capsys):
    out = tmp_path / "proposed.toml"
    Calibrate(str(quick_model), "paths", prompts=8, samples=8, set=("threads=1", "optimizer.lr=1e-4"), out=out).run()
    said = capsys.readouterr().out
    assert "nats per token, exact" in said and "control.target = " in said
    config = make_config(out)
    assert config.model == str(quick_model) and config.control.target.spec == "0.6x"
    assert config.sampling.prompts >= 16 and config.optimizer.lr == 1e-4 and config.threads == 1
    Train(out, dry_run=True).run()
    assert "step: " in capsys.readouterr().out


def test_the_recipe_names_the_data_and_a_proposal_wins_over_a_setting(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"prompt": "What is {n} + 1?", "answer": "{n + 1}"}}\n' for n in range(9)))
    settings = ["task.max_response=77", "sampling.group_size=9", "task.held_out=2"]
    config = calibration_config("builtin", str(file), settings)
    found = summed_up([answered(0, 16)] * 4, limit=77)
    text = recipe(config, settings, found, proposals(found, config.task))
    assert "# sampling.group_size: no proposal" in text and "sampling.group_size = 9" in text
    (tmp_path / "proposed.toml").write_text(text)
    task = make_config(tmp_path / "proposed.toml", overrides={"evaluation.prompts": 1}).task
    assert (task.train, task.max_response, task.held_out) == (str(file), 64, 2)


@pytest.mark.parametrize(("sizes", "words"), [((1, 8), "--prompts: got 1"), ((8, 2), "--samples: got 2")])
def test_too_little_is_refused(sizes, words, quick_model):
    with pytest.raises(InvalidValue, match=words):
        measure(calibration_config(str(quick_model), "paths", []), *sizes)
    with pytest.raises(InvalidValue, match=r"task.train nowhere.jsonl|nowhere.jsonl"):
        calibration_config("builtin", "nowhere.jsonl", [])
