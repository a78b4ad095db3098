"""Answer: sentences, verbatim quotes, prompts that fit, and what each system says and cites."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import answer
from stages.answer import prompt
from stages.answer.endpoint import Endpoint
from stages.answer.quoting import narrow, quote, support
from stages.answer.retrieval import LEXICAL, Hit, Index, build
from stages.answer.sentences import sentences
from stages.core.records import Chunk, Message, identify

CONFIG = answer.Config(
    search=LEXICAL, top_k=3, context_tokens=120, num_sentences=1, max_tokens=32, temperature=0.0
)


def chunk(text, path=(), document_id="d", start=0):
    return Chunk(
        id=identify(document_id, text, start),
        document_id=document_id,
        start=start,
        end=start + len(text.encode()),
        heading_path=path,
        url=f"https://x.org/{document_id}",
        text=text,
        num_tokens=1,
    )


def split_sentences(text):
    return [text[s.start : s.end] for s in sentences(text)]


def user(text):
    return Message(role="user", content=text)


# --- sentences -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        ["One sentence.", "Another one!", "A third?", "And “quoted.”", "Last"],
        [
            "Some keys, e.g. `model.id`, are names.",
            "Others, i.e. Python's, are not, etc. and so on.",
        ],
        ["See Fig. 3 and No. 5 for it.", "The answer is no.", "Then stop."],
        ["D. E. Knuth and Dr. Smith wrote it.", "Version 3.11 is out."],
        ["Call `a.b. C` or `x? Y` first.", "Then go."],
        ["A line that goes\non in the next.", "End."],
        ["**Bold.**", "_Slanted._", "(In brackets.)", "Done."],
    ],
)
def test_prose_is_cut_at_the_ends_of_its_sentences_only(parts):
    assert split_sentences(" ".join(parts)) == parts


def test_sentences_of_scripts_without_blanks_end_at_their_own_stops():
    assert split_sentences("这是一句。这是两句！「三句？」好") == [
        "这是一句。",
        "这是两句！",
        "「三句？」",
        "好",
    ]


MARKDOWN = """\
# Title

Read this.

    indented = code. More

And this. To start:

```bash
make demo. Then wait
# not a heading
```

| key | meaning |
|---|---|
| `a` | One. Two. |
| `b` | Three. |

- an item. With two sentences
  and a second line
- another
1. a numbered one

Term
: What it means. Really.

Setext
======

