"""Four manuals to what a perfect extraction of each page holds, read from the pages' sources.

The sources stand beside the HTML in Debian's packages. Nothing here looks at the HTML: headings,
code, signatures and navigation are what the authors wrote, in reStructuredText, AsciiDoc or
Markdown. A form that the source alone does not settle (an included file that is not there, a
marker of the site's own theme) is left out of the gold.
"""

from benchmarks.extraction_gold.docstrings import Docstrings
from benchmarks.extraction_gold.manuals import HELD_OUT, SOURCES
from benchmarks.extraction_gold.records import Gold, Source, dense
from benchmarks.extraction_gold.rst import read_rst

__all__ = ["HELD_OUT", "SOURCES", "Docstrings", "Gold", "Source", "dense", "read_rst"]
