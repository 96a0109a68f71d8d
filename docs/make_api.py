"""Make docs/api.md, the page of the public names: `python docs/make_api.py > docs/api.md`."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import aepo

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 100

HEADER = """# The public names

`import aepo` gives these names. Each one is imported when it is first used, so the import itself takes no time.
Everything else in the package is private: it may change without notice. Bad input raises `InvalidValue`, with one line
that names the value. `python docs/make_api.py > docs/api.md` makes this page from the docstrings.

"""


def page() -> str:
    """Return the whole page: a table of the names, and a section for each."""
    names = list(aepo._SOURCES)
    rows = "".join(f"| [{name}](#{name.lower()}) | {_first_sentence(docstring(name))} |\n" for name in names)
    return HEADER + "| name | what it is |\n| --- | --- |\n" + rows + "".join(map(_section, names))


def docstring(name: str) -> str:
    """Return the docstring of a public name; of a constant, the string literal after its assignment.

    Raises:
        LookupError: There is none.
    """
    value = getattr(aepo, name)
    module, attribute = _source(name)
    text = value.__doc__ if callable(value) else _after_assignment(module, attribute)
    # A dataclass without a docstring gets its signature for one.
    if not text or text.startswith(f"{attribute}("):
        raise LookupError(f"{module.__name__}.{attribute} has no docstring")
    return inspect.cleandoc(text)


def _source(name: str) -> tuple[ModuleType, str]:
    """Return the module in which a public name is defined, and its name there."""
    module, _, attribute = aepo._SOURCES[name].partition(":")
    return import_module(module), attribute


def _after_assignment(module: ModuleType, name: str) -> str | None:
    body = ast.parse(inspect.getsource(module)).body
    for statement, after in itertools.pairwise(body):
        targets = [statement.target] if isinstance(statement, ast.AnnAssign) else getattr(statement, "targets", [])
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            literal = after.value if isinstance(after, ast.Expr) else None
            return literal.value if isinstance(literal, ast.Constant) and isinstance(literal.value, str) else None
    return None


def _section(name: str) -> str:
    module, _ = _source(name)
    assert module.__file__ is not None
    file = Path(module.__file__).resolve().relative_to(ROOT).as_posix()
    links = [f"[source](../{file})"]
    reference = _reference(module)
    if reference is not None:
        links.append(f"[reference](api/{reference.name})")
    code = "\n".join([f"from aepo import {name}", "", *_signature(name)])
    return f"\n## {name}\n\n```python\n{code}\n```\n\n{_first_paragraph(docstring(name))}\n\n{', '.join(links)}\n"


def _reference(module: ModuleType) -> Path | None:
    """Return the page of docs/api that documents this module, if there is one."""
    pages = sorted(Path(__file__).with_name("api").glob("*.md"))
    return next((page for page in pages if f"automodule:: {module.__name__}\n" in page.read_text()), None)


def _signature(name: str) -> Iterator[str]:
    """Yield the lines of a name's signature, one parameter per line where one line is too long."""
    value = getattr(aepo, name)
    if not callable(value):
        module, attribute = _source(name)
        yield f"{name}: {module.__annotations__[attribute]}"
        return
    if isinstance(value, type) and inspect.isabstract(value):
        yield f"class {name}  # abstract"
        return
    if isinstance(value, type) and value.__init__ is object.__init__:
        yield f"class {name}"
        return
    signature = inspect.signature(value)
    result = "" if isinstance(value, type) else f" -> {signature.return_annotation}"
    parts = list(_parameters(signature))
    line = f"{name}({', '.join(parts)}){result}"
    if len(line) <= WIDTH:
        yield line
    else:
        yield f"{name}("
        yield from (f"    {part}," for part in parts)
        yield f"){result}"


def _parameters(signature: inspect.Signature) -> Iterator[str]:
    """Yield each parameter as it stands in the source, and the `*` before those that go by name only."""
    named = False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not named:
            named = True
            yield "*"
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        annotation = "" if parameter.annotation is parameter.empty else f": {parameter.annotation}"
        yield f"{parameter.name}{annotation}{default}"


def _first_paragraph(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


def _first_sentence(text: str) -> str:
    """Return the first sentence, for a cell of the table."""
    # "Dr. GRPO" goes on.
    sentence = re.split(r"(?<=\.)(?<!Dr\.) ", _first_paragraph(text))[0]
    return sentence.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
