"""robots.txt, against RFC 9309: the words of a file, and what a server's answer for it means."""

import contextlib
import itertools
import sqlite3
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sites import (
    MISSING,
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
)

from stages.core import progress
from stages.core.errors import PipelineError
from stages.crawl import robots

AGENT = "docent/0.1 (+https://docent.readthedocs.io)"

# What the case shows; the file; a path; may it be asked for?
CASES: list[tuple[str, str | bytes, str, bool]] = [
    # 2.2.1: groups and user agents
    ("no file, no rule", "", "/a", True),
    ("a group by name", "User-agent: docent\nDisallow: /", "/a", False),
    ("another's group", "User-agent: other\nDisallow: /", "/a", True),
    ("the group of all", "User-agent: *\nDisallow: /", "/a", False),
    (
        "a group by name takes the place of that of all",
        "User-agent: *\nDisallow: /\nUser-agent: docent\nDisallow: /x",
        "/a",
        True,
    ),
    ("the name in any case", "user-AGENT: DOCENT\nDISALLOW: /", "/a", False),
    ("a version behind the name", "User-agent: docent/1.0\nDisallow: /", "/a", False),
    ("no part of the name", "User-agent: doc\nDisallow: /", "/a", True),
    ("no longer name", "User-agent: docent-news\nDisallow: /", "/a", True),
    ("no word of the contact", "User-agent: readthedocs\nDisallow: /", "/a", True),
    ("no word of a scheme", "User-agent: https\nDisallow: /", "/a", True),
    ("a group of several", "User-agent: a\nUser-agent: docent\nDisallow: /", "/a", False),
    (
        "groups of one name are one",
        "User-agent: docent\nDisallow: /a\n\nUser-agent: x\nDisallow: /b\n\n"
        "User-agent: docent\nDisallow: /c",
        "/c",
        False,
    ),
    (
        "and the first of them holds still",
        "User-agent: docent\nDisallow: /a\n\nUser-agent: docent\nDisallow: /c",
        "/a",
        False,
    ),
    (
        "a rule ends a group's names",
        "User-agent: docent\nAllow: /\nUser-agent: x\nDisallow: /",
        "/a",
        True,
    ),
    ("a rule before any name", "Disallow: /\nUser-agent: docent\nAllow: /b", "/a", True),
    (
        "another record does not end the names",
        "User-agent: docent\nCrawl-delay: 3\nUser-agent: x\nDisallow: /",
        "/a",
        False,
    ),
    (
        "nor does a sitemap between",
        "User-agent: docent\nSitemap: https://x.org/s.xml\nDisallow: /",
        "/a",
        False,
    ),
    ("a blank line does not end a group", "User-agent: docent\n\nDisallow: /", "/a", False),
    ("words behind the star", "User-agent: * everyone\nDisallow: /", "/a", False),
    ("a star in a name is no star", "User-agent: d*\nDisallow: /", "/a", True),
    # 2.2.2: rules; the longest match decides
    ("a prefix", "User-agent: *\nDisallow: /a", "/abc", False),
    ("no prefix", "User-agent: *\nDisallow: /abc", "/ab", True),
    ("a path's case counts", "User-agent: *\nDisallow: /A", "/a", True),
    ("an empty rule says nothing", "User-agent: *\nDisallow:", "/a", True),
    ("the longest wins", "User-agent: *\nDisallow: /a\nAllow: /a/b", "/a/b/c", True),
    ("whatever its place", "User-agent: *\nAllow: /a/b\nDisallow: /a", "/a/b/c", True),
    ("the longest forbids too", "User-agent: *\nAllow: /a\nDisallow: /a/b", "/a/b/c", False),
    ("of equal ones the one that allows", "User-agent: *\nDisallow: /a\nAllow: /a", "/a", True),
    ("what matches nothing is allowed", "User-agent: *\nDisallow: /a", "/b", True),
    ("robots.txt itself is", "User-agent: *\nDisallow: /", "/robots.txt", True),
    ("the query belongs to it", "User-agent: *\nDisallow: /a?b=", "/a?b=1", False),
    ("another query", "User-agent: *\nDisallow: /a?b=", "/a?c=1", True),
    # 2.2.3: special characters
    ("a star", "User-agent: *\nDisallow: /a/*/c", "/a/b/b/c/d", False),
    ("a star for nothing", "User-agent: *\nDisallow: /a*b", "/ab", False),
    ("a star that does not fit", "User-agent: *\nDisallow: /a/*/c", "/a/c", True),
    ("a star first", "User-agent: *\nDisallow: *.gif", "/a/b.gif", False),
    ("the end", "User-agent: *\nDisallow: /*.gif$", "/a.gif", False),
    ("what goes on behind the end", "User-agent: *\nDisallow: /*.gif$", "/a.gif?b", True),
    ("an end that comes twice", "User-agent: *\nDisallow: /a$", "/a", False),
    ("and is not the end", "User-agent: *\nDisallow: /a$", "/ab", True),
    ("the end behind a star", "User-agent: *\nDisallow: /*.gif$", "/a.gif.gif", False),
    ("a dollar within is one", "User-agent: *\nDisallow: /a$b", "/a$b", False),
    ("stars lengthen a rule", "User-agent: *\nAllow: /a\nDisallow: /*a", "/a", False),
    ("a star that is written out", "User-agent: *\nDisallow: /a%2Ab", "/a*b", False),
    ("and is nothing else", "User-agent: *\nDisallow: /a%2Ab", "/axb", True),
    ("a comment", "User-agent: * # all\nDisallow: /a # this", "/a", False),
    ("a comment is no path", "User-agent: *\nDisallow: /a#b", "/a", False),
    # 2.2.2: percent-encoding
    ("an escape that need not be", "User-agent: *\nDisallow: /foo/%62%61%7A", "/foo/baz", False),
    ("the same in the address", "User-agent: *\nDisallow: /foo/baz", "/foo/%62%61%7A", False),
    ("a letter of another script", "User-agent: *\nDisallow: /foo/\u30c4", "/foo/%E3%83%84", False),
    ("escaped in the file", "User-agent: *\nDisallow: /foo/%e3%83%84", "/foo/\u30c4", False),
    ("capitals of an escape", "User-agent: *\nDisallow: /a%3cd", "/a%3Cd", False),
    ("a slash that is escaped is none", "User-agent: *\nDisallow: /a/b", "/a%2Fb", True),
    # 2.2, 2.3: the file itself
    ("lines of Windows", "User-agent: *\r\nDisallow: /a\r\n", "/a", False),
    ("lines of old Macs", "User-agent: *\rDisallow: /a\r", "/a", False),
    ("blanks around", "  User-agent :  *  \n\tDisallow\t:\t/a\t", "/a", False),
    ("a byte order mark", b"\xef\xbb\xbfUser-agent: *\nDisallow: /a", "/a", False),
    ("bytes that are no UTF-8", b"User-agent: *\nDisallow: /\xff\nDisallow: /a", "/a", False),
    ("they match themselves", b"User-agent: *\nDisallow: /\xff", "/%FF", False),
    ("a line separator ends no line", "User-agent: *\nDisallow: /a\u2028b", "/a", True),
    ("a line without a colon", "User-agent: *\nnonsense\nDisallow: /a", "/a", False),
    ("an unknown record", "User-agent: *\nFrobnicate: yes\nDisallow: /a", "/a", False),
    ("a page in its place", "<html><body>Not found</body></html>", "/a", True),
    (
        "the first 500 KiB are read",
        b"User-agent: *\n" + b"#" * (500 * 1024 - 40) + b"\nDisallow: /a\n" + b"#" * 999,
        "/a",
        False,
    ),
    (
        "and no more",
        b"User-agent: *\n" + b"#" * (500 * 1024) + b"\nDisallow: /a\n",
        "/a",
        True,
    ),
    (
        "a rule that the limit cuts is none",
        b"User-agent: *\n" + b"#" * (500 * 1024 - 30) + b"\nDisallow: /abcdefghij",
        "/abcdxxxx",
        True,
    ),
]


