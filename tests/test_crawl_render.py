"""Pages drawn by JavaScript: which need a browser, and what a real one makes of them."""

import pytest
from shells import SHELLS, WHOLE
from sites import crawled, link, ok, page, refreshed, serving

from stages.core import progress
from stages.core.errors import PipelineError
from stages.crawl.shells import chromium, needs_browser


@pytest.mark.parametrize("name", SHELLS)
def test_a_shell_needs_a_browser(name):
    assert needs_browser(SHELLS[name])


@pytest.mark.parametrize("name", WHOLE)
def test_a_page_that_is_whole_needs_none(name):
    assert not needs_browser(WHOLE[name])


# --- a real browser ----------------------------------------------------------------------------

needs_chromium = pytest.mark.skipif(chromium() is None, reason="no Chromium on the PATH")

SHELL = (
    "<!doctype html><html><head><title>App</title></head><body><noscript>You need to enable "
    'JavaScript to run this app.</noscript><div id="root"></div><img src="/pixel.png">'
    '<script src="/app.js"></script></body></html>'
)
APP = """
const pages = {
  '/app/': ['Start', '<p><a href="/app/guide">Guide</a> and <a href="/app/api">API</a></p>'],
  '/app/guide': ['Guide', '<p id=late></p>'],
  '/app/api': ['API', '<pre><code class="language-js">f(1)</code></pre>'],
};
const root = document.getElementById('root');
function show() {
  const [title, body] = pages[location.pathname] || ['Nothing', ''];
  const words = 'Words that only a script writes. '.repeat(9);
  root.innerHTML = `<main><h1 id=top>${title}</h1><p>${words}</p>${body}</main>`;
  document.title = title;
}
show();
for (const link of document.querySelectorAll('a'))
  link.onclick = event => { event.preventDefault(); history.pushState({}, '', link.href); show(); };
if (location.pathname == '/app/guide')
  fetch('/data.json').then(answer => answer.json()).then(data => setTimeout(() => {
    document.getElementById('late').textContent = data.text;
  }, 300));
"""


def answers(origin):
    app = ok(SHELL)
    script = ok(APP, "text/javascript")
    hang = "<div id=root></div><script src=/x.js></script><script>for (;;) {}</script>"
    leave = f"<div id=root></div><script src=/x.js></script><script>location = '{origin}/moved'"
    return {
        **{f"/app/{name}": app for name in ("", "guide", "api")},
        "/app.js": script,
        "/x.js": ok("", "text/javascript"),
        "/data.json": ok('{"text": "It came from elsewhere."}', "application/json"),
        "/whole/": ok(page("Whole", link("/whole/hang", "/whole/file", "/whole/leave"))),
        "/whole/hang": ok(hang),
        "/whole/leave": ok(leave + "</script>"),
        "/moved": ok(page("Moved")),
    }


@needs_chromium
def test_an_app_with_a_router_is_read_page_by_page(tmp_path):
    with serving(answers) as (origin, log):
        documents, rejects = crawled(
            tmp_path / "out", url=f"{origin}/app/", render="auto", obey_robots=False
        )
        assert rejects == {}
        assert {
            url.removeprefix(origin): document.title for url, document in documents.items()
        } == {
            "/app/": "Start",
            "/app/guide": "Guide",
            "/app/api": "API",
        }
        assert "It came from elsewhere." in documents[f"{origin}/app/guide"].text
        assert "```js\nf(1)\n```" in documents[f"{origin}/app/api"].text
        assert documents[f"{origin}/app/api"].headings[0].anchor == "top"
        assert sorted(log) == [
            *("/app.js",) * 3,
            *("/app/", "/app/api", "/app/guide", "/data.json"),
        ]  # each page once, and no image


@needs_chromium
@pytest.mark.slow
def test_a_refresh_draws_only_what_has_changed(tmp_path):
    with serving(answers) as (origin, log):
        first = refreshed(tmp_path / "out", url=f"{origin}/app/", render="auto", obey_robots=False)
        assert len(first.new) == 3
        del log[:]
        again = refreshed(tmp_path / "out", url=f"{origin}/app/", render="auto", obey_robots=False)
        assert again.unchanged == 3
        assert sorted(log) == ["/app/", "/app/api", "/app/guide"]
        plain = refreshed(tmp_path / "out", url=f"{origin}/app/", render="never", obey_robots=False)
        assert (len(plain.changed), len(plain.gone)) == (1, 2)  # the shell links to nothing


@needs_chromium
@pytest.mark.slow
def test_a_page_that_never_ends_is_counted_and_the_others_are_read(tmp_path):
    with serving(answers) as (origin, _):
        patient = {"timeout_s": 4.0, "max_reject_rate": 1.0, "obey_robots": False}
        documents, rejects = crawled(
            tmp_path / "out", url=f"{origin}/whole/", render="always", **patient
        )
        assert list(documents) == [f"{origin}/whole/"]
        reasons = {url.removeprefix(origin): row.reason for url, row in rejects.items()}
        assert reasons["/whole/hang"] == "render_timeout"
        assert reasons["/whole/leave"] == "outside"  # a script led there


def test_without_a_browser_pages_are_counted_and_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    steps = []
    monkeypatch.setattr(progress, "_listeners", [steps.append])
    table = {"/": ok(page("Whole", link("/app/"))), "/app/": ok(SHELL)}
    with serving(lambda _: table) as (origin, _):
        documents, rejects = crawled(
            tmp_path / "out", url=f"{origin}/", render="auto", max_reject_rate=1.0
        )
        assert list(documents) == [f"{origin}/"]
        assert rejects[f"{origin}/app/"].reason == "javascript"
        [told] = [step.note for step in steps if "JavaScript" in step.note]
        assert told.startswith("web: 1 pages are drawn by JavaScript, and no Chromium")
        with pytest.raises(PipelineError, match=r"source\.render: 'always': no Chromium"):
            crawled(tmp_path / "always", url=f"{origin}/", render="always")
