"""Qwen2.5-Math's evaluation, second half: whether two answers in its spelling are equal."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from math import isclose
from typing import Any

from aepo.errors import InvalidValue
from aepo.grading.qwen_text import last_letter

_TOLERANCE = 1e-4
_BRACKETS = re.compile(r"(\(|\[).+(\)|\])")
_MATRIX = re.compile(r"\\begin\{[pb]matrix\}.*\\end\{[pb]matrix\}", re.DOTALL)
# Python would run these when a text is read as an expression of sympy.
_UNSAFE = re.compile(r"__|[\"'`]|(?<![\d\s])\s*\.\s*[A-Za-z_]|\b(?:lambda|import|exec|eval|open|compile|print|input)\b")


def equal(given: str, gold: str) -> bool:
    """Return whether two normalised answers count as equal."""
    if given.strip().lower() == gold.strip().lower():
        return True
    if gold in ("A", "B", "C", "D", "E") and last_letter(given) == gold:
        return True
    value, known = number(given), number(gold)
    if value is not None and known is not None:
        return any(isclose(item, value, rel_tol=_TOLERANCE) for item in (known / 100, known, known * 100))
    if not given:
        return False
    given, gold = given.strip(), gold.strip()
    if "pmatrix" in given and "pmatrix" not in gold:
        gold = _as_matrices(gold)
    return (
        _unbracketed(given, gold)
        or _each_in_brackets(given, gold)
        or _each_in_matrix(given, gold)
        or _sides(given, gold)
        or formulas_equal(given, gold)
    )


def number(text: str) -> float | None:
    """Return the number that a text is, without commas; a percent sign is 1/100."""
    text = text.replace(",", "")
    with suppress(ValueError):
        return float(text)
    if text.endswith("%"):
        with suppress(ValueError):
            return float(text[:-1].removesuffix("\\")) / 100
    return None


def _as_matrices(text: str) -> str:
    r"""Return {a,b} as a matrix of one column; its rows are parted by one backslash, which is no row at all."""
    found = (each.strip("{}").replace(",", "\\") for each in re.findall(r"\{.*,.*\}", text.strip()))
    return ", ".join(rf"\begin{{pmatrix}}{each}\end{{pmatrix}}" for each in found)


def _unbracketed(given: str, gold: str) -> bool:
    square = given.startswith("[") and given.endswith("]") and not gold.startswith("(")
    if square or (given.startswith("(") and given.endswith(")") and not gold.startswith("[")):
        given, gold = given.strip("[]()"), gold.strip("[]()")
    bare = (re.sub(r"[{}()]", "", text).lower() for text in (given, gold))
    return len(set(bare)) == 1


def _each_in_brackets(given: str, gold: str) -> bool:
    if not _BRACKETS.match(given) or not _BRACKETS.match(gold):
        return False
    return _each(given[1:-1].split(","), gold[1:-1].split(","))


def _each(givens: list[str], golds: list[str]) -> bool:
    return len(givens) == len(golds) and all(map(equal, givens, golds))


def _each_in_matrix(given: str, gold: str) -> bool:
    if not _MATRIX.fullmatch(given) or not _MATRIX.fullmatch(gold):
        return False
    start, end = len(r"\begin{pmatrix}"), -len(r"\end{pmatrix}")
    rows = [[line.strip() for line in text[start:end].split("\\\\") if line.strip()] for text in (given, gold)]
    return len(rows[0]) == len(rows[1]) and all(
        _each(left.split("&"), right.split("&")) for left, right in zip(*rows, strict=True)
    )


def _sides(given: str, gold: str) -> bool:
    left, right = given.split("="), gold.split("=")
    if len(left) == 2 and len(right) == 2:
        offered, known = (f"{a.strip()} - ({b.strip()})" for a, b in (left, right))
        return formulas_equal(offered, known) or formulas_equal(f"-({offered})", known)
    if len(left) == 2 and len(left[0].strip()) <= 2 and len(right) == 1:
        return equal(left[1], gold)
    if len(right) == 2 and len(right[0].strip()) <= 2 and len(left) == 1:
        return equal(given, right[1])
    return False


def formulas_equal(given: str, gold: str) -> bool:
    """Return whether two formulas are equal by sympy: as printed, by `equals` or `simplify`, by value, or as matrices.

    A text that no parser reads is compared as a text.
    """
    left, right = parsed(given), parsed(gold)
    if str(left) == str(right):
        return True
    left, right = (_safe(each) if isinstance(each, str) else each for each in (left, right))
    if left is None or right is None:
        return False
    tests: tuple[Callable[[Any, Any], bool], ...] = (
        lambda a, b: bool(a == b),
        _simplified,
        lambda a, b: bool(abs(a.lhs - a.rhs).equals(abs(b.lhs - b.rhs))),
        _close,
        _same_matrix,
    )
    # Objects of different kinds cannot be subtracted or have no value: such a test says no, whatever it raises.
    for test in tests:
        with suppress(Exception):
            if test(left, right):
                return True
    return False


def _safe(text: str) -> Any | None:
    """Return what sympy's functions make of a text that no parser reads, or None; they would run it as Python."""
    with suppress(Exception):
        return _python(text.replace("^", "**"))
    return None


