"""Which pages hold nothing to read before a browser has run their scripts, and where one is."""

import functools
import re
import shutil
from collections.abc import Iterator
from typing import Literal

ENOUGH_CHARS = 200
"""Text outside of links and menus from which a page speaks for itself."""
LOADING_CHARS = 40
"""Text in an element to draw into that may be the word that it is loading."""
LOOKED_AT_CHARS = 256 * 2**10

_TAG = re.compile(r"</?([a-zA-Z][\w:.-]{0,40})")
_UNREAD = frozenset(
    ("script", "style", "noscript", "template", "svg", "title", "textarea", "iframe")
)
_ASIDE = frozenset(("a", "nav", "button", "select", "footer"))
_BOXES = ("div", "main", "section")
_SCRIPT = re.compile(r"<script\b[^>]{0,500}?(?:\bsrc\s*=|\btype\s*=\s*[\"']?module)", re.I)
_MOUNT = re.compile(
    r"<(?:div|main|section)\b[^>]{0,300}?\bid\s*=\s*[\"']?(?:root|app|__next|__nuxt|___gatsby|"
    r"svelte|app-root|react-root|mount|main-app|application|swagger-ui|redoc[\w-]*|docsify|"
    r"q-app|elm|ember-app|vue-app|container|content|main)[\"'\s>][^>]{0,300}",
    re.I,
)
_ELEMENT = re.compile(
    r"<(app-root|redoc|rapi-doc|elements-api|api-reference|[a-z][\w.]{0,40}-[\w.-]{1,40})\b"
    r"[^>]{0,2000}>\s{0,100}(?:loading\W{0,5}\s{0,100})?</\1>",
    re.I,
)
_ASKS = re.compile(
    r"(?:enable|requires?|needs?|without|turn on|have)\s+(?:\w+\s+){0,2}javascript|"
    r"javascript\s+(?:\w+\s+){0,3}(?:enabled|required|needed|disabled|to run)",
    re.I,
)
_NOSCRIPT = re.compile("<noscript\\b", re.I)
_LOADER = re.compile(
    r"flutter(?:_bootstrap|\.js)|main\.dart\.js|BAILOUT_TO_CLIENT_SIDE_RENDERING|"
    r"/_app/immutable/|config/environment\"",
    re.I,
)


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str | None:
    """The system's browser."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def needs_browser(html: str) -> bool:
    """Does a page hold no real text, but what draws one in a browser?

    It must hold little text of its own, a script to draw more, and a sign that it is meant to:
    an element to draw into that is empty, a word that JavaScript is needed, or a known loader.
    """
    html = html[:LOOKED_AT_CHARS]
    if not _SCRIPT.search(html):
        return False
    body = max(0, html.find("<body"))
    words = _num_chars(html, body)
    if words >= ENOUGH_CHARS or "<frameset" in html:
        return False
    if words == 0 or _ELEMENT.search(html) or _LOADER.search(html):
        return True
    mount = _MOUNT.search(html)
    if mount is not None and _is_empty(html, mount.start()):
        return True
    return any(_ASKS.search(inside) for inside in _noscripts(html))


Token = tuple[Literal["open", "close", "text"], str]


def _tokens(html: str, at: int, without: frozenset[str]) -> Iterator[Token]:
    """Tags by name and the text between them, save what stands inside of some."""
    while at >= 0:
        tag = html.find("<", at)
        text = "".join(html[at : tag if tag >= 0 else len(html)].split())
        if text:
            yield "text", text
        if tag < 0:
            return
        if html.startswith("<!--", tag):
            at = _after(html, "-->", tag)
            continue
        named = _TAG.match(html, tag)
        name = named[1].lower() if named else ""
        closing = html.startswith("</", tag)
        if name in without and not closing:
            at = _end_of(html, name, tag)
            continue
        at = _after(html, ">", tag)
        yield "close" if closing else "open", name


def _after(html: str, sign: str, at: int) -> int:
    found = html.find(sign, at)
    return found + len(sign) if found >= 0 else -1


def _num_chars(html: str, at: int) -> int:
    """Characters of text outside of links and menus, counted as far as they matter."""
    total = 0
    for kind, word in _tokens(html, at, _UNREAD | _ASIDE):
        total += len(word) if kind == "text" else 0
        if total >= ENOUGH_CHARS:
            break
    return total


def _is_empty(html: str, at: int) -> bool:
    """Does the box that opens here hold no more than a spinner?"""
    total = depth = 0
    for kind, word in _tokens(html, at, _UNREAD):
        if kind == "text":
            total += len(word)
        elif word in _BOXES:
            depth += 1 if kind == "open" else -1
        if total >= LOADING_CHARS or word in ("h1", "p", "nav"):
            return False
        if depth == 0:
            break
    return True


@functools.cache
def _closing(name: str) -> re.Pattern[str]:
    return re.compile(f"</{name}\\b", re.I)


def _end_of(html: str, name: str, start: int) -> int:
    closing = _closing(name).search(html, start)
    return _after(html, ">", closing.end() - 1) if closing else -1


def _noscripts(html: str) -> Iterator[str]:
    at = 0
    while (opening := _NOSCRIPT.search(html, at)) is not None:
        at = _end_of(html, "noscript", opening.start())
        if at < 0:
            return
        yield html[opening.end() : at]
