"""Are two answers the same? This module compares what is around formulas; math-verify compares the formulas.

It reads brackets, commas, unions, plus-minus signs, names, choices, inequalities and residues itself. So the grade of a
flipped bracket, a missing root or a swapped coordinate never depends on the parser.
"""

from __future__ import annotations

import re

from aepo.grading import symbolic
from aepo.grading.choices import letter, same_verdict, verdict
from aepo.grading.names import (
    EQUALS,
    RELATION,
    after_words,
    assigned,
    is_name,
    is_quantity,
    is_worded,
    point,
    reordered,
)
from aepo.grading.sets import inequality, is_set, membership, residue
from aepo.grading.spelling import is_prose
from aepo.grading.text import bracketed, exact_number, items, split_percent, squeeze, unwrap, without_units

_AND = re.compile(r"\s*,?\s*(?:\\text\s*\{\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))\s*")
_APPROX = re.compile(r"\\approx(?![A-Za-z])")
_PLUS_MINUS = re.compile(r"\\(pm|mp)(?![A-Za-z])")
_LETTERED = re.compile(r"[A-Z]'*\s*(\(.+,.+\))", re.DOTALL)
_WORD = re.compile(r"(?i)\(?(?=[a-z' -]*[aeiou])[a-z][a-z' -]{2,}\)?")


def same_answer(gold: str, given: str) -> bool:
    """Return whether two answers in the spelling of `standard` have the same value."""
    if squeeze(gold) == squeeze(given):
        return True
    for rule in (_same_choice, _same_verdict, _same_residue, _same_percent):
        if (same := rule(gold, given)) is not None:
            return same
    number, value = exact_number(gold), exact_number(given)
    if number is not None and value is not None:
        return number == value
    known, offered = _without_words(gold), after_words(given)
    if (known, offered) != (gold, given):
        return _same_label(gold, given) and same_answer(known, offered)
    if number is None and (words := _words(gold)) is not None:
        return words == _words(given)
    for rule in (_same_point, _same_range, _same_bracket_list):
        if (same := rule(gold, given)) is not None:
            return same
    golds, givens = (_listed(gold) if number is None else [gold]), (_listed(given) if value is None else [given])
    if len(golds) > 1 or len(givens) > 1:
        return _matched(golds, givens)
    if r"\approx" in gold or r"\approx" in given:
        return _same_approximation(_APPROX.split(gold), _APPROX.split(given))
    structure, other = _structure(gold), _structure(given)
    if structure is not None or other is not None:
        return structure is not None and other is not None and _same_structure(structure, other)
    return _same_formula(gold, given)


def _same_choice(gold: str, given: str) -> bool | None:
    known = letter(gold)
    if known is None:
        return None
    offered = letter(given)
    if offered is not None:
        both = known.text and offered.text
        return known.what == offered.what and (not both or same_answer(known.text, offered.text))
    if known.text:
        return same_answer(known.text, given)
    return False if known.marked else None


def _same_verdict(gold: str, given: str) -> bool | None:
    known, offered = verdict(gold), verdict(given)
    return None if known is None or offered is None else same_verdict(known, offered)


def _same_residue(gold: str, given: str) -> bool | None:
    """Return whether two residue classes agree; the class may be left out where its residue is the least one."""
    known, offered = residue(gold), residue(given)
    if known is not None and offered is not None:
        known, offered = known.reduced(), offered.reduced()
        return same_answer(known.modulus, offered.modulus) and same_answer(known.values, offered.values)
    if known is not None:
        return known.is_reduced() and same_answer(known.values, assigned_value(given))
    if offered is not None:
        return offered.is_reduced() and same_answer(assigned_value(gold), offered.values)
    return None


def assigned_value(text: str) -> str:
    """Return the value of `x = value`, else the text."""
    found = assigned(text)
    return text if found is None else found[1]