> Quoted prose. More of it.
"""


def test_rows_items_definitions_and_code_are_sentences_and_headings_are_none():
    assert split_sentences(MARKDOWN) == [
        "Read this.",
        "indented = code. More",
        "And this.",
        "To start:\n\n```bash\nmake demo. Then wait\n# not a heading\n```",
        "| `a` | One. Two. |",
        "| `b` | Three. |",
        "- an item. With two sentences\n  and a second line",
        "- another",
        "1. a numbered one",
        "Term\n: What it means. Really.",
        "> Quoted prose.",
        "More of it.",
    ]
    headings = [sentence.heading for sentence in sentences(MARKDOWN)]
    assert headings == ["# Title"] * (len(headings) - 2) + ["Setext"] * 2


def test_a_fence_without_its_other_half_hides_no_sentence():
    assert split_sentences("end of code\n```\n\nProse. More.") == ["end of code", "Prose.", "More."]


PIECES = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.sampled_from(
            ["\n", "\n\n", "# H\n", "| a | b |\n", "|---|---|\n", "- ", "```\n", ". ", ": "]
        ),
        st.sampled_from(["Ant. ", "bee, e.g. cow ", "`dog.eel` ", "Fox é\n"]),
    ),
    max_size=30,
).map("".join)


@settings(deadline=None, max_examples=200)
@given(PIECES)
def test_sentences_of_any_text_are_in_order_apart_and_without_outer_blanks(text):
    end = 0
    for sentence in sentences(text):
        said = text[sentence.start : sentence.end]
        assert said == said.strip() != ""
        assert sentence.start >= end
        end = sentence.end


# --- quotes --------------------------------------------------------------------------------------


@pytest.fixture
def indexed(tmp_path):
    def make(*chunks):
        build(chunks, tmp_path / "index", 1.5, 0.75)
        return Index.open(tmp_path / "index")

    return make


CAFÉ = "Café first. The budget of a sweep is in dollars. A run has no budget.\n\n| `k1` | Weight |"


def test_a_quote_is_the_best_sentence_with_its_bytes_and_address(indexed):
    index = indexed(chunk(CAFÉ, start=100), chunk("Nothing of it.", document_id="e"))
    said = quote(index, "What is the budget of a sweep?", 1)
    assert said.text == "The budget of a sweep is in dollars."
    [cited] = said.citations
    assert (cited.document_id, cited.url) == ("d", "https://x.org/d")
    assert CAFÉ.encode()[cited.start - 100 : cited.end - 100].decode() == said.text
    assert [hit.chunk.document_id for hit in said.hits] == ["d"]
    assert quote(index, "k1", 1).text == "| `k1` | Weight |"


def test_the_first_sentence_under_a_heading_answers_what_the_heading_asks(indexed):
    text = "## What is a ledger\n\nIt keeps paid calls. Old ones stay.\n\n## Next\n\nA ledger? No."
    assert quote(indexed(chunk(text)), "What is a ledger?", 1).text == "It keeps paid calls."


def test_a_sentence_that_two_chunks_share_is_quoted_once(indexed):
    index = indexed(chunk("Ants dig."), chunk("Ants dig. Bees fly."), chunk("Cows."))
    said = quote(index, "Do ants dig?", 5)
    assert said.text == "Ants dig."
    assert len(said.citations) == 1


def test_a_quote_of_several_sentences_keeps_the_order_of_the_page(indexed):
    index = indexed(
        chunk("Ants dig in deep soil. Cows eat. Ants dig deep."), chunk("Bees.", document_id="a")
    )
    said = quote(index, "Do ants dig deep?", 2)
    assert said.text == "Ants dig in deep soil.\nAnts dig deep."
    assert [cited.start for cited in said.citations] == [0, 33]


@pytest.mark.parametrize("question", ["Where is the moon?", "", "the of"])
def test_nothing_is_quoted_where_nothing_matches(indexed, question):
    said = quote(indexed(chunk("Ants dig."), chunk("Bees fly.")), question, 2)
    assert (said.text, said.citations, said.hits) == (prompt.NOT_FOUND, (), ())


def test_a_word_that_only_a_far_heading_has_is_no_reason_to_quote_nothing(indexed):
    index = indexed(chunk("# Ants", ("Ants",)), chunk("Bees fly."))
    said = quote(index, "ants", 1)
    assert said.text == prompt.NOT_FOUND  # a heading alone says nothing
    assert len(said.hits) == 1


SHARE = st.floats(0, 1)
HITS = st.lists(
    st.builds(Hit, st.just(1.0), st.just(chunk("Ants.")), SHARE, st.none() | st.floats(-1, 1)),
    max_size=3,
)


def test_what_shares_too_little_with_the_question_is_not_quoted(tmp_path):
    ants = "Ants dig deep tunnels in soft soil."
    build([chunk(ants), chunk("Bees fly."), chunk("Cows eat grass.")], tmp_path, 1.5, 0.75)
    for least, question, said in (
        (0.0, "Do ants collect aphids, mushrooms or honey?", ants),
        (0.25, "Do ants collect aphids, mushrooms or honey?", prompt.NOT_FOUND),
        (0.25, "Do ants dig tunnels?", ants),
        (1.0, "Do ants dig tunnels?", prompt.NOT_FOUND),
    ):
        index = Index.open(tmp_path, LEXICAL.model_copy(update={"min_support": least}))
        found = quote(index, question, 1)
        assert found.text == said
        assert bool(found.citations) == (said == ants)
        assert len(found.hits) == 1  # which are shown either way


@given(HITS, HITS)
def test_support_is_a_share_that_further_hits_of_the_search_do_not_lower(hits, more):
    assert 0 <= support(hits) <= 1
    assert support([]) == 0
    if any(hit.cosine is not None for hit in hits):
        assert support([*hits, *more]) >= support(hits)


@settings(deadline=None, max_examples=60)
@given(PIECES.map("{}\n\nBee.".format), st.text(max_size=10), st.integers(1, 4))
def test_every_citation_of_any_quote_is_the_document_s_own_bytes(
    tmp_path_factory, text, more, num_sentences
):
    folder = tmp_path_factory.mktemp("index")
    build([chunk(text, start=7)], folder, 1.5, 0.75)
    said = quote(Index.open(folder), f"bee dog.eel {more}", num_sentences)
    quoted = [text.encode()[c.start - 7 : c.end - 7].decode() for c in said.citations]
    assert 1 <= len(quoted) <= num_sentences
    assert said.text == "\n".join(quoted)


# --- prompts -------------------------------------------------------------------------------------


def test_a_closed_book_prompt_is_the_turns_themselves():
    turns = [user("a"), Message(role="assistant", content="b"), user("c")]
    assert prompt.closed_book(turns) == tuple(turns)


def test_a_prompt_with_context_numbers_the_chunks_and_says_what_to_say_without_one():
    chunks = [chunk("Ants dig.", ("Animals", "Ants")), chunk("Bees fly.")]
    system, question = prompt.with_context([user("Do ants dig?")], chunks, 100)
    assert system.role == "system"
    assert system.content == (
        "Answer from the numbered passages. If the answer is not in them, say exactly: "
        "That is not in the documents.\n\n[1] Animals > Ants\nAnts dig.\n\n[2]\nBees fly."
    )
    assert question == user("Do ants dig?")


LONG = st.lists(st.sampled_from(["word", "naïve", "汉字", "\n\n", "x.y", "😀"]), max_size=200)


@settings(deadline=None)
@given(st.lists(LONG.map(" ".join), max_size=4), st.integers(64, 300))
def test_a_prompt_with_context_never_exceeds_its_tokens_and_shows_exact_spans(texts, limit):
    chunks = [chunk(text, ("Part",), start=9) for text in texts]
    shown = prompt.fit(chunks, limit)
    [system] = prompt.with_context([], chunks, limit)
    assert prompt.count(system.content) <= limit
    assert prompt.fit(shown, limit) == shown
    for part, whole in zip(shown, chunks, strict=False):
        assert part.id == whole.id
        data = whole.text.encode()
        assert data[part.start - 9 : part.end - 9].decode() == part.text
        assert part.text in system.content
    everything = "".join(whole.text for whole in chunks)
    if prompt.count(everything) + 20 * len(chunks) + 40 <= limit:
        assert [part.text for part in shown] == texts


def test_long_chunks_are_narrowed_to_what_stands_around_their_best_sentence(indexed):
    filler = " ".join(f"Filler number {n} says nothing." for n in range(40))
    text = f"{filler} The budget is ten dollars. {filler}"
    index = indexed(chunk(text, start=5), chunk("A short one on the budget."))
    question = "What is the budget?"
    hits = index.search(question, 2)
    parts = narrow(index, hits, question, 80)
    assert sum(part.num_tokens for part in parts) <= 80
    [long] = [part for part in parts if "ten dollars" in part.text]
    assert text.encode()[long.start - 5 : long.end - 5].decode() == long.text
    assert long.num_tokens > 50  # the short chunk left its room over
    assert any(part.text == "A short one on the budget." for part in parts)


# --- answers -------------------------------------------------------------------------------------


@contextmanager
def serving(say):
    """A real endpoint on loopback whose models answer `say(model, messages)`; and what it got."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(given)
            body = {
                "choices": [
                    {
                        "message": {"content": say(given["model"], given["messages"])},
                        "finish_reason": "stop",
                    }
                ],
                "usage": {"completion_tokens": 7},
            }
            content = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    endpoint = Endpoint(url, {"base": {"id": "the-base"}, "tuned": {"id": "the-tuned"}})
    try:
        yield endpoint, asked
    finally:
        endpoint.close()
        server.shutdown()
        thread.join()
        server.server_close()


