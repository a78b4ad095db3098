"""Pages that JavaScript draws: which they are, and the HTML that a browser makes of them."""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from typing import Any, Literal

from playwright.async_api import Error as PlaywrightError
from playwright.async_api import Page as Tab
from playwright.async_api import Route
from playwright.async_api import TimeoutError as PlaywrightTimeoutError
from scrapy import Request
from scrapy.core.engine import ExecutionEngine
from scrapy_playwright.page import PageMethod

from stages.crawl import guard
from stages.crawl.page import UnreadableError
from stages.crawl.pages import Body

Mode = Literal["auto", "always", "never"]

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MAX_TABS = 2
MAX_HTML_CHARS = 32 * 2**20
MAX_CONNECTION_BYTES = 64 * 2**20
IDLE_S = 10.0
"""Longest wait for a page's requests to end, after which it is taken as it stands."""
STILL_S = 0.25
"""A page that has not changed for so long is drawn."""


def browser() -> str | None:
    """The system's Chromium."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


# --- which pages -------------------------------------------------------------------------------

ENOUGH_CHARS = 200
"""Text outside of links and menus from which a page speaks for itself."""
LOOKED_AT_CHARS = 512 * 2**10

_TAG = re.compile(r"</?([a-zA-Z][\w:-]{0,40})")
_UNREAD = ("script", "style", "noscript", "template", "svg", "title", "textarea", "iframe")
_ASIDE = ("a", "nav", "button", "select", "footer")
_SCRIPT = re.compile(r"<script\b[^>]{0,500}?(?:\bsrc\s*=|\btype\s*=\s*[\"']?module)", re.I)
_MOUNT = re.compile(
    r"<(?:div|main|section)\b[^>]{0,300}?\bid\s*=\s*[\"']?"
    r"(root|app|__next|__nuxt|___gatsby|svelte|app-root|react-root|mount|main-app|application|"
    r"swagger-ui|redoc[\w-]*|docsify|q-app|elm|ember-app|vue-app|container|content|main)\b"
    r"[^>]{0,300}>(?:\s|&nbsp;|<!--[^>]{0,200}-->|</?(?:div|span|i|img|p|section|svg|path|circle)\b"
    r"[^>]{0,300}>|loading|please wait|\.|…){0,40}</(?:div|main|section)>",
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
_BUNDLE = re.compile(
    r"flutter(?:_bootstrap|\.js)|main\.dart\.js|BAILOUT_TO_CLIENT_SIDE_RENDERING|"
    r"/_app/immutable/|config/environment\"|docsify(?:@[\w.]+)?(?:/lib)?(?:/docsify)?[\w.]*\.js",
    re.I,
)


def needs_browser(html: str) -> bool:
    """Does a page hold no real text, but what draws one in a browser?

    It must hold little text of its own, a script to draw more, and a sign that it is meant to:
    an empty element to draw into, a word that JavaScript is needed, or a known loader.
    """
    html = html[:LOOKED_AT_CHARS]
    if not _SCRIPT.search(html):
        return False
    words = _num_chars(html, ENOUGH_CHARS)
    if words >= ENOUGH_CHARS:
        return False
    if _MOUNT.search(html) or _ELEMENT.search(html) or _BUNDLE.search(html):
        return True
    noscript = " ".join(_insides(html, "noscript"))
    return bool(_ASKS.search(noscript)) or words == 0


def _num_chars(html: str, enough: int) -> int:
    """Characters of text in the body, outside of links and menus; counted up to `enough`."""
    at = max(0, html.lower().find("<body"))
    total = depth = 0
    while total < enough:
        tag = html.find("<", at)
        end = len(html) if tag < 0 else tag
        if not depth:
            total += len("".join(html[at:end].split()))
        if tag < 0:
            break
        if html.startswith("<!--", tag):
            at = html.find("-->", tag)
        else:
            named = _TAG.match(html, tag)
            name = named[1].lower() if named else ""
            closing = html.startswith("</", tag)
            if name in _UNREAD and not closing:
                at = _end_of(html, name, tag)
            else:
                if name in _ASIDE:
                    depth = max(0, depth - 1) if closing else depth + 1
                at = html.find(">", tag)
        if at < 0:
            break
        at += 3 if html.startswith("-->", at) else 1
    return total


def _end_of(html: str, name: str, start: int) -> int:
    closing = re.compile(f"</{name}\\b", re.I).search(html, start)
    return html.find(">", closing.end() - 1) if closing else -1


def _insides(html: str, name: str) -> Iterator[str]:
    at = 0
    while (opening := re.compile(f"<{name}\\b", re.I).search(html, at)) is not None:
        end = _end_of(html, name, opening.start())
        if end < 0:
            return
        yield html[opening.end() : end]
        at = end
