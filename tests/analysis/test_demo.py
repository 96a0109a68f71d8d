"""The demonstration on a pretrained model: the whole of it on a tiny one, its budget, and its table."""

import json
import math
import re
from dataclasses import replace

import pytest
from transformers import PreTrainedTokenizerFast

from aepo import cli
from aepo.analysis import demo as module
from aepo.analysis.demo import Evaluated, Pace, next_count
from aepo.config import make_config
from aepo.training.checkpoint import steps_saved
from aepo.training.folder import read_rows
from aepo.training.processes import Job, launch
from tests.run_folders import row
from tests.tiny_models import TEMPLATE, byte_tokenizer, make_model

ARMS = ("grpo-seed0", "aepo-0.8x-seed0", "aepo-0.6x-seed0")


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["aepo", "demo", *arguments])
    cli.main()


def here(jobs, at_once) -> None:
    """Run the jobs in this process: each of nine processes would import everything again."""
    with pytest.MonkeyPatch.context() as patch:
        for job in jobs:
            if not job.finished:
                patch.setattr("sys.argv", job.command()[2:])
                cli.main()


@pytest.fixture
def small(monkeypatch) -> None:
    """Fewer and shorter completions, in this process."""
    monkeypatch.setattr(module, "launch", here)
    monkeypatch.setattr(module, "MODEL_PROBLEMS", 2)
    monkeypatch.setattr(module, "MODEL_SAMPLES", 2)
    smaller = ("sampling.prompts=2", "sampling.group_size=2", "task.max_response=4")
    monkeypatch.setattr(module, "MODEL_SETTINGS", (*module.MODEL_SETTINGS, *smaller))


def tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    found = byte_tokenizer()
    found.chat_template = template
    return found


@pytest.fixture(scope="module")
def talker(tmp_path_factory):
    """A random Llama whose tokenizer has a chat template."""
    folder = tmp_path_factory.mktemp("talker")
    return make_model(folder, tokenizer=tokenizer(), max_position_embeddings=512)


def test_the_whole_demonstration_and_its_continuation(talker, small, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    run(monkeypatch, "--model", str(talker), "--steps", "2", "--out", str(out))
    said = capsys.readouterr().out
    assert "measuring one step" in said
    assert re.search(r"a step of all 3 runs takes \d+ s; 1 of 2 steps are done; expected: \d+ s for the rest", said)
    for arm in ARMS:
        assert [found["step"] for found in read_rows(out / arm / "metrics.jsonl")] == [1, 2]
        config = make_config(out / arm / "config.toml")
        assert config.policy.lora_rank == 16 and config.sampling.prompts == 2
        assert type(config.task).__name__ == "Sentences" and config.task.style == "chat"
    targets = [read_rows(out / arm / "metrics.jsonl")[1]["target_entropy"] for arm in ARMS]
    first = read_rows(out / ARMS[0] / "metrics.jsonl")[0]["entropy"]
    assert targets == [None, pytest.approx(0.8 * first), pytest.approx(0.6 * first)]
    table = (out / "table.md").read_text()
    assert [line.split(" | ")[0] for line in table.splitlines()[:6]] == [
        *("| run", "| ---", "| base", "| GRPO", "| AEPO 0.8x", "| AEPO 0.6x")
    ]
    assert "pass@2 |" in table and "2 samples of each of 2 held-out problems" in table
    assert (out / "figure.png").stat().st_size > 0 and (out / "figure.svg").stat().st_size > 0

    # The same command again does nothing but the table; more steps prolong the same runs.
    with monkeypatch.context() as patch:
        patch.setattr(module, "launch", lambda *_: pytest.fail("a finished run was started"))
        patch.setattr(module, "evaluate_policy", lambda *_: pytest.fail("a known score was measured again"))
        run(patch, "--model", str(talker), "--steps", "2", "--out", str(out))
    assert (out / "table.md").read_text() == table
    run(monkeypatch, "--model", str(talker), "--steps", "3", "--out", str(out))
    assert [steps_saved(out / arm)[-1] for arm in ARMS] == [3, 3, 3]
    assert len(json.loads((out / "scores.json").read_text())) == 7  # the base, and the runs at two numbers of steps

    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "--model", str(make_model(tmp_path / "other", tokenizer=tokenizer())), "--out", str(out))
    assert end.value.code == 2
    assert "--out: got" in capsys.readouterr().err


def test_the_style_fits_the_model(llama, tmp_path):
    assert module._style(str(llama)) == ("task.style=plain",)
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
    folder = make_model(tmp_path / "m", tokenizer=tokenizer(refuses))
    assert module._style(str(folder)) == ("task.system_prompt=none",)


def test_the_whole_command_in_processes_of_its_own(talker, small, tmp_path):
    """One step in subprocesses, as a user has it; a job of more steps prolongs the run of its folder."""
    settings = [part for setting in (*module.MODEL_SETTINGS, f"model={talker}") for part in ("--set", setting)]
    job = Job(tmp_path / "run", ("--method", "grpo", *settings), 1)
    launch([job])
    assert job.finished and "--steps" not in job.command()
    longer = replace(job, steps=4)
    assert not longer.finished and longer.command()[-4:] == ["--resume", str(job.out), "--steps", "4"]


