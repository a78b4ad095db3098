"""Pages as the generators of manuals and of news make them, to the Markdown that is expected."""

import gzip
import json
import re
import tarfile
from pathlib import Path

import pytest

from benchmarks import extraction, extraction_gold
from stages.crawl.extract import extract
from stages.crawl.page import Page
from stages.crawl.site import Site

SITE = Site.around("https://docs.example/", None)
HERE = "https://docs.example/guide/start.html"
WORDS = "The quick brown fox jumps over the lazy dog near the river bank every day. "
NAV = "<nav><ul><li><a href='/a'>Install</a></li><li><a href='/b'>Reference</a></li></ul></nav>"


def page(html: str) -> Page:
    return extract(html, HERE, SITE)


def markdown(inner: str) -> str:
    return page(f"<html><body><main>{inner}</main></body></html>").text


# --- one page of each generator ----------------------------------------------------------------

DOCUSAURUS = f"""
<html><head><title>Start | Acme</title><meta property="og:type" content="article"></head><body>
<nav class="navbar"><a href="/">Acme</a></nav><div class="main-wrapper"><aside
class="theme-doc-sidebar-container"><a href="/x">Install</a></aside><main><article>
<nav class="theme-doc-breadcrumbs"><li>Guides</li></nav>
<span class="theme-doc-version-badge">Version: 3</span>
<div class="theme-doc-toc-mobile"><button>On this page</button></div>
<div class="theme-doc-markdown markdown"><header><h1>Start</h1></header><p>{WORDS}</p>
<h2 class="anchor" id="set-up">Set up<a href="#set-up" class="hash-link" title="Direct
link">​</a></h2>
<div class="tabs-container"><ul role="tablist" class="tabs"><li role="tab">npm</li><li
role="tab">Yarn</li>
</ul><div><div role="tabpanel"><div class="language-bash codeBlockContainer"><pre class="prism-code
 language-bash"><code class="codeBlockLines"><span class="token-line">npm i acme<br></span><span
class="token-line">  npm run x<br></span></code></pre><div
class="buttonGroup"><button>Copy</button></div></div>
</div><div role="tabpanel" hidden><pre
class="language-bash"><code>yarn add acme</code></pre></div></div></div>
</div><footer class="theme-doc-footer"><a href="/e"
class="theme-edit-this-page">Edit this page</a></footer>
</article><nav class="pagination-nav"><a href="/n">Next: Usage</a></nav></main></div></body></html>
"""
MKDOCS = f"""
<html><head><meta name="generator" content="mkdocs-1.5,
mkdocs-material-9"><title>Start - Acme</title>
</head><body><header class="md-header">Acme</header><div class="md-sidebar"><a
href="/a">Install</a></div>
<main class="md-main"><div class="md-content"><article class="md-content__inner md-typeset">
<a href="/edit" class="md-content__button md-icon" title="Edit this page"></a><h1 id="start">Start
<a class="headerlink" href="#start">¶</a></h1><p>{WORDS}</p><div class="admonition note">
<p class="admonition-title">Note</p><p>Mind the gap.</p></div><h2 id="set-up">Set up<a
class="headerlink" href="#set-up">#</a></h2><div class="highlight"><table
class="highlighttable"><tr>
<td class="linenos"><div class="linenodiv"><pre><span>1</span>
<span>2</span></pre></div></td><td class="code"><div><pre><code class="language-py">def f():
    return 1
</code></pre></div></td></tr></table></div><aside class="md-source-file">Last update: May</aside>
</article></div></main><footer class="md-footer">Made with Material</footer></body></html>
"""
HUGO = f"""
<html><head><title>Start :: Acme</title></head><body><aside id="sidebar"><a
href="/a">Install</a></aside>
<main><h1>Start</h1><p>{WORDS}</p><h2 id="set-up">Set up <a class="anchor"
href="#set-up">#</a></h2>
<div class="highlight"><div class="chroma"><table class="lntable"><tr><td class="lntd"><pre
class="chroma"><code><span class="lnt">1
</span><span class="lnt">2
</span></code></pre></td><td class="lntd"><pre class="chroma"><code class="language-go"
data-lang="go"><span
class="line"><span class="cl">func main() {{
</span></span><span class="line"><span class="cl">}}
</span></span></code></pre></td></tr></table></div></div></main></body></html>
"""
ASCIIDOCTOR = f"""
<html><head><meta name="generator" content="Asciidoctor 2.0.20"><title>Start</title></head>
<body class="article"><div id="header"><h1>Start</h1><div id="toc" class="toc"><ul><li><a
href="#set-up">Set up</a></li></ul></div></div><div id="content"><div class="sect1"><h2
id="set-up">Set up
</h2><div class="sectionbody"><div class="paragraph"><p>{WORDS}</p></div><div
class="admonitionblock tip">
<table><tr><td class="icon"><div class="title">Tip</div></td><td class="content"><div
class="paragraph"><p>Mind
the gap.</p></div></td></tr></table></div><div class="listingblock"><div class="content"><pre
class="rouge highlight"><code data-lang="ruby"><span class="nb">puts</span> 1
  puts 2</code></pre></div></div></div></div></div><div
id="footer">Last updated 2024</div></body></html>
"""
GITBOOK = f"""
<html><head><title>Start | Acme</title></head><body>{NAV}<main><header><h1>Start</h1></header>
<p>{WORDS}</p>
<h2 id="set-up"><div>Set up</div><a href="#set-up" aria-label="Direct link"><svg></svg></a></h2>
<div><pre><code class="language-js"><div class="line">const a = 1</div><div
class="line">  b()</div></code></pre>
<button>Copy</button></div></main><footer>Powered by GitBook</footer></body></html>
"""
VITEPRESS = f"""
<html><head><title>Start | Acme</title></head><body>{NAV}<main><div class="vp-doc"><h1 id="start"
tabindex="-1">Start
<a class="header-anchor" href="#start">​</a></h1><p>{WORDS}</p><div class="tip custom-block"><p
class="custom-block-title">TIP</p><p>Mind the gap.</p></div><h2 id="set-up">Set up <a
class="header-anchor"
href="#set-up">​</a></h2><div class="language-ts"><button class="copy"></button><span
class="lang">ts</span><pre
class="shiki"><code><span class="line"><span>let a = 1</span></span>
<span class="line"><span>  a++</span></span></code></pre></div></div></main></body></html>
"""
UNMARKED = f"""
<html><head><title>Start | Acme</title></head><body><div id="content"><div
id="column2"><ul><li><a href="a">A</a></li>
<li><a href="b">Install and set up</a></li></ul></div><div
id="column1"><header><h1>Acme 3 manual</h1></header>
<div id="apicontent"><h2>Start<span><a class="mark" href="#start"
id="start">#</a></span></h2><p>{WORDS * 4}</p>
<h3>Set up<span><a class="mark" href="#set-up" id="set-up">#</a></span></h3><pre><code
class="language-js">f()
  g()</code></pre></div></div></div></body></html>
"""
GENERATORS = {
    "docusaurus": (DOCUSAURUS, "```bash\nnpm i acme\n  npm run x\n```"),
    "mkdocs": (MKDOCS, "```py\ndef f():\n    return 1\n```"),
    "hugo": (HUGO, "```go\nfunc main() {\n}\n```"),
    "asciidoctor": (ASCIIDOCTOR, "```ruby\nputs 1\n  puts 2\n```"),
    "gitbook": (GITBOOK, "```js\nconst a = 1\n  b()\n```"),
    "vitepress": (VITEPRESS, "```ts\nlet a = 1\n  a++\n```"),
    "unmarked": (UNMARKED, "```js\nf()\n  g()\n```"),
}
FRAME = re.compile(
    "Install|Reference|Acme|Edit this|Next|Copy|Made with|Last up|Powered|On this page|Version"
    "|Guides|^1$|^ts$",
    re.MULTILINE,
)


