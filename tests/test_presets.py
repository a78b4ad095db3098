"""The five presets: each composed as shipped, and run on a small body up to its examples."""

import json
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import test_crawl_files
import test_crawl_table
from sites import ROOT, link, ok, serving

from stages import crawl, llm, pipeline, split, synthesize
from stages.answer import embedding
from stages.core import config
from stages.core.model import Config as Model
from stages.core.records import Chunk, Document, Example
from stages.core.store import read
from stages.crawl import fetching


class Ran:
    """The stages crawl, split and synthesize of a preset."""

    def __init__(self, folder: Path, preset: str, *overrides: str) -> None:
        params = pipeline.compose([f"experiment={preset}", "embedder=none", *overrides])
        pipeline.check(params)

        def section(name: str, schema: Any) -> Any:
            return config.load(params, name, schema)

        cfg, source = section("crawl", crawl.Config), section("source", crawl.Source)
        snapshot = folder / "snapshot.json"
        snapshot.write_text("{}")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DVC_ROOT", str(folder))
            fetching.refresh(cfg, source, fetching.uncovered(cfg, source, snapshot), snapshot)
            crawl.run(cfg, source, snapshot, folder)
            documents = folder / "documents.jsonl"
            split.run(section("split", split.Config), section("model", Model), documents, folder)
            for name in ("review", "testset"):
                (folder / f"{name}.jsonl").touch()
            names = ("documents", "imported", "training", "retrieval", "review", "testset")
            synthesize.run(
                section("synthesize", synthesize.Config),
                section("teacher", llm.Config),
                section("embedder", embedding.Config),
                *(folder / f"{name}.jsonl" for name in names),
                folder / "out",
            )
        self.documents = list(read(documents, Document))
        self.chunks = list(read(folder / "retrieval.jsonl", Chunk))
        self.examples = [
            row
            for part in ("train", "validation", "test")
            for row in read(folder / "out" / f"{part}.jsonl", Example)
        ]
        assert self.examples and {row.url.partition("#")[0] for row in self.chunks} == {
            row.url.partition("#")[0] for row in self.documents
        }


def page(title: str, *blocks: str) -> str:
    """In words of its own, so that no page gives another one away."""
    draw = random.Random(title)
    words = ["".join(draw.choices(test_crawl_table.SYLLABLES, k=3)) for _ in range(40)]
    return (
        f"<!doctype html><title>{title}</title><main><h1>{title}</h1>"
        f"<p>{title} {' '.join(words)}.</p>{''.join(blocks)}</main>"
    )


def about(title: str, number: int) -> str:
    """A page of settings of its own."""
    draw = random.Random(number)
    rows = []
    for n in range(4):
        name, what, *words = (
            "".join(draw.choices(test_crawl_table.SYLLABLES, k=3)) for _ in "x" * 9
        )
        rows.append(
            f"<h2 id=s{n}>{name.title()} {what}</h2><p>The {name} {what} is {' '.join(words)}, "
            f"which is {number * 100 + n} by default.</p>"
        )
    return page(title, *rows)


@contextmanager
def site(*titles: str, script: str = "", **more: str) -> Iterator[str]:
    """A site on loopback, a page for each title; its address."""
    links = link(*(f"{title}.html" for title in titles), *(f"{name}.html" for name in more))

    def answers(origin: str) -> dict[str, Any]:
        pages = {"/": ok(page("Start", links)), "/docs/": ok(page("Home"))}
        pages |= {f"/{title}.html": ok(about(title, n)) for n, title in enumerate(titles, 1)}
        pages["/app.js"] = ok(script, "text/javascript")
        return pages | {f"/{name}.html": ok(body) for name, body in more.items()}

    with serving(answers) as (origin, _):
        yield f"{origin}/"


TITLES = ("Anvil", "Bellows", "Chisel", "Drill", "Epoxy", "Forge", "Gauge")
LOCAL = ("crawl.delay_s=0", "crawl.near_duplicate=null")
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_a_documentation_bot(tmp_path):
    with site(*TITLES) as url:
        ran = Ran(
            tmp_path, "docs_bot", f"source.url={url}", "source.allow_hosts=[127.0.0.1]", *LOCAL
        )
    assert f"{url}Anvil.html#s2" in {chunk.url for chunk in ran.chunks}
    assert len(ran.examples) > 20


def test_a_bloggers_bot_answers_what_readers_asked(tmp_path):
    rows = [test_crawl_table.faq(number) for number in range(12)]
    path = test_crawl_table.written(
        tmp_path, "csv", [{"question": q, "answer": a} for q, a in rows]
    )
    with site(*TITLES) as url:
        ran = Ran(
            tmp_path,
            "blog_qa",
            f"source.sources.0.url={url}",
            "source.sources.0.allow_hosts=[127.0.0.1]",
            f"source.sources.1.path={path}",
            *LOCAL,
        )
    assert {row.source for row in ran.documents} == {"posts", "questions"}
    asked = {row.question for row in ran.examples if row.kind == "imported"}
    assert len(asked) > 8 and asked <= {question for question, _ in rows}


def test_a_study_buddy_names_slide_page_and_minute(tmp_path):
    course = tmp_path / "course"
    course.mkdir()
    (course / "slides.pptx").write_bytes(test_crawl_files.deck())
    (course / "paper.pdf").write_bytes(test_crawl_files.paper())
    (course / "lecture.mp4").write_bytes(b"only its subtitles are read")
    (course / "lecture.srt").write_text(
        test_crawl_files.SRT.replace("The end.", "A gear turns at the speed that its teeth allow.")
    )
    (course / "notes.md").write_text(
        "# Notes\n\n## What a gear is\n\nA gear is a wheel with teeth that turns another one.\n\n"
        "## What a shaft is\n\nA shaft is a rod that carries the gears, and it turns with them.\n"
    )
    ran = Ran(tmp_path, "course_buddy", f"source.path={course}", *LOCAL)
    anchors = {chunk.url.partition("#")[2].partition("=")[0] for chunk in ran.chunks}
    assert {"slide", "page", "t"} <= anchors
    assert {row.url for row in ran.documents} == {
        "slides.pptx",
        "paper.pdf",
        "lecture.mp4",
        "notes.md",
    }


def test_a_code_base_bot_names_file_and_lines(tmp_path):
    ran = Ran(tmp_path, "codebase", f"source.path={ROOT / 'stages' / 'core'}", *LOCAL)
    text = (ROOT / "stages/core/store.py").read_text().split("\n")
    line = next(number for number, row in enumerate(text, 1) if row.startswith("def locate("))
    assert any(chunk.url.startswith(("store.py#L", "https://")) for chunk in ran.chunks)
    [locate] = [row for row in ran.documents if row.title.endswith("store.locate")]
    assert f"#L{line}-L" in locate.url


def test_a_bot_for_a_site_that_javascript_draws(tmp_path):
    if not shutil.which("chromium"):
        pytest.skip("needs Chromium: apt-get install chromium")
    drawn = about("Hammer", 8).partition("<main>")[2].partition("</main>")[0]
    shell = "<!doctype html><title>Hammer</title><div id=app></div><script src=app.js></script>"
    script = f"document.getElementById('app').innerHTML = {json.dumps(f'<main>{drawn}</main>')}"
    with site(*TITLES, Hammer=shell, script=script) as url:
        ran = Ran(
            tmp_path, "company_site", f"source.url={url}", "source.allow_hosts=[127.0.0.1]", *LOCAL
        )
    [hammer] = [row for row in ran.documents if row.url.endswith("Hammer.html")]
    assert "which is 802 by default" in hammer.text
