import json
import math
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from aepo.analysis.compare.results import Result, compared, measured
from aepo.analysis.compare.run import _print as print_tables
from aepo.analysis.compare.run import compare, most_tokens
from aepo.analysis.compare.study import read_study
from aepo.analysis.compare.table import caption, markdown
from aepo.config import make_config
from aepo.errors import InvalidValue
from aepo.evaluation.statistics import crossed_interval, most_covered
from aepo.planning.dry_run import most_extra
from aepo.training import runner
from aepo.training.checkpoint import steps_saved
from aepo.training.folder import being_written, sole_writer
from aepo.training.processes import Job
from tests.run_folders import folder
from tests.training.test_step import metrics, small

# --- statistics ---------------------------------------------------------------------------------------------


def test_golden_an_interval_of_two_problems():
    """Means of two draws from 0 and 1 are 0, 1/2 and 1 with chances 1/4, 1/2 and 1/4."""
    found = crossed_interval(np.array([[0.0, 1.0]]))
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)
    assert crossed_interval(np.array([[0.3]])).low is None


def test_golden_the_spread_of_a_crossed_draw():
    """Values s + p: the variance of the drawn mean is var(s)/S + var(p)/P, variances as of the whole population."""
    seeds, problems = np.array([0.0, 0.3, 0.1, 0.7]), np.linspace(-1, 1, 40)
    found = crossed_interval(seeds[:, None] + problems[None, :])
    width = 2 * 1.96 * math.sqrt(seeds.var() / 4 + problems.var() / 40)
    assert found.high - found.low == pytest.approx(width, rel=0.05)


def test_pairing_takes_out_what_both_share():
    draw = np.random.default_rng(0)
    mine = draw.random((3, 50))
    assert crossed_interval(mine).high - crossed_interval(mine).low > 0.05
    found = crossed_interval(mine - (mine - 0.1))
    assert found.low == pytest.approx(0.1) and found.high == pytest.approx(0.1)


@pytest.mark.parametrize(("seeds", "low", "high"), [(3, 0.62, 0.86), (10, 0.85, 0.99)])
def test_coverage_with_few_and_many_seeds(seeds, low, high):
    """Where all the spread is between seeds, three of them cover three quarters at most."""
    draw, covered = np.random.default_rng(1), 0
    for _ in range(150):
        found = crossed_interval(np.broadcast_to(draw.standard_normal((seeds, 1)), (seeds, 5)))
        covered += found.low <= 0 <= found.high
    assert low <= covered / 150 <= high
    assert most_covered(3) == 0.75 and most_covered(2) == 0.5


# --- results ------------------------------------------------------------------------------------------------


def row(step, entropy, target=None, completions=8):
    return {
        "step": step,
        "entropy": entropy,
        "error": None if target is None else target - entropy,
        "target_entropy": target,
        "saturated": 0.0,
        "completions": completions,
        "extra_completions": 0,
        "tokens": 10 * completions,
        "seconds_cpu": 0.5,
    }


def result(correct, entropies, target=None):
    rows = [row(step, entropy, target) for step, entropy in enumerate(entropies)]
    return Result(("a", "b"), tuple(correct), 4, rows)


def test_golden_paired_differences():
    """pass@1: (2/4 + 4/4)/2 against (1/4 + 3/4)/2; pass@4: both problems against both; entropy 0.5 against 0.2."""
    found = compared("grpo", {"grpo": [result((1, 3), [0.9, 0.2])], "aepo 0.6": [result((2, 4), [0.9, 0.5], 0.6)]})
    mine = found.arms["aepo 0.6"]
    assert mine["pass@1"].value.mean == 0.75 and mine["pass@1"].difference.mean == pytest.approx(0.25)
    assert (mine["pass@1"].difference.low, mine["pass@1"].difference.high) == (0.25, 0.25)
    assert mine["pass@4"].value.mean == 1.0 and mine["pass@4"].difference.mean == 0.0
    assert mine["entropy"].difference.mean == pytest.approx(0.3)
    # |0.6 - 0.5|, and the baseline's |0.6 - 0.2| against the same target.
    assert mine["tracking_error"].value.mean == pytest.approx(0.1)
    assert mine["tracking_error"].difference.mean == pytest.approx(0.1 - 0.4)
    assert mine["tokens"].value.mean == 160 and "tracking_error" not in found.arms["grpo"]
    assert found.arms["grpo"]["pass@1"].difference is None
    text = markdown(found, "completions", 16, [0])
    assert "| aepo 0.6 | 0.750 (+0.250, +0.250 to +0.250) | 1.000 (+0.000" in text and "One seed" in text
    assert "covers 75% at most" in caption(found, "completions", 16, [0, 1, 2])