@pytest.mark.parametrize("name", GENERATORS)
def test_a_page_of_each_generator_gives_headings_code_and_no_frame(name: str) -> None:
    html, code = GENERATORS[name]
    found = page(html)
    assert code in found.text
    assert not FRAME.search(found.text), found.text
    assert [heading.title for heading in found.headings] == ["Start", "Set up"]
    assert found.headings[1].anchor == "set-up"
    assert found.headings[1].level == found.headings[0].level + 1
    assert WORDS.strip() in found.text


def test_boxes_lead_with_their_name() -> None:
    assert "**Note:** Mind the gap." in page(MKDOCS).text
    assert "**Tip:** Mind the gap." in page(ASCIIDOCTOR).text
    assert "**TIP:** Mind the gap." in page(VITEPRESS).text


def test_a_tab_is_named_before_what_it_shows() -> None:
    text = page(DOCUSAURUS).text
    places = [text.index(part) for part in ("**npm:**", "npm i acme", "**Yarn:**", "yarn add acme")]
    assert places == sorted(places)
    labels = "".join(f"<label>{name}</label>" for name in ("A", "B"))
    blocks = "<div class=tabbed-block><p>one</p></div><div class=tabbed-block><p>two</p></div>"
    tabbed = (
        f"<div class=tabbed-set><div class=tabbed-labels>{labels}</div>"
        f"<div class=tabbed-content>{blocks}</div></div>"
    )
    assert markdown(tabbed).split() == ["**A:**", "one", "**B:**", "two"]


