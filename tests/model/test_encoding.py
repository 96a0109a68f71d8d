"""One row becomes the same tokens everywhere: one BOS where the tokenizer adds one, chat turns as the row says."""

import pytest

from aepo.errors import InvalidValue
from aepo.model.encoding import Encoding
from aepo.tasks.base import Problem
from aepo.tasks.styles import STYLES, render
from tests.tiny_tokenizers import BEGINNING, FAMILIES, LLAMA3, family_tokenizer


def encoding(family: str, template: str | None = None) -> Encoding:
    return Encoding(family_tokenizer(family, template), family)


def problem(text="2 + 2?", messages=(), arguments=None, where="") -> Problem:
    return Problem("p", text, {}, tuple(messages), arguments or {}, where)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_style_begins_with_one_bos_where_the_tokenizer_adds_one(family, style):
    found, shown = encoding(family), render(style, "2 + 2?")
    ids = found.prompt(problem(shown.text, shown.messages))
    bos = found.tokenizer.bos_token_id
    if family in BEGINNING:
        assert ids[0] == bos and ids.count(bos) == 1
    else:
        assert bos is None and ids[0] != found.tokenizer.eos_token_id
    text = found.tokenizer.decode(ids[family in BEGINNING :])
    assert "2 + 2?" in text and (shown.messages or text.strip() == shown.text.strip())


@pytest.mark.parametrize("family", BEGINNING)
def test_a_template_without_a_bos_gets_the_tokenizers_own(family):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    turns, shown = problem(messages=[("user", "Hm?")]), []
    for start in ("{{ bos_token }}", "", "\n{{ bos_token }}"):
        found = encoding(family, start + template)
        ids, bos = found.prompt(turns), found.tokenizer.bos_token_id
        assert ids.count(bos) == 1 and (ids[0] == bos or start.startswith("\n"))
        shown.append(found.tokenizer.decode(ids[ids.index(bos) + 1 :]).strip())  # a space begins a text in Mistral's
    assert shown == ["user: Hm?"] * 3


def test_a_text_that_spells_the_bos_has_one():
    found = encoding("llama3")
    assert found.plain("<|begin_of_text|>2 + 2?") == found.plain("2 + 2?")
    assert found.text("2 + 2?") == found.plain("2 + 2?")[1:]


def test_an_end_that_the_tokenizer_adds_is_left_out():
    from tokenizers.processors import TemplateProcessing

    found = encoding("gemma")
    inner = found.tokenizer.backend_tokenizer
    ids = [(token, inner.token_to_id(token)) for token in ("<bos>", "<eos>")]
    inner.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=ids)
    assert found.tokenizer("x")["input_ids"][-1] == found.tokenizer.eos_token_id
    assert found.plain("x") == (found.tokenizer.bos_token_id, *found.text("x"))


def test_golden_arguments_reach_the_template():
    found, turns = encoding("qwen3"), [("user", "2 + 2?")]
    shown = {
        value: found.tokenizer.decode(found.prompt(problem(messages=turns, arguments={"enable_thinking": value})))
        for value in (True, False)
    }
    start = "<|im_start|>system\nBe helpful.<|im_end|>\n<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    assert shown == {True: start, False: start + "<think>\n\n</think>\n\n"}


def test_an_argument_that_the_template_does_not_use_is_unknown():
    found = encoding("qwen3")
    with pytest.raises(
        InvalidValue, match=r"^f, line 3, chat_template_kwargs: got 'enable_thinkin'; .*mean enable_thinking"
    ):
        found.prompt(problem(messages=[("user", "x")], arguments={"enable_thinkin": False}, where="f, line 3"))
    with pytest.raises(InvalidValue, match="^messages: .*add_generation_prompt"):
        found.prompt(problem(messages=[("user", "x")], arguments={"add_generation_prompt": False}))


@pytest.mark.parametrize(
    ("family", "turns", "words"),
    [
        (
            "gemma",
            [("system", "s"), ("user", "x")],
            r"got \['system', 'user'\]; .*gemma takes \(System role not supported\)",
        ),
        (
            "mistral",
            [("tool", "4"), ("user", "x")],
            "got 'a turn of tool'; must be a role that the chat template knows",
        ),
        ("qwen3", [("observation", "4"), ("user", "x")], "got 'a turn of observation'"),
        ("llama3", [("User", "x")], "got 'a turn of User'"),
        ("qwen3", [("user", "x"), ("", "y")], "got 'a turn of '"),
    ],
)
def test_turns_that_a_template_does_not_take_are_refused_with_the_row(family, turns, words):
    with pytest.raises(InvalidValue, match=f"^task.train f.jsonl, line 7, row 7, messages: {words}"):
        encoding(family).prompt(problem(messages=turns, where="task.train f.jsonl, line 7, row 7"))


def test_a_tool_turn_is_shown_by_a_template_that_knows_it():
    found = encoding("qwen3")
    ids = found.chat([("user", "x"), ("assistant", "calling"), ("tool", "4")])
    assert "<tool_response>4</tool_response>" in found.tokenizer.decode(ids)


def test_developer_is_system_where_the_template_does_not_know_it():
    turns = [("developer", "Be brief."), ("user", "x")]
    for family in ("qwen3", "llama3"):
        found = encoding(family)
        assert found.chat(turns) == found.chat([("system", "Be brief."), ("user", "x")])
    knows = encoding("llama3", "{# developer #}" + LLAMA3)
    assert "<|start_header_id|>developer<|end_header_id|>" in knows.tokenizer.decode(knows.chat(turns))


def test_a_template_that_leaves_a_turn_out_is_refused_and_one_for_parts_gets_parts():
    found = encoding("qwen3", "{% for m in messages if m.role == 'user' %}[{{ m.content }}]{% endfor %}")
    with pytest.raises(InvalidValue, match="^messages: got 'a turn of system'; .*leaves this one out"):
        found.chat([("system", "Be brief."), ("user", "x")])
    parts = "{% for m in messages %}{% for part in m.content %}[{{ part.text }}]{% endfor %}{% endfor %}"
    found = encoding("qwen3", parts)
    assert found.tokenizer.decode(found.chat([("user", "one"), ("user", "two")])) == "[one][two]"
