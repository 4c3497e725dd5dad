"""The documentation site: `python -m sphinx -W docs OUT`, after `pip install '.[docs]'`.

Everything that a page needs is in OUT: no fonts, scripts or styles from elsewhere. Formulas are plain text.
"""

import importlib.metadata
import logging
import os
from pathlib import Path
import sys

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

import source_pages

project = "novoclip"
author = "the authors of novoclip"
project_copyright = "the authors of novoclip, Apache License 2.0"
release = version = importlib.metadata.version("novoclip")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.linkcode",
    "sphinx_copybutton",
    "sphinx_design",
    "readable_signatures",
    "reference_directive",
    "source_pages",
]
exclude_patterns = ["_build", "_ext", "_static", "_templates", "**/_*"]

# Links to the pages of JAX, Optax and Flax need their inventories from the network, which a build must do without: a
# site that does not answer is a warning, and -W makes it an error. So they are asked for by a variable. Inventories
# kept here would go stale, and their links with them.
if os.environ.get("NOVOCLIP_INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "jax": ("https://docs.jax.dev/en/latest", None),
        "optax": ("https://optax.readthedocs.io/en/latest", None),
        "flax": ("https://flax.readthedocs.io/en/latest", None),
    }

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

linkcode_resolve = source_pages.linkcode_resolve
autosummary_generate = False
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
# `name` in a docstring leads to the object of this name, if there is one.
default_role = "py:obj"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 72
toc_object_entries_show_parents = "hide"
add_module_names = False

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
html_title = f"novoclip {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "github-dark"

# A pattern in a toctree may match no page yet. Sphinx has no name for this warning that could be suppressed.
logging.getLogger("sphinx.sphinx.directives.other").addFilter(
    lambda record: not str(record.msg).startswith("toctree glob pattern")
)
