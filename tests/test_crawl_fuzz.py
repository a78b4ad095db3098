"""Pages that nobody wrote: real ones broken at random, and random ones, read by real workers."""

import itertools
import random
import re
import string
from pathlib import Path

import pytest
import yaml
from shells import SHELLS, WHOLE

from stages.core.records import Heading
from stages.crawl import workers
from stages.crawl.page import Page, UnreadableError
from stages.crawl.pages import Body
from stages.crawl.web import Web

ROOT = Path(__file__).resolve().parent.parent
SOURCE = Web.model_validate(
    yaml.safe_load((ROOT / "conf/source/web.yaml").read_text()) | {"url": "http://x.org/"}
)
LIMITS = workers.Limits(cpu_s=20.0, memory_mb=1024)
SEED = 20261128
SLOW = 2400

TAGS = [
    *(
        "a",
        "abbr",
        "article",
        "aside",
        "b",
        "blockquote",
        "br",
        "button",
        "caption",
        "code",
    ),
    *(
        "col",
        "colgroup",
        "dd",
        "del",
        "details",
        "dialog",
        "div",
        "dl",
        "dt",
        "em",
        "fieldset",
    ),
    *(
        "figcaption",
        "figure",
        "font",
        "footer",
        "form",
        "frameset",
        "h1",
        "h2",
        "h3",
        "h4",
    ),
    *(
        "h5",
        "h6",
        "head",
        "header",
        "hr",
        "html",
        "i",
        "iframe",
        "img",
        "input",
        "ins",
    ),
    *(
        "kbd",
        "label",
        "li",
        "link",
        "main",
        "map",
        "math",
        "meta",
        "nav",
        "noscript",
        "object",
    ),
    *(
        "ol",
        "optgroup",
        "option",
        "p",
        "picture",
        "plaintext",
        "pre",
        "q",
        "ruby",
        "s",
    ),
    *(
        "samp",
        "script",
        "section",
        "select",
        "small",
        "span",
        "strong",
        "style",
        "sub",
    ),
    *(
        "summary",
        "sup",
        "svg",
        "table",
        "tbody",
        "td",
        "template",
        "textarea",
        "tfoot",
    ),
    *(
        "th",
        "thead",
        "time",
        "title",
        "tr",
        "tt",
        "u",
        "ul",
        "var",
        "video",
        "wbr",
        "x-y",
    ),
    *("body",),
]
NAMES = ["id", "class", "href", "src", "alt", "title", "role", "lang", "name", "data-lang", "style"]
VALUES = [
    *("", "#", "#top", "x", "javascript:x", "//[", "http://[::1", "../..", "data:,x", "main"),
    *("sig", "headerlink", "highlight-python", "admonition-title", "language-\n", "navigation"),
    *("articleBody", "a b c", "%00", "&#0;", "\ufdd0", "x" * 5000, "{{x}}", "http://x.org:99999/"),
]
WORDS = [
    *("word", "Ünïcödé", "日本語", "🎉👩‍👩‍👧", "\u202e right", "\x00", "\x0b", "\ufeff", "\ufdd0"),
    "&",
    *("&lt;", "&#xD800;", "&#x110000;", "&amp;amp;", "&nbsp;", "# no", "```", "| a | b |", "$x$"),
    *("<!--", "-->", "]]>", "<![CDATA[", "<?xml", "</", "<", "\\", "*", "_", "- - -", "1. x", "¶"),
    *("\n\n\n", "\t", "\u2028", "x" * 2000, "[x](y)", "~~~", "~" * 9, "%%", "{#a}", ":::"),
]  # fmt: skip


def generated(rng):
    """A tree of tags that need not be one."""
    parts = ["<!doctype html><html><body><main>"] if rng.random() < 0.7 else []
    stack = []
    for _ in range(rng.choice((5, 30, 200, 1500))):
        kind = rng.random()
        if kind < 0.4:
            tag = rng.choice(TAGS)
            attributes = "".join(
                f" {rng.choice(NAMES)}={rng.choice(('', chr(34), chr(39)))}{rng.choice(VALUES)}"
                f"{rng.choice(('', chr(34), chr(39)))}"
                for _ in range(rng.choice((0, 0, 1, 3)))
            )
            parts.append(f"<{tag}{attributes}>")
            stack.append(tag)
        elif kind < 0.7 and stack:
            parts.append(f"</{stack.pop(rng.randrange(len(stack)))}>")
        else:
            parts.append(rng.choice(WORDS) + rng.choice((" ", "", "\n")))
    return "".join(parts).encode("utf-8", "surrogatepass")


