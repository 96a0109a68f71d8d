"""Runs on a user's own rows, reward functions and tasks."""

import json
import math
import os
from pathlib import Path

import pytest
import torch

from aepo.config import make_config, read_toml
from aepo.errors import InvalidValue, RunDiedError
from aepo.training import runner
from aepo.training.checkpoint import steps_saved
from aepo.training.preflight import implausible_rate

SMALL = ["threads=1", "sampling.prompts=3", "sampling.group_size=4", "evaluation.every=0", "checkpoint.every=1"]


def rows(folder: Path, count: int = 12) -> Path:
    file = folder / "rows.jsonl"
    lines = [json.dumps({"problem": f"{n} 42 :", "answer": str(n), "level": n}) for n in range(count)]
    file.write_text("\n".join(lines))
    return file


def config(model, folder, source, *settings, method="aepo", steps=3):
    (folder / "mine.py").write_text(source)
    data = ["task=data", f"task.train={rows(folder)}", "task.style=plain", "task.max_response=6", "task.held_out=2"]
    if "task.rewards" not in "".join(settings):
        data += ["task.verifier=function", f"task.verifier.path={folder / 'mine.py'}:f"]
    return make_config(method=method, settings=[*SMALL, f"model='{model}'", f"steps={steps}", *data, *settings])


