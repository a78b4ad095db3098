"""What stays whole: fences, rows and links in Markdown; and fences that were cut, shown mended."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from rs_bpe.bpe import openai

from stages.answer import prompt
from stages.core import fences
from stages.core.records import Document, Heading
from stages.split.chunks import split
from stages.split.cutting import Product
from stages.split.tokens import Counter

COUNTER = Counter(openai.cl100k_base().count, seamed=True)


def page(text, url="https://x.org/p", headings=()):
    return Document(id="d", url=url, title="T", text=text, source="s", headings=headings)


def chunks_of(document, chunk_tokens, overlap_tokens=0, method="markdown"):
    product = Product(chunk_tokens=chunk_tokens, overlap_tokens=overlap_tokens)
    return split(document, {"p": product}, COUNTER, method)["p"]


def texts_of(text, chunk_tokens, overlap_tokens=0, method="markdown", url="https://x.org/p"):
    return [c.text for c in chunks_of(page(text, url), chunk_tokens, overlap_tokens, method)]


# --- fences --------------------------------------------------------------------------------------

LISTED = """\
Before.

- A point:

  ```python
  def f():

      return "```"
  ```

> ~~~~
> quoted ```
> ~~~
> ~~~~

```not a fence``` and ``` neither
After.
"""


def test_fences_are_found_in_lists_and_quotes_and_end_with_their_own_mark():
    found = list(fences.find(LISTED, 0, len(LISTED)))
    assert [fence.opening for fence in found] == ["  ```python", "> ~~~~"]
    shown = [LISTED[fence.start : fence.end] for fence in found]
    assert shown[0].startswith("  ```python\n  def f()") and shown[0].endswith('"```"\n  ```')
    assert shown[1].count("\n") == 3
    for fence in found:
        assert LISTED[fence.start : fence.body] == fence.opening + "\n"
        assert fences.after(LISTED[fence.body : fence.closing], fence.opening) == fence.opening


def test_a_fence_that_is_never_closed_is_none():
    assert not list(fences.find("a\n```python\nb\n", 0, 14))
    assert [f.end for f in fences.find("```\n```", 0, 7)] == [7]


def test_a_part_of_a_fence_is_shown_reopened_and_closed():
    assert fences.mend("x = 1", "  ```python") == "  ```python\nx = 1\n  ```"
    assert fences.mend("x = 1\n```\nText.", "```python") == "```python\nx = 1\n```\nText."
    assert fences.mend("Text:\n\n- ~~~\n  x = 1", "") == "Text:\n\n- ~~~\n  x = 1\n  ~~~"
    assert fences.mend("Text.", "") == "Text."
    assert fences.mend("", "```") == ""


LINES = st.lists(
    st.sampled_from(
        ["```", "```python", "~~~", "````", "  ```", "- ```sh", "> ```", "x = 1", "", "Words. ``` "]
    ),
    max_size=14,
).map("\n".join)


@given(LINES, st.sampled_from(["", "```python", "~~~ sh", "1. ````"]))
def test_what_is_shown_leaves_no_fence_open_and_keeps_the_text(text, opening):
    shown = fences.mend(text, opening)
    assert fences.after(shown, "") == ""
    assert text in shown
    if not opening and not fences.after(text, ""):
        assert shown == text


# --- Markdown ------------------------------------------------------------------------------------

CODE = "\n".join(f"value_{n} = compute(value_{n - 1}, {n})\n" for n in range(1, 7))
FENCED = f"```python\n{CODE}```"


def test_by_headings_a_fence_with_blank_lines_stays_whole_where_plain_splitting_cuts_it():
    text = f"{'Some words about it. ' * 8}\n\n{FENCED}\n\n{'More words follow. ' * 8}"
    assert COUNTER(FENCED) < 90
    [held] = [chunk for chunk in texts_of(text, 90) if "```" in chunk]
    assert FENCED in held
    assert sum("```" in chunk for chunk in texts_of(text, 60, method="recursive")) == 2


def test_a_fence_above_the_limit_is_cut_between_lines_and_each_part_knows_its_opening_line():
    code = "\n".join(f"value_{n} = compute(value_{n - 1})" for n in range(30))
    document = page(f"Before.\n\n```python\n{code}\n```\n\nAfter the code.")
    chunks = chunks_of(document, 60)
    inside = [chunk for chunk in chunks if chunk.fence]
    assert len(inside) > 3 and {chunk.fence for chunk in inside} == {"```python"}
    assert chunks[0].fence == ""
    for chunk in chunks:
        assert document.text.encode()[chunk.start : chunk.end].decode() == chunk.text
        for line in chunk.text.splitlines():
            assert line in document.text.splitlines()
        assert not chunk.text.endswith("```python") and not chunk.text.startswith("```\n")
        shown = fences.mend(chunk.text, chunk.fence)
        assert fences.after(shown, "") == ""
        assert shown.count("```") % 2 == 0
    assert "".join(c.text for c in chunks).count("```") == 2


