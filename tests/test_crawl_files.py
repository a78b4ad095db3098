"""Files of every kind, each made by a real writer, refreshed and crawled like any source."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docx
import fpdf
import pptx
import pytest
import whisper
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pptx.util import Inches
from rs_bpe.bpe import openai
from sites import (
    MISSING,
    Answer,
    Asked,
    ok,
    parse_here,
    refresh_and_run,
    responding,
    serving,
)

from stages import crawl
from stages.answer import retrieval
from stages.answer.quoting import quote
from stages.core import config
from stages.core.errors import PipelineError
from stages.core.records import Document, Reject
from stages.core.store import read
from stages.crawl import fetching, files, parsed, source, workers
from stages.crawl import snapshot as snapshots
from stages.crawl.files import (
    anchors,
    folders,
    listing,
    markdown,
    pdf,
    remote,
    rst,
    sheet,
    subtitles,
)
from stages.crawl.files.addresses import Place
from stages.crawl.files.draft import Draft
from stages.crawl.files.pdf import Line
from stages.crawl.page import Page, UnreadableError
from stages.crawl.pages import Body
from stages.crawl.site import Filter
from stages.crawl.snapshot import Held
from stages.split import chunks as splitting
from stages.split.cutting import Product
from stages.split.tokens import Counter

ROOT = Path(__file__).resolve().parent.parent
COUNT = Counter(openai.cl100k_base().count, seamed=True)
WORDS = "The quick brown fox jumps over the lazy dog near the river bank. "


def sections(path: object, **changes: Any) -> tuple[crawl.Config, crawl.Source]:
    """Both sections as shipped, with changes by key."""
    params = {
        "crawl": yaml.safe_load((ROOT / "conf/crawl/default.yaml").read_text())
        | {"min_chars": 10, "near_duplicate": None},
        "source": yaml.safe_load((ROOT / "conf/source/files.yaml").read_text())
        | {"path": str(path)},
    }
    for key, value in changes.items():
        params["crawl" if key in params["crawl"] else "source"][key] = value
    return (
        config.load(params, "crawl", crawl.Config),
        config.load(params, "source", crawl.Source),
    )


def crawled(
    out: Path, path: object, here: bool = True, **changes: Any
) -> tuple[dict[str, Document], dict[str, tuple[str, str]]]:
    """Documents, and reason and detail of the rejects, by address."""
    refresh_and_run(out, *sections(path, **{"max_reject_rate": 1.0, **changes}), here)
    documents = {row.url: row for row in read(out / "documents.jsonl", Document)}
    rejects = {}
    for row in read(out / "rejects.jsonl", Reject):
        url, _, detail = row.detail.partition(": ")
        rejects[url] = row.reason, detail
    return documents, rejects


def parse(name: str, body: bytes, **changes: Any) -> Page:
    """The page of a file of this name."""
    [page] = files.parse(sections("x", **changes)[1], name, Body("", body))
    check(page)
    return page


def check(page: Page | Document) -> None:
    """Headings start where they say, and marks where a character starts."""
    data = page.text.encode()
    for heading in page.headings:
        assert 0 <= heading.start < len(data)
        line = data[heading.start :].decode().partition("\n")[0]
        if heading.title:
            assert line.startswith("#" * heading.level + " ")
        else:
            assert heading.anchor
        assert heading.level


def outline(page: Page | Document) -> list[tuple[int, str, str]]:
    return [(h.level, h.title, h.anchor) for h in page.headings]


def at(page: Page | Document, words: str) -> str:
    """The anchor of the nearest heading or mark above the words, as a citation has it."""
    place = page.text.encode().index(words.encode())
    return [h.anchor for h in page.headings if h.start <= place and h.anchor][-1]


def unreadable(name: str, body: bytes) -> str:
    with pytest.raises(UnreadableError) as caught:
        parse(name, body)
    assert "\n" not in caught.value.detail
    return caught.value.reason


# --- PDF ---------------------------------------------------------------------------------------


def paper(bookmarks: bool = False, **options: Any) -> bytes:
    """Three pages with a running head, page numbers, two headings and hyphens at line ends."""

    class Paper(fpdf.FPDF):
        def header(self) -> None:
            self.set_font("helvetica", size=9)
            self.cell(text="A Manual of Widgets", new_x="LMARGIN", new_y="NEXT")

        def footer(self) -> None:
            self.set_y(-15)
            self.set_font("helvetica", size=9)
            self.cell(text=f"Page {self.page_no()} of 3")

    made = Paper()
    made.set_title("Widgets in depth")
    if options:
        made.set_encryption(owner_password="owner", **options)

    def say(*lines: str) -> None:
        made.set_font("helvetica", size=11)
        for line in lines:
            made.cell(text=line, new_x="LMARGIN", new_y="NEXT")

    def head(title: str) -> None:
        if bookmarks:
            made.start_section(title)
        made.set_font("helvetica", size=18)
        made.cell(text=title, new_x="LMARGIN", new_y="NEXT")

    made.add_page()
    head("Installing a widget")
    say(
        "A widget is installed with one com-",
        "mand, which is told twice, and it keeps its well-",
        "known well-known default of forty-two seconds until it is chan-",
    )
    made.add_page()
    say("ged by the owner of the widget, who has read all of this.")
    head("Removing a widget")
    say("A widget is removed in two steps:", "- stop it", "- and delete its folder.")
    made.add_page()
    say("The last page speaks of nothing but the colour of widgets, which is green.")
    return bytes(made.output())


def test_a_pdf_is_read_by_pages_without_running_heads_and_hyphens():
    page = parse("w.pdf", paper())
    assert page.title == "Widgets in depth"
    assert "Manual of Widgets" not in page.text and "of 3" not in page.text
    assert "installed with one command, which is told twice" in page.text
    assert "its well-known well-known default" in page.text  # known with its hyphen elsewhere
    assert "until it is changed by the owner" in page.text  # across the pages
    assert [(h.title, h.anchor) for h in page.headings if h.title] == [
        ("Installing a widget", "page=1"),
        ("Removing a widget", "page=2"),
    ]
    assert at(page, "ged by the owner") == "page=2"
    assert at(page, "The last page") == "page=3"
    assert "- stop it" in page.text


def test_bookmarks_are_the_headings_of_a_pdf_that_has_them():
    page = parse("w.pdf", paper(bookmarks=True))
    assert [h.title for h in page.headings if h.title] == [
        "Installing a widget",
        "Removing a widget",
    ]
    assert page.text.count("Installing a widget") == 1


def test_an_encrypted_a_scanned_and_a_broken_pdf_say_so():
    assert parse("open.pdf", paper(user_password="")).title == "Widgets in depth"
    assert unreadable("shut.pdf", paper(user_password="secret")) == "encrypted"
    scan = fpdf.FPDF()
    scan.add_page()
    scan.rect(10, 10, 50, 50)
    assert unreadable("scan.pdf", bytes(scan.output())) == "no_text"
    assert unreadable("torn.pdf", paper()[:700]) == "broken"
    assert unreadable("fake.pdf", b"<html>404") == "broken"


@given(st.lists(st.lists(st.text("abcdefgh ij", min_size=1), max_size=12), max_size=6))
@settings(max_examples=100, deadline=None)
def test_what_is_no_running_head_stays(pages):
    """A line that stands on one page only is never taken away."""
    own = [
        [Line(f"{place} {number} {text.strip()} z", 10.0) for number, text in enumerate(page)]
        for place, page in zip("pqrstu", pages, strict=False)
    ]
    kept = pdf.without_running_heads(own, ())
    assert kept == own


def test_a_running_head_with_a_number_goes_and_a_heading_of_that_form_stays():
    pages = [
        [Line(f"Chapter {n}", 20.0), Line(f"{n} Widgets", 10.0), Line("a" * n, 10.0)]
        for n in range(1, 5)
    ]
    kept = pdf.without_running_heads(pages, [20.0])
    assert kept == [[page[0], page[1], page[2]] for page in pages]  # below a heading it stays
    kept = pdf.without_running_heads([page[1:] for page in pages], [20.0])
    assert kept == [[page[2]] for page in pages]


# --- slides ------------------------------------------------------------------------------------


def deck() -> bytes:
    made = pptx.Presentation()
    first = made.slides.add_slide(made.slide_layouts[1])
    first.shapes.title.text = "What a widget is"
    body = first.placeholders[1].text_frame
    body.text = "A widget is a small part"
    deeper = body.add_paragraph()
    deeper.text, deeper.level = "made of steel", 1
    first.notes_slide.notes_text_frame.text = "Say that steel does not rust here."
    second = made.slides.add_slide(made.slide_layouts[5])
    second.shapes.title.text = "Sizes"
    table = second.shapes.add_table(2, 2, Inches(1), Inches(2), Inches(4), Inches(1)).table
    for place, words in enumerate(("size", "in | mm", "large", "40")):
        table.cell(place // 2, place % 2).text = words
    hidden = made.slides.add_slide(made.slide_layouts[1])
    hidden.shapes.title.text = "Nobody sees this"
    hidden._element.set("show", "0")
    third = made.slides.add_slide(made.slide_layouts[6])
    group = third.shapes.add_group_shape()
    box = group.shapes.add_textbox(0, 0, Inches(3), Inches(1)).text_frame
    box.text = "Order them "
    link = box.paragraphs[0].add_run()
    link.text, link.hyperlink.address = "in the shop", "https://shop.example.org/"
    written = io.BytesIO()
    made.save(written)
    return written.getvalue()


def test_slides_have_titles_bullets_tables_notes_and_their_numbers():
    page = parse("deck.pptx", deck())
    assert page.title == "What a widget is"
    assert outline(page) == [
        (2, "What a widget is", "slide=1"),
        (2, "Sizes", "slide=2"),
        (7, "", "slide=4"),
    ]
    assert "- A widget is a small part\n  - made of steel" in page.text
    assert "Notes: Say that steel does not rust here." in page.text
    assert "| size | in \\| mm |\n| --- | --- |\n| large | 40 |" in page.text
    assert "Order them [in the shop](https://shop.example.org/)" in page.text
    assert "Nobody" not in page.text
    assert at(page, "Order them") == "slide=4"


# --- DOCX --------------------------------------------------------------------------------------

FOOTNOTES = (
    '<?xml version="1.0"?><w:footnotes xmlns:w="http://schemas.openxmlformats.org/wordprocessingml'
    '/2006/main"><w:footnote w:type="separator" w:id="0"><w:p/></w:footnote><w:footnote w:id="2">'
    "<w:p><w:r><w:t>In March only.</w:t></w:r></w:p></w:footnote></w:footnotes>"
)


def handbook() -> bytes:
    made = docx.Document()
    made.add_heading("Handbook", 0)
    made.add_heading("Travel", 1)
    paragraph = made.add_paragraph("Trips are booked a week before")
    paragraph._p.append(
        docx.oxml.parse_xml(
            '<w:r xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'
            '<w:footnoteReference w:id="2"/></w:r>'
        )
    )
    made.add_paragraph("by train", style="List Bullet")
    made.add_paragraph("first class", style="List Bullet 2")
    made.add_paragraph("ask", style="List Number")
    made.add_paragraph("book", style="List Number")
    table = made.add_table(2, 2)
    for place, words in enumerate(("city", "limit", "Bonn", "90")):
        table.cell(place // 2, place % 2).text = words
    for line in ("for day in trip:", "    book(day)"):
        made.add_paragraph().add_run(line).font.name = "Courier New"
    made.add_heading("Travel", 2)
    changed = made.add_paragraph("Ask ")
    word = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    for tag, inner in (("del", "delText>Bob"), ("ins", "t>Ann")):
        name = inner.partition(">")[0]
        changed._p.append(
            docx.oxml.parse_xml(
                f'<w:{tag} xmlns:w="{word}" w:id="1" w:author="x"><w:r><w:{inner}</w:{name}></w:r>'
                f"</w:{tag}>"
            )
        )
    part = docx.opc.part.Part(
        docx.opc.packuri.PackURI("/word/footnotes.xml"),
        "application/vnd.openxmlformats-officedocument.wordprocessingml.footnotes+xml",
        FOOTNOTES.encode(),
        made.part.package,
    )
    made.part.relate_to(part, docx.opc.constants.RELATIONSHIP_TYPE.FOOTNOTES)
    written = io.BytesIO()
    made.save(written)
    return written.getvalue()


def test_word_files_have_headings_lists_tables_code_and_footnotes():
    page = parse("handbook.docx", handbook())
    assert page.title == "Handbook"
    assert outline(page) == [
        (1, "Handbook", "handbook"),
        (2, "Travel", "travel"),
        (3, "Travel", "travel-1"),
    ]
    assert "a week before[^2]" in page.text and "[^2]: In March only." in page.text
    assert "- by train\n  - first class\n1. ask\n1. book" in page.text
    assert "| city | limit |\n| --- | --- |\n| Bonn | 90 |" in page.text
    assert "```\nfor day in trip:\n    book(day)\n```" in page.text
    assert "Ask Ann" in page.text and "Bob" not in page.text


# --- text formats ------------------------------------------------------------------------------


def test_markdown_keeps_its_code_and_gets_githubs_anchors():
    body = (
        "---\ntitle: The guide\ntags: [a]\n---\nUsage & `run()`\n====\n\n[next](next.md#there) and "
        "`[no](link.md)`\n\n<!-- a note -->\n\n## Usage\n\n```sh\n# no heading\n[x](y.md)\n```\n\n"
        "## Usage\n\n![p](img/p.png) [out](https://e.org/) [ref]\n\n[ref]: ../up.md\n"
    )
    page = parse("guide/a.md", body.encode(), public_url="https://e.org/docs")
    assert page.title == "The guide"
    assert page.url == "https://e.org/docs/guide/a.md"
    assert outline(page) == [
        (1, "Usage & run()", "usage--run"),
        (2, "Usage", "usage"),
        (2, "Usage", "usage-1"),
    ]
    assert "```sh\n# no heading\n[x](y.md)\n```" in page.text
    assert "[next](https://e.org/docs/guide/next.md#there) and `[no](link.md)`" in page.text
    assert "[ref]: https://e.org/docs/up.md" in page.text
    assert "a note" not in page.text and "tags" not in page.text


@pytest.mark.parametrize(
    ("titles", "expected"),
    [
        (["Hello World!"], ["hello-world"]),
        (["`code` & more", "A_b-c"], ["code--more", "a_b-c"]),
        (["Café 2.0", "日本語 text"], ["café-20", "日本語-text"]),
        (["a", "a", "a-1", "a"], ["a", "a-1", "a-1-1", "a-2"]),
        (["[Link](x.md) here"], ["link-here"]),
    ],
)
def test_anchors_are_those_of_github(titles, expected):
    made = anchors.Anchors()
    assert [made.of(title) for title in titles] == expected


@given(st.text(st.characters(exclude_categories=()), max_size=300))
@settings(max_examples=150, deadline=None)
def test_any_markdown_gives_headings_that_start_at_their_lines(body):
    try:
        page = markdown.parse(body.encode("utf-8", "surrogatepass"), Place("a.md", None))
    except UnreadableError:
        return
    check(page)


def test_rst_is_read_with_sphinxs_roles_and_directives_and_nothing_included(tmp_path):
    (tmp_path / "secret").write_text("SECRET")
    body = f"""
