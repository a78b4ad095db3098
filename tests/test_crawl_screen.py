"""Hostile bodies: HTML that no parser is given, and bodies that unpack to more than a page."""

import gzip
import subprocess
import sys
import time
import zlib
from pathlib import Path

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from sites import crawled, link, ok, page, serving

from stages.crawl import screen
from stages.crawl.screen import SMALL_CHARS, fault

MANY = 100_000

HOSTILE = {
    "div": "<div>" * MANY,
    "div, closed in the end": "<div>" * MANY + "</div>" * MANY,
    "div with endings that end nothing": "<div></x>" * MANY,
    "div that looks ended": "<div/>" * MANY,
    "div in svg": "<svg>" + "<div/>" * MANY,
    "out of svg": "<svg><p></p>" + "<x/>" * MANY,
    "bold": "<b>" * MANY + "<div></b>" * MANY,
    "lists": "<ul><li>" * MANY,
    "tables": "<table><tr><td>" * MANY,
    "fonts": "<font><a>" * MANY,
    "forms": "<form><div>" * MANY,
    "a name of its own": "<x-y>" * MANY,
    "upper case": "<DIV>" * MANY,
    "behind a comment": "<!-- x --><div>" * MANY,
    "behind a quote that is none": "<p a'>" + "<div>" * MANY + "'>",
    "behind an equals sign": "<p ='>" + "<div>" * MANY + "'>",
    "behind two": "<p a=='>" + "<div>" * MANY + "'>",
    "behind a script that ended": "<script></script>" + "<div>" * MANY + "</script>",
    "paragraphs in boxes": "<div>" * MANY + "<p>" * MANY,
    "paragraphs without number": "<p>" * 2_100_000,
    "attributes": "<a " + " ".join(f"x{at}=1" for at in range(MANY)) + ">",
    "attributes without values": "<a " + " ".join(f"x{at}" for at in range(MANY)) + ">",
    "attributes behind a quoted sign": '<a z=">" ' + " ".join(f"x{at}" for at in range(MANY)) + ">",
    "attributes between slashes": "<a " + "/".join(f"x{at}" for at in range(MANY)) + ">",
}
HARMLESS = {
    "words": "<p>Words of a page. " * MANY,
    "items": "<ul>" + "<li>One <b>more</b>" * MANY + "</ul>",
    "rows": "<table>" + "<tr><td>1<td>2" * MANY + "</table>",
    "paths": "<svg>" + "<path d='M1 1'/>" * MANY + "</svg>",
    "breaks": "line<br>" * MANY,
    "a script": "<script>" + "x = '<div><div>';" * MANY + "</script>",
    "a script without an end": "<script>" + "<div>" * MANY,
    "a comment": "<!--" + "<div>" * MANY + "-->",
    "an image in an attribute": f"<img src='data:image/png;base64,{'A' * MANY}'>",
    "JSON in an attribute": "<astro-island props='" + '{"a b": "c d = e"}, ' * MANY + "'></x>",
    "links": "<a href=x>y</a>" * MANY,
    "signs": "<" * MANY,
    "tags that never end": "<a <a " * 3 + "x" * MANY,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_page_that_would_take_for_ever_is_refused_at_once(name):
    began = time.process_time()
    assert fault(HOSTILE[name]) in ("too_deep", "too_many_attributes", "too_many_tags")
    assert time.process_time() - began < 20


@pytest.mark.parametrize("name", HARMLESS)
def test_a_large_page_that_is_flat_is_read(name):
    assert fault(HARMLESS[name]) is None


PIECES = (
    *("<div>", "</div>", "<DIV>", "<div/>", "<b>", "</b>", "<b\n>", "<p>", "</p>", "<li>", "<td>"),
    *("<br>", "<svg>", "</svg>", "<path/>", '<span class="q">', "</span>", "</x>", "<", " x "),
    *("<x-y a='>'>", "<a ='>", '<a ="x="y>', "<a b=c d=e f=g>", '<i b="c" d>', "</i>", '"', "'"),
    *("<script>", "</script>", "<title>", "</title>", "<textarea>", "</textarea >", "<!--", "-->"),
)


PATTERNS = st.tuples(st.lists(st.sampled_from(PIECES), max_size=6), st.integers(1, 20))


@settings(max_examples=200, deadline=None)
@given(st.lists(PATTERNS, max_size=4))
def test_the_quick_look_clears_no_page_that_the_whole_pass_refuses(patterns):
    html = "".join("".join(pieces) * times for pieces, times in patterns)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("MAX_DEPTH", 7), ("MAX_ATTRIBUTES", 3), ("SMALL_CHARS", 0)):
            patch.setattr(screen, name, value)
        assert fault(html) == screen._fault(html)


