"""Rows with images in TRL's own form: TRL's loss and gradient are the core's, tempered rows keep their images.

TRL asks for a processor. transformers builds Qwen's only where torchvision is installed, so these tests have their own.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForImageTextToText, BatchFeature, ProcessorMixin

from aepo.errors import InvalidValue
from aepo.integrations.trl import rows as table

from .parity import ParityTrainer
from .tiny import lora, series, trainer

pytest.importorskip("PIL")
from tests.tiny_vision import (
    FAMILIES,
    TEMPLATE,
    make_vision_model,
    picture,
    vision_tokenizer,
)

LETTERS = "0123456789what?"
# Pictures of two sizes; the question names the picture, so that a test finds it by the tokens of the prompt.
PICTURES = [picture(24, 16, seed).load() for seed in range(4)] + [picture(16, 16, seed).load() for seed in range(4)]


class Processor(ProcessorMixin):
    """What Qwen's processor does with images and texts."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None) -> None:
        self.image_processor, self.tokenizer, self.chat_template = image_processor, tokenizer, chat_template
        self.image_token = "<|image_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)

    def __call__(self, images: Any = None, text: Any = None, padding: bool = False, **_: Any) -> BatchFeature:
        texts, fields = [text] if isinstance(text, str) else list(text), {}
        if images is not None:
            fields = dict(
                self.image_processor(images=[one for row in images for one in row or ()], return_tensors="pt")
            )
            counts = iter((fields["image_grid_thw"].prod(-1) // 4).tolist())
            texts = [re.sub(r"<\|image_pad\|>", lambda place: place[0] * next(counts), one) for one in texts]
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        types = [[int(token == self.image_token_id) for token in row] for row in ids]
        mask = [[1] * len(row) for row in ids]
        made = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": types}
        if padding:
            width = max(map(len, ids))
            made = {name: torch.tensor([[0] * (width - len(row)) + row for row in rows]) for name, rows in made.items()}
        return BatchFeature({**made, **fields})


@functools.cache
def processor() -> Processor:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    size = {"shortest_edge": 64, "longest_edge": 4096}
    images = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2, size=size)
    tokenizer = vision_tokenizer(LETTERS)
    tokenizer.padding_side, tokenizer.chat_template = "left", TEMPLATE
    return Processor(images, tokenizer, TEMPLATE)


def question(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"what {number}?"}]


def dataset(column: str, text: bool = False) -> Dataset:
    """A row for each picture; with `text`, every second row has none."""
    rows = []
    for number, shown in enumerate(PICTURES):
        images = [] if text and number % 2 else [shown]
        rows.append({"prompt": question(number), column: images if column == "images" else shown})
    return Dataset.from_list(rows)


def odd_start(completions: Any, **_: Any) -> list[float]:
    """1 for an answer whose first letter has an odd number: about half of them are right."""
    firsts = [(turns[0]["content"] or "x")[0] for turns in completions]
    return [float(ord(first) % 2) for first in firsts]


class Shown(ParityTrainer):
    """Finds the images of the core's batch by the tokens of its prompts."""

    text = False

    @functools.cached_property
    def known(self) -> dict[tuple[int, ...], Any]:
        found = {}
        for number, shown in enumerate(PICTURES):
            bare = self.text and number % 2
            content = [{"type": "image", "image": shown}] * (not bare) + [{"type": "text", "text": f"what {number}?"}]
            made = processor().apply_chat_template(
                [[{"role": "user", "content": content}]], add_generation_prompt=True, tokenize=True, return_dict=True
            )
            found[tuple(made["input_ids"][0])] = made
        return found

    def images(self, batch: Any) -> dict[str, torch.Tensor]:
        width = batch.prompt_width
        prompts = table.token_lists(batch.input_ids[:, :width], batch.attention_mask[:, :width])
        shown = [made for made in (self.known[tuple(prompt)] for prompt in prompts) if "pixel_values" in made]
        return {
            "pixel_values": torch.cat([made["pixel_values"] for made in shown]),
            "image_grid_thw": torch.cat([made["image_grid_thw"] for made in shown]),
            "mm_token_type_ids": (batch.input_ids == processor().image_token_id).int(),
        }


@functools.cache
def folder(tmp: Any, family: str) -> Any:
    return make_vision_model(tmp / family, family, vision_tokenizer(LETTERS))


def run(
    tmp_path: Any, method: str, family: str = FAMILIES[0], column: str = "images", text: bool = False, **changes: Any
):
    model = AutoModelForImageTextToText.from_pretrained(folder(tmp_path, family))
    target = {"target": "0.5"} if method.startswith("aepo") else {"target": None}
    cls = type("Shown", (Shown,), {"text": text})
    settings = {
        "method": method,
        "max_grad_norm": 0.0,
        "learning_rate": 2e-2,
        "max_steps": 4,
        "max_completion_length": 3,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 4,
        "train_dataset": dataset(column, text),
        "reward_funcs": odd_start,
        "processing_class": processor(),
    }
    done = trainer(tmp_path / "run", policy=model, cls=cls, **{**settings, **target, **changes})
    done.train()
    return done


@pytest.mark.parametrize("method", ["grpo", "aepo", "aepo-reweighted", "entropy-reg", "lp-reg"])
def test_loss_and_gradient_are_the_cores(tmp_path, method):
    settings = {"entropy-reg": {"control.coefficient": 0.1}, "lp-reg": {"control.share": 0.3}}.get(method, {})
    check(run(tmp_path, method, settings=settings), method)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("column", ["image", "images"])
def test_both_families_and_both_columns(tmp_path, family, column):
    check(run(tmp_path, "aepo", family, column), "aepo")


def test_an_adapter_and_rows_without_an_image(tmp_path):
    # TRL itself cannot score a part of a batch in which no row has an image.
    whole = {"per_device_train_batch_size": 64, "gradient_accumulation_steps": 1}
    check(run(tmp_path, "aepo", text=True, peft_config=lora(4), **whole), "aepo")


def check(done: Any, method: str) -> None:
    assert len(done.updates) == 4
    for update in done.updates:
        assert sum(update.losses) == pytest.approx(update.core, abs=1e-5)
        assert update.gradient.norm() > 1e-3
        torch.testing.assert_close(update.gradient, update.core_gradient, atol=1e-5, rtol=1e-4)
    if method == "aepo":  # tempered rows with images took the places of others
        assert sum(series(done, "aepo/extra_used")) > 0


def test_images_of_another_interface_are_refused():
    rows = dict.fromkeys(("prompt_ids", "prompt_mask", "pixel_values", "num_images"), torch.zeros(1))
    with pytest.raises(InvalidValue, match="images of Qwen's interface"):
        table.check(rows)
    with pytest.raises(InvalidValue, match="train_dataset: got .*pixel_attention_mask"):
        table.check({**rows, "pixel_attention_mask": torch.zeros(1)})
