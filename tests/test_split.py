"""Split: exact spans of any text, limits that hold, ids that last, and mistakes told in a line."""

import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from stages import split
from stages.core import config, store
from stages.core.errors import PipelineError
from stages.core.model import Hub, Local, Scratch
from stages.core.records import Chunk, Document, Heading, Reject, addressed, url_at
from stages.split.chunks import split as split_document
from stages.split.cutting import Product
from stages.split.tokens import counter

ROOT = Path(__file__).resolve().parent.parent


def scratch(tokenizer="cl100k"):
    return Scratch(
        kind="scratch",
        tokenizer=tokenizer,
        vocab_size=300,
        hidden_size=8,
        num_layers=1,
        num_heads=1,
        context_tokens=64,
        pretrain_epochs=1,
        pretrain_learning_rate=1e-3,
        format=None,
    )


def local(folder):
    return Local(
        kind="local",
        path=str(folder),
        context_tokens=64,
        chat_template=None,
        template_head=None,
        end_of_turn=None,
        license=None,
        trained_answers="all",
        format=None,
    )


def product(chunk_tokens, overlap_tokens=0):
    return Product(chunk_tokens=chunk_tokens, overlap_tokens=overlap_tokens)


def settings_of(method="recursive", retrieval=(40, 8), training=(16, 0), max_reject_rate=0.5):
    return split.Config(
        method=method,
        retrieval=product(*retrieval),
        training=product(*training),
        max_reject_rate=max_reject_rate,
    )


COUNT = counter(scratch())


def document(text, id="d", url="https://x.org/p"):
    """A document whose headings are its lines that begin with #."""
    headings = []
    for match in re.finditer(r"^(#{1,6}) (.+)$", text, re.MULTILINE):
        start = len(text[: match.start()].encode())
        anchor = f"a{len(headings)}"
        headings.append(Heading(start=start, level=len(match[1]), title=match[2], anchor=anchor))
    return Document(id=id, url=url, title="T", text=text, source="s", headings=tuple(headings))


def chunks_of(text, chunk_tokens=40, overlap_tokens=0, method="recursive", name="retrieval"):
    products = {name: product(chunk_tokens, overlap_tokens)}
    return split_document(document(text), products, COUNT, method)[name]


# Any Unicode, mixed with what repeats itself: there a search for a chunk's text goes wrong.
WORDS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
    st.sampled_from(
        ["a", "ab", "naïve", "汉字汉字", "😀", "e\u0301", "12345", "<|endoftext|>", "x" * 90]
    ),
)
BLANKS = st.sampled_from([" ", "  ", "\n", "\n\n", "\n\n\n", "\t", "\u2003", "\u2028", ""])
LINES = st.sampled_from(["\n\n# One\n\n", "\n## Two é\n", "\n### Three\n\n", "\n- ", "\n```\n"])
TEXTS = st.lists(st.one_of(WORDS, BLANKS, BLANKS, LINES), max_size=60).map("".join)
REPEATED = st.builds(lambda part, times: part * times, TEXTS, st.integers(1, 6))
MARKDOWN = st.one_of(TEXTS, REPEATED).filter(str.strip)
METHODS = st.sampled_from(["recursive", "markdown", "code"])
LIMITS = st.sampled_from([8, 9, 12, 16, 40, 100, 900])


@settings(deadline=None, max_examples=250)
@given(MARKDOWN, METHODS, LIMITS, st.sampled_from([0, 0.1, 0.5, 0.9]))
def test_chunks_are_exact_spans_within_the_limit_that_hold_every_character(
    text, method, limit, share
):
    chunks = chunks_of(text, limit, int(limit * share), method)
    data = text.encode()
    held = bytearray(len(data))
    for chunk in chunks:
        assert data[chunk.start : chunk.end] == chunk.text.encode()
        assert chunk.text == chunk.text.strip() != ""
        assert chunk.num_tokens == COUNT(chunk.text) <= limit
        held[chunk.start : chunk.end] = b"\1" * (chunk.end - chunk.start)
    left_out = bytes(byte for byte, kept in zip(data, held, strict=True) if not kept)
    assert not left_out.decode().strip()
    assert len({chunk.id for chunk in chunks}) == len(chunks)
    starts, ends = [c.start for c in chunks], [c.end for c in chunks]
    assert starts == sorted(starts) and ends == sorted(ends)
    if share == 0:
        assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))