MENU = "".join(f'<li><a href="m{n}.html">The module number {n}</a></li>' for n in range(40))
VERSIONS = "".join(f'<li><a href="v{n}.html">{n}.x</a></li>' for n in range(9))


def in_a_frame(menu: str, body: str) -> str:
    header = f"<header><div><h1>Acme 3 manual</h1></div><div><ul>{menu}</ul></div></header>"
    side = f'<div id="column2"><ul>{MENU}</ul></div>'
    main = f'<div id="column1">{header}<div id="apicontent">{body}</div></div>'
    return f'<html><body><div id="content">{side}{main}</div></body></html>'


def test_a_page_of_few_words_is_not_lost_in_the_menus_of_its_header() -> None:
    found = page(in_a_frame(MENU + VERSIONS, "<h2>Policies</h2><p>They moved.</p>"))
    assert found.text == "## Policies\n\nThey moved."


def test_a_page_that_is_a_list_of_links_keeps_it_and_not_the_menu_above() -> None:
    found = page(in_a_frame(VERSIONS, f"<ul>{MENU}</ul>"))
    assert found.text.startswith("# Acme 3 manual\n\n- [The module number 0](")
    assert found.text.count("\n- [") == 40 and ".x]" not in found.text


# --- what Markdown has no word for -------------------------------------------------------------

KATEX = (
    '<span class="katex"><span class="katex-mathml"><math><semantics><mi>x</mi><annotation '
    'encoding="application/x-tex">x^2 + y_1</annotation></semantics></math></span>'
    '<span class="katex-html" aria-hidden="true">x2+y1</span></span>'
)


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        (f"<p>Let {KATEX} be.</p>", "Let $x^2 + y_1$ be."),
        (f'<p>Let <span class="katex-display">{KATEX}</span></p>', "Let $$x^2 + y_1$$"),
        ('<p>Let <script type="math/tex">x_1</script> be.</p>', "Let $x_1$ be."),
        ('<p><script type="math/tex; mode=display">\\sum_i\n x</script></p>', "$$\\sum_i x$$"),
        ('<p>A <span class="math notranslate">\\(a_b\\)</span> c.</p>', "A $a_b$ c."),
        ('<div class="math notranslate">\n\\[a\n = b\\]</div>', "$$a = b$$"),
        ('<p>A <img class="math" alt="\\pi" src="a.png"> c.</p>', "A $\\pi$ c."),
        ("<p>10<sup>6</sup> and x<sup>n</sup>.</p>", "10^6 and x^n."),
    ],
)
def test_formulas_keep_their_tex(html: str, expected: str) -> None:
    assert markdown(html) == expected


