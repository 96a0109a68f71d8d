"""Runs on pictures: what a run writes and resumes, that a control holds the entropy, and that every control runs."""

import json
import random
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from aepo.analysis.export import export
from aepo.config import Config, make_config
from aepo.control.base import Needs
from aepo.errors import InvalidValue
from aepo.evaluation.options import Options
from aepo.evaluation.run import run as evaluate_command
from aepo.methods import METHODS
from aepo.model.policy import Policy
from aepo.planning.dry_run import dry_run
from aepo.sampling.prompts import made_prompt, take_prompts
from aepo.tasks import Pictures
from aepo.training import runner
from aepo.training.checkpoint import TrainState
from aepo.training.step import train_step
from aepo.types import Completion, Rollout, Sample
from tests.tiny_vision import FAMILIES, make_vision_model, vision_tokenizer
from tests.training.test_step import make_run, metrics, same_weights, weights

LETTERS = "0123456789what?"
PICTURES = ("task=pictures", "task.style=plain", "task.kinds=['bars']", "task.sides=[16,24]", "task.max_response=1")
SMALL = ("threads=1", "sampling.prompts=4", "sampling.group_size=4", "optimizer.lr=1e-3", "optimizer.warmup=0")
RARE = ("evaluation.every=2", "evaluation.prompts=3", "evaluation.samples=2", "checkpoint.every=2")


def job(model: Path, method: str = "aepo", *settings: str) -> Config:
    return make_config(method=method, settings=[*SMALL, *RARE, *PICTURES, f"model='{model}'", *settings])


