"""Configuration of Sphinx for the documentation of dualforce."""

import dualforce


project = "dualforce"
author = "The dualforce developers"
copyright = author
version = release = dualforce.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["build"]
nitpicky = False

html_theme = "furo"
html_title = f"dualforce {version}"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True

intersphinx_mapping = {
    "ase": ("https://ase-lib.org/", None),
    "metatomic": ("https://docs.metatensor.org/metatomic/latest/", None),
    "metatrain": ("https://docs.metatensor.org/metatrain/latest/", None),
    "numpy": ("https://numpy.org/doc/stable/", None),
    "python": ("https://docs.python.org/3", None),
    "torch": ("https://docs.pytorch.org/docs/stable/", None),
}