@settings(deadline=None, max_examples=150)
@given(MARKDOWN, METHODS, LIMITS, st.sampled_from([0, 0.5]), st.data())
def test_the_address_at_any_byte_of_a_chunk_is_that_of_the_last_mark_before_it(
    text, method, limit, share, data
):
    places = data.draw(st.lists(st.integers(0, len(text) - 1), max_size=9))
    anchors = data.draw(st.lists(st.sampled_from(["", "page=1", "page=2", "t=9"]), min_size=9))
    marks = [
        Heading(start=len(text[:place].encode()), level=7, title="", anchor=anchor)
        for place, anchor in zip(places, anchors, strict=False)
    ]
    page = document(text)
    page = page.model_copy(update={"headings": (*page.headings, *marks)})
    [chunks] = split_document(
        page, {"r": product(limit, int(limit * share))}, COUNT, method
    ).values()
    in_order = [h for h in sorted(page.headings, key=lambda h: h.start) if h.anchor]
    for chunk in chunks:
        expected = []
        for start in range(chunk.start, chunk.end):
            before = [heading for heading in in_order if heading.start <= start]
            expected.append(page.url + (f"#{before[-1].anchor}" if before else ""))
        assert [url_at(chunk, start) for start in range(chunk.start, chunk.end)] == expected
        assert chunk.url == expected[0]
        spans = list(addressed(chunk))
        assert [url for url, start, end in spans for _ in range(start, end)] == expected
        assert all(chunk.start < start < chunk.end for start, _ in chunk.marks)
        assert Chunk.model_validate_json(chunk.model_dump_json()) == chunk


@pytest.mark.parametrize("overlap", [0, 20])
def test_text_that_repeats_itself_is_covered_to_its_end(overlap):
    text = "tick tock " * 200
    chunks = chunks_of(text, 40, overlap)
    assert chunks[0].start == 0
    assert chunks[-1].end == len(text.rstrip())
    gaps = [b.start - a.end for a, b in itertools.pairwise(chunks)]
    assert max(gaps) <= 1
    assert (min(gaps) < -20) == (overlap > 0)


SECTIONS = st.lists(
    st.lists(st.sampled_from(["alpha", "beta", "gamma\n", "delta\n\n"]), min_size=1, max_size=40),
    min_size=2,
    max_size=6,
)


@settings(deadline=None)
@given(SECTIONS, st.data())
def test_by_headings_an_edit_in_one_section_keeps_the_ids_of_all_others(sections, data):
    def page(sections):
        bodies = (" ".join(words) for words in sections)
        return "".join(f"## S{i}\n\n{body}\n\n" for i, body in enumerate(bodies))

    place = data.draw(st.integers(0, len(sections) - 1))
    edited = [*sections[:place], ["new", *sections[place], "words"], *sections[place + 1 :]]

    def ids(sections):
        chunks = chunks_of(page(sections), 12, 3, "markdown")
        found = {}
        for chunk in chunks:
            found.setdefault(chunk.heading_path, []).append((chunk.text, chunk.id))
        return found

    before, after = ids(sections), ids(edited)
    for path in before:
        if path != (f"S{place}",):
            # Equal texts in two sections are told apart by their order in the page, and an edit
            # can make texts equal.
            unique = [
                row
                for row in before[path]
                if all(
                    sum(row[0] == r[0] for rows in made.values() for r in rows) <= 1
                    for made in (before, after)
                )
            ]
            assert set(unique) <= set(after[path])


def test_an_edit_at_the_end_keeps_every_id_before_it():
    paragraphs = [f"Paragraph {n} says something about the number {n}." for n in range(40)]
    before = chunks_of("\n\n".join(paragraphs), 40, 10)
    after = chunks_of("\n\n".join([*paragraphs[:-1], "An ending quite unlike it."]), 40, 10)
    assert [c.id for c in before[:-1]] == [c.id for c in after[: len(before) - 1]]
    assert before[-1].id not in {c.id for c in after}


