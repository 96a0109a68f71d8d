"""This module turns what a row holds as its prompt into chat turns, or refuses it with the name of the row.

A turn is refused if the model would see something else than the row says: a video, a call of a tool, an empty content.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from aepo.errors import InvalidValue
from aepo.tasks.images import MARK

Message = tuple[str, str]
"""One chat turn: (role, content)."""

# Types of content parts that hold plain text, in OpenAI's two forms; a part without a type is text if it has a text.
_TEXT_PARTS = (None, "text", "input_text", "output_text")
# Fields of a turn that call a tool.
_CALLS = ("tool_calls", "function_call")


def chat_turns(prompt: Any, where: str) -> tuple[tuple[Message, ...], list[Any]]:
    """Return the chat turns of a prompt, none for plain text, and what each of its image parts holds.

    In the turns, `<image>` stands in the place of an image part. A part that holds no image itself, because the row
    has it in a column, gives None. Text that spells a list of messages, as a CSV file holds it (JSON, or Python's own
    form), is read as the list.

    Args:
        prompt: The value of the prompt's column.
        where: The file, the row and the column, for messages.

    Raises:
        InvalidValue: The value is neither text nor a list of messages, or a turn cannot be shown as it is.
    """
    found = _spelled_out(prompt) if isinstance(prompt, str) else prompt
    if isinstance(found, str):
        return (), []
    if not isinstance(found, list | tuple) or not found:
        raise InvalidValue(where, short(found), "text, or a list of messages, at least one")
    images: list[Any] = []
    turns = tuple(_turn(turn, where, images) for turn in found)
    if turns[-1][0] == "assistant":
        wanted = "messages that end with a user's turn: the model writes the next one"
        raise InvalidValue(where, f"a last turn of the assistant, {short(turns[-1][1])!r}", wanted)
    return turns, images


def _spelled_out(text: str) -> Any:
    """Return the list of messages that a text spells, or else the text itself."""
    start = text.lstrip()
    if not (start.startswith("[") and start[1:].lstrip().startswith("{") and "role" in text):
        return text
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(start)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, list) and all(isinstance(turn, Mapping) and "role" in turn for turn in found):
            return found
    return text


def _turn(turn: Any, where: str, images: list[Any]) -> Message:
    """Return (role, content) of one message; a content of parts becomes one text. Its images are added to `images`."""
    if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str) or "content" not in turn:
        raise InvalidValue(where, short(turn), "a list of messages with role and content")
    role, content = turn["role"], turn["content"]
    where = f"{where}, {role}"
    for name in _CALLS:
        if turn.get(name):
            raise InvalidValue(where, f"a turn with {name}", "turns of text: calls of tools are not supported yet")
    if isinstance(content, list | tuple):
        content = "".join(_part(part, where, images) for part in content)
    if not isinstance(content, str):
        raise InvalidValue(where, content, "a message whose content is text")
    # An empty system turn has a meaning: templates put in one of their own where there is none.
    if not content.strip() and role != "system":
        raise InvalidValue(where, content, "a message whose content is text that is not empty")
    return role, content


def _part(part: Any, where: str, images: list[Any]) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind == "image" and isinstance(part, Mapping):
        # Parquet fills the fields that a part does not have with null.
        images.append(next((part[name] for name in ("image", "path") if part.get(name) is not None), None))
        return MARK
    if not isinstance(part, Mapping) or kind not in _TEXT_PARTS or not isinstance(part.get("text"), str):
        # A part of an image may have a text field too, which Parquet fills with null or "".
        got = f"a part of type {kind}" if kind else short(part)
        raise InvalidValue(where, got, "parts of text, or of type image: audio and video are not supported yet")
    return str(part["text"])


def short(value: Any, longest: int = 120) -> str:
    """Return a value as one line of text of limited length, for messages."""
    text = " ".join(str(value).split())
    return text if len(text) <= longest else f"{text[:longest]}..."