def test_evaluations_that_differ_are_not_compared():
    other = Result(("a", "c"), (1, 1), 4, [row(0, 0.5)])
    with pytest.raises(InvalidValue, match="the same problems"):
        compared("x", {"x": [result((1, 1), [0.5])], "y": [other]})


# --- the file -----------------------------------------------------------------------------------------------

FILE = """
cost = "completions"
budget = 60
methods = ["grpo", {{method = "aepo", label = "switch", set = {{control.law = "switch"}}}}, "aepo"]
targets = [0.4, "0.5x"]
seeds = [3, 4]
{more}
[base]
model = '{model}'
sampling = {{prompts = 6, group_size = 4}}
optimizer.minibatches = 2
checkpoint.every = 1
[evaluation]
prompts = 4
samples = 4
"""


def write(path, model, more="", **changes):
    text = FILE.format(model=model, more=more)
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


def test_methods_times_targets_times_seeds(tmp_path):
    study = read_study(write(tmp_path / "c.toml", "builtin"), tmp_path / "out")
    assert [arm.label for arm in study.arms] == ["grpo", "switch 0.4", "switch 0.5x", "aepo 0.4", "aepo 0.5x"]
    assert [run.out.name for run in study.runs[4:6]] == ["aepo-0.5x-seed3", "grpo-seed4"]
    assert study.baseline == "grpo" and len(study.runs) == 10
    for run in study.runs:
        config = run.config
        # 60 completions at 24 a step are three steps.
        assert (config.steps, config.budget_completions, config.budget_tokens) == (3, 60, None)
        assert config.seed in (3, 4) and config.sampling.prompts == 6 and config.evaluation.prompts == 4
    switch, plain = study.of(study.arms[1])[0].config, study.of(study.arms[4])[0].config
    assert (switch.control.law.name, switch.control.target.spec) == ("switch", "0.4")
    assert (plain.control.law.name, plain.control.target.spec) == ("self-tuning", "0.5x")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('"completions"', '"hours"'), "cost: got 'hours'; must be completions or tokens"),
        (("budget = 60", "budget = 0"), "budget: got 0"),
        (("[3, 4]", "[3, 3]"), "seeds: got"),
        (('"grpo", ', '"grpo", "grpo", '), "methods: got 'grpo'; must be labels that differ"),
        (('"grpo", ', '"grp", '), "did you mean|method: got 'grp'"),
        (("control.law", "optimizr.lr"), "setting: got 'optimizr', which is unknown"),
        (("control.law", "task.numbers"), "methods.set.task.numbers"),
        (("checkpoint.every = 1", "seed = 1"), "base.seed: got 1; must be left out"),
        (("checkpoint.every = 1", "control.target = 1"), "base.control"),
        (("[3, 4]", '[3, 4]\nbaseline = "sac"'), "baseline: got 'sac'"),
        (("[3, 4]", "[3, 4]\nsteps = 3"), "steps: got 3; must be one of cost, budget"),
        (("samples = 4", "samples = 4\nevery = 0"), "evaluation.every: got 0"),
        (("targets = [0.4,", "targets = [-1,"), "target: got '-1'"),
        (("targets = [0.4,", "targets = [[1],"), r"targets: got .*; must be a list of targets such as \[0.5"),
        (('label = "switch"', 'targets = "0.5"'), "methods.targets: got '0.5'; must be a list of targets"),
        (('label = "switch"', "targets = 0.5"), "methods.targets: got 0.5"),
        (('label = "switch"', "label = 3"), "methods.label: got 3; must be a text"),
        (('label = "switch"', 'label = "???"'), r"methods.label: got '\?\?\?'"),
        (('set = {control.law = "switch"}', "set = 3"), "methods.set: got 3; must be a table"),
    ],
)
def test_a_file_that_cannot_work_is_refused_in_one_line(change, words, tmp_path):
    file = write(tmp_path / "c.toml", "builtin", change=change)
    with pytest.raises(InvalidValue, match=words) as error:
        read_study(file, tmp_path / "out")
    assert len(str(error.value).splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["base", "evaluation"])
