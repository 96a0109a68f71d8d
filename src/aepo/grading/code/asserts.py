"""Asserts: those of the form `f(literals) == literal` become calls whose values are compared outside.

Every other assert stays a program that runs in the candidate's process: the weak mode.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass, replace

from aepo.errors import InvalidValue
from aepo.grading.code.problem import Call, Program, Test


def parse(text: str, where: str) -> ast.Module:
    """Return the syntax tree of test code.

    Raises:
        InvalidValue: The text is no Python.
    """
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        shown = " ".join(text.split())
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        raise InvalidValue(where, shown, f"Python ({error})") from None


def from_asserts(texts: Sequence[str], setup: str, where: str) -> tuple[Test, ...]:
    """Return the tests of a list of assert texts.

    Args:
        texts: The texts; each holds one or more statements.
        setup: Code that a text which is no plain call needs; it runs after the candidate.
        where: The field that holds them, for messages.

    Raises:
        InvalidValue: A text is no Python, or holds no assert.
    """
    return tuple(test for text in texts for test in _of_text(text, setup, where))


def _of_text(text: str, setup: str, where: str) -> list[Test]:
    statements = parse(text, where).body
    if not any(isinstance(node, ast.Assert) for statement in statements for node in ast.walk(statement)):
        raise InvalidValue(where, text.strip()[:80], "an assert")
    calls = [as_call(statement) for statement in statements]
    if all(call is not None for call in calls):
        return [call for call in calls if call is not None]
    return [Program(f"{setup}\n{text}" if setup else text)]


def as_call(statement: ast.stmt, rename: dict[str, str] | None = None) -> Call | None:
    """Return the call of an assert `f(literals) == literal`, `f(literals) is None / True / False`, or None.

    Args:
        statement: The statement.
        rename: Names of functions to replace, such as {"candidate": "add"}.
    """
    if not isinstance(statement, ast.Assert) or not isinstance(statement.test, ast.Compare):
        return None
    compare = statement.test
    if len(compare.ops) != 1 or not isinstance(compare.ops[0], ast.Eq | ast.Is):
        return None
    left, right = compare.left, compare.comparators[0]
    if isinstance(left, ast.Call) and isinstance(compare.ops[0], ast.Eq):
        return _call(left, right, rename or {})
    if isinstance(right, ast.Call) and isinstance(compare.ops[0], ast.Eq):
        return _call(right, left, rename or {})
    singleton = isinstance(right, ast.Constant) and (right.value is None or isinstance(right.value, bool))
    found = _call(left, right, rename or {}) if isinstance(left, ast.Call) and singleton else None
    # `is True` does not hold for 1; a loose comparison keeps the two apart as well.
    return found and replace(found, loose=True)


def _call(call: ast.Call, value: ast.expr, rename: dict[str, str]) -> Call | None:
    if not isinstance(call.func, ast.Name):
        return None
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    named = all(keyword.arg is not None for keyword in call.keywords)
    if not named or not all(map(is_literal, [*given, value])):
        return None
    arguments = [ast.unparse(argument) for argument in call.args]
    arguments += [f"{keyword.arg}={ast.unparse(keyword.value)}" for keyword in call.keywords]
    name = rename.get(call.func.id, call.func.id)
    return Call(name, ", ".join(arguments), ast.unparse(value))


def is_literal(node: ast.expr) -> bool:
    """Return whether an expression is a literal of built-in types that `ast.literal_eval` reads."""
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError, MemoryError):
        return False
    return True


@dataclass(frozen=True)
class Check:
    """`Check` is a test function that gets the candidate as its argument (HumanEval)."""

    text: str
    """The text that defines `check(candidate)`."""
    entry: str
    """The name of the candidate."""

    def tests(self, where: str) -> tuple[Test, ...]:
        """Return the calls of its asserts; the function as a program, too, if it holds anything else.

        Raises:
            InvalidValue: The text is no Python, or defines no `check`.
        """
        module = parse(self.text, where)
        found = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "check"]
        if not found:
            raise InvalidValue(where, self.text.strip()[:80], "Python that defines check(candidate)")
        name = found[0].args.args[0].arg if found[0].args.args else "candidate"
        calls, rest = [], False
        for statement in found[0].body:
            call = as_call(statement, {name: self.entry})
            if call is not None:
                calls.append(call)
            elif not _empty(statement):
                rest = True
        program = Program(self.text, f"check({self.entry})")
        return (*calls, program) if rest or not calls else tuple(calls)


def _empty(statement: ast.stmt) -> bool:
    """Return whether a statement asserts nothing: `assert True`, a text, `pass`, an import, or a print."""
    if isinstance(statement, ast.Pass | ast.Import | ast.ImportFrom):
        return True
    if isinstance(statement, ast.Assert):
        return isinstance(statement.test, ast.Constant) and bool(statement.test.value)
    if not isinstance(statement, ast.Expr):
        return False
    value = statement.value
    printing = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "print"
    return isinstance(value, ast.Constant) or printing


# --- pytest -------------------------------------------------------------------------------------------------

# What tests of one file use of pytest; the sandbox has no packages.
_PYTEST = """
def _aepo_pytest():
    import sys
    class Raises:
        def __init__(self, kind, match=None): self.kind, self.match, self.value = kind, match, None
        def __enter__(self): return self
        def __exit__(self, kind, error, trace):
            if kind is None: raise AssertionError("did not raise")
            self.value = error
            import re
            return issubclass(kind, self.kind) and (self.match is None or re.search(self.match, str(error)) is not None)
    class Approx:
        def __init__(self, value, rel=1e-6, abs=1e-12, nan_ok=False): self.value, self.rel, self.abs = value, rel, abs
        def __eq__(self, other):
            import math
            if isinstance(self.value, (list, tuple)):
                return len(self.value) == len(other) and all(Approx(a, self.rel, self.abs) == b
                                                             for a, b in zip(self.value, other))
            if isinstance(self.value, dict):
                return self.value.keys() == other.keys() and all(Approx(a, self.rel, self.abs) == other[k]
                                                                 for k, a in self.value.items())
            return math.isclose(self.value, other, rel_tol=self.rel or 0.0, abs_tol=self.abs or 0.0)
    class Mark:
        def parametrize(self, names, rows):
            listed = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
            def wrap(test):
                def run(**given):
                    for row in rows:
                        test(**given, **dict(zip(listed, row if len(listed) > 1 else [row])))
                return run
            return wrap
        def __getattr__(self, name): return lambda *a, **k: a[0] if a and callable(a[0]) else (lambda test: test)
    module = type(sys)("pytest")
    module.raises, module.approx, module.mark = Raises, Approx, Mark()
    sys.modules["pytest"] = module
