"""Tokenizers made on the spot that begin and end texts as those of four families do, with templates of their kind."""

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

LLAMA3 = """{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>

{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif %}"""
GEMMA = """{{ bos_token }}{% for m in messages %}
{%- if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- set role = 'model' if m.role == 'assistant' else m.role %}
{{- '<start_of_turn>' + role + '\n' + (m.content | trim) + '<end_of_turn>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
MISTRAL = """{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}
{%- elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}
{%- else %}{{ raise_exception('only user and assistant roles') }}{% endif %}{% endfor %}"""
QWEN3 = """{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{% endif %}
{%- for m in messages %}{% if m.role in ('system', 'user', 'assistant') %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% elif m.role == 'tool' %}
{{- '<|im_start|>user\n<tool_response>' + m.content + '</tool_response><|im_end|>\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"""

# Name: special tokens (the first one begins texts if the family has such a token), end of sequence, template.
FAMILIES = {
    "llama3": (
        ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
        "<|end_of_text|>",
        LLAMA3,
    ),
    "gemma": (["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"], "<eos>", GEMMA),
    "mistral": (["<s>", "</s>", "[INST]", "[/INST]"], "</s>", MISTRAL),
    "qwen3": (["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "<|endoftext|>", QWEN3),
}
BEGINNING = ("llama3", "gemma", "mistral")


def family_tokenizer(family: str, template: str | None = None) -> PreTrainedTokenizerFast:
    """A byte per token (a character in Mistral's), then the family's special tokens."""
    special, eos, own = FAMILIES[family]
    if family == "mistral":  # as sentencepiece: a space before the text, which is a token
        letters = ["▁", *map(chr, range(33, 127)), "\n"]
        inner = Tokenizer(BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        inner.decoder = decoders.Metaspace(prepend_scheme="first")
    else:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        inner = Tokenizer(BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(special)
    names = {"eos_token": eos, "additional_special_tokens": special}
    if family in BEGINNING:
        first = inner.token_to_id(special[0])
        inner.post_processor = processors.TemplateProcessing(
            single=f"{special[0]} $A", special_tokens=[(special[0], first)]
        )
        names["bos_token"] = special[0]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **names)
    tokenizer.chat_template = own if template is None else template
    return tokenizer
