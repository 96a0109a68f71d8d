"""Mistakes that users make, over all commands. Each ends in one line with the field, what was got and what would do."""

import io
import json
import re
import socket
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from aepo import cli

BINARY = bytes(range(256))

# The arguments, and how the line begins.
MISTAKES = {
    "": "command: got nothing",
    "trian": "command: got 'trian'",
    "train --steps abc": "--steps: got 'abc'; must be an integer",
    "train --targt 3": "train: got '--targt'",
    "train a b": "train: got 'b'; must be left out",
    "train --set": "--set: got nothing",
    "train bin": "config: got 'bin'; must be valid TOML",
    "train dir": "config: got 'dir'; must be a readable TOML file",
    "train nowhere.toml": "config: got 'nowhere.toml'",
    "train broken.toml": "config: got 'broken.toml'; must be valid TOML",
    "train self.toml": "extends: got 'self.toml'",
    "train --method nope": "method: got 'nope'",
    "train --method aepo+nope": "method: got 'nope'",
    "train --method grpo --target 0.5": "control.target: got '0.5'; must be left out",
    "train --target fast": "control.target: got 'fast'",
    "train --steps 0": "steps: got 0; must be at least 1",
    "train --set optimizer.lr": "--set: got 'optimizer.lr'",
    "train --set optimizer.lr=abc": "optimizer.lr: got 'abc'; must be a number",
    "train --set optimizer.learning_rate=1": "optimizer: got 'learning_rate'",
    "train --set model=dir": "model: got ",
    "train --set model=broken": "model: got ",
    "train --set model=bin": "model: got ",
    "train --set task=data --set task.train=bin.jsonl": "task.train: got ",
    "train --set task=data --set task.train=dir": "task.train: got ",
    "train --set task=data --set task.train=empty.jsonl": "task.train: got ",
    "train --set task=data --set task.train=list.jsonl": "task.train ",
    "train --set task=data --set task.train=nowhere.jsonl": "task.train: got 'nowhere.jsonl'",
    "train --set tracker=swanlab2": "tracker: got 'swanlab2'; must be one of none, tensorboard",
    "train --set sampling.engine=vllm": "sampling.engine: got 'vllm'",
    "train --out bin --steps 1": "out: got 'bin'",
    "train --out bin/x --steps 1": "out: got 'bin/x'",
    "train --resume nowhere": "resume: got 'nowhere'",
    "train --resume old": "setting: got 'whatever'",
    "train --gpus 8": "--gpus: got ",
    "evaluate": "evaluate: got too few arguments",
    "evaluate dir --data bin.jsonl": "--data: got 'bin.jsonl'",
    "evaluate builtin --n x": "--n: got 'x'; must be an integer",
    "evaluate builtin --k 99": "--k: got 99",
    "evaluate builtin --task nope": "task.name: got 'nope'",
    "evaluate builtin --data data.jsonl --prompt nope": "--prompt: got 'nope'",
    "export nowhere": "RUN: got 'nowhere'",
    "export old": "RUN: got 'old'; must be a run with a checkpoint",
    "grade nowhere.jsonl": "file: got 'nowhere.jsonl'",
    "grade dir": "file: got 'dir/samples.jsonl'",
    "grade bin.jsonl": "bin.jsonl, line 1: got ",
    "grade empty.jsonl": "file: got 'empty.jsonl'",
    "grade number.jsonl": "number.jsonl, line 1: completion: got 'int'",
    "grade latin.jsonl": "latin.jsonl, line 1: got ",
    "grade ok.jsonl --grader mth": "--grader: got 'mth', which is unknown; must be one of code, exact, math, qwen",
    "grade ok.jsonl --processes 0": "processes: got 0",
    "grade ok.jsonl --out dir": "--out: got 'dir'",
    "grade ok.jsonl --out bin/x": "--out: got 'bin/x'",
    "doctor nowhere": "LOG: got 'nowhere'",
    "doctor bin": "LOG: got 'bin'",
    "doctor ok.jsonl --out x": "out: got 'x'; must be given together with --follow",
    "compare dir": "config: got 'dir'",
    "compare study.toml": "method: got 'grpoo'",
    "fit-law text": "",
    "fit-law old --held-out 2": "held_out: got 2.0",
    "calibrate builtin nowhere.jsonl": "task.train: got 'nowhere.jsonl'",
    "calibrate builtin paths --out dir": "--out: got 'dir'",
    "check-entropy nope": "function: got 'nope'",
    "check-entropy raises.py:f": "function: got 'raises.py:f'",
    "check-entropy math:sqrt --tolerance -1": "--tolerance: got -1.0",
    "report nowhere": "RUN: got ",
    "report binary": "RUN: got ",
    "report old --base bin": "--base: got 'bin'",
    "watch bin --once": "RUN: got 'bin'; must be a run folder (it is a file)",
    "watch configdir --once": "config: got 'configdir/config.toml'",
    "watch old --every 0": "--every: got 0.0",
    "demo --steps 0": "--steps: got 0",
    "demo --minutes 5": "--minutes: got 5.0; must be left out with the built-in model",
    "demo --model dir": "model: got ",
    "methods nope": "method: got 'nope'",
    "settings nope": "PREFIX: got 'nope'",
}

