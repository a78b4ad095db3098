"""A refresh: conditional requests, what changed, what is gone, and a stage without any network."""

import contextlib
import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
import yaml
from dag import copy_of_the_tree, sh
from sites import (
    MISSING,
    PUBLIC,
    ROOT,
    WORDS,
    Answer,
    Asked,
    Responder,
    link,
    moved,
    ok,
    page,
    parse_here,
    refreshed,
    responding,
    sections,
    snapshot_beside,
)

from stages import crawl
from stages.core import config
from stages.core.errors import PipelineError
from stages.core.records import Document
from stages.core.store import read
from stages.crawl import fetching, snapshot, workers
from stages.crawl.pages import Answer as Kept
from stages.crawl.pages import Pages
from stages.crawl.snapshot import Held, compare

OLD = formatdate(time.time() - 86400, usegmt=True)


class Changing:
    """A site whose every page has a server of another kind behind it, in versions."""

    def __init__(self) -> None:
        self.version = 1

    def __call__(self, asked: Asked) -> Answer:
        name = asked.path.removeprefix("/docs/").removesuffix(".html")
        return getattr(self, f"_{name or 'start'}", lambda asked: MISSING)(asked)

    def _start(self, asked: Asked) -> Answer:
        if self.version == 4:
            return ok(page("Under maintenance"))
        names = [name[1:] for name in vars(Changing) if name[0] == "_" and name[1] != "_"]
        hidden = {"start", "child", "unlinked" if self.version > 1 else "", "new"}
        hidden -= {"new"} if self.version > 1 else set()
        return ok(page("Start", link(*(f"{name}.html" for name in names if name not in hidden))))

    def _etag(self, asked: Asked) -> Answer:
        if asked.headers.get("if-none-match") == '"e"':
            return 304, {"ETag": '"e"'}, ""
        return ok(page("Etag"), ETag='"e"')

    def _modified(self, asked: Asked) -> Answer:
        if asked.headers.get("if-modified-since") == OLD:
            return 304, {}, ""
        return ok(page("Modified"), Last_Modified=OLD)

    def _young(self, asked: Asked) -> Answer:
        """Changed within the second in which it was asked: its time tells nothing."""
        if "if-modified-since" in asked.headers:
            return 304, {}, ""
        now = formatdate(time.time() + 1, usegmt=True)
        return ok(page("Young", f"<p>Version {self.version}</p>"), Last_Modified=now)

    def _plain(self, asked: Asked) -> Answer:
        return ok(page("Plain", f"<p>Version {self.version}</p>"))

    def _still(self, asked: Asked) -> Answer:
        return ok(page("Still"))

    def _wrong(self, asked: Asked) -> Answer:
        """A 304 about another version than the one that was asked about."""
        if "if-none-match" in asked.headers:
            return 304, {"ETag": f'"{self.version}"'}, ""
        body = page("Wrong", f"<p>Version {self.version}</p>")
        return ok(body, ETag=f'"{self.version}"')

    def _blunt(self, asked: Asked) -> Answer:
        """A cache that answers 304 to whoever does not forbid it."""
        if "cache-control" not in asked.headers:
            return 304, {}, ""
        return ok(page("Blunt"))

    def _mute(self, asked: Asked) -> Answer:
        return 304, {}, ""

    def _liar(self, asked: Asked) -> Answer:
        if "if-none-match" in asked.headers:
            return 304, {"ETag": '"l"'}, ""
        return ok(page("Liar", f"<p>Version {self.version}</p>"), ETag='"l"')

    def _flaky(self, asked: Asked) -> Answer:
        if self.version == 2:
            return 503, {"Retry-After": "0"}, ""
        return ok(page("Flaky", link("child.html")))

    def _child(self, asked: Asked) -> Answer:
        return ok(page("Child"))

    def _gone(self, asked: Asked) -> Answer:
        return (410, {}, "") if self.version == 2 else ok(page("Gone"))

    def _missing(self, asked: Asked) -> Answer:
        return MISSING if self.version > 1 else ok(page("Missing"))

    def _moved(self, asked: Asked) -> Answer:
        return moved("etag.html", 301) if self.version > 1 else ok(page("Moved"))

    def _unlinked(self, asked: Asked) -> Answer:
        return ok(page("Unlinked"))

    def _new(self, asked: Asked) -> Answer:
        return ok(page("New"))


