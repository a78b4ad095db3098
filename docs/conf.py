"""The manual as HTML, from Markdown; the same pages give the same bytes on every day."""

project = "Docent"
author = "the Docent authors"
version = release = "0.1.0"

extensions = ["myst_parser"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
smartquotes = False  # a quotation from the manual is to be found in its source as it stands

exclude_patterns = ["_build"]
highlight_language = "text"

html_theme = "furo"
html_title = "Docent"
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False  # the copyright line and the date would change with the year
html_last_updated_fmt = None