def test_the_quick_look_clears_what_people_write():
    body = '<div class="a"><ul>' + '<li><p>One <b id="x">more</b><br></p></li>' * 99 + "</ul></div>"
    assert screen._is_surely_flat(f"<html><body>{body * 99}</body></html>")
    assert not screen._is_surely_flat("<div></x>" * 600)


def test_no_real_page_is_refused():
    root = Path("/usr/share/doc")
    pages = [path for path in root.rglob("*.html") if path.stat().st_size > SMALL_CHARS][:60]
    if not pages:
        pytest.skip("no manuals in /usr/share/doc")
    for path in pages:
        assert fault(path.read_text(errors="replace")) is None, path


# --- bodies that unpack -------------------------------------------------------------------------

GIB = 2**30


def bombs(mib):
    """So many mebibytes each, in a few kilobytes to a megabyte."""
    block = b"<p>boom</p>" * 95_325  # a mebibyte
    deflate, gz = zlib.compressobj(9), zlib.compressobj(9, wbits=31)
    br = brotli.Compressor(quality=5)
    zstd = zstandard.ZstdCompressor(level=3).compressobj()
    packers = {"deflate": deflate, "gzip": gz, "zstd": zstd}
    made = {
        name: b"".join(packer.compress(block) for _ in range(mib)) + packer.flush()
        for name, packer in packers.items()
    }
    made["br"] = b"".join(br.process(block) for _ in range(mib)) + br.finish()
    made["gzip, gzip"] = gzip.compress(made["gzip"])
    made["br, gzip"] = gzip.compress(made["br"])
    made["zstd, deflate"] = zlib.compress(made["zstd"])
    return made


@pytest.mark.parametrize("mib", [96, pytest.param(1024, marks=pytest.mark.slow)])
def test_bodies_that_unpack_to_much_cost_little_memory_and_one_reject_each(
    mib, tmp_path, monkeypatch
):
    packed = bombs(mib)
    # Whatever the spider would need beyond this, it does not get.
    limited = tmp_path / "limited"
    limited.mkdir()
    (limited / "sitecustomize.py").write_text(
        "import resource\nresource.setrlimit(resource.RLIMIT_DATA, (512 << 20,) * 2)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(limited))

    def answers(_):
        table = {"/": ok(page("Start", link(*(f"/{at}" for at in range(len(packed) + 1)))))}
        for at, (encoding, body) in enumerate(packed.items()):
            table[f"/{at}"] = ok(body, Content_Encoding=encoding)
        table[f"/{len(packed)}"] = ok(
            gzip.compress(page("Packed").encode()), Content_Encoding="gzip"
        )
        return table

    with serving(answers) as (origin, _):
        documents, rejects = crawled(
            tmp_path / "out", url=f"{origin}/", max_reject_rate=1.0, concurrent_requests=2
        )
    assert [row.title for row in documents.values()] == ["Start", "Packed"]
    reasons = [row.reason for row in rejects.values() if row.reason != "http_404"]
    assert reasons == ["too_large"] * len(packed)


@pytest.mark.slow
def test_the_bombs_are_what_they_say():
    packed = bombs(1024)
    size = 0
    unpacking = zlib.decompressobj(wbits=31)
    data = packed["gzip"]
    while data:
        size += len(unpacking.decompress(data, 2**24))
        data = unpacking.unconsumed_tail
    assert size > GIB - 2**20
    assert max(map(len, packed.values())) < 4 * 2**20
    script = "import zlib, sys; zlib.decompress(sys.stdin.buffer.read(), wbits=31)"
    done = subprocess.run(  # the planted defect: unpacked without a cap
        [
            sys.executable,
            "-c",
            f"import resource as r; r.setrlimit(r.RLIMIT_AS, (900 << 20,) * 2); {script}",
        ],
        input=packed["gzip"],
        capture_output=True,
    )
    assert b"MemoryError" in done.stderr
