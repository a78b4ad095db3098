"""Markdown as it stands, without its front matter, with the anchors that GitHub gives headings."""

import contextlib
import itertools
import re
import tomllib
from collections.abc import Callable
from typing import Any
from urllib.parse import urljoin

import yaml
from markdown_it import MarkdownIt

from stages.core.records import Heading
from stages.crawl.files.addresses import Place
from stages.crawl.files.anchors import Anchors, plain
from stages.crawl.files.draft import one_line, sound
from stages.crawl.files.text import decode
from stages.crawl.page import Page, UnreadableError

_FRONT = re.compile(
    r"\A(?:---[ \t]*\n(.*?)\n(?:---|\.\.\.)|\+\+\+[ \t]*\n(.*?)\n\+\+\+)[ \t]*\n", re.S
)
_CODE = re.compile(r"(`+[^`]+`+)")
_TARGET = re.compile(r"(!?\[[^\[\]\n]*\]\(<?|^ {0,3}\[[^\[\]\n]+\]: *<?)([^()<>\s]+)")
_MARKDOWN = MarkdownIt("commonmark")


def parse(body: bytes, at: Place) -> Page:
    """Links that are relative become addresses; code stays as it is."""
    text, named = _without_front_matter(decode(body))
    text, headings = outlined(text, Anchors().of, lambda href: urljoin(at.url, href))
    if not text.strip():
        raise UnreadableError("empty")
    first = next((plain(heading.title) for heading in headings if heading.level == 1), "")
    return Page(at.url, named or first or at.stem, text, tuple(headings))


def outlined(
    text: str, anchor: Callable[[str], str], resolve: Callable[[str], str]
) -> tuple[str, list[Heading]]:
    """The text with its headings in one form, and each with the byte where it starts."""
    lines: list[str | None] = list(sound(text).split("\n"))
    titles: dict[int, tuple[int, str]] = {}  # by line
    code: set[int] = set()
    tokens = _MARKDOWN.parse("\n".join(line or "" for line in lines))
    for token, following in itertools.pairwise([*tokens, None]):
        if token is None or token.map is None:
            continue
        first, end = token.map
        if token.type in ("fence", "code_block"):
            code.update(range(first, end))
        elif token.type == "heading_open" and token.level == 0 and following is not None:
            title = one_line(following.content)
            if title:
                level = int(token.tag[1:])
                titles[first] = level, title
                lines[first] = f"{'#' * level} {title}"  # the outline of a text has one form
                lines[first + 1 : end] = [None] * (end - first - 1)
        elif token.type == "html_block" and re.fullmatch(r"(?s)\s*<!--.*-->\s*", token.content):
            lines[first:end] = [None] * (end - first)
    headings: list[Heading] = []
    kept: list[str] = []
    size = 0
    for place, line in enumerate(lines):
        if line is None:
            continue
        if place in titles:
            level, title = titles[place]
            heading = Heading(start=size, level=level, title=plain(title), anchor=anchor(title))
            headings.append(heading)
        if place not in code:
            line = _resolved(line, resolve)
        kept.append(line)
        size += len(line.encode()) + 1
    return _trimmed("\n".join(kept), headings)


def _trimmed(text: str, headings: list[Heading]) -> tuple[str, list[Heading]]:
    """Without the blank lines around; the headings move with the text."""
    inner = text.lstrip("\n")
    moved = len(text) - len(inner)
    return inner.rstrip("\n"), [
        heading.model_copy(update={"start": heading.start - moved}) for heading in headings
    ]


def _resolved(line: str, resolve: Callable[[str], str]) -> str:
    def target(found: re.Match[str]) -> str:
        href = found[2]
        if re.match(r"[a-zA-Z][\w+.-]*:", href):
            return found[0]
        try:
            return found[1] + resolve(href)
        except ValueError:  # a bracket or port that is no address
            return found[0]

    if "](" not in line and "]:" not in line:
        return line
    parts = _CODE.split(line)
    return "".join(
        part if place % 2 else _TARGET.sub(target, part) for place, part in enumerate(parts)
    )


def _without_front_matter(text: str) -> tuple[str, str]:
    """The text, and the title that its front matter names."""
    found = _FRONT.match(text)
    if not found:
        return text, ""
    named: Any = None
    # A rule, or settings that are broken: neither says a title.
    with contextlib.suppress(yaml.YAMLError, ValueError, RecursionError):
        named = yaml.safe_load(found[1]) if found[1] is not None else tomllib.loads(found[2])
    if not isinstance(named, dict):
        return text, ""
    title = named.get("title")
    return text[found.end() :], one_line(title) if isinstance(title, str) else ""
