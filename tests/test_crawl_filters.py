"""Pages of one source: what is repeated goes, and every page that is left out has a reason."""

import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from limits import within

from stages import crawl
from stages.core import config
from stages.core.records import Heading
from stages.crawl import filters
from stages.crawl.encoding import decode
from stages.crawl.page import Page

ROOT = Path(__file__).resolve().parent.parent
WORDS = ("server", "index", "adapter", "recipe", "ledger", "budget", "chunk", "prompt", "answer")
FRAME = ("[Edit this page](https://forge.example/x)", "Was this helpful?", "We use cookies.")


def loaded(**changes: Any) -> crawl.Config:
    params = {"crawl": yaml.safe_load((ROOT / "conf/crawl/default.yaml").read_text()) | changes}
    cfg: crawl.Config = config.load(params, "crawl", crawl.Config)
    return cfg


def prose(seed: int, num_words: int = 80) -> str:
    chosen = random.Random(seed)
    return " ".join(chosen.choice(WORDS) + str(chosen.randrange(50)) for _ in range(num_words))


def page(url: str, *blocks: str, title: str = "A title") -> Page:
    """A page of blocks, with its headings where they are."""
    text = "\n\n".join(blocks)
    headings = tuple(
        Heading(
            start=len(text[: match.start()].encode()),
            level=len(match.group(1)),
            title=match.group(2),
            anchor="",
        )
        for match in re.finditer(r"(?m)^(#{1,6}) (.*)$", text)
        if text.count("```", 0, match.start()) % 2 == 0
    )
    return Page(url, title, text, headings)


def site(num_pages: int = 8, ending: str = "") -> dict[str, Page]:
    return {
        f"https://a.example/{n}": page(
            f"https://a.example/{n}",
            f"# Seite {n} über",
            FRAME[0],
            prose(n),
            f"## Part µ {n}",
            "```\n" + FRAME[1] + "\n```",
            prose(n + 100),
            *FRAME[1:],
            title=f"Seite {n}{ending}",
        )
        for n in range(num_pages)
    }


def unframed(pages: dict[str, Page], share: float | None = 0.5) -> dict[str, Page]:
    frame = filters.frame(pages.values(), share)
    return {url: filters.unframed(page, frame) for url, page in pages.items()}


def heading_lines(found: Page) -> list[str]:
    return [
        found.text.encode()[heading.start :].decode().split("\n")[0] for heading in found.headings
    ]


# --- what is repeated --------------------------------------------------------------------------


def test_lines_of_the_frame_go_and_code_and_headings_stay_where_they_are() -> None:
    pages = unframed(site())
    for url, found in pages.items():
        n = url.rpartition("/")[2]
        assert heading_lines(found) == [f"# Seite {n} über", f"## Part µ {n}"]
        assert found.text.count(FRAME[1]) == 1 and f"```\n{FRAME[1]}\n```" in found.text
        assert FRAME[0] not in found.text and FRAME[2] not in found.text
        assert prose(int(n)) in found.text and "\n\n\n" not in found.text


def test_few_pages_or_a_small_share_of_them_make_no_boilerplate() -> None:
    for num_pages in (1, 4):
        assert unframed(site(num_pages)) == site(num_pages)
    once = site(5) | {
        f"https://a.example/x{n}": page("", f"# X {n}", prose(n + 500)) for n in range(6)
    }
    assert unframed(once) == once


def test_what_leads_to_something_below_and_rows_of_tables_are_never_boilerplate() -> None:
    shared = ("For example:", "**Note:**", "| a | b |\n| --- | --- |\n| 1 | 2 |", "## See also")
    pages = {str(n): page(str(n), prose(n), *shared) for n in range(9)}
    assert unframed(pages) == pages


def test_a_page_of_nothing_else_keeps_its_words() -> None:
    pages = site() | {"https://a.example/z": page("z", "# Z", *FRAME[1:])}
    assert unframed(pages)["https://a.example/z"].text.endswith(FRAME[2])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 7), st.randoms(use_true_random=False), st.text(max_size=40))
def test_an_edit_of_one_page_changes_no_other(edited: int, order: Any, words: str) -> None:
    before = unframed(site())
    pages = site()
    url = f"https://a.example/{edited}"
    pages[url] = page(url, "# Other", FRAME[0], words, prose(900), *FRAME[1:])
    shuffled = list(pages.items())
    order.shuffle(shuffled)
    after = unframed(dict(shuffled))
    assert {u: p for u, p in after.items() if u != url} == {
        u: p for u, p in before.items() if u != url
    }
    assert all(line not in after[url].text for line in FRAME)


def test_the_name_of_the_site_leaves_titles_that_share_it() -> None:
    titles = {found.title for found in unframed(site(8, " — The Manual"), None).values()}
    assert titles == {f"Seite {n}" for n in range(8)}
    odd = {str(n): page(str(n), title=title) for n, title in enumerate(("A - B", "C | D", "E"))}
    assert unframed(odd, None) == odd
    same = {str(n): page(str(n), title="The Manual") for n in range(5)}
    assert unframed(same, None) == same