def _same_percent(gold: str, given: str) -> bool | None:
    """Return whether two answers agree of which one has a percent sign; None without one, or if one is no number.

    25% is 25: the sign is a unit. It is also 0.25, a share below 1 that cannot be meant as 0.25%; but 1200% is not 12,
    and 100% is not 1.
    """
    known, known_percent = split_percent(gold)
    offered, offered_percent = split_percent(given)
    if not (known_percent or offered_percent) or len(items(gold)) > 1 or len(items(given)) > 1:
        return None
    if same_answer(known, offered):
        return True
    number, value = exact_number(known), exact_number(offered)
    if number is None or value is None:
        return False if known_percent and offered_percent else None
    share, percent = (value, number) if known_percent else (number, value)
    return known_percent != offered_percent and share == percent / 100 and share.denominator > 1 and abs(share) < 1


def _same_point(gold: str, given: str) -> bool | None:
    """Return whether two answers agree of which one is a point with named coordinates; None if neither is."""
    if gold.startswith("(") and (lettered := _LETTERED.fullmatch(given)):
        return same_answer(gold, lettered[1])
    known, offered = point(_AND.sub(",", gold)), point(_AND.sub(",", given))
    if known is not None and offered is not None:
        value = reordered(offered, known.names)
        return value is not None and same_answer(known.value, value)
    if offered is not None and gold.startswith("("):
        return same_answer(gold, offered.value)
    if known is not None and given.startswith("("):
        return same_answer(known.value, given)
    return None


def _same_range(gold: str, given: str) -> bool | None:
    """Return whether an inequality and an interval, or two inequalities, are the same set; None for other answers."""
    known, offered = inequality(gold), inequality(given)
    if known is None and offered is None:
        return None
    sets = []
    for found, text in ((known, gold), (offered, given)):
        name, interval = (found.name, found.interval) if found else membership(text)
        if not is_set(interval):
            return None
        sets.append((name, interval))
    (name, left), (other, right) = sets
    return (not name or not other or name == other) and same_answer(left, right)


def _same_bracket_list(gold: str, given: str) -> bool | None:
    """Return whether answers agree of which one is a list in square brackets and the other one has none.

    The order counts. Two given items in brackets are an interval.
    """
    known, offered = bracketed(gold), bracketed(given)
    if known is not None and known[0] + known[2] == "[]" and offered is None:
        return _in_order(items(known[1]), items(_AND.sub(",", given)))
    if offered is not None and offered[0] + offered[2] == "[]" and known is None and len(items(offered[1])) > 2:
        return _in_order(items(_AND.sub(",", gold)), items(offered[1]))
    return None


def _in_order(golds: list[str], givens: list[str]) -> bool | None:
    if len(golds) < 2 or len(givens) < 2:
        return None
    return len(golds) == len(givens) and all(map(same_answer, golds, givens))


def _words(text: str) -> str | None:
    """Return one spelling of a text that consists of words, or None if the text is a formula."""
    plain = " ".join(unwrap(text).split())
    if _WORD.fullmatch(plain) or is_prose(text):
        return plain.strip("()").casefold()
    return None


def _listed(text: str) -> list[str]:
    r"""Return the answers in a list: 1, 2; {1, 2}; x = 1 or x = 2; 1 \pm 2. A single answer gives a list of one."""
    inside = bracketed(text)
    if inside is not None and inside[0] == r"\{":
        text = inside[1]
    found = [part for part in items(_AND.sub(",", text)) if part]
    if len(found) == 1 and (named := assigned(found[0])) is not None and bracketed(named[1]):
        return found
    return [each for part in found for each in _both_signs(part)]


def _both_signs(text: str) -> list[str]:
    r"""Return the two texts that \pm and \mp stand for, or the text alone if it has neither."""
    if not _PLUS_MINUS.search(text):
        return [text]
    signs = ({"pm": "+", "mp": "-"}, {"pm": "-", "mp": "+"})
    return [_PLUS_MINUS.sub(lambda match, sign=sign: sign[match[1]], text) for sign in signs]  # type: ignore[misc]


def _matched(golds: list[str], givens: list[str]) -> bool:
    """Return whether known and given answers pair up. Equality is transitive, so the first match is enough."""
    left = list(givens)
    if len(golds) != len(givens):
        return False
    for gold in golds:
        fit = next((given for given in left if same_answer(gold, given)), None)
        if fit is None:
            return False
        left.remove(fit)
    return True


