"""A completion ends at every token that the model's own files name."""

from types import SimpleNamespace

import pytest

from aepo.engines.ends import find_ends
from aepo.errors import InvalidValue
from aepo.model.policy import Policy
from tests.tiny_models import byte_tokenizer, make_model
from tests.tiny_tokenizers import FAMILIES, family_tokenizer

TURNS = {"llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "mistral": "</s>", "qwen3": "<|im_end|>"}


def ends(tokenizer, generation=None, config=None, prompts=()):
    """Ends of a model whose files name these ids."""
    size = len(tokenizer) + 3
    return find_ends(
        tokenizer,
        SimpleNamespace(eos_token_id=generation),
        SimpleNamespace(eos_token_id=config, vocab_size=size),
        "name",
        prompts,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_end_of_turn_of_the_template_and_the_tokenizers_end_count(family):
    tokenizer = family_tokenizer(family)
    found = ends(tokenizer)
    turn, eos = tokenizer.convert_tokens_to_ids(TURNS[family]), tokenizer.eos_token_id
    assert set(found.ids) == {turn, eos} and found.turn == turn
    assert (found.of_answer(chat=True), found.of_answer(chat=False)) == (turn, eos)


def test_all_places_are_joined_and_named():
    tokenizer = family_tokenizer("llama3")
    eos, eot = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|eot_id|>")
    found = ends(tokenizer, [65, eos], eot)
    assert found.ids == (65, eos, eot)
    assert found.line() == (
        f"a completion ends at {tokenizer.convert_ids_to_tokens(65)} (65: generation config), "
        f"<|end_of_text|> ({eos}: generation config, tokenizer), <|eot_id|> ({eot}: config, chat template)"
    )


def test_the_default_of_a_configuration_is_no_end_beside_a_generation_config():
    """LlamaConfig's own eos_token_id is 2, whatever the tokenizer says 2 is."""
    tokenizer = byte_tokenizer()
    assert ends(tokenizer, 256, 2).ids == (256,)
    assert ends(tokenizer, None, 2).ids == (2, 256)


@pytest.mark.parametrize("value", [None, [], [None], True, -1, 10**6])
def test_what_is_no_token_of_the_model_is_no_end(value):
    assert ends(byte_tokenizer(), value).ids == (256,)
    with pytest.raises(InvalidValue, match="^model: got 'name'; must be one with an end-of-sequence token"):
        ends(byte_tokenizer(eos=None), value)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n### Next{% endfor %}",
        "{{ raise_exception('no') }}",
        "{% for m in messages %}",
    ],
)
def test_a_template_that_ends_a_turn_with_text_adds_none(template):
    tokenizer = family_tokenizer("qwen3", template)
    assert ends(tokenizer).ids == (tokenizer.eos_token_id,) and ends(tokenizer).turn is None


def test_a_template_for_parts_has_its_end_of_turn():
    template = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}<|im_end|>{% endfor %}"
    tokenizer = family_tokenizer("qwen3", template)
    assert ends(tokenizer).turn == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_prompts_in_qwens_format_end_at_its_tokens():
    tokenizer = family_tokenizer("qwen3", "")
    assert ends(tokenizer).ids == (tokenizer.eos_token_id,)
    im_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ends(tokenizer, prompts=["x", "<|im_start|>user\nx"]).ids == (tokenizer.eos_token_id, im_end)


def test_a_policy_has_them_from_its_files_and_a_template_given_by_hand_counts(tmp_path):
    tokenizer = family_tokenizer("gemma")
    template, tokenizer.chat_template = tokenizer.chat_template, None
    folder = make_model(tmp_path, tokenizer=tokenizer, eos=[tokenizer.eos_token_id, 65], vocab_size=300)
    eos, turn = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert Policy.load(folder).eos_token_ids == (eos, 65)
    policy = Policy.load(folder, template=template)
    assert policy.eos_token_ids == (eos, 65, turn)
    policy.save(tmp_path / "saved")
    assert Policy.load(tmp_path / "saved").eos_token_ids == (eos, 65, turn)