MARKED = st.lists(st.sampled_from(["a", "B", " ", "-", "–", "|", "::", ":", "  "]), max_size=14)


@settings(max_examples=300)
@given(MARKED)
def test_the_ending_of_a_title_is_its_last_part(pieces: list[str]) -> None:
    title = "".join(pieces).strip()
    slow = re.search(r"\S(\s+(?:[|·•»–—-]|::)\s+[^|·•»–—]+)$", title)  # the square of its length
    assert filters._ending(title) == (slow.group(1) if slow else "")


def test_titles_and_cuts_cost_time_in_proportion_to_their_length() -> None:
    """Half a megabyte of each; the square of it took from minutes to hours."""
    line = "Was this helpful?"
    part = f"## Part\n\n{line}\n\n- b\n\n"
    headings = tuple(
        Heading(start=n * len(part), level=2, title="Part", anchor="") for n in range(15_000)
    )
    endless = {
        "marks": page("m", prose(1), title="a - " * 100_000 + "|"),
        "spaces": page("s", prose(2), title="a" + " " * 400_000 + "|"),
        "cuts": Page("c", "A title", part * 15_000, headings),
        "blank": page("b", "# A" + "\n" * 200_000 + "# B", line),
    }
    pages = endless | {str(n): page(str(n), prose(n), line) for n in range(9)}
    with within(10):
        found = unframed(pages)
    assert line not in found["cuts"].text
    text = found["cuts"].text.encode()
    for heading in found["cuts"].headings:
        assert text[heading.start :].startswith(f"## {heading.title}".encode())


# --- pages by themselves -----------------------------------------------------------------------

ERRORS = [
    ("not found", "404 Not Found", "The requested URL was not found on this server."),
    ("not found", "Page not found", "Sorry, the page you asked for is not here. Go home."),
    ("not found", "Acme Docs", "# Page Not Found\n\nWe could not find what you were looking for."),
    ("not found", "Oops", "This page does not exist."),
    ("not found", "Oops! We can't find that", "Try the search."),
    ("not found", "Error 404", "Nothing here."),
    ("not found", "Seite nicht gefunden", "Die Seite gibt es nicht."),
    ("not found", "Document no longer available", "It was removed."),
    ("refused or failed", "403 Forbidden", "You lack permission."),
    ("refused or failed", "Access Denied", "You don't have permission. Reference #18.2f"),
    ("refused or failed", "500 Internal Server Error", "Contact the administrator."),
    ("refused or failed", "503 Service Temporarily Unavailable", "nginx"),
    ("refused or failed", "Scheduled maintenance", "We are back soon."),
    ("challenge", "Just a moment...", "Enable JavaScript and cookies to continue"),
    ("challenge", "Attention Required! | Cloudflare", "Please complete the security check."),
    ("challenge", "Are you a robot?", "Tick the box."),
    ("challenge", "docs", "Please enable JavaScript to view this site."),
    ("challenge", "shop", "Verify you are human by completing the action below."),
    ("login", "Sign in", "Email Password Forgot your password?"),
    ("login", "Log in to Acme", "User name Password"),
    ("login", "Wiki", "You must be logged in to view this page."),
    ("login", "News", "Subscribe to continue reading."),
    ("cookies", "We use cookies", "Accept all or choose."),
    ("cookies", "Before you continue", "We use cookies and data. Reject all. Accept all."),
]
REAL = [
    ("Handling of HTTP errors", "# Handling of HTTP errors\n\n" + prose(1, 60)),
    ("404 pages", "# 404 pages\n\nSet `error_page`:\n\n```\nerror_page 404 /404.html;\n```"),
    ("Sign in with OAuth", "# Sign in with OAuth\n\n" + prose(2, 200)),
    ("Cookies", "# Cookies\n\nThe module reads and writes them. " + prose(3, 60)),
    ("Release 4.04", "# Release 4.04\n\nSpeed."),
    ("Section 404.1", "Words about tax."),
    ("Status", "A key that is not found raises an error. " + prose(4, 60)),
    ("Not found errors and what they mean", "# Not found errors\n\n" + prose(5, 130)),
]


@pytest.mark.parametrize(("kind", "title", "text"), ERRORS)
def test_an_error_page_with_status_200_is_told_by_what_it_says(
    kind: str, title: str, text: str
) -> None:
    found = page("https://a.example/x", *text.split("\n\n"), title=title)
    assert filters.flaw(found, loaded(), True, True) == ("error_page", kind)
    assert filters.flaw(found, loaded(min_chars=0), False, True) is None


@pytest.mark.parametrize(("title", "text"), REAL)
def test_a_page_about_errors_is_no_error_page(title: str, text: str) -> None:
    found = page("https://a.example/x", *text.split("\n\n"), title=title)
    assert filters.flaw(found, loaded(min_chars=0), True, True) is None


ENGLISH = "The server answers each question with the page on which it is written. " * 4
GERMAN = "Der Server beantwortet jede Frage mit der Seite, auf der die Antwort steht. " * 4
FRENCH = "Le serveur répond à chaque question avec la page où la réponse est écrite. " * 4


