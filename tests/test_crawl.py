"""The crawl stage, against real servers on loopback and real pages."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sites import (
    PUBLIC,
    ROOT,
    WORDS,
    Answer,
    crawled,
    link,
    moved,
    ok,
    page,
    sections,
    serving,
    snapshot_beside,
)

from stages import crawl
from stages.core import config, progress
from stages.core.errors import PipelineError
from stages.core.records import Reject
from stages.core.store import read
from stages.crawl.extract import extract
from stages.crawl.site import Filter, Site

# --- a site with everything planted ------------------------------------------------------------


def planted(origin: str) -> dict[str, Answer]:
    start = page(
        "Start",
        link("a.html", "a.html#part", "./a.html?", "b.html?x=1&y=2", "b.html?y=2&x=1"),
        link("secret/x.html", "../outside.html", "//127.0.0.2/docs/z.html", "/docsother/"),
        link(f"{origin}/elsewhere.html", f"{origin}/docs/absolute.html", f"{PUBLIC}known.html"),
        link("moved.html", "twice.html", "leaves.html", "loop1.html", "gone.html", "broken.html"),
        link("data", "picture.png", "notes.TXT", "short.html", "print.html", "misled.html"),
        link("mailto:a@b.c", "javascript:void(0)", "http://[bad", "ftp://127.0.0.1/docs/f.html"),
        link("index.html", "http://127.0.0.1:99999/docs/", "%2e%2e/outside.html", "deep1.html"),
        link("latin.html", "based.html", "refresh.html", "a.html"),
        "<p>Run it at http://127.0.0.1:5000 yourself.</p>",
    )
    return {
        "/robots.txt": (
            200,
            {"Content-Type": "text/plain"},
            "User-agent: *\nDisallow: /docs/secret/",
        ),
        "/docs/": ok(start),
        "/docs/index.html": ok(start),
        "/docs/a.html": ok(page("A", link("#part", "b.html?x=1&y=2#top", "../outside.html"))),
        "/docs/b.html?x=1&y=2": ok(page("B")),
        "/docs/absolute.html": ok(page("Absolute")),
        "/docs/known.html": ok(page("Known")),
        "/docs/secret/x.html": ok(page("Secret")),
        "/docs/moved.html": moved("/docs/arrived.html"),
        "/docs/twice.html": moved("moved.html"),
        "/docs/arrived.html": ok(page("Arrived")),
        "/docs/leaves.html": moved("/outside.html"),
        "/docs/loop1.html": moved("loop2.html"),
        "/docs/loop2.html": moved("loop1.html"),
        "/docs/broken.html": (500, {"Content-Type": "text/html"}, "<p>sorry</p>"),
        "/docs/data": ok('{"a": 1}', "application/json"),
        "/docs/picture.png": ok("no", "image/png"),
        "/docs/notes.TXT": ok("no", "text/plain"),
        "/docs/short.html": ok("<main><h1>Short</h1></main>"),
        "/docs/print.html": ok(
            page("A", "<p>Printed.</p>", head="<link rel=canonical href='a.html'>")
        ),
        "/docs/misled.html": ok(
            "<head><link rel=canonical href='/docs/'></head><main><h1>Misled</h1>"
            f"<p>{WORDS.upper()}</p><p>{WORDS.lower()}</p></main>"
        ),
        "/docs/deep1.html": ok(page("Deep one", link("deep2.html"))),
        "/docs/deep2.html": ok(page("Deep two", link("deep3.html"))),
        "/docs/deep3.html": ok(page("Deep three")),
        "/docs/latin.html": ok(page("Latin", "<p>Crème brûlée</p>")),
        "/docs/based.html": ok(page("Based", link("inner.html"), head="<base href='sub/'>")),
        "/docs/sub/inner.html": ok(page("Inner")),
        "/docs/refresh.html": ok(
            "<head><meta http-equiv=refresh content='0; url=fresh.html'></head><p>Wait"
        ),
        "/docs/fresh.html": ok(page("Fresh")),
    }


class Crawled:
    def __init__(self, out: Path) -> None:
        with serving(planted) as (origin, self.log):
            self.documents, self.rejects = crawled(
                out,
                url=f"{origin}/docs/",
                public_url=PUBLIC.rstrip("/"),
                name="planted",
                max_depth=2,
                max_reject_rate=0.5,
            )
        self.origin = origin
        self.text = (out / "documents.jsonl").read_text()
        self.files = {file.name: file.read_bytes() for file in sorted(out.iterdir())}

    def reason(self, name: str) -> str:
        return self.rejects[PUBLIC + name].reason


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Crawled:
    return Crawled(tmp_path_factory.mktemp("crawl"))


def test_every_page_of_the_site_is_a_document_once(site: Crawled) -> None:
    names = sorted(url.removeprefix(PUBLIC) for url in site.documents)
    assert names == [
        "",
        "a.html",
        "absolute.html",
        "arrived.html",
        "b.html?x=1&y=2",
        "based.html",
        "deep1.html",
        "deep2.html",
        "fresh.html",
        "known.html",
        "latin.html",
        "misled.html",
        "sub/inner.html",
    ]


def test_nothing_outside_of_the_folder_or_forbidden_is_asked_for(site: Crawled) -> None:
    asked = [path for path in site.log if not path.startswith("/docs/")]
    assert asked == ["/robots.txt"]
    assert not [path for path in site.log if "secret" in path or ".." in path or "%2e" in path]
    assert not [path for path in site.log if path.endswith((".png", ".TXT"))]


def test_an_address_is_asked_for_once_however_it_is_spelled(site: Crawled) -> None:
    asked = [path for path in site.log if path != "/docs/broken.html"]
    assert sorted(asked) == sorted(set(asked))
    assert site.log.count("/docs/broken.html") == 3  # an error of the server may pass


def test_what_gives_no_document_is_a_reject_with_its_reason(site: Crawled) -> None:
    reasons = {url.removeprefix(PUBLIC): row.reason for url, row in site.rejects.items()}
    assert reasons == {
        "broken.html": "http_500",
        "data": "not_html",
        "gone.html": "http_404",
        "index.html": "duplicate",
        "leaves.html": "outside",
        "loop1.html": "redirect",
        "loop2.html": "redirect",
        "moved.html": "redirect",
        "print.html": "duplicate",
        "refresh.html": "too_short",
        "secret/x.html": "robots",
        "short.html": "too_short",
        "twice.html": "redirect",
    }


def test_a_reject_says_what_a_team_needs_to_mend_it(site: Crawled) -> None:
    assert site.rejects[PUBLIC + "gone.html"].detail == f"{PUBLIC}gone.html: linked from {PUBLIC}"
    assert site.rejects[PUBLIC + "moved.html"].detail.endswith(f": to {PUBLIC}arrived.html")
    assert site.rejects[PUBLIC + "print.html"].detail.endswith(f": of {PUBLIC}a.html")
    assert site.rejects[PUBLIC + "data"].detail.endswith(": application/json")


def test_no_address_of_the_crawl_reaches_the_files(site: Crawled) -> None:
    everything = b"".join(site.files.values()).decode()
    assert site.origin not in everything
    assert site.origin.removeprefix("http://") not in everything
    # An address that a page's author wrote as text is text.
    assert re.findall(r"127\.0\.0\.1\S*", site.text) == ["127.0.0.1:5000"]


def test_links_are_absolute_and_public(site: Crawled) -> None:
    text = site.documents[PUBLIC + "a.html"].text
    assert f"[there]({PUBLIC}a.html#part)" in text
    assert f"[there]({PUBLIC}b.html?x=1&y=2#top)" in text
    assert "See there." in text  # on the crawled host, outside of what is public


def test_a_page_that_names_the_home_page_as_canonical_is_kept_when_its_text_differs(
    site: Crawled,
) -> None:
    assert site.documents[PUBLIC + "misled.html"].title == "Misled"


def test_navigation_and_footers_are_no_text(site: Crawled) -> None:
    assert "Home navigation" not in site.text
    assert "Copyright" not in site.text


def test_documents_are_sorted_and_identified_by_their_public_address(site: Crawled) -> None:
    assert list(site.documents) == sorted(site.documents)
    ids = [row.id for row in site.documents.values()]
    assert len(set(ids)) == len(ids)
    assert {row.source for row in site.documents.values()} == {"planted"}


def test_equal_sites_give_equal_bytes_whatever_the_port_the_timing_and_the_hash_seed(
    site: Crawled, tmp_path: Path
) -> None:
    script = (
        "import json, sys; from pathlib import Path; from stages import crawl;"
        "from sites import refresh_and_run;"
        "from stages.core import config; p = json.loads(sys.argv[1]);"
        "refresh_and_run(Path(sys.argv[2]), config.load(p, 'crawl', crawl.Config),"
        "config.load(p, 'source', crawl.Source))"
    )

    def wait_s(path: str) -> float:
        return (hash(path) % 7) / 100  # another order of answers in every process

    with serving(planted, wait_s) as (origin, log):
        cfg, source = sections(
            url=f"{origin}/docs/",
            public_url=PUBLIC,
            name="planted",
            max_depth=2,
            max_reject_rate=0.5,
            concurrent_requests=2,
        )
        params = json.dumps({"crawl": cfg.model_dump(), "source": source.model_dump()})
        paths = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
        environment = os.environ | {"PYTHONHASHSEED": "4711", "PYTHONPATH": paths}
        subprocess.run(
            [sys.executable, "-c", script, params, str(tmp_path)],
            check=True,
            cwd=ROOT,
            env=environment,
        )
    assert log
    assert {file.name: file.read_bytes() for file in sorted(tmp_path.iterdir())} == site.files


# --- limits ------------------------------------------------------------------------------------


def test_a_full_crawl_takes_the_first_pages_by_depth_and_address(tmp_path: Path) -> None:
    with serving(planted) as (origin, log):
        documents, rejects = crawled(
            tmp_path,
            url=f"{origin}/docs/",
            public_url=PUBLIC,
            max_pages=3,
            include=[r"^/docs/(a|absolute|deep\d)\.html$"],
            exclude=["deep2"],
        )
    assert sorted(documents) == [PUBLIC + "a.html", PUBLIC + "absolute.html"]
    assert rejects[PUBLIC].reason == "excluded"  # the start page is read for its links
    assert [path for path in sorted(log) if path.startswith("/docs/")] == [
        "/docs/",
        "/docs/a.html",
        "/docs/absolute.html",
    ]


def test_a_page_that_does_not_answer_in_time_is_a_counted_reject(tmp_path: Path) -> None:
    answers = {"/docs/": ok(page("Start", link("slow"))), "/docs/slow": ok(page("Slow"))}
    with serving(
        lambda origin: answers, lambda path: 60.0 if path == "/docs/slow" else 0.0
    ) as served:
        documents, rejects = crawled(
            tmp_path,
            url=f"{served[0]}/docs/",
            public_url=PUBLIC,
            timeout_s=1.0,
            max_reject_rate=0.5,
        )
    assert list(documents) == [PUBLIC]
    assert rejects[PUBLIC + "slow"].reason == "timeout"


def test_steps_reach_the_stage_s_process_while_it_crawls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    steps: list[progress.Step] = []
    progress.begin("crawl", steps.append)
    try:
        with serving(planted) as (origin, _):
            crawled(tmp_path / "out", url=f"{origin}/docs/", public_url=PUBLIC, max_pages=4)
    finally:
        progress._listeners.clear()
    counted = [step for step in steps if step.unit == "addresses"]
    assert [step.done for step in counted] == [1, 2, 3, 4]
    assert counted[-1].total == 4
    assert re.fullmatch(
        r"web: more addresses are known than the limits let in: max_pages \d\d", steps[-1].note
    )


# --- a folder ----------------------------------------------------------------------------------


def test_a_folder_is_crawled_like_a_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "site"
    (folder / "sub").mkdir(parents=True)
    (folder / "index.html").write_text(page("Start", link("sub/one.html", "sub/")))
    (folder / "sub" / "one.html").write_text(page("One", link("../index.html")))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9/")  # a folder is read without a proxy
    documents, rejects = crawled(
        tmp_path / "out", serve_dir=str(folder), public_url=PUBLIC, max_reject_rate=0.5, delay_s=9.0
    )
    assert sorted(documents) == [PUBLIC, PUBLIC + "sub/one.html"]
    assert rejects[PUBLIC + "sub/"].reason == "http_404"  # no listing of folders
    assert rejects[PUBLIC + "index.html"].reason == "duplicate"
    assert capfd.readouterr() == ("", "")


# --- one line for every mistake ----------------------------------------------------------------


def failure(tmp_path: Path, **changes: Any) -> str:
    with pytest.raises(PipelineError) as caught:
        crawled(tmp_path, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def failure_of(tmp_path: Path, answers: dict[str, Answer], **changes: Any) -> str:
    """The line about a served start page, with its address left out."""
    with serving(lambda origin: answers) as (origin, _):
        line = failure(tmp_path, url=f"{origin}/docs/", **changes)
    return line.replace(origin.removeprefix("http://"), "HOST")


def test_a_site_that_refuses_the_connection_is_named(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        line = failure(tmp_path, url=f"http://127.0.0.1:{port}/")
    assert line == (
        f"source.url: 'http://127.0.0.1:{port}/': 127.0.0.1:{port} refuses the connection: "
        "check the address, and that the site is up"
    )


@pytest.mark.slow
def test_a_host_that_does_not_exist_is_named(tmp_path: Path) -> None:
    line = failure(tmp_path, url="http://docent.invalid/", timeout_s=5.0)
    assert line == (
        "source.url: 'http://docent.invalid/': no host docent.invalid: check the address and the "
        "network"
    )


def test_a_start_page_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert failure_of(tmp_path, {}) == (
        "source.url: 'http://HOST/docs/': answers 404: expected a page to start from"
    )


def test_a_start_page_forbidden_by_robots_txt_is_named(tmp_path: Path) -> None:
    answers = {"/robots.txt": ok("User-agent: docent\nDisallow: /", "text/plain")}
    line = failure_of(tmp_path, answers)
    assert "robots.txt forbids it" in line and "crawl.obey_robots=false" in line


@pytest.mark.slow
def test_robots_txt_is_not_read_when_it_need_not_be_obeyed(tmp_path: Path) -> None:
    answers = {"/robots.txt": ok("User-agent: *\nDisallow: /"), "/docs/": ok(page("Start"))}
    with serving(lambda origin: answers) as (origin, log):
        documents, _ = crawled(
            tmp_path, url=f"{origin}/docs/", public_url=PUBLIC, obey_robots=False
        )
    assert list(documents) == [PUBLIC]
    assert log == ["/docs/"]


def test_a_start_page_that_leads_out_of_the_source_is_named_with_its_target(
    tmp_path: Path,
) -> None:
    line = failure_of(tmp_path, {"/docs/": moved("https://new.example.org/docs/")})
    assert line == (
        "source.url: 'http://HOST/docs/': leads out of the source, to "
        "https://new.example.org/docs/: set source.url to that address"
    )


def test_a_start_page_that_leads_to_itself_by_the_other_scheme_is_named_with_its_target(
    tmp_path: Path,
) -> None:
    def table(origin: str) -> dict[str, Answer]:
        secure = origin.replace("http:", "https:")
        return {"/docs": moved("/docs/", 301), "/docs/": moved(f"{secure}/docs/", 301)}

    with serving(table) as (origin, _):
        secure = origin.replace("http:", "https:")
        for start in (f"{origin}/docs/", f"{origin}/docs"):
            line = failure(tmp_path, url=start)
            assert line == (
                f"source.url: {start!r}: leads out of the source, to {secure}/docs/: "
                "set source.url to that address"
            )


def test_a_start_page_that_leads_to_none_is_no_empty_success(tmp_path: Path) -> None:
    table = {"/docs/": moved("one.html"), "/docs/one.html": (500, {}, "")}
    assert failure_of(tmp_path, table) == (
        "source.url: 'http://HOST/docs/': answers 500: expected a page to start from"
    )
    table = {"/docs/": moved("one.html"), "/docs/one.html": moved("./")}
    assert failure_of(tmp_path, table) == (
        "source.url: 'http://HOST/docs/': nothing to read is there (redirect 2): check that it "
        "names the right place, or try later; the snapshot is as it was"
    )
    assert snapshot_beside(tmp_path).read_text() == "{}"


@pytest.mark.parametrize(
    ("robots_txt", "expected"),
    [
        (
            ok("User-agent: *\nCrawl-delay: 86400", "text/plain"),
            "robots.txt asks for a pause of more than 120 s between two requests (Crawl-delay: "
            "86400): ask its owner, or set crawl.obey_robots=false",
        ),
        (
            moved("http://docent.invalid/robots.txt"),
            "no host docent.invalid: check the address and the network",
        ),
        (
            (304, {}, ""),
            "robots.txt answers 304, which forbids everything: try later, or set "
            "crawl.obey_robots=false",
        ),
    ],
    ids=["delay", "elsewhere", "unasked"],
)
def test_a_robots_txt_that_ends_the_crawl_is_named(
    robots_txt: Answer, expected: str, tmp_path: Path
) -> None:
    table = {"/robots.txt": robots_txt, "/docs/": ok(page("Start"))}
    assert failure_of(tmp_path, table) == f"source.url: 'http://HOST/docs/': {expected}"


def test_what_may_pass_names_the_refresh_as_a_way_on(tmp_path: Path) -> None:
    table = {"/docs/": ok(page("Start", link("a", "b"))), "/docs/a": (503, {}, "")}
    assert "rejects.jsonl, `make refresh` to ask again, mend the site, or" in failure_of(
        tmp_path, table
    )


def test_a_site_without_text_is_named(tmp_path: Path) -> None:
    answers = {"/docs/": ok("<main><script>render()</script></main>")}
    line = failure_of(tmp_path, answers)
    assert line.startswith("source.url: 'http://HOST/docs/': no page with 80 characters of text")
    assert "(too_short 1)" in line


def test_too_many_failing_pages_fail_the_crawl_and_are_listed(tmp_path: Path) -> None:
    answers = {"/docs/": ok(page("Start", link("x.html", "y.html")))}
    line = failure_of(tmp_path, answers)
    assert line.startswith(
        "crawl.max_reject_rate: 0.67 of the pages failed (http_404 2), more than"
    )
    assert [row.reason for row in read(tmp_path / "rejects.jsonl", Reject)] == ["http_404"] * 2


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "source.url: required: the address of the site's start page"),
        (
            {"serve_dir": "site", "url": "http://x/"},
            "source.serve_dir: 'site': set this or source.url to null",
        ),
        ({"serve_dir": "site"}, "source.public_url: None: required beside source.serve_dir"),
        (
            {"serve_dir": "site", "public_url": PUBLIC, "external": True},
            "source.external: True: expected false beside source.serve_dir",
        ),
        (
            {"serve_dir": "no/such", "public_url": PUBLIC},
            "source.serve_dir: 'no/such': no such file or folder",
        ),
        (
            {"serve_dir": "conf", "public_url": PUBLIC},
            "source.serve_dir: 'conf': expected a folder with an index.html",
        ),
        ({"exclude": ["a", "("]}, "params.yaml: source.exclude.1: '(': not a regular expression"),
        ({"url": "example.org"}, "source.url: 'example.org': expected an address such as https"),
        ({"url": "file:///etc/passwd"}, "source.url: 'file:///etc/passwd': expected an address"),
        ({"max_pages": 0}, "crawl.max_pages: 0: input should be greater than 0"),
        ({"kind": "wiki"}, "source.kind: 'wiki': expected one of 'web', 'files'"),
    ],
)
def test_a_mistake_in_a_section_is_one_line(
    changes: dict[str, Any], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert expected in failure(tmp_path, **changes)


# --- addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "folder"),
    [
        ("https://x.org", "/"),
        ("https://x.org/", "/"),
        ("https://x.org/docs", "/docs/"),
        ("https://x.org/docs/", "/docs/"),
        ("https://x.org/docs/index.html", "/docs/"),
    ],
)
def test_a_site_is_the_folder_of_its_start_page(start: str, folder: str) -> None:
    assert Site.around(start, None).folder == folder


@settings(deadline=None)
@given(st.text(st.characters(), max_size=40))
def test_no_link_whatever_it_is_leads_out_of_the_site(href: str) -> None:
    site = Site.around("https://x.org/docs/", PUBLIC)
    site.resolve_out(href, "https://x.org/docs/sub/page.html")
    url = site.resolve(href, "https://x.org/docs/sub/page.html")
    assert url is None or url == "https://x.org/docs" or url.startswith("https://x.org/docs/")


@settings(deadline=None)
@given(st.text(max_size=40))
def test_a_resolved_address_resolves_to_itself_and_is_published_without_the_origin(
    href: str,
) -> None:
    site = Site.around("http://127.0.0.1:8123/docs/", PUBLIC)
    url = site.resolve(href, "http://127.0.0.1:8123/docs/sub/page.html")
    if url is not None:
        assert site.resolve(url, url) == url
        public = site.publish(url)
        assert public is not None and public.startswith(PUBLIC)
        assert site.resolve(public, url) in (url, url + "/")  # `/docs` is published as `/docs/`


def test_http_and_https_are_one_site_in_the_start_page_s_scheme() -> None:
    site = Site.around("https://x.org/docs/", None)
    assert site.resolve("http://x.org/docs/a", "https://x.org/docs/") == "https://x.org/docs/a"
    assert site.resolve("https://x.org:443/docs/a", "https://x.org/") == "https://x.org/docs/a"
    assert site.resolve("https://x.org:444/docs/a", "https://x.org/docs/") is None


def test_a_filter_reads_the_path_alone() -> None:
    wanted = Filter.of(["^/a/"], [r"\.old$"])
    assert wanted.keeps("https://x.org/a/b?c=/d.old")
    assert not wanted.keeps("https://x.org/a/b.old")
    assert not wanted.keeps("https://a/b")


# --- extraction --------------------------------------------------------------------------------

HERE = "http://127.0.0.1:8123/guide/page.html"
SITE = Site.around("http://127.0.0.1:8123/", PUBLIC)


def markdown(inner: str) -> str:
    return extract(f"<html><body><main>{inner}</main></body></html>", HERE, SITE).text


def test_code_keeps_its_text_and_its_language() -> None:
    code = "def f(x: int) -> int:\n\n    return x < 1 and '`' or \"\\n\"\t# é"
    coloured = code.replace("def", '<span class="k">def</span>').replace("<", "&lt;", 0)
    html = coloured.replace("x < 1", "x &lt; 1")
    assert markdown(f'<div class="highlight-python notranslate"><pre>{html}\n</pre></div>') == (
        f"```python\n{code}\n```"
    )
    assert markdown(f'<pre><code class="hljs language-sh">{html}</code></pre>').startswith(
        "```sh\n"
    )
    assert markdown(f'<div class="highlight-default"><pre>{html}</pre></div>').startswith("```\n")


@settings(deadline=None)
@given(
    st.text(
        st.characters(codec="utf-8", exclude_categories=["Cc", "Cn"], exclude_characters="\xa0"),
        min_size=1,
    )
)
def test_any_line_of_code_comes_through_unchanged(line: str) -> None:
    line = f"x{line}x"
    escaped = line.replace("&", "&amp;").replace("<", "&lt;")
    assert line in markdown(f"<pre><code>first\n{escaped}\n  last</code></pre>").split("\n")


def test_line_numbers_and_permalinks_are_no_text() -> None:
    text = markdown(
        '<h2 id="x">Title<a class="headerlink" href="#x">¶</a></h2><div class="highlight-sh">'
        '<table class="highlighttable"><tr><td class="linenos"><pre>1\n2</pre></td>'
        '<td class="code"><pre>make\nrun</pre></td></tr></table></div>'
        '<div class="highlight-sh"><pre><span class="linenos">1</span>ls</pre></div>'
    )
    assert text == "## Title\n\n```sh\nmake\nrun\n```\n\n```sh\nls\n```"


def test_a_table_of_keys_stays_a_table() -> None:
    text = markdown(
        "<table><thead><tr><th><p>key</p></th><th>meaning</th></tr></thead><tbody><tr><td>"
        "<code>a_b</code></td><td><p>one | two</p><ul><li><p>x</p></li><li>y</li></ul></td></tr>"
        "</tbody></table>"
    )
    assert text == "| key | meaning |\n| --- | --- |\n| `a_b` | one \\| two x; y |"


def test_a_signature_is_code_and_a_term_is_bold() -> None:
    text = markdown(
        '<dl class="py function"><dt class="sig sig-object py" id="m.f"><span>m.</span>'
        '<span>f</span>(<em>x: <a href="#C">int</a></em>)<a class="headerlink" href="#m.f">¶</a>'
        "</dt><dd><p>Does it.</p><dl class='field-list'><dt>Returns<span class='colon'>:</span>"
        "</dt><dd><p>the end</p></dd></dl></dd></dl>"
        "<dl class='glossary'><dt id='t'>Term</dt><dt>Word</dt><dd><p>Meaning.</p><p>More.</p></dd>"
        "</dl>"
    )
    assert text == (
        "`m.f(x: int)`\n\nDoes it.\n\n**Returns**: the end\n\n"
        "- **Term**, **Word**: Meaning.\n\n  More."
    )


def test_boxes_footnotes_and_powers_read_as_text() -> None:
    text = markdown(
        '<div class="admonition note"><p class="admonition-title">Note</p><p>Take care.</p></div>'
        '<p>About 10<sup>6</sup> rows<a class="footnote-reference" href="#f">[1]</a>.</p>'
        '<aside><span class="label">[1]</span><p>Counted.</p></aside>'
    )
    assert text == "**Note:** Take care.\n\nAbout 10^6 rows[1].\n\n**[1]** Counted."


def test_every_panel_of_a_tab_is_text_and_a_script_is_not() -> None:
    assert markdown(
        "<div role=tabpanel><p>pip</p></div><div role=tabpanel hidden><p>conda</p></div>"
        "<script>x</script><template><p>y</p></template>"
    ) == ("pip\n\nconda")


def test_wrapped_lines_become_one_and_a_hash_in_text_is_no_heading() -> None:
    assert markdown("<p>one\n  two&nbsp;three\u200b\n</p><p># four</p>") == (
        "one two three\n\n\\# four"
    )


def test_anchors_are_where_each_generator_puts_them() -> None:
    html = (
        '<section id="s"><span id="old"></span><h1>A<a class="headerlink" href="#s">¶</a></h1>'
        '<section id="t"><h2>B</h2></section></section>'
        '<h2 id="own">C</h2><h2><a name="named"></a>D</h2><div id="box"><p>x</p><h2>E</h2>'
        "<h2>F</h2></div>"
    )
    headings = extract(f"<main>{html}</main>", HERE, SITE).headings
    assert [(heading.title, heading.anchor) for heading in headings] == [
        ("A", "s"),
        ("B", "t"),
        ("C", "own"),
        ("D", "named"),
        ("E", "box"),
        ("F", ""),
    ]


def test_a_page_without_a_main_element_gives_its_body_with_anchors() -> None:
    paragraphs = "".join(f"<p>Part {index}: {WORDS}{WORDS}</p>" for index in range(6))
    html = (
        "<html><head><title>Paper</title></head><body><div class=menu><a href=/>Home</a> "
        f"<a href=/x>Other things</a></div><div><h2 id=begin>Beginning</h2>{paragraphs}"
        "<pre>x = 1\n  y</pre><div>Share this</div></div>"
        "<div class=footer>Copyright 2020</div></body></html>"
    )
    found = extract(html, HERE, SITE)
    assert found.title == "Paper"
    assert f"Part 5: {WORDS}{WORDS}".strip() in found.text
    assert found.text.endswith("```\nx = 1\n  y\n```")
    assert "Other things" not in found.text
    assert [(heading.title, heading.anchor) for heading in found.headings] == [
        ("Beginning", "begin")
    ]


def test_a_page_without_anything_gives_an_empty_text() -> None:
    for html in ("", "<main></main>", "<frameset><frame src=x></frameset>", "\x00\ufdd0"):
        assert extract(html, HERE, SITE).text == ""


BLOCKS = st.one_of(
    st.tuples(st.integers(1, 6), st.text("aé日🎉 #`*|&<\ufdd0", max_size=8)).map(
        lambda made: (
            f"<h{made[0]} id=i>{made[1].replace('&', '&amp;').replace('<', '&lt;')}</h{made[0]}>"
        )
    ),
    st.sampled_from(
        [
            "<p>Text é 日本 🎉 # no</p>",
            "<pre># not a heading\n## nor this</pre>",
            "<ul><li><h3>In a list</h3><p>x</p></li></ul>",
            "<blockquote><h2>In a quote</h2></blockquote>",
            "<table><tr><td><h4>In a cell</h4></td></tr></table>",
            "<dl><dt>Term</dt><dd><h5>In a definition</h5></dd></dl>",
            "<h2><a href=x><code>code</code></a><br>more</h2>",
        ]
    ),
)


@settings(deadline=None)
@given(st.lists(BLOCKS, max_size=12))
def test_headings_are_exactly_the_heading_lines_at_their_byte_offsets(blocks: list[str]) -> None:
    found = extract(f"<main>{''.join(blocks)}</main>", HERE, SITE)
    data = found.text.encode()
    assert "\ufdd0" not in found.text
    lines, start, fenced = [], 0, False
    for line in data.split(b"\n"):
        fenced ^= line.startswith(b"```")
        opening = re.match(rb"(?:[\s>*+-])*(#{1,6}) ", line)
        if opening and not fenced:
            lines.append((start, len(opening.group(1))))
        start += len(line) + 1
    assert [(heading.start, heading.level) for heading in found.headings] == lines


# --- the real thing ----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_site_of_a_real_generator_gives_clean_markdown(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    (source / "conf.py").write_text(
        "project = 'X'\nextensions = ['myst_parser']\nhtml_theme = 'furo'\n"
        "copyright = '2026, Nobody'\nmyst_enable_extensions = ['deflist']\n"
    )
    (source / "index.md").write_text(
        f"# Home of X\n\n{WORDS}{WORDS}\n\n```{{toctree}}\nguide\n```\n"
    )
    (source / "guide.md").write_text(
        "# The guide\n\nSee [home](index.md).\n\n## Keys\n\n| key | meaning |\n|---|---|\n"
        "| `a_b` | The first. |\n\n```bash\nmake demo  # all of it\n```\n\n## Terms\n\nChunk\n"
        ": A span of a document.\n"
    )
    built = tmp_path / "html"
    sphinx = shutil.which("sphinx-build", path=str(Path(sys.executable).parent))
    assert sphinx is not None
    subprocess.run([sphinx, "-q", "-b", "html", str(source), str(built)], check=True)
    documents, _ = crawled(
        tmp_path / "out",
        serve_dir=str(built),
        public_url=PUBLIC,
        exclude=[r"/genindex\.html$", r"/search\.html$"],
    )
    assert list(documents) == [PUBLIC, PUBLIC + "guide.html"]
    guide = documents[PUBLIC + "guide.html"]
    assert guide.text == (
        f"# The guide\n\nSee [home]({PUBLIC}index.html).\n\n## Keys\n\n| key | meaning |\n"
        "| --- | --- |\n| `a_b` | The first. |\n\n```bash\nmake demo  # all of it\n```\n\n"
        "## Terms\n\n- **Chunk**: A span of a document."
    )
    assert [(heading.title, heading.anchor) for heading in guide.headings] == [
        ("The guide", "the-guide"),
        ("Keys", "keys"),
        ("Terms", "terms"),
    ]


@pytest.mark.parametrize(
    ("kind", "key", "address"),
    [
        ("web", "url", "https://me:hunter2@docs.acme.io/"),
        ("web", "url", "https://hunter2@docs.acme.io/"),
        ("web", "public_url", "http://me:hunter2@docs.acme.io/"),
        ("files", "path", "https://me:hunter2@docs.acme.io/in/"),
        ("files", "path", "s3://key:hunter2@bucket/in/"),
        ("files", "public_url", "https://me:hunter2@docs.acme.io/in/"),
        ("code", "path", "https://hunter2@git.acme.io/o/r.git"),
        ("code", "path", "ssh://me:hunter2@git.acme.io/o/r.git"),
    ],
)
def test_an_address_with_a_password_is_refused_without_a_word_of_it(kind, key, address):
    params = yaml.safe_load((ROOT / f"conf/source/{kind}.yaml").read_text()) | {key: address}
    with pytest.raises(PipelineError, match=f"source.{key}: a user or a password in an addr") as no:
        config.load({"source": params}, "source", crawl.Source)
    assert "hunter2" not in str(no.value) and "acme" not in str(no.value)
