"""The documentation holds together: links, anchors, paths, the map of pages and the settings, without Sphinx."""

import dataclasses
import re
import runpy
import typing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from aepo.config import RUN_SETTINGS, Config

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
LEFT_OUT = {"build", "dist", "runs", "node_modules"}
PAGES = sorted(
    page
    for page in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in LEFT_OUT for part in page.relative_to(ROOT).parts)
)

FENCE = re.compile(r"^( *)(`{3,}|~{3,}).*?^ *\2`*$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)")
# [text](target), ![text](target "title"), and definitions [name]: target
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
HEADING = re.compile(r"^#{1,6} +(.+?)(?: +#+)?$", re.MULTILINE)
# Paths in code that name a file of the repository; a name in capitals, `*` or `{` stands for many.
NAMED = re.compile(r"`((?:src|tests|docs|benchmarks|examples|recipes|research)/[\w./-]+\.(?:py|md|toml|png))`")


def anchors(text: str) -> set[str]:
    """Return GitHub's anchors of the headings: lower case, without punctuation, numbered where they repeat."""
    seen: Counter[str] = Counter()
    found = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))
    for title in HEADING.findall(FENCE.sub("", text)):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def targets(text: str) -> Iterator[str]:
    """Yield the relative targets of the links that are not in code."""
    for match in LINK.finditer(CODE.sub("``", FENCE.sub("", text))):
        target = match[1] or match[2]
        if not re.match(r"[a-z][a-z0-9+.-]*:", target):
            yield target


def broken(page: Path, text: str) -> list[str]:
    """Return each relative link of the page that leads nowhere, or out of the repository."""
    found = []
    for target in targets(text):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or not file.is_relative_to(ROOT):
            found.append(target)
        elif anchor and file.suffix == ".md":
            content = text if file == page else file.read_text()
            if anchor not in anchors(content):
                found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_and_anchor_leads_somewhere(page: Path) -> None:
    assert broken(page, page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_is_named_in_code_exists(page: Path) -> None:
    if page.name == "CHANGELOG.md":
        pytest.skip("it names what was")
    named = NAMED.findall(page.read_text())
    assert [name for name in named if not (ROOT / name).exists() and not re.search(r"[A-Z]{3}", Path(name).stem)] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a](decisions.md), [b](../README.md), ![c](figures/demo.png)", []),
        ("[a](missing.md)", ["missing.md"]),
        ("[a](../missing.md#here)", ["../missing.md#here"]),
        ("[a](../../outside.md)", ["../../outside.md"]),
        ("# One\n[a](#one) [b](#two)", ["#two"]),
        ("# `One`, two: (3)\n## One\n## One\n[a](#one-two-3) [b](#one-1) [c](#one-2)", ["#one-2"]),
        ("[name]: missing.md", ["missing.md"]),
        ("`[a](missing.md)`\n```\n[a](missing.md)\n# Heading\n```\n[b](#heading)", ["#heading"]),
        ("[a](https://arxiv.org/abs/2510.08141#x) [b](mailto:a@b.c)", []),
        ('![a](missing.png "title")', ["missing.png"]),
    ],
)
def test_the_checker_finds_what_is_broken(text: str, expected: list[str]) -> None:
    assert broken(DOCS / "index.md", text) == expected


def test_every_page_of_the_site_is_on_the_first_page() -> None:
    listed = {(DOCS / target.partition("#")[0]).resolve() for target in targets((DOCS / "index.md").read_text())}
    pages = {page for page in DOCS.rglob("*.md") if page.parent != DOCS / "methods"} - {DOCS / "index.md"}
    assert pages - listed == set()


def test_every_module_of_the_core_has_its_api_page() -> None:
    pages = "".join(p.read_text() for p in (DOCS / "api").glob("*.md"))
    listed = set(re.findall(r"automodule:: (\S+)", runpy.run_path(str(DOCS / "conf.py"))["with_controls"](pages)))
    source = ROOT / "src" / "aepo"
    files = [source / f"{name}.py" for name in ("types", "errors", "algorithm", "methods", "convert")]
    files += [f for name in ("entropy", "loss", "control", "engines") for f in (source / name).glob("*.py")]
    modules = {".".join(f.relative_to(source.parent).with_suffix("").parts) for f in files if f.stem != "__init__"}
    # Importing it needs Triton, which is no dependency.
    assert modules - listed == {"aepo.entropy.triton"}


# --- the settings -------------------------------------------------------------------------------------------

SETTINGS = runpy.run_path(str(DOCS / "make_settings.py"))
NESTED = [hint for hint in typing.get_type_hints(Config).values() if dataclasses.is_dataclass(hint)]
CONFIGURED = [Config, *NESTED, *(cls for table in RUN_SETTINGS.tables.values() for cls in table.values())]


def test_the_settings_page_is_what_its_command_makes() -> None:
    page = (DOCS / "settings.md").read_text()
    assert page == SETTINGS["page"](), "run: python docs/make_settings.py > docs/settings.md"


@pytest.mark.parametrize("cls", CONFIGURED, ids=lambda cls: cls.__name__)
def test_every_field_of_a_configuration_has_a_docstring(cls: type) -> None:
    meanings = SETTINGS["meanings"](cls)
    assert [field.name for field in SETTINGS["fields"](cls) if len(meanings.get(field.name, "")) < 8] == []


def test_every_open_choice_has_its_section() -> None:
    assert set(SETTINGS["CHOICES"]) == set(RUN_SETTINGS.tables)


def test_a_field_without_a_docstring_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "from dataclasses import dataclass\n@dataclass\nclass Base:\n    a: int = 1\n    'The first.'\n    b: int = 2\n"
    )
    source += "@dataclass\nclass Sub(Base):\n    a: int = 3\n    c: int = 4\n    'The third\\n    of them.'\n"
    (tmp_path / "undocumented.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    import undocumented

    assert SETTINGS["meanings"](undocumented.Sub) == {"a": "The first.", "c": "The third of them."}
