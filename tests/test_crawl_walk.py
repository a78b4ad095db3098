"""The way through a site: lists of addresses, a hop out, and sites without end."""

import gzip
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sites import (
    MISSING,
    PUBLIC,
    WORDS,
    Answer,
    Asked,
    Responder,
    crawled,
    link,
    moved,
    ok,
    page,
    responding,
    serving,
    snapshot_beside,
)

from stages.crawl import lists, snapshot, traps
from stages.crawl.site import Site

SPACE = 'xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"'


def sitemap(*urls: str) -> str:
    rows = "".join(
        f"<url><loc>\n{url}\n</loc><lastmod>2026-01-01</lastmod>"
        f"<image:image><image:loc>{url}.image</image:loc></image:image></url>"
        for url in urls
    )
    images = 'xmlns:image="http://www.google.com/schemas/sitemap-image/1.1"'
    return f'<?xml version="1.0" encoding="UTF-8"?><urlset {SPACE} {images}>{rows}</urlset>'


def index(*urls: str) -> str:
    rows = "".join(f"<sitemap><loc>{url}</loc></sitemap>" for url in urls)
    return f"<sitemapindex {SPACE}>{rows}</sitemapindex>"


# --- lists -------------------------------------------------------------------------------------

HERE = "https://x.org/lists/one"


@pytest.mark.parametrize(
    ("data", "pages", "further"),
    [
        (sitemap("https://x.org/a", "https://x.org/b?c=1&amp;d=2"), ["a", "b?c=1&d=2"], []),
        (index("https://x.org/s.xml.gz", "/t.xml"), [], ["s.xml.gz", "t.xml"]),
        ("https://x.org/a\nhttps://x.org/b\n", ["a", "b"], []),
        ("# X\n\n> Words\n\n- [A](https://x.org/a): one\n- [B](../b)\n", ["a", "b"], []),
        (
            "<rss version='2.0'><channel><link>https://x.org/home</link><item><title>A</title>"
            "<link>https://x.org/a</link><guid>1</guid></item></channel></rss>",
            ["a"],
            [],
        ),
        (
            "<feed xmlns='http://www.w3.org/2005/Atom'><link href='/self' rel='self'/><entry>"
            "<link rel='alternate' href='/a'/><link rel='edit' href='/edit'/></entry>"
            "<entry><link href='/b'/></entry></feed>",
            ["a", "b"],
            [],
        ),
        (sitemap("https://x.org/a", "https://x.org/b")[:-40], ["a"], []),  # it broke off
        ("<html><head><link rel='alternate' href='/x'></head></html>", [], []),
        ("", [], []),
        ("http://[bad\n", [], []),
    ],
    ids=["sitemap", "index", "text", "llms", "rss", "atom", "torn", "page", "empty", "bad"],
)
def test_a_list_names_its_pages_and_further_lists(
    data: str, pages: list[str], further: list[str]
) -> None:
    for packed in (data.encode(), gzip.compress(data.encode())):
        found = lists.read(packed, HERE)
        assert [url.removeprefix("https://x.org/") for url in found.pages][: len(pages)] == pages
        assert len(found.pages) <= len(pages) + 1  # of the torn one the last may be there
        assert [url.removeprefix("https://x.org/") for url in found.lists] == further


def test_a_list_is_no_door_to_entities_files_or_bombs() -> None:
    entities = "".join(f"<!ENTITY e{n + 1} '{f'&e{n};' * 10}'>" for n in range(12))
    bomb = (
        f"<!DOCTYPE urlset [<!ENTITY e0 'lol'>{entities}<!ENTITY f SYSTEM 'file:///etc/passwd'>]>"
        f"<urlset {SPACE}><url><loc>https://x.org/&e12;</loc></url>"
        "<url><loc>https://x.org/&f;</loc></url></urlset>"
    )
    found = lists.read(bomb.encode(), HERE).pages
    assert all("root" not in url and len(url) < 100 for url in found)
    packed = gzip.compress(b"https://x.org/a\n" * (4 * 2**20))  # 64 MiB
    assert len(packed) < 2**18
    assert len(lists.read(packed, HERE).pages) == 1
    many = "\n".join(f"https://x.org/{number}" for number in range(60_000))
    assert len(lists.read(many.encode(), HERE).pages) == lists.MAX_ADDRESSES
    assert lists.read(gzip.compress(b"x")[:10] + b"broken", HERE) == lists.Addresses()


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=300))
@example(b"<:")
def test_any_bytes_are_a_list(data: bytes) -> None:
    for prefix in (b"", b"\x1f\x8b\x08\x00", b"<urlset><url><loc>", b"# ["):
        found = lists.read(prefix + data, HERE)
        assert all(isinstance(url, str) for url in found.pages + found.lists)


