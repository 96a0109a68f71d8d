import json
import subprocess
import sys
from pathlib import Path

from aepo.catalogue import LEFT_OUT, as_json, as_markdown, rows
from aepo.engines.capabilities import ENGINES
from aepo.methods import METHODS

ROOT = Path(__file__).parents[1]


def test_every_method_is_listed_with_all_that_is_known_of_it():
    listed = rows()
    assert [row["method"] for row in listed] == list(METHODS)
    assert json.loads(as_json()) == listed
    assert all(set(row["engines"]) <= set(ENGINES) and row["engines"] for row in listed)
    aepo = next(row for row in listed if row["method"] == "aepo")
    assert aepo["hooks"] == ["plan", "mix", "shape", "update"] and aepo["paper"] == "2510.08141"


def test_the_page_in_the_docs_is_the_present_table():
    page = ROOT / "docs" / "methods" / "README.md"
    assert page.read_text() == as_markdown(), "run: aepo methods --markdown > docs/methods/README.md"


def test_the_table_prints():
    shown = subprocess.run([sys.executable, "-m", "aepo", "methods"], capture_output=True, text=True, check=True)
    assert all(name in shown.stdout for name in METHODS)


def test_no_method_is_built_and_called_left_out():
    assert not {method.paper for method in METHODS.values()} & (set(LEFT_OUT.values()) - {"-"})