def test_the_products_and_equal_texts_have_different_ids():
    text = "\n\n".join(["same words here and there"] * 3)
    chunks = chunks_of(text, 8)
    assert len({c.text for c in chunks}) == 1
    others = chunks_of(text, 8, name="training")
    assert len({c.id for c in [*chunks, *others]}) == 6


PAGE = """\
intro

# Title

about

## Empty

### Deep

body of deep

## Last

body of last
"""


def test_a_chunk_knows_the_headings_around_its_start_and_the_nearest_anchor():
    def place_of(words):
        [chunk] = [chunk for chunk in chunks_of(PAGE, 8) if words in chunk.text]
        return chunk.heading_path, chunk.url

    assert place_of("intro") == ((), "https://x.org/p")
    assert place_of("body of deep") == (("Title", "Empty", "Deep"), "https://x.org/p#a2")
    assert place_of("body of last") == (("Title", "Last"), "https://x.org/p#a3")


def test_by_headings_a_section_is_a_chunk_and_a_bare_heading_goes_with_the_next():
    chunks = chunks_of(PAGE, 900, method="markdown")
    assert [chunk.text.split("\n")[0] for chunk in chunks] == [
        "intro",
        "# Title",
        "## Empty",
        "## Last",
    ]
    assert chunks[2].heading_path == ("Title", "Empty")
    assert chunks[2].text.endswith("body of deep")


def test_a_heading_without_anchor_leaves_the_one_above_as_the_address():
    headings = (
        Heading(start=0, level=1, title="A", anchor="a"),
        Heading(start=5, level=2, title="B", anchor=""),
    )
    page = Document(
        id="d",
        url="https://x.org/p#old",
        title="",
        text="# A\n\n## B",
        source="s",
        headings=headings,
    )
    [chunk] = split_document(page, {"r": product(40)}, COUNT, "recursive")["r"]
    assert chunk.url == "https://x.org/p#a"


def test_special_tokens_in_the_text_are_counted_as_text():
    for tokenizer in ("cl100k", "o200k"):
        count = counter(scratch(tokenizer))
        assert count("<|endoftext|> and <|fim_prefix|>") > 8
        assert count("") == 0


def run(tmp_path, documents, cfg=None, model=None):
    store.write(tmp_path / "documents.jsonl", documents)
    out = tmp_path / "out"
    metrics = split.run(cfg or settings_of(), model or scratch(), tmp_path / "documents.jsonl", out)
    return metrics, out


def test_run_writes_both_products_and_says_how_many(tmp_path):
    pages = [document(PAGE, id=str(n), url=f"https://x.org/{n}") for n in range(3)]
    metrics, out = run(tmp_path, pages)
    retrieval = list(store.read(out / "retrieval.jsonl", Chunk))
    training = list(store.read(out / "training.jsonl", Chunk))
    assert metrics["num_documents"] == 3 and metrics["num_rejects"] == 0
    assert metrics["num_retrieval_chunks"] == len(retrieval) == 3
    assert metrics["num_training_chunks"] == len(training) > 3
    assert metrics["mean_retrieval_tokens"] > metrics["mean_training_tokens"]
    assert metrics["num_hard_cuts"] == 0
    assert {chunk.document_id for chunk in training} == {"0", "1", "2"}


def test_bad_documents_are_counted_rejects(tmp_path):
    misplaced = Heading(start=1, level=1, title="H", anchor="")
    pages = [
        document("fine words", id="1"),
        document(" \n\u2003\n", id="2"),
        document("again", id="1"),
        Document(id="4", url="u", title="", text="é", source="s", headings=(misplaced,)),
        document("fine as well", id="5"),
    ]
    metrics, out = run(tmp_path, pages, settings_of(max_reject_rate=0.6))
    rejects = list(store.read(out / "rejects.jsonl", Reject))
    assert [(row.id, row.reason) for row in rejects] == [
        ("2", "empty"),
        ("1", "its id stands twice"),
        ("4", "heading 'H' starts at byte 1, not at a character"),
    ]
    assert metrics["num_documents"] == 5 and metrics["num_rejects"] == 3
    with pytest.raises(PipelineError, match=r"split\.max_reject_rate: 3 of 5 .* more than 50%"):
        run(tmp_path, pages, settings_of(max_reject_rate=0.5))


