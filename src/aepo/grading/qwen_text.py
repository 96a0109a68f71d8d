"""Qwen2.5-Math's evaluation, first half: which part of a completion is its answer, and how its spelling is evened out.

Each step does what that program does, its oddities included, in its order; the verdicts depend on them. Comments name
oddities. It is checked against verdicts of the original program (tests/grading/test_qwen.py).
"""

from __future__ import annotations

import re
from functools import lru_cache

_CHOICE = re.compile(r"\b([A-E])\b")
_NUMBER = re.compile(r"-?\d*\.?\d+")
_CUES = ("he answer is", "final answer is")
_CHINESE_CUE = "\u7b54\u6848\u662f"
# The words that it takes for units, as regular expressions (a full stop stands for any character), in its order.
_UNITS = re.split(
    r"\|",
    "east|degree|mph|kmph|ft|m sqaure| m east|sq m|deg|mile|q .|monkey|prime|ratio|profit of rs|rd|o|gm|p . m|lb|tile|"
    "per|dm|lt|gain|ab|way|west|a .|b .|c .|d .|e .|f .|g .|h .|t|a|h|no change|men|soldier|pie|bc|excess|st|inches|"
    "noon|percent|by|gal|kmh|c|acre|rise|a . m|th|\u03c0 r 2|sq|mark|l|toy|coin|sq . m|gallon|\xb0 f|profit|minw|yr|"
    "women|feet|am|pm|hr|cu cm|square|v \xe2 \u20ac \u2122|are|rupee|rounds|cubic|cc|mtr|s|ohm|number|kmph|day|hour|"
    "minute|min|second|man|woman|sec|cube|mt|sq inch|mp|\u220f cm \xb3|hectare|more|sec|unit|cu . m|cm 2|rs .|rs|kg|g|"
    "month|km|m|cm|mm|apple|liter|loss|yard|pure|year|increase|decrease|d|less|Surface|litre|pi sq m|s .|metre|meter|"
    "inch",
)
_NAMES = ("x=", "y=", "z=", "x\\in", "y\\in", "z\\in", "x\\to", "y\\to", "z\\to")
_SMALL = re.findall(
    r"\w+",
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen",
)
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9}
_VALUES = (
    {word: value for value, word in enumerate(_SMALL)}
    | {word: 10 * tens for tens, word in enumerate(_TENS, 2)}
    | {"hundred": 100}
    | _SCALES
)


def extracted(completion: str, choices: bool = False) -> str:
    """Return the answer in a completion by the first rule that finds one; empty if none does.

    Args:
        completion: The whole text.
        choices: The question is multiple choice: take a letter from A to E.
    """
    text = completion.strip().replace("\u043a\u0438", "")
    if choices:
        return chosen(text)
    found = _answer(text)
    return re.sub(r"\n\s*", "", found).removeprefix(":").removesuffix(".").removesuffix("/")


def _answer(text: str) -> str:
    if "final answer is $" in text and "$. I hope" in text:
        return text.split("final answer is $", 1)[1].split("$. I hope", 1)[0].strip()
    if "boxed" in text:
        return _after_boxed(text.rsplit("boxed", 1)[1])
    for cue in _CUES:
        if cue in text:
            return text.rsplit(cue, 1)[1].strip()
    if _CHINESE_CUE in text:
        return text.split(_CHINESE_CUE)[1].strip().split("\n\n")[0].strip()
    numbers: list[str] = _NUMBER.findall(text.replace(",", ""))
    return numbers[-1] if numbers else ""


def _after_boxed(text: str) -> str:
    """Return the contents of the braces, or all the rest if they are not closed; without braces, up to a dollar."""
    if not text.startswith("{"):
        return text.split("$", 1)[0].strip()
    depth = 0
    for match in re.finditer(r"[{}]", text):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return text[1 : match.start()]
    return text[1:]


def chosen(text: str) -> str:
    """Return the letter from A to E that a text chooses; without one, the text after its last cue.

    After "answer is" or "choice is" the first letter that stands alone counts, else the last one. Small letters count
    ("a" is A).
    """
    text = text.strip("\n")
    if any(text.count(cue) > 1 for cue in ("choice is", "answer is")):
        text = text.split("\n\n")[0]
    parts = re.split("choice is|answer is", text)
    text = parts[-1].strip("\n").rstrip(".").rstrip("/").strip(" ").lstrip(":")
    letters: list[str] = _CHOICE.findall(text.upper())
    if not letters:
        return text.strip().strip(".").rstrip(".").rstrip("/")
    return letters[0] if len(parts) > 1 else letters[-1]


def last_letter(text: str) -> str:
    """Return the last letter from A to E that stands alone in an answer, else the answer."""
    text = text.strip("\n").rstrip(".").rstrip("/").strip(" ").lstrip(":")
    letters: list[str] = _CHOICE.findall(text.upper())
    return letters[-1] if letters else text.strip().strip(".").rstrip(".").rstrip("/")


def normalised(text: str, units: bool = False) -> str:
    """Return the spelling of an answer that is compared.

    Args:
        text: The answer.
        units: Keep units, as that program does for Minerva Math.
    """
    text = text.strip().replace("\n", "").rstrip(".").replace("\\!", "")
    text = _commands(text)
    # A text at the end is a unit; it goes from the first \text{ whose braces end there.
    text = re.sub(r"\\text{.*?}$", "", text).strip() or text
    if not units:
        text = _without_units(text)
    for sign in ("^{\\circ}", "^\\circ", "\\$", "$", "\\(", "\\)"):
        text = text.replace(sign, "")
    text = _in_digits(text)
    text = re.sub(r"\\text\{(.*?)\}", r"\1", text)
    for name in _NAMES:
        text = text.replace(name, "")
    text = text.replace("\\emptyset", "{}").replace("(-\\infty,\\infty)", "\\mathbb{R}")
    text = text.replace("\\%", "").replace("%", "").replace(" .", " 0.").replace("{.", "{0.")
    return _numbers(_words(text))