def listed(origin: str) -> dict[str, Answer]:
    packed = gzip.compress(sitemap(f"{origin}/docs/packed.html").encode())
    feed = "<rss><channel><item><link>/docs/news.html</link></item></channel></rss>"
    head = '<link rel="alternate" type="application/rss+xml" href="/feed.xml">'
    return {
        "/robots.txt": ok(f"Sitemap: {origin}/maps/index.xml\nUser-agent: *\nDisallow: /no/"),
        "/maps/index.xml": ok(
            index(f"{origin}/maps/deep.xml", f"{origin}/no/secret.xml", "https://other.org/x.xml"),
            "text/xml",
        ),
        "/maps/deep.xml": ok(index(f"{origin}/maps/packed.xml.gz", "again.txt"), "text/xml"),
        "/maps/packed.xml.gz": ok(packed, "application/gzip"),
        "/maps/again.txt": ok(
            f"{PUBLIC}named.html\n{origin}/docs/a.html\n{origin}/blog/x.html\n", "text/plain"
        ),
        "/llms.txt": ok(f"# X\n- [L]({origin}/docs/llms.html)\n", "text/plain"),
        "/feed.xml": ok(feed, "application/rss+xml"),
        "/docs/": ok(page("Start", link("a.html"), head=head)),
        **{
            f"/docs/{name}.html": ok(page(name.title()))
            for name in ("a", "packed", "named", "llms", "news", "orphan")
        },
    }


def test_pages_that_no_page_links_to_are_found_in_sitemaps_feeds_and_llms_txt(
    tmp_path: Path,
) -> None:
    with serving(listed) as (origin, log):
        documents, rejects = crawled(
            tmp_path / "out",
            url=f"{origin}/docs/",
            public_url=PUBLIC,
            lists=["sitemap", "llms_txt", "feed"],
        )
    names = sorted(url.removeprefix(PUBLIC).removesuffix(".html") for url in documents)
    assert names == ["", "a", "llms", "named", "news", "packed"]
    assert rejects == {}  # a list is no page, and one that is missing no fault
    assert "/no/secret.xml" not in log  # robots.txt holds for lists too
    assert not [path for path in log if "orphan" in path or "blog" in path]
    assert "/sitemap.xml" not in log  # robots.txt names one


def test_a_page_that_llms_txt_names_as_markdown_is_read_where_it_is_not_seen_as_html(
    tmp_path: Path,
) -> None:
    def written(name: str) -> str:
        return f"# {name}\n\n{name} says: {WORDS}{WORDS}\n\n## Part\n\nSee [a](a.html).\n"

    def table(origin: str) -> dict[str, Answer]:
        named = ("a.html.md", "b.md", "index.md", "solo.md", "marked.md", "lost.html.md")
        rows = "".join(f"- [x]({origin}/docs/{name})\n" for name in named)
        return {
            "/llms.txt": ok(f"# X\n\n{rows}", "text/plain"),
            "/docs/": ok(page("Start", link("a.html", "b"))),
            "/docs/a.html": ok(page("A", link("a.html.md", "b.md"))),
            "/docs/b": ok(page("B")),
            "/docs/solo.md": ok(written("Solo"), "text/plain"),
            "/docs/marked.md": ok(written("Marked") + f"[s]({origin}/docs/b)", "text/markdown"),
            "/docs/lost.html.md": ok(page("Lost", link("deep.html"))),  # HTML, whatever its name
            "/docs/deep.html": ok(page("Deep")),
            "/docs/a.html.md": ok(written("A"), "text/markdown"),
        }

    with serving(table) as (origin, log):
        documents, rejects = crawled(
            tmp_path / "out",
            url=f"{origin}/docs/",
            public_url=PUBLIC,
            lists=["llms_txt"],
            render="auto",
        )
    names = sorted(url.removeprefix(PUBLIC) for url in documents)
    assert names == ["", "a.html", "b", "deep.html", "lost.html.md", "marked.md", "solo.md"]
    assert rejects == {}
    assert not {"/docs/a.html.md", "/docs/b.md", "/docs/index.md"} & set(log)
    marked = documents[PUBLIC + "marked.md"]
    assert marked.title == "Marked" and [h.title for h in marked.headings] == ["Marked", "Part"]
    assert f"[a]({PUBLIC}a.html)" in marked.text and f"[s]({PUBLIC}b)" in marked.text