def test_a_power_in_a_heading_is_one_in_its_title_too() -> None:
    found = page("<main><h1>Some 10<sup>6</sup> <a href='#x'><sup>n</sup></a> rows</h1></main>")
    assert found.text == "# Some 10^6 ^n rows" and found.headings[0].title == "Some 10^6 ^n rows"


def test_what_is_shown_later_is_text() -> None:
    shown = "<p hidden>one</p><p style='display: none'>two</p><details><p>three</p></details>"
    assert page(f"<main hidden style='display:none'>{shown}</main>").text.split() == [
        *("one", "two", "three")
    ]


def test_a_mark_of_ours_in_a_page_makes_no_heading_and_stops_nothing() -> None:
    html = "<h1>A</h1><p># &#xfdd0;7&#xfdd0; b &#xfdd0;</p><h2>&#xfdd0;0</h2>"
    assert page(f"<main>{html}</main>").headings[0].title == "A"


def test_a_footnote_is_text_and_no_link_there_and_back() -> None:
    html = (
        '<p>So it is <a class="footnote-reference brackets" href="#f1" role="doc-noteref">[1]</a>.'
        '</p><aside class="footnote"><span class="label"><a class="fn-backref" href="#id1">[1]</a>'
        "</span><p>As they say.</p></aside>"
    )
    assert markdown(html) == "So it is [1].\n\n**[1]** As they say."


def test_nested_lists_and_tables_keep_their_order() -> None:
    html = "<ul><li>a<ul><li>b<ol><li>c</li></ol></li></ul></li><li>d</li></ul>"
    assert [line.strip() for line in markdown(html).splitlines()] == ["- a", "- b", "1. c", "- d"]
    table = (
        "<table><tr><th>k</th><th>v</th></tr><tr><td>a</td><td><ul><li>x</li><li>y</li></ul></td>"
    )
    assert "| a | x; y |" in markdown(f"{table}</tr></table>")


def test_a_space_that_must_not_break_is_a_space_in_words_and_in_code() -> None:
    html = (
        "<p>10&nbsp;km</p><pre><code>if a:\u00a0\n\u00a0\u00a0\u00a0\u00a0b&nbsp;= 1</code></pre>"
    )
    assert markdown(html).split("\n\n", 1) == ["10 km", "```\nif a: \n    b = 1\n```"]


def test_junk_within_junk_and_around_headings_goes_as_a_whole() -> None:
    html = (
        "<nav><div class=toc><h2 id=x>Contents <a href='#x' class=headerlink>¶</a></h2>"
        "<pre>not code</pre><nav><button>x</button></nav><img src=a.png alt=a></div></nav>"
        f"<h2 id=y>Real <a href='#y' class=headerlink>¶</a></h2><p>{WORDS}</p>"
    )
    found = page(f"<main>{html}</main>")
    assert found.text == f"## Real\n\n{WORDS.strip()}"
    assert [(heading.title, heading.anchor) for heading in found.headings] == [("Real", "y")]


# --- articles ----------------------------------------------------------------------------------


def test_an_article_is_its_story_below_its_title() -> None:
    story = "".join(f"<p>{n} {WORDS * 3}</p>" for n in range(6))
    html = f"""<html><head><title>Fox jumps - The News</title><meta property="og:type"
content="article">
    </head><body>{NAV}<div class="page"><h1>Fox jumps</h1><div class="story">{story}
    <p>Read more: Dog sleeps again</p><p>Sign
up for our newsletter and get it in your inbox.</p></div>
    <div class="related"><h3>More stories</h3><a href="/1">Dog sleeps</a> <a
href="/2">Cat eats</a></div>
    <div
id="comments"><p>What a fox!</p></div></div><footer>Copyright The News</footer></body></html>"""
    found = page(html)
    lines = [line for line in found.text.splitlines() if line]
    assert lines[0] == "# Fox jumps" and found.title == "Fox jumps"
    assert [line[0] for line in lines[1:]] == list("012345")


