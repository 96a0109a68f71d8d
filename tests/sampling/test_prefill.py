"""Prompts of unlike length are computed apart and decoded together."""

import pytest
import torch
from transformers.cache_utils import DynamicLayer

import aepo.sampling.prefill as prefill
from aepo.sampling.prefill import alike, shown
from aepo.types import Prompt
from tests.sampling.test_hf import LONG, MIDDLE, SHORT, Forwards, assert_same, mixed, run, tiny


def prompts(*lengths: int) -> list[Prompt]:
    return [Prompt(str(number), (1,) * length, {}) for number, length in enumerate(lengths)]


def lengths(groups: list[list[Prompt]]) -> list[list[int]]:
    return [[len(prompt.tokens) for prompt in group] for group in groups]


@pytest.fixture
def few(monkeypatch):
    """Parts are made of short prompts, too."""
    monkeypatch.setattr(prefill, "LEAST_COLUMNS", 2)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((9,), [[9]]),
        ((100, 100, 100), [[100, 100, 100]]),
        ((10, 9, 300, 290, 8), [[300, 290], [10, 9, 8]]),
        ((300, 20), [[300, 20]]),  # 280 columns are not worth a pass
        ((600, 20), [[600], [20]]),
        ((1000, 800, 800, 800, 800), [[1000, 800, 800, 800, 800]]),  # a fifth of each row
        ((1000, 700, 700, 400, 390), [[1000], [700, 700], [400, 390]]),
    ],
)
def test_prompts_are_parted_where_it_saves_enough_padding(given, expected):
    assert lengths(alike(prompts(*given))) == expected


def test_shown_is_false_on_padding_alone():
    assert shown(prompts(3, 3), torch.device("cpu")) is None
    assert shown(prompts(1, 3), torch.device("cpu")).tolist() == [[False, False, True], [True, True, True]]


@pytest.mark.parametrize("decode", ["dynamic", "static"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
def test_parts_change_nothing_but_the_passes(monkeypatch, few, kind, decode):
    model = tiny(kind)
    parted = Forwards(model)
    ours = run(model, mixed(), decode=decode)
    assert parted.shapes[:3] == [(1, len(LONG)), (1, len(MIDDLE)), (1, len(SHORT))]
    monkeypatch.setattr(prefill, "LEAST_COLUMNS", 1000)
    whole = Forwards(model)
    assert_same(ours, run(model, mixed(), decode=decode))
    assert whole.shapes[0] == (3, len(LONG)) and whole.shapes[1][1] == 1


def test_a_sliding_window_is_computed_whole(few):
    model = tiny("qwen2-window")
    passes = Forwards(model)
    run(model, mixed())
    assert passes.shapes[0] == (3, len(LONG))


def test_a_model_that_keeps_no_keys_although_it_says_so_is_computed_whole(monkeypatch, few):
    model = tiny()
    expected = run(model, mixed(), max_tokens=1)
    monkeypatch.setattr(DynamicLayer, "update", lambda self, keys, values, *args, **kwargs: (keys, values))
    passes = Forwards(model)
    assert_same(run(model, mixed(), max_tokens=1), expected)
    assert passes.shapes[-1] == (3, len(LONG))
