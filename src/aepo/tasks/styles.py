"""Styles: how a problem becomes a prompt, as plain text or as chat turns for the model's own template."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aepo.errors import UnknownName

BOX = r"put your final answer within \boxed{}."

FENCE = "Write the whole program in Python, in one block that begins with ```python and ends with ```."

Message = tuple[str, str]


@dataclass(frozen=True)
class Rendered:
    """`Rendered` is a prompt."""

    text: str
    """The text of the prompt."""
    messages: tuple[Message, ...] = ()
    """Chat turns (role, content) when the prompt is for a chat template; else empty."""


def _chatml(system: str, user: str) -> str:
    """Return Qwen's chat format, spelled out, so that a base model without a template gets the same tokens."""
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


def _plain(problem: str) -> Rendered:
    return Rendered(problem)


def _boxed(problem: str) -> Rendered:
    return Rendered(f"{problem}\n\nReason step by step and {BOX}\n\n")


def _qwen_math_cot(problem: str) -> Rendered:
    return Rendered(_chatml(f"Please reason step by step, and {BOX}", problem.strip()))


def _qwen_boxed(problem: str) -> Rendered:
    user = f"{problem.strip()}\nPlease reason step by step, and {BOX}"
    return Rendered(_chatml("You are a helpful assistant.", user))


def _cot(problem: str) -> Rendered:
    return Rendered(f"Question: {problem.strip()}\nAnswer:")


def _chat(problem: str) -> Rendered:
    content = f"{problem}\n\nReason step by step and {BOX}"
    return Rendered(content, (("user", content),))


def _think(problem: str) -> Rendered:
    content = f"{problem}\n\nThink first, inside <think> and </think>. After that, {BOX}"
    return Rendered(content, (("user", content),))


def _code(problem: str) -> Rendered:
    return Rendered(f"{problem}\n\n{FENCE}\n\n")


def _code_chat(problem: str) -> Rendered:
    content = f"{problem}\n\n{FENCE}"
    return Rendered(content, (("user", content),))


def _qwen_code(problem: str) -> Rendered:
    return Rendered(_chatml("You are a helpful assistant.", f"{problem}\n\n{FENCE}"))


CODE_STYLES = ("code", "code-chat", "qwen-code", "plain")
"""The styles that do not ask for a box."""

# qwen25-math-cot, qwen-boxed and cot are those of Qwen2.5-Math's evaluation, to the byte: figures are comparable.
# think is the form that AEPO is trained with: reasoning in think tags, the answer in a box.
STYLES: Mapping[str, Callable[[str], Rendered]] = {
    "plain": _plain,
    "boxed": _boxed,
    "chat": _chat,
    "think": _think,
    "qwen25-math-cot": _qwen_math_cot,
    "qwen-boxed": _qwen_boxed,
    "cot": _cot,
    "code": _code,
    "code-chat": _code_chat,
    "qwen-code": _qwen_code,
}


def render(style: str, problem: str, field: str = "task.style") -> Rendered:
    """Return the problem in this style.

    Args:
        style: A name in `STYLES`.
        problem: The text of the problem.
        field: The setting that named the style, for messages.

    Raises:
        InvalidValue: There is no style of this name; the message lists the styles.
    """
    if style not in STYLES:
        raise UnknownName(field, style, STYLES)
    return STYLES[style](problem)
