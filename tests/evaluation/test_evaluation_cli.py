"""`aepo evaluate`: what it asks, what it refuses, and that a killed evaluation ends as one that never was."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from aepo import cli
from aepo.config import make_config
from aepo.engines.right import RightRule
from aepo.errors import InvalidValue
from aepo.evaluation.benchmarks import BENCHMARKS, find
from aepo.evaluation.evaluated_model import EvaluatedModel, weights_digest
from aepo.evaluation.options import Options
from aepo.evaluation.questions import Questions, from_rows
from aepo.evaluation.run import _judged, _stop_at_chatml, run
from aepo.evaluation.samples import UNIT_ROWS, UNIT_TOKENS, Unit, cut_to_whole_units, open_folder, units
from aepo.model.policy import Policy
from aepo.tasks.rewards import Verdict
from aepo.training import runner

DATA = os.environ.get("AEPO_TEST_DATA")


def write(path: Path, *rows: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(*arguments: object) -> None:
    """`aepo evaluate ...` in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["aepo", "evaluate", *map(str, arguments)])
        cli.main()


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def result(folder: Path) -> dict:
    """evaluation.json without what differs between two calls: the command and the like."""
    found = json.loads((folder / "evaluation.json").read_text())
    assert found.pop("environment")["command"]
    return found


