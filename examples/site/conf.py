"""The documentation site: `python -m sphinx -W -b html examples/site build/site`."""

from typing import Any

import optax_zoo

project = "optax_zoo"
version = release = optax_zoo.__version__
author = "the optax_zoo authors"
project_copyright = author

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon"]
exclude_patterns = ["**.ipynb_checkpoints"]

html_theme = "furo"
html_title = f"{project} {version}"
html_show_sourcelink = False

# Docstrings: `x` is code, arguments are described in words and not by their annotations.
default_role = "literal"
autodoc_typehints = "none"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
napoleon_attr_annotations = False
napoleon_use_rtype = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# The notebooks are committed without outputs and run here; what fails, fails the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 240
nb_merge_streams = True


# Links of pages and notebooks work in a checkout; here the same files have other places.
PLACES = {
    "](../notebooks/": "](notebooks/",
    "](../site/": "](../",
    "](../../benchmarks/arena/REPORT.md": "](arena.md",
}


def setup(app: Any) -> None:
    """Defaults are shown under their public names, links lead to pages of the site."""

    def public(app, what, name, obj, options, signature, annotation):
        del app, what, name, obj, options
        return (signature or "").replace("_blocks.", ""), annotation

    def linked(app, docname, source):
        del app, docname
        for place, here in PLACES.items():
            source[0] = source[0].replace(place, here)

    app.connect("autodoc-process-signature", public)
    app.connect("source-read", linked)
