"""Every recipe runs: two steps on real rows, shrunk, with a tiny random model of its architecture."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest

from aepo.cli import Train
from aepo.config import make_config, read_toml
from aepo.control.aepo import AEPO
from aepo.errors import InvalidValue
from aepo.planning.cost import H100, seconds
from aepo.planning.dry_run import Assumed, architecture, dry_run, on_paper, work_of
from aepo.tasks import Pictures
from aepo.training import runner
from tests.tiny_models import byte_tokenizer, make_model
from tests.tiny_vision import make_vision_model

ROOT = Path(__file__).parents[1]
RECIPES = sorted(path for path in (ROOT / "recipes" / "dapo17k").glob("v*-*.toml"))
VISION_RECIPES = sorted((ROOT / "recipes" / "geometry3k").glob("qwen*.toml"))
DATA = os.environ.get("AEPO_TEST_DATA")
SHRUNK = [
    *("steps=2", "threads=1", "sampling.prompts=4", "sampling.group_size=2", "optimizer.microbatch=2"),
    *("task.max_response=6", "task.max_prompt=400", "task.held_out=20"),
    *("evaluation.every=2", "evaluation.prompts=2", "evaluation.samples=2", "task.verifier.processes=1"),
]
TINY_PIXELS = ("policy.min_pixels=none", "policy.max_pixels=none")
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """A hundred rows of DAPO-17K, or of its shape where the file is not there."""
    if not DATA:
        pytest.skip("AEPO_TEST_DATA is not set: no DAPO-17K rows to train on")
    file = tmp_path_factory.mktemp("data") / "dapo.parquet"
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(Path(DATA) / "dapo17k.parquet").slice(0, 100), file)
    return file


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[str, Path]:
    """Random Qwen2 and Qwen3 models with a byte-level tokenizer and ChatML."""
    tokenizer = byte_tokenizer(pad="<|endoftext|>", eos="<|im_end|>")
    tokenizer.chat_template = CHAT
    settings = {"tokenizer": tokenizer, "max_position_embeddings": 512}
    return {kind: make_model(tmp_path_factory.mktemp(kind), kind, **settings) for kind in ("qwen2", "qwen3")}


def shrunk(recipe: Path, rows: Path, tiny: dict[str, Path]):
    kind = "qwen3" if "qwen3" in recipe.name else "qwen2"
    return make_config(recipe, settings=[*SHRUNK, f"task.train='{rows}'", f"model='{tiny[kind]}'"])


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_trains_on_real_rows(recipe, rows, tiny, tmp_path):
    runner.start(shrunk(recipe, rows, tiny), tmp_path / "run", quiet=True)
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(logged) == 2 and logged[1]["evaluation"]["samples"] == 2
    assert all(row["entropy"] > 0 and row["mismatch"] < 0.02 and row["reward_failures"] == 0 for row in logged)


@pytest.mark.parametrize("recipe", VISION_RECIPES, ids=lambda path: path.stem)
def test_every_recipe_with_images_trains_on_rows_of_the_form_of_its_data(recipe, tmp_path):
    made = []
    for number, problem in enumerate(Pictures(style="plain", sides=(16, 24)).eval_problems(16)):
        problem.images[0].load().save(tmp_path / f"{number}.png")
        made.append({"problem": problem.text, "answer": problem.data["answer"], "images": [f"{number}.png"]})
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in made))
    model = make_vision_model(tmp_path / "model")
    tiny_task = [f"task.train='{file}'", "task.eval=''", "task.held_out=4", f"model='{model}'", "policy.dtype=float32"]
    config = make_config(recipe, settings=[*SHRUNK[:7], *SHRUNK[8:], *tiny_task, *TINY_PIXELS])
    runner.start(config, tmp_path / "run", quiet=True)
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(logged) == 2 and all(row["entropy"] > 0 and row["reward_failures"] == 0 for row in logged)


@pytest.mark.parametrize("recipe", [*RECIPES, *VISION_RECIPES], ids=lambda path: path.stem)
def test_every_setting_of_a_recipe_names_its_source(recipe):
    shared = ("v1.toml", "v6.toml", "common.toml")
    for file in (recipe, *(recipe.parent / name for name in shared if (recipe.parent / name).exists())):
        for line in file.read_text().splitlines():
            is_setting = "=" in line and not line.startswith(("#", "extends", "method", "name"))
            assert not is_setting or "#" in line, f"{file.name}: {line}"


def test_golden_the_recipes_are_the_papers_settings(rows, tiny):
    v6 = read_toml(ROOT / "recipes/dapo17k/v6-qwen2.5-7b-aepo.toml")
    assert v6["model"] == "Qwen/Qwen2.5-7B" and v6["sampling"] == {"prompts": 512, "group_size": 8, "top_p": 1.0}
    assert v6["optimizer"]["lr"] == 1e-6 and v6["task"]["max_response"] == 8192
    config = shrunk(ROOT / "recipes/dapo17k/v1-qwen2.5-math-7b-aepo.toml", rows, tiny)
    assert isinstance(config.control, AEPO)
    control = config.control
    assert (control.count_high, control.count_low, control.law.name, control.join) == (60, 60, "switch", "replace")
    assert (control.distribution.high, control.distribution.low, control.target.spec) == (1.2, 0.8, "0.75")


# Positions of the recipes' models, from their config.json on the hub.
POSITIONS = {"Qwen/Qwen2.5-Math-7B": 4096, "Qwen/Qwen2.5-7B": 131072, "Qwen/Qwen3-4B": 40960}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_whose_completions_can_pass_the_models_positions_says_what_happens(recipe):
    given = read_toml(recipe)
    longest = given["task"]["max_prompt"] + given["task"]["max_response"]
    assert longest <= POSITIONS[given["model"]] or given["policy"].get("over_length") == "cut"


def test_a_recipe_extends_another_table_by_table(tmp_path):
    (tmp_path / "base.toml").write_text("steps = 3\n[optimizer]\nlr = 1e-3\nminibatches = 2\n")
    (tmp_path / "top.toml").write_text('extends = "base.toml"\n[optimizer]\nlr = 2e-3\n')
    config = make_config(tmp_path / "top.toml")
    assert (config.steps, config.optimizer.lr, config.optimizer.minibatches) == (3, 2e-3, 2)
    (tmp_path / "base.toml").write_text('extends = "top.toml"\n')
    with pytest.raises(InvalidValue, match=r"^extends: got 'base\.toml'|^extends: got 'top\.toml'"):
        make_config(tmp_path / "top.toml")


# --- on paper -----------------------------------------------------------------------------------------------


def test_golden_the_cost_on_paper_by_hand(quick_model):
    settings = [
        "sampling.prompts=4",
        "sampling.group_size=8",
        "optimizer.epochs=2",
        "steps=10",
        f"model='{quick_model}'",
    ]
    config = make_config(method="grpo", settings=settings)
    model = architecture(config)
    paper = on_paper(config, model)
    tokens, read = 4 * 8 * 9, 4 * 8 * (64 + 9)  # the paths task samples at most 9 tokens
    assert (paper.completions, paper.extra, paper.sampled_tokens) == (32, 0, tokens)
    body, head = model.parameters - 104 * 32, 104 * 32  # 101 words, 3 special tokens, 32 wide; the head is tied
    forward = 2 * body * read + 2 * head * tokens + 32 * (2 * 2 * 32 * 73**2)  # attention: 2 layers, 2 heads of 16
    prompts = 2 * body * 64 + 2 * 2 * 32 * 64**2
    assert paper.step_flops == pytest.approx(
        {
            "sampling": forward - 32 * prompts + 4 * prompts,  # a prompt is read once for its eight completions
            "scoring": forward,
            "update": 3 * 2 * forward,
        }
    )
    assert paper.memory["gradients and AdamW"] == 12 * model.parameters and paper.memory["reference"] == 0
    assert paper.hours == pytest.approx(10 * seconds(work_of(config, model), H100).total / 3600)


def test_the_parameters_on_paper_are_the_models(quick_model, models):
    from aepo.model.policy import Policy

    for folder in (quick_model, models["qwen2"], models["llama"]):
        config = make_config(settings=[f"model='{folder}'", "policy.lora_rank=4"])
        policy = Policy.load(folder, settings=config.policy)
        trained = sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
        whole = sum(p.numel() for p in Policy.load(folder).model.parameters())
        assert (architecture(config).parameters, architecture(config).trained) == (whole, trained)


def test_aepos_extra_completions_are_counted(quick_model):
    config = make_config(settings=[f"model='{quick_model}'"])
    model = architecture(config)
    assert on_paper(config, model).extra == 128  # a quarter of 512, at a pass rate of 1
    work = work_of(config, model, Assumed(extra_accuracy=0.5))
    assert (work.ordinary, work.extra, work.scored, work.trained) == (512, 256, 640, 640)
    replacing = make_config(settings=[f"model='{quick_model}'", "control.join=replace"])
    work = work_of(replacing, model, Assumed(extra_accuracy=0.5, command=0.5))
    assert (work.ordinary, work.extra, work.scored, work.trained) == (512, 128, 576, 512)
    reweighted = work_of(make_config(method="aepo-reweighted", settings=[f"model='{quick_model}'"]), model)
    assert (reweighted.extra, reweighted.scored, reweighted.temperatures) == (0, 512, 1)
    settings = [f"model='{quick_model}'", "mismatch.correction=token_mask"]
    assert (work.temperatures, work_of(make_config(settings=settings), model).temperatures) == (0, 1)
    both = work_of(make_config(method="aepo+entropy-reg", settings=[f"model='{quick_model}'"]), model)
    assert (both.extra, both.kept) == (128, 1)


def test_a_dry_run_prints_and_writes_nothing(quick_model, tmp_path, capsys):
    dry_run(make_config(settings=[f"model='{quick_model}'"]))
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("parameters", "GiB", "GPU time", "sampled tokens"))
    assert "step (s)" not in shown
    dry_run(make_config(settings=[f"model='{quick_model}'"]), gpus=(1, 8), length=5)
    shown = capsys.readouterr().out
    assert "step (s)" in shown and "\n| 8 |" in shown and "of at most 640 x 9" in shown


def test_a_dry_run_refuses_what_cannot_be(quick_model):
    config = make_config(settings=[f"model='{quick_model}'"])
    with pytest.raises(InvalidValue, match=r"^lengths\.mean: got 10; must be from 1 to the limit \(9\)"):
        dry_run(config, length=10)
    with pytest.raises(InvalidValue, match="^gpus: got 0; must be at least 1"):
        dry_run(config, gpus=(0,))
    with pytest.raises(InvalidValue, match="^--gpus: got .*; must be together with --dry-run"):
        Train(gpus=(8,)).run()


def test_a_dry_run_of_a_model_that_is_not_there_is_one_line(tmp_path):
    command = [sys.executable, "-m", "aepo", "train", "--dry-run", "--set", f"model='{tmp_path}'"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 2 and result.stderr.startswith("aepo: model: got")
    assert len(result.stderr.strip().splitlines()) == 1 and not list(tmp_path.iterdir())