def _simplified(a: Any, b: Any) -> bool:
    import sympy

    return bool(a.equals(b)) or bool(sympy.simplify(a - b) == 0)


def _close(a: Any, b: Any) -> bool:
    import sympy

    return isclose(float(sympy.N(b)), float(sympy.N(a)), rel_tol=_TOLERANCE)


def _same_matrix(a: Any, b: Any) -> bool:
    left, right = (each.applyfunc(lambda cell: round(cell, 3)) for each in (a, b))
    return a.shape == b.shape and bool(left.equals(right))


def parsed(text: str) -> Any:
    """Return what the first parser that reads a text makes of it, or the text.

    The parsers are sympy's for LaTeX, which reads as far as it can ("5 apples" is a product of letters), sympy's for
    Python, and latex2sympy.
    """
    for parse in (_latex, _python, _latex2sympy):
        for each in (text.replace("\\\\", "\\"), text):
            with suppress(Exception):
                return parse(each)
    return text


@lru_cache(maxsize=1)
def _reader() -> Callable[[str], Any]:
    """Return sympy's reader of LaTeX.

    sympy asks for one version of ANTLR's runtime; later ones read the same tables, and only warn.
    """
    import antlr4  # type: ignore[import-untyped]
    from sympy.parsing.latex import _parse_latex_antlr as module

    class Lexer(module.LaTeXLexer):  # type: ignore[misc]
        def checkVersion(self, version: str) -> None:
            return

    class Parser(module.LaTeXParser):  # type: ignore[misc]
        def checkVersion(self, version: str) -> None:
            return

    def read(text: str) -> Any:
        errors = module.MathErrorListener(text)
        lexer = Lexer(antlr4.InputStream(text))
        lexer.removeErrorListeners()
        lexer.addErrorListener(errors)
        parser = Parser(antlr4.CommonTokenStream(lexer))
        parser.removeErrorListeners()
        parser.addErrorListener(errors)
        return module.convert_relation(parser.math().relation())

    return read


def check_parser() -> None:
    """Import the parsers.

    Raises:
        InvalidValue: sympy's reader of LaTeX does not work with the installed runtime of ANTLR.
    """
    try:
        _reader()("x + 1")
    except Exception as error:
        wanted = "used with sympy and antlr4-python3-runtime 4.11 or later: pip install 'aepo[math]'"
        raise InvalidValue("grader", "qwen", f"{wanted} ({type(error).__name__})") from None


def _latex(text: str) -> Any:
    return _reader()(text)


def _python(text: str) -> Any:
    """Return a Python expression of sympy.

    Raises:
        ValueError: The text could run other code than sympy's.
    """
    from sympy.parsing.sympy_parser import parse_expr

    if _UNSAFE.search(text):
        raise ValueError("not an expression of sympy alone")
    return parse_expr(text, global_dict=dict(_names()))


@lru_cache(maxsize=1)
def _names() -> dict[str, Any]:
    """Return sympy's names, without Python's own functions, which could read files or run code."""
    names: dict[str, Any] = {}
    exec("from sympy import *", names)
    unsafe = ("sympify", "S", "parse_expr", "lambdify", "preview", "source", "init_session", "test", "doctest", "plot")
    safe = {name: value for name, value in names.items() if name not in unsafe and name != "__builtins__"}
    return {**safe, "__builtins__": {}, "max": names["Max"], "min": names["Min"]}


def _latex2sympy(text: str) -> Any:
    from latex2sympy2_extended import latex2sympy

    return latex2sympy(text)
