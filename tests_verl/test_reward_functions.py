"""The package's verifier `function` gives the rewards that verl's managers compute with the same functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from verl import DataProto
from verl.workers.reward_manager.batch import BatchRewardManager
from verl.workers.reward_manager.naive import NaiveRewardManager

from aepo.tasks.functions import Function
from aepo.tasks.rewards import Answered

SOURCE = """
def usual(data_source, solution_str, ground_truth, extra_info=None):
    return float(solution_str == ground_truth and data_source == "here" and extra_info["level"] >= 0)

def table(data_source, solution_str, ground_truth, extra_info):
    return {"score": 0.5 * len(solution_str), "acc": solution_str == ground_truth}

def keywords(solution_str, ground_truth, **kw):
    return float(sorted(kw) == ["data_source", "extra_info"] and solution_str in ground_truth)

def turns(data_source, solution_str, ground_truth, extra_info):
    return 1.0 if extra_info["num_turns"] is None and extra_info["rollout_reward_scores"] == {} else 0.0

def batch(data_sources, solution_strs, ground_truths, extra_infos):
    levels = [info["level"] for info in extra_infos.tolist()]
    return [level + (s == g) for level, s, g in zip(levels, solution_strs, ground_truths)]
"""
TEXTS, TRUTHS = ["a", "bb", "c"], ["a", "b", "c"]


class Letters:
    """Token n is the letter n; token 0 is special."""

    def decode(self, ids, skip_special_tokens=False):
        return "".join("<pad>" if int(n) == 0 else chr(int(n)) for n in ids if int(n) or not skip_special_tokens)


def protocol() -> DataProto:
    width = max(map(len, TEXTS))
    ids = torch.tensor([[*map(ord, text), *[0] * (width - len(text))] for text in TEXTS])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in TEXTS])
    prompts = torch.full((len(TEXTS), 1), ord("p"))
    tensors = {"prompts": prompts, "responses": ids, "attention_mask": torch.cat([torch.ones_like(prompts), mask], 1)}
    plain = {
        "data_source": np.array(["here"] * 3, dtype=object),
        "reward_model": np.array([{"ground_truth": truth} for truth in TRUTHS], dtype=object),
        "extra_info": np.array([{"level": level} for level in range(3)], dtype=object),
    }
    return DataProto.from_dict(tensors=tensors, non_tensors=plain)


@pytest.mark.parametrize("name", ["usual", "table", "keywords", "turns", "batch"])
def test_a_function_gives_the_rewards_that_verl_computes(tmp_path, name):
    (tmp_path / "mine.py").write_text(SOURCE)
    judge = Function(path=f"{tmp_path / 'mine.py'}:{name}")
    manager = BatchRewardManager if name == "batch" else NaiveRewardManager
    theirs = manager(Letters(), 0, compute_score=judge.function)(protocol()).sum(1)
    items = [
        Answered(
            "p",
            text,
            truth,
            {"data_source": "here", "reward_model": {"ground_truth": truth}, "extra_info": {"level": level}},
        )
        for level, (text, truth) in enumerate(zip(TEXTS, TRUTHS, strict=True))
    ]
    verdicts = judge.judge(items)
    assert not any(verdict.failed for verdict in verdicts), verdicts
    torch.testing.assert_close(torch.tensor([v.reward for v in verdicts]), theirs.float(), rtol=0, atol=0)
    assert theirs.unique().numel() > 1 or name == "turns"
