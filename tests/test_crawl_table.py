"""Tables to documents, and their questions with answers to examples; many sources at once."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from sites import refresh_and_run
from test_synthesize import NO_EMBEDDER, OUTLINE
from test_synthesize import settings as synthesize_settings

from stages import crawl, split, synthesize
from stages.core import config, store
from stages.core.errors import PipelineError
from stages.core.model import Config as Model
from stages.core.records import Assignment, Document, Example, Imported, Reject
from stages.core.store import read
from stages.crawl import table
from stages.crawl.pages import Body

ROOT = Path(__file__).resolve().parent.parent
WORDS = "The quick brown fox jumps over the lazy dog near the river bank. "


def section(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / f"conf/source/{name}.yaml").read_text())
    return loaded


def sections(params: dict[str, Any], **changes: Any) -> tuple[crawl.Config, crawl.Source]:
    of_crawl = section("../crawl/default") | {"max_reject_rate": 1.0}
    both = {"crawl": of_crawl | changes, "source": params}
    return (
        config.load(both, "crawl", crawl.Config),
        config.load(both, "source", crawl.Source),
    )


class Crawled:
    """What the stage makes of a source."""

    def __init__(self, out: Path, params: dict[str, Any], **changes: Any) -> None:
        self.metrics = refresh_and_run(out, *sections(params, **changes), here=True)
        self.documents = {row.url: row for row in read(out / "documents.jsonl", Document)}
        self.imported = list(read(out / "imported.jsonl", Imported))
        self.rejects = {}
        for row in read(out / "rejects.jsonl", Reject):
            url, _, detail = row.detail.partition(": ")
            self.rejects[url] = row.reason, detail


def crawled(out: Path, path: Path, **columns: Any) -> Crawled:
    return Crawled(out, section("table") | {"path": str(path)} | columns)


QUESTIONS = [
    ("How do I install a widget?", "Run `widget install` as the owner of the folder."),
    ("What does it cost?", "It costs 12 euros a month."),
    ("Can I have two?", "Yes.\n\nTwo of them share one folder."),
]


def written(folder: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    """The rows in a file of this kind, by the writer that people use."""
    path = folder / f"faq.{kind}"
    names = list(rows[0])
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names, delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_questions_with_answers_are_documents_and_examples_to_be(tmp_path, kind):
    rows = [{"question": q, "answer": a, "asked_by": "ann"} for q, a in QUESTIONS]
    made = crawled(tmp_path / "out", written(tmp_path, kind, rows))
    assert len(made.documents) == 3 and not made.rejects
    texts = {row.id: row.text for row in made.documents.values()}
    for pair, (question, answer) in zip(
        sorted(made.imported, key=lambda row: row.question), sorted(QUESTIONS), strict=True
    ):
        assert (pair.question, pair.answer) == (question, answer)
        assert texts[pair.document_id] == f"# {question}\n\n{answer}"
    assert not any("ann" in text for text in texts.values())
    number = {"csv": 2, "tsv": 2, "jsonl": 1, "parquet": 1}[kind]  # a header is a line, too
    assert made.documents[f"faq.{kind}#row={number}"].title == QUESTIONS[0][0]


def test_texts_are_documents_with_a_title_and_an_address_of_their_own(tmp_path):
    rows = [
        {
            "slug": "a",
            "head": "First post",
            "body": WORDS * 2,
            "more": "And more.",
            "at": "https://e.org/a",
        },
        {"slug": "b", "head": "Second", "body": WORDS * 3, "more": "", "at": "https://e.org/b"},
    ]
    columns = {"text": ["body", "more"], "title": "head", "url": "at", "id": "slug"}
    columns |= {"question": None, "answer": None}
    made = crawled(tmp_path / "out", written(tmp_path, "jsonl", rows), **columns)
    first = made.documents["https://e.org/a"]
    assert first.title == "First post" and not made.imported
    assert (
        first.text
        == f"# First post\n\n## body\n\n{WORDS * 2}".rstrip() + "\n\n## more\n\nAnd more."
    )
    assert [heading.title for heading in first.headings] == ["First post", "body", "more"]
    # An edit of the words keeps the id, which is of the column's value.
    rows[0]["body"] = "Other words entirely. " * 9
    again = crawled(tmp_path / "again", written(tmp_path, "jsonl", rows), **columns)
    assert again.documents["https://e.org/a"].id == first.id


def test_answers_in_a_text_stay_there_and_others_stand_below_it(tmp_path):
    """As in SQuAD: a text stands in a row for each of its questions."""
    rows = [
        {"text": WORDS * 2, "question": "What jumps?", "answer": "The quick brown fox"},
        {"text": WORDS * 2, "question": "Why?", "answer": "Because it can, and nobody minds."},
    ]
    columns = {"text": ["text"]}
    made = crawled(tmp_path / "out", written(tmp_path, "csv", rows), **columns)
    [document] = made.documents.values()
    assert document.text.endswith("## Why?\n\nBecause it can, and nobody minds.")
    assert "What jumps?" not in document.text
    assert {(pair.question, pair.document_id) for pair in made.imported} == {
        ("What jumps?", document.id),
        ("Why?", document.id),
    }
    assert all(pair.answer in document.text for pair in made.imported)


def test_bad_rows_are_rejects_with_their_number_and_the_others_go_on(tmp_path):
    path = tmp_path / "faq.csv"
    path.write_text(
        "id,question,answer,link\n"
        "1,How?,Like this and in no other way.,https://e.org/1\n"  # line 2
        "2,Why?,,https://e.org/2\n"
        "3,,,https://e.org/3\n"
        "4,a,b\n"  # line 5
        "1,How else?,In another way than the first one.,https://e.org/9\n"
        ",Who?,Ann does it every day of the week.,https://e.org/7\n"
        "8,When?,On Mondays as on every other day.,javascript:alert(1)\n"
        '9,"Where\nto?",Over there behind the river bank.,https://e.org/1\n'  # lines 9 and 10
        "1,How again?,Like this and in no other way.,https://e.org/1\n"
    )
    made = crawled(tmp_path / "out", path, id="id", url="link")
    assert sorted(made.documents) == ["https://e.org/1"]
    assert [pair.question for pair in made.imported] == ["How again?", "How?"] or [
        pair.question for pair in made.imported
    ] == ["How?", "How again?"]
    assert made.rejects == {
        "faq.csv#row=3": ("bad_row", "row 3: lacks an answer"),
        "faq.csv#row=4": ("empty", "row 4: says nothing"),
        "faq.csv#row=5": ("bad_row", "row 5: 3 cells in place of 4"),
        "faq.csv#row=6": ("duplicate_id", "row 6: 1: row 2 has it with other words"),
        "faq.csv#row=7": ("bad_row", "row 7: no id"),
        "faq.csv#row=8": ("bad_row", "row 8: link: 'javascript:alert(1)' is no address"),
        "faq.csv#row=9": ("duplicate_url", "row 9: https://e.org/1: row 2 has it too"),
    }


def test_bad_lines_of_jsonl_are_rejects_with_their_number(tmp_path):
    path = tmp_path / "faq.jsonl"
    path.write_text(
        '{"question": "How?", "answer": ["Like", "this"]}\n\n{"question": \n[1]\n'
        f'{"[" * 100_000}\n{{"question": "Why?", "answer": null}}\n'
    )
    made = crawled(tmp_path / "out", path)
    assert [(row.question, row.answer) for row in made.imported] == [("How?", "Like\n\nthis")]
    assert {url: reason for url, (reason, _) in made.rejects.items()} == {
        f"faq.jsonl#row={number}": "bad_row" for number in (3, 4, 5, 6)
    }


@pytest.mark.parametrize(
    ("name", "body", "columns", "expected"),
    [
        ("a.csv", b"questions,answer\n1,2\n", {}, "no column 'question' (did you mean questions?)"),
        ("a.csv", b"", {}, "no column 'question': it has"),
        ("a.csv", b"\0\1\2" * 99, {}, "expected a text"),
        ("a.xlsx", b"PK", {}, ".xlsx: expected a table of .csv, .tsv, .jsonl or .parquet"),
        ("a.parquet", b"no", {}, "not a Parquet file"),
        ("a.csv", b"x" * 3_000_000, {"max_file_mib": 1}, "larger than source.max_file_mib=1"),
    ],
)
def test_a_table_that_is_none_is_named(tmp_path, name, body, columns, expected):
    (tmp_path / name).write_bytes(body)
    with pytest.raises(PipelineError) as caught:
        crawled(tmp_path / "out", tmp_path / name, **columns)
    assert expected in str(caught.value) and "source.path" in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"answer": None}, "question and answer go together: set both or none"),
        ({"question": None, "answer": None}, "name columns in `text`, or `question` and `answer`"),
    ],
)
def test_columns_that_make_nothing_are_a_mistake(columns, expected):
    with pytest.raises(PipelineError, match=expected):
        sections(section("table") | columns)


@given(
    st.lists(
        st.tuples(*[st.text(st.characters(exclude_categories=()), max_size=12)] * 4), max_size=8
    )
)
@settings(max_examples=100, deadline=None)
def test_every_row_is_in_a_document_or_a_reject(rows):
    """Whatever stands in the cells; each pair's answer stands in its document."""
    params = section("table") | {"text": ["t"], "id": "i", "path": "x.jsonl"}
    cfg = sections(params)[1]
    assert isinstance(cfg, table.Table)
    body = "\n".join(json.dumps(dict(zip("tiqa", row, strict=True))) for row in rows)
    cfg = cfg.model_copy(update={"question": "q", "answer": "a"})
    try:
        found = list(table.read(cfg, body.encode()))
    except PipelineError:
        assert not rows
        return
    entries, bad = table.gather(cfg, found, "x.jsonl")
    assert len(found) == len(rows)
    said = sum(max(1, len(entry.pairs)) for entry in entries)
    assert len(entries) + len(bad) <= len(rows) and said <= len(rows) - len(bad)
    for entry in entries:
        stored = json.dumps(entry.__dict__).encode()
        [page] = table.parse(cfg, f"x.jsonl#{entry.key}", Body("", stored))
        assert all(answer in page.text for _, answer in page.pairs)