def test_code_makes_a_page_a_manual_whatever_it_calls_itself() -> None:
    html = (
        '<html><head><title>T</title><meta property="og:type" content="article"></head><body>'
        "<main>"
        f"<h1>T</h1><p>{WORDS}</p><pre><code>  x = 1</code></pre><p>Short.</p></main></body></html>"
    )
    assert page(html).text == f"# T\n\n{WORDS.strip()}\n\n```\n  x = 1\n```\n\nShort."


# --- the judge ---------------------------------------------------------------------------------

RST = """
Start
=====

.. _label:

Set up
------

Some words about it, which are enough to be counted.

.. code-block:: python

   def f():
       return 1

.. function:: run(a, *, b=1)

   It runs.
"""
GOOD = """# Start

## Set up

Some words about it, which are enough to be counted.

```python
def f():
    return 1
```

`run(a, *, b=1)`

It runs."""


def judged(text: str) -> dict[str, float]:
    found = extraction.Found(extraction.Counter(), extraction.Counter())
    heads = page("<main><h1 id=start>Start</h1><h2 id=label>Set up</h2></main>").headings
    made = Page(HERE, "Start", text, heads)
    gold = extraction_gold.read_rst(RST)
    extraction.judge(made, gold, RST, {"nextpage"}, found, {}, "x")
    kinds = ("headings", "code", "fenced", "languages", "signatures", "anchors", "prose")
    return {kind: found.share(kind) for kind in kinds} | {"leaks": found.counts["leaks"]}


def test_the_benchmark_calls_a_perfect_page_perfect() -> None:
    assert judged(GOOD) == dict.fromkeys(judged(GOOD), 1.0) | {"leaks": 0}


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("headings", "## Set up", "Set up"),
        ("headings", "## Set up", "### Set up"),
        ("code", "    return", "   return"),
        ("fenced", "```python\n", "```python\nx\n"),
        ("languages", "```python", "```"),
        ("signatures", "*, b=1", "*"),
        ("prose", "about it", ""),
    ],
)
def test_the_benchmark_sees_a_planted_fault(kind: str, old: str, new: str) -> None:
    assert judged(GOOD.replace(old, new))[kind] < 1


def test_the_benchmark_sees_a_leak() -> None:
    assert judged(f"{GOOD}\n\n[Next page](https://docs.example/n.html)")["leaks"] == 1


DIALECT = """title: Not shown

Start {: #begin }
=====

A __word__{: #word } and [a link][there], which are enough.

* One item of a list with words
    * An item below it, with words

            :::python
            def inner():
                return 1

    Words of the first item again, so many.

        #!sh
        two  spaces

!!! note "Mind"
    A box with words of its own.

        in_the_box()
### `run(a, b=1)` ###
```` { .html hl_lines="1" }
```
# no heading
<b>
```
````
Term
:   A definition of the term, in words.

        below = "the term"

    of
    the code

<style>
    p { color: red }

    q { color: blue }
</style>

| a | b |
|---|---|
| 1 | 2 |

[there]: https://docs.example/there
"""
READ = """# Start

A **word** and [a link](https://docs.example/there), which are enough.

- One item of a list with words
  - An item below it, with words

    ```python
    def inner():
        return 1
    ```

  Words of the first item again, so many.

  ```
  two  spaces
  ```

**Mind**

A box with words of its own.

```
in_the_box()
```

### `run(a, b=1)`

~~~
```
# no heading
<b>
```
~~~

Term

A definition of the term, in words.

```
below = "the term"
```

of the code"""


def judged_dialect(text: str, source: str = DIALECT) -> dict[str, float]:
    found = extraction.Found(extraction.Counter(), extraction.Counter())
    heads = page("<main><h1 id=begin>Start</h1><h3 id=runa-b1>run(a, b=1)</h3></main>").headings
    gold = extraction_gold.read_python_markdown(source)
    extraction.judge(Page(HERE, "Start", text, heads), gold, source, {"nextpage"}, found, {}, "x")
    kinds = ("headings", "code", "fenced", "signatures", "anchors", "prose")
    assert [found.of[kind] for kind in kinds[:5]] == [2, 5, 5, 1, 2]
    return {kind: found.share(kind) for kind in kinds} | {"leaks": found.counts["leaks"]}


