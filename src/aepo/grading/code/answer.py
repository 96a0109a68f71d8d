"""The code in an answer: the last closed fence."""

from __future__ import annotations

import re

from aepo.grading.code.problem import CodeProblem

# An opening or closing line of a fence: at most three spaces, then three or more of one sign, then a word or nothing.
_FENCE = re.compile(r"^[ ]{0,3}(`{3,}|~{3,})[ \t]*([^\n`]*?)[ \t]*\r?$", re.MULTILINE)
# Characters that are read, from the end of the completion.
_MOST = 200_000
# Where a function ends that a base model continues (the stop words of HumanEval's paper, 2107.03374, section 3.1).
_END = re.compile(r"\n(?=class|def|#|if|print|@)")


def last_fence(completion: str) -> str | None:
    """Return the text of the last closed fence; None without one.

    A fence that is opened and not closed is no code. A closing line has at least as many signs as the opening line,
    and no word.
    """
    text, found, opened = completion[-_MOST:], None, None
    for line in _FENCE.finditer(text):
        signs, word = line.group(1), line.group(2)
        if opened is None:
            opened = (signs, line.end() + 1)
        elif signs[0] == opened[0][0] and len(signs) >= len(opened[0]) and not word:
            found, opened = text[opened[1] : line.start()], None
        elif word:
            # A new fence begins although the last one was never closed: the text before it was no code.
            opened = (signs, line.end() + 1)
    return found


def has_fence(completion: str) -> bool:
    """Return whether a fence opens in the completion, closed or not."""
    return _FENCE.search(completion[-_MOST:]) is not None


def code_of(completion: str, problem: CodeProblem) -> str | None:
    """Return the program in a completion: the last closed fence.

    If the problem begins a function (HumanEval), a fence may hold the function or the rest of it, and a completion
    without any fence is the rest of it, up to where the function ends.
    """
    code = last_fence(completion)
    if not problem.stub:
        return code
    if code is None:
        if has_fence(completion):
            return None
        code = completion if _defines(problem.entry, completion) else _END.split(completion, maxsplit=1)[0]
    return code if _defines(problem.entry, code) else problem.stub + code


def _defines(name: str, code: str) -> bool:
    return re.search(rf"^(async +)?def +{re.escape(name)}\b|^{re.escape(name)} *=", code, re.MULTILINE) is not None