@pytest.mark.parametrize(
    ("file", "path", "allowed"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_file_is_read_as_the_rfc_has_it(file: str | bytes, path: str, allowed: bool) -> None:
    data = file.encode() if isinstance(file, str) else file
    assert robots.parse(data, AGENT).allows(f"https://x.org{path}") is allowed


def test_the_table_is_as_long_as_promised() -> None:
    assert len(CASES) >= 40
    assert len({case[0] for case in CASES}) == len(CASES)


def test_a_reader_without_regard_to_length_goes_red(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: every rule counts as much as another."""
    read = robots._rule

    def flat(pattern: str, allows: bool) -> robots.Rule | None:
        rule = read(pattern, allows)
        return rule and replace(rule, length=0)

    monkeypatch.setattr(robots, "_rule", flat)
    wrong = [
        name
        for name, file, path, allowed in CASES
        if robots.parse(file.encode() if isinstance(file, str) else file, AGENT).allows(
            f"https://x.org{path}"
        )
        is not allowed
    ]
    assert wrong == ["the longest forbids too", "stars lengthen a rule"]


@pytest.mark.parametrize(
    ("file", "delay_s"),
    [
        ("User-agent: *\nCrawl-delay: 2.5", 2.5),
        ("User-agent: *\nCrawl-delay: 9\nUser-agent: docent\nCrawl-delay: 1\nAllow: /", 1.0),
        ("User-agent: docent\nAllow: /\nCrawl-delay: 1\nUser-agent: *\nCrawl-delay: 9", 1.0),
        ("User-agent: *\nCrawl-delay: nan", 0.0),
        ("User-agent: *\nCrawl-delay: -1", 0.0),
        ("User-agent: *\nCrawl-delay: soon", 0.0),
        ("Crawl-delay: 3", 0.0),
    ],
)
def test_the_pause_is_that_of_the_group(file: str, delay_s: float) -> None:
    assert robots.parse(file.encode(), AGENT).delay_s == delay_s


def test_sitemaps_belong_to_no_group() -> None:
    file = "Sitemap: https://x.org/1.xml\nUser-agent: other\nDisallow: /\nsitemap: /2.xml"
    assert robots.parse(file.encode(), AGENT).sitemaps == ("https://x.org/1.xml", "/2.xml")


@settings(deadline=None)
@given(st.binary(max_size=400), st.text(max_size=60))
def test_any_bytes_are_read_and_any_address_is_judged(data: bytes, path: str) -> None:
    for prefix in (b"", b"User-agent: *\nDisallow: "):
        robots.parse(prefix + data, AGENT).allows(f"https://x.org/{path}")


def test_a_pattern_of_stars_takes_no_time() -> None:
    file = b"User-agent: *\nDisallow: /" + b"*a" * 5000 + b"b$"
    began = time.monotonic()
    assert robots.parse(file, AGENT).allows("https://x.org/" + "a" * 50_000)
    assert time.monotonic() - began < 5


# --- the server's answer -----------------------------------------------------------------------

FORBID = "User-agent: *\nDisallow: /"

# What the case shows; what the host answers for robots.txt; whether its page is asked for then.
HOSTS: dict[str, tuple[Answer, bool]] = {
    **{f"{status} is no file": ((status, {}, FORBID), True) for status in (400, 401, 403, 404)},
    **{f"{status} is none either": ((status, {}, FORBID), True) for status in (410, 429, 451)},
    **{f"{status} forbids": ((status, {}, "User-agent: *"), False) for status in (500, 503, 599)},
    "200 is obeyed": (ok(FORBID, "text/plain"), False),
    "another file is no matter": (ok("User-agent: *\nDisallow: /x", "text/plain"), True),
    "a redirect without an address is no file": ((302, {}, FORBID), True),
    "one redirect": (moved("/hop1", 301), False),
    "five redirects": (moved("/hop-3", 307), False),
    "a sixth is no file": (moved("/hop-4", 308), True),
    "silence forbids": ((0, {}, ""), False),
}


def test_what_a_host_answers_for_robots_txt_decides_for_its_pages(tmp_path: Path) -> None:
    """One crawl, a hop out to as many hosts as there are cases; redirects go to another host."""
    pages: dict[str, list[str]] = {name: [] for name in HOSTS}
    with contextlib.ExitStack() as servers:

        def elsewhere(origin: str) -> Responder:
            def answer(asked: Asked) -> Answer:
                number = int(asked.path.removeprefix("/hop"))
                rules = ok(FORBID, "text/plain")
                return rules if number == 1 else moved(f"{origin}/hop{number + 1}", 302)

            return answer

        other, _ = servers.enter_context(responding(elsewhere))

        def host(name: str, robots_txt: Answer) -> str:
            status, headers, body = robots_txt
            if "Location" in headers:
                headers = {"Location": f"{other}{headers['Location']}"}

            def answer(asked: Asked) -> Answer:
                pages[name].append(asked.path)
                if asked.path == "/robots.txt":
                    return status, headers, body
                return ok(
                    page(f"Host {chr(ord('A') + list(HOSTS).index(name))}")
                )  # no error's name

            def wait_s(path: str) -> float:
                return 0.0 if status or path != "/robots.txt" else 30.0

            return servers.enter_context(responding(lambda origin: answer, wait_s))[0]

        links = [f"{host(name, answer)}/page" for name, (answer, _) in HOSTS.items()]
        start = {"/docs/": ok(page("Start", link(*links)))}
        origin, _ = servers.enter_context(serving(lambda origin: start))
        _, rejects = crawled(
            tmp_path / "out",
            url=f"{origin}/docs/",
            external=True,
            timeout_s=0.4,
            max_reject_rate=1.0,
            near_duplicate=None,
        )
    asked = {name: "/page" in paths for name, paths in pages.items()}
    assert asked == {name: expected for name, (_, expected) in HOSTS.items()}
    assert {reject.reason for reject in rejects.values()} == {"external"}
    said = Counter(reject.detail.split(": ")[1].split(", ")[0] for reject in rejects.values())
    assert said == {
        "robots": 3,
        **{f"robots_{status}": 1 for status in (500, 503, 599)},
        "robots_timeout": 1,
    }


@pytest.mark.slow
def test_a_start_page_whose_host_fails_to_give_it_is_an_error(tmp_path: Path) -> None:
    table = {"/robots.txt": (503, {}, ""), "/docs/": ok(page("Start"))}
    with (
        serving(lambda origin: table) as (origin, log),
        pytest.raises(PipelineError, match=r"robots.txt answers 503, which forbids everything"),
    ):
        crawled(tmp_path / "out", url=f"{origin}/docs/")
    assert set(log) == {"/robots.txt"}


@pytest.mark.slow
def test_it_is_read_once_a_day_and_not_for_every_crawl(tmp_path: Path) -> None:
    table = {"/docs/": ok(page("Start")), "/robots.txt": ok("User-agent: *\nDisallow: /x")}
    with serving(lambda origin: table) as (origin, log):
        for depth in (3, 4):  # other settings: another refresh
            crawled(tmp_path / "out", url=f"{origin}/docs/", max_depth=depth)
        assert log.count("/robots.txt") == 1
        database = tmp_path / ".cache/pages/pages.sqlite"
        with contextlib.closing(sqlite3.connect(database)) as db, db:
            db.execute("UPDATE robots SET time = time - ?", (robots.MAX_AGE_S + 1,))
        crawled(tmp_path / "out", url=f"{origin}/docs/", max_depth=5)
    assert log.count("/robots.txt") == 2


def test_a_robots_txt_that_a_cache_calls_unchanged_is_asked_for_past_it(tmp_path: Path) -> None:
    def respond(origin: str) -> Responder:
        def answer(asked: Asked) -> Answer:
            if asked.path != "/robots.txt":
                return ok(page("Start", link("/docs/secret")))
            fresh = "cache-control" in asked.headers
            return ok("User-agent: *\nDisallow: /docs/secret") if fresh else (304, {}, "")

        return answer

    with responding(respond) as (origin, log):
        crawled(tmp_path / "out", url=f"{origin}/docs/")
    assert [asked.path for asked in log] == ["/robots.txt", "/robots.txt", "/docs/"]


def test_a_long_pause_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    steps: list[progress.Step] = []
    progress.begin("crawl", steps.append)
    table = {
        "/robots.txt": ok("User-agent: *\nCrawl-delay: 6", "text/plain"),
        "/docs/": ok(page("Start")),
    }
    try:
        with serving(lambda origin: table) as (origin, _):
            crawled(tmp_path / "out", url=f"{origin}/docs/")
    finally:
        progress._listeners.clear()
    told = f"web: {origin}/robots.txt asks for 6 s between two requests"
    assert told in [step.note for step in steps]


def test_the_pause_of_the_file_is_kept_and_the_user_agent_names_a_contact(tmp_path: Path) -> None:
    times: list[float] = []

    def respond(origin: str) -> Responder:
        def answer(asked: Asked) -> Answer:
            times.append(time.monotonic())
            if asked.path == "/robots.txt":
                return ok("User-agent: *\nCrawl-delay: 0.3", "text/plain")
            pages = [f"{number}.html" for number in range(4)]
            return ok(page(asked.path, link(*pages))) if "/docs/" in asked.path else MISSING

        return answer

    with responding(respond) as (origin, log):
        crawled(tmp_path / "out", url=f"{origin}/docs/")
    gaps = [after - before for before, after in itertools.pairwise(times[1:])]
    assert len(gaps) == 4
    assert min(gaps) > 0.25, gaps
    assert {asked.headers["user-agent"] for asked in log} == {AGENT}
