"""The documentation site: `python -m sphinx -W -b html examples/site build/site`."""

import re
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


# Links between notebooks, pages and the report are written for a checkout. The site has these files
# elsewhere, and reaches notebooks through a symbolic link, which plain links do not follow.
LINKS = {
    r"(?:\.\./notebooks/)?(\w+)\.ipynb": r"/notebooks/\2",
    r"\.\./site/(\w+)\.md(?:#[\w-]+)?": r"/\2",
    r"\.\./\.\./benchmarks/arena/(REPORT)\.md": "/arena",
}


def setup(app: Any) -> None:
    """Defaults are shown under their public names, links lead to pages of the site."""

    def public(app, what, name, obj, options, signature, annotation):
        del app, what, name, obj, options
        return (signature or "").replace("_blocks.", ""), annotation

    def linked(app, docname, source):
        del app, docname
        for link, page in LINKS.items():
            link = rf"(?<!!)\[([^][\"]+)\]\({link}\)"
            source[0] = re.sub(link, rf"{{doc}}`\1 <{page}>`", source[0])

    app.connect("autodoc-process-signature", public)
    app.connect("source-read", linked)
