"""What a perfect extraction of a page holds, and the manuals whose pages it is known of."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Title:
    level: int
    text: str
    anchors: frozenset[str]
    """Fragments that the source allows for it, in letters and digits only; empty where it does not
    say one."""


@dataclass(frozen=True)
class Code:
    text: str
    language: str
    """Empty where the source names none."""
    shown: str = ""
    """As a generator may show it instead: Sphinx hides the flags of tests in some languages."""


@dataclass
class Gold:
    titles: list[Title] = field(default_factory=list)
    codes: list[Code] = field(default_factory=list)
    signatures: list[str] = field(default_factory=list)
    paragraphs: list[str] = field(default_factory=list)
    num_references: int = 0
    """References to other pages by their titles, which the source does not hold."""
    brought: list[str] = field(default_factory=list)
    """Docstrings that the page's generator brings in; they are text of the page."""
    brought_titles: list[str] = field(default_factory=list)
    """Headings in them."""


@dataclass(frozen=True)
class Source:
    name: str
    html: Path
    package: str
    generator: str
    pages: Callable[[], Iterator[tuple[Path, str]]]
    """Each page's HTML and its source."""
    read: Callable[[str], Gold]
    navigation: tuple[str, ...]
    """Lines of the site's frame, beside the titles of its other pages."""
    code: Path | None = None
    """The folder of the code whose docstrings its pages bring in."""
    written: Path | None = None
    """The archive that holds the pages' sources, where the package does not."""
    written_by: str = ""
    """The command that gets it."""


def dense(text: str) -> str:
    """Letters and digits only, in lower case."""
    return "".join(re.findall(r"\w", text.casefold())).replace("_", "")
