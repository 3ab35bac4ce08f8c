"""Sphinx configuration. The build needs no network: `sphinx-build -W --keep-going -b html docs docs/_build/html`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyrovae

project = "pyrovae"
author = "the pyrovae authors"
project_copyright = author
release = pyrovae.__version__
version = release

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

# Pages and notebooks
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests execute the notebooks; the pages show their stored output

# Docstrings: Google style; shapes and types move from the signature into the list of parameters.
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # "Attributes:" describes; it does not define the names a second time

html_theme = "furo"
html_title = f"pyrovae {release}"
html_show_sourcelink = False