Widgets
=======

See :func:`~widgets.make` and :doc:`the guide <guide>`.

.. note:: Mind the *gap*.

.. code-block:: python
   :emphasize-lines: 1

   if True:
       make(1)

.. py:function:: make(size, *, colour="green")

   Makes a widget.

   .. versionadded:: 3.2

.. include:: {tmp_path / "secret"}

.. raw:: html

   <script>SECRET</script>

.. unknown-thing:: about
   :option: 1

   Its words.

Sizes
-----

`Large <large.html>`_ ones.
"""
    page = parse("docs/w.rst", body.encode())
    assert page.title == "Widgets"
    assert outline(page) == [(1, "Widgets", "widgets"), (2, "Sizes", "sizes")]
    assert "See `make` and the guide." in page.text
    assert "**Note:** Mind the *gap*." in page.text
    assert "```python\nif True:\n    make(1)\n```" in page.text
    assert '`make(size, *, colour="green")`' in page.text and "Makes a widget." in page.text
    assert "New in version 3.2" in page.text and "Its words." in page.text
    assert "SECRET" not in page.text
    assert "(docs/large.html)" in page.text


def test_substitutions_of_rst_cannot_grow_without_end():
    lines = [".. |a0| replace:: " + "x" * 100]
    lines += [f".. |a{n}| replace:: " + f"|a{n - 1}| " * 10 for n in range(1, 6)]
    page = rst.parse(("\n".join(lines) + "\n\nText |a5| here.\n").encode(), Place("a.rst", None))
    assert len(page.text) < 10_000  # and not ten million


def test_a_notebook_is_text_code_and_bounded_output():
    notebook = {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": {"language": "python", "name": "python3"}},
        "cells": [
            {"cell_type": "markdown", "metadata": {}, "source": ["# Second part\n", "Words."]},
            {
                "cell_type": "code",
                "metadata": {},
                "execution_count": 1,
                "source": "print('x' * 9000)",
                "outputs": [
                    {"output_type": "stream", "name": "stdout", "text": ["\x1b[31m", "x" * 9000]},
                    {
                        "output_type": "display_data",
                        "metadata": {},
                        "data": {"image/png": "aGk=", "text/plain": ["<Figure size 1>"]},
                    },
                    {
                        "output_type": "error",
                        "ename": "ValueError",
                        "evalue": "no",
                        "traceback": ["long"],
                    },
                ],
            },
        ],
    }
    page = parse("n.ipynb", json.dumps(notebook).encode())
    assert page.title == "Second part"
    assert outline(page) == [(1, "Second part", "Second-part")]
    assert "```python\nprint('x' * 9000)\n```" in page.text
    assert "ValueError: no" in page.text and "\x1b" not in page.text
    assert len(page.text) < 3000
    assert unreadable("n.ipynb", b'{"cells": 3}') == "broken"
    assert unreadable("n.ipynb", b"[" * 100_000) == "broken"


@pytest.mark.parametrize(
    ("encoding", "words"),
    [
        ("utf-8-sig", "Grüße aus Köln"),
        ("utf-16", "Grüße aus Köln"),
        ("latin-1", "Grüße aus Köln"),
        ("cp1252", "“Crème brûlée” — 3 €"),
        ("cp1251", "Съешь же ещё этих мягких французских булок, да выпей чаю. " * 3),
        ("shift_jis", "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。" * 3),
    ],
)
def test_text_is_read_in_the_encoding_that_it_is_in(encoding, words):
    assert parse("a.txt", words.encode(encoding)).text == words.strip()


def test_plain_text_is_cited_by_line():
    body = "\n\n".join(f"Paragraph {n}.\nMore of it." for n in range(30))
    page = parse("a.txt", body.encode())
    assert at(page, "Paragraph 0.") == "L1"
    assert at(page, "Paragraph 29.") == "L85"
    assert body.split("\n")[int(at(page, "Paragraph 29.")[1:]) - 1].startswith("Paragraph 28")


def test_a_table_of_values_is_markdown_and_bounded():
    page = parse("a.csv", b'name;size\n"a|b";1\n\nc;2;extra\n')
    assert page.text == "| name | size |\n| --- | --- |\n| a\\|b | 1 |\n| c | 2 extra |"
    many = parse("b.tsv", b"n\tsquare\n" + b"".join(b"%d\t%d\n" % (n, n * n) for n in range(3000)))
    assert many.text.endswith("1000 further rows are left out.")
    assert at(many, "| 1999 |") == "L1982"


@given(st.lists(st.lists(st.text(max_size=8), min_size=1, max_size=4), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_any_csv_is_a_table_or_a_reject(rows):
    import csv

    written = io.StringIO()
    csv.writer(written).writerows(rows)
    try:
        page = sheet.parse(written.getvalue().encode("utf-8", "replace"), Place("a.csv", None))
    except UnreadableError:
        return
    check(page)
    lines = page.text.split("\n")
    assert all(line.startswith("|") and line.endswith("|") for line in lines)


def test_html_is_read_as_a_page_of_a_site_is():
    body = (
        "<title>T</title><main><h1 id=top>Widgets</h1><p>Words <a href='../b.html#x'>there</a>.</p>"
        "<pre><code class=language-sh>ls</code></pre></main><footer>no</footer>"
    )
    page = parse("docs/a.html", body.encode())
    assert page.url == "docs/a.html" and outline(page) == [(1, "Widgets", "top")]
    assert "[there](b.html#x)" in page.text and "```sh\nls\n```" in page.text
    public = parse("docs/a.html", body.encode(), public_url="https://e.org/")
    assert public.url == "https://e.org/docs/a.html" and "(https://e.org/b.html#x)" in public.text
    named = parse("a.html", "<meta charset=cp1251><main><p>Привет".encode("cp1251"))
    assert "Привет" in named.text


# --- subtitles and recordings ------------------------------------------------------------------

SRT = (
    "1\n00:00:01,000 --> 00:00:03,000\n<i>Hello</i> and\n\n"
    "2\n00:00:03,000 --> 00:00:05,000\nwelcome.\n\n"
    "3\n00:00:20,000 --> 00:00:24,000\nA pause came before.\n\n"
    "4\n01:01:05,500 --> 01:01:08,000\nThe end.\n"
)
VTT = (
    "WEBVTT\n\n00:01.000 --> 00:03.000\n<v Ann>so we\n\n"
    "00:03.000 --> 00:05.000\nso we\nbegin here\n\n00:05.000 --> 00:06.000\nbegin here\nand go\n"
)


def test_subtitles_are_paragraphs_that_name_the_second():
    page = parse("talk.srt", SRT.encode())
    assert page.text == "Hello and welcome.\n\nA pause came before.\n\nThe end."
    assert [h.anchor for h in page.headings] == ["t=1", "t=20", "t=3665"]
    assert parse("talk.vtt", VTT.encode()).text == "so we begin here and go"  # captions that roll


def test_a_long_speech_has_a_mark_every_quarter_minute():
    cues = "".join(
        f"{n}\n00:{n // 20:02}:{n % 20 * 3:02},000 --> 00:{n // 20:02}:{n % 20 * 3 + 3:02},000\n"
        f"word{n} and.\n\n"
        for n in range(100)
    )
    page = subtitles.parse(cues.encode(), Place("talk.mp4", None))
    assert [int(h.anchor[2:]) for h in page.headings] == list(range(0, 300, 15))
    assert page.text.count("\n\n") == 4  # a paragraph a minute


def test_subtitles_beside_a_recording_are_what_it_says(tmp_path):
    folder = tmp_path / "talks"
    folder.mkdir()
    for name in ("a.mp4", "b.mp3", "c.mkv"):
        (folder / name).write_bytes(b"no recording")
    (folder / "a.srt").write_text(SRT)
    (folder / "a.de.srt").write_text(SRT.replace("Hello", "Hallo"))
    (folder / "b.en.vtt").write_text(VTT)
    documents, rejects = crawled(tmp_path / "out", folder, public_url="https://e.org/t/")
    assert sorted(documents) == ["https://e.org/t/a.mp4", "https://e.org/t/b.mp3"]
    assert documents["https://e.org/t/a.mp4"].text.startswith("Hello")
    assert {url.rpartition("/")[2]: reason for url, (reason, _) in rejects.items()} == {
        "a.srt": "subtitles",
        "a.de.srt": "subtitles",
        "b.en.vtt": "subtitles",
        "c.mkv": "no_transcript",
    }
    assert "source.whisper" in rejects["https://e.org/t/c.mkv"][1]


MODEL = {"language": None, "device": "cpu", "compute_type": "default", "beam_size": 1}


def record(folder: Path) -> Path:
    """A voice that speaks for some 36 seconds, as MP3."""
    if not shutil.which("espeak-ng") or not shutil.which("ffmpeg"):
        pytest.skip("needs espeak-ng and ffmpeg: apt-get install espeak-ng ffmpeg")
    folder.mkdir()
    said = "Hello there. A widget is made of steel, and it is green. " * 9
    spoken = subprocess.run(["espeak-ng", "--stdout", said], check=True, capture_output=True)
    ffmpeg(folder, "-i", "-", "voice.mp3", sound=spoken.stdout)
    return folder


def ffmpeg(folder: Path, *options: str, sound: bytes = b"") -> None:
    command = ["ffmpeg", "-loglevel", "error", *options]
    subprocess.run(command, check=True, cwd=folder, input=sound)


def times(document: Document) -> list[int]:
    check(document)
    return [int(heading.anchor.removeprefix("t=")) for heading in document.headings]


def test_a_recording_is_written_down_once_with_its_times(tmp_path, monkeypatch):
    folder = record(tmp_path / "in")
    model = {"path": str(whisper.make(tmp_path / "model")), **MODEL}
    documents, _ = crawled(tmp_path / "out", folder, whisper=model)
    found = times(documents["voice.mp3"])
    assert found == sorted(found) and found[0] < 30 <= found[-1] < 40  # of two windows

    monkeypatch.setattr(files.speech.Listener, "_cues", None)  # nothing is heard again
    (folder / "voice.mp3").touch()
    (tmp_path / "out.snapshot.json").unlink()
    assert crawled(tmp_path / "out", folder, whisper=model)[0] == documents


@pytest.mark.slow
def test_a_film_is_written_down_and_one_without_sound_is_a_reject(tmp_path):
    folder = record(tmp_path / "in")
    picture = ("-f", "lavfi", "-i", "color=size=64x64:rate=5:duration=36")
    ffmpeg(folder, *picture, "-i", "voice.mp3", "-c:a", "aac", "film.mp4")
    ffmpeg(folder, *picture, "silent.mkv")
    (folder / "torn.ogg").write_bytes(b"OggS" + bytes(500))
    model = {"path": str(whisper.make(tmp_path / "model")), **MODEL}
    documents, rejects = crawled(tmp_path / "out", folder, whisper=model)
    assert sorted(documents) == ["film.mp4", "voice.mp3"]
    assert 30 <= times(documents["film.mp4"])[-1] < 40
    assert {url: reason for url, (reason, _) in rejects.items()} == {
        "silent.mkv": "broken",
        "torn.ogg": "broken",
    }


def test_a_folder_that_holds_no_whisper_model_is_named(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "a.txt").write_text(WORDS)
    model = {"path": str(tmp_path / "model"), **MODEL}
    with pytest.raises(PipelineError, match=r"source.whisper.path: .*: no model.bin: expected a"):
        crawled(tmp_path / "out", tmp_path, whisper=model)


# --- folders -----------------------------------------------------------------------------------


def test_a_folder_is_read_with_everything_hostile_in_it_as_one_reject_each(tmp_path):
    folder, outside = tmp_path / "in", tmp_path / "secret.txt"
    (folder / "sub").mkdir(parents=True)
    outside.write_text("SECRET " * 100)
    (folder / "good.md").write_text(f"# Good\n\n{WORDS}")
    (folder / "sub" / "good.txt").write_text(f"Also good. {WORDS}")
    (folder / "out.txt").symlink_to(outside)
    (folder / "twin.md").symlink_to(folder / "good.md")
    (folder / "loop").symlink_to(folder)
    (folder / "sub" / "up").symlink_to("..")
    (folder / "gone.txt").symlink_to(folder / "nowhere.txt")
    (folder / "self.txt").symlink_to(folder / "self.txt")
    os.mkfifo(folder / "pipe.txt")
    (folder / "binary.txt").write_bytes(bytes(range(256)) * 50)
    (folder / "line.txt").write_bytes(b"x" * 10_000_000)
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (folder / "empty.md").write_text("")
    (folder / "large.txt").write_bytes(b"words \n" * 200_000)
    (folder / "bomb.docx").write_bytes(zip_bomb())
    (folder / "laughs.docx").write_bytes(billion_laughs())
    (folder / "old.pptx").write_bytes(b"\xd0\xcf\x11\xe0" + b"\0" * 600)
    (folder / "torn.pptx").write_bytes(deck()[:2000])
    (folder / "what#is?this 1.txt").write_text(f"Odd name. {WORDS}")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.txt")).write_text(f"Worse name. {WORDS}")
    documents, rejects = crawled(tmp_path / "out", folder, here=False, max_file_mib=1, exclude=[])
    assert sorted(documents) == [
        "\\xff.txt",
        "good.md",
        "sub/good.txt",
        "what%23is%3Fthis%201.txt",
    ]
    assert {url: reason for url, (reason, _) in rejects.items()} == {
        "out.txt": "outside",
        "twin.md": "link",
        "loop": "link_loop",
        "sub/up": "link_loop",
        "gone.txt": "broken_link",
        "self.txt": "broken_link",
        "pipe.txt": "not_a_file",
        "binary.txt": "binary",
        "line.txt": "too_large",
        "picture.png": "not_text",
        "empty.md": "empty",
        "large.txt": "too_large",
        "bomb.docx": "too_large",
        "laughs.docx": "broken",
        "old.pptx": "encrypted",
        "torn.pptx": "broken",
    }
    written = "".join(path.read_text() for path in (tmp_path / "out").iterdir())
    assert "SECRET" not in written and str(tmp_path) not in written


def zip_bomb() -> bytes:
    """A part of XML that unpacks to more than is let in."""
    made = io.BytesIO()
    with (
        zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("word/document.xml", "w", force_zip64=True) as part,
    ):
        for _ in range(65):
            part.write(b"x" * (1 << 20))
    return made.getvalue()


def billion_laughs() -> bytes:
    """A document whose text is an entity of entities of entities."""
    entities = '<!ENTITY l0 "laugh">' + "".join(
        f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12)
    )
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(handbook())) as source, zipfile.ZipFile(made, "w") as target:
        for name in source.namelist():
            body = source.read(name)
            if name == "word/document.xml":
                head, _, rest = body.partition(b"?>")
                rest = rest.replace(b"Trips are", b"&l11;")
                body = head + f"?><!DOCTYPE w [{entities}]>".encode() + rest
            target.writestr(name, body)
    return made.getvalue()


def test_a_line_of_ten_megabytes_is_a_reject(tmp_path):
    assert unreadable("a.txt", b"x" * 10_000_000) == "line_too_long"
    assert unreadable("a.md", b"x" * 10_000_000) == "line_too_long"
    assert unreadable("a.rst", b"x" * 20_000) == "line_too_long"


def test_an_unreadable_file_is_told_by_the_systems_word(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text(WORDS)
    (tmp_path / "in" / "b.txt").write_text(WORDS + "And more.")

    def open_but_a(path: Any, *rest: Any) -> int:
        if str(path).endswith("a.txt"):
            raise PermissionError(13, "Permission denied")
        return real(path, *rest)

    real = os.open
    monkeypatch.setattr(listing.os, "open", open_but_a)
    documents, rejects = crawled(tmp_path / "out", tmp_path / "in")
    assert list(documents) == ["b.txt"] and rejects == {
        "a.txt": ("unreadable", "Permission denied")
    }


def test_only_new_and_changed_files_are_read_and_parsed(tmp_path, monkeypatch):
    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(300):
        (folder / f"{n}.md").write_text(f"# Page {n}\n\nNumber {n} says. {WORDS}")
    read_files: list[str] = []
    parsed_files: list[str] = []
    real_open, real_parse = os.open, files.parse_file

    def opened(path: Any, *rest: Any) -> int:
        if str(path).startswith(str(folder)):
            read_files.append(Path(path).name)
        return real_open(path, *rest)

    def seen(address: str, *rest: Any) -> Page:
        parsed_files.append(address)
        return real_parse(address, *rest)

    monkeypatch.setattr(listing.os, "open", opened)
    monkeypatch.setattr(files, "parse_file", seen)
    first, _ = crawled(tmp_path / "out", folder)
    assert len(first) == len(read_files) == len(parsed_files) == 300
    read_files.clear(), parsed_files.clear()

    (folder / "7.md").write_text(f"# Page 7\n\nIt is another one now. {WORDS}")
    (folder / "8.md").unlink()
    (folder / "new.md").write_text(f"# New\n\nIt was not there. {WORDS}")
    cfg, whole = sections(folder)
    snapshot = tmp_path / "out.snapshot.json"
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    [change] = fetching.refresh(cfg, whole, source.parts(whole), snapshot)
    assert (change.new, change.changed, change.gone) == (("new.md",), ("7.md",), ("8.md",))
    assert change.unchanged == 298 and sorted(read_files) == ["7.md", "new.md"]
    monkeypatch.setattr(workers, "parse", parse_here)
    crawl.run(cfg, whole, snapshot, tmp_path / "out")
    assert sorted(parsed_files) == ["7.md", "new.md"]
    second = {row.url: row for row in read(tmp_path / "out" / "documents.jsonl", Document)}
    assert "8.md" not in second and "another one" in second["7.md"].text
    assert {url: row for url, row in second.items() if url not in ("7.md", "new.md")} == {
        url: row for url, row in first.items() if url not in ("7.md", "8.md")
    }


def test_a_title_without_end_is_cut(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.md").write_text(f"# {'A - ' * 1000}\n\n{WORDS}")
    documents, _ = crawled(tmp_path / "out", tmp_path / "in")
    assert documents["a.md"].title == ("A - " * 75)


def test_a_parser_that_changes_parses_again(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text(WORDS)
    assert "a.txt" in crawled(tmp_path / "out", tmp_path / "in")[0]
    monkeypatch.setattr(files, "parse_file", lambda *_: Page("a.txt", "a", "Another reader. " * 9))
    assert "fox" in crawled(tmp_path / "out", tmp_path / "in")[0]["a.txt"].text  # kept
    monkeypatch.setattr(parsed, "_reader", lambda: "another")
    assert "Another" in crawled(tmp_path / "out", tmp_path / "in")[0]["a.txt"].text


@pytest.mark.parametrize(
    ("path", "changes", "expected"),
    [
        ("", {}, ["a.md", "sub/b.md", "sub/c.txt", "sub/deep/d.md"]),
        ("/a.md", {}, ["a.md"]),
        ("/*.md", {}, ["a.md"]),
        ("/**/*.md", {}, ["a.md", "sub/b.md", "sub/deep/d.md"]),
        ("/sub/[bc].*", {}, ["sub/b.md", "sub/c.txt"]),
        ("", {"include": ["^/sub/"], "exclude": ["/deep/"]}, ["sub/b.md", "sub/c.txt"]),
    ],
)
def test_a_folder_a_file_and_a_glob_are_sources(tmp_path, path, changes, expected):
    for name in ("a.md", "sub/b.md", "sub/c.txt", "sub/deep/d.md", ".hidden/e.md"):
        file = tmp_path / "in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{name} says: {WORDS}")
    documents, _ = crawled(tmp_path / "out", f"{tmp_path}/in{path}", **changes)
    root = "sub/" if path.startswith("/sub/") else ""
    assert sorted(root + url for url in documents) == expected


def test_a_path_that_is_not_there_and_a_folder_without_files_are_named(tmp_path):
    with pytest.raises(PipelineError, match=r"source.path: '.*nowhere': no such file or folder"):
        crawled(tmp_path / "out", tmp_path / "nowhere")
    (tmp_path / "in").mkdir()
    with pytest.raises(PipelineError, match=r"source.path: '.*in': no file is there that source."):
        crawled(tmp_path / "out", tmp_path / "in")


# --- files at an address -----------------------------------------------------------------------


def shared() -> Any:
    """A server that lists files, with a tag for each."""
    listed = "".join(f'<a href="{name}">x</a>' for name in ("a.md", "sub/w.pdf", "c.png", "/up.md"))
    answers = {"/in/": ok(listed + '<a href="?C=N;O=D">Name</a>'), "/in/sub/": ok("")}
    answers["/in/sub/w.pdf"] = ok(paper(), "application/pdf", ETag='"w1"')
    answers["/in/c.png"] = ok(b"PNG", "image/png")
    answers["/in/a.md"] = ok(f"# Notes\n\nThe notes say: {WORDS}", "text/markdown", ETag='"1"')
    return serving(lambda _: answers)


def at_address(origin: str, **changes: Any) -> dict[str, Any]:
    return {"allow_hosts": [origin.removeprefix("http://")], "delay_s": 0.0, **changes}


def test_files_at_an_address_are_read_through_the_guard(tmp_path):
    with shared() as (origin, log):
        documents, rejects = crawled(tmp_path / "out", f"{origin}/in/", **at_address(origin))
        assert sorted(documents) == ["a.md", "sub/w.pdf"], (rejects, log)
        assert {url: why for url, (why, _) in rejects.items()} == {"c.png": "not_text"}
        assert "/in/c.png" not in log  # nobody reads it
        one, _ = crawled(tmp_path / "one", f"{origin}/in/sub/w.pdf", **at_address(origin))
        assert list(one) == ["w.pdf"] and not any("/up.md" in path for path in log)
        some, _ = crawled(tmp_path / "some", f"{origin}/in/*.md", **at_address(origin))
        assert list(some) == ["a.md"]
        with pytest.raises(PipelineError, match=r"source.path: .*: .*source.allow_hosts"):
            crawled(tmp_path / "shut", f"{origin}/in/")
    for path in ("ftp://127.0.0.1/x", "memory://x", "zip://x::https://e.org", "file:///etc"):
        with pytest.raises(PipelineError, match=r"source.path: .*: expected a path, or an address"):
            crawled(tmp_path / "shut", path)


@contextlib.contextmanager
def answering(answer: Callable[[Asked], Answer], robots: str | Answer = "") -> Iterator[Any]:
    """A server of files under `/in/`, and of a robots.txt; its address, and the log."""

    def respond(asked: Asked) -> Answer:
        if asked.path == "/robots.txt":
            return ok(robots, "text/plain") if isinstance(robots, str) else robots
        return answer(asked)

    with responding(lambda _: respond) as (origin, log):
        yield origin, log


def held(path: Path) -> Held:
    [[one]] = snapshots.read(path).values()
    return one


def asked_for(log: list[Asked]) -> list[str]:
    """The addresses in their order, each once: what is asked about is then asked for."""
    return list(dict.fromkeys(asked.path.removeprefix("/in") for asked in log))


@pytest.mark.parametrize(
    ("link", "limits", "num_folders", "left"),
    [
        ("{n}/", {"max_pages": 5}, 5, {"max_pages": 1}),
        ("{n}/", {"max_depth": 3}, 4, {"max_depth": 1}),
        ("{n}/", {"max_depth": 100}, 24, {"deep_address": 2}),
        ("n/", {}, 4, {"repeated_segments": 1}),
        ("/in/{n}{n}{n}{n}/" + "n" * 2000 + "/", {}, 1, {"long_address": 1}),
    ],
)
def test_a_folder_without_end_at_an_address_stops_at_the_limits_of_the_crawl(
    tmp_path, link, limits, num_folders, left
):
    def endless(asked: Asked) -> Answer:
        if asked.path.endswith(".md"):
            return ok(f"# Of {asked.path}\n\n{asked.path} says: {WORDS}", "text/markdown")
        folder = link.format(n=asked.path.count("/"))
        return ok(f'<a href="{folder}">on</a> <a href="a.md">text</a>')

    with answering(endless) as (origin, log):
        out, changes = tmp_path / "out", at_address(origin, **limits)
        documents, _ = crawled(out, f"{origin}/in/", **changes)
    folders = [path for path in asked_for(log) if path.endswith("/")]
    assert len(folders) == num_folders
    assert len(documents) <= limits.get("max_pages", 1000)
    assert held(tmp_path / "out.snapshot.json").not_fetched == left


def test_files_of_an_address_beyond_the_limit_are_counted(tmp_path):
    def many(asked: Asked) -> Answer:
        links = "".join(f'<a href="{n}.md">x</a>' for n in range(9))
        return ok(links) if asked.path == "/in/" else ok(f"# {asked.path}\n\n{WORDS}", "text/plain")

    with answering(many) as (origin, log):
        changes = at_address(origin, max_pages=4)
        documents, _ = crawled(tmp_path / "out", f"{origin}/in/", **changes)
    assert sorted(documents) == ["0.md", "1.md", "2.md", "3.md"]
    assert asked_for(log) == ["/robots.txt", "/", "/0.md", "/1.md", "/2.md", "/3.md"]
    assert held(tmp_path / "out.snapshot.json").not_fetched == {"max_pages": 5}


def folders_of_two(asked: Asked) -> Answer:
    if asked.path.endswith("/"):
        return ok(
            '<a href="/in/a.md">a</a> <a href="/in/shut/b.md">b</a> <a href="/in/shut/">c</a>'
        )
    return ok(f"# Of {asked.path}\n\n{asked.path} says: {WORDS}", "text/markdown")


def test_files_at_an_address_are_asked_for_by_name_under_robots_txt_and_with_its_pause(
    tmp_path, monkeypatch
):
    slept: list[float] = []
    monkeypatch.setattr(remote.time, "sleep", slept.append)
    monkeypatch.setattr(remote.time, "monotonic", lambda: 0.0)
    rules = "User-agent: docent\nDisallow: /in/shut/\nCrawl-delay: 7\n"
    with answering(folders_of_two, rules) as (origin, log):
        documents, rejects = crawled(tmp_path / "out", f"{origin}/in/", **at_address(origin))
        assert list(documents) == ["a.md"] and rejects == {"shut/b.md": ("robots", "")}
        assert asked_for(log) == ["/robots.txt", "/", "/a.md"]
        assert {asked.headers["user-agent"] for asked in log} == {sections("x")[0].user_agent}
        assert slept == [0, 0, 7, 7]  # of robots.txt, which says so, the folder, the file twice

        free = at_address(origin, obey_robots=False)
        assert len(crawled(tmp_path / "free", f"{origin}/in/", **free)[0]) == 2
    with (
        answering(folders_of_two, "User-agent: *\nDisallow: /in/") as (origin, log),
        pytest.raises(PipelineError, match=r"the host's robots.txt forbids it: ask its owner, or"),
    ):
        crawled(tmp_path / "shut", f"{origin}/in/", **at_address(origin))
    assert asked_for(log) == ["/robots.txt"]


def test_a_pause_of_an_hour_between_files_is_an_error(tmp_path):
    with (
        answering(folders_of_two, "User-agent: *\nCrawl-delay: 3600\n") as (origin, log),
        pytest.raises(PipelineError, match=r"robots.txt asks for a pause of 3600 s: ask its owner"),
    ):
        crawled(tmp_path / "out", f"{origin}/in/", **at_address(origin))
    assert asked_for(log) == ["/robots.txt"]


def test_a_robots_txt_that_fails_forbids_all_files_and_one_that_is_missing_none(tmp_path):
    with answering(folders_of_two, (503, {}, "")) as (origin, log):
        with pytest.raises(PipelineError, match=r"robots.txt answers 503, which forbids everyth"):
            crawled(tmp_path / "out", f"{origin}/in/", **at_address(origin))
        assert asked_for(log) == ["/robots.txt"]
    with answering(folders_of_two, MISSING) as (origin, log):
        assert len(crawled(tmp_path / "none", f"{origin}/in/", **at_address(origin))[0]) == 2
        # It is asked for once a day, also by what is not let through now and is later.
        (tmp_path / "new").mkdir()
        with pytest.raises(PipelineError, match="allow_hosts"):
            crawled(tmp_path / "new" / "out", f"{origin}/in/")
        rules = [asked.path for asked in log].count("/robots.txt")
        crawled(tmp_path / "new" / "out", f"{origin}/in/", **at_address(origin))
        assert [asked.path for asked in log].count("/robots.txt") == rules + 1


def test_a_file_whose_server_fails_stays_and_one_that_is_gone_goes(tmp_path, monkeypatch):
    status = {"/in/a.md": 200, "/in/shut/b.md": 200}

    def failing(asked: Asked) -> Answer:
        found = folders_of_two(asked)
        return found if status.get(asked.path, 200) == 200 else (status[asked.path], {}, "")

    with answering(failing) as (origin, _):
        cfg, whole = sections(f"{origin}/in/", **at_address(origin, max_gone_rate=1.0))
        monkeypatch.setenv("DVC_ROOT", str(tmp_path))
        snapshot = tmp_path / "snapshot.json"
        snapshot.write_text("{}")
        [change] = fetching.refresh(cfg, whole, [whole], snapshot)
        assert change.new == ("a.md", "shut/b.md")
        status.update({"/in/a.md": 503, "/in/shut/b.md": 410})
        [change] = fetching.refresh(cfg, whole, [whole], snapshot)
        assert (change.unchanged, change.gone) == (1, ("shut/b.md",))
        assert held(snapshot).gone == {"shut/b.md": "http_410"}
        assert list(held(snapshot).pages) == ["a.md"]


def test_a_recording_at_an_address_is_written_down_whole_and_not_without_end(tmp_path, monkeypatch):
    sound = os.urandom(3_000_001)

    def heard(_: object, recording: Path) -> Iterator[str]:
        yield f"WEBVTT\n\n00:01.000 --> 00:03.000\n{WORDS} {recording.stat().st_size} bytes.\n"

    def talks(asked: Asked) -> Answer:
        return ok('<a href="a.mp3">x</a>') if asked.path == "/in/" else ok(sound, "audio/mpeg")

    monkeypatch.setattr(files.speech.Listener, "_cues", heard)
    model = {"path": str(whisper.make(tmp_path / "model")), **MODEL}
    with answering(talks) as (origin, _):
        changes = at_address(origin, max_file_mib=1, whisper=model)
        documents, rejects = crawled(tmp_path / "out", f"{origin}/in/", **changes)
        assert documents["a.mp3"].text.endswith("3000001 bytes."), rejects
        monkeypatch.setattr(files, "MAX_RECORDING_BYTES", 3_000_000)
        with pytest.raises(PipelineError, match="too_large 1"):
            crawled(tmp_path / "small", f"{origin}/in/", **changes)


def test_a_storage_is_walked_by_its_folders():
    from fsspec.implementations.memory import MemoryFileSystem

    MemoryFileSystem.store.clear()
    storage = remote._Storage("memory://bucket/in/", {})
    for name in ("a.md", "sub/b.md", "sub/deep/c.md", "n/n/n/n/n/d.md", "a b.txt"):
        storage._files.pipe(f"/bucket/in/{name}", b"words")
    cfg, _ = sections("x", max_pages=4)
    folder = storage.folder(Filter.of([], ["txt$"]))
    names, left = folders.walk(folder, storage.inside, storage.fault, cfg)
    assert [address for _, address in names] == ["a.md", "sub/b.md"]
    assert left == {"max_pages": 2}  # two folders more would be asked for
    assert b"".join(storage.read(names[1][0], 3)) == b"wor"
    MemoryFileSystem.store.clear()


def test_a_lowered_limit_holds_for_files_that_are_known(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text(f"{WORDS}\n" * 20_000)
    (tmp_path / "in" / "b.txt").write_text(WORDS)
    assert len(crawled(tmp_path / "out", tmp_path / "in", max_file_mib=2)[0]) == 2
    _, rejects = crawled(tmp_path / "out", tmp_path / "in", max_file_mib=1)
    assert rejects["a.txt"][0] == "too_large"


# --- marks in the later stages -----------------------------------------------------------------


def test_chunks_of_a_file_name_the_page_that_they_begin_on_and_those_inside():
    body = Draft()
    for number in range(1, 40):
        body.mark(f"page={number}")
        body.block(f"Page {number} says: {WORDS * 5}")
    page = body.page("w.pdf", "w")
    document = Document(
        id="d", url="w.pdf", title="w", text=page.text, source="s", headings=page.headings
    )
    products = {"retrieval": Product(chunk_tokens=150, overlap_tokens=0)}
    for method in ("recursive", "markdown", "code"):
        chunks = splitting.split(document, products, COUNT, method)["retrieval"]
        assert len(chunks) > 10
        for chunk in chunks:
            begun = page.text.encode()[: chunk.start].decode().count("says:")
            here = max(1, begun + chunk.text.startswith("Page "))
            assert (chunk.url, chunk.heading_path) == (f"w.pdf#page={here}", ())
            inside = chunk.text.count("Page ") - chunk.text.startswith("Page ")
            assert [anchor for _, anchor in chunk.marks] == [
                f"page={here + n}" for n in range(1, inside + 1)
            ]


def test_a_quote_names_the_page_the_slide_and_the_second_of_its_sentence(tmp_path):
    folder = tmp_path / "course"
    folder.mkdir()
    written = fpdf.FPDF()
    for line in ("A widget is small.", "Steel never rusts here.", "Its colour is green."):
        written.add_page()
        written.set_font("helvetica", size=11)
        written.cell(text=line)
    (folder / "w.pdf").write_bytes(bytes(written.output()))
    (folder / "deck.pptx").write_bytes(deck())
    (folder / "talk.srt").write_text(SRT)
    documents, _ = crawled(tmp_path / "out", folder)
    products = {"retrieval": Product(chunk_tokens=900, overlap_tokens=100)}
    chunks = [
        chunk
        for document in documents.values()
        for chunk in splitting.split(document, products, COUNT, "markdown")["retrieval"]
        if document.url != "deck.pptx"
    ]
    # By headings each slide is a chunk; recursively, all of them are one.
    chunks += splitting.split(documents["deck.pptx"], products, COUNT, "recursive")["retrieval"]
    assert sorted(chunk.url for chunk in chunks) == [
        "deck.pptx#slide=1",
        "talk.srt#t=1",
        "w.pdf#page=1",
    ]
    retrieval.build(chunks, tmp_path / "index", 1.5, 0.75)
    with retrieval.Index.open(tmp_path / "index") as index:
        for question, sentence, url in (
            ("Is a widget small?", "A widget is small.", "w.pdf#page=1"),
            ("What never rusts?", "Steel never rusts here.", "w.pdf#page=2"),
            ("Which colour is green?", "Its colour is green.", "w.pdf#page=3"),
            ("How large is large?", "| large | 40 |", "deck.pptx#slide=2"),
            ("Where to order in the shop?", "Order them [in the shop]", "deck.pptx#slide=4"),
            ("Who says hello and welcome?", "Hello and welcome.", "talk.srt#t=1"),
            ("Which pause came before?", "A pause came before.", "talk.srt#t=20"),
            ("What is the end?", "The end.", "talk.srt#t=3665"),
        ):
            said = quote(index, question, 1)
            assert said.text.startswith(sentence)
            assert [citation.url for citation in said.citations] == [url]