@contextlib.contextmanager
def changing() -> Iterator[tuple[Changing, str, list[Asked]]]:
    site = Changing()

    def respond(origin: str) -> Responder:
        return site

    with responding(respond) as (origin, log):
        yield site, origin, log


def held(out: Path) -> Held:
    [one] = snapshot.read(snapshot_beside(out))["web"]
    return one


def names(urls: "tuple[str, ...] | dict[str, str]", origin: str) -> list[str]:
    return [url.removeprefix(f"{origin}/docs/").removesuffix(".html") for url in sorted(urls)]


def test_a_refresh_finds_what_is_new_changed_and_gone_whatever_the_server_says(
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    with changing() as (site, origin, log):
        settings = {"url": f"{origin}/docs/", "public_url": PUBLIC}

        first = refreshed(out, **settings)
        everything = " blunt child etag flaky gone liar missing modified moved plain still unlinked"
        assert names(first.new, origin) == [*everything.split(" "), "wrong", "young"]
        assert (first.changed, first.unchanged, first.gone) == ((), 0, ())
        assert held(out).left_out == {
            f"{origin}/docs/mute.html": ("http_304", f"linked from {PUBLIC}")
        }
        once = snapshot_beside(out).read_bytes()
        assert refreshed(out, **settings).unchanged == 15
        del log[:]

        site.version = 2
        second = refreshed(out, **settings)
        assert names(second.new, origin) == ["new"]
        assert names(second.changed, origin) == ["", "plain", "wrong", "young"]
        assert names(second.gone, origin) == ["gone", "missing", "moved", "unlinked"]
        assert held(out).gone == {
            f"{origin}/docs/{name}.html": reason
            for name, reason in (
                ("gone", "http_410"),
                ("missing", "http_404"),
                ("moved", "redirect"),
                ("unlinked", "unlinked"),
            )
        }
        assert {"flaky", "child", "liar"} <= set(names(held(out).pages, origin))
        conditional = {a.path for a in log if {"if-none-match", "if-modified-since"} & {*a.headers}}
        assert conditional == {
            f"/docs/{name}.html" for name in ("etag", "liar", "modified", "wrong")
        }
        assert snapshot_beside(out).read_bytes() != once

        site.version = 3
        third = refreshed(out, **settings, full_fetch_days=0.0)
        assert "liar" in names(third.changed, origin)  # its word is not taken any more
        assert names(third.new, origin) == ["gone"]
        assert "gone" not in names(held(out).gone, origin)  # it is back

        site.version, before = 4, snapshot_beside(out).read_bytes()
        with pytest.raises(PipelineError, match=r"crawl.max_gone_rate: 0.9\d .*unlinked 1"):
            refreshed(out, **settings)
        assert snapshot_beside(out).read_bytes() == before

    # The site is down: the stage does not mind.
    cfg, source = sections(**settings, max_reject_rate=1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(tmp_path))
        crawl.run(cfg, source, snapshot_beside(out), out)
    documents = {row.title: row for row in read(out / "documents.jsonl", Document)}
    assert "Version 3" in documents["Liar"].text
    assert "Missing" not in documents and "Gone" in documents


# --- the stage ---------------------------------------------------------------------------------


def run_failure(out: Path, **changes: object) -> str:
    cfg, source = sections(url="https://x.org/", **changes)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PipelineError) as caught:
        patch.setenv("DVC_ROOT", str(out.parent))
        crawl.run(cfg, source, snapshot_beside(out), out)
    return str(caught.value)


def whole(**changes: object) -> Held:
    cfg, source = sections(url="https://x.org/")
    settings = crawl.source.digest(cfg, source)
    return Held(
        settings=settings, pages={"https://x.org/": "0" * 64}, left_out={}, gone={}, not_fetched={}
    )


