"""What of a document is better left whole: fences, table rows and links, and the units of code."""

import bisect
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from langchain_text_splitters import Language, RecursiveCharacterTextSplitter

from stages.core.fences import Fence
from stages.core.records import Document
from stages.split.cutting import Separators
from stages.split.tokens import Ruler

_ROW = re.compile(r"^[ \t]*\|.*$", re.M)
# Bounded, so that no run of brackets makes the search slow.
_LINK = re.compile(r"!?\[[^\[\]\n]{0,999}\]\((?:[^()\s]|\([^()\s]{0,999}\)){0,999}\)")

SUFFIXES = {
    Language.C: ".c .h",
    Language.COBOL: ".cbl .cob",
    Language.CPP: ".cc .cpp .cxx .hh .hpp",
    Language.CSHARP: ".cs",
    Language.ELIXIR: ".ex .exs",
    Language.GO: ".go",
    Language.HASKELL: ".hs",
    Language.JAVA: ".java",
    Language.JS: ".cjs .js .jsx .mjs",
    Language.KOTLIN: ".kt .kts",
    Language.LATEX: ".sty .tex",
    Language.LUA: ".lua",
    Language.PHP: ".php",
    Language.POWERSHELL: ".ps1 .psm1",
    Language.PROTO: ".proto",
    Language.PYTHON: ".py .pyi .pyx",
    Language.R: ".r",
    Language.RST: ".rst",
    Language.RUBY: ".rb",
    Language.RUST: ".rs",
    Language.SCALA: ".sc .scala",
    Language.SOL: ".sol",
    Language.SWIFT: ".swift",
    Language.TS: ".ts .tsx",
    Language.VISUALBASIC6: ".bas .cls .frm",
}
"""Which endings of a document's address tell its language."""

_LANGUAGES = {
    suffix: language for language, suffixes in SUFFIXES.items() for suffix in suffixes.split()
}


def language(document: Document) -> Language | None:
    """The programming language that a document is written in, by the ending of its address.

    One with titles in it is Markdown about a program.
    """
    if any(heading.title for heading in document.headings):
        return None
    suffix = PurePosixPath(urlsplit(document.url).path).suffix.lower()
    return _LANGUAGES.get(suffix)


@functools.cache
def separators(of: Language) -> Separators:
    """LangChain's separators of a language: its definitions and control flow, then lines, words."""
    patterns = RecursiveCharacterTextSplitter.get_separators_for_language(of)
    return tuple(re.compile(pattern) if pattern else None for pattern in patterns)


@dataclass(frozen=True)
class Markdown:
    """The blocks of a Markdown text that have no more than so many tokens."""

    ruler: Ruler
    fences: Sequence[Fence]
    chunk_tokens: int

    def within(self, first: int, last: int) -> Sequence[tuple[int, int]]:
        """Spans between two offsets that are to stay whole, in order."""
        if "\n" in self.ruler.text[first:last].strip("\n"):
            return self._code(first, last)
        return self._inline(first, last)

    def _code(self, first: int, last: int) -> Sequence[tuple[int, int]]:
        """The fences; of a longer one the first line and the last, which alone show no code."""
        place = bisect.bisect_left(self.fences, first, key=lambda fence: fence.end)
        blocks: list[tuple[int, int]] = []
        for fence in self.fences[place:]:
            if fence.start >= last:
                break
            if self._fits(fence.start, fence.end):
                blocks.append((fence.start, fence.end))
                continue
            text = self.ruler.text
            head = fence.start, text.find("\n", fence.body, fence.closing)
            tail = text.rfind("\n", fence.body, fence.closing - 1), fence.end
            blocks += [
                part
                for part in (head, tail)
                if first <= part[0] < part[1] <= last and self._fits(*part)
            ]
        return blocks

    def _inline(self, first: int, last: int) -> Sequence[tuple[int, int]]:
        """A row of a table, or else the links of a line."""
        text = self.ruler.text
        for pattern in (_ROW, _LINK):
            found = [match.span() for match in pattern.finditer(text, first, last)]
            blocks = [span for span in found if self._fits(*span)]
            if blocks:
                return blocks
        return ()

    def _fits(self, start: int, end: int) -> bool:
        return self.ruler.count(start, end) <= self.chunk_tokens
