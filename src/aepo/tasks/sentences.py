"""Sentences: the task to write one English sentence under conditions that rules can check.

A prompt names two words, a length and a form, after one worked example of the same form:

    Write a question with the words dog and ball, 6 to 12 words long.
    Why did the dog bury a red ball yesterday?
    Write a question with the words river and lamp, 7 to 16 words long.

Many thousand sentences are right for every prompt, and a rule decides each condition, in the manner of IFEval
(arXiv 2311.07911, table 1). Further rules refuse what meets the conditions without being a sentence: repetitions,
copies of the prompt, bare lists of words. docs/tasks.md lists all rules.

An answer is right if it meets every condition and breaks no rule (IFEval's prompt-level strict accuracy). The reward
also counts a part of the conditions, because small models meet all of them rarely.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, Literal

from aepo.engines.right import RightRule
from aepo.errors import InvalidValue, require
from aepo.tasks.base import Problem, Task
from aepo.tasks.chat import ChatSettings
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

FORMS: Mapping[str, str] = {
    "statement": "a statement",
    "question": "a question",
    "start": 'a statement that begins with "{}"',
    "without": 'a statement without "{}"',
}
"""What the prompt says of the form, by the name of the form."""

EXAMPLES: Mapping[str, tuple[str, str]] = {
    "statement": ("", "The dog ran after a red ball in the park."),
    "question": ("", "Why did the dog bury a red ball yesterday?"),
    "start": ("Once", "Once a dog ran after some red ball outside."),
    "without": ("the", "My dog ran after a red ball this morning."),
}
"""The worked example of each form: what the form names, and a right answer with the words of `EXAMPLE_WORDS`."""

EXAMPLE_WORDS, EXAMPLE_LENGTH = ("dog", "ball"), (6, 12)

FORBIDDEN = ("the", "a", "and", "was", "is", "in", "of", "to")
"""The words that the form `without` forbids, one in each prompt."""

KINDS: Sequence[tuple[Sequence[str], Sequence[str]]] = (
    (NOUNS, NOUNS),
    (NOUNS, VERBS),
    (VERBS, NOUNS),
    (NOUNS, ADJECTIVES),
    (ADJECTIVES, NOUNS),
)
"""The kinds of the two required words."""

LENGTHS = ((5, 12), (6, 14), (7, 16))
"""The bounds of the length in words, one pair in each prompt."""

# The characters of a right answer: one line of letters, single spaces, apostrophes, hyphens and commas, and one mark.
_SENTENCE = re.compile(r"[A-Z][A-Za-z]*(?:['-][A-Za-z]+)*(?:,? [A-Za-z]+(?:['-][A-Za-z]+)*)*[.?!]")
_WORD = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*")
# A word that can be pronounced: a vowel, no letter three times in a row, at most 14 letters.
_SOUND = re.compile(r"(?=.*[aeiouy])(?!.*(.)\1\1).{1,14}")
# Most words in a row that an answer may share with the prompt.
LONGEST_COPY = 3
# How often a function word may stand in an answer. Any other word may stand there once.
MOST_REPEATED = 3
MOST_COMMAS = 1
# The least and the largest share of function words. Lists of words have less, chains of function words have more.
FUNCTION_SHARE = (0.2, 0.7)
# The reward that a right answer exceeds: only 1.0 does.
RIGHT = 0.99
# Of `HELD_PART` words of a list, one is kept for evaluation.
HELD_PART = 4


@dataclass(frozen=True)
class Sentences(ChatSettings, Task):
    """`Sentences` asks for one English sentence with two given words, a length and a form (docs/tasks.md).

    The words of evaluation prompts stand in no training prompt.
    """

    system_prompt: str | None = field(default="", kw_only=True)
    """System turn of every chat prompt. An empty one keeps out the turn that some templates add by themselves, which
    makes prompts shorter; none is for templates without system turns.
    """
    train_prompts: int = 256
    """Number of prompts that are trained on. Each round through them has a new random order."""
    eval_prompts: int = 128
    """Number of prompts that are kept for evaluation."""
    style: Literal["chat", "plain"] = "chat"
    """Whether the prompt is a turn for the model's chat template, or plain text for a model without one."""
    max_response: int = 32
    """Longest completion, tokens. A completion that is cut is wrong."""

    def __post_init__(self) -> None:
        require(1 <= self.train_prompts <= 10_000, "task.train_prompts", self.train_prompts, "from 1 to 10000")
        require(1 <= self.eval_prompts <= 1_000, "task.eval_prompts", self.eval_prompts, "from 1 to 1000")
        require(self.max_response >= 1, "task.max_response", self.max_response, "at least 1 token")

    @property
    def max_tokens(self) -> int:
        """Return `max_response`, tokens."""
        return self.max_response

    def train_problem(self, seed: int, index: int) -> Problem:
        """Return a training prompt; each round through all prompts has a new random order."""
        lap, place = divmod(index, len(self._train))
        return self._train[_order(len(self._train), seed, lap)[place]]

    def eval_problems(self, count: int) -> list[Problem]:
        """Return the first `count` evaluation prompts."""
        if count > self.eval_prompts:
            raise InvalidValue("evaluation.prompts", count, f"at most task.eval_prompts ({self.eval_prompts})")
        return list(self._kept[:count])

    def reward(self, problem: Mapping[str, Any], text: str, truncated: bool) -> float:
        """Return the share of the conditions that a sentence meets: 1.0 for a right answer.

        The reward is 0 if the text breaks a rule (`broken_rules`), if it was cut, or if neither word is in it. Else it
        is the share of the two words that are there, times the share of the met ones of three conditions: it is a
        sentence, its length, its form.
        """
        if truncated or broken_rules(problem, text):
            return 0.0
        words = _words(text)
        there = sum(words.count(word) == 1 for word in problem["words"]) / len(problem["words"])
        return there * (1 + _has_length(problem, words) + _has_form(problem, text.strip(), words)) / 3

    @property
    def right_rule(self) -> RightRule:
        """Return the rule that an answer is right if it meets every condition."""
        return RightRule.of(RIGHT)

    def located(self) -> Sentences:
        """Return the task with an absolute path of its template."""
        return replace(self, chat_template=self.template_file)

    @cached_property
    def _train(self) -> tuple[Problem, ...]:
        return self._drawn("train", self.train_prompts)

    @cached_property
    def _kept(self) -> tuple[Problem, ...]:
        return self._drawn("evaluation", self.eval_prompts)

    def _drawn(self, part: str, count: int) -> tuple[Problem, ...]:
        rng, found = random.Random(f"sentences/{part}"), dict[str, Problem]()
        while len(found) < count:
            data = _conditions(rng, held=part == "evaluation")
            name = f"sentence-{'-'.join(data['words'])}-{data['form']}"
            if name not in found:
                found[name] = self._problem(name, data)
        return tuple(found.values())

    def _problem(self, name: str, data: Mapping[str, Any]) -> Problem:
        example, answer = _example(data)
        asked = _asked(data["words"], data["length"], data["form"], data["given"])
        text = f"{example}\n{answer}\n\n{asked}\n"
        data = {**data, "prompt": text}
        if self.style == "plain":
            return Problem(name, text, data)
        turns = (("user", example), ("assistant", answer), ("user", asked))
        return self.asked(Problem(name, asked, data, turns))


