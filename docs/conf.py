"""Sphinx configuration. The build needs no network: `sphinx-build -W --keep-going -b html docs docs/_build/html`."""

import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import capabilities  # noqa: E402
import reference  # noqa: E402

import pyrovae  # noqa: E402

project = "pyrovae"
author = "the pyrovae authors"
project_copyright = author
release = pyrovae.__version__
version = release

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_*"]

# Pages and notebooks
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # pages show the output stored in notebooks

# Docstrings: Google style; shapes and types move from the signature into the list of parameters.
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # "Attributes:" describes; it does not define the names a second time

html_theme = "furo"
html_title = f"pyrovae {release}"
html_show_sourcelink = False


def _as_rest(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text, so that in a terminal they read as they should: here they become reST.

    A bar is mathematics, not a substitution; a letter may follow a literal (``ELBO``s); "Z." alone is a description,
    not an item of a list.
    """
    for i, line in enumerate(lines):
        parts = re.split(r"(``.+?``)", line)  # text, literal, text, ...
        for j in range(0, len(parts), 2):
            parts[j] = parts[j].replace("|", r"\|")
            if j and parts[j][:1].isalnum():
                parts[j] = r"\ " + parts[j]
        lines[i] = re.sub(r"^(\s+|:ivar \w+: )(\w\.)$", r"\1\\\2", "".join(parts))


def _write_pages(app: Any) -> None:
    made = {f"_{name}_capabilities.md": table for name, table in capabilities.pages().items()}
    for name, text in {"reference.md": reference.page(), **made}.items():
        page = HERE / name
        if not page.exists() or page.read_text() != text:
            page.write_text(text)


def setup(app: Any) -> None:
    app.connect("builder-inited", _write_pages)
    app.connect("autodoc-process-docstring", _as_rest)
