"""Sphinx configuration; builds without network."""

import pathlib
import tomllib

project = "numpyro_rtk"
author = "The numpyro_rtk developers"
_pyproject = pathlib.Path(__file__).resolve().parent.parent / "pyproject.toml"
release = tomllib.loads(_pyproject.read_text())["project"]["version"]
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "myst_parser",
]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
html_theme = "furo"
html_title = "numpyro_rtk"
autodoc_typehints = "none"  # the Args sections say it in words
autodoc_member_order = "bysource"