def read(out, name):
    return store.read(out / f"{name}.jsonl", Chunk)


def test_binary_text_is_a_reject_and_a_stray_control_character_is_not(tmp_path):
    binary = bytes(range(256)).decode("latin1")
    replaced = b"\x89PNG\r\n\xff\xfe\xfd".decode(errors="replace")
    pages = [
        document(binary * 9, id="1"),
        document(replaced, id="2"),
        document("words and a \0 and \x1b[1m in a log " * 3, id="3"),
    ]
    metrics, out = run(tmp_path, pages, settings_of(max_reject_rate=0.7))
    rejects = list(store.read(out / "rejects.jsonl", Reject))
    assert [(row.id, row.reason) for row in rejects] == [
        ("1", "binary: 23% of its characters are in no text"),
        ("2", "binary: 44% of its characters are in no text"),
    ]
    assert metrics["num_documents"] == 3 and metrics["num_training_chunks"] > 0


def test_chunks_that_begin_in_a_fence_are_counted_and_every_chunk_names_its_source(tmp_path):
    code = "\n".join(f"value_{n} = compute({n})" for n in range(20))
    text = f"Before.\n\n```python\n{code}\n```\n\nAfter."
    metrics, out = run(tmp_path, [document(text)], settings_of("markdown"))
    rows = [
        c for name in ("retrieval", "training") for c in store.read(out / f"{name}.jsonl", Chunk)
    ]
    assert metrics["num_cut_fences"] == sum(row.fence == "```python" for row in rows) > 5
    assert {row.source for row in rows} == {"s"}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["recursive", "markdown"])
