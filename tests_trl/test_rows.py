"""The pieces that need no trainer."""

from __future__ import annotations

import pytest
import torch

from aepo.errors import InvalidValue
from aepo.integrations.trl.rows import check, fit, place, placement, token_weights, without_correction


def test_tempered_rows_are_not_weighted_back_to_t_1():
    """vLLM's log-probabilities are after temperature: TRL's correction would weigh the rows by pi / pi^T."""
    ratio, old, sampled = torch.tensor([[0.1, 0.2]]), torch.tensor([[-1.0, -2.0]]), torch.tensor([[-2.0, -3.0]])
    rows = {"importance_sampling_ratio": ratio, "old_per_token_logps": old, "sampling_per_token_logps": sampled}
    neutral = without_correction(rows)
    assert torch.equal(neutral["importance_sampling_ratio"], torch.ones(1, 2))
    assert torch.equal(neutral["sampling_per_token_logps"], old)
    assert torch.equal(rows["importance_sampling_ratio"], ratio)


def test_place_pads_prompts_on_the_left_and_completions_on_the_right():
    rows = {
        "prompt_ids": torch.tensor([[5], [6]]),
        "prompt_mask": torch.ones(2, 1, dtype=torch.long),
        "completion_ids": torch.tensor([[7, 8, 9], [7, 8, 0]]),
        "completion_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "importance_sampling_ratio": torch.tensor([[0.5], [0.6]]),
        "advantages": torch.tensor([1.0, -1.0]),
    }
    extra = {
        "prompt_ids": torch.tensor([[3, 4]]),
        "prompt_mask": torch.ones(1, 2, dtype=torch.long),
        "completion_ids": torch.tensor([[9, 9]]),
        "completion_mask": torch.ones(1, 2, dtype=torch.long),
        "importance_sampling_ratio": torch.ones(1, 1),
        "advantages": torch.tensor([0.0]),
    }
    merged = place(rows, extra, [1], [0], pad_token_id=99)
    assert merged["prompt_ids"].tolist() == [[99, 5], [3, 4]] and merged["prompt_mask"].tolist() == [[0, 1], [1, 1]]
    assert merged["completion_ids"].tolist() == [[7, 8, 9], [9, 9, 99]]
    assert merged["completion_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert merged["importance_sampling_ratio"].tolist() == [[0.5], [1.0]]
    assert rows["completion_ids"].tolist() == [[7, 8, 9], [7, 8, 0]]


def test_fit():
    values = torch.tensor([[1.0, 2.0, 3.0]])
    assert fit(values, 2).tolist() == [[1, 2]] and fit(values, 4, 9).tolist() == [[1, 2, 3, 9]]
    assert fit(values, 2, left=True).tolist() == [[2, 3]] and fit(values, 4, 9, left=True).tolist() == [[9, 1, 2, 3]]


def test_placement():
    # Mixed batch: extra 1, ordinary 0 (trained), ordinary 1 (not), extra 0, ordinary 3 (trained); 2 had no reward.
    placed = placement([5, 0, 1, 4, 3], [True, True, False, True, True], ordinary=4)
    assert placed.row == (1, 0, 3, 4) and placed.taken == ((1, 1), (2, 0))


def test_places_without_a_row_stay_empty():
    assert placement([0, 1], [True, False], ordinary=3).row == (0, -1, -1)


def test_appending_is_refused():
    with pytest.raises(InvalidValue, match="1 extra rows.*keeps their number"):
        placement([0, 1, 2], [True, True, True], ordinary=2)


def test_images_and_tools_are_refused():
    with pytest.raises(InvalidValue, match=r"train_dataset: got \['pixel_values', 'tool_mask'\]"):
        check({"prompt_ids": 1, "tool_mask": 1, "pixel_values": 1})


def test_token_weights_by_hand():
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    given = {"window_tokens": torch.tensor(12.0), "longest": 5, "accumulated": 2}
    assert token_weights("dapo", mask, **given)[0, 0].item() == pytest.approx(1 / 12)
    assert token_weights("grpo", mask, **given)[:, 0].tolist() == pytest.approx([1 / 8, 1 / 4])
    assert token_weights("bnpo", mask, **given)[0, 0].item() == pytest.approx(1 / 6)
    assert token_weights("dr_grpo", mask, **given)[0, 0].item() == pytest.approx(1 / 20)
