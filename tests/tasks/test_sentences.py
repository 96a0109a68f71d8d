"""The task `sentences`: prompts, held-out words, the conditions, and answers that try to cheat."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aepo.errors import InvalidValue
from aepo.model.encoding import Encoding
from aepo.tasks import TASKS, Sentences
from aepo.tasks.sentences import EXAMPLE_LENGTH, EXAMPLE_WORDS, EXAMPLES, FORMS, HELD_PART, LENGTHS, broken_rules
from aepo.tasks.words import (
    ABOUT_THE_TASK,
    ADJECTIVES,
    AFTER_ARTICLE,
    ARTICLES,
    FUNCTION_WORDS,
    NOUNS,
    STARTS,
    VERBS,
)
from tests.tiny_models import TEMPLATE, byte_tokenizer

TASK = Sentences()
PROMPT = "Write a statement with the words dog and ball, 6 to 12 words long.\nThe dog ran after a red ball in the park."


def asked(words=("river", "lamp"), length=(6, 14), form="statement", given="") -> dict:
    prompt = f"{PROMPT}\n\nWrite {FORMS[form].format(given)} with the words {words[0]} and {words[1]}."
    return {"words": words, "length": length, "form": form, "given": given, "prompt": prompt}


def reward(text: str, truncated=False, **conditions) -> float:
    return TASK.reward(asked(**conditions), text, truncated)


# --- right answers ---


@pytest.mark.parametrize(
    ("text", "conditions"),
    [
        ("The lamp shone over the dark river all night.", {}),
        ("A lamp fell into the river yesterday.", {}),
        ("My sister's lamp lit the river, and we sailed home.", {}),
        ("We put a well-made lamp beside the river.", {}),
        ("  The lamp shone over the dark river all night.\n", {}),
        ("Did the lamp fall into that river?", {"form": "question"}),
        ("When the lamp broke, we left the river.", {"form": "start", "given": "When"}),
        ("My lamp fell into a river today.", {"form": "without", "given": "the"}),
        ("He moved a lamp while the river froze.", {"words": ("lamp", "moved")}),
        ("I saw a river by lamp.", {"length": (5, 12)}),
    ],
)
def test_right_answers(text, conditions):
    assert broken_rules(asked(**conditions), text) == []
    assert reward(text, **conditions) == 1.0


def test_many_different_answers_are_right():
    """4 x 4 x 4 x 4 sentences of one pattern alone."""
    parts = (
        ("My", "Her", "Some", "The"),
        ("lamp fell into", "lamp stood beside", "lamp lit", "lamp floated on"),
        ("the", "that", "a", "our"),
        ("river yesterday.", "river all night.", "river again.", "river during winter."),
    )
    answers = {" ".join(part) for part in product(*parts)}
    assert len(answers) == 256
    assert all(reward(answer) == 1.0 for answer in answers)


# --- parts of the reward ---


@pytest.mark.parametrize(
    ("text", "conditions", "share"),
    [
        ("The lamp shone over the dark valley all night.", {}, 1 / 2),  # one of two words
        ("The lamps shone over the dark river all night.", {}, 1 / 2),  # another form of the word
        ("The lamplight fell on the dark river.", {}, 1 / 2),  # the word inside another one
        ("The lamp shone over the dark valley, but nobody was there to see the old tree.", {}, 1 / 3),  # too long
        ("The river has a lamp.", {}, 2 / 3),  # too short
        ("The lamp shone over the dark river?", {}, 2 / 3),  # another mark
        ("The lamp shone over the dark river.", {"form": "question"}, 2 / 3),
        ("The lamp shone over the dark river.", {"form": "start", "given": "When"}, 2 / 3),
        ("The lamp shone over the dark river.", {"form": "without", "given": "the"}, 2 / 3),
        ("The river has a lamp?", {}, 1 / 3),
        ("The house stood over the dark valley all night.", {}, 0.0),  # neither word
    ],
)
def test_golden_shares_of_the_conditions(text, conditions, share):
    """(words there / 2) * (1 + length + form) / 3."""
    assert broken_rules(asked(**conditions), text) == []
    assert reward(text, **conditions) == pytest.approx(share)


def test_only_a_right_answer_counts_as_right():
    rule = TASK.right_rule
    assert rule.alone(1.0)
    assert not rule.alone(2 / 3) and not rule.alone(0.5)


def test_a_completion_that_was_cut_is_wrong():
    assert reward("The lamp shone over the dark river all night.", truncated=True) == 0.0


# --- cheats ---


CHEATS = {
    # repetition
    "River lamp river lamp river lamp river lamp.": "repetition",
    "The lamp and the lamp saw the river.": "repetition",
    "The lamp was very very near the river.": "repetition",
    "The river was the the lamp of us.": "repetition",
    "The lamp in the river in the house in the town in it.": "repetition",
    "It was that I was in a river that was a lamp, was it.": "repetition",
    # copies of the prompt
    "The dog ran after a river and one lamp.": "copy",
    "Write a statement with a lamp at the river.": "copy",
    "It is a statement with the words lamp, river.": "copy",
    "This sentence contains a lamp over the river.": "copy",
    "The word lamp is not the word river.": "copy",
    "I must mention both a lamp by the river.": "copy",
    # lists
    "River, lamp, and the house in a town.": "list",
    "River and lamp are in the house.": "list",
    "We saw it: river.": "characters",
    "We have river, lamp in the old house.": "list",
    "There is river or lamp in the house.": "list",
    "The lamp, a house, a tree, the river.": "list",
    "Lamp house tree garden river town flower.": "grammar",
    # chains of small words
    "River of the in to a with lamp by.": "grammar",
    "It was so that he who had lamp by river.": "grammar",
    "We put a lamp on the of river.": "grammar",
    "We saw the lamp and river the.": "grammar",
    # words that are none
    "The lamp is xzqt of a river kkkl.": "grammar",
    "The lamp is ooooh in our river today.": "grammar",
    "The lamp is incomprehensibilities of a river.": "grammar",
    # characters
    "The lamp shone. The river was dark.": "characters",
    "The lamp shone over\nthe dark river all night.": "characters",
    "the lamp shone over the dark river all night.": "characters",
    'The "lamp" shone over the dark "river" all night.': "characters",
    "The lamp shone over the dark river all night!": "form",
    "The lamp shone over the dark river all night...": "characters",
    "The lamp shone over the dark river all night": "characters",
    "The lamp shone over the dark river all night .": "characters",
    "The lamp  shone over the dark river.": "characters",
    "The lamp shone over the dark river 7.": "characters",
    "The l\u0430mp shone over the dark river.": "characters",  # a Cyrillic letter
    "The la\u200bmp shone over the dark river.": "characters",  # a space of no width
    "Der Fluß und die lamp sind river.": "characters",
    "The lamp shone over the dark river.<|im_end|>": "characters",
    "The lamp shone over the dark river. 🙂": "characters",
    "- The lamp shone over the dark river.": "characters",
    "Sentence: The lamp shone over the dark river.": "characters",
    "The lamp (my lamp) shone over the river.": "characters",
    ".": "characters",
    "": "characters",
    "River-lamp was in our house on a hill.": "words",
    "River'lamp was in our house on a hill.": "words",
}


@pytest.mark.parametrize(("text", "rule"), CHEATS.items())
def test_cheats_are_not_right(text, rule):
    """Each breaks the rule that is meant for it; those of words and form get a part of the reward at most."""
    broken = broken_rules(asked(), text)
    if rule in ("words", "form"):
        assert broken == [] and reward(text) < 0.7
    else:
        assert rule in broken
        assert reward(text) == 0.0


def test_one_answer_does_not_serve_for_two_prompts():
    """The best fixed answer gets no reward at all where it has neither word."""
    fixed = "The lamp shone over the dark river all night."
    others = [problem for problem in TASK._train if not {"lamp", "river"} & set(problem.data["words"])]
    assert len(others) > 200
    assert all(TASK.reward(problem.data, fixed, False) == 0.0 for problem in others)


def test_a_template_without_sense_for_all_prompts_misses_conditions():
    """The same frame with the two words put in: refused by the form, the length or the words of half the prompts."""
    rewards = []
    for problem in TASK._train:
        one, other = problem.data["words"]
        rewards.append(TASK.reward(problem.data, f"The {one} was near a {other} today.", False))
    assert sum(value == 1.0 for value in rewards) / len(rewards) < 0.5


@given(st.text())
def test_any_text_has_a_verdict(text):
    assert reward(text) in (0.0, pytest.approx(1 / 6), pytest.approx(1 / 3), 0.5, pytest.approx(2 / 3), 1.0)


@given(st.lists(st.sampled_from(["river", "lamp", "and", "the", ","]), min_size=1, max_size=16))
def test_no_shuffle_of_the_words_and_of_small_ones_is_right(words):
    assert reward(" ".join(words).replace(" ,", ",").capitalize() + ".") < 1.0


def test_a_prompt_answered_by_itself_is_wrong():
    for problem in TASK._train:
        for line in problem.data["prompt"].splitlines():
            assert TASK.reward(problem.data, line, False) < 1.0


# --- prompts ---


def test_the_worked_examples_are_right_and_of_the_prompts_form():
    for form, (named, answer) in EXAMPLES.items():
        conditions = {**asked(EXAMPLE_WORDS, EXAMPLE_LENGTH, form, named), "prompt": ""}
        assert TASK.reward(conditions, answer, False) == 1.0
    assert EXAMPLES.keys() == FORMS.keys()


def test_golden_prompt():
    data = asked(("quick", "hill"), (6, 14), "start", "When")
    problem = TASK._problem("p", data)
    assert problem.messages == (
        ("system", ""),
        ("user", 'Write a statement that begins with "Once" with the words dog and ball, 6 to 12 words long.'),
        ("assistant", "Once a dog ran after some red ball outside."),
        ("user", 'Write a statement that begins with "When" with the words quick and hill, 6 to 14 words long.'),
    )
    plain = Sentences(style="plain")._problem("p", data)
    assert plain.messages == () and plain.text == plain.data["prompt"]
    assert plain.text.endswith("Once a dog ran after some red ball outside.\n\n" + problem.messages[3][1] + "\n")


def test_evaluation_has_words_that_no_training_prompt_has():
    train = {word for problem in TASK._train for word in problem.data["words"]}
    held = {word for problem in TASK.eval_problems(128) for word in problem.data["words"]}
    assert len({problem.id for problem in TASK.eval_problems(128)}) == 128
    assert not train & held
    assert len(train) > 150 and len(held) > 60
    assert len(NOUNS) // HELD_PART > 50


def test_the_prompts_have_every_form_and_length():
    data = [problem.data for problem in TASK._train]
    assert len(data) == 256
    assert {one["form"] for one in data} == set(FORMS)
    assert {one["length"] for one in data} == set(LENGTHS)
    assert {one["given"] for one in data if one["form"] == "start"} == set(STARTS)
    for one in data:
        assert one["given"].lower() not in one["words"]


def test_every_round_of_training_is_a_new_order_of_the_same_prompts():
    rounds = [[TASK.train_problem(3, 256 * lap + i).id for i in range(256)] for lap in (0, 1)]
    assert sorted(rounds[0]) == sorted(rounds[1]) and rounds[0] != rounds[1]
    assert [TASK.train_problem(4, i).id for i in range(256)] != rounds[0]
    assert [Sentences().train_problem(3, i) for i in range(8)] == [TASK.train_problem(3, i) for i in range(8)]


def test_more_prompts_begin_with_the_same_ones():
    assert Sentences(train_prompts=300)._train[:256] == TASK._train


def test_the_lists_are_plain_and_disjoint():
    kinds = (*NOUNS, *VERBS, *ADJECTIVES)
    assert len(kinds) == len(set(kinds)) > 400
    assert all(word.isascii() and word.isalpha() and word.islower() for word in kinds)
    assert not set(kinds) & (FUNCTION_WORDS | ABOUT_THE_TASK | set(EXAMPLE_WORDS))
    assert FUNCTION_WORDS >= ARTICLES | AFTER_ARTICLE
    assert {word.lower() for word in STARTS} <= FUNCTION_WORDS


def test_a_model_without_a_chat_template_gets_plain_text():
    tokenizer = byte_tokenizer()
    with pytest.raises(InvalidValue, match="chat template"):
        Encoding(tokenizer, "m").prompt(TASK.train_problem(0, 0))
    assert Encoding(tokenizer, "m").prompt(Sentences(style="plain").train_problem(0, 0))
    tokenizer.chat_template = TEMPLATE
    text = tokenizer.decode(Encoding(tokenizer, "m").prompt(TASK.train_problem(0, 0)))
    assert text.startswith("[system][user]Write a") and text.endswith("words long.[assistant]")


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"train_prompts": 0}, "task.train_prompts"),
        ({"train_prompts": 10_001}, "task.train_prompts"),
        ({"eval_prompts": 0}, "task.eval_prompts"),
        ({"max_response": 0}, "task.max_response"),
    ],
)
def test_refused_settings(settings, field):
    with pytest.raises(InvalidValue, match=field):
        Sentences(**settings)


def test_too_many_evaluation_problems_are_refused():
    with pytest.raises(InvalidValue, match="evaluation.prompts: got 129"):
        TASK.eval_problems(129)


def test_it_is_a_built_in_task():
    assert TASKS["sentences"] is Sentences
    assert TASK.max_tokens == 32 and TASK.solution({}) is None and TASK.known_answer(asked()) is None