# --- what is drawn ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problems", "n", "max_tokens"), [(5, 3, 9), (30, 1024, 9), (3, 5000, 9), (7, 32, 8192), (2, 1, 10**6)]
)
def test_units_hold_every_sample_once_and_no_unit_is_large(problems, n, max_tokens):
    made = units(problems, n, max_tokens)
    held = [(problem, sample) for unit in made for problem in unit.problems for sample in unit.samples]
    assert len(held) == len(set(held)) == problems * n
    assert set(held) == {(problem, sample) for problem in range(problems) for sample in range(n)}
    assert all(len(unit) <= max(1, min(UNIT_ROWS, UNIT_TOKENS // max_tokens)) for unit in made)


def test_golden_units():
    assert units(5, 2048, 9) == [
        Unit(range(2), range(2048)),
        Unit(range(2, 4), range(2048)),
        Unit(range(4, 5), range(2048)),
    ]
    assert units(2, 100, 8192)[:2] == [Unit(range(1), range(64)), Unit(range(1), range(64, 100))]


@pytest.mark.parametrize(
    ("content", "done", "kept"),
    [
        ("", 0, ""),
        ("1\n", 0, ""),
        ("1\n2\n3", 1, "1\n2\n"),
        ("1\n2\n3\n", 2, "1\n2\n3\n"),
        ("1\n2\n3\n4\n", 2, "1\n2\n3\n"),
    ],
)
def test_what_is_behind_the_last_whole_unit_is_cut_off(content, done, kept, tmp_path):
    (tmp_path / "s").write_text(content)
    assert cut_to_whole_units(tmp_path / "s", [2, 1]) == done
    assert (tmp_path / "s").read_text() == kept
    assert cut_to_whole_units(tmp_path / "none", [2, 1]) == 0


def test_a_failed_verdict_is_wrong_and_counted():
    assert _judged(Verdict(float("nan"), failed=True, reason="hung"), RightRule()) == {
        "correct": False, "reward": None, "reason": "hung", "failed": True,
    }  # fmt: skip
    found = [_judged(Verdict(reward), RightRule())["correct"] for reward in (0.0, 0.5, 0.6, 1.0)]
    assert found == [False, False, True, True]


# --- killed, and gone on with -------------------------------------------------------------------------------


def test_killed_and_gone_on_with_it_ends_as_if_it_never_was(quick_model, tmp_path):
    arguments = [str(quick_model), "--task", "paths", "--n", "512", "--limit", "40", "--seed", "3"]
    command(*arguments, "--out", tmp_path / "whole")
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "aepo", "evaluate", *arguments, "--out", str(killed)],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while process.poll() is None and _count(killed / "samples.jsonl") <= 1280:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (killed / "evaluation.json").exists()
    assert 1280 < _count(killed / "samples.jsonl") < 40 * (32 + 512)
    with (killed / "samples.jsonl").open("a") as file:
        file.write('{"benchmark": "paths", "pa')
    command(*arguments, "--out", killed)
    assert (killed / "samples.jsonl").read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()
    assert result(killed) == result(tmp_path / "whole")


def _count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_the_result_says_all_that_made_it_and_the_table_too(quick_model, tmp_path, capsys):
    command(quick_model, "--task", "paths", "--n", 4, "--limit", 3, "--seed", 5, "--out", tmp_path / "e")
    found, shown = result(tmp_path / "e"), capsys.readouterr().out
    assert [(p["temperature"], p["top_p"], p["n"]) for p in found["settings"]["passes"]] == [(0.1, 0.95, 4), (1, 1, 4)]
    assert found["settings"]["model"] == str(quick_model) and found["settings"]["seed"] == 5
    cold, warm = found["results"]
    assert set(cold["scores"]) == {"avg@4", "reward", "pass@1"}
    assert set(warm["scores"]) == {"avg@4", "reward", "pass@1", "pass@2", "pass@4", "maj@2", "maj@4"}
    rows = lines(tmp_path / "e")
    for part, label in ((cold, "T=0.1, top-p=0.95"), (warm, "T=1, top-p=1")):
        own = [row for row in rows if row["pass"] == label]
        assert len(own) == part["completions"] == 12
        assert part["scores"]["avg@4"]["mean"] == pytest.approx(sum(row["correct"] for row in own) / 12)
        assert part["mean_tokens"] == pytest.approx(sum(row["tokens"] for row in own) / 12)
        assert part["truncated"] == pytest.approx(sum(row["truncated"] for row in own) / 12)
    for words in ("paths, 3 problems", "T 0.1, top-p 0.95, n 4", "seed 5", "at most 9 tokens", str(quick_model)):
        assert words in shown


def test_other_settings_in_the_same_folder_are_refused(quick_model, tmp_path, capsys):
    given = (quick_model, "--task", "paths", "--limit", 2, "--out", tmp_path)
    command(*given, "--n", 2, "--temperature", 1)
    before = (tmp_path / "samples.jsonl").stat().st_mtime_ns
    command(*given, "--n", 2, "--temperature", 1, "--k", 2)
    assert set(result(tmp_path)["results"][0]["scores"]) == {"avg@2", "reward", "pass@2", "maj@2"}
    assert (tmp_path / "samples.jsonl").stat().st_mtime_ns == before
    refused(capsys, "passes[0].n = 2, this one 3", *given, "--n", 3, "--temperature", 1, "--k", 1, 2)
    refused(capsys, "seed = 0, this one 1", *given, "--n", 2, "--temperature", 1, "--seed", 1)
    (tmp_path / "settings.json").unlink()
    refused(capsys, "a new folder that can be written (No such file", *given, "--n", 2, "--temperature", 1)


def test_lists_and_tables_are_compared_by_their_names(tmp_path):
    open_folder(tmp_path, {"a": {"b": [1, {"c": 2}]}, "d": (1, 2)})
    open_folder(tmp_path, {"a": {"b": [1, {"c": 2}]}, "d": [1, 2]})
    with pytest.raises(InvalidValue, match=r"a\.b\[1\]\.c = 2, this one 3"):
        open_folder(tmp_path, {"a": {"b": [1, {"c": 3}]}, "d": (1, 2)})


# --- files and benchmarks -----------------------------------------------------------------------------------


def test_a_file_is_asked_in_its_prompt_and_graded(quick_model, tmp_path):
    """The answer of each problem is what the model says in its first sample; the same draws are then graded."""
    settings = ("--prompt", "plain", "--grader", "exact", "--max-tokens", 5, "--n", 16, "--temperature", 1)
    problems = [{"problem": f"{i} {i + 1} :", "answer": "none"} for i in range(10, 20)]
    file = write(tmp_path / "walks.jsonl", *problems)
    command(quick_model, "--data", file, *settings, "--out", tmp_path / "first")
    assert not any(row["correct"] for row in lines(tmp_path / "first"))
    said = {row["number"]: row["text"] for row in lines(tmp_path / "first") if row["sample"] == 0}
    write(file, *({**row, "answer": said[number]} for number, row in enumerate(problems)))
    command(quick_model, "--data", file, *settings, "--out", tmp_path / "second")
    rows, found = lines(tmp_path / "second"), result(tmp_path / "second")
    assert [row["text"] for row in rows] == [row["text"] for row in lines(tmp_path / "first")]
    right = [row["number"] for row in rows if row["correct"]]
    assert right == [row["number"] for row in rows if row["text"] == said[row["number"]]] and len(right) >= 10
    assert found["results"][0]["correct"] == [[str(number + 1), right.count(number)] for number in range(10)]
    asked = found["settings"]["benchmarks"][0]
    assert (asked["name"], asked["first_prompt"], asked["grader"]) == ("walks", "10 11 :", "exact")
    assert max(row["tokens"] for row in rows) == 5 and found["notes"] == []


def asked(tmp_path, style: str | None, **row) -> Questions:
    write(tmp_path / "q.jsonl", {"problem": "What is $1+1$?", "answer": "2", **row})
    return from_rows(find((), tmp_path / "q.jsonl")[0], style, None, None, None)


@pytest.mark.parametrize("style", [None, "qwen25-math-cot"])
def test_golden_the_default_prompt_reaches_the_model_as_it_is_written(style, llama, tmp_path):
    questions, policy = asked(tmp_path, style), Policy.load(llama)
    (prompt,) = questions.prompts(policy)
    assert policy.tokenizer.decode(prompt.tokens) == (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\nWhat is $1+1$?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (questions.grader, questions.max_tokens, questions.problems[0].data["answer"]) == ("math", 8192, "2")


def test_chat_styles_and_rows_of_messages_go_through_the_models_template(llama, tmp_path):
    policy = Policy.load(llama)
    with pytest.raises(InvalidValue, match="chat template"):
        asked(tmp_path, "think").prompts(policy)
    policy.tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}!"
    (prompt,) = asked(tmp_path, "think").prompts(policy)
    text = policy.tokenizer.decode(prompt.tokens)
    assert text.startswith("[user]What is $1+1$?") and "<think>" in text and text.endswith("!")
    (prompt,) = asked(tmp_path, "boxed", problem=[{"role": "user", "content": "Hm?"}]).prompts(policy)
    assert policy.tokenizer.decode(prompt.tokens) == "[user]Hm?!"


def test_a_prompt_in_qwens_format_ends_at_its_stop_token_too(llama, tmp_path):
    policy = Policy.load(llama)
    (own,) = policy.eos_token_ids
    policy.tokenizer.add_tokens(["<|im_end|>"])
    assert _stop_at_chatml(policy, [asked(tmp_path, "boxed")]) == (own,)
    stop = policy.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert _stop_at_chatml(policy, [asked(tmp_path, "qwen-boxed")]) == policy.eos_token_ids == (own, stop)


@pytest.mark.parametrize("name", ["minerva", "Minerva", "minerva_math", "Minerva-Math"])
def test_a_benchmark_has_its_usual_names(name, tmp_path):
    write(tmp_path / "minerva_math.jsonl", {"problem": "p", "solution": r"\boxed{7}"})
    (found,) = find((name,), tmp_path)
    assert found.name == "minerva" and found.rows[0].answer == "7"


@pytest.mark.skipif(not DATA, reason="AEPO_TEST_DATA is not set: no real data to read")
def test_the_real_benchmarks_are_found_by_name():
    counts = {
        "aime24": 30, "amc23": 40, "math500": 500, "gsm8k": 1319, "minerva": 272, "olympiadbench": 675,
        "college_math": 2818,
    }  # fmt: skip
    found = find(tuple(counts), Path(DATA) / "benchmarks")
    assert {item.name: len(item.rows) for item in found} == counts
    made = [from_rows(item, None, None, None, None) for item in found]
    assert all(r"within \boxed{}.<|im_end|>" in problem.text for item in made for problem in item.problems)


# --- runs ---------------------------------------------------------------------------------------------------


def test_a_run_is_evaluated_at_its_newest_checkpoint_on_its_own_task(quick_model, tmp_path):
    settings = ["steps=2", "evaluation.every=0", "checkpoint.every=1", "evaluation.prompts=5", "sampling.prompts=4"]
    config = make_config(settings=[*settings, f"model='{quick_model}'", "sampling.group_size=4", "task.max_moves=6"])
    runner.start(config, tmp_path / "run", quiet=True)
    made = run(Options(str(tmp_path / "run"), n=2, temperature=1.0))
    assert made["settings"]["folder"] == str(tmp_path / "run" / "checkpoints" / "step-2")
    assert "max_moves=6" in made["settings"]["benchmarks"][0]["source"] and made["results"][0]["problems"] == 5
    assert (tmp_path / "run" / "evaluation-step-2-paths" / "evaluation.json").exists()
    older = EvaluatedModel.find(str(tmp_path / "run" / "checkpoints" / "step-1"))
    assert older.run == (tmp_path / "run").resolve() and older.folder.endswith("step-1")
    assert older.config(None, (), 3).evaluation.prompts == 3


def test_other_weights_are_another_evaluation(quick_model):
    policy = Policy.load(quick_model)
    before = weights_digest(policy)
    assert before == weights_digest(Policy.load(quick_model))
    next(policy.model.parameters()).data[0, 0] += 1e-3
    assert weights_digest(policy) != before


# --- bad input ----------------------------------------------------------------------------------------------


def refused(capsys, words: str, *arguments: object) -> None:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        command(*arguments)
    said = capsys.readouterr()
    assert ending.value.code == 2 and not said.out
    assert words in said.err and len(said.err.strip().splitlines()) == 1, said.err


def test_bad_input_is_one_line_and_code_2_before_any_work(quick_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    good = write(tmp_path / "data" / "aime24.jsonl", {"problem": "p", "answer": "1"})
    empty = write(tmp_path / "empty.jsonl")
    model, both = str(quick_model), ("--benchmark", "aime24", "--data", good)
    before = sorted(tmp_path.rglob("*"))
    for words, arguments in {
        f"got 'aime99', which is unknown; must be one of {', '.join(BENCHMARKS)}": (model, "--benchmark", "aime99"),
        "with amc23.jsonl for AMC23 (it holds aime24.jsonl)": (model, "--benchmark", "amc23", "--data", good.parent),
        "with aime24.jsonl for AIME24 (it does not exist)": (model, "--benchmark", "aime24", "--data", "none"),
        "--data FOLDER with math500.jsonl": (model, "--benchmark", "math500"),
        "(it holds aime24.jsonl)": (model, "--data", good.parent),
        "a folder with the files of aime24, amc23": (model, "--benchmark", "aime24", "amc23", "--data", good),
        "--benchmark: got 'aime24'; must be named once": (
            model,
            "--benchmark",
            "aime24",
            "AIME-24",
            "--data",
            good.parent,
        ),
        "at least one row": (model, "--data", empty),
        "a file that exists": (model, "--data", "none.jsonl"),
        "--k: got 8; must be from 1 to n = 4": (model, *both, "--n", 4, "--k", 8),
        "--n: got 0": (model, *both, "--n", 0),
        "--temperature: got 0.0": (model, *both, "--temperature", 0),
        "--top-p: got 1.5": (model, *both, "--top-p", 1.5),
        "--limit: got 0": (model, *both, "--limit", 0),
        "--prompt: got 'poem', which is unknown; must be one of plain": (model, *both, "--prompt", "poem"),
        "--grader: got 'mine', which is unknown; must be one of math": (model, *both, "--grader", "mine"),
        "chat template": (model, *both, "--prompt", "think"),
        "model: got 'nowhere'": ("nowhere", *both),
        "--limit: got 9999": (model, "--task", "paths", "--limit", 9999),
        "task.name: got 'chess'": (model, "--task", "chess"),
        "--task: got 'paths'; must be without --benchmark": (model, *both, "--task", "paths"),
        "--grader: got 'math'; must be left out with a task": (model, "--task", "paths", "--grader", "math"),
        "given for this model; or --data": (model,),
        "--set: got ('a=1',)": (model, *both, "--set", "a=1"),
        "--device: got 'tpu'": (model, *both, "--device", "tpu"),
        "a folder that can be written": (model, *both, "--max-tokens", 8, "--out", good),
        "tokens'; must be at most the model's 64 positions together; or give --over-length cut": (model, *both),
    }.items():
        refused(capsys, words, *arguments)
    assert sorted(tmp_path.rglob("*")) == before
    write(tmp_path / "run" / "config.toml")
    refused(capsys, "a run with a checkpoint", "run")
