"""How Sphinx builds the site: ``make docs`` writes it to docs/_build/html."""

import repl_mm

project = 'repl_mm'
author = 'the authors of repl_mm'
copyright = f'2026, {author}. Apache-2.0'
version = release = repl_mm.__version__

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
exclude_patterns = ['_build']
# Links go to headings by the anchors that GitHub gives them.
myst_heading_anchors = 4

# What is indented on a page is a command line.
highlight_language = 'bash'
autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
autodoc_typehints_description_target = 'documented'
autodoc_inherit_docstrings = False
napoleon_use_ivar = True  # attributes of a dataclass are described once
# Every name of this package that a docstring or an annotation refers to must have its place in the reference.
nitpicky = True
nitpick_ignore_regex = [('py:.*', r'(?!repl_mm).*')]

html_theme = 'furo'
html_title = f'repl_mm {release}'
html_copy_source = False
html_static_path = ['_static']
html_css_files = ['wide.css']
