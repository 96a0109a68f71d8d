"""Configure the documentation site: `make docs` builds it into build/docs with Sphinx. docs/decisions.md says why.

The pages are Markdown that GitHub shows as it stands, so the site's navigation is kept here and not in the pages.
Docstrings are Google style with Markdown's backticks.
"""

from __future__ import annotations

import os
import pkgutil
import posixpath
import re
from collections.abc import Iterator

from sphinx.application import Sphinx

import aepo.control
from aepo import __version__

# The address under which the repository's files are shown, such as https://github.com/OWNER/NAME/blob/main. Links that
# leave docs/ lead there. Where it is not set, they lead into the checkout around build/docs.
REPOSITORY = os.environ.get("AEPO_REPOSITORY", "").rstrip("/")

# The pages of each sidebar group. A page that stands in no group is an error; `*` stands for the rest of the folder.
NAVIGATION = {
    "index": {
        "The idea": ["entropy", "theory", "tasks", "results"],
        "Run": [
            "commands",
            "demo",
            "data",
            "models",
            "images",
            "sampling",
            "evaluation",
            "grading",
            "code",
            "calibrate",
            "scale",
        ],
        "Look and compare": ["metrics", "report", "compare", "doctor", "conformance"],
        "Other trainers": ["engines/trl", "engines/verl"],
        "Reference": ["settings", "methods/README", "api", "api/*"],
        "The project": ["decisions"],
    },
    "methods/README": {"": ["*"]},
}

project = "aepo"
author = "the aepo authors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
highlight_language = "none"
exclude_patterns = ["figures"]

# GitHub's anchors of headings; a link to another anchor is an error.
myst_heading_anchors = 6
myst_url_schemes = {"http": None, "https": None, "mailto": None, "checkout": "{{path}}"}

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
# `name` in a docstring links to what has that name, and is code where nothing has it.
default_role = "py:obj"

html_theme = "furo"
html_title = f"aepo {__version__}"
html_static_path = ["static"]
html_css_files = ["wide.css"]
html_copy_source = False
html_show_copyright = False

_LINK = re.compile(r"\]\((\.\./[^)\s#]*)(#[^)\s]*)?\)")
_SECTION = re.compile(r"(Args|Arguments|Returns|Raises|Yields|Attributes|Examples?|Notes?):\s*")
_ARGUMENT = re.compile(r"\s+\*{0,2}\w+(, \*{0,2}\w+)*( \([^)]*\))?: ")
_NAME = re.compile(r"`[A-Za-z_][\w.]*(\(\))?`")


def adapt_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Add the navigation to a page, and turn its links that leave docs/."""
    text = _LINK.sub(lambda match: _outside(docname, match), source[0])
    if docname == "api/control":
        text = with_controls(text)
    for caption, pages in NAVIGATION.get(docname, {}).items():
        text += "\n```{toctree}\n:hidden:\n:glob:\n"
        text += f":caption: {caption}\n\n" if caption else "\n"
        text += "\n".join(pages) + "\n```\n"
    source[0] = text


def with_controls(text: str) -> str:
    """Return the page with a section for each module of `aepo.control` that it does not name."""
    names = (f"aepo.control.{module.name}" for module in pkgutil.iter_modules(aepo.control.__path__))
    for name in names:
        if f":: {name}\n" not in text:
            text += f"\n### {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n"
    return text


def _outside(docname: str, match: re.Match[str]) -> str:
    """Return the link as it was, or to the repository's own address where it leaves docs/."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(docname), match[1]))
    if path.startswith("docs/"):
        return match[0]
    up = "../" * (docname.count("/") + 2)
    address = f"{REPOSITORY}/{path}" if REPOSITORY else f"checkout:{up}{path}"
    return f"]({address}{match[2] or ''})"


def adapt_docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Turn a docstring's backticks and formulas into reStructuredText, before napoleon reads its sections."""
    lines[:] = [] if lines[:1] and lines[0].startswith("Alias for field number") else _restructured(lines)
    if what in ("attribute", "data", "property"):
        # Napoleon takes "type: text" in the first line for a type. An empty first line stops it.
        lines.insert(0, "\\ ")
    if isinstance(obj, type) and (bases := [base for base in obj.__bases__ if base.__module__.startswith("aepo.")]):
        names = ", ".join(f":py:class:`~{base.__module__}.{base.__qualname__}`" for base in bases)
        lines += ["", f"Base: {names}"]


def _restructured(lines: list[str]) -> Iterator[str]:
    """Yield the lines. An indented block after an empty line is a formula, except in a section; doctests stay."""
    section, raw, before = False, "", ""
    for line in lines:
        text = line.strip()
        indented = text != "" and line[0] == " "
        if (raw == "doctest" and not text) or (raw == "formula" and text and not indented):
            raw = ""
        if not raw and text.startswith(">>>"):
            raw = "doctest"
        elif not raw and indented and not before and not section:
            raw = "formula"
            yield from ("::", "")
        if text and not indented:
            section = _SECTION.fullmatch(text) is not None
        yield line if raw or (section and not indented) else _escaped(line)
        before = text


def _escaped(line: str) -> str:
    """Return Markdown's text as reStructuredText: only backticks and a list's bullet have a meaning."""
    start = _ARGUMENT.match(line) or re.match(r"\s*(\* )?", line)
    assert start is not None
    parts = re.split(r"(`+[^`]+`+)", line[start.end() :])
    plain = [re.sub(r"[*|\\]|(?<=\w)_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
    code = [part if _NAME.fullmatch(part) else f"``{part.strip('`')}``" for part in parts[1::2]]
    joined = [piece for pair in zip(plain, [*code, ""], strict=True) for piece in pair]
    return start[0] + "".join(joined)


def setup(app: Sphinx) -> None:
    """Connect the adaptations; napoleon's own has priority 500."""
    app.connect("source-read", adapt_page)
    app.connect("autodoc-process-docstring", adapt_docstring, priority=400)
