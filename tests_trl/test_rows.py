"""The pieces that need no trainer."""

from __future__ import annotations

import pytest
import torch

from aepo.errors import InvalidValue
from aepo.integrations.trl.rows import Correction, check, fit, place, placement, tempered_correction, token_weights


def hot_rows(gap: list[float]) -> tuple[dict, torch.Tensor]:
    """A tempered row with this gap between log pi^T and the sampler's log-probability, and log pi^T."""
    tempered = torch.full((1, len(gap)), -2.0)
    rows = {
        "completion_mask": torch.ones(1, len(gap), dtype=torch.long),
        "importance_sampling_ratio": torch.full((1, len(gap)), 0.1),
        "old_per_token_logps": torch.full((1, len(gap)), -1.0),
        "sampling_per_token_logps": tempered - torch.tensor([gap]),
    }
    return rows, tempered


def test_tempered_rows_are_not_weighted_back_to_t_1():
    """vLLM's log-probabilities are after temperature: TRL's correction would weigh the rows by pi / pi^T."""
    rows, tempered = hot_rows([0.0, 0.0])
    for known in (tempered, None):
        fair = tempered_correction(rows, Correction("token_truncate", None, 3.0), known)
        assert torch.equal(fair["importance_sampling_ratio"], torch.ones(1, 2))
        assert torch.equal(fair["sampling_per_token_logps"], rows["old_per_token_logps"])
    assert torch.equal(rows["importance_sampling_ratio"], torch.full((1, 2), 0.1))


@pytest.mark.parametrize(
    ("mode", "low", "high", "first", "second"),
    [
        ("token_truncate", None, 2.0, [2.0, 0.818731, 1.105171], [0.367879, 0.818731]),
        ("token_truncate", 0.5, 2.0, [2.0, 0.818731, 1.105171], [0.5, 0.818731]),
        ("token_mask", 0.5, 2.0, [0.0, 0.818731, 1.105171], [0.0, 0.818731]),
        ("sequence_mask", None, 3.0, [2.225541], [0.301194]),
        ("sequence_mask", None, 2.0, [0.0], [0.301194]),
        ("sequence_truncate", None, 2.0, [2.0], [0.301194]),
        ("token_mask", None, None, [2.459603, 0.818731, 1.105171], [0.367879, 0.818731]),
    ],
)
def test_golden_the_ratio_of_tempered_rows_is_trls(mode, low, high, first, second):
    """The values come from running TRL 1.16.0 (its own clamp without a bound raises)."""
    for gap, wanted in (([0.9, -0.2, 0.1], first), ([-1.0, -0.2], second)):
        rows, tempered = hot_rows(gap)
        made = tempered_correction(rows, Correction(mode, low, high), tempered)
        assert made["importance_sampling_ratio"].tolist() == [pytest.approx(wanted, abs=1e-6)]


def test_padding_and_unknown_log_probabilities_have_no_gap():
    rows, tempered = hot_rows([0.9, float("nan"), 0.9])
    rows["completion_mask"][0, 2] = 0
    made = tempered_correction(rows, Correction("sequence_truncate", None, None), tempered)
    assert made["importance_sampling_ratio"].tolist() == [[pytest.approx(2.459603, abs=1e-6)]]


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
    with pytest.raises(InvalidValue, match=r"train_dataset: got \['pixel_attention_mask', 'tool_mask'\]"):
        check({"prompt_ids": 1, "tool_mask": 1, "pixel_attention_mask": 1})


def test_token_weights_by_hand():
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    given = {"window_tokens": torch.tensor(12.0), "longest": 5, "accumulated": 2}
    assert token_weights("dapo", mask, **given)[0, 0].item() == pytest.approx(1 / 12)
    assert token_weights("grpo", mask, **given)[:, 0].tolist() == pytest.approx([1 / 8, 1 / 4])
    assert token_weights("bnpo", mask, **given)[0, 0].item() == pytest.approx(1 / 6)
    assert token_weights("dr_grpo", mask, **given)[0, 0].item() == pytest.approx(1 / 20)
