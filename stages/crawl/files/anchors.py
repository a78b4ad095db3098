"""Anchors of headings, as GitHub and as notebooks make them."""

import re
from collections import Counter

_MARKUP = re.compile(r"!?\[([^\[\]]*)\](?:\([^()]*\)|\[[^\[\]]*\])|<[^<>]+>|[`*]")


class Anchors:
    """The anchors of one file, in the headings' order: a second `usage` is `usage-1`."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def of(self, title: str) -> str:
        """As GitHub makes it: lower case, blanks to hyphens, without any other sign."""
        bare = re.sub(r"[^\w\- ]", "", plain(title).lower()).replace(" ", "-")
        anchor = bare
        while anchor in self._seen:
            self._seen[bare] += 1
            anchor = f"{bare}-{self._seen[bare]}"
        self._seen[anchor] = 0
        return anchor


def plain(title: str) -> str:
    """A heading's words without links and emphasis."""
    return _MARKUP.sub(r"\1", title).strip()