def _commands(text: str) -> str:
    text = re.sub(r"\\begin\{array\}\{.*?\}", r"\\begin{pmatrix}", text)
    text = re.sub(r"\\end\{array\}", r"\\end{pmatrix}", text).replace("bmatrix", "pmatrix")
    text = text.replace("tfrac", "frac").replace("dfrac", "frac")
    for name in ("ne", "le", "ge"):
        text = text.replace(f"\\{name}q", f"\\{name}")
    # \rightarrow becomes "arrow", and \leftarrow, too.
    text = text.replace("\\left", "").replace("\\right", "")
    return text.replace("\\{", "{").replace("\\}", "}")


@lru_cache(maxsize=1)
def _unit_patterns() -> list[tuple[str, re.Pattern[str]]]:
    """Return (text that must occur, pattern) of each unit."""
    words = [*_UNITS, *(f"{unit}s" for unit in _UNITS)]
    return [(word.split(".")[0], re.compile(rf"(^|\W){word}($|\W)")) for word in words]


def _without_units(text: str) -> str:
    for _ in range(2):
        for needed, pattern in _unit_patterns():
            if needed in text:
                text = pattern.sub(r"\1\2", text) or text
    return text


def _words(text: str) -> str:
    text = text.replace("infinity", "\\infty")
    text = text if "\\infty" in text else text.replace("inf", "\\infty")
    text = text.replace("and", "").replace("\\mathbf", "")
    text = re.sub(r"\\mbox{.*?}", "", text)
    return text.replace("j", "i") if "i" not in text else text


def _numbers(text: str) -> str:
    text = re.sub(r"(\d+)\.0*([^\d])", r"\1\2", text)
    text = re.sub(r"(\d+)\.0*$", r"\1", text)
    if not text:
        return text
    text = f"0{text}" if text[0] == "." else text
    sides = text.split("=")
    text = sides[1] if len(sides) == 2 and len(sides[0]) <= 2 else text
    text = re.sub(r"\\sqrt(\w+)", r"\\sqrt{\1}", text).replace(" ", "")
    return _one_slash(_fractions(text))


def _fractions(text: str) -> str:
    r"""Put braces round one-character numerators and denominators; give the text back if a \frac breaks off."""
    first, *rest = text.split("\\frac")
    found = first
    for part in rest:
        if part.startswith("{"):
            found += "\\frac" + part
        elif len(part) < 2:
            return text
        elif part[1] == "{":
            found += f"\\frac{{{part[0]}}}{part[1:]}"
        else:
            found += f"\\frac{{{part[0]}}}{{{part[1]}}}{part[2:]}"
    return found


def _one_slash(text: str) -> str:
    r"""Return a/b as \frac{a}{b} if both are integers as Python prints them, or texts with a square root."""
    parts = text.split("/")
    if len(parts) != 2:
        return text
    for part in parts:
        if "sqrt" in part:
            continue
        try:
            if str(int(part)) != part:
                return text
        except ValueError:
            return text
    return f"\\frac{{{parts[0]}}}{{{parts[1]}}}"


def _in_digits(text: str) -> str:
    """Return the number that the words in a text spell, else the text: "five apples" is 5, and so is "five or b"."""
    spaced = text.replace("-", " ").lower()
    if spaced.isdigit():
        try:
            return str(int(spaced))
        except ValueError:
            return text
    words = [word for word in spaced.split() if word in _VALUES or word == "point"]
    try:
        return str(_spelled(words)) if words else text
    except (ValueError, IndexError, OverflowError):
        return text


def _spelled(words: list[str]) -> int | float:
    """Return the value of number words, as the library word2number reads them.

    Raises:
        ValueError: A scale or "point" stands twice, or scales grow.
        IndexError: A scale has nothing before it.
    """
    if any(words.count(word) > 1 for word in (*_SCALES, "point")):
        raise ValueError("a number word stands twice")
    whole, decimals = words, list[str]()
    if "point" in words:
        whole, decimals = words[: words.index("point")], words[words.index("point") + 1 :]
    scales = [word for word in whole if word in _SCALES]
    if [_SCALES[word] for word in scales] != sorted((_SCALES[word] for word in scales), reverse=True):
        raise ValueError("the scales are out of order")
    value: int | float = _VALUES[whole[0]] if len(whole) == 1 else _scaled(whole) if whole else 0
    digits = [str(_VALUES[word]) if word in _SMALL[:10] else "" for word in decimals]
    return value + (float("0." + "".join(digits)) if all(digits) else 0) if decimals else value


def _scaled(words: list[str]) -> int:
    total, rest, scaled = 0, words, False
    for word, scale in sorted(_SCALES.items(), key=lambda item: -item[1]):
        if word in rest:
            at = rest.index(word)
            total, rest, scaled = total + scale * _below_thousand(rest[:at]), rest[at + 1 :], True
    return total + (_below_thousand(rest) if rest or not scaled else 0)


def _below_thousand(words: list[str]) -> int:
    """Return the value of up to four words; of more words the first alone counts."""
    numbers = [_VALUES[word] for word in words]
    if len(numbers) == 4:
        return numbers[0] * numbers[1] + numbers[2] + numbers[3]
    if len(numbers) == 3:
        return numbers[0] * numbers[1] + numbers[2]
    if len(numbers) == 2:
        return numbers[0] * numbers[1] if 100 in numbers else numbers[0] + numbers[1]
    return numbers[0]