DATA = "--set task=data --set task.train=data.jsonl --set evaluation.every=0"
FUNCTION = f"{DATA} --set task.verifier=function --set task.verifier.path="

# What is refused before a model is loaded, trained or asked for over the network.
EARLY = {
    "evaluate ./nowhere": "model: got './nowhere'",
    "evaluate no/where/ --data data.jsonl": "model: got 'no/where/'",
    "evaluate bin --data data.jsonl": "model: got 'bin'",
    "evaluate nobody/nothing --data data.jsonl": "model: got 'nobody/nothing'",
    "evaluate builtin --out bin": "--out: got 'bin'",
    "evaluate builtin --out bin/x": "--out: got 'bin/x'",
    "train --set model=./nowhere --out new": "model: got './nowhere'",
    "train --set model=nobody/nothing --out new": "model: got 'nobody/nothing'",
    "train --set model=./nowhere --dry-run": "model: got './nowhere'",
    f"train {DATA} --out new": "model: got 'builtin'; must be a folder in Hugging Face format or a name on the hub",
    f"train {FUNCTION}nowhere.py:f --set model=dir --out new": "verifier.path: got 'nowhere.py:f'",
    f"calibrate dir data.jsonl {FUNCTION}math:nope": "verifier.path: got 'math:nope'",
    "calibrate builtin data.jsonl": "model: got 'builtin'",
    "calibrate builtin paths --set sampling.engine=vllm": "sampling.engine: got 'vllm'",
    "compare good.toml --out bin/x": "--out: got 'bin/x'",
    "compare elsewhere.toml": "model: got './nowhere'",
    "demo --out bin/x": "--out: got 'bin/x'",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder of files that are of no use."""
    place = tmp_path_factory.mktemp("place")
    for name, content in {
        "bin": BINARY,
        "bin.jsonl": BINARY,
        "empty.jsonl": b"",
        "list.jsonl": b"[1, 2]\n",
        "number.jsonl": b'{"completion": 5, "answer": "1"}\n',
        "latin.jsonl": '{"completion": "\u00e9", "answer": "1"}\n'.encode("latin-1"),
        "ok.jsonl": b'{"completion": "1", "answer": "1"}\n',
        "data.jsonl": b"".join(
            json.dumps({"problem": f"{i} + 1 =", "answer": i + 1}).encode() + b"\n" for i in range(9)
        ),
        "broken.toml": b"steps = \n",
        "self.toml": b'extends = "self.toml"\n',
        "study.toml": b'cost = "completions"\nbudget = 10\nmethods = ["grpoo"]\n',
        "good.toml": b'cost = "completions"\nbudget = 10\nmethods = ["grpo"]\n',
        "elsewhere.toml": b'cost = "completions"\nbudget = 10\nmethods = ["grpo"]\nbase.model = "./nowhere"\n',
        "raises.py": b"1 / 0\n",
        "broken/config.json": b"{",
        "old/config.toml": b'method = "aepo"\nwhatever = 3\n',
        "old/metrics.jsonl": b'{"step": 0, "entropy": 1.0}\n',
        "binary/metrics.jsonl": BINARY,
        "text/metrics.jsonl": b'{"step": 1, "entropy": "high"}\n',
        "dir/keep": b"",
        "configdir/config.toml/keep": b"",
    }.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place


def refused(arguments: str, line: str, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["aepo", *arguments.split()])
    said, code = io.StringIO(), None
    with redirect_stderr(said), redirect_stdout(io.StringIO()):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
    lines = said.getvalue().splitlines()
    assert code == 2 and len(lines) == 1, said.getvalue()
    assert lines[0].startswith(f"aepo: {line}")
    assert re.search(r"got .*; must be \S", lines[0]) or "which is unknown; must be one of" in lines[0]
    assert "Path(" not in lines[0] and "Error(" not in lines[0]


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, place, monkeypatch):
    monkeypatch.chdir(place)
    refused(arguments, MISTAKES[arguments], monkeypatch)


@pytest.mark.parametrize("arguments", EARLY)
def test_a_mistake_is_refused_before_anything_slow_starts(arguments, place, monkeypatch):
    def no_network(host, *_):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.chdir(place)
    monkeypatch.setenv("AEPO_CACHE", str(place / "cache"))
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr("aepo.model.builtin.pretrain", lambda *_: pytest.fail("the built-in model is trained"))
    monkeypatch.setattr("aepo.model.loading._load_model", lambda *_: pytest.fail("a model is loaded"))
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *_, **__: pytest.fail("the hub is asked"))
    refused(arguments, EARLY[arguments], monkeypatch)
    assert not (place / "new").exists()


def test_an_output_that_cannot_be_written_is_refused_before_the_work(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr("aepo.grading.files.GradingPool", pytest.fail)
    monkeypatch.setattr(sys, "argv", ["aepo", "grade", "ok.jsonl", "--out", "dir"])
    with pytest.raises(SystemExit):
        cli.main()
