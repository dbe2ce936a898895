"""How Sphinx builds the documentation site; `make docs` runs it with warnings as errors."""

import itertools
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

PRESETS = Path(__file__).parent.parent / "configs"
OUTSIDE_CODE = re.compile(r"(`[^`]*`)")
"""Splits a text at its code spans, which `split` keeps at the odd places."""

project = "rl-nfm"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["site"]
html_theme = "furo"  # fonts of the system, scripts of its own: the pages need no network
html_show_copyright = False
html_title = "rl-nfm"
smartquotes = False  # two hyphens begin an option
napoleon_numpy_docstring = False
default_role = "code"  # docstrings quote names with single backticks, as Markdown does
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"


def preset_page(folder: Path) -> str:
    """The header of each preset, in Markdown: what it is, its sources and its deviations."""
    sections = []
    for path in sorted(folder.glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        header = itertools.takewhile(lambda line: line.startswith("#"), lines)
        text = " ".join(line.removeprefix("#").strip() for line in header)
        text = text.replace(" Deviations:", "\n\nDeviations:")
        sections.append(f"## {path.stem}\n\n{escape(text, '*_<')}\n")
    return "\n".join(sections)


def escape(text: str, marks: str) -> str:
    """`text` with a backslash before each of the marks that stands outside of code spans."""
    parts = OUTSIDE_CODE.split(text)
    parts[::2] = [re.sub(f"([{re.escape(marks)}])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def complete_presets(app: Sphinx, page: str, source: list[str]) -> None:
    """Append the headers of the presets to their page."""
    if page == "presets":
        source[0] += preset_page(PRESETS)


def mend_docstring(app: Sphinx, kind: str, name: str, item: Any, options: Any, lines: list[str]):
    """Keep maths such as `|x|` from being read as markup, and sentences as a field's type."""
    lines[:] = escape("\n".join(lines), "|*").split("\n")
    if kind in ("attribute", "data", "property"):
        lines[0] = f": {lines[0]}"  # napoleon takes for a type what stands before the first colon


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", complete_presets)
    app.connect("autodoc-process-docstring", mend_docstring, priority=100)  # before napoleon
