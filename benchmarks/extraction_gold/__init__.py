"""Five manuals to what a perfect extraction of each page holds, read from the pages' sources.

The sources stand beside the HTML in Debian's packages, or in the source distribution of the same
version. Nothing here looks at the HTML: headings, code, signatures and navigation are what the
authors wrote, in reStructuredText, AsciiDoc or two kinds of Markdown. A form that the source alone
does not settle (an included file that is not there, a marker of the site's own theme) is left out
of the gold.
"""

from benchmarks.extraction_gold.docstrings import Docstrings
from benchmarks.extraction_gold.manuals import HELD_OUT, SOURCES, archived
from benchmarks.extraction_gold.python_markdown import read_python_markdown
from benchmarks.extraction_gold.records import Gold, Source, dense
from benchmarks.extraction_gold.rst import read_rst

__all__ = [
    "HELD_OUT",
    "SOURCES",
    "Docstrings",
    "Gold",
    "Source",
    "archived",
    "dense",
    "read_python_markdown",
    "read_rst",
]
