"""Configuration of Sphinx for the documentation of dualforce."""

import os

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
# The pages are the same with and without torch-sim, which needs Python 3.12.
autodoc_mock_imports = ["torch_sim"]

# Without network, `DUALFORCE_DOCS_OFFLINE=1` leaves out links to other projects.
intersphinx_mapping = {
    name: (url, None)
    for name, url in {
        "ase": "https://ase-lib.org",
        "metatomic": "https://docs.metatensor.org/metatomic/latest",
        "metatrain": "https://docs.metatensor.org/metatrain/latest",
        "numpy": "https://numpy.org/doc/stable",
        "python": "https://docs.python.org/3",
        "torch": "https://docs.pytorch.org/docs/stable",
    }.items()
    if not os.environ.get("DUALFORCE_DOCS_OFFLINE")
}