# --- the budget -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("done", "most", "left", "step", "then"),
    [
        (1, 60, math.inf, 100.0, 60),  # no limit
        (1, 60, 100_000.0, 100.0, 30),  # all 59 fit: half of them first
        (30, 60, 100_000.0, 100.0, 60),  # 30 steps take less than two rounds
        (1, 60, 7200.0, 600.0, 7),  # 12 fit
        (7, 60, 1900.0, 600.0, 10),  # 3 fit
        (7, 60, 599.0, 600.0, 7),  # none fits
        (7, 60, -50.0, 600.0, 7),  # the time is over
        (1, 60, 50.0, 0.0, 60),
    ],
)
def test_golden_next_number_of_steps(done, most, left, step, then):
    assert next_count(done, most, left, step) == then


class Clock:
    """Runs that write their rows at once, and a clock that they move on."""

    def __init__(self, monkeypatch, tmp_path, seconds: dict[str, float]) -> None:
        self.now, self.counts, self.folder, self.seconds = 0.0, [], tmp_path, seconds
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(module, "launch", self.launch)

    def jobs(self, count: int) -> list[Job]:
        return [Job(self.folder / name, (), count) for name in self.seconds]

    def launch(self, jobs, at_once) -> None:
        self.counts.append(jobs[0].steps)
        for job, seconds in zip(jobs, self.seconds.values(), strict=True):
            before = len(read_rows(job.out / "metrics.jsonl"))
            self.write(job.out, before, job.steps, seconds)
            self.now += (job.steps - before) * seconds / at_once

    def write(self, folder, before: int, steps: int, seconds: float) -> None:
        (folder / "checkpoints" / f"step-{steps}").mkdir(parents=True, exist_ok=True)
        rows = [row(number + 1, 1.0, seconds=seconds, seconds_sampling=0.0) for number in range(before, steps)]
        with (folder / "metrics.jsonl").open("a") as file:
            file.write("".join(json.dumps(found) + "\n" for found in rows))


@pytest.mark.parametrize(
    ("minutes", "steps"),
    [(None, 60), (1000.0, 60), (60.0, 36), (20.0, 11), (1.0, 1)],
)
def test_all_runs_do_as_many_steps_as_the_minutes_allow(minutes, steps, monkeypatch, tmp_path):
    """A step of all three takes 100 s on the clock; the first estimate of AEPO's steps is a quarter too long."""
    clock = Clock(monkeypatch, tmp_path, {"grpo": 100.0, "a": 100.0, "b": 100.0})
    module._do_steps(clock.jobs, 60, minutes, Evaluated(2, 2))
    assert clock.counts[0] == 1
    assert abs(clock.counts[-1] - steps) <= 1
    assert {len(read_rows(job.out / "metrics.jsonl")) for job in clock.jobs(1)} == {clock.counts[-1]}
    if minutes is not None and steps > 1:
        assert clock.now <= 60 * minutes + 1e-6
        assert clock.now > 60 * minutes * 0.8 or steps == 60


def test_a_slower_second_half_has_fewer_steps(monkeypatch, tmp_path):
    clock = Clock(monkeypatch, tmp_path, {"grpo": 100.0, "a": 100.0, "b": 100.0})
    launch = clock.launch

    def slower(jobs, at_once):
        launch(jobs, at_once)
        if jobs[0].steps > 1:
            clock.seconds = dict.fromkeys(clock.seconds, 300.0)

    monkeypatch.setattr(module, "launch", slower)
    module._do_steps(clock.jobs, 1000, 300.0, Evaluated(2, 2))
    assert clock.now <= 300 * 60 * 1.4  # the middle round was planned at the old pace
    assert clock.counts[-1] < 150  # 180 at the first pace


def test_runs_that_were_killed_catch_up_and_their_time_counts(monkeypatch, tmp_path, capsys):
    clock = Clock(monkeypatch, tmp_path, {"grpo": 100.0, "a": 100.0, "b": 100.0})
    for name, steps in (("grpo", 9), ("a", 5), ("b", 7)):
        clock.write(tmp_path / name, 0, steps, 100.0)
    assert Pace.read(clock.jobs(1)).steps == 5 and Pace.read(clock.jobs(1)).spent == pytest.approx(700.0)
    module._do_steps(clock.jobs, 60, 13.0, Evaluated(2, 2))
    assert clock.counts == [9]
    assert "5 of 60 steps are done" in capsys.readouterr().out


def test_golden_pace(tmp_path):
    """GRPO's step 100 s, AEPO's 1.25 times that before it has acted; three at once."""
    for name in ARMS:
        (tmp_path / name / "checkpoints" / "step-1").mkdir(parents=True)
        found = row(1, 1.0, seconds=100.0, seconds_sampling=16.0, completions=64)
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(found) + "\n")
    pace = Pace.read([Job(tmp_path / name, (), 1) for name in ARMS])
    assert (pace.steps, pace.farthest, pace.spent) == (1, 1, pytest.approx(100.0))
    assert pace.step == pytest.approx((100 + 125 + 125) / 3)
    assert pace.evaluation(Evaluated(48, 16)) == pytest.approx(0.25 * 48 * 16 * 4)


# --- mistakes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--minutes 5", "--minutes: got 5.0; must be left out with the built-in model"),
        ("--model nowhere/at-all --steps 0", "--steps: got 0"),
        ("--model MODEL --minutes 0", "--minutes: got 0.0"),
        ("--model MODEL --out MODEL/config.json", "--out: got "),
    ],
)
def test_mistakes_are_one_line(arguments, line, talker, monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, *arguments.replace("MODEL", str(talker)).split())
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"aepo: {line}")
