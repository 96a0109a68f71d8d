"""The package's verifier `function` gives the rewards that TRL computes with the same functions."""

from __future__ import annotations

import pytest
import torch

from aepo.tasks.functions import Function
from aepo.tasks.rewards import Answered

from .tiny import trainer

SOURCE = """
import numpy as np
import torch

def usual(completions, **kwargs):
    return [float(len(text(c))) for c in completions]

def other_order(completions, prompts, **_):
    return [float(text(p) in text(c)) for p, c in zip(prompts, completions)]

def ids(completion_ids, **_):
    return [float(sum(tokens)) for tokens in completion_ids]

def columns(completions, level, answer, **_):
    return [level[n] + float(answer[n] in text(c)) for n, c in enumerate(completions)]

def some_none(completions, **_):
    return [None if n % 2 else 0.5 for n, _ in enumerate(completions)]

def array(completions, **_):
    return np.arange(len(completions)) / 4

def tensor(completions, **_):
    return torch.arange(len(completions)) / 8

async def waits(completions, **_):
    return [0.25] * len(completions)

def state(completions, trainer_state, **_):
    return [trainer_state.global_step / trainer_state.max_steps] * len(completions)

class Callable:
    __name__ = "callable"

    def __call__(self, completions, **_):
        return [1.0] * len(completions)

called = Callable()

def logs(completions, log_extra, log_metric, **_):
    log_extra("length", [len(text(c)) for c in completions])
    log_metric("count", len(completions))
    return [0.0] * len(completions)

def text(turns):
    return turns if isinstance(turns, str) else turns[-1]["content"]
"""
NAMES = ["usual", "other_order", "ids", "columns", "some_none", "array", "tensor", "waits", "state", "called", "logs"]
PROMPTS = ["w1", "w2 w3", "w4", "w5"]
TEXTS = ["w1 w2", "w3", "w7 w4 w4", "w9"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    file = tmp_path_factory.mktemp("rewards") / "mine.py"
    file.write_text(SOURCE)
    return file


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chat", [False, True], ids=["texts", "messages"])
def test_a_function_gives_the_rewards_that_trl_computes(source, tmp_path, name, chat):
    judge = Function(path=f"{source}:{name}")
    turn = lambda role, content: [{"role": role, "content": content}] if chat else content
    rows = [
        {"prompt": turn("user", prompt), "answer": f"w{level}", "level": level} for level, prompt in enumerate(PROMPTS)
    ]
    completions = [turn("assistant", text) for text in TEXTS]
    tokens = [[number + 2, 1] for number in range(len(TEXTS))]
    made = trainer(tmp_path, reward_funcs=[judge.function])
    made.state.global_step, made.state.max_steps = 3, 12
    theirs = made._calculate_rewards(rows, [row["prompt"] for row in rows], completions, tokens)[:, 0]
    items = [
        Answered(
            prompt,
            text,
            row["answer"],
            row,
            tuple(ids),
            (("user", prompt),) if chat else (),
            place=(3, 12),
        )
        for prompt, text, row, ids in zip(PROMPTS, TEXTS, rows, tokens, strict=True)
    ]
    verdicts = judge.judge(items)
    ours = torch.tensor([verdict.reward for verdict in verdicts])
    torch.testing.assert_close(ours, theirs.cpu().float(), rtol=0, atol=1e-7, equal_nan=True)
    assert not any(verdict.failed for verdict in verdicts)
    if name == "logs":
        assert [v.logged["length"] for v in verdicts] == made._pending_extra_logs["length"]
        assert verdicts[0].metrics == {"count": 4.0}