@pytest.fixture(scope="module")
def answering(tmp_path_factory) -> Path:
    """A model that answers each question with one of the possible numbers, at random."""
    folder = make_vision_model(
        tmp_path_factory.mktemp("answering"), tokenizer=vision_tokenizer(LETTERS), initializer_range=0.1
    )
    policy, draw = Policy.load(folder), random.Random(0)
    task = Pictures(kinds=("bars",), sides=(16, 24), style="plain", max_response=1)
    optimizer = torch.optim.Adam(policy.model.parameters(), lr=5e-3)
    for step in range(30):
        prompts = take_prompts(task, policy, 9, 16 * step, 16)
        answers = [policy.encode(draw.choice("12345")) for _ in prompts]
        rows = [
            Sample(Rollout(Completion(prompt, 0, 1.0, answer, (0.0,), True), 0.0), 0.0)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        (-policy.statistics(policy.collate(rows), Needs()).logprobs.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    policy.save(folder)
    return folder


# --- a run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapter", [(), ("policy.lora_rank=2",)])
def test_a_resumed_run_is_equal_to_the_bit(family, adapter, tmp_path, monkeypatch):
    monkeypatch.setattr(Pictures, "reward", lambda self, problem, text, truncated: float(sum(text.encode()) % 2))
    model = make_vision_model(tmp_path / "model", family, vision_tokenizer(LETTERS))
    runner.start(job(model, "aepo", "steps=4", *adapter), tmp_path / "whole", quiet=True)
    runner.start(job(model, "aepo", "steps=2", *adapter), tmp_path / "parts", quiet=True)
    runner.resume(tmp_path / "parts", quiet=True, settings=["steps=4"])
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    if adapter:
        name = "checkpoints/step-4/adapter_model.safetensors"
        assert same_weights(*(load_file(tmp_path / run / name) for run in ("whole", "parts")))
    else:
        assert same_weights(weights(tmp_path / "whole", 4), weights(tmp_path / "parts", 4))
        tower = [name for name in weights(tmp_path / "whole", 4) if "visual" in name]
        before = load_file(model / "model.safetensors")
        assert tower and any(not torch.equal(before[name], weights(tmp_path / "whole", 4)[name]) for name in tower)
    shown = json.loads((tmp_path / "whole" / "samples.jsonl").read_text().splitlines()[0])["prompt_text"]
    assert shown.count("<|image_pad|>") == 1


def test_rows_that_a_control_keeps_find_their_images_again_after_a_stop(answering, tmp_path):
    """EFRAME trains again on rows of earlier steps; a checkpoint holds the images of those that it keeps."""
    settings = ("control.replay_freq=3", "control.replay_threshold=0.0", "sampling.group_size=8")
    runner.start(job(answering, "eframe", "steps=4", *settings), tmp_path / "whole", quiet=True)
    runner.start(job(answering, "eframe", "steps=2", *settings), tmp_path / "parts", quiet=True)
    checkpoint = tmp_path / "parts" / "checkpoints" / "step-2"
    rows = json.loads((checkpoint / "state.json").read_text())["control"]["buffer"]
    assert rows and all(len(row["images"]) == 1 for row in rows)
    kept = {digest for row in rows for digest in row["images"]}
    assert {file.name for file in checkpoint.glob("*.png")} == {f"image-{digest}.png" for digest in kept}
    runner.resume(tmp_path / "parts", quiet=True, settings=["steps=4"])
    assert same_weights(weights(tmp_path / "whole", 4), weights(tmp_path / "parts", 4))


def test_an_exported_run_reads_images_as_the_run_did(answering, tmp_path):
    settings = ("steps=1", "evaluation.every=0", "policy.lora_rank=2", "policy.max_pixels=256")
    runner.start(job(answering, "grpo", *settings), tmp_path / "run", quiet=True)
    policy = Policy.load(export(tmp_path / "run", tmp_path / "out", None, None, None))
    assert policy.adapter is None and policy.images.processor.size["longest_edge"] == 256


def test_the_dry_run_counts_the_tokens_of_images(answering, capsys):
    dry_run(job(answering))
    lines = capsys.readouterr().out
    policy = Policy.load(answering)
    first = job(answering).task.train_problem(0, 0)
    tokens, own = len(policy.encoding.prompt(first)), policy.images.count(first.images[0])
    assert f"the first prompt has {tokens} tokens, {own} of them of images" in lines and own >= 4
    assert "Qwen2_5_VLForConditionalGeneration" in lines


def test_the_dry_run_counts_no_adapter_on_the_vision_tower(answering, capsys):
    settings = ("policy.lora_rank=2", "policy.lora_targets=['q_proj', 'down_proj']")
    trained = []
    for more in ((), ("policy.vision_tower=trained",)):
        policy = Policy.load(answering, settings=job(answering, "aepo", *settings, *more).policy)
        dry_run(job(answering, "aepo", *settings, *more))
        trained.append(sum(p.numel() for p in policy.model.parameters() if p.requires_grad))
        assert f"{trained[-1]:,} of them trained" in capsys.readouterr().out
    assert trained[0] < trained[1]


def rows_file(folder: Path) -> Path:
    problems = Pictures(kinds=("bars",), sides=(16, 24), style="plain").eval_problems(4)
    records = []
    for number, problem in enumerate(problems):
        problem.images[0].load().save(folder / f"{number}.png")
        records.append({"problem": problem.text, "answer": problem.data["answer"], "images": [f"{number}.png"]})
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def test_evaluate_judges_rows_with_images_and_tasks(answering, tmp_path):
    file = rows_file(tmp_path)
    options = Options(str(answering), data=file, prompt="plain", n=4, max_tokens=2, temperature=1.0, out=tmp_path / "a")
    result = evaluate_command(options)
    assert result["results"][0]["completions"] == 16
    settings = (*PICTURES[1:], "evaluation.prompts=3")
    options = Options(str(answering), task="pictures", set=settings, n=8, temperature=1.0, out=tmp_path / "b")
    assert evaluate_command(options)["results"][0]["completions"] == 24


def test_lengths_count_the_tokens_of_images(answering, tmp_path):
    file = rows_file(tmp_path)
    data = ("task=data", f"task.train='{file}'", "task.style=plain", "task.held_out=0", "evaluation.every=0")
    policy = Policy.load(answering)
    [problem] = Pictures(kinds=("bars",), sides=(16, 24), style="plain").eval_problems(1)
    most = len(policy.encode(problem.text.replace("<image>", ""))) + 3
    assert most < len(made_prompt(policy, problem).tokens)
    config = make_config(settings=[*data, f"model='{answering}'", f"task.max_prompt={most}"])
    with pytest.raises(InvalidValue, match=rf"tokens in row .* too long\)'; must be at most task.max_prompt = {most}"):
        dry_run(config)


def test_vllm_is_refused_in_one_line(answering, monkeypatch):
    monkeypatch.setattr(runner, "check_machine", lambda config: None)
    config = job(answering, "aepo", "sampling.engine=vllm")
    with pytest.raises(InvalidValue, match=r"sampling.engine: got 'vllm'; must be hf with a model of images"):
        runner.make_sampler(Policy.load(answering), config)


# --- the entropy --------------------------------------------------------------------------------------------

TARGET, STEPS = 1.2, 44
HOLD = (f"control.target={TARGET}", "control.approach=0", "control.weight=6", "control.distribution.high=2")
SHARES = ("control.count_high=0.5", "control.count_low=0.5")


def entropies(model: Path, method: str, *settings: str) -> list[float]:
    learning = ("sampling.group_size=16", "optimizer.minibatches=1", "optimizer.lr=3e-3", f"steps={STEPS}")
    run = make_run(job(model, method, *learning, *settings))
    state, read = TrainState(control=run.algorithm.control.initial_state()), []
    for _ in range(STEPS):
        state, row, _ = train_step(run, state)
        read.append(row["entropy"])
    return read


def test_aepo_holds_the_entropy_on_pictures_and_grpo_does_not(answering):
    late = slice(-STEPS // 3, None)
    grpo = statistics.mean(entropies(answering, "grpo")[late])
    sampled = statistics.mean(entropies(answering, "aepo", *HOLD, *SHARES)[late])
    reweighted = statistics.mean(entropies(answering, "aepo", *HOLD, *SHARES, "control.positives=reweighted")[late])
    assert grpo < TARGET - 0.25, (grpo, sampled, reweighted)
    assert abs(sampled - TARGET) < 0.2 and abs(reweighted - TARGET) < 0.2


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_on_pictures(method, answering):
    run = make_run(job(answering, method, "steps=2", "evaluation.every=0"))
    run = replace(run, reference=Policy.load(answering).frozen())
    state, seen = TrainState(control=run.algorithm.control.initial_state()), []
    for _ in range(2):
        state, row, samples = train_step(run, state)
        seen += [sample.rollout.completion.prompt for sample in samples]
    assert state.step == 2 and row["entropy"] > 0 and seen and all(prompt.images for prompt in seen)
    assert all(parameter.isfinite().all() for parameter in run.policy.model.parameters())
