"""Random models of images, of both families, in Hugging Face format, and pictures for them."""

import functools
from pathlib import Path

import torch
from PIL import Image as Pillow
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from aepo.tasks.base import Problem
from aepo.tasks.images import Image

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *VISION_TOKENS)
# As Qwen's own: parts of a turn are its text and its images.
TEMPLATE = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}
{%- if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
FAMILIES = ("qwen2.5-vl", "qwen3-vl")


def vision_tokenizer(letters: str | None = None) -> PreTrainedTokenizerFast:
    """One token per byte, or per letter of these (others are lost), then Qwen's special ones."""
    known = pre_tokenizers.ByteLevel.alphabet() if letters is None else letters
    alphabet = {letter: i for i, letter in enumerate(sorted(known))}
    inner = Tokenizer(BPE(vocab=alphabet, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(SPECIAL))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL),
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_vision_model(folder: Path, family: str = "qwen2.5-vl", tokenizer=None, seed: int = 0, **text) -> Path:
    """A random model of this family with two layers of text and two of vision, 68 to 85 thousand parameters."""
    tokenizer = tokenizer or vision_tokenizer()
    ids = tokenizer.convert_tokens_to_ids
    new = family == "qwen3-vl"
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    words = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "rope_parameters": rope | ({"mrope_interleaved": True} if new else {}),
        **({"head_dim": 8} if new else {}),
        **text,
    }
    sight = {
        "depth": 2,
        "hidden_size": 24 if new else 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 32,
        "initializer_range": 0.2,
        **({"num_position_embeddings": 64, "deepstack_visual_indexes": [0]} if new else {}),
        **({} if new else {"window_size": 16, "fullatt_block_indexes": [1]}),
    }
    places = {
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }
    classes = {False: (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration)}
    classes[True] = (Qwen3VLConfig, Qwen3VLForConditionalGeneration)
    config, kind = classes[new]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        kind(config(text_config=words, vision_config=sight, **places)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"shortest_edge": 64, "longest_edge": 4096}
    Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, temporal_patch_size=2, size=size).save_pretrained(folder)
    return folder


@functools.cache
def picture(width: int = 24, height: int = 16, seed: int = 0) -> Image:
    """A picture of random colours."""
    noise = torch.randint(256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Image.of(Pillow.fromarray(noise.numpy()), "a picture")


def asked(*images: Image, text: str | None = None, name: str = "p") -> Problem:
    """A chat problem that shows these pictures."""
    content = text if text is not None else "<image>" * len(images) + "what?"
    return Problem(name, content, {}, (("user", content),), images=images)


def sampler(policy, **settings):
    from aepo.sampling.hf import HFSampler  # the environments of other trainers use this file without the loop

    ends = {"eos_token_ids": policy.eos_token_ids, "pad_token_id": policy.pad_token_id}
    return HFSampler(policy.model, look=policy.look, **ends, **settings)