def test_a_list_that_leads_to_a_page_leaves_the_page_to_the_site(tmp_path: Path) -> None:
    """Many hosts send whoever asks for a missing file to a page."""

    def table(origin: str) -> dict[str, Answer]:
        return {
            "/docs/": ok(page("Start", link("intro.html"))),
            "/docs/intro.html": ok(page("Intro", link("deep.html"))),
            "/docs/deep.html": ok(page("Deep")),
            "/docs/named.html": ok(page("Named")),
            "/llms.txt": moved("/docs/intro.html"),
            "/docs/llms.txt": moved("/docs/"),
            "/sitemap.xml": moved("/sitemap_index.xml"),
            "/docs/sitemap.xml": moved("/feed/"),
            "/sitemap_index.xml": ok(sitemap(f"{origin}/docs/named.html"), "text/xml"),
        }

    with serving(table) as (origin, log):
        documents, rejects = crawled(
            tmp_path / "out",
            url=f"{origin}/docs/",
            public_url=PUBLIC,
            lists=["sitemap", "llms_txt", "feed"],
            max_pages=4,  # a list is none of them, nor what it leads to
        )
    names = sorted(url.removeprefix(PUBLIC).removesuffix(".html") for url in documents)
    assert names == ["", "deep", "intro", "named"]
    assert rejects == {}
    assert "/feed/" in log and log.count("/docs/intro.html") == 1


def test_where_redirects_lead_counts_as_pages_that_are_asked_for(tmp_path: Path) -> None:
    table = {
        "/docs/": ok(page("Start", link("a", "b"))),
        **{f"/docs/{name}": moved(f"{name}{name}") for name in ("a", "b", "aa", "bb")},
        **{f"/docs/{name * 4}": ok(page(name.title())) for name in ("a", "b")},
    }
    with serving(lambda origin: table) as (origin, log):
        crawled(tmp_path / "out", url=f"{origin}/docs/", max_pages=4)
    assert sorted(log) == ["/docs/", "/docs/a", "/docs/aa", "/docs/b", "/robots.txt"]
    [held] = snapshot.read(snapshot_beside(tmp_path / "out"))["web"]
    assert held.not_fetched == {"max_pages": 2}


def test_a_hop_out_reads_what_pages_link_to_and_goes_no_further(tmp_path: Path) -> None:
    def other(origin: str) -> dict[str, Answer]:
        return {
            "/paper": ok(page("Paper", link("/onward", "/paper2"))),
            "/old": moved("/paper", 301),
            "/secret/x": ok(page("Secret")),
        }

    with serving(other) as (elsewhere, asked):
        targets = (f"{elsewhere}/paper#part", f"{elsewhere}/old", f"{elsewhere}/dead.pdf")
        site = {
            "/docs/": ok(page("Start", link(*targets, f"{elsewhere}/secret/x", "a.html"))),
            "/docs/a.html": ok(page("A", head='<link rel="canonical" href="/docs/unlinked.html">')),
            "/docs/unlinked.html": ok(page("Unlinked", "<p>canonical, and linked nowhere</p>")),
        }
        with serving(lambda origin: site) as (origin, _):
            documents, rejects = crawled(
                tmp_path / "out",
                url=f"{origin}/docs/",
                public_url=PUBLIC,
                external=True,
                exclude=["^/secret/"],
            )
    assert sorted(documents) == sorted(
        [PUBLIC, PUBLIC + "a.html", PUBLIC + "unlinked.html", f"{elsewhere}/paper"]
    )
    assert rejects[f"{elsewhere}/old"].reason == "redirect"
    assert sorted(asked) == ["/old", "/paper", "/robots.txt"]


# --- sites without end -------------------------------------------------------------------------


