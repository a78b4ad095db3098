"""What a source gives: pages, or for an address without one the reason."""

from dataclasses import dataclass

from stages.core.records import Heading


@dataclass(frozen=True)
class Page:
    """What is written at an address, as Markdown.

    `url` is the address as readers know it; that of a part of a file carries a fragment
    (`tool.py#L10-L24`). `canonical` is the address that a web page calls its own.
    """

    url: str
    title: str
    text: str
    headings: tuple[Heading, ...] = ()
    canonical: str | None = None
    pairs: tuple[tuple[str, str], ...] = ()
    """Questions that people asked, with the answers that they were given; these stand in the text.
    """
    key: str = ""
    """What the document is known by where its address does not last: lines move with an edit."""


class UnreadableError(Exception):
    """Nothing to read here; raised by whatever reads a source, and counted as a reject."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        """One of the words that rejects.jsonl counts, such as `too_large`."""
        self.detail = detail

    @property
    def lasts(self) -> bool:
        """Does it follow from the body alone? What a limit ended may pass under another one."""
        return not self.reason.startswith("parse_")
