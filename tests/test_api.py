"""The public face: what `import aepo` gives, and that docs/api.md says the same."""

import ast
import doctest
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import aepo

ROOT = Path(__file__).parents[1]
MAKE_API = runpy.run_path(str(ROOT / "docs" / "make_api.py"))


def in_a_new_process(script: str) -> str:
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_aepo_imports_the_standard_library_alone():
    script = "import sys; before = set(sys.modules); import aepo; roots = {n.split('.')[0] for n in sys.modules}\n"
    script += "print(roots - {n.split('.')[0] for n in before} - set(sys.stdlib_module_names))\n"
    script += "print(set(aepo.__all__) <= set(dir(aepo)), 'torch' in sys.modules)"
    assert in_a_new_process(script) == "{'aepo'}\nTrue False\n"


def test_torch_is_imported_when_a_name_needs_it():
    script = "import sys, aepo\nfor name in ('InvalidValue', 'PI'): getattr(aepo, name); print('torch' in sys.modules)"
    assert in_a_new_process(script) == "False\nTrue\n"


def test_a_name_is_there_however_it_is_imported():
    script = "from aepo import *; import aepo.control, aepo.training; from aepo import PI as once; import aepo as a\n"
    script += "print(PI is once is a.PI, a.control.__name__, callable(a.train), callable(train), a.__version__)"
    assert in_a_new_process(script) == "True aepo.control True True 0.1.0\n"


def test_the_three_lists_of_public_names_agree():
    body = ast.parse((ROOT / "src" / "aepo" / "__init__.py").read_text()).body
    block = next(part for part in body if isinstance(part, ast.If) and ast.unparse(part.test) == "TYPE_CHECKING")
    typed = {
        alias.asname or alias.name: f"{statement.module}:{alias.name}"
        for statement in block.body
        for alias in statement.names
    }
    assert typed == aepo._SOURCES
    assert set(aepo.__all__) == {*aepo._SOURCES, "__version__"}


def test_other_names_are_no_attributes():
    with pytest.raises(AttributeError, match="module 'aepo' has no attribute 'Pi'"):
        aepo.Pi  # noqa: B018


def test_a_name_that_needs_more_than_torch_says_so():
    script = "import sys; sys.modules['transformers'] = None; import aepo\n"
    script += "try: aepo.train\nexcept ModuleNotFoundError as error: print(*error.__notes__)"
    assert in_a_new_process(script) == "aepo.train needs more than torch: pip install 'aepo[train]'\n"


@pytest.mark.parametrize("name", [name for name in aepo.__all__ if name != "__version__"])
def test_every_public_name_has_a_docstring(name):
    assert MAKE_API["docstring"](name)


def test_the_page_in_the_docs_has_every_name_as_it_is():
    page = (ROOT / "docs" / "api.md").read_text()
    assert page == MAKE_API["page"](), "run: python docs/make_api.py > docs/api.md"


def test_the_example_of_the_docstring_holds():
    assert doctest.testmod(aepo).failed == 0