def endless(asked: Asked) -> Answer:
    """Five traps below one start page, each of which alone is infinite."""
    path, _, query = asked.path.removeprefix("/docs/").partition("?")
    trap, _, rest = path.partition("/")
    match trap:
        case "":
            first = (
                "calendar/2026/01/",
                "session/?PHPSESSID=1",
                "up/x/",
                "shop?color=red",
                "hop?n=0",
            )
            return ok(page("Start", link(*first)))
        case "calendar":
            year, month = map(int, rest.strip("/").split("/")[:2])
            after = (year + month // 12, month % 12 + 1)
            return ok(page(f"Calendar {rest}", link("/docs/calendar/{}/{:02}/".format(*after))))
        case "session":
            draw = random.Random(asked.path)
            visit = draw.randrange(10**9)
            pages = [f"/docs/session/{n}.html?PHPSESSID={visit}&amp;utm_source=x" for n in range(5)]
            return ok(page(f"Session {rest}", link(*pages, f"/docs/session/;jsessionid={visit}")))
        case "up":
            return ok(page(f"Up {rest}", link("up/x/", "../up/x/")))  # meant to be absolute
        case "shop":
            values = ("red", "green", "blue", "black")
            pairs = [f"{key}={value}" for key in ("color", "size", "sort") for value in values]
            return ok(page(f"Shop {query}", link(*(f"shop?{query}&amp;{pair}" for pair in pairs))))
        case "hop":
            return moved(f"/docs/hop?n={int(query.partition('=')[2]) + 1}")
    return MISSING


def test_five_traps_stop_at_their_caps_with_the_reason_counted(tmp_path: Path) -> None:
    def respond(origin: str) -> Responder:
        return endless

    with responding(respond) as (origin, log):
        crawled(
            tmp_path / "out",
            url=f"{origin}/docs/",
            max_alike=12,
            max_depth=60,
            max_pages=400,
            max_reject_rate=1.0,
        )
    asked = Counter(entry.path.removeprefix("/docs/").split("/")[0].split("?")[0] for entry in log)
    [held] = snapshot.read(snapshot_beside(tmp_path / "out"))["web"]
    left = held.not_fetched
    assert asked["calendar"] == 12
    assert asked["session"] == 6  # once each, whoever the visitor is
    assert asked["shop"] == 12
    assert asked["up"] <= 2 * traps.MAX_SEGMENTS
    assert asked["hop"] <= 12
    assert left["max_alike"] >= 10 and left["repeated_segments"] >= 1
    assert set(left) <= {"max_alike", "repeated_segments", "redirects"}


@pytest.mark.slow
def test_without_its_cap_a_trap_eats_all_pages(tmp_path: Path) -> None:
    """A planted fault: the caps raised beyond the crawl."""

    def respond(origin: str) -> Responder:
        return endless

    with responding(respond) as (origin, log):
        crawled(
            tmp_path / "out",
            url=f"{origin}/docs/",
            max_alike=10**6,
            max_depth=200,
            max_pages=150,
            max_reject_rate=1.0,
        )
    assert len(log) >= 150
    [held] = snapshot.read(snapshot_beside(tmp_path / "out"))["web"]
    assert held.not_fetched["max_pages"] >= 10


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://x.org/a/b/c/", ""),
        ("https://x.org/a/a/a/", ""),
        ("https://x.org/a/a/a/a/", "repeated_segments"),
        ("https://x.org/a/b/a/b/a/b/a/b", "repeated_segments"),
        ("https://x.org/" + "/".join(map(str, range(30))), "deep_address"),
        ("https://x.org/?" + "x" * 3000, "long_address"),
    ],
)
def test_an_address_that_grows_is_told_from_itself(url: str, why: str) -> None:
    assert traps.fault(url) == why


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("/cal/2026/01/", "/cal/2031/12/", True),
        ("/cal/2026-01-30", "/cal/2026-02-01", True),
        ("/cal/20260130", "/cal/20260201", True),
        ("/cal?month=2026-01", "/cal?month=2027-01", True),
        ("/shop?a=1&b=2", "/shop?b=3", True),
        ("/blog/2026/01/first", "/blog/2026/01/second", False),
        ("/questions/19123", "/questions/19124", False),
        ("/v2019/index.html", "/v2020/index.html", False),
        ("/a.html", "/b.html", False),
    ],
)
def test_dates_and_queries_make_addresses_alike(one: str, other: str, same: bool) -> None:
    keys = [traps.alike(f"https://x.org{path}") for path in (one, other)]
    assert (keys[0] == keys[1] != "") is same


@pytest.mark.parametrize(
    ("href", "expected"),
    [
        ("a?PHPSESSID=1", "a"),
        ("a?b=1&sessionid=2&utm_campaign=z", "a?b=1"),
        ("a;jsessionid=0A1B?b=1", "a?b=1"),
        ("(S(lit3py55t21z5v55vlm25s55))/a", "a"),
        ("a?sid=5", "a?sid=5"),  # a story's number, perhaps
    ],
)
def test_who_visits_is_no_part_of_an_address(href: str, expected: str) -> None:
    site = Site.around("https://x.org/docs/", None)
    assert site.resolve(href, "https://x.org/docs/") == f"https://x.org/docs/{expected}"
