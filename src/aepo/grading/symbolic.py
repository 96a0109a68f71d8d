"""Comparison of two formulas that math-verify reads. Decimals are exact: values that are nearly equal are not equal."""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

from aepo.errors import InvalidValue
from aepo.grading.text import exact_number

# Two closed forms count as equal if they agree to this many significant digits at two points.
_DIGITS = 20


@lru_cache(maxsize=1)
def library() -> Any:
    """Return the module math-verify, imported at the first call.

    Raises:
        InvalidValue: math-verify is not installed.
    """
    try:
        import math_verify
    except ModuleNotFoundError as error:
        raise InvalidValue("grader", "math", f"used with {error.name}: pip install 'aepo[math]'") from None
    # It warns once that its time limits by alarm are off; they are off because `GradingPool` sets the limit.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return math_verify


# math-verify misreads these: it adds numbers that stand side by side, drops dots and primes, takes capitals for small
# letters (E is 2.71, \Pi is 3.14), and \gamma for a function or a constant.
_UNREADABLE = re.compile(r"\d\s+\.?\d|\\(?:[lc]?dots|vdots|pmod)(?![A-Za-z])|\d\.\d+\.\d")
_GREEK = re.compile(
    r"\\(gamma|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Upsilon|Phi|Psi|Omega)(?![A-Za-z])(?:\s*_\s*(?:(\w)|\{(\w+)\}))?"
)
_CAPITAL = re.compile(
    r"\\(?:text\w*|math\w+|mbox|operatorname|overline|begin|end)\s*\{[^{}]*\}|\\[A-Za-z]+"
    r"|([A-Z])(?:\s*_\s*(?:(\w)|\{(\w+)\}))?"
)
_BARE_EXPONENT = re.compile(r"\^\s*([A-Z]|\\[A-Z][a-z]+|\\gamma)(?![A-Za-z])")
_PRIMES = re.compile(r"'+")


def _greek(match: re.Match[str]) -> str:
    letter = match[1] if match[1].islower() else f"big{match[1].lower()}"
    return f" q_{{{letter}{match[2] or match[3] or ''}}}"


def _capital(match: re.Match[str]) -> str:
    letter = match[1]
    return f" q_{{big{letter.lower()}{match[2] or match[3] or ''}}}" if letter else match[0]


def parsed(text: str) -> Any | None:
    """Parse LaTeX to a sympy formula with exact rationals in place of decimals; return None if it cannot be read."""
    import sympy

    if _UNREADABLE.search(text):
        return None
    verify = library()
    normalization = verify.LatexNormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none"
    )
    config = verify.LatexExtractionConfig(boxed_match_priority=-1, normalization_config=normalization)
    flat = _BARE_EXPONENT.sub(r"^{\1}", text.replace("$", "").replace("\n", " "))
    flat = _GREEK.sub(_greek, flat)
    flat = _CAPITAL.sub(_capital, flat)
    flat = _PRIMES.sub(lambda match: "^{" + r"\prime " * len(match.group()) + "}", flat)
    found = verify.parse(f"${flat}$", extraction_config=[config], fallback_mode="no_fallback", parsing_timeout=None)
    formula = exact(found[0]) if found else None
    return None if formula is None or formula.has(sympy.zoo, sympy.nan) else formula


def is_percent(formula: Any) -> bool:
    """Return whether a formula of math-verify was written with a percent sign."""
    import sympy

    return isinstance(formula, sympy.Basic) and bool(formula.atoms(sympy.UnevaluatedExpr))


def exact(formula: Any) -> Any:
    """Return the formula with each decimal as the ratio that it spells, i as the imaginary unit, and real symbols."""
    import sympy

    changes = {number: sympy.Rational(str(number)) for number in formula.atoms(sympy.Float)}
    # math-verify takes `2 i` for complex and `2i` for real: one letter, two symbols.
    letters = {symbol: sympy.Symbol(symbol.name, real=True) for symbol in formula.free_symbols}
    changes |= {symbol: sympy.I if letter.name == "i" else letter for symbol, letter in letters.items()}
    # A percent sign is a factor of 1/100 that is kept from being multiplied out.
    changes |= {part: part.args[0] for part in formula.atoms(sympy.UnevaluatedExpr)}
    return formula.xreplace(changes)


def value(text: str) -> Fraction | None:
    """Return the value of a real number that is written as text, exactly or to 30 digits; None for other texts."""
    number = exact_number(text)
    if number is not None:
        return number
    formula = parsed(text)
    if formula is None or not formula.is_number or not formula.is_real:
        return None
    return Fraction(str(formula.evalf(_DIGITS + 10)))


def same_formula(gold: Any, given: Any) -> bool:
    """Return whether two parsed formulas are equal.

    Two equations are equal if they differ by a constant factor. Other formulas are equal if math-verify says so and
    their values agree at two points.
    """
    import sympy

    if isinstance(gold, sympy.Eq) and isinstance(given, sympy.Eq):
        return _same_equation(gold, given)
    if isinstance(gold, sympy.Eq) or isinstance(given, sympy.Eq):
        return False
    verify = library().verify
    if not verify(gold, given, float_rounding=12, numeric_precision=15, timeout_seconds=None):
        return False
    return not (isinstance(gold, sympy.Expr) and isinstance(given, sympy.Expr)) or _confirmed(gold, given)


def _same_equation(gold: Any, given: Any) -> bool:
    import sympy

    sides = [sympy.sympify(equation.lhs - equation.rhs).doit() for equation in (gold, given)]
    if any(side == 0 for side in sides):
        return False
    ratio = sympy.simplify(sides[0] / sides[1])
    return bool(ratio.is_number and ratio.is_finite and ratio.is_zero is False)


def _confirmed(gold: Any, given: Any) -> bool:
    """Return whether the values agree at two points; math-verify ignores differences of small absolute size."""
    import sympy

    symbols = sorted(gold.free_symbols | given.free_symbols, key=str)
    for start in (7, 31):
        point = {symbol: sympy.Rational(start + 3 * i, 11 + i) for i, symbol in enumerate(symbols)}
        left, right = (side.subs(point).doit() for side in (gold, given))
        if left == right:
            continue
        difference, scale = (left - right).evalf(_DIGITS + 10), left.evalf(_DIGITS + 10)
        if not (difference.is_number and scale.is_number and scale.is_finite and difference.is_finite):
            return True
        if abs(difference) > abs(scale) * sympy.Rational(1, 10**_DIGITS):
            return bool(sympy.simplify(left - right) == 0)
    return True
