"""Rows of code problems, in the forms of the data sets that others use, brought to the one internal form.

HumanEval             prompt, entry_point, test
MBPP                  test_list, test_setup_code or test_imports, challenge_test_list
AceCode               test_cases: a list of assert texts
KodCode               test: pytest text that imports `solution`
LiveCodeBench         public_test_cases, private_test_cases: {input, output, testtype}
APPS, TACO            input_output: {inputs, outputs, fn_name}
CodeContests          public_tests, private_tests, generated_tests: {input, output}
verl                  reward_model.ground_truth: {inputs, outputs, fn_name} or {assert_case}
open-r1, PrimeIntellect   verification_info: {test_cases: [{type, input, output, fn_name}], language}
any                   tests: a list of assert texts, {stdin, stdout} or {function, args, value}
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from aepo.errors import InvalidValue
from aepo.grading.code import packed
from aepo.grading.code.asserts import Check, from_asserts, from_pytest
from aepo.grading.code.problem import Call, CodeProblem, Stdio, Test

# What sites of contests import before a class Solution.
_CONTEST = """
import bisect, collections, functools, heapq, itertools, math, re, string, sys
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from typing import *
"""


def problem_of(row: Mapping[str, Any], where: str) -> CodeProblem:
    """Return the code problem of a row, whichever form it has.

    Args:
        row: The columns of the row.
        where: The name of the row, for messages.

    Raises:
        InvalidValue: The row has none of the forms, or its tests cannot be used.
    """
    for column, read in _READERS.items():
        value = _reach(row, column)
        if value is not None and value != "" and value != []:
            problem = read(row, value, f"{where}, {column}")
            if not problem.tests:
                raise InvalidValue(f"{where}, {column}", "no test", "at least one test")
            return problem
    got = f"columns {', '.join(map(str, row))}"
    raise InvalidValue(f"{where}, tests", got, f"one of the columns {', '.join(_READERS)}")


def statement_of(row: Mapping[str, Any], problem: CodeProblem) -> str | None:
    """Return the text of the problem if its form has one of its own: what a model must read to pass the tests."""
    if problem.stub:
        return f"Complete this Python function:\n\n```python\n{problem.stub.rstrip()}\n```"
    if isinstance(row.get("test_list"), list | tuple) and isinstance(row.get("text") or row.get("prompt"), str):
        tests = "\n".join(map(str, row["test_list"]))
        return f"{row.get('text') or row.get('prompt')}\n\nYour code must pass these tests:\n\n```python\n{tests}\n```"
    if isinstance(row.get("question_content"), str):
        starter = row.get("starter_code") or ""
        form = f"\n\nBegin with this code:\n\n```python\n{starter.rstrip()}\n```" if starter.strip() else _IN_AND_OUT
        return f"{row['question_content']}{form}"
    if isinstance(row.get("input_output"), str | Mapping) and isinstance(row.get("question"), str):
        starter = row.get("starter_code") or ""
        form = f"\n\nBegin with this code:\n\n```python\n{starter.rstrip()}\n```" if starter.strip() else _IN_AND_OUT
        return f"{row['question']}{form}"
    if isinstance(row.get("description"), str):
        return f"{row['description']}{_IN_AND_OUT}"
    return None


_IN_AND_OUT = "\n\nRead from standard input and write to standard output."


# --- one reader a form --------------------------------------------------------------------------------------


def _any(row: Mapping[str, Any], value: Any, where: str) -> CodeProblem:
    if isinstance(value, str):
        value = _json(value, where)
    if not isinstance(value, list | tuple):
        raise InvalidValue(where, type(value).__name__, "a list of tests")
    tests: list[Test] = []
    for number, item in enumerate(value, 1):
        tests += _one(item, f"{where} {number}")
    return CodeProblem(tuple(tests), before=_text(row, "setup", where))


def _one(item: Any, where: str) -> Sequence[Test]:
    if isinstance(item, str):
        return from_asserts([item], "", where)
    if isinstance(item, Mapping) and {"stdin", "stdout"} <= item.keys():
        return [Stdio(_str(item["stdin"], where), _str(item["stdout"], where))]
    if isinstance(item, Mapping) and {"input", "output"} <= item.keys():
        return [_exchange(item["input"], item["output"], item.get("fn_name"), where)]
    if isinstance(item, Mapping) and {"function", "args", "value"} <= item.keys():
        return [_call(str(item["function"]), _list(item["args"], where), item["value"])]
    wanted = "an assert text, {stdin, stdout}, {input, output} or {function, args, value}"
    raise InvalidValue(where, str(item)[:80], wanted)


def _human_eval(row: Mapping[str, Any], value: Any, where: str) -> CodeProblem:
    stub, text = _str(row.get("prompt"), where), _str(row.get("test"), where)
    before = stub[: stub.rfind(f"def {value}")] if f"def {value}" in stub else ""
    return CodeProblem(Check(text, str(value)).tests(where), before=before, stub=stub, entry=str(value))


def _mbpp(row: Mapping[str, Any], value: Any, where: str) -> CodeProblem:
    texts = [_str(item, where) for item in [*_list(value, where), *(row.get("challenge_test_list") or ())]]
    imports = "\n".join(map(str, row.get("test_imports") or ()))
    return CodeProblem(from_asserts(texts, _text(row, "test_setup_code", where), where), before=imports)


def _ace_code(row: Mapping[str, Any], value: Any, where: str) -> CodeProblem:
    if isinstance(value, str):
        value = _json(value, where)
    return _any({}, value, where)


def _test(row: Mapping[str, Any], value: Any, where: str) -> CodeProblem:
    return CodeProblem(from_pytest(_str(value, where), where))


def _live_code_bench(row: Mapping[str, Any], value: Any, where: str) -> CodeProblem:
    metadata = row.get("metadata") or {}
    metadata = _json(metadata, where) if isinstance(metadata, str) else metadata
    name = metadata.get("func_name") if isinstance(metadata, Mapping) else None
    cases = [*_cases(value, where)]
    private = row.get("private_test_cases")
    if private:
        cases += _cases(private, where.replace("public_test_cases", "private_test_cases"))
    tests: list[Test] = []
    for number, case in enumerate(cases, 1):
        if not isinstance(case, Mapping) or not {"input", "output"} <= case.keys():
            raise InvalidValue(f"{where} {number}", str(case)[:80], "a test of input and output")
        functional = case.get("testtype") == "functional"
        if functional and not name:
            raise InvalidValue(f"{where} {number}", "a functional test", "in a row whose metadata has func_name")
        tests.append(_exchange(case["input"], case["output"], name if functional else None, f"{where} {number}"))
    return CodeProblem(tuple(tests), before=_before(row, name))


def _cases(value: Any, where: str) -> list[Any]:
    if isinstance(value, str):
        value = _json(value if value.lstrip()[:1] in ("[", "{") else packed.text_of(value, where), where)
    return _list(value, where)


def _input_output(row: Mapping[str, Any], value: Any, where: str) -> CodeProblem:
    table = _json(value, where) if isinstance(value, str) else value
    if isinstance(table, list | tuple):
        return _any({}, table, where)
    if not isinstance(table, Mapping):
        raise InvalidValue(where, str(value)[:80], "a table of inputs and outputs")
    if table.get("assert_case"):
        return CodeProblem(from_asserts([_str(text, where) for text in _list(table["assert_case"], where)], "", where))
    inputs, outputs = _list(table.get("inputs"), f"{where}, inputs"), _list(table.get("outputs"), f"{where}, outputs")
    if len(inputs) != len(outputs):
        raise InvalidValue(where, f"{len(inputs)} inputs and {len(outputs)} outputs", "as many inputs as outputs")
    name = table.get("fn_name")
    pairs = zip(inputs, outputs, strict=True)
    return CodeProblem(tuple(_pair(given, wanted, name, where) for given, wanted in pairs), before=_before(row, name))


def _pair(given: Any, wanted: Any, name: str | None, where: str) -> Test:
    """Return a test of APPS' form: with a function, `given` lists the arguments, and a list of one value means both."""
    if not name:
        return Stdio(_joined(given, where), _joined(wanted, where))
    if isinstance(given, str):
        return _exchange(given, wanted, name, where)
    call = _call(name, _list(given, where), wanted)
    return replace(call, either=True) if isinstance(wanted, list) and len(wanted) == 1 else call


