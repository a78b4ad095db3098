"""Index: what a chunk is found by, in which order, and files that are only data."""

import base64
import contextlib
import json
from itertools import permutations
from string import ascii_lowercase

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import index
from stages.answer import embedding
from stages.answer.embedding import NoEmbedder
from stages.answer.export import export
from stages.answer.lexical import indexed_terms, terms, unlinked
from stages.answer.retrieval import LEXICAL, Index, build
from stages.answer.vectors import Flat
from stages.core import store
from stages.core.errors import PipelineError
from stages.core.records import Chunk, Reject, identify

CONFIG = index.Config(k1=1.5, b=0.75, store=Flat(kind="flat"), max_reject_rate=0.5)
WORDS = NoEmbedder(kind="none")


def chunk(text, path=(), id=None):
    return Chunk(
        id=id or identify(text, path),
        document_id="d",
        start=0,
        end=len(text.encode()),
        heading_path=path,
        url="https://x.org/p",
        text=text,
        num_tokens=1,
    )


@pytest.fixture
def indexed(tmp_path):
    def make(*chunks):
        build(chunks, tmp_path / "index", 1.5, 0.75)
        return Index.open(tmp_path / "index")

    return make


def texts(hits):
    return [hit.chunk.text for hit in hits]


# --- terms ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "whole", "parts"),
    [
        ("finetune.learning_rate", "finetune.learning_rate", {"finetune", "learning_rate", "rate"}),
        ("torch.nn.functional.relu", "torch.nn.functional.relu", {"torch", "functional", "relu"}),
        ("RecursiveCharacterTextSplitter", "recursivecharactertextsplitter", {"character", "text"}),
        ("--num-processes", "num-processes", {"num", "process"}),
        ("data/split/training.jsonl", "data/split/training.jsonl", {"split", "jsonl"}),
        ("__init__", "__init__", {"init"}),
        ("HTTPServer2", "httpserver2", {"http", "server2"}),
    ],
)
def test_a_name_is_a_term_as_a_whole_and_in_parts(text, whole, parts):
    found = list(terms(f"Set `{text}`, please."))
    assert whole in found
    assert parts <= set(found)
    assert len(found) == len(set(found))


def test_plurals_meet_their_singulars_and_stopwords_are_no_terms():
    assert list(terms("What are the batches of it?")) == list(terms("batch"))
    assert list(terms("Which queries do you cache?")) == list(terms("Query caches"))
    assert list(terms("status class analysis")) == ["status", "class", "analysis"]
    assert list(terms("don't it's you'll")) == ["don"]


def test_scripts_without_blanks_are_terms_of_two_characters():
    assert {"模型", "型训", "训练"} <= set(terms("模型训练。"))
    assert list(terms("ｆｕｌｌ")) == ["full"]


@settings(deadline=None)
@given(st.text())
def test_any_text_has_terms_that_are_lowercase_and_have_no_blanks(text):
    for term in terms(text):
        assert term and not any(map(str.isspace, term))
        assert term == term.lower()


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("See [`a`](https://x.org/a_(b)#c), then.", "See [`a`], then."),
        ('[a](/b "A title") and ![c](./d.png)', "[a] and ![c]"),
        ("[a](#b)[c](../d?e=f) <mailto:g@h.org>", "[a][c] <mailto:g@h.org>"),
        ("rows[0](x) and [a] (b) and [c](d e)", "rows[0](x) and [a] (b) and [c](d e)"),
    ],
)
def test_a_link_is_read_without_its_address_and_code_as_it_is(text, without):
    assert unlinked(text) == without
    assert list(indexed_terms(chunk(text))) == list(terms(without))


@settings(deadline=None)
@given(st.text('ab[]()/ \n"', max_size=60))
def test_any_text_keeps_all_that_is_outside_of_addresses(text):
    kept = iter(text)
    assert all(letter in kept for letter in unlinked(text))  # in order, none added
    assert "](" in text or unlinked(text) == text


# --- search --------------------------------------------------------------------------------------


def test_the_chunk_with_the_rarer_words_of_the_question_comes_first(indexed):
    found = indexed(
        chunk("The learning rate is a number."),
        chunk("The budget is a number of dollars."),
        chunk("A number."),
    ).search("Which number is the budget?", 5)
    assert texts(found)[0] == "The budget is a number of dollars."
    assert len(found) == 3
    assert found[0].score > found[1].score > 0