def test_a_number_for_a_table_is_refused(key, tmp_path):
    (tmp_path / "c.toml").write_text(f'cost = "tokens"\nbudget = 9\nmethods = ["grpo"]\n{key} = 3\n')
    with pytest.raises(InvalidValue, match=f"{key}: got 3; must be a table of settings"):
        read_study(tmp_path / "c.toml", tmp_path / "out")


def test_golden_the_most_tokens_count_the_last_step_whole():
    """24 completions a step, of 9 tokens at most, and AEPO at full command draws as many again."""
    sizes = ("sampling.prompts=6", "sampling.group_size=4")
    grpo, aepo = (make_config(method=method, settings=sizes) for method in ("grpo", "aepo"))
    assert (most_extra(grpo), most_extra(aepo), grpo.task.max_tokens) == (0, 24, 9)
    assert most_tokens(grpo, "completions", 60) == 3 * 24 * 9
    # At 59 completions the last step begins.
    assert most_tokens(aepo, "completions", 60) == (59 + 48) * 9
    assert most_tokens(grpo, "tokens", 60) == 59 + 24 * 9


def test_the_plan_says_the_most_tokens_and_which_it_cannot_know(quick_model, tmp_path, capsys):
    drop = ('{method = "aepo", label = "switch", set = {control.law = "switch"}}, "aepo"', '"dynamic-sampling"')
    file = write(tmp_path / "c.toml", quick_model, drop=drop, one=("seeds = [3, 4]", "seeds = [3]"))
    compare(file, tmp_path / "out", dry_run=True)
    assert "at most 1,296 tokens and what further rounds in the last steps draw;" in capsys.readouterr().out


def test_labels_stay_text_in_the_table():
    """A label is the user's own, but a pull request shows the table."""
    found = compared("a|b", {"a|b": [result((1, 3), [0.5])], "<b>x\ny": [result((2, 4), [0.5])]})
    *table, _, below = markdown(found, "completions", 16, [0]).splitlines()
    assert len(table) == 4 and table[2].startswith("| a\\|b |") and table[3].startswith("| &lt;b&gt;x y |")
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {11} and "the difference to a\\|b," in below


def test_a_label_in_brackets_is_no_style_in_the_terminal(capsys):
    found = compared("[b]a", {"[b]a": [result((1, 3), [0.5])]})
    print_tables(found, SimpleNamespace(unit="completions", budget=16, seeds=[0]))
    assert capsys.readouterr().out.count("[b]a") == 3


