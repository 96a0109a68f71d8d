"""Functions that read answers as text: the box, the spelling of benchmark files, exact numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

_BOX_OR_BRACE = re.compile(r"(\\{1,4})(?:boxed|fbox|framebox)\s*(\{|[^\s{}\\$]+)|\\.|[{}]", re.DOTALL)
_PLACEHOLDER = re.compile(
    r"(?i)(?:\\[,;: ]|\\q?quad|\\[lc]?dots|\\text\s*\{|\}|[.\u2026?\s$]|(?:the |your |final )*answer(?: here)?)*"
)
_DELIMITERS = re.compile(r"\\\$|\$|(?<!\\)\\[()\[\]]")
_SIZES = re.compile(r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits)(?![A-Za-z])\.?")
_SPACES = re.compile(r"(?<!\\)\\[,;: ]|~|\\q?quad(?![A-Za-z])|\s+")
_UNICODE = str.maketrans(
    {
        "\u2212": "-",
        "\u2013": "-",
        "\u00d7": r"\times ",
        "\u00f7": r"\div ",
        "\u03c0": r"\pi ",
        "\u221e": r"\infty ",
        "\u222a": r"\cup ",
        "\u2264": r"\le ",
        "\u2265": r"\ge ",
        "\u00b0": r"^\circ ",
        "\u00b1": r"\pm ",
        "\u00b7": r"\cdot ",
        "\u221a": r"\sqrt ",
        "\u00b2": "^2",
        "\u00b3": "^3",
        "\u2074": "^4",
        "\u2075": "^5",
        "\u2260": r"\ne ",
        "\u2208": r"\in ",
        "\u2261": r"\equiv ",
        "\u2248": r"\approx ",
        "\u211d": r"\mathbb{R}",
        "\u00bd": r"\frac{1}{2}",
        "\u03b1": r"\alpha ",
        "\u03b2": r"\beta ",
        "\u03b8": r"\theta ",
        "\u03bb": r"\lambda ",
    }
)
# Two backslashes before a command's name are one that was escaped twice; a new row of a matrix starts otherwise.
_DOUBLED = re.compile(
    r"(?<!\\)\\\\(?=(?:[dtc]?frac|sqrt|text\w*|mathr\w+|mathb\w+|left|right|begin|end|boxed|pi|infty|cdot|times|pm|cup)"
    r"(?![A-Za-z]))"
)
_WRAPPED = re.compile(
    r"\\(?:text(?:rm|bf|it|sf|tt|normal)?|mathrm|mathbf|mathit|mathsf|boldsymbol|bm|mbox|operatorname\*?)\s*\{([^{}]*)\}"
)
_DEGREES = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree(?![A-Za-z])|\s\\circ$")
_NO_UNIT = r"(?i:hundred|thousand|million|billion|trillion|dozen|percent|half|infinity)s?"
_UNIT = re.compile(
    r"(?<=\S)\s*[/*]?\s*\\(?:text(?:rm|bf|it)?|mathrm|mbox)\s*\{(?!\s*(?:and|or|i|e|" + _NO_UNIT + r")\s*\})"
    r"[^{}]*\}(?:\^\{?-?\d\}?)?$"
)
_BARE_UNIT = re.compile(
    r"(?<=[\d}\s])\s*(?:mm|cm|km|ft|in|mi|kg|mg|lbs?|oz|hrs?|mph|min|sec)(?:\^\{?\d\}?|\s*/\s*[a-z]+)?$"
)
_WORDS_AFTER = re.compile(r"(?<=[\d}])\s*(?!" + _NO_UNIT + r"\b)[A-Za-z]{3,}(?: [A-Za-z]{2,})*$")
_PERCENT = re.compile(r"\s*(?:\\?%|\\text\w*\s*\{\s*(?:per ?cent|pct|\\?%)\s*\}|(?<=[\s\d}])(?:per ?cent|pct))$")
_GROUPED = re.compile(r"[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_NUMBER = r"(?:\d+\.?\d*|\.\d+)"
_PLAIN = re.compile(rf"({_NUMBER})(?:[eE]([+-]?\d+)|(?:\\times|\\cdot|\*)10\^(?:\{{([+-]?\d+)\}}|([+-]?\d+)))?")
_POWER = re.compile(r"10\^(?:\{([+-]?\d+)\}|(\d))")
_RATIO = re.compile(
    rf"\(?({_NUMBER})\)?/\(?({_NUMBER})\)?|\\frac(?:\{{([+-]?{_NUMBER})\}}|(\d))(?:\{{({_NUMBER})\}}|(\d))"
)
_MIXED = re.compile(r"(\d+)(?:\s*\\frac(?:\{(\d+)\}|(\d))(?:\{(\d+)\}|(\d))|\s+(\d+)/(\d+))")
_LONGEST_NUMBER, _LARGEST_EXPONENT = 2000, 2000


@dataclass(frozen=True)
class Box:
    """`Box` is a closed box in a text."""

    content: str
    """What it holds."""
    start: int
    """Where its command begins in the text."""
    end: int
    """Where its closing brace ends."""


def boxes(text: str) -> list[Box]:
    r"""Return the closed \boxed{}, \fbox{} and \framebox{} in the order of their ends; braces may be left out.

    A box whose command has two backslashes comes from a text that was escaped twice; its contents are unescaped.
    """
    found: list[Box] = []
    opened: list[re.Match[str] | None] = []
    for match in _BOX_OR_BRACE.finditer(text):
        token, content = match.group(), match.group(2)
        if content is not None and content != "{":
            found.append(Box(content, match.start(), match.end()))
        elif content == "{":
            opened.append(match)
        elif token == "{":
            opened.append(None)
        elif token == "}" and opened and (box := opened.pop()) is not None:
            inside = text[box.end() : match.start()]
            found.append(Box(_once(inside) if len(box[1]) == 2 else inside, box.start(), match.end()))
    return found


def _once(text: str) -> str:
    """Return the text with half its backslashes if every run of them is even, else the text."""
    runs = re.findall(r"\\+", text)
    return re.sub(r"(\\+)\1", r"\1", text) if runs and all(len(run) % 2 == 0 for run in runs) else text


def is_placeholder(content: str) -> bool:
    r"""Return whether a box holds no answer: nothing, dots, or the word "answer"."""
    return _PLACEHOLDER.fullmatch(content[:60]) is not None and len(content) <= 60


def last_boxed(text: str) -> str | None:
    r"""Return the contents of the last closed box that holds an answer, else of the last closed box, or None."""
    found = boxes(text)
    full = next((box for box in reversed(found) if not is_placeholder(box.content)), None)
    return full.content if full else found[-1].content if found else None


def printable(text: str) -> str:
    """Replace characters that UTF-8 cannot hold (lone surrogates) by question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def accepted(answer: str) -> list[str]:
    """Return the accepted answers: the items of a JSON list of texts, or the text after GSM8K's ####, or the answer."""
    if answer.lstrip().startswith("["):
        try:
            items = json.loads(answer)
        except (ValueError, RecursionError):
            items = None
        if isinstance(items, list) and items and all(isinstance(item, str) for item in items):
            return items
    return [answer.rsplit("####", 1)[-1]]


