"""`find_ends` determines at which tokens a completion of a model ends: at every one that the model's own files name.

The files name them in four places, and none has all: the generation config (one id or a list), the configuration, the
tokenizer, and the chat template, whose end of turn need not be any of the others. Training, evaluation, calibration,
the dry run, vLLM and the adapters of TRL and verl ask this module.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from aepo.errors import InvalidValue

# Tokens that end an answer in Qwen's chat format, which some prompt styles spell out as plain text.
CHATML, CHATML_ENDS = "<|im_start|>", ("<|im_end|>", "<|endoftext|>")
# A content that no template has by itself.
_MARK = "zqxjkvbw"


@dataclass(frozen=True)
class End:
    """`End` is a token that ends a completion."""

    id: int
    """The token's id."""
    text: str
    """The token as the tokenizer spells it."""
    sources: tuple[str, ...]
    """The places that name it."""

    def __str__(self) -> str:
        return f"{self.text} ({self.id}: {', '.join(self.sources)})"


@dataclass(frozen=True)
class Ends:
    """`Ends` holds all tokens that end a completion of a model."""

    ends: tuple[End, ...]
    """The tokens, at least one; those of the generation config come first."""
    turn: int | None = None
    """The token with which the chat template ends an answer; None without a template, or if it ends with text."""
    own: int | None = None
    """The tokenizer's end-of-sequence token; None if it has none."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Return the ids of all tokens."""
        return tuple(end.id for end in self.ends)

    def of_answer(self, chat: bool) -> int:
        """Return the token that ends an answer which is written out: the end of turn in a chat."""
        return next(end for end in (self.turn if chat else None, self.own, self.ends[0].id) if end is not None)

    def line(self) -> str:
        """Return all tokens with their places, as one line for people."""
        return f"a completion ends at {', '.join(map(str, self.ends))}"


def find_ends(tokenizer: Any, generation: Any, config: Any, name: str, prompts: Iterable[str] = ()) -> Ends:
    """Return the tokens that end a completion.

    Args:
        tokenizer: The tokenizer, with its chat template.
        generation: The model's generation config; None if it has none.
        config: The model's configuration.
        name: The name of the model, for messages.
        prompts: Texts of plain prompts. If one is in Qwen's chat format, that format's ends count too.

    Raises:
        InvalidValue: No place names a token.
    """
    special = _special(tokenizer)
    declared = _ids(getattr(generation, "eos_token_id", None))
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    configured = [*_ids(getattr(config, "eos_token_id", None)), *_ids(getattr(inner, "eos_token_id", None))]
    if declared:  # a class of configurations has a default, which need not be an end of this tokenizer
        configured = [token for token in configured if token in special]
    turn = end_of_turn(tokenizer)
    places = {
        "generation config": declared,
        "config": configured,
        "tokenizer": _ids(tokenizer.eos_token_id),
        "chat template": _ids(turn),
        "prompt style": _chatml(tokenizer, prompts),
    }
    size = getattr(inner, "vocab_size", None) or len(tokenizer)
    sources: dict[int, list[str]] = {}
    for place, ids in places.items():
        for token in dict.fromkeys(ids):
            if 0 <= token < size:
                sources.setdefault(token, []).append(place)
    if not sources:
        raise InvalidValue("model", name, "one with an end-of-sequence token")
    ends = tuple(End(token, _spelled(tokenizer, token), tuple(found)) for token, found in sources.items())
    return Ends(ends, turn, tokenizer.eos_token_id if tokenizer.eos_token_id in sources else None)


def _ids(value: Any) -> list[int]:
    items = value if isinstance(value, list | tuple) else [value]
    return [item for item in items if isinstance(item, int) and not isinstance(item, bool)]


def _spelled(tokenizer: Any, token: int) -> str:
    text = tokenizer.convert_ids_to_tokens(token)
    return "an unused token" if text is None else str(text)


def _special(tokenizer: Any) -> set[int]:
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}


def end_of_turn(tokenizer: Any) -> int | None:
    """Return the special token that follows the content of an assistant's turn in the chat template, or None."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    special = _special(tokenizer)
    for parts in (False, True):
        contents = [[{"type": "text", "text": text}] if parts else text for text in ("x", _MARK)]
        roles = ("user", "assistant")
        turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        try:
            text = tokenizer.apply_chat_template(turns, tokenize=False)
        except Exception:  # a template is a program and may raise any exception
            continue
        if _MARK in text:
            after = tokenizer(text.rpartition(_MARK)[2].lstrip(), add_special_tokens=False)["input_ids"]
            first = next((token for token in after if tokenizer.decode([token]).strip()), None)
            return first if first in special else None
    return None


def _chatml(tokenizer: Any, prompts: Iterable[str]) -> list[int]:
    if not any(CHATML in prompt for prompt in prompts):
        return []
    known = tokenizer.get_vocab()
    return [known[end] for end in CHATML_ENDS if end in known]
