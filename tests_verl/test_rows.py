"""Rows and minibatches, without verl."""

from __future__ import annotations

import pytest
import torch

from aepo.control.base import Step
from aepo.control.dynamic_sampling import ordinary_groups
from aepo.errors import InvalidValue
from aepo.integrations.verl import rows
from aepo.loss.aggregates import AGGREGATES
from aepo.types import Rollout, Sample

STEP = Step(number=2, steps=9, prompts=3, group_size=2, max_tokens=4, seed=7)


def row(**changes) -> rows.RolloutRow:
    plain = {
        "key": "a_0_0",
        "group": 1,
        "source": 1,
        "session": 0,
        "prompt": (5, 6),
        "tokens": (7, 8, 9),
        "mask": (1, 1, 1),
    }
    return rows.RolloutRow(**{**plain, "logprobs": (-1.0, -2.0, -3.0), "reward": 1.0, "temperature": 1.2, **changes})


def rollout(ends: frozenset[int], max_tokens: int) -> Rollout:
    return rows.rollouts([row()], ends, max_tokens)[0]


def test_a_row_is_a_rollout():
    made = rollout(frozenset({9}), max_tokens=3)
    completion = made.completion
    assert (completion.group, completion.temperature, completion.tokens, made.reward) == (1, 1.2, (7, 8, 9), 1.0)
    assert not completion.truncated
    assert rollout(frozenset({4}), max_tokens=3).completion.truncated
    assert not rollout(frozenset({4}), max_tokens=4).completion.truncated


def test_groups_of_one_prompt_share_it():
    """Even at temperature 1 an extra group is told from one of a new prompt with the same tokens."""
    read = [row(group=group, source=source, temperature=1.0) for group, source in ((0, 0), (1, 1), (2, 0))]
    made = rows.rollouts(read, frozenset(), 4)
    assert [rollout.completion.group for rollout in made] == [0, 1, 2]
    assert list(ordinary_groups(made)) == [0, 1]


def test_tokens_of_a_tool_are_neither_measured_nor_trained():
    samples = [Sample(rollout(frozenset(), 4), 0.5), Sample(rollout(frozenset(), 4), -0.5)]
    batch = rows.to_batch(samples, [(1, 0, 1), (1, 1, 1)], pad_token_id=0)
    assert batch.mask.tolist() == [[1, 0, 1], [1, 1, 1]]
    assert batch.advantages.tolist() == [[0.5, 0, 0.5], [-0.5, -0.5, -0.5]]


def test_rows_are_dealt_evenly_ordinary_and_extra():
    trained, extra = [*range(10), *range(12, 17)], list(range(12, 17))
    minibatches = rows.deal(trained, extra, 4, STEP.generator("x"))
    assert sorted(row for part in minibatches for row in part) == trained
    assert sorted(len(part) for part in minibatches) == [3, 4, 4, 4]
    assert sorted(len(set(part) & set(extra)) for part in minibatches) == [1, 1, 1, 2]
    assert minibatches != rows.deal(trained, extra, 4, STEP.generator("y"))
    assert rows.deal(trained, extra, 2, None) == [[*range(8)], [8, 9, 12, 13, 14, 15, 16]]


def test_minibatches_are_filled_to_one_size():
    assert rows.fill([[1, 2, 3], [4, 5]], [10, 11, 12, 13], 2) == [[1, 2, 3, 10], [4, 5, 11, 12]]
    assert rows.fill([[1, 2], [4, 5]], [10], 2) == [[1, 2], [4, 5]]
    assert rows.fill([[], []], [10, 11, 12, 13], 2) == [[10, 11], [12, 13]]  # a step that trains on nothing


def test_weights_are_those_of_the_minibatch():
    mask = torch.tensor([[1.0, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]])
    for name, aggregate in AGGREGATES.items():
        weights = rows.token_weights(mask, [[0, 2], [1]], name)
        assert torch.equal(weights[[0, 2]], aggregate(mask[[0, 2]])), name
        assert torch.equal(weights[[1]], aggregate(mask[[1]])), name
        assert weights[3].sum() == 0


def test_a_step_survives_the_way():
    assert rows.step_from_json(rows.step_to_json(STEP)) == STEP


def test_a_microbatch_is_what_was_sent():
    samples = [
        Sample(rows.rollouts([row()], frozenset(), 4)[0], 0.5),
        Sample(rows.rollouts([row(group=4, prompt=(3,))], frozenset(), 4)[0], 2.0, extra=True, trained=True),
    ]
    batch = rows.to_batch(samples, [(1, 1, 1)] * 2, pad_token_id=0)
    fields = {
        "prompts": torch.tensor([[5, 6], [3, 0]]),
        "prompt_mask": torch.tensor([[True, True], [True, False]]),
        "responses": torch.tensor([[7, 8, 9]] * 2),
        "response_mask": torch.ones(2, 3),
        "advantages": batch.advantages,
        "old_log_probs": torch.full((2, 3), -1.5),
        "entropy": torch.full((2, 3), 0.7),
        "aepo_mark_hard": torch.eye(2, 3),
        "aepo_rows": rows.facts(batch),
    }
    part = rows.microbatch(fields, STEP)
    assert part.step == STEP and torch.equal(part.marks["hard"], torch.eye(2, 3))
    for name in ("mask", "advantages", "rewards", "groups", "extra", "trained"):
        assert torch.equal(getattr(part.batch, name), getattr(batch, name)), name
    assert torch.equal(part.old.entropy, fields["entropy"]) and part.ref_logprobs is None
    assert part.batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 0, 1, 1, 1]]


def test_prompts_with_images_are_refused_in_one_line():
    text = [{"role": "user", "content": "1 + 1"}]
    rows.check_text([text, [{"role": "user", "content": [{"type": "text", "text": "1 + 1"}]}]])
    image = [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "?"}]}]
    with pytest.raises(
        InvalidValue, match="data.train_files: got 'a prompt with a part of type image'; must be .*text"
    ):
        rows.check_text([text, image])


def test_the_prompts_of_a_round_are_checked():
    tu = pytest.importorskip("verl.utils.tensordict_utils")
    from aepo.integrations.verl.groups import Groups

    image = [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]
    batch = tu.get_tensordict({"raw_prompt": [[{"role": "user", "content": "?"}], image]})
    with pytest.raises(InvalidValue, match="a prompt with a part of type image"):
        Groups(lambda submitted: None).add(batch, 2)