def test_a_name_is_found_by_itself_and_by_a_part(indexed):
    found = indexed(chunk("`finetune.learning_rate`: how fast."), chunk("`crawl.delay`: how slow."))
    for query in ("finetune.learning_rate", "LEARNING rate", "learning_rate", "the finetune"):
        assert texts(found.search(query, 5)) == ["`finetune.learning_rate`: how fast."]


def test_headings_are_searched_with_the_text(indexed):
    found = indexed(chunk("It ends.", ("Sweeps", "Budget")), chunk("It goes on.", ("Runs",)))
    assert texts(found.search("budget of a sweep", 5)) == ["It ends."]


def test_equal_scores_are_ordered_by_chunk_id(indexed):
    ids = [f"{n:04x}" for n in (7, 3, 11, 5, 1, 2)]
    found = indexed(*(chunk("same words", id=id) for id in ids))
    assert [hit.chunk.id for hit in found.search("same", 4)] == sorted(ids)[:4]
    assert [hit.chunk.id for hit in found.search("same", 400)] == sorted(ids)


@pytest.mark.parametrize("query", ["", "the of is", "unheard-of", "¿?", "\0"])
def test_a_query_without_a_known_term_finds_nothing(indexed, query):
    assert indexed(chunk("words"), chunk("other words")).search(query, 3) == []


def test_no_hits_are_asked_for_and_none_come(indexed):
    assert indexed(chunk("words"), chunk("others")).search("words", 0) == []


VOCABULARY = st.sampled_from(["ant", "bee", "cow", "dog", "eel", "fox.gnu"])
TEXTS = st.lists(VOCABULARY, min_size=1, max_size=8).map(" ".join)


@settings(deadline=None, max_examples=50)
@given(st.lists(TEXTS, min_size=1, max_size=12, unique=True), TEXTS, st.integers(1, 14))
def test_hits_are_all_that_share_a_term_best_first(tmp_path_factory, bodies, query, k):
    folder = tmp_path_factory.mktemp("index")
    build([chunk(body) for body in bodies], folder, 1.5, 0.75)
    hits = Index.open(folder).search(query, k)
    sharing = [body for body in bodies if set(terms(body)) & set(terms(query))]
    assert len(hits) == min(k, len(sharing))
    assert set(texts(hits)) <= set(sharing)
    assert [(-h.score, h.chunk.id) for h in hits] == sorted((-h.score, h.chunk.id) for h in hits)
    assert hits == Index.open(folder).search(query, 99)[:k]
    assert all(0 < hit.words < 1 and hit.cosine is None for hit in hits)


def test_a_hit_tells_how_much_of_the_question_its_words_have(indexed):
    found = indexed(chunk("Ants dig."), chunk("Ants."), chunk("Bees fly."))
    [whole] = found.search("ants dig", 1)
    [half] = found.search("ants sing", 1)
    assert half.words < whole.words < 1
    assert found.search("ants ants", 1)[0].words == found.search("ants", 1)[0].words
    for polite in ("Please explain: do ants dig?", "Hi! I need to know: ants, dig. Thanks."):
        assert found.search(polite, 1)[0].words == whole.words
    assert found.search("Do cows moo?\nDo ants dig?", 1)[0].words == whole.words  # the second one


# --- run and files -------------------------------------------------------------------------------


def run(tmp_path, chunks, cfg=CONFIG):
    store.write(tmp_path / "retrieval.jsonl", chunks)
    return index.run(cfg, WORDS, tmp_path / "retrieval.jsonl", tmp_path / "out"), tmp_path / "out"


def test_run_indexes_what_has_words_and_counts_the_rest(tmp_path):
    given = [chunk("one"), chunk("two"), chunk("---", id="x"), chunk("two"), chunk("three")]
    metrics, out = run(tmp_path, given)
    assert metrics == {"num_chunks": 3, "num_rejects": 2, "num_terms": 3, "num_vectors": 0}
    rejects = list(store.read(out / "rejects.jsonl", Reject))
    assert [row.reason for row in rejects] == ["no word to find it by", "its id stands twice"]