@pytest.mark.parametrize("part", ["x", "汉", "word [a](https://x.org) ", "```a\n", "| ", "[a](b"])
def test_a_document_of_ten_megabytes_with_no_place_to_cut_ends(part, method):
    text = part * (10_000_000 // len(part.encode()))
    products = {"retrieval": product(900, 100), "training": product(250)}
    for name, chunks in split_document(document(text), products, COUNT, method).items():
        assert max(chunk.num_tokens for chunk in chunks) <= products[name].chunk_tokens
        assert chunks[0].start == 0 and chunks[-1].end == len(text.rstrip().encode())


def test_a_line_of_a_megabyte_is_cut_hard_and_counted(tmp_path):
    line = "汉字" * 170_000
    metrics, out = run(
        tmp_path, [document(line)], settings_of(retrieval=(900, 100), training=(250, 0))
    )
    chunks = list(store.read(out / "training.jsonl", Chunk))
    assert "".join(chunk.text for chunk in chunks) == line
    assert max(chunk.num_tokens for chunk in chunks) <= 250
    total = metrics["num_retrieval_chunks"] + metrics["num_training_chunks"]
    assert metrics["num_hard_cuts"] == total - 2  # the two last chunks end with the text


def test_a_missing_file_of_documents_and_an_empty_one_are_told(tmp_path):
    with pytest.raises(PipelineError, match=r"nowhere\.jsonl: no such file"):
        split.run(settings_of(), scratch(), tmp_path / "nowhere.jsonl", tmp_path)
    with pytest.raises(PipelineError, match="no documents to split"):
        run(tmp_path, [])


def test_an_overlap_as_long_as_the_chunk_is_told_with_its_key():
    params = {"split": settings_of().model_dump()}
    params["split"]["training"]["overlap_tokens"] = 16
    with pytest.raises(PipelineError) as told:
        config.load(params, "split", split.Config)
    assert "split.training" in str(told.value)
    assert "expected an overlap_tokens below chunk_tokens" in str(told.value)
    with pytest.raises(ValidationError):
        product(7)


# --- tokenizers of a local folder and of the hub -------------------------------------------------


def bytes_tokenizer(folder, truncate=None, normalizer=None):
    """One token per byte; a real tokenizer.json."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer:
        tokenizer.normalizer = normalizer
    if truncate:
        tokenizer.enable_truncation(truncate)
        tokenizer.enable_padding(length=truncate)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))


def test_a_local_model_counts_with_its_own_tokenizer_however_it_truncates(tmp_path):
    bytes_tokenizer(tmp_path / "model", truncate=5)
    count = counter(local(tmp_path / "model"))
    assert count("twelve bytes") == 12
    assert count("é") == 2
    metrics, _ = run(tmp_path, [document("word " * 50)], model=local(tmp_path / "model"))
    assert 30 <= metrics["mean_retrieval_tokens"] <= 40


def test_a_character_longer_than_the_limit_rejects_its_document(tmp_path):
    # Compatibility normalisation spells this one character out in eighteen.
    bytes_tokenizer(tmp_path / "model", normalizer=normalizers.NFKC())
    pages = [document("fine \ufdfa fine", id="1"), document("fine", id="2")]
    metrics, out = run(tmp_path, pages, model=local(tmp_path / "model"))
    [reject] = store.read(out / "rejects.jsonl", Reject)
    assert reject.reason == "one character has 33 tokens, above the training limit"
    assert metrics["num_training_chunks"] == metrics["num_retrieval_chunks"] == 1


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_missing_model_folder_and_a_missing_or_broken_tokenizer_are_told(tmp_path):
    with pytest.raises(PipelineError) as told:
        counter(local(tmp_path / "nowhere"))
    assert one_line(told).startswith("model.path: ")
    with pytest.raises(PipelineError) as told:
        counter(local(tmp_path))
    assert "has no tokenizer.json; save it there" in one_line(told)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {}}')
    with pytest.raises(PipelineError) as told:
        counter(local(tmp_path))
    assert "not a tokenizer" in one_line(told)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.utils.reset_sessions()
    yield tmp_path
    monkeypatch.undo()
    huggingface_hub.utils.reset_sessions()


def hub(id="org/name"):
    return Hub(
        kind="hub",
        id=id,
        revision="main",
        context_tokens=64,
        chat_template=None,
        template_head=None,
        end_of_turn=None,
        license=None,
        trained_answers="all",
        format=None,
    )


def test_a_hub_model_in_the_cache_needs_no_network(hub_cache):
    folder = hub_cache / "models--org--name"
    commit = "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    bytes_tokenizer(folder / "snapshots" / commit)
    assert counter(hub())("four") == 4


@pytest.mark.parametrize("id", ["org/absent", "not a name"])
def test_a_hub_model_that_is_not_there_is_told(hub_cache, id):
    with pytest.raises(PipelineError) as told:
        counter(hub(id))
    assert one_line(told).startswith(f"model.id: {id!r} at 'main': no tokenizer.json")


# --- the same bytes everywhere -----------------------------------------------------------------


def test_the_files_are_equal_whatever_the_folder_and_the_hash_seed(tmp_path):
    """Split and index, each run twice in its own process and folder."""
    script = """
import json, sys
from pathlib import Path
from pydantic import TypeAdapter
from stages import index, split
from stages.answer.embedding import NoEmbedder
from stages.core.model import Config as Model
given = json.loads(sys.stdin.read())
model = TypeAdapter(Model).validate_python(given["model"])
cfg = split.Config.model_validate_json(json.dumps(given["split"]))
split.run(cfg, model, Path("documents.jsonl"), Path("split"))
cfg = index.Config(k1=1.5, b=0.75, store={"kind": "flat"}, max_reject_rate=0.5)
index.run(cfg, NoEmbedder(kind="none"), Path("split/retrieval.jsonl"), Path("index"))
"""
    given = {"model": scratch().model_dump(), "split": settings_of().model_dump()}
    digests = []
    for seed in ("1", "271828"):
        folder = tmp_path / f"folder-{seed}"
        pages = [
            document(PAGE + f"\nword{n} and finetune.learning_rate\n", str(n)) for n in range(9)
        ]
        store.write(folder / "documents.jsonl", pages)
        subprocess.run(
            [sys.executable, "-c", script],
            cwd=folder,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            input=json.dumps(given),
            text=True,
            check=True,
        )
        digests.append({path.name: store.digest(path) for path in folder.glob("*/*")})
    assert digests[0] == digests[1]
    assert len(digests[0]) >= 8