def _code_contests(row: Mapping[str, Any], value: Any, where: str) -> CodeProblem:
    tests: list[Test] = []
    for column in ("public_tests", "private_tests", "generated_tests"):
        table = row.get(column) or {}
        if not isinstance(table, Mapping):
            raise InvalidValue(where, type(table).__name__, "a table of input and output")
        given, wanted = _list(table.get("input") or [], where), _list(table.get("output") or [], where)
        if len(given) != len(wanted):
            raise InvalidValue(where, f"{len(given)} inputs and {len(wanted)} outputs", "as many inputs as outputs")
        tests += [Stdio(_str(a, where), _str(b, where)) for a, b in zip(given, wanted, strict=True)]
    return CodeProblem(tuple(tests))


def _verification_info(row: Mapping[str, Any], value: Any, where: str) -> CodeProblem:
    table = _json(value, where) if isinstance(value, str) else value
    if not isinstance(table, Mapping):
        raise InvalidValue(where, str(value)[:80], "a table with test_cases")
    language = str(table.get("language") or "python")
    if not language.lower().startswith("python"):
        raise InvalidValue(f"{where}, language", language, "python: other languages are not judged")
    names = []
    tests: list[Test] = []
    for case in _list(table.get("test_cases"), where):
        if not isinstance(case, Mapping) or not {"input", "output"} <= case.keys():
            raise InvalidValue(where, str(case)[:80], "a test of input and output")
        name = case.get("fn_name") if case.get("type") == "function_call" else None
        names.append(name)
        tests.append(_pair(case["input"], case["output"], name, where))
    return CodeProblem(tuple(tests), before=_before(row, next(filter(None, names), None)))