def test_too_many_rejects_fail_the_stage_and_so_does_nothing_to_index(tmp_path):
    with pytest.raises(PipelineError, match=r"index\.max_reject_rate: 2 of 3 chunks rejected"):
        run(tmp_path, [chunk("word"), chunk("!"), chunk("?")])
    with pytest.raises(PipelineError, match="nothing to index"):
        run(tmp_path, [])
    with pytest.raises(PipelineError, match=r"nowhere\.jsonl: no such file"):
        index.run(CONFIG, WORDS, tmp_path / "nowhere.jsonl", tmp_path)


def test_the_files_are_arrays_and_json_and_the_order_of_the_chunks_does_not_show(tmp_path):
    chunks = [chunk(f"word{n} and more") for n in range(20)]
    build(chunks, tmp_path / "a", 1.5, 0.75)
    build(chunks[::-1], tmp_path / "b", 1.5, 0.75)
    assert store.digest(tmp_path / "a") == store.digest(tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        match path.suffix:
            case ".npy":
                assert np.load(path, allow_pickle=False).dtype.kind in "fi"
            case ".jsonl":
                assert len(list(store.read(path, Chunk))) == 20
            case _:
                assert json.loads(path.read_text())


def test_a_missing_a_broken_and_a_pickled_index_are_told_in_a_line(tmp_path):
    with pytest.raises(PipelineError, match=r"chunks\.jsonl: no such file; `dvc repro` makes it"):
        Index.open(tmp_path)
    build([chunk("words")], tmp_path, 1.5, 0.75)
    np.save(tmp_path / "data.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(PipelineError, match=r"data\.npy: not an array of numbers"):
        Index.open(tmp_path)
    (tmp_path / "data.npy").write_bytes(b"")
    with pytest.raises(PipelineError, match=r"data\.npy: not an array of numbers"):
        Index.open(tmp_path)
    build([chunk("words")], tmp_path, 1.5, 0.75)
    store.write_json(tmp_path / "vocabulary.json", ["more", "words"])
    with pytest.raises(PipelineError, match="not of one index"):
        Index.open(tmp_path)


# --- the index as one file -----------------------------------------------------------------------


class Letters:
    """An embedder without a model: a text's vector is the counts of its letters."""

    identity = "letters"
    window_tokens = 50

    def texts(self, texts):
        counts = [
            [text.lower().count(letter) + 0.01 for letter in ascii_lowercase] for text in texts
        ]
        return (np.array(counts) / np.linalg.norm(counts, axis=1)[:, None]).astype(np.float32)

    def question(self, text):
        return self.texts([text])[0]


@pytest.fixture
def letters(monkeypatch):
    monkeypatch.setattr(embedding, "open", lambda cfg: contextlib.nullcontext(Letters()))


def hybrid(**changes):
    changes = {
        "method": "hybrid",
        "candidates": 20,
        "rank_constant": 60.0,
        "dense_weight": 1.0,
    } | changes
    return LEXICAL.model_copy(update=changes)


def test_the_exported_file_finds_by_itself_what_the_index_finds(tmp_path, letters):
    words = ("plum", "pear", "apple", "fig", "quince", "cherry")
    many = [
        chunk(f"The {a} and the {b} grow. " * 9, (f"On {a}",)) for a, b in permutations(words, 2)
    ]
    run(tmp_path, many)
    assert export(tmp_path / "out", tmp_path / "index.json") == len(many)
    whole = json.loads((tmp_path / "index.json").read_text())  # from here on without Docent
    ids = [row["id"] for row in whole["chunks"]]
    by_words = {}
    for term in ("plum", "fig"):
        for place, score in whole["terms"][term]:
            by_words[ids[place]] = by_words.get(ids[place], 0) + score
    vectors = np.frombuffer(base64.b64decode(whole["dense"]["vectors"]), "<f2").astype(np.float32)
    vectors = vectors.reshape(-1, whole["dense"]["dimension"])
    cosines = vectors @ Letters().question("plum fig")
    by_meaning = {}
    for row, cosine in zip(whole["dense"]["rows"], cosines, strict=True):
        by_meaning[ids[row]] = max(by_meaning.get(ids[row], -1), cosine)
    with Index.open(tmp_path / "out", hybrid()) as opened:
        for method, found in (("lexical", by_words), ("dense", by_meaning)):
            hits = opened.search("plum fig", 10, hybrid(method=method))
            assert [found[hit.chunk.id] for hit in hits] == pytest.approx(
                [hit.score for hit in hits], abs=2e-3
            )
            assert hits[-1].score == pytest.approx(sorted(found.values())[-10], abs=2e-3)


# --- search by meaning ----------------------------------------------------------------------------


def test_a_hybrid_search_ranks_first_what_both_searches_rank_first(tmp_path, letters):
    run(tmp_path, [chunk("zzz plum"), chunk("plum"), chunk("zzzz zz"), chunk("axe")])
    with Index.open(tmp_path / "out", hybrid()) as opened:
        hits = opened.search("plum", 4)
        assert hits[0].chunk.text == "plum" and hits[0].score == pytest.approx(1)
        assert {hit.chunk.text for hit in hits} >= {"plum", "zzz plum", "axe"}


def test_a_long_chunk_is_found_by_its_best_part(tmp_path, letters):
    long = " ".join(f"Sentence {n} tells of zebras." for n in range(60)) + " Plump plums plummet."
    metrics, _ = run(tmp_path, [chunk(long), chunk("A sentence tells of plums too.")])
    assert metrics["num_vectors"] > 5
    with Index.open(tmp_path / "out", hybrid(method="dense")) as opened:
        assert opened.search("plump plums plummet", 1)[0].chunk.text == long


def test_a_hit_by_meaning_has_the_cosine_of_its_best_part(tmp_path, letters):
    run(tmp_path, [chunk("plum [a](https://zzz.org/zzzz)"), chunk("axe")])
    for method, cosine in (("dense", 1), ("hybrid", 1), ("lexical", None)):
        with Index.open(tmp_path / "out", hybrid(method=method)) as opened:
            [hit] = opened.search("plum [a]", 1)
            assert hit.cosine == (cosine and pytest.approx(cosine, abs=1e-3))
            assert hit.words > 0


def test_of_a_long_chunk_the_part_with_most_of_the_question_is_reranked(indexed):
    filler = " ".join(f"Sentence {n} says nothing." for n in range(40))
    long = chunk(f"{filler} Plums are [ripe](https://x.org/r). {filler}", ("Fruit",))
    found = indexed(long, chunk("Pears are green."))
    passage = found.passage("When are plums ripe?", long, 60)
    assert passage.startswith("Fruit\n") and "Plums are [ripe]." in passage
    assert len(passage) < len(long.text) / 4
    assert "Sentence 0 " in found.passage("of the", long, 60)  # the first of equals


def test_a_search_may_be_kept_to_some_sources(tmp_path, letters):
    many = [chunk(f"plum {n}").model_copy(update={"source": f"s{n % 3}"}) for n in range(12)]
    run(tmp_path, many)
    for method in ("lexical", "dense", "hybrid"):
        with Index.open(tmp_path / "out", hybrid(method=method, sources=("s1",))) as opened:
            hits = opened.search("plum", 12)
            assert len(hits) == 4 and {hit.chunk.source for hit in hits} == {"s1"}


def test_the_neighbours_of_a_hit_are_shown_in_the_order_of_the_page(tmp_path):
    page = [
        chunk(text).model_copy(update={"start": 100 * n, "end": 100 * n + len(text)})
        for n, text in enumerate(("before", "the plum", "after", "far"))
    ]
    run(tmp_path, page)
    with Index.open(tmp_path / "out", LEXICAL.model_copy(update={"neighbours": 1})) as opened:
        hits = opened.search("plum", 1)
        assert texts(hits) == ["the plum"]
        assert texts(opened.around(hits)) == ["before", "the plum", "after"]


def test_an_index_without_vectors_says_how_to_get_them(tmp_path):
    run(tmp_path, [chunk("plum")])
    with pytest.raises(PipelineError, match=r"has no vectors: build it with an embedder"):
        Index.open(tmp_path / "out", hybrid())


def test_vectors_of_another_model_are_not_searched(tmp_path, letters, monkeypatch):
    run(tmp_path, [chunk("plum")])
    monkeypatch.setattr(Letters, "identity", "others")
    with pytest.raises(PipelineError, match="the embedding model has changed since"):
        Index.open(tmp_path / "out", hybrid())