def _example(data: Mapping[str, Any]) -> tuple[str, str]:
    """Return the question and the answer of the worked example."""
    given, answer = EXAMPLES[data["form"]]
    return _asked(EXAMPLE_WORDS, EXAMPLE_LENGTH, data["form"], given), answer


def _asked(words: Sequence[str], length: tuple[int, int], form: str, given: str) -> str:
    what = FORMS[form].format(given)
    return f"Write {what} with the words {words[0]} and {words[1]}, {length[0]} to {length[1]} words long."


def broken_rules(problem: Mapping[str, Any], text: str) -> list[str]:
    """Return the names of the rules that an answer breaks; none for a sentence, also one that misses a condition.

    Args:
        problem: The `Problem.data` of the prompt.
        text: The answer. Spaces around it do not count.

    >>> data = {"words": ("river", "lamp"), "prompt": "Write a statement with the words river and lamp."}
    >>> broken_rules(data, "We saw the river in the light of a lamp.")
    []
    >>> broken_rules(data, "River and lamp.")
    ['list']
    """
    text = text.strip()
    if not _SENTENCE.fullmatch(text):
        return ["characters"]
    words = _words(text)
    broken = {
        "repetition": _repeats(words),
        "copy": _copies(problem, words),
        "list": _listed(problem["words"], text),
        "grammar": not _like_a_sentence(words),
    }
    return [name for name, found in broken.items() if found]


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def _has_length(problem: Mapping[str, Any], words: Sequence[str]) -> bool:
    least, most = problem["length"]
    return bool(least <= len(words) <= most)