def test_the_table_of_a_terminal_fits_80_columns_and_has_the_brackets_of_its_caption(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    runs = {name: [result((1, 3), [0.5]), result((2, 4), [0.6])] for name in ("grpo", "aepo 0.6x")}
    print_tables(compared("grpo", runs), SimpleNamespace(unit="completions", budget=16, seeds=[0, 1]))
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "In brackets: the difference to grpo" in " ".join(" ".join(lines).split())
    start = next(number for number, line in enumerate(lines) if line.strip().startswith("aepo 0.6x"))
    for line, cell in zip(lines[start + 1 : start + 4], ("(+0.000,", "+0.000 to", "+0.000)"), strict=True):
        assert line.count(cell) == 3  # pass@1, pass@k, entropy: the arms are equal


def test_a_run_of_another_version_is_refused_in_one_line(tmp_path):
    run = folder(tmp_path / "r", [row(0, 0.5), {**row(1, 0.5), "seconds_cpu": None}])
    for last, words in (
        ({"step": 1, "problems": ["a"], "correct": [1], "samples": 2}, "step 1 without seconds_cpu"),
        ({"step": 1, "problems": ["a"]}, "step 1 without correct, samples"),
    ):
        (run / "evaluations.jsonl").write_text(json.dumps(last) + "\n")
        with pytest.raises(InvalidValue, match=f"{words}'; must be rows of this version"):
            measured(run)


# --- runs ---------------------------------------------------------------------------------------------------


def test_a_budget_ends_a_run_and_resuming_keeps_to_it(quick_model, tmp_path):
    """24 completions a step: 60 are reached in the third. Taken back to its first checkpoint, it ends the same."""
    config = small(quick_model, "aepo", 50, "budget_completions=60", "checkpoint.every=1", "checkpoint.keep=9")
    runner.start(config, tmp_path / "run", quiet=True)
    rows = metrics(tmp_path / "run")
    drawn = np.cumsum([row["completions"] for row in rows])
    assert drawn[-1] >= 60 > drawn[-2] and "evaluation" in rows[-1]
    job = Job(tmp_path / "run", (), 50, ("completions", 60))
    assert job.finished and not Job(tmp_path / "run", (), 50).finished
    evaluations = (tmp_path / "run" / "evaluations.jsonl").read_text()
    for step in steps_saved(tmp_path / "run")[1:]:
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{step}")
    assert not job.finished
    runner.resume(tmp_path / "run", quiet=True)
    assert metrics(tmp_path / "run") == rows and job.finished
    assert (tmp_path / "run" / "evaluations.jsonl").read_text() == evaluations


def test_a_budget_of_tokens(quick_model, tmp_path):
    runner.start(small(quick_model, "grpo", 50, "budget_tokens=300"), tmp_path / "run", quiet=True)
    drawn = np.cumsum([row["tokens"] for row in metrics(tmp_path / "run")])
    assert drawn[-1] >= 300 > drawn[-2]
    with pytest.raises(InvalidValue, match="budget_tokens: got 0"):
        make_config(settings=["budget_tokens=0"])


def test_each_evaluation_is_kept_problem_by_problem(quick_model, tmp_path):
    runner.start(small(quick_model, "grpo", 2), tmp_path / "run", quiet=True)
    last = metrics(tmp_path / "run")[-1]
    _, found = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").read_text().splitlines()]
    assert found["step"] == 2 and len(found["problems"]) == len(found["correct"]) == 4
    assert sum(found["correct"]) / 16 == last["evaluation"]["pass@1"]
    assert measured(tmp_path / "run").pass_at(1).mean() == last["evaluation"]["pass@1"]


def here(jobs, at_once):
    """`launch` without its processes, which take seconds to start."""
    for job in jobs:
        if not job.finished:
            runner.start(make_config(Path(job.arguments[0])), job.out, quiet=True)


def test_a_comparison_runs_goes_on_and_does_not_repeat(quick_model, tmp_path, capsys, monkeypatch):
    drop = ('{method = "aepo", label = "switch", set = {control.law = "switch"}}, ', "")
    one = ('targets = [0.4, "0.5x"]\nseeds = [3, 4]', 'targets = ["0.5x"]\nseeds = [3]')
    file, out = write(tmp_path / "c.toml", quick_model, drop=drop, one=one), tmp_path / "out"
    assert compare(file, out, dry_run=True) is None
    said = capsys.readouterr().out
    assert "grpo-seed3: 60 completions, at most 3 steps; to do" in said and "2 x 60 completions" in said
    assert not out.exists()
    with monkeypatch.context() as patched:
        patched.setattr("aepo.analysis.compare.run.launch", here)
        first = compare(file, out)
    table = (out / "comparison.md").read_text()
    assert table.startswith("| run | pass@1") and "| base model |" in table and "| aepo 0.5x |" in table
    before = json.loads((out / "comparison.json").read_text())["arms"]
    assert before["grpo"]["completions"]["value"]["mean"] == 72
    # Same prompts in the same order: the first step of both is the same draw from the same weights.
    rows = {name: metrics(out / f"{name}-seed3") for name in ("grpo", "aepo-0.5x")}
    assert rows["grpo"][0]["entropy"] == rows["aepo-0.5x"][0]["entropy"]

    for step in steps_saved(out / "aepo-0.5x-seed3")[-1:]:
        shutil.rmtree(out / "aepo-0.5x-seed3" / "checkpoints" / f"step-{step}")
    untouched = (out / "grpo-seed3" / "metrics.jsonl").stat().st_mtime_ns
    capsys.readouterr()
    again = compare(file, out)
    assert "grpo-seed3: 60 completions, at most 3 steps; finished" in capsys.readouterr().out
    assert (out / "grpo-seed3" / "metrics.jsonl").stat().st_mtime_ns == untouched
    assert metrics(out / "aepo-0.5x-seed3") == rows["aepo-0.5x"]
    for name in ("pass@1", "pass@4", "entropy", "tokens", "tracking_error"):
        assert again.arms["aepo 0.5x"][name] == first.arms["aepo 0.5x"][name]

    write(file, quick_model, drop=drop, one=one, other=("minibatches = 2", "minibatches = 3"))
    with pytest.raises(InvalidValue, match=r"optimizer.minibatches: got 3; must be as the run .* has begun"):
        compare(file, out)


def test_killed_at_any_moment_a_comparison_ends_as_if_it_never_was(quick_model, tmp_path):
    """SIGKILL of the program alone, so that its runs may outlive it; what counts is equal to an undisturbed one's."""
    drop = ('{method = "aepo", label = "switch", set = {control.law = "switch"}}, ', "")
    fewer = ('targets = [0.4, "0.5x"]\nseeds = [3, 4]', "targets = [0.4]\nseeds = [3]")
    file = write(tmp_path / "c.toml", quick_model, drop=drop, fewer=fewer, longer=("budget = 60", "budget = 240"))
    command = [sys.executable, "-m", "aepo", "compare", str(file), "--out"]
    out, quiet = tmp_path / "killed", subprocess.DEVNULL
    for rows in (1, 4):
        program = subprocess.Popen([*command, str(out)], stdout=quiet)
        log = out / "aepo-0.4-seed3" / "metrics.jsonl"
        while program.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < rows):
            time.sleep(0.01)
        assert program.poll() is None
        program.kill()
        program.wait()
    subprocess.run([*command, str(out)], stdout=quiet, check=True)
    whole = compare(file, tmp_path / "whole")
    assert whole is not None
    for arm in ("grpo", "aepo 0.4"):
        folder = f"{arm.replace(' ', '-')}-seed3"
        assert metrics(out / folder) == metrics(tmp_path / "whole" / folder)
    found = json.loads((out / "comparison.json").read_text())["arms"]
    assert found["aepo 0.4"]["pass@1"] == asdict(whole.arms["aepo 0.4"]["pass@1"])