def test_a_stage_without_a_snapshot_of_its_source_names_the_remedy(tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = run_failure(out)
    assert "does not hold the source 'web': `make refresh` fetches it" in line
    snapshot.write(snapshot_beside(out), {"web": [whole()]})
    assert "holds with other settings the source 'web'" in run_failure(out, max_pages=3)
    assert "lacks the page https://x.org/: `make refresh`" in run_failure(out)
    snapshot_beside(out).write_text('{"web": {"pages": []}}')
    assert "not a snapshot of this version" in run_failure(out)


def test_a_snapshot_is_sorted_and_has_no_times(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.json"
    one = whole().model_copy(update={"pages": {"https://x.org/b": "1", "https://x.org/a": "2"}})
    other = one.model_copy(update={"settings": "0"})
    snapshot.write(path, {"web": [one, other]})
    first = path.read_bytes()
    assert [row["settings"] for row in json.loads(first)["web"]] == ["0", one.settings]
    assert list(json.loads(first)["web"][0]["pages"]) == ["https://x.org/a", "https://x.org/b"]
    time.sleep(0.01)
    snapshot.write(path, {"web": snapshot.read(path)["web"]})
    assert path.read_bytes() == first


def test_a_change_counts_every_page_once() -> None:
    old = whole().model_copy(update={"pages": {"a": "1", "b": "1", "c": "1"}})
    new = whole().model_copy(update={"pages": {"b": "1", "c": "2", "d": "1"}})
    change = compare("web", old, new)
    assert (change.new, change.changed, change.unchanged, change.gone) == (
        ("d",),
        ("c",),
        1,
        ("a",),
    )


# --- the store ---------------------------------------------------------------------------------


def test_what_was_kept_is_there_for_another_process_at_once(tmp_path: Path) -> None:
    with Pages(tmp_path / "pages.sqlite") as pages, Pages(tmp_path / "pages.sqlite") as other:
        one = pages.begin("web", "s")
        one.keep(Kept("u", body=b"<p>x", media_type="text/html", etag="e"))
        assert other.begin("web", "s").number == one.number  # not ended: it is gone on with
        answered = other.crawl(one.source, one.number).answered("u")
        assert answered is not None and other.body(answered.digest) == pages.body(answered.digest)
        assert pages.body(answered.digest).text() == "<p>x"  # type: ignore[union-attr]
        one.end(whole=True)
        assert other.begin("web", "s").number != one.number
    with contextlib.closing(sqlite3.connect(tmp_path / "pages.sqlite")) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_killed_crawl_is_not_gone_on_with_under_other_settings_or_after_a_day(
    tmp_path: Path,
) -> None:
    with Pages(tmp_path / "pages.sqlite") as pages:
        first = pages.begin("web", "s")
        assert pages.begin("web", "other").number != first.number
        assert pages.begin("other", "s").number != first.number
        assert pages.begin("web", "s").number == first.number
        pages._db.execute("UPDATE crawls SET began = began - 90000")
        assert pages.begin("web", "s").number != first.number


def test_a_fault_that_may_pass_keeps_the_page_and_one_that_lasts_does_not(tmp_path: Path) -> None:
    with Pages(tmp_path / "pages.sqlite") as pages:
        first = pages.begin("web", "s")
        first.keep(Kept("u", body=b"x"), Kept("v", body=b"x"), Kept("w", body=b"x"))
        first.end(whole=True)
        second = pages.begin("web", "s")
        second.keep(Kept("u", 503, reason="http_503", passing=True))
        second.keep(Kept("v", 404, reason="http_404"))
        rows = {row.url: bool(row.digest) for row in second.all_answered()}
        assert rows == {"u": True, "v": False}
        second.end(whole=True)
        assert [second.known(url) is not None for url in "uvw"] == [True, False, False]


def test_a_refresh_that_is_killed_behind_its_snapshot_asks_for_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def killed(self: object, whole: bool) -> None:
        raise KeyboardInterrupt

    with changing() as (_, origin, log):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("stages.crawl.pages.Crawl.end", killed)
            refreshed(out, url=f"{origin}/docs/")
        written, count = snapshot_beside(out).read_bytes(), len(log)
        assert refreshed(out, url=f"{origin}/docs/").new == ()
    assert snapshot_beside(out).read_bytes() == written
    assert len(log) == count


def test_what_one_run_fetches_leaves_another_of_the_same_name_as_it_is(tmp_path: Path) -> None:
    def respond(origin: str) -> Responder:
        pages = {f"/{site}/": page(f"Site {site}") for site in ("one", "two")}

        def answer(asked: Asked) -> Answer:
            if "if-none-match" in asked.headers:
                return 304, {"ETag": '"e"'}, ""
            return ok(pages[asked.path], ETag='"e"') if asked.path in pages else MISSING

        return answer

    path = tmp_path / "snapshot.json"
    path.write_text("{}")
    with pytest.MonkeyPatch.context() as patch, responding(respond) as (origin, log):
        patch.setenv("DVC_ROOT", str(tmp_path))
        points = [sections(url=f"{origin}/{site}/") for site in ("one", "two")]

        def refresh(point: int, keep_others: bool = True) -> fetching.Change:
            cfg, part = points[point]
            [change] = fetching.refresh(cfg, part, [part], path, keep_others)
            return change

        assert [len(refresh(point).new) for point in (0, 1)] == [1, 1]
        assert len(snapshot.read(path)["web"]) == 2
        for number, (cfg, part) in enumerate(points):
            assert not fetching.uncovered(cfg, part, path)
            out = tmp_path / f"out{number}"
            crawl.run(cfg, part, path, out)
            [document] = read(out / "documents.jsonl", Document)
            assert document.title == f"Site {('one', 'two')[number]}"
        del log[:]
        again = [refresh(point) for point in (0, 1)]
        assert [(change.unchanged, change.new, change.gone) for change in again] == [
            (1, (), ())
        ] * 2
        asked = [row for row in log if not row.path.endswith((".txt", ".xml"))]
        assert all("if-none-match" in row.headers for row in asked) and len(asked) == 2

        refresh(0, keep_others=False)
        assert [part for _, part in points if fetching.uncovered(points[0][0], part, path)] == [
            points[1][1]
        ]


def test_a_killed_crawl_goes_on_whatever_another_of_the_same_name_did_since(tmp_path: Path) -> None:
    with Pages(tmp_path / "pages.sqlite") as pages:
        killed, other = pages.begin("docs", "one"), pages.begin("docs", "two")
        killed.keep(Kept("u", body=b"of one", etag="e"), Kept("v", body=b"of one"))
        other.keep(Kept("u", body=b"of two", etag="e"))
        other.end(whole=True)
        resumed = pages.begin("docs", "one")
        assert resumed == killed
        assert [row.url for row in resumed.all_answered()] == ["u", "v"]
        answered, known = resumed.answered("u"), resumed.known("u")
        assert answered is not None and known is not None and answered.digest == known.digest
        body = resumed.body(known.digest)
        assert body is not None and body.data == b"of one"


def test_a_source_that_fails_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch, changing() as (_, origin, _log):
        patch.setenv("DVC_ROOT", str(tmp_path))
        path = tmp_path / "snapshot.json"
        path.write_text("{}")
        cfg, good = sections(url=f"{origin}/docs/", name="good")
        _, bad = sections(url=f"{origin}/nothing/", name="bad")
        with pytest.raises(PipelineError, match="answers 404"):
            fetching.refresh(cfg, good, [good, bad], path)
        assert list(snapshot.read(path)) == ["good"]


# --- forgetting --------------------------------------------------------------------------------

DAY_S = 24 * 3600


def files_of(folder: Path) -> tuple[crawl.Config, crawl.Source]:
    params = {
        section: yaml.safe_load((ROOT / f"conf/{section}/{option}.yaml").read_text())
        for section, option in (("crawl", "default"), ("source", "files"))
    }
    params["crawl"] |= {"min_chars": 10, "near_duplicate": None, "max_gone_rate": 1.0}
    params["source"] |= {"path": str(folder), "name": folder.name}
    return (
        config.load(params, "crawl", crawl.Config),
        config.load(params, "source", crawl.Source),
    )


def body(name: str) -> bytes:
    """What no packing shortens: it stands in the file as it is."""
    return random.Random(name).randbytes(200)


def digests_of(pages: Pages) -> set[str]:
    return {digest for (digest,) in pages._db.execute("SELECT digest FROM bodies")}


def filled(path: Path) -> tuple[dict[str, str], dict[tuple[str, str], list[str]]]:
    """A store of pages, each named in another way; their digests, and what the snapshot names."""
    with Pages(path) as pages:
        first = pages.begin("docs", "now")
        first.keep(*(Kept(url, body=body(url)) for url in ("gone", "held", "edited", "same")))
        other, same = pages.begin("faq", "now"), Kept("copy", body=body("same"))
        other.keep(Kept("mine", body=body("mine")), same)
        for crawl_, began in (("week", 7), ("year", 365), ("older", 365)):
            by_other = pages.begin("docs", crawl_)
            by_other.keep(Kept(crawl_, body=body(crawl_)))
            by_other.end(whole=True)
            at = time.time() - began * DAY_S
            pages._db.execute("UPDATE crawls SET began = ? WHERE id = ?", (at, by_other.number))
        digests = {row.url: row.digest for c in (first, other) for row in c.all_answered()}
        for name, settings in (("docs", "week"), ("docs", "year"), ("docs", "older")):
            known = pages.crawl(f"{name} {settings}", 0).known(settings)
            assert known is not None
            digests[settings] = known.digest
        first.end(whole=True)
        other.end(whole=True)
        again = pages.begin("docs", "now")
        again.keep(
            Kept("gone", 410, reason="http_410"),
            Kept("held", 404, reason="http_404"),  # the refresh that found it did not end
            Kept("edited", body=body("new version")),
            Kept("same", 404, reason="http_404"),
        )
        again.end(whole=True)
        new = again.known("edited")
        assert new is not None and len(digests_of(pages)) == len(set(digests.values())) + 1
    digests["new version"] = new.digest
    held = {("docs", "now"): [digests["held"], new.digest], ("docs", "older"): []}
    return digests, held


def raw(path: Path) -> bytes:
    """All that stands in the file, and in its log."""
    return b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))