def test_the_gold_of_python_markdown_calls_a_perfect_page_perfect() -> None:
    assert judged_dialect(READ) == dict.fromkeys(judged_dialect(READ), 1.0) | {"leaks": 0}


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("headings", "### `run", "`run"),
        ("headings", "### `run", "## `run"),
        ("code", "two  spaces", "two spaces"),
        ("code", "        return 1", "      return 1"),
        ("code", "below =", "1 below ="),
        ("fenced", "~~~\n```", "~~~\n:::\n```"),
        ("signatures", "run(a, b=1)", "run(a, b)"),
        ("prose", "box with words of", "box of"),
        ("prose", "A definition of", "Of"),
    ],
)
def test_the_gold_of_python_markdown_sees_a_planted_fault(kind: str, old: str, new: str) -> None:
    assert judged_dialect(READ.replace(old, new))[kind] < 1


def test_the_gold_of_python_markdown_sees_a_wrong_anchor_and_a_leak() -> None:
    assert judged_dialect(READ, DIALECT.replace("#begin", "#other"))["anchors"] < 1
    assert judged_dialect(f"{READ}\n\n- [Next page](https://docs.example/n.html)")["leaks"] == 1


def test_sources_in_an_archive_stand_beside_their_pages(tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("# X\n")
    with tarfile.open(tmp_path / "made-1.tar.gz", "w:gz") as made:
        for name in ("README.md", "docs/in/x.md", "docs/py.png"):
            made.add(tmp_path / "x.md", f"made-1/{name}")
    found = list(extraction_gold.archived(tmp_path / "made-1.tar.gz", Path("/html")))
    assert found == [(Path("/html/in/x.html"), "# X\n")]


def test_what_a_docstring_says_is_no_leak(tmp_path: Path) -> None:
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").write_text("from .inner import Base as Shown\n")
    (package / "inner.py").write_text(
        '"""About it.\n\nBasic use\n---------\n\nSee :ref:`next`.\n"""\n'
        'class Root:\n    kind = 1\n    """Next page."""\n'
        'class Base(Root):\n    def f(self):\n        """All pages."""\n'
    )
    source = ".. module:: pkg\n\n.. autoclass:: Shown\n\n.. automodule:: pkg.inner\n"
    gold = extraction_gold.read_rst(source, extraction_gold.Docstrings(tmp_path))
    assert gold.brought[:2] == ["All pages.", "Next page."] and gold.num_references == 1
    lines = "\n\n".join(
        (
            "Next page",
            "All pages",
            "## Basic use",
            "Another page",
            "[Other](https://docs.example/o)",
        )
    )
    frame = {"nextpage", "allpages", "basicuse", "anotherpage", "other"}
    leaks = {}
    for found_in in (gold, extraction_gold.read_rst(source)):
        found = extraction.Found(extraction.Counter(), extraction.Counter())
        extraction.judge(Page(HERE, "", lines), found_in, source, frame, found, {}, "x")
        leaks[found_in is gold] = found.counts["leaks"]
    assert leaks == {True: 1, False: 5}  # the one reference may name its page


def test_articles_are_scored_as_their_benchmark_does(tmp_path: Path) -> None:
    f1, precision, recall = extraction.score([("a b c d e", "a b c d"), ("x y", "x y"), ("", "z")])
    assert (precision, recall) == (pytest.approx(2 / 3), pytest.approx(0.75))
    assert f1 == pytest.approx(2 * precision * recall / (precision + recall))
    (tmp_path / "html").mkdir()
    (tmp_path / "ground-truth.json").write_text(json.dumps({"k": {"articleBody": WORDS * 20}}))
    with gzip.open(tmp_path / "html/k.html.gz", "wt", encoding="utf-8") as file:
        file.write(f"<html><body>{NAV}<article><p>{WORDS * 20}</p></article></body></html>")
    [(name, value, _)] = extraction.articles(tmp_path, quick=False)
    assert (name, value) == ("article_f1", 1.0)