ANTS = chunk("Ants dig tunnels.", ("Ants",), document_id="ants", start=3)
BEES = chunk("Bees fly to flowers.", ("Bees",), document_id="bees")


def cited(said):
    return [(c.document_id, c.url, c.start, c.end) for c in said.citations]


def test_the_quote_system_needs_no_endpoint(indexed):
    said = answer.ask("quote", "Who digs tunnels?", indexed(ANTS, BEES), None, CONFIG)
    assert (said.text, said.tokens) == ("Ants dig tunnels.", 0)
    assert cited(said) == [("ants", "https://x.org/ants", 3, 20)]


@pytest.mark.parametrize(
    ("system", "model"), [("base_rag", "the-base"), ("tuned_rag", "the-tuned")]
)
def test_with_retrieval_the_citations_are_what_stood_in_the_prompt(indexed, system, model):
    with serving(lambda *_: " They dig. ") as (endpoint, asked):
        said = answer.ask(system, "Do ants or bees dig?", indexed(ANTS, BEES), endpoint, CONFIG)
    [request] = asked
    assert request["model"] == model
    assert request["max_tokens"] == 32 and request["temperature"] == 0.0
    assert [m["role"] for m in request["messages"]] == ["system", "user"]
    assert "[1] Ants\nAnts dig tunnels.\n\n[2] Bees" in request["messages"][0]["content"]
    assert (said.text, said.tokens) == ("They dig.", 7)
    assert cited(said) == [
        ("ants", "https://x.org/ants", 3, 20),
        ("bees", "https://x.org/bees", 0, 20),
    ]
    assert [hit.chunk for hit in said.hits] == [ANTS, BEES]