_aepo_pytest()
"""


def from_pytest(text: str, where: str) -> tuple[Test, ...]:
    """Return the tests of a pytest file that imports the candidate from `solution`.

    A test function that holds plain asserts alone becomes calls; every other one is a program of its own.

    Raises:
        InvalidValue: The text is no Python, or holds no test function.
    """
    module = parse(text, where)
    renamed = _imported(module)
    functions = [n for n in module.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test")]
    if not functions:
        raise InvalidValue(where, text.strip()[:80], "Python with functions whose names begin with test")
    helper = f"{_PYTEST}\n{text}" if "pytest" in text else text
    tests: list[Test] = []
    for function in functions:
        plain = [statement for statement in function.body if not _empty(statement)]
        calls = [as_call(statement, renamed) for statement in plain]
        if calls and not function.decorator_list and all(call and call.function in renamed.values() for call in calls):
            tests += [call for call in calls if call is not None]
        else:
            tests.append(Program(helper, f"{function.name}()"))
    return tuple(tests)


def _imported(module: ast.Module) -> dict[str, str]:
    """Return the names that the file imports from `solution`, each with its name there."""
    imports = [n for n in ast.walk(module) if isinstance(n, ast.ImportFrom) and n.module == "solution"]
    return {alias.asname or alias.name: alias.name for node in imports for alias in node.names}