def _structure(text: str) -> tuple[str, list[str], str] | None:
    """Return (opening bracket, parts, closing bracket) of a tuple or interval, ("", parts, "") of a union, or None."""
    named = assigned(text)
    text = named[1] if named and (bracketed(named[1]) or r"\cup" in named[1]) else text
    pieces = items(text, (r"\cup",))
    if len(pieces) > 1:
        return "", pieces, ""
    found = bracketed(text)
    if found is None or len(parts := items(found[1], (",",))) < 2:
        return None
    return found[0], parts, found[2]


def _same_structure(gold: tuple[str, list[str], str], given: tuple[str, list[str], str]) -> bool:
    if (gold[0], gold[2]) != (given[0], given[2]):
        return False
    if gold[0] == "":
        return _matched(gold[1], given[1])
    return len(gold[1]) == len(given[1]) and all(map(same_answer, gold[1], given[1]))


def _same_formula(gold: str, given: str) -> bool:
    known, offered = assigned(gold), assigned(given)
    if (known and offered and known[0] == offered[0]) or (known and not RELATION.search(given)):
        return same_answer(known[1], offered[1] if offered else given)
    if offered and not RELATION.search(gold):
        return same_answer(gold, offered[1])
    if not RELATION.search(gold) and EQUALS.search(given):
        return _same_chain(gold, [part.strip() for part in EQUALS.split(given)])
    left, right = (symbolic.parsed(_readable(text)) for text in (gold, given))
    return left is not None and right is not None and symbolic.same_formula(left, right)


def _without_words(gold: str) -> str:
    r"""Return the value after words in the known answer; not in SRMC = LRMC, which is an equation between words."""
    value = after_words(gold)
    return gold if re.search(r"(?<!\\)(?<![A-Za-z])[A-Za-z]{2}", unwrap(value)) else value


def _same_label(gold: str, given: str) -> bool:
    """Return whether the words before the equals signs are the same, or only one answer has any."""
    if after_words(gold) == gold or after_words(given) == given:
        return True
    label, other = (unwrap(re.split(r"[=:]", text)[0]).strip().casefold() for text in (gold, given))
    return label == other


def _same_chain(gold: str, parts: list[str]) -> bool:
    """Return whether each part of `A = 2 + 3 = 5` but a leading name has the known value, so that `1 = 5` is not 5."""
    values = parts[1:] if _is_label(parts[0], gold) else parts
    return all(part and same_answer(gold, part) for part in values)


def _is_label(text: str, gold: str) -> bool:
    """Return whether a text before an equals sign names the value: a variable, words, or what is asked for (z^3)."""
    if is_worded(text) or (is_name(text) and text):
        return True
    letters = set(re.findall(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", text)))
    return is_quantity(text) and not letters & set(re.findall(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", gold)))


def _same_approximation(golds: list[str], givens: list[str]) -> bool:
    r"""Return whether approximations agree.

    Of a given `A \approx B`, A counts. If the known answer is `A \approx B`, A and B are both accepted; if both answers
    are, their first and last parts must agree.
    """
    known, offered = ([p.strip() for p in parts if not (is_name(p) or is_worded(p))] for parts in (golds, givens))
    if not known or not offered:
        return False
    if len(known) > 1 and len(offered) > 1:
        return same_answer(known[0], offered[0]) and same_answer(known[-1], offered[-1])
    return any(same_answer(each, offered[0]) for each in known)


def _readable(text: str) -> str:
    """Rewrite what math-verify would misread: 4.5e33, `-1./3`, a unit at the end."""
    text = without_units(text)
    text = re.sub(r"(?<![\w.\\])(\d+(?:\.\d*)?)[eE]([+-]?\d+)(?![\w.])", r"\1 \\times 10^{\2}", text)
    return re.sub(r"(\d)\.(?!\d)", r"\1", text)


def same_formula(gold: str, formula: object) -> bool:
    """Return whether a formula that math-verify found equals the known answer."""
    known = symbolic.parsed(_readable(gold))
    return known is not None and symbolic.same_formula(known, formula)
