"""`Encoding` turns a prompt into tokens. Training, evaluation, calibration and the dry run all ask it.

A prompt begins with the tokens that the tokenizer itself puts before a text: a beginning-of-sequence token in the
families of Llama 3, Gemma and Mistral, none in Qwen's. They stand there once, also if a chat template writes them too.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aepo.errors import InvalidValue, require
from aepo.model.images import ImageEncoding
from aepo.tasks import Problem
from aepo.tasks.images import MARK
from aepo.tasks.messages import Message

# Roles that templates take without naming them, because they print any role.
_USUAL_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Encoding:
    """`Encoding` is a tokenizer with the rules of prompts."""

    tokenizer: Any
    """The tokenizer of the model, with its chat template."""
    model: str
    """The name of the model, for messages."""
    images: ImageEncoding | None = None
    """What turns images into tokens; None for a model of text."""

    def text(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a text alone, without special tokens."""
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt(self, problem: Problem) -> tuple[int, ...]:
        """Return the token ids of a problem: its chat turns in the chat template, or else its text.

        Raises:
            InvalidValue: The problem cannot be shown to this model; the message names the row of the data.
        """
        place, shown = problem.where or problem.id, problem.images
        if self.images is None:
            wanted = f"a problem of text: {self.model} reads no images"
            require(not shown, place, f"{len(shown)} images", wanted)
        if problem.messages:
            where = f"{problem.where}, messages" if problem.where else "messages"
            tokens = self.chat(problem.messages, problem.template_kwargs, where, bool(shown))
        else:
            mark = self.images.mark if self.images is not None and shown else MARK
            tokens = self.plain(problem.text.replace(MARK, mark))
        return tokens if self.images is None else self.images.expanded(tokens, shown, place)

    def plain(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a prompt that is plain text, after the tokens with which the tokenizer begins."""
        start, bare = self._parts(text)
        return bare if bare[: len(start)] == start else (*start, *bare)

    def _parts(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the tokens that the tokenizer puts before a text, and the tokens of the text."""
        bare = self.text(text)
        return _start(tuple(self.tokenizer(text)["input_ids"]), bare, self.tokenizer.bos_token_id), bare

    def chat(
        self,
        turns: Sequence[Message],
        arguments: Mapping[str, Any] | None = None,
        where: str = "messages",
        images: bool = False,
    ) -> tuple[int, ...]:
        """Return the token ids of chat turns in the chat template, up to where the answer begins.

        The role `developer` is written as `system` for a template that does not know it.

        Args:
            turns: The turns, each (role, content).
            arguments: Arguments of the template.
            where: The name of the turns, for messages.
            images: Whether `<image>` in a turn is the place of an image. It then gives one token.

        Raises:
            InvalidValue: The tokenizer has no chat template, or the template does not take the turns or an argument.
        """
        wanted = "one whose tokenizer has a chat template, for prompts of chat messages"
        if not self.tokenizer.chat_template:
            raise InvalidValue("model", self.model, wanted)
        template = self.tokenizer.get_chat_template()
        _check_arguments(template, arguments or {}, where)
        shown = _with_known_roles(turns, template, where)
        start, bare = self._parts(self._rendered(shown, arguments or {}, where, images))
        # A template may write something before the beginning-of-sequence token, such as a line break.
        return bare if set(start) <= set(bare) else (*start, *bare)

    def _rendered(self, turns: Sequence[Message], arguments: Mapping[str, Any], where: str, images: bool) -> str:
        """Return the text of the turns. Some templates print contents only if they are lists of parts."""
        for parts in (True,) if images else (False, True):
            content = [_content(text, images) if parts else text for _, text in turns]
            messages = [{"role": role, "content": c} for (role, _), c in zip(turns, content, strict=True)]
            try:
                text: str = self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, **arguments
                )
            except Exception as error:  # a template is a program and may raise any exception
                roles, reason = [role for role, _ in turns], " ".join(str(error).split())
                wanted = f"turns that the chat template of {self.model} takes ({reason})"
                raise InvalidValue(where, roles, wanted) from None
            lost = _lost(turns, text, images)
            if lost is None:
                return text
        wanted = f"turns that the chat template of {self.model} prints; it leaves this one out"
        raise InvalidValue(where, f"a turn of {lost}", wanted)


def _start(whole: tuple[int, ...], bare: tuple[int, ...], bos: int | None) -> tuple[int, ...]:
    """Return the tokens that the tokenizer put before a text.

    Args:
        whole: The tokens of the text with special tokens, which may stand after the text too.
        bare: The tokens of the text without them.
        bos: The beginning-of-sequence token; None if the tokenizer names none.
    """
    if not bare:
        return whole[:1] if whole[:1] == (bos,) else ()
    places = range(len(whole) - len(bare) + 1)
    # The last place: a text that begins with the same token by itself is found behind the added one.
    return whole[: next((place for place in reversed(places) if whole[place : place + len(bare)] == bare), 0)]


def _check_arguments(template: str, arguments: Mapping[str, Any], where: str) -> None:
    """Refuse an argument whose name the template does not use: Jinja would ignore it."""
    names = sorted(set(re.findall(r"[A-Za-z_]\w*", template)))
    for name in arguments:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f" (it is unknown there); did you mean {close[0]}?" if close else " (it is unknown there)"
            field = where.removesuffix("messages") + "chat_template_kwargs"
            raise InvalidValue(field, name, f"an argument that the chat template uses{hint}")


def _with_known_roles(turns: Sequence[Message], template: str, where: str) -> list[Message]:
    known = []
    for role, content in turns:
        if role in _USUAL_ROLES or (role and re.search(rf"\b{re.escape(role)}\b", template)):
            known.append((role, content))
        elif role == "developer":
            known.append(("system", content))
        else:
            wanted = f"a role that the chat template knows: {', '.join(_USUAL_ROLES)}, or one that it names"
            raise InvalidValue(where, f"a turn of {role}", wanted)
    return known


def _content(text: str, images: bool) -> list[dict[str, str]]:
    """Return a turn as a list of parts: its text, with `images` an image in the place of each mark."""
    if not images:
        return [{"type": "text", "text": text}]
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(MARK)):
        parts += [{"type": "image"}] * (number > 0) + [{"type": "text", "text": piece}] * bool(piece)
    return parts


def _lost(turns: Sequence[Message], text: str, images: bool) -> str | None:
    """Return the role of the first turn whose content the template left out, or None.

    Templates drop the reasoning of earlier answers on purpose and write the results of tools as JSON, so only the
    other turns are searched.
    """
    checked = ("system", "developer", "user")
    pieces = [(role, piece) for role, content in turns for piece in (content.split(MARK) if images else [content])]
    return next((role for role, piece in pieces if role in checked and piece.strip() not in text), None)
