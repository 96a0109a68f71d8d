"""One spelling of an answer: markdown, currencies, and formulas in plain text (pi/2, sqrt(3), x**2) become LaTeX."""

from __future__ import annotations

import re

from aepo.grading.text import clean, split_percent, unwrap

_BOLD = re.compile(r"(\*\*|__|\*|_|`)(?=\S)((?:(?!\1).)+?)(?<=\S)\1", re.DOTALL)
_BOLD_WORDS = re.compile(r"(?<!\S)\*\*(?=[A-Za-z])([^*]+)(?<=\S)\*\*(?![\w(])")
_WRAPPER = re.compile(r"(?:\\(?:math(?:bf|rm|it|sf)|text(?:bf|it)|boldsymbol|bm|underline)\s*)?\{")
_ANSWER_IS = r"(?:the\s+)?(?:final\s+|correct\s+)?(?:answer|result)(?:\s+is\b\s*:?|\s*:)\s*"
_LEAD = re.compile(rf"(?i)(?:\\text\w*\s*\{{\s*{_ANSWER_IS}\}}\s*|(\\text\s*\{{)?\s*{_ANSWER_IS})(?=\S)")
_CURRENCIES = {
    "$": r"\\\$|(?<![A-Za-z])US(?=\\\$)|(?<![A-Za-z])USD(?![A-Za-z])",
    "\u20ac": r"\u20ac|\\(?:euro|texteuro)(?![A-Za-z])(?:\{\})?|(?<![A-Za-z])EUR(?![A-Za-z])",
    "\u00a3": r"\u00a3|\\(?:pounds|textsterling)(?![A-Za-z])(?:\{\})?|(?<![A-Za-z])GBP(?![A-Za-z])",
    "\u00a5": r"\u00a5|\\(?:yen|textyen)(?![A-Za-z])(?:\{\})?|(?<![A-Za-z])JPY(?![A-Za-z])",
    "\u20b9": r"\u20b9|(?<![A-Za-z])(?:INR(?![A-Za-z])|Rs(?:\.|(?=\s*\}?\s*\d)))",
}
_CURRENCY = re.compile("|".join(rf"\\text\w*\s*\{{\s*(?:{sign})\s*\}}|{sign}" for sign in _CURRENCIES.values()))
_PROSE = re.compile(
    r"(?i)(?<![A-Za-z])(?=[a-z]*[aeiou])(?!sqrt|arc|infinity|mod(?![a-z])|min(?![a-z])|max(?![a-z]))[a-z]{4,}"
)
_COMMAND = re.compile(r"\\(?:(?:begin|end)\s*\{[^{}]*\}|[A-Za-z]+)")
_PLAIN = re.compile(
    r"\\(?:text\w*|math\w+|mbox|operatorname\*?|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+"
    r"|(?<![A-Za-z])(?:(sqrt|cbrt|exp|abs)(?=\s*\(|\s*\d)"
    r"|(a|arc)?(sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|ln|log)(?![a-z])"
    r"|(alpha|beta|gamma|delta|epsilon|theta|lambda|sigma|omega|kappa|rho|phi|psi|chi|pi|Gamma|Delta|Theta|Lambda|Sigma"
    r"|Phi|Psi|Omega)(?![A-Za-z])"
    r"|(oo|inf|infinity|Infinity)(?![A-Za-z]))"
    r"|(\*\*|\^)(\s*-\s*(?:\d+|[A-Za-z](?![A-Za-z])))?|(<=|>=|!=)"
)
_RELATIONS = {"<=": r"\le ", ">=": r"\ge ", "!=": r"\ne "}


def standard(text: str) -> str:
    """Return the cleaned text without markdown, currency signs and "the answer is", with plain formulas in LaTeX."""
    text = _BOLD_WORDS.sub(r"\1", clean(text))
    while match := _BOLD.fullmatch(text):
        text = clean(match[2])
    text = clean(_CURRENCY.sub("", text))
    while (shorter := _unwrapped(text)) != text:
        text = clean(shorter)
    if lead := _LEAD.match(text):
        text = (lead[1] or "") + text[lead.end() :]
    return latex(text)


def units(text: str) -> frozenset[str]:
    """Return the signs of the currencies that a text names by sign or by code, and % for a percent sign at its end."""
    found = {sign for sign, pattern in _CURRENCIES.items() if re.search(pattern, text)}
    return frozenset(found | ({"%"} if split_percent(clean(text))[1] else set()))


def is_prose(text: str) -> bool:
    """Return whether words of a language stand in the text besides its formulas."""
    return _PROSE.search(_COMMAND.sub(" ", " ".join(unwrap(text).split()))) is not None


def latex(text: str) -> str:
    r"""Return a plain-text formula in LaTeX: sqrt(2) is \sqrt{2}, exp(x) is e^{x}, pi is \pi, x**-1 is x^{-1}.

    Text with words in it is returned as it is.
    """
    text = re.sub(r"(?<![A-Za-z])(?:np|math|sympy)\.(?=[a-z])", "", text)
    found, at = "", 0
    while match := _PLAIN.search(text, at):
        found += text[at : match.start()]
        written, at = _written(text, match)
        found += written
    found += text[at:]
    return text if found == text or is_prose(found) else found.strip()


def _written(text: str, match: re.Match[str]) -> tuple[str, int]:
    """Return the LaTeX for what was found, and where the rest of the text begins."""
    name, arc, function, letter, infinite, power, exponent, relation = match.groups()
    if name:
        return _called(name, text, match.end())
    if function:
        return rf"\{'arc' if arc else ''}{function} ", match.end()
    if letter:
        return rf"\{letter} ", match.end()
    if infinite:
        return r"\infty ", match.end()
    if power:
        return "^" + (f"{{{''.join(exponent.split())}}}" if exponent else ""), match.end()
    return (_RELATIONS[relation] if relation else match[0]), match.end()


def _called(name: str, text: str, at: int) -> tuple[str, int]:
    """Return the LaTeX of a call, and where the text after it begins. sqrt2 is a call with the number 2."""
    at += len(text[at:]) - len(text[at:].lstrip())
    if text[at] == "(":
        end = _closed(text, at)
        if end is None:
            return f"{name} ", at
        inside, after = latex(text[at + 1 : end]), end + 1
    else:
        number = re.match(r"\d+", text[at:])
        assert number is not None
        inside, after = number[0], at + number.end()
    shapes = {"sqrt": r"\sqrt{%s}", "cbrt": r"\sqrt[3]{%s}", "exp": "e^{%s}", "abs": "|%s|"}
    return shapes[name] % inside, after


def _closed(text: str, at: int) -> int | None:
    """Return where the bracket that opens at `at` closes."""
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    return None


def _unwrapped(text: str) -> str:
    r"""Return the contents of \mathbf{}, a similar command or braces that enclose the whole text, else the text."""
    match = _WRAPPER.match(text)
    if match is None or not text.endswith("}"):
        return text
    depth = 0
    for token in re.finditer(r"\\.|[{}]", text):
        depth += (token[0] == "{") - (token[0] == "}")
        if depth == 0 and token[0] == "}":
            return text[match.end() : -1] if token.end() == len(text) else text
    return text