def test_what_is_gone_leaves_the_file_and_what_is_named_anywhere_stays(tmp_path: Path) -> None:
    path = tmp_path / "pages.sqlite"
    digests, held = filled(path)
    heard: list[str] = []
    with Pages(path) as pages:
        assert all(body(name) in raw(path) for name in digests if name != "copy")
        assert pages.forget(held, heard.extend) == 3
        left = {name for name, digest in digests.items() if digest in digests_of(pages)}
        assert left == {"held", "same", "copy", "mine", "week", "older", "new version"}
        assert sorted(heard) == sorted(digests[name] for name in ("gone", "edited", "year"))
        for name in digests:
            assert (body(name) in raw(path)) == (name in left - {"copy"})
        assert pages.crawl("docs older", 0).known("older") is not None
        assert pages.crawl("docs year", 0).known("year") is None
        assert pages.forget(held, heard.extend) == 0
        assert pages.forget({}, heard.extend) == 2  # held by nothing else: held, older


def test_a_deletion_that_overwrites_nothing_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "pages.sqlite"
    _, held = filled(path)
    with Pages(path) as pages:
        pages._db.execute("PRAGMA secure_delete=OFF")
        assert pages.forget(held, lambda _: None) == 3
        assert body("gone") in raw(path)


def test_a_store_that_is_killed_while_it_forgets_has_lost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pages.sqlite"
    digests, held = filled(path)
    script = (
        "import os, signal, sys; from pathlib import Path; from stages.crawl.pages import Pages\n"
        f"Pages(Path(sys.argv[1])).forget({held!r}, lambda _: os.kill(os.getpid(), signal.SIGKILL))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    with Pages(path) as pages:
        assert digests_of(pages) == set(digests.values())
        assert pages.forget(held, lambda _: None) == 3


def test_a_refresh_forgets_a_file_and_what_it_was_parsed_to(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    words = {name: f"{name} {random.Random(name).randbytes(40).hex()}" for name in ("gone", "both")}
    for folder in folders:
        folder.mkdir()
        (folder / "both.md").write_text(f"# Both\n\n{WORDS}{words['both']}")
    (folders[0] / "gone.md").write_text(f"# Gone\n\n{WORDS}{words['gone']}")
    path, parsed = tmp_path / "snapshot.json", tmp_path / ".cache/pages/parsed.sqlite"
    path.write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(tmp_path))
        patch.setattr(workers, "parse", parse_here)
        parts = [files_of(folder) for folder in folders]

        def refresh() -> None:
            for cfg, part in parts:
                fetching.refresh(cfg, part, [part], path)
                crawl.run(cfg, part, path, tmp_path / "out")

        refresh()
        assert all(said.encode() in raw(parsed) for said in words.values())
        (folders[0] / "gone.md").unlink()
        (folders[0] / "both.md").unlink()  # the other folder still has it
        (folders[0] / "new.md").write_text(f"# New\n\n{WORDS}")
        refresh()
        assert [said.encode() in raw(parsed) for said in words.values()] == [False, True]
        with fetching.open_pages() as pages:
            texts = [pages.body(digest) for digest in digests_of(pages)]
        assert sorted(text.text().split()[1] for text in texts if text) == ["Both", "New"]


# --- the commands ------------------------------------------------------------------------------


@pytest.mark.slow
def test_run_fetches_what_is_missing_and_dvc_names_the_remedy(tmp_path: Path) -> None:
    project = copy_of_the_tree(tmp_path)
    (project / "data/site").mkdir()  # a dependency that this source does not read

    def respond(origin: str) -> Responder:
        return lambda asked: ok(page("Start")) if asked.path == "/docs/" else MISSING

    with responding(respond) as (origin, log):
        site = ["source=web", f"source.url={origin}/docs/", "source.allow_hosts=[127.0.0.1]"]
        sh(project, sys.executable, "-m", "stages", "params", *site)
        failed = sh(project, "dvc", "repro", "-s", "crawl", check=False)
        assert failed.returncode != 0
        assert "does not hold the source 'web': `make refresh` fetches it" in failed.stderr
        assert log == []  # DVC never fetches

        missing = (
            "import sys; from stages import pipeline; words = sys.argv[1:];"
            "pipeline._refresh_missing(pipeline.compose(words), words)"
        )
        fetched = sh(project, sys.executable, "-c", missing, *site)
        assert "web: fetching source.url" in fetched.stderr and "web: 1 new" in fetched.stderr
        assert f"new      {origin}/docs/" in fetched.stdout
        count = len(log)
        assert sh(project, sys.executable, "-c", missing, *site).stderr == ""
        assert len(log) == count  # the snapshot holds it

        said = sh(project, sys.executable, "-m", "stages", "refresh", "--json", *site)
        (change,) = json.loads(said.stdout)
        assert (change["source"], change["unchanged"], change["gone"]) == ("web", 1, [])
    sh(project, "dvc", "repro", "-s", "crawl")  # the site is down
    rows = read(project / "data/crawl/documents.jsonl", Document)
    assert [row.url for row in rows] == [f"{origin}/docs/"]


def test_several_sources_are_read_together(tmp_path: Path) -> None:
    folders = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "index.html").write_text(page(f"Start of {name}"))
        (folder / "docs").mkdir()
        (folder / "docs/index.html").write_text(page(f"Navigation of {name}"))
        folders.append(folder)
    _, web = sections()
    rows = [
        web.model_dump() | {"name": f.name, "serve_dir": str(f), "public_url": f"{PUBLIC}{f.name}"}
        for f in folders
    ]
    params = {"source": {"kind": "many", "sources": rows}}
    cfg, _ = sections(near_duplicate=None)
    source = config.load(params, "source", crawl.Source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_ROOT", str(tmp_path))
        metrics = crawl.run(cfg, source, snapshot_beside(tmp_path / "out"), tmp_path / "out")
    assert metrics["num_documents"] == 4
    found = {(row.source, row.title) for row in read(tmp_path / "out/documents.jsonl", Document)}
    assert ("one", "Start of one") in found and ("two", "Navigation of two") in found
    rows[1]["name"] = "one"
    with pytest.raises(PipelineError, match="two sources are named one: each needs its own"):
        config.load(params, "source", crawl.Source)