def clean(text: str) -> str:
    """Return one spelling of what LaTeX spells in many ways: delimiters, sizes, spaces, fractions, Unicode signs."""
    text = text.translate(_UNICODE).replace(r"{,}", ",")
    text = _DOUBLED.sub(r"\\", text)
    text = re.sub(r",\\!\s*", ",", text).replace(r"\!", "")
    text = _SIZES.sub("", _DELIMITERS.sub("", text))
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = _SPACES.sub(" ", text)
    if text.strip().startswith((r"\boxed", r"\fbox")):
        text = last_boxed(text) or text
    return text.strip().rstrip(".,;:").strip()


def unwrap(text: str) -> str:
    r"""Remove \text{}, \mathrm{} and similar commands; their contents stay."""
    return _WRAPPED.sub(r"\1", text)


def squeeze(text: str) -> str:
    r"""Remove \text{} and similar commands, white space, and braces around one character, for comparison as text."""
    return re.sub(r"\{(\w)\}", r"\1", re.sub(r"\s+", "", unwrap(text)))


def without_units(text: str) -> str:
    """Remove degree signs, and a unit at the end."""
    text = _DEGREES.sub("", text).strip()
    while (shorter := _BARE_UNIT.sub("", _UNIT.sub("", text)).strip()) != text and shorter:
        text = shorter
    return text