def test_a_prompt_shows_cut_fences_mended_and_its_passages_keep_their_spans():
    code = "\n".join(f"value_{n} = compute(value_{n - 1})" for n in range(30))
    chunks = chunks_of(page(f"Before.\n\n```python\n{code}\n```\n\nAfter the code."), 60)[1:3]
    [system] = prompt.with_context([], chunks, 400)
    assert system.content.count("```python\n") == 2 and system.content.count("\n```") == 4
    assert all(chunk.text in system.content for chunk in chunks)
    assert prompt.fit(chunks, 400) == tuple(chunks)
    [system] = prompt.with_context([], chunks, 60)
    assert prompt.count(system.content) <= 60
    assert fences.after(system.content, "") == ""


def test_an_excerpt_from_within_a_fence_knows_its_opening_line():
    [chunk] = chunks_of(page("Text.\n\n```sh\nls\ncd ..\n```\n\nEnd."), 100)
    start = chunk.text.index("cd ..")
    assert prompt.excerpt(chunk, start, start + 5).fence == "```sh"
    assert prompt.excerpt(chunk, chunk.text.index("End"), len(chunk.text)).fence == ""
    assert prompt.shorten(chunk, 4).fence == ""


def test_rows_of_a_table_and_links_stay_whole_where_the_limit_allows():
    rows = [f"| name {n} | {'a value with words ' * 2} {n} |" for n in range(12)]
    cut = texts_of("\n".join(rows), 40)
    assert {line for chunk in cut for line in chunk.splitlines()} == set(rows)
    link = "[the manual of it](https://docs.example.org/library/(v1)/os.html#module-os)"
    words = " ".join(f"{link} word{n}" for n in range(12))
    cut = texts_of(words, 40)
    assert "".join(cut).count(link) == 12
    assert sum(chunk.count(link) for chunk in cut) == 12
    cut = texts_of(words, 40, method="recursive")
    assert sum(chunk.count(link) for chunk in cut) < 12


BLOCKS = st.lists(
    st.one_of(
        st.integers(1, 9).map(lambda n: "```py\nx = 1\n\n" + "y = f(x)\n" * n + "```"),
        st.integers(1, 5).map(lambda n: "\n".join(f"| cell {k} | {k} é |" for k in range(n))),
        st.integers(1, 30).map(lambda n: "Words [and a link](https://x.org/a) 汉字. " * n),
        st.sampled_from(["## Heading", "```", "plain"]),
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None, max_examples=80)
@given(BLOCKS, st.sampled_from([16, 40, 100, 300]), st.sampled_from([0, 8]), st.booleans())
def test_no_block_that_fits_is_cut(blocks, size, overlap, headed):
    text = "\n\n".join(blocks)
    starts = [at for at in range(len(text)) if headed and text.startswith("## Heading", at)]
    headings = tuple(
        Heading(start=len(text[:at].encode()), level=2, title="H", anchor="") for at in starts
    )
    chunks = chunks_of(page(text, headings=headings), size, overlap)
    borders = [0, *starts, len(text)]
    for first, last in itertools.pairwise(borders):
        for fence in fences.find(text, first, last):
            whole = text[fence.start : fence.end]
            if COUNTER(whole) <= size:
                start = len(text[: fence.start].encode())
                end = start + len(whole.encode())
                touching = [c for c in chunks if c.start < end and start < c.end]
                assert touching and all(c.start <= start and end <= c.end for c in touching)
    for chunk in chunks:
        assert chunk.num_tokens == COUNTER(chunk.text) <= size
        assert chunk.text.count("](") == chunk.text.count("[and a link](https://x.org/a)")


# --- code ----------------------------------------------------------------------------------------

PROGRAM = '''\
"""Ants.

# Not a heading
"""

class Ant:
    def dig(self):
        return 1


class Bee:
    def fly(self):
        return 2
'''


def test_code_is_cut_at_its_definitions_by_the_ending_of_its_address():
    for url in ("https://x.org/src/ants.py?plain=1#L1", "https://x.org/ants.PYI"):
        chunks = texts_of(PROGRAM, 20, method="code", url=url)
        firsts = [chunk.split("\n")[0] for chunk in chunks]
        assert firsts == ['"""Ants.', "class Ant:", "class Bee:"]
    assert texts_of(PROGRAM, 30, method="code") == texts_of(PROGRAM, 30, method="markdown")