Reader = Callable[[Mapping[str, Any], Any, str], CodeProblem]

# The column by which a form is known, in the order of the search.
_READERS: dict[str, Reader] = {
    "tests": _any,
    "entry_point": _human_eval,
    "test_list": _mbpp,
    "test_cases": _ace_code,
    "public_test_cases": _live_code_bench,
    "verification_info": _verification_info,
    "input_output": _input_output,
    "reward_model.ground_truth": _input_output,
    "public_tests": _code_contests,
    "test": _test,
}


# --- values -------------------------------------------------------------------------------------------------


def _exchange(given: Any, wanted: Any, name: str | None, where: str) -> Test:
    """Return a test of texts: standard input and output, or for a function one JSON value a line."""
    if not name:
        return Stdio(_joined(given, where), _joined(wanted, where))
    arguments = [_json(line, where) for line in _str(given, where).split("\n") if line.strip()]
    return _call(name, arguments, _json(wanted, where) if isinstance(wanted, str) else wanted)


def _call(name: str, arguments: Sequence[Any], value: Any) -> Call:
    return Call(name, ", ".join(map(_literal, arguments)), _literal(value), loose=True, method=True)


def _literal(value: Any) -> str:
    """Return a JSON value as a Python literal. JSON's Infinity is a number too large to be written otherwise."""
    text = repr(value)
    return text.replace("inf", "1e999") if isinstance(value, float) else text


def _before(row: Mapping[str, Any], name: str | None) -> str:
    """Return the imports that a solution of a site of contests may take for granted."""
    starter = row.get("starter_code")
    return _CONTEST if name or (isinstance(starter, str) and "class Solution" in starter) else ""


def _joined(value: Any, where: str) -> str:
    """Return a text; a list of lines is joined."""
    if isinstance(value, list | tuple):
        return "\n".join(_joined(item, where) for item in value)
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else _str(value, where)


def _str(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidValue(where, type(value).__name__, "a text")
    return value


def _text(row: Mapping[str, Any], column: str, where: str) -> str:
    value = row.get(column)
    return _str(value, f"{where}, {column}") if value else ""


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise InvalidValue(where, type(value).__name__, "a list")
    return list(value)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        # Some files hold Python's spelling of a table.
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            if text.lstrip()[:1] in ("{", "["):
                return ast.literal_eval(text.strip())
        raise InvalidValue(where, text[:80], f"JSON ({error})") from None


def _reach(row: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        row = row.get(part) if isinstance(row, Mapping) else None
    return row
