"""`ChatSettings` are settings of tasks whose prompts may be chat turns: system prompt, template and its arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aepo.errors import InvalidValue, require
from aepo.plugins import absolute
from aepo.tasks.base import Problem
from aepo.tasks.messages import Message


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """`ChatSettings` says what a chat prompt holds besides the problem, and which template makes text of it."""

    system_prompt: str | None = None
    """System turn of every chat prompt that has none of its own; none adds no turn. An empty text is an empty turn."""
    chat_template: str | None = None
    """File of a Jinja chat template that replaces the one of the model; checkpoints then carry it."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Arguments of the chat template, such as `enable_thinking = false` of Qwen3. A row's own column
    `chat_template_kwargs` goes before them.
    """

    def template(self) -> str | None:
        """Return the text of the chat template that replaces the model's own, or None.

        Raises:
            InvalidValue: The file cannot be read, or it is empty.
        """
        if self.chat_template is None:
            return None
        try:
            text = Path(self.chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            wanted = f"a readable file of a Jinja chat template ({reason})"
            raise InvalidValue("task.chat_template", self.chat_template, wanted) from None
        require(bool(text.strip()), "task.chat_template", self.chat_template, "a file that is not empty")
        return text

    @property
    def template_file(self) -> str | None:
        """Return the absolute path of the template's file, or None."""
        return None if self.chat_template is None else absolute(self.chat_template)

    def asked(self, problem: Problem) -> Problem:
        """Return the problem with the system turn, the template's arguments, and checked against these settings.

        Args:
            problem: A problem with the arguments of its own row.

        Raises:
            InvalidValue: A setting is for chat prompts, and the problem is plain text.
        """
        if not problem.messages:
            self._refuse_plain(problem)
            return problem
        own = any(role in ("system", "developer") for role, _ in problem.messages)
        start: tuple[Message, ...] = () if own or self.system_prompt is None else (("system", self.system_prompt),)
        arguments = {**self.chat_template_kwargs, **problem.template_kwargs}
        return replace(problem, messages=(*start, *problem.messages), template_kwargs=arguments)

    def _refuse_plain(self, problem: Problem) -> None:
        """Refuse settings that a plain prompt would not show."""
        given: dict[str, Any] = {"system_prompt": self.system_prompt, "chat_template": self.chat_template}
        given["chat_template_kwargs"] = dict(self.chat_template_kwargs) or None
        for name, value in given.items():
            where = f"the prompt of {problem.where or problem.id} is plain text"
            wanted = f"left out, or used with chat prompts: the style chat or think, or rows of messages ({where})"
            require(value is None, f"task.{name}", value, wanted)