def test_a_chunk_that_is_cut_short_is_cited_as_far_as_it_was_shown(indexed):
    filler = " ".join(f"Filler {n} is nothing." for n in range(100))
    long = chunk(f"{filler} Ants dig tunnels é. {filler}", start=50)
    with serving(lambda *_: "yes") as (endpoint, asked):
        said = answer.ask("tuned_rag", "ants tunnels", indexed(long, BEES), endpoint, CONFIG)
    [(_, _, start, end)] = cited(said)
    shown = long.text.encode()[start - 50 : end - 50].decode()
    assert "Ants dig tunnels é." in shown and len(shown) < len(long.text) / 2
    content = asked[0]["messages"][0]["content"]
    assert content.endswith(f"[1]\n{shown}")
    assert prompt.count(content) <= CONFIG.context_tokens


@pytest.mark.parametrize("system", ["quote", "tuned", "tuned_rag", "base_rag"])
def test_a_citation_has_the_address_of_the_sentence_and_not_of_its_chunk(indexed, system):
    text = "Ants dig tunnels é. Cows eat grass. Ants swim in milk. Nothing else is here."
    pages = [text.index(words) for words in ("Cows", "Ants swim", "else")]
    marks = tuple(
        (50 + len(text[:place].encode()), f"page={n}") for n, place in enumerate(pages, 2)
    )
    paged = chunk(text, start=50).model_copy(
        update={"url": "https://x.org/d#page=1", "marks": marks}
    )
    index = indexed(paged, BEES)
    for question, said, page in (
        ("What do ants dig?", "Tunnels.", 1),
        ("What do cows eat?", "They eat grass.", 2),
        ("Where do ants swim?", "In milk.", 3),
    ):
        with serving(lambda *_, said=said: said) as (endpoint, _):
            found = answer.ask(system, question, index, endpoint, CONFIG)
        assert [c.url for c in found.citations] == [f"https://x.org/d#page={page}"]


def test_what_is_cut_out_of_a_chunk_keeps_its_address_and_the_marks_inside():
    text = "One. Two. Three. Four."
    marks = ((5, "two"), (10, "three"), (17, "four"))
    whole = chunk(text).model_copy(update={"marks": marks})
    part = prompt.excerpt(whole, 6, 17)
    assert (part.url, part.marks) == ("https://x.org/d#two", ((10, "three"),))
    assert prompt.excerpt(whole, 10, 22).url == "https://x.org/d#three"
    assert prompt.excerpt(whole, 0, 5).marks == ()


def test_where_nothing_is_retrieved_no_model_is_asked(indexed):
    with serving(lambda *_: "made up") as (endpoint, asked):
        said = answer.ask("tuned_rag", "the moon", indexed(ANTS, BEES), endpoint, CONFIG)
    assert (said.text, said.citations, said.tokens, asked) == (prompt.NOT_FOUND, (), 0, [])


def test_closed_book_only_the_tuned_model_cites_and_where_its_answer_stands(indexed):
    turns = [user("Hello"), Message(role="assistant", content="Yes?"), user("Who is it?")]
    with serving(lambda *_: "Bees, they fly.") as (endpoint, asked):
        tuned = answer.ask("tuned", turns, indexed(ANTS, BEES), endpoint, CONFIG)
        base = answer.ask("base", turns, indexed(ANTS, BEES), endpoint, CONFIG)
    assert [request["model"] for request in asked] == ["the-tuned", "the-base"]
    assert asked[0]["messages"] == asked[1]["messages"] == [m.model_dump() for m in turns]
    assert tuned.text == base.text == "Bees, they fly."
    assert cited(tuned) == [("bees", "https://x.org/bees", 0, 20)]
    assert [hit.chunk for hit in tuned.hits] == [BEES]
    assert (base.citations, base.hits) == ((), ())


@pytest.mark.parametrize("system", ["tuned", "tuned_rag", "base_rag"])
def test_an_answer_that_is_not_in_the_documents_cites_nothing(indexed, system):
    with serving(lambda *_: prompt.NOT_FOUND + "\n") as (endpoint, _):
        said = answer.ask(system, "Do ants sing?", indexed(ANTS, BEES), endpoint, CONFIG)
    assert (said.text, said.citations) == (prompt.NOT_FOUND, ())


def test_a_follow_up_is_searched_with_the_question_before_it(indexed):
    turns = [user("Tell me of ants."), Message(role="assistant", content="Bees?"), user("And why?")]
    said = answer.ask("quote", turns, indexed(ANTS, BEES), None, CONFIG)
    assert said.text == "Ants dig tunnels."