def mutated(rng, pages):
    """A page that somebody wrote, with something done to it."""
    data = bytearray(rng.choice(pages))
    for _ in range(rng.choice((1, 3, 20))):
        at = rng.randrange(len(data) + 1)
        span = data[at : at + rng.choice((1, 20, 400, 5000))]
        match rng.randrange(8):
            case 0:
                del data[at : at + len(span)]
            case 1:
                data[at:at] = span * rng.choice((2, 50))
            case 2:
                data[at:at] = rng.randbytes(rng.choice((1, 40)))
            case 3:
                tag = f"<{rng.choice(TAGS)} {rng.choice(NAMES)}={rng.choice(VALUES)}>"
                data[at:at] = tag.encode()
            case 4:
                data[at:at] = rng.choice(WORDS).encode("utf-8", "surrogatepass")
            case 5:
                data[at:at] = f"<{rng.choice(TAGS)}>".encode() * rng.choice((10, 300))
            case 6:
                del data[at:]
            case 7:
                old, new = rng.choice(TAGS), rng.choice(TAGS)
                data = bytearray(data.replace(f"<{old}".encode(), f"<{new}".encode()))
    return bytes(data)


def real_pages(number):
    """Pages of the manuals on this machine; of the tests where there are none."""
    rng = random.Random(SEED)
    found = sorted(itertools.islice(Path("/usr/share/doc").rglob("*.html"), 4000))
    rng.shuffle(found)
    pages = [path.read_bytes() for path in found[:number] if path.stat().st_size < 200_000]
    return pages + [html.encode() for html in (*SHELLS.values(), *WHOLE.values())]


def check(page):
    """Raise where a page is not what the later stages may rely on."""
    data = page.text.encode("utf-8")  # raises where half of a pair is in it
    assert "\ufdd0" not in page.text and "\x00" not in page.title
    last = -1
    for heading in page.headings:
        assert heading.start > last
        last = heading.start
        assert heading.start == 0 or data[heading.start - 1 : heading.start] == b"\n"
        line = data[heading.start :].partition(b"\n")[0]
        opening = re.match(rb"(?:[\s>*+-]|\d+[.)])*(#{1,6}) ", line)
        assert opening and len(opening[1]) == heading.level, line[:200]


@pytest.mark.parametrize("number", [120, pytest.param(SLOW, marks=pytest.mark.slow)])
def test_no_page_crashes_or_hangs_and_what_comes_of_it_is_whole(number):
    rng = random.Random(SEED)
    pages = real_pages(number // 10)
    kinds = [
        f"text/html{rest}" for rest in ("; charset=utf-8", "", "; charset=utf-16", "; charset=x")
    ]
    tasks = [
        (
            f"http://x.org/{at}",
            Body(
                rng.choice(kinds if rng.random() < 0.1 else kinds[:1]),
                generated(rng) if at % 2 else mutated(rng, pages),
            ),
        )
        for at in range(number)
    ]
    read = 0
    outcomes = workers.parse(SOURCE, iter(tasks), LIMITS)
    for (address, body), (found_at, outcome) in zip(tasks, outcomes, strict=True):
        assert found_at == address
        if isinstance(outcome, UnreadableError):
            told = address, outcome.reason, outcome.detail, body.data[:2000]
            assert not outcome.reason.startswith("parse_"), told
            continue
        for page in outcome:
            read += bool(page.text)
            check(page)
    assert read > number / 3


@pytest.mark.parametrize(
    "text", ["x\n## Title", "# Title", "## Title\ud800", "## Title \ufdd0", "Title"]
)
def test_the_check_sees_a_page_that_is_not_whole(text):
    heading = Heading(start=0, level=2, title="Title", anchor="")
    with pytest.raises((AssertionError, UnicodeEncodeError)):
        check(Page("http://x.org/", "", text, (heading,)))


def test_the_parts_of_a_page_cost_time_in_proportion():
    """Twice as much of anything takes about twice as long, where it could take four times."""
    parts = {
        "definitions": "<dl><dt>x</dt><dd>y</dd></dl>",
        "nested lists": "<ul><li>x</ul>",
        "links": "<a href=x>y</a> ",
        "headings": "<h2 id=x>y</h2>",
        "code": "<pre>x</pre>",
        "boxes": "<div class=admonition><p class=admonition-title>x</p><p>y</p></div>",
        "tables": "<table><tr><td>x</td></tr></table>",
        "cells": "<table><tr>" + "<td>x</td>" * 20 + "</tr></table>",
        "letters": string.ascii_letters,
    }
    tasks = [
        (f"http://x.org/{name}", Body("text/html", f"<main>{part * 3_000}</main>".encode()))
        for name, part in parts.items()
    ]
    for address, outcome in workers.parse(SOURCE, tasks, LIMITS):
        assert not isinstance(outcome, UnreadableError), (address, outcome)