def logged(run: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


GRADED = "def f(completions, **kw):\n    return [0.4 * (len(c) % 2) for c in completions]\n"


def test_aepo_uses_positives_of_rewards_that_never_exceed_one_half(quick_model, tmp_path, capsys):
    settings = ["control.target=5.0", "control.start=hot"]
    runner.start(config(quick_model, tmp_path, GRADED, *settings), tmp_path / "run")
    assert sum(row["extra_used"] for row in logged(tmp_path / "run")) > 0
    assert "reward > 0.5 or the function's own verdict" in capsys.readouterr().out
    absolute = config(quick_model, tmp_path, GRADED, *settings, "task.right=0.5")
    runner.start(absolute, tmp_path / "other")
    assert sum(row["extra_used"] for row in logged(tmp_path / "other")) == 0
    assert "the control aepo has no positives until one is" in capsys.readouterr().out


def test_several_functions_are_logged_by_name_with_what_they_log(quick_model, tmp_path):
    source = (
        "def even(completions, log_extra, log_metric, **kw):\n    log_extra('size', [len(c) for c in completions])\n"
    )
    source += "    log_metric('calls', 1.0)\n    return [float(len(c) % 2 == 0) for c in completions]\n"
    source += "def level(completions, level, **kw):\n    return [n / 12 for n in level]\n"
    paths = json.dumps([f"{tmp_path / 'mine.py'}:even", f"{tmp_path / 'mine.py'}:level"])
    settings = [f"task.rewards={paths}", "task.reward_weights=[1.0,0.5]"]
    runner.start(config(quick_model, tmp_path, source, *settings, method="grpo"), tmp_path / "run", quiet=True)
    for row in logged(tmp_path / "run"):
        assert row["reward"] == pytest.approx(row["rewards"]["even"] + 0.5 * row["rewards"]["level"])
        assert row["reward_metrics"] == {"calls": 1.0}
    sample = logged(tmp_path / "run", "samples.jsonl")[0]
    assert (sample["logged"]["size"] % 2 == 0) == sample["rewards"]["even"] and set(sample["rewards"]) == {
        "even",
        "level",
    }
    assert sample["prompt_text"].endswith("42 :") and sample["answer"] == sample["prompt_text"].split()[0]


FLAKY = "import pathlib\nfile = pathlib.Path({!r})\ndef f(completions, **kw):\n    n = len(file.read_text())\n"
FLAKY += "    file.write_text('x' * (n + 1))\n    if n in {}:\n        raise OSError('away')\n"
FLAKY += "    return [float(len(c) % 2) for c in completions]\n"


def test_a_step_without_any_reward_is_skipped_and_the_run_goes_on(quick_model, tmp_path, capsys):
    (tmp_path / "calls").write_text("")
    source = FLAKY.format(str(tmp_path / "calls"), [2])  # call 0 is before training
    quiet = config(quick_model, tmp_path, source, "task.verifier.retries=0", method="grpo", steps=4)
    runner.start(quiet, tmp_path / "run")
    found = logged(tmp_path / "run")
    assert [row["reward"] is None for row in found] == [False, True, False, False]
    assert found[1]["reward_failures"] == 12 and "OSError: away at mine.py" in found[1]["reward_error"]
    said = capsys.readouterr().out
    assert "skipped: no completion got a reward" in said and "OSError: away at mine.py" in said


def test_a_run_without_rewards_ends_and_names_its_last_sound_checkpoint(quick_model, tmp_path):
    (tmp_path / "calls").write_text("")
    source = FLAKY.format(str(tmp_path / "calls"), list(range(3, 99)))
    dying = config(quick_model, tmp_path, source, "task.verifier.retries=0", method="grpo", steps=50)
    with pytest.raises(RunDiedError, match=r"no completion got a reward in 3 steps in a row, from step 3 on; .*-2$"):
        runner.start(dying, tmp_path / "run", quiet=True)
    assert len(logged(tmp_path / "run")) == 5


def test_a_run_whose_gradients_are_not_finite_ends(quick_model, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(math.nan))
    dying = config(quick_model, tmp_path, GRADED, method="grpo", steps=50)
    with pytest.raises(RunDiedError, match="no update had a finite gradient in 3 steps in a row, from step 1 on; th"):
        runner.start(dying, tmp_path / "run", quiet=True)


def test_a_function_that_always_fails_is_refused_before_the_run(quick_model, tmp_path):
    broken = config(quick_model, tmp_path, "def f(completions, **kw):\n    return completions[0].nothing\n")
    with pytest.raises(InvalidValue, match=r"reward: got .*before training: AttributeError.* at mine\.py:2, for "):
        runner.start(broken, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_the_same_reward_for_every_completion_is_said(quick_model, tmp_path, capsys):
    flat = config(quick_model, tmp_path, "def f(completions, **kw):\n    return [0.25] * len(completions)\n", steps=6)
    runner.start(flat, tmp_path / "run")
    said = capsys.readouterr().out
    assert "the reward is 0.25 for every one of" in said
    assert said.count("the reward has been 0.25 for every completion of 5 steps") == 1


def test_a_resume_on_other_data_is_refused(quick_model, tmp_path):
    longer = config(quick_model, tmp_path, GRADED, method="grpo", steps=2)
    runner.start(longer, tmp_path / "run", quiet=True)
    (tmp_path / "run" / "config.toml").write_text(
        (tmp_path / "run" / "config.toml").read_text().replace("\nsteps = 2\n", "\nsteps = 3\n")
    )
    text = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(text.replace('"answer": "3"', '"answer": "4"'))
    with pytest.raises(InvalidValue, match=r"^resume: got 'data [0-9a-f]{12}'; must be the data that the run was trai"):
        runner.resume(tmp_path / "run", quiet=True)
    (tmp_path / "rows.jsonl").write_text(text)
    runner.resume(tmp_path / "run", quiet=True)
    assert steps_saved(tmp_path / "run")[-1] == 3


def test_paths_are_kept_absolute(quick_model, tmp_path, monkeypatch):
    rows(tmp_path)
    (tmp_path / "mine.py").write_text(GRADED)
    monkeypatch.chdir(tmp_path)
    settings = ["task=data", "task.train=rows.jsonl", "task.verifier=function", "task.verifier.path=mine.py:f"]
    found = make_config(settings=[*SMALL, *settings, f"model={os.path.relpath(quick_model)}"])
    assert found.task.train == str(tmp_path / "rows.jsonl") and found.model == str(quick_model)
    assert found.task.verifier.path == f"{tmp_path / 'mine.py'}:f"


def test_a_run_without_evaluation_needs_no_evaluation_set(quick_model, tmp_path):
    file = rows(tmp_path, 1)
    found = make_config(settings=[*SMALL, "task=data", f"task.train={file}"])
    assert found.task.facts() == {
        "rows_read": 1,
        "rows_train": 1,
        "rows_evaluation": 0,
        "rows_shared": 0,
        "rows_repeated": 0,
    }
    with pytest.raises(InvalidValue, match=r"^evaluation\.prompts: got 100; .*evaluation\.every=0"):
        make_config(settings=["task=data", f"task.train={file}"])


OWN = """
from dataclasses import dataclass
from aepo.tasks import Problem, Task

@dataclass(frozen=True)
class Even(Task):
    '''Write an even number of characters.'''
    length: int = 6

    @property
    def max_tokens(self):
        return self.length

    def train_problem(self, seed, index):
        return Problem(f"p{index}", f"{index % 90} 42 :", {})

    def eval_problems(self, count):
        return [Problem(f"e{index}", f"{index} 41 :", {}) for index in range(count)]

    def reward(self, problem, text, truncated):
        return float(len(text) % 2 == 0)
"""


def test_a_task_of_ones_own_trains_and_resumes(quick_model, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    settings = [*SMALL, f"task={tmp_path / 'own.py'}:Even", "task.length=4", f"model='{quick_model}'", "steps=2"]
    runner.start(make_config(settings=settings), tmp_path / "run", quiet=True)
    assert read_toml(tmp_path / "run" / "config.toml")["task"] == {"name": f"{tmp_path / 'own.py'}:Even", "length": 4}
    runner.resume(tmp_path / "run", quiet=True)
    assert len(logged(tmp_path / "run")) == 2


@pytest.mark.parametrize(
    ("task", "words"),
    [("own.py:Odd", "importable"), ("own.py:Problem", "a frozen dataclass that subclasses aepo.tasks.base.Task")],
)
def test_a_task_that_is_none_is_refused(tmp_path, task, words):
    (tmp_path / "own.py").write_text(OWN)
    with pytest.raises(InvalidValue, match=rf"^task\.name: got .*{words}"):
        make_config(settings=[f"task={tmp_path / task}"])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("device=cuda", "device: got 'cuda'; must be auto or cpu: torch sees no GPU here"),
        ("sampling.engine=vllm", "sampling.engine: got 'vllm'; must be hf, or vllm with `pip install"),
    ],
)
def test_what_this_machine_lacks_is_refused_before_any_work(quick_model, tmp_path, monkeypatch, setting, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidValue, match=words):
        runner.start(config(quick_model, tmp_path, GRADED, setting), tmp_path / "run", quiet=True)


@pytest.mark.parametrize(
    ("lr", "parameters", "lora", "words"),
    [
        (1e-5, 7e9, False, None),
        (1e-4, 7e9, True, None),
        (3e-4, 1e5, False, None),
        (1000.0, 1e5, False, "above what trains a model of this size"),
        (3e-4, 7e9, False, "above what trains full fine-tuning"),
        (1e-12, 7e9, True, "below what trains LoRA"),
    ],
)
def test_a_learning_rate_that_cannot_be_meant_gets_a_sentence(lr, parameters, lora, words):
    found = implausible_rate(lr, int(parameters), lora)
    assert (not found) if words is None else words in found[0]
