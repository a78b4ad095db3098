"""Answers that no server should give: each costs one reject, and the crawl goes on."""

import contextlib
import gzip
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sites import ROOT, crawled, link, page, refreshed, snapshot_beside

from stages.crawl import snapshot

SEED = 20261128


@contextlib.contextmanager
def saying(say: Callable[[str], bytes]) -> Iterator[str]:
    """A server that sends the bytes that it is told, whatever they are, and hangs up."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:

        def answer(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                asked = connection.recv(65536)
                if asked:
                    connection.sendall(say(asked.split()[1].decode("latin-1")))
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):  # else what is still under way is lost
                        pass

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)


def head(*rows: str | bytes, status: str = "200 OK") -> bytes:
    rows = (f"HTTP/1.1 {status}", *rows, "Connection: close", "", "")
    return b"\r\n".join(row if isinstance(row, bytes) else row.encode("latin-1") for row in rows)


HTML = "Content-Type: text/html"


def to(where: str | bytes) -> bytes:
    where = where if isinstance(where, bytes) else where.encode("latin-1")
    return head(b"Location: " + where, "Content-Length: 0", status="302 Found")


def labelled(charset: str | bytes) -> bytes:
    charset = charset if isinstance(charset, bytes) else charset.encode("latin-1")
    return head(HTML.encode() + b"; charset=" + charset) + page("Read").encode()


def packed(encoding: str, data: bytes) -> bytes:
    return head(HTML, f"Content-Encoding: {encoding}") + data


NOISE = random.Random(SEED).randbytes(400)
READ = ""
"""In place of a reason: the answer is read after all."""

# What the case shows; what the server says; the reason of the reject.
ANSWERS: dict[str, tuple[bytes, str]] = {
    # where a redirect leads
    "a bracket that stays open": (to("http://["), "bad_address"),
    "a bracket around no address": (to("http://[x]/"), "bad_address"),
    "a bracket behind two slashes": (to("//[/"), "bad_address"),
    "a port that is none": (to("http://127.0.0.1:99999/"), "outside"),
    "a port that is a word": (to("http://127.0.0.1:port/"), "outside"),
    "a host that NFKC makes a path": (to("http://a\u2100b/".encode()), "bad_address"),
    "a host of dots": (to("http://...../"), "outside"),
    "a host too long": (to("http://" + "a" * 300 + "/"), "outside"),
    "a NUL in a place": (to("/\0"), "redirect"),
    "bytes that are no text": (to(b"/\xff\xfe"), "redirect"),
    "another scheme": (to("javascript:alert(1)"), "outside"),
    "no place at all": (to(""), "http_302"),
    # bodies that are not what they are said to be
    "no gzip": (packed("gzip", NOISE), "broken_body"),
    "no deflate": (packed("deflate", NOISE), "broken_body"),
    "no brotli": (packed("br", NOISE), "broken_body"),
    "no zstd": (packed("zstd", NOISE), "broken_body"),
    "torn gzip": (packed("gzip", gzip.compress(NOISE)[:50]), READ),
    "an unknown packing": (packed("rot13", NOISE), "not_html"),
    "packings on packings": (packed("br, zstd, gzip", gzip.compress(NOISE)), "broken_body"),
    "a label that is no ASCII": (packed("\xff\xfe", NOISE), "broken_body"),
    # encodings that Python knows and no page is in
    **{
        f"charset {name}": (labelled(name), READ)
        for name in (
            *("idna", "rot13", "punycode", "base64", "hex", "bz2", "zlib", "uu", "quopri", "mbcs"),
            *("undefined", "unicode_escape", "raw_unicode_escape", "utf-7", "utf-16", "x-user"),
        )
    },
    "charset NUL": (labelled("\0utf-8"), READ),
    "charset of bytes": (labelled(b"\xff\xb2"), READ),
    # the rest of what a server says
    "a pause that is no number": (
        head(b"Retry-After: \xb2", "Content-Length: 0", status="503 No"),
        "http_503",
    ),
    "a pause without end": (
        head("Retry-After: " + "9" * 400, "Content-Length: 0", status="503 No"),
        "http_503",
    ),
    "a date before time": (
        head("Retry-After: Mon, 01 Jan 0000 00:00:00 -9999", status="503 No"),
        "http_503",
    ),
    "times out of range": (
        head(HTML, "Last-Modified: Fri, 31 Dec 9999 23:59:59 -0000", "Date: x")
        + page("Read").encode(),
        READ,
    ),
    "no status line": (b"hello\r\n\r\n", "unreachable"),
    "nothing": (b"", "unreachable"),
    "a status of words": (b"HTTP/1.1 two hundred\r\n\r\n", "unreachable"),
    "a status of one digit": (head(status="2"), "http_2"),
    "a body shorter than promised": (head(HTML, "Content-Length: 9") + b"x", "unreachable"),
    "a length below zero": (head(HTML, "Content-Length: -1") + b"x", "unreachable"),
    "two lengths": (head(HTML, "Content-Length: 1", "Content-Length: 2") + b"xx", "unreachable"),
    "chunks without a size": (head(HTML, "Transfer-Encoding: chunked") + b"x\r\n", "unreachable"),
    "a row without a colon": (head(HTML, "nonsense") + b"x", READ),
    "a row too long": (head(HTML, "X: " + "x" * 70_000) + b"x", "unreachable"),
    "a kind of bytes": (head(b"Content-Type: \xff/\0;=") + NOISE, "not_html"),
    "a name for a file": (head(HTML, b'Content-Disposition: a; filename="\xff\0') + b"x", READ),
}


MISSING = head("Content-Length: 0", status="404 Not Found")


def reasons(out: Path, said: list[bytes], **changes: Any) -> list[str]:
    """What each answer came to, behind the links of one page: a reason, or empty for a page."""

    def say(path: str) -> bytes:
        name = path.lstrip("/")
        if not name:
            return head(HTML) + page("Start", link(*map(str, range(len(said))))).encode()
        return said[int(name)] if name.isdecimal() and int(name) < len(said) else MISSING

    with saying(say) as origin:
        settings = {"timeout_s": 5.0, "max_pages": 2 * len(said) + 9, "max_gone_rate": 1.0}
        refreshed(out, url=f"{origin}/", **settings, **changes)
        [held] = snapshot.read(snapshot_beside(out))["web"]
    found = [f"{origin}/{at}" for at in range(len(said))]
    assert f"{origin}/" in held.pages
    assert all((url in held.pages) != (url in held.left_out) for url in found)
    return [held.left_out.get(url, (READ, ""))[0] for url in found]


def test_an_answer_that_is_none_costs_one_reject(tmp_path: Path) -> None:
    found = reasons(tmp_path / "out", [answer for answer, _ in ANSWERS.values()])
    expected = [reason for _, reason in ANSWERS.values()]
    rows = zip(ANSWERS, expected, found, strict=True)
    assert [row for row in rows if row[1] != row[2]] == []


# --- robots.txt and lists ----------------------------------------------------------------------

LISTED = head("Content-Type: text/plain")
# What the case shows; what the host says for robots.txt; whether its page is asked for then.
ROBOTS: dict[str, tuple[bytes, bool]] = {
    "a redirect to no address": (to("http://["), True),
    "a redirect to another scheme": (to("file:///etc/passwd"), True),
    "a redirect to bytes": (to(b"/\xff"), True),
    "no brotli": (packed("br", NOISE), False),
    "no HTTP": (b"User-agent: *\r\n\r\n", False),
    "sitemaps that are none": (
        LISTED + b"Sitemap: http://[\nSitemap: /\xff\xfe\nSitemap: http://127.0.0.1:x/\n\0",
        True,
    ),
}


def test_a_robots_txt_that_is_none_costs_its_host_alone(tmp_path: Path) -> None:
    asked: set[str] = set()
    with contextlib.ExitStack() as servers:

        def host(name: str, robots_txt: bytes) -> str:
            def say(path: str) -> bytes:
                if path == "/page":
                    asked.add(name)
                    return head(HTML) + page("Read").encode()
                return robots_txt if path == "/robots.txt" else MISSING

            return servers.enter_context(saying(say))

        links = [f"{host(name, said)}/page" for name, (said, _) in ROBOTS.items()]
        start = head(HTML) + page("Start", link(*links)).encode()
        lists = {
            "/robots.txt": ROBOTS["sitemaps that are none"][0] + b"\nSitemap: /maps",
            "/maps": LISTED
            + b"<sitemapindex><sitemap><loc>/a</loc></sitemap><sitemap><loc>http://["
            b"</loc></sitemap><sitemap><loc>/b</loc></sitemap><sitemap><loc>/c</loc></sitemap>",
            "/a": to("http://["),
            "/b": packed("zstd", NOISE),
            "/c": packed("gzip", gzip.compress(b"http://[\nhttp://127.0.0.1:x/\n\xff")),
            "/": start,
        }
        origin = servers.enter_context(saying(lambda path: lists.get(path, MISSING)))
        documents, _ = crawled(
            tmp_path / "out",
            url=f"{origin}/",
            external=True,
            lists=["sitemap", "llms_txt", "feed"],
            max_reject_rate=1.0,
            near_duplicate=None,
        )
    assert f"{origin}/" in documents
    assert {name: name in asked for name in ROBOTS} == {
        name: allowed for name, (_, allowed) in ROBOTS.items()
    }


# --- at random ---------------------------------------------------------------------------------

ROWS = [
    *("Location: /0", "Location: //[", "Content-Encoding: br", "Content-Encoding: gzip", HTML),
    *("Content-Encoding: zstd, deflate", "Content-Type: text/html; charset=hex", "ETag: \xff"),
    *("Content-Type: application/xml", "Last-Modified: Mon, 01 Jan 99999 00:00:00 +99999", "X: \0"),
    *("Date: Mon, 99999999999999999999 Jan 1970 00:00:00", "Content-Length: 3", "Vary: *"),
    *("Transfer-Encoding: chunked", "Content-Range: bytes 0-1/9", "Set-Cookie: a=b; Max-Age=x"),
]
STATUSES = ["200 OK", "206 Partial", "301 Moved", "302 Found", "304 Same", "204 None", "999 ?"]


def random_answer(rng: random.Random) -> bytes:
    """An answer of rows that need not go together, with some bytes changed."""
    rows = rng.sample(ROWS, rng.randrange(5))
    body = rng.choice((b"", NOISE, page("Read").encode(), gzip.compress(b"<p>x"), b"3\r\nabc\r\n"))
    said = bytearray(head(*rows, status=rng.choice(STATUSES)) + body)
    for _ in range(rng.choice((0, 0, 1, 4))):
        at = rng.randrange(len(said))
        said[at : at + rng.choice((0, 1, 8))] = rng.randbytes(rng.choice((0, 1, 5)))
    return bytes(said)


@pytest.mark.parametrize("number", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_answer_whatever_it_is_ends_a_crawl(number: int, tmp_path: Path) -> None:
    rng = random.Random(SEED)
    found = reasons(tmp_path / "out", [random_answer(rng) for _ in range(number)], render="auto")
    assert {READ, "bad_address", "http_304", "not_html", "unreachable"} <= set(found)


def test_the_suite_sees_a_spider_that_trusts_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted fault: where a redirect leads is joined without regard."""
    plant = (
        "from urllib.parse import urljoin\nfrom stages.crawl import asking\n"
        "asking.target_of = lambda url, said: urljoin(url, asking.header(said, 'Location'))\n"
    )
    (tmp_path / "sitecustomize.py").write_text(plant)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    with pytest.raises(RuntimeError, match="the spider ended early"):
        reasons(tmp_path / "out", [ANSWERS["a bracket that stays open"][0]])