def _has_form(problem: Mapping[str, Any], text: str, words: Sequence[str]) -> bool:
    form, given = problem["form"], problem["given"].lower()
    own = {"start": words[0] == given, "without": given not in words}
    return own.get(form, True) and text[-1] == ("?" if form == "question" else ".")


def _listed(required: Sequence[str], text: str) -> bool:
    """Return whether a comma, "and" or "or" alone stands between the required words, or there are many commas."""
    one, other = map(re.escape, required)
    joint = r"(?:,? (?:and|or)|,)"
    item = rf"\b(?:{one}{joint} {other}|{other}{joint} {one})\b"
    return text.count(",") > MOST_COMMAS or re.search(item, text.lower()) is not None


def _repeats(words: Sequence[str]) -> bool:
    """Return whether a word follows itself, or stands there too often."""
    most = {word: MOST_REPEATED if word in FUNCTION_WORDS else 1 for word in words}
    often = any(count > most[word] for word, count in Counter(words).items())
    return often or any(one == other for one, other in pairwise(words))


def _copies(problem: Mapping[str, Any], words: Sequence[str]) -> bool:
    """Return whether the words speak of the task, or share too long a run with the prompt."""
    if not ABOUT_THE_TASK.isdisjoint(words):
        return True
    asked = _words(problem["prompt"])
    size = LONGEST_COPY + 1
    runs = {tuple(asked[place : place + size]) for place in range(len(asked) - size + 1)}
    return any(tuple(words[place : place + size]) in runs for place in range(len(words) - size + 1))


def _like_a_sentence(words: Sequence[str]) -> bool:
    """Return whether the words could be a sentence, as far as counting tells."""
    share = sum(word in FUNCTION_WORDS for word in words) / len(words)
    ends = [*words[1:], ""]
    dangling = any(
        one in ARTICLES and (after == "" or after in _NOT_AFTER_ARTICLE) for one, after in zip(words, ends, strict=True)
    )
    sounds = all(_SOUND.fullmatch(word) for word in words)
    return FUNCTION_SHARE[0] <= share <= FUNCTION_SHARE[1] and not dangling and sounds


_NOT_AFTER_ARTICLE = FUNCTION_WORDS - AFTER_ARTICLE


def _conditions(rng: random.Random, held: bool) -> dict[str, Any]:
    """Return the conditions of a random prompt.

    Args:
        rng: The source of randomness.
        held: Whether the words are those that are kept for evaluation.
    """
    lists = [_part(kind, held) for kind in rng.choice(KINDS)]
    first = rng.choice(lists[0])
    second = rng.choice([word for word in lists[1] if word != first])
    form = rng.choice(list(FORMS))
    given = {"start": STARTS, "without": FORBIDDEN}.get(form, ("",))
    return {"words": (first, second), "length": rng.choice(LENGTHS), "form": form, "given": rng.choice(given)}


def _part(words: Sequence[str], held: bool) -> list[str]:
    """Return the words of a list that are kept for evaluation, or the others."""
    return [word for place, word in enumerate(words) if (place % HELD_PART == 0) == held]


@lru_cache(maxsize=4)
def _order(count: int, seed: int, lap: int) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed}/{lap}").shuffle(order)
    return order
