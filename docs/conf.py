"""Configure the documentation site: `make docs` builds it with Sphinx, MyST and furo."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

from selfalign.system.version import __version__

project = "selfalign"
author = "The selfalign authors"
copyright = "the selfalign authors; the texts are under Apache-2.0"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "pages", "llms_txt"]
exclude_patterns = ["_ext"]
myst_enable_extensions = ["fieldlist"]
myst_heading_anchors = 4
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_use_rtype = False
copybutton_exclude = ".linenos, .gp, .c1"

html_theme = "furo"
html_title = f"selfalign {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_sourcelink_suffix = ""
html_copy_source = True
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
