"""Drawn pictures: count shapes, read a digit, find the tallest bar. A task for models that read images."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from aepo.errors import InvalidValue, UnknownName, require
from aepo.grading.text import last_boxed
from aepo.tasks.base import Problem, Task
from aepo.tasks.chat import ChatSettings
from aepo.tasks.images import MARK, Image
from aepo.tasks.styles import render

# The digits as 3 x 5 cells, row by row.
DIGITS = (
    *("111101101101111", "010110010010111", "111001111100111", "111001111001111", "101101111001001"),
    *("111100111001111", "111100111101111", "111001001001001", "111101111101111", "111101111001111"),
)
# Number of cells in a row of a picture in which shapes are counted.
CELLS = 3


@dataclass(frozen=True)
class Pictures(ChatSettings, Task):
    """`Pictures` asks about pictures that it draws itself, each of another size (docs/images.md). It needs Pillow."""

    kinds: tuple[str, ...] = ("count", "digit", "bars")
    """What is asked: `count` how many shapes there are (1 to 9), `digit` which digit it is, `bars` which of 2 to 5 bars
    is the tallest.
    """
    sides: tuple[int, int] = (56, 112)
    """Least and largest width and height of a picture, pixels."""
    style: str = "chat"
    """How a problem becomes a prompt (docs/data.md)."""
    max_response: int = 256
    """Longest completion, tokens."""
    eval_rows: int = 128
    """Number of problems that are kept for evaluation."""

    def __post_init__(self) -> None:
        render(self.style, "")
        require(bool(self.kinds), "task.kinds", list(self.kinds), f"one or more of {', '.join(KINDS)}")
        for kind in self.kinds:
            if kind not in KINDS:
                raise UnknownName("task.kinds", kind, KINDS)
        least, most = self.sides
        require(
            16 <= least <= most, "task.sides", list(self.sides), "the least and the largest side, 16 pixels or more"
        )
        require(self.max_response >= 1, "task.max_response", self.max_response, "at least 1 token")
        require(self.eval_rows >= 1, "task.eval_rows", self.eval_rows, "at least 1 problem")

    @property
    def max_tokens(self) -> int:
        """Return `max_response`, tokens."""
        return self.max_response

    def located(self) -> Pictures:
        """Return the task with an absolute path of its template."""
        return replace(self, chat_template=self.template_file)

    def check(self) -> None:
        """Check that Pillow is installed."""
        self._problem("check", random.Random(0))

    def train_problem(self, seed: int, index: int) -> Problem:
        """Return problem `index` of the series of this seed; a picture that is kept for evaluation is not shown."""
        known = {problem.images for problem in self._kept}
        draw = random.Random(f"{seed}/{index}")
        while (problem := self._problem(f"{seed}-{index}", draw)).images in known:
            pass
        return problem

    def eval_problems(self, count: int) -> list[Problem]:
        """Return the first `count` problems that are kept for evaluation."""
        if count > self.eval_rows:
            raise InvalidValue("evaluation.prompts", count, f"at most task.eval_rows ({self.eval_rows})")
        return list(self._kept[:count])

    def reward(self, problem: Mapping[str, Any], text: str, truncated: bool) -> float:
        """Return 1.0 if the last box, or else the first word, is the answer; else 0.0."""
        boxed = last_boxed(text)
        given = boxed if boxed is not None else next(iter(text.split()), "")
        return float(given.strip() == problem["answer"])

    def solution(self, problem: Mapping[str, Any]) -> str | None:
        """Return the answer, in a box if the prompt asks for one."""
        answer: str = problem["answer"]
        return answer if self.style == "plain" else rf"\boxed{{{answer}}}"

    @cached_property
    def _kept(self) -> tuple[Problem, ...]:
        return tuple(self._problem(f"eval-{n}", random.Random(f"kept/{n}")) for n in range(self.eval_rows))

    def _problem(self, name: str, draw: random.Random) -> Problem:
        try:
            from PIL import Image as Pillow
            from PIL import ImageDraw
        except ImportError:
            raise InvalidValue("task", "pictures", "another one, or pip install 'aepo[vision]'") from None
        size = draw.randint(*self.sides), draw.randint(*self.sides)
        drawn = Pillow.new("RGB", size, _colour(draw, 200, 255))
        kind = draw.choice(self.kinds)
        question, answer = KINDS[kind](ImageDraw.Draw(drawn), size, draw)
        shown = render(self.style, f"{MARK}{question}")
        image = Image.of(drawn, name)
        return self.asked(Problem(f"{kind}-{name}", shown.text, {"answer": answer}, shown.messages, images=(image,)))


def _colour(draw: random.Random, low: int, high: int) -> tuple[int, ...]:
    return tuple(draw.randint(low, high) for _ in range(3))


def _count(canvas: Any, size: tuple[int, int], draw: random.Random) -> tuple[str, str]:
    """Draw shapes in some of the cells."""
    cells = draw.sample(range(CELLS**2), draw.randint(1, CELLS**2))
    width, height = size[0] // CELLS, size[1] // CELLS
    for cell in cells:
        left, top = cell % CELLS * width, cell // CELLS * height
        box = (left + width // 5, top + height // 5, left + width * 4 // 5, top + height * 4 // 5)
        shape = draw.choice((canvas.rectangle, canvas.ellipse))
        shape(box, fill=_colour(draw, 0, 150))
    return "How many shapes are there?", str(len(cells))


def _digit(canvas: Any, size: tuple[int, int], draw: random.Random) -> tuple[str, str]:
    """Draw a digit of 3 x 5 cells somewhere."""
    digit = draw.randrange(len(DIGITS))
    cell = max(1, draw.randint(min(size) // 10, min(size) // 6))
    left, top = draw.randint(0, size[0] - 3 * cell), draw.randint(0, size[1] - 5 * cell)
    colour = _colour(draw, 0, 150)
    for place in (place for place, filled in enumerate(DIGITS[digit]) if filled == "1"):
        x, y = left + place % 3 * cell, top + place // 3 * cell
        canvas.rectangle((x, y, x + cell - 1, y + cell - 1), fill=colour)
    return "Which digit is this?", str(digit)


def _bars(canvas: Any, size: tuple[int, int], draw: random.Random) -> tuple[str, str]:
    """Draw bars of different heights."""
    count = draw.randint(2, 5)
    heights = draw.sample(range(2, 9), count)
    width = size[0] // count
    for number, height in enumerate(heights):
        left = number * width
        box = (left + width // 6, size[1] * (9 - height) // 9, left + width * 5 // 6, size[1] - 1)
        canvas.rectangle(box, fill=_colour(draw, 0, 150))
    return "Which bar is the tallest, counted from the left?", str(heights.index(max(heights)) + 1)


KINDS: Mapping[str, Callable[[Any, tuple[int, int], random.Random], tuple[str, str]]] = {
    "count": _count,
    "digit": _digit,
    "bars": _bars,
}
"""Functions that draw a picture and return the question and the answer, by the name of the kind."""