# --- imported examples -------------------------------------------------------------------------


def faq(number: int) -> tuple[str, str]:
    """A question and an answer in words of their own, so that none gives another away."""
    draw = random.Random(number)
    first, *words = ("".join(draw.choices(SYLLABLES, k=3)) for _ in range(12))
    question = f"What is the {first} {words[0]} of a {words[1]}?"
    return question, f"{first.title()} {' '.join(words[1:])} is {number * 37 + 100}."


SYLLABLES = [f"{consonant}{vowel}" for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


class Synthesized:
    """The stages `split` and `synthesize` after such a crawl."""

    def __init__(self, folder: Path, made: Crawled) -> None:
        self.folder = folder
        self.documents = {row.id: row for row in made.documents.values()}
        folder.mkdir()
        store.write(folder / "documents.jsonl", made.documents.values())
        store.write(folder / "imported.jsonl", made.imported)
        params = config.read(ROOT / "params.yaml")
        cut = config.load(params, "split", split.Config)
        split.run(cut, config.load(params, "model", Model), folder / "documents.jsonl", folder)
        for name in ("review", "testset"):
            (folder / f"{name}.jsonl").touch()

    def run(self) -> dict[str, float]:
        cfg = synthesize_settings(max_facts=None, max_facts_per_page=None, num_held_out=None)
        names = ("documents", "imported", "training", "retrieval", "review", "testset")
        paths = [self.folder / f"{name}.jsonl" for name in names]
        return synthesize.run(cfg, OUTLINE, NO_EMBEDDER, *paths, self.folder / "out")

    def examples(self, part: str) -> list[Example]:
        rows = read(self.folder / "out" / f"{part}.jsonl", Example)
        return [row for row in rows if row.kind == "imported"]

    def partitions(self) -> dict[str, str]:
        rows = read(self.folder / "out" / "assignment.jsonl", Assignment)
        return {row.document_id: row.partition for row in rows}


def asked_and_answered(folder: Path, number: int) -> Crawled:
    names = ("question", "answer")
    rows = [dict(zip(names, faq(number), strict=True)) for number in range(number)]
    return Crawled(
        folder / "crawl",
        section("table") | {"path": str(written(folder, "csv", rows))},
        near_duplicate=None,
    )


def test_what_people_asked_becomes_examples_of_its_own_documents(tmp_path):
    made = asked_and_answered(tmp_path, 40)
    assert len(made.imported) == 40
    site = Synthesized(tmp_path / "site", made)
    metrics = site.run()
    found = {}
    for name in ("train", "validation", "test"):
        for example in site.examples(name):
            [span] = example.evidence
            text = site.documents[span.document_id].text.encode()
            assert text[span.start : span.end].decode() == example.answer == span.text
            assert site.partitions()[span.document_id] == name
            assert example.track == ("held_out" if name == "test" else None)
            found[example.question] = name
    assert found.keys() <= {faq(number)[0] for number in range(40)}
    assert len(found) > 30 and set(found.values()) == {"train", "validation", "test"}
    assert metrics["num_train_imported"] == list(found.values()).count("train")


def test_a_pair_whose_answer_is_gone_is_a_reject_and_a_review_holds(tmp_path):
    site = Synthesized(tmp_path / "site", asked_and_answered(tmp_path, 12))
    pairs = list(read(site.folder / "imported.jsonl", Imported))
    lost = pairs[0].model_copy(update={"answer": "It is another one now."})
    stray = Imported(id="x", question="Gone?", answer="Nowhere.", document_id="no")
    store.write(site.folder / "imported.jsonl", [lost, *pairs[1:], stray])
    site.run()
    reasons = {row.id: row.reason for row in read(site.folder / "out/rejects.jsonl", Reject)}
    assert reasons["x"] == reasons[lost.id] == "imported: its answer is not in its document"
    example = site.examples("train")[0]
    decision = {"example_id": example.id, "decision": "edit", "answer": "Better."}
    (site.folder / "review.jsonl").write_text(json.dumps(decision) + "\n")
    site.run()
    assert {row.id: row.answer for row in site.examples("train")}[example.id] == "Better."


# --- many sources ------------------------------------------------------------------------------


def test_many_sources_of_mixed_kinds_are_one_body_with_ids_apart(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "same.md").write_text(f"# Same\n\n{WORDS * 2}")
    rows = [dict(zip(("question", "answer"), faq(number), strict=True)) for number in range(3)]
    parts = [
        section("files") | {"name": "notes", "path": str(tmp_path / "a")},
        section("files") | {"name": "copy", "path": str(tmp_path / "a")},
        section("table") | {"name": "faq", "path": str(written(tmp_path, "csv", rows))},
        section("code") | {"name": "code", "path": str(ROOT / "stages/split")},
    ]
    made = Crawled(tmp_path / "out", {"kind": "many", "sources": parts})
    rows_read = list(read(tmp_path / "out" / "documents.jsonl", Document))
    assert len({row.id for row in rows_read}) == len(rows_read)
    assert {row.source for row in rows_read} == {"notes", "copy", "faq", "code"}
    same = [row for row in rows_read if row.url == "same.md"]
    assert [row.source for row in same] == ["copy", "notes"] and same[0].id != same[1].id
    assert len(made.imported) == 3
    snapshot = json.loads((tmp_path / "out.snapshot.json").read_text())
    assert sorted(snapshot) == ["code", "copy", "faq", "notes"]


def test_a_broken_source_of_many_names_itself_and_the_others_keep_their_snapshot(
    tmp_path, monkeypatch
):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "a.md").write_text(f"# A\n\n{WORDS * 2}")
    good = section("files") | {"name": "good", "path": str(tmp_path / "a")}
    bad = section("files") | {"name": "broken", "path": str(tmp_path / "nowhere")}
    with pytest.raises(PipelineError, match=r"^broken: source.path: '.*nowhere': no such file"):
        Crawled(tmp_path / "out", {"kind": "many", "sources": [good, bad]})
    assert list(json.loads((tmp_path / "out.snapshot.json").read_text())) == ["good"]
    (tmp_path / "nowhere").mkdir()
    (tmp_path / "nowhere" / "b.bin").write_bytes(b"x")
    (tmp_path / "nowhere" / "b.md").write_text("short")
    with pytest.raises(PipelineError, match=r"^broken: source.path: '.*nowhere': no page with"):
        Crawled(tmp_path / "out", {"kind": "many", "sources": [good, bad]})
    twice = {"kind": "many", "sources": [good, good]}
    with pytest.raises(PipelineError, match="two sources are named good"):
        sections(twice)