def test_golden_the_base_model_is_the_same_for_every_seed():
    base = Result(("a", "b"), (1, 3), 4, ())
    better = [result((2, 3), [0.5]), result((4, 3), [0.5])]
    found = compared("base model", {"base model": [base] * 2, "x": better})
    assert set(found.arms["base model"]) == {"pass@1", "pass@4"}
    assert found.arms["base model"]["pass@1"].value.mean == 0.5
    assert found.arms["x"]["pass@1"].difference.mean == pytest.approx((0.25 + 0.75) / 4)
    assert found.arms["x"]["entropy"].difference is None


def test_the_base_model_is_a_row_and_may_be_the_baseline(quick_model, tmp_path, monkeypatch):
    drop = ('{method = "aepo", label = "switch", set = {control.law = "switch"}}, ', "")
    one = ('targets = [0.4, "0.5x"]\nseeds = [3, 4]', "targets = [0.4]\nseeds = [3, 4]")
    file = write(tmp_path / "c.toml", quick_model, 'baseline = "base model"', drop=drop, one=one)
    monkeypatch.setattr("aepo.analysis.compare.run.launch", here)
    found = compare(file, tmp_path / "out")
    assert found.baseline == "base model" and list(found.arms) == ["base model", "grpo", "aepo 0.4"]
    kept = (tmp_path / "out" / "base.json").stat().st_mtime_ns
    compare(file, tmp_path / "out")
    assert (tmp_path / "out" / "base.json").stat().st_mtime_ns == kept
    whole = (tmp_path / "out" / "base.json").read_text()
    (tmp_path / "out" / "base.json").write_text(whole[:40])
    compare(file, tmp_path / "out")
    assert (tmp_path / "out" / "base.json").read_text() == whole


def test_a_run_has_one_writer(quick_model, tmp_path):
    runner.start(small(quick_model, "grpo", 2), tmp_path / "run", quiet=True)
    with sole_writer(tmp_path / "run"):
        assert being_written(tmp_path / "run")
        with pytest.raises(InvalidValue, match="no other process is writing"):
            runner.resume(tmp_path / "run", quiet=True)
    assert not being_written(tmp_path / "run")
    runner.resume(tmp_path / "run", quiet=True)


def test_the_table_in_a_terminal_of_80_columns(quick_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    drop = ('{method = "aepo", label = "switch", set = {control.law = "switch"}}, ', "")
    file = write(tmp_path / "c.toml", quick_model, drop=drop)
    monkeypatch.setattr("aepo.analysis.compare.run.launch", here)
    compare(file, tmp_path / "out")
    said = capsys.readouterr().out
    table = said[said.index("run ") : said.index("Equal cost")]
    assert "…" not in table and "tracking error" in table
    assert all(len(line) <= 80 for line in table.splitlines())