def exact_number(text: str) -> Fraction | None:
    """Return the exact value of a cleaned text that is one number, else None.

    It reads integers (with thousands commas), decimals, 4.5e33, 4.5 \\times 10^{33}, ratios and mixed numbers, with a
    sign before the number and a unit, a percent sign or words after it. A percent sign is dropped like a unit.
    """
    if len(text) > _LONGEST_NUMBER:
        return None
    if wrapped := _WRAPPED.fullmatch(text):
        text = wrapped[1].strip().removeprefix("(").removesuffix(")")
    text = without_units(text).strip().strip("{}" if text.startswith("{") else "").strip()
    text, percent = split_percent(text)
    text = text if percent else _WORDS_AFTER.sub("", text)
    sign = -1 if text.startswith("-") else 1
    text = text.lstrip("+-").strip() if text[:1] in "+-" and text[1:2] not in "+-" else text
    value = _unsigned(text)
    return None if value is None else sign * value


def split_percent(text: str) -> tuple[str, bool]:
    """Return the text without a percent sign (or the word) at its end, and whether it had one."""
    shorter, count = _PERCENT.subn("", text)
    return (shorter.strip(), True) if count and shorter.strip() else (text, False)


def _unsigned(text: str) -> Fraction | None:
    if match := _MIXED.fullmatch(text):
        whole, top, bottom = _groups(match, 3)
        return None if int(bottom) <= int(top) else int(whole) + Fraction(int(top), int(bottom))
    text = re.sub(r"\s+", "", text)
    text = text.replace(",", "") if _GROUPED.match(text) and "," in text else text
    if match := _PLAIN.fullmatch(text):
        mantissa, *exponent = _groups(match, 1)
        return _scaled(Fraction(_decimal(mantissa)), exponent[0] if exponent else "0")
    if match := _POWER.fullmatch(text):
        return _scaled(Fraction(1), _groups(match, 1)[0])
    if match := _RATIO.fullmatch(text):
        over, under = (Fraction(_decimal(part)) for part in _groups(match, 2))
        return over / under if under else None
    return None


def _groups(match: re.Match[str], least: int) -> list[str]:
    found = [group for group in match.groups() if group is not None]
    assert len(found) >= least
    return found


def _decimal(text: str) -> str:
    return text.rstrip(".") or "0"


def _scaled(value: Fraction, exponent: str) -> Fraction | None:
    if len(exponent) > 6 or abs(int(exponent)) > _LARGEST_EXPONENT:
        return None
    return value * Fraction(10) ** int(exponent)


def items(text: str, separators: Sequence[str] = (",", ";")) -> list[str]:
    """Split a text at separators outside all brackets; brackets of any kind match, so that [0, 1) is one part."""
    found, depth, start, at = [], 0, 0, 0
    while at < len(text):
        token = text[at : at + 2] if text[at] == "\\" else text[at]
        if token in ("(", "[", "{", r"\{"):
            depth += 1
        elif token in (")", "]", "}", r"\}"):
            depth -= 1
        elif depth <= 0 and (separator := next((s for s in separators if text.startswith(s, at)), None)):
            found.append(text[start:at].strip())
            start = at = at + len(separator)
            continue
        at += len(token)
    return [*found, text[start:].strip()]


def bracketed(text: str) -> tuple[str, str, str] | None:
    """Return (opening bracket, inside, closing bracket) if one pair of brackets encloses the whole text, else None."""
    opening = next((b for b in (r"\{", "(", "[") if text.startswith(b)), None)
    closing = next((b for b in (r"\}", ")", "]") if text.endswith(b)), None)
    if opening is None or closing is None or (opening == r"\{") != (closing == r"\}"):
        return None
    inside = text[len(opening) : len(text) - len(closing)]
    depth = 0
    for token in re.findall(r"\\.|[()\[\]{}]", inside, re.DOTALL):
        depth += (token in ("(", "[", "{", r"\{")) - (token in (")", "]", "}", r"\}"))
        if depth < 0:
            return None
    return (opening, inside.strip(), closing) if depth == 0 else None
