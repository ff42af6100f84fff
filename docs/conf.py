"""How the documentation is built. It takes nothing from the network."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "sdtree"
author = "the sdtree authors"
project_copyright = f"{author}. Apache-2.0"
release = version = version_of("sdtree")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "command_line",
    "data_docs",
    "parameters",
    "shown_tests",
    "signatures",
]
exclude_patterns = ["_build", "_ext", "**/.ipynb_checkpoints"]

# The tests run the notebooks, and see that what is stored in them is what comes out.
nb_execution_mode = "off"
myst_enable_extensions = ["deflist", "attrs_inline", "attrs_block"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
add_function_parentheses = False

html_theme = "furo"
html_title = f"sdtree {release}"
html_static_path = ["_static"]
html_css_files = ["sdtree.css"]
html_js_files = ["sdtree.js"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#0b6b74",
        "color-brand-content": "#0b6b74",
    },
    "dark_css_variables": {
        "color-brand-primary": "#5cc8d2",
        "color-brand-content": "#5cc8d2",
    },
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