def test_other_languages_are_left_out_where_some_are_asked_for() -> None:
    for text, language in ((ENGLISH, "en"), (GERMAN, "de"), (FRENCH, "fr")):
        found = page("x", text)
        assert filters.flaw(found, loaded(), True, True) is None
        assert filters.flaw(found, loaded(languages=[language]), True, True) is None
        other = "en" if language != "en" else "de"
        assert filters.flaw(found, loaded(languages=[other]), True, True) == (
            "wrong_language",
            language,
        )


def test_code_and_a_few_words_tell_no_language() -> None:
    assert filters.flaw(page("x", GERMAN), loaded(languages=["en"]), True, False) is None
    code = page("x", "# Start", "```\n" + GERMAN + "\n```", ENGLISH)
    assert filters.flaw(code, loaded(languages=["en"]), True, True) is None
    short = page("x", GERMAN[:120])
    assert filters.flaw(short, loaded(languages=["en"]), True, True) is None


def test_a_short_page_is_counted_as_such() -> None:
    assert filters.flaw(page("x", "Few words."), loaded(), True, True) == (
        "too_short",
        "10 characters",
    )


# --- pages beside each other -------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from("abcdefgh"),
        st.tuples(st.sampled_from(["one", "two", "three"]), st.sampled_from([None, *"abcdef"])),
    )
)
def test_of_every_text_one_page_stays_and_a_duplicate_names_it(
    said: dict[str, tuple[str, str | None]],
) -> None:
    pages = {url: Page(url, "", text, (), canonical) for url, (text, canonical) in said.items()}
    gone = filters.duplicates(pages)
    kept = pages.keys() - gone.keys()
    assert {pages[url].text for url in kept} == {page.text for page in pages.values()}
    assert len({pages[url].text for url in kept}) == len(kept)
    assert all(pages[url].text == pages[other].text for url, other in gone.items())
    assert set(gone.values()) <= kept


def copies(*sources: str) -> dict[str, Page]:
    """Pages that differ from the named one's text in a word."""
    texts = {"a": prose(1, 300), "b": prose(2, 300)}
    return {
        f"https://a.example/{name}": page(name, texts[name[0]] + f" version{n}")
        for n, name in enumerate(sources)
    }


def test_a_near_duplicate_gives_way_to_the_earliest_address() -> None:
    found = filters.near_duplicates(copies("a/new/x", "a", "b", "a2", "b-copy"), 0.9)
    assert found == {
        "https://a.example/a2": "https://a.example/a",
        "https://a.example/a/new/x": "https://a.example/a",
        "https://a.example/b-copy": "https://a.example/b",
    }


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False))
def test_neither_order_nor_an_edit_elsewhere_changes_which_page_is_kept(order: Any) -> None:
    pages = copies("a", "a2", "a3", "b", "b2")
    shuffled = list(pages.items())
    order.shuffle(shuffled)
    before = filters.near_duplicates(dict(shuffled), 0.9)
    edited = pages | {"https://a.example/b2": page("b2", prose(7, 200))}
    after = filters.near_duplicates(edited, 0.9)
    assert {u: k for u, k in before.items() if "/b" not in u} == after


# --- encodings ---------------------------------------------------------------------------------

TEXT = "Größe – naïve café €5 “quoted” Ænima"
META = '<html><head><meta charset="{}"></head><body>{}</body></html>'


@pytest.mark.parametrize(
    ("header", "meta", "actual"),
    [
        ("text/html; charset=utf-8", "utf-8", "utf-8"),
        ("text/html", "utf-8", "utf-8"),
        ("text/html", "", "utf-8"),
        ("text/html; charset=iso-8859-1", "", "utf-8"),  # a server's default label
        ("text/html; charset=iso-8859-1", "utf-8", "utf-8"),
        ("text/html; charset=windows-1252", "windows-1252", "cp1252"),
        ("text/html; charset=iso-8859-1", "", "cp1252"),  # as browsers read it
        ("text/html", "windows-1252", "cp1252"),
        ("text/html", "", "cp1252"),
        ("text/html; charset=utf-8", "utf-8", "cp1252"),
        ("text/html", "", "utf-8-sig"),
        ("text/html; charset=iso-8859-1", "", "utf-8-sig"),
        ("text/html", "", "utf-16"),
        ("text/html; charset=utf-16le", "", "utf-16le"),
    ],
)
def test_text_is_read_in_the_encoding_that_it_is_in(header: str, meta: str, actual: str) -> None:
    html = META.format(meta, TEXT) if meta else f"<p>{TEXT}</p>"
    assert decode(header, html.encode(actual)).removeprefix("\ufeff") == html


@pytest.mark.parametrize("actual", ["shift_jis", "euc-jp", "iso-2022-jp", "gb18030", "big5"])
def test_labels_of_other_scripts_are_believed(actual: str) -> None:
    html = META.format(actual, "日本語")
    assert decode("text/html", html.encode(actual)) == html


def test_a_few_broken_bytes_do_not_change_the_encoding() -> None:
    body = ("Größe " * 40).encode() + b"\xff" + "ö".encode()
    assert decode("text/html; charset=utf-8", body).startswith("Größe Größe")
