"""The scripts that no other test runs still find what they import from this repository."""

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OWN = ("aepo", "benchmarks", "research", "tests")
SCRIPTS = sorted(path for folder in ("benchmarks", "examples") for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=[str(path.relative_to(ROOT)) for path in SCRIPTS])
def test_a_script_finds_what_it_imports_from_here(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or (node.module or "").split(".")[0] not in OWN:
            continue
        try:
            module = importlib.import_module(node.module)
        except ModuleNotFoundError as missing:
            if missing.name.split(".")[0] in OWN:
                raise
            continue  # an engine that is not installed
        for alias in node.names:
            named = f"{node.module}.{alias.name}"
            assert hasattr(module, alias.name) or importlib.util.find_spec(named), f"{path.name}: {named}"
