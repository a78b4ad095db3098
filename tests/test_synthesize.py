"""Partitions before questions, grounded facts, held-out wordings, and no call paid twice."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat import Call, config, good, serving, steps
from hypothesis import given
from hypothesis import settings as timing
from hypothesis import strategies as st

from stages import llm, synthesize
from stages.answer import embedding
from stages.core import config as configuration
from stages.core import progress, store
from stages.core.errors import PipelineError
from stages.core.records import (
    Assignment,
    Chunk,
    Document,
    Evidence,
    Example,
    Heading,
    Reject,
    identify,
)
from stages.llm.outline import writing
from stages.synthesize import examples, facts, frozen, partition, tasks

ROOT = Path(__file__).parent.parent
SUBJECTS = ("apple", "birch", "cedar", "daisy", "elder", "fern")
SUBJECTS += ("grape", "hazel", "iris", "jasmine", "kale", "lilac")
OUTLINE = llm.Outline(kind="outline")
NO_EMBEDDER = embedding.NoEmbedder(kind="none")


PROMPTS = yaml.safe_load((ROOT / "conf/synthesize/prompts/default.yaml").read_text())
KINDS = ("factual", "howto", "definition", "code", "dialogue")
OTHERS = ("multihop", "unanswerable", "style", "raft", "raft_absent", "preferences")
SHARES = dict.fromkeys(KINDS, 1.0) | dict.fromkeys(OTHERS, 0.0)
CONTEXT = {"top_k": 3, "context_tokens": 240}


@pytest.fixture(autouse=True)
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("TEST_KEY", "sk-secret-0815")
    return tmp_path


def settings(**changes: Any) -> synthesize.Config:
    keys = {
        "seed": 0,
        "duplicate_threshold": 0.7,
        "validation_share": 0.1,
        "test_share": 0.2,
        "skip_headings": [],
        "skip_text": [],
        "min_chunk_words": 0,
        "judge_chunks": False,
        "prompts": PROMPTS,
        "shares": SHARES,
        "formats": {},
        "context": CONTEXT,
        "num_held_forms": 1,
        "max_answer_words": 60,
        "min_answer_words": 1,
        "max_evidence_tokens": 60,
        "near_duplicate_threshold": 0.95,
        "semantic_duplicate_threshold": 0.97,
        "min_grade": None,
        "semantic_leak_threshold": 0.95,
        "max_leak_rate": 0.1,
        "max_facts": None,
        "max_facts_per_page": None,
        "num_validation": None,
        "num_same_fact": None,
        "num_held_out": None,
        "max_reject_rate": 0.5,
    }
    cfg = configuration.load({"synthesize": keys | changes}, "synthesize", synthesize.Config)
    assert isinstance(cfg, synthesize.Config)
    return cfg


def page(name: str, extra: str = "") -> Document:
    text = f"""# The {name} – “{name}”

The page about {name} says how the {name} grows.

## How to plant the {name}

The {name} is planted in {name} soil, at {len(name)} in the morning.{extra}

To water the {name}:

```bash
make water NAME={name}
```

## Keys of {name}

| key | default | meaning |
|---|---|---|
| `{name}.depth` | `{len(name)}` | How deep the {name} stands, in cm. |
| `{name}.tool` | `spade` | What the {name} is dug with. |

- **{name} root**: The part of the {name} under the ground.
"""
    headings = []
    for match in re.finditer(r"(?m)^(#+) (.+)$", text):
        start = len(text[: match.start()].encode())
        headings.append(
            Heading(start=start, level=len(match[1]), title=match[2], anchor=match[2].lower())
        )
    url = f"http://site.test/{name}.html"
    return Document(
        id=identify(url),
        url=url,
        title=f"The {name} – “{name}”",
        text=text,
        source="test",
        headings=tuple(headings),
    )


def chunks_of(document: Document) -> list[Chunk]:
    """One for the head of the page with its first section, one for the rest."""
    data = document.text.encode()
    cut = document.headings[2].start
    spans = [(0, cut, document.headings[:1]), (cut, len(data), document.headings[::2])]
    return [
        Chunk(
            id=identify(document.id, data[start:end].decode()),
            document_id=document.id,
            start=start,
            end=end,
            heading_path=tuple(heading.title for heading in path),
            url=document.url,
            text=data[start:end].decode(),
            num_tokens=1,
        )
        for start, end, path in spans
    ]


class Site:
    """Inputs and an output folder on the disk."""

    def __init__(self, folder: Path, documents: list[Document]) -> None:
        self.folder = folder
        self.documents = documents
        self.review = folder / "review.jsonl"
        self.out = folder / "out"
        folder.mkdir(exist_ok=True)
        self.review.touch()
        self.testset = folder / "testset.jsonl"
        self.testset.touch()
        self.imported = folder / "imported.jsonl"
        self.imported.touch()
        store.write(folder / "documents.jsonl", documents)
        store.write(folder / "chunks.jsonl", [c for d in documents for c in chunks_of(d)])

    def run(
        self,
        teacher: llm.Config = OUTLINE,
        embedder: embedding.Config = NO_EMBEDDER,
        **changes: Any,
    ) -> dict[str, float]:
        return synthesize.run(
            settings(**changes),
            teacher,
            embedder,
            self.folder / "documents.jsonl",
            self.imported,
            self.folder / "chunks.jsonl",
            self.folder / "chunks.jsonl",
            self.review,
            self.testset,
            self.out,
        )

    def freeze(self) -> list[Example]:
        """As `python -m stages freeze` does."""
        frozen = self.examples("test")
        store.write(self.testset, frozen)
        return frozen

    def examples(self, name: str) -> list[Example]:
        return list(store.read(self.out / f"{name}.jsonl", Example))

    def rejects(self) -> list[Reject]:
        return list(store.read(self.out / "rejects.jsonl", Reject))

    def reasons(self) -> Counter[str]:
        return Counter(reject.reason for reject in self.rejects())

    def partition_of(self) -> dict[str, str]:
        rows = store.read(self.out / "assignment.jsonl", Assignment)
        return {row.document_id: row.partition for row in rows}


@pytest.fixture
def site(workspace: Path) -> Site:
    return Site(workspace / "site", [page(name) for name in SUBJECTS])


# --- partitions --------------------------------------------------------------------------------


def assign(documents: list[Document], seed: int = 0) -> dict[str, str]:
    rows = partition.assign(documents, seed, 0.1, 0.2, 0.7)
    return {row.document_id: row.partition for row in rows}


NAMES = st.lists(st.from_regex(r"[a-z]{3,9}", fullmatch=True), min_size=3, max_size=12, unique=True)


@given(NAMES, st.integers(0, 99), st.randoms(use_true_random=False))
def test_an_edit_of_one_page_moves_no_other(names: list[str], seed: int, random: Any) -> None:
    documents = [page(name) for name in names]
    edited = random.choice(names)
    changed = [page(name, " " + "New words." * (name == edited)) for name in names]
    random.shuffle(changed)
    assert assign(documents, seed) == assign(changed, seed)


@given(NAMES, st.integers(0, 99))
def test_a_small_site_still_has_all_three_partitions(names: list[str], seed: int) -> None:
    assert set(assign([page(n) for n in names], seed).values()) == {"train", "validation", "test"}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_site_of_one_or_two_pages_is_trained_on(count: int) -> None:
    assert set(assign([page(name) for name in SUBJECTS[:count]]).values()) <= {"train"}


def test_a_large_site_is_divided_by_the_shares() -> None:
    documents = [page(f"tree{number:04}x") for number in range(600)]
    counts = Counter(assign(documents).values())
    assert 85 < counts["test"] < 155 and 35 < counts["validation"] < 85


def test_a_new_page_moves_at_most_the_two_that_fill_an_empty_partition() -> None:
    documents = [page(f"tree{number:04}x") for number in range(200)]
    before, after = assign(documents), assign([*documents, page("newcomer")])
    assert {id: after[id] for id in before} == before


def test_near_duplicates_share_a_cluster_named_by_its_smallest_id() -> None:
    originals = [page(name) for name in SUBJECTS]
    copies = []
    for document in originals[:4]:
        text = document.text.replace("in the morning", "every morning")
        url = document.url + "?print=1"
        copies.append(document.model_copy(update={"id": identify(url), "url": url, "text": text}))
    rows = partition.assign([*originals, *copies], 3, 0.1, 0.2, 0.7)
    clusters = {row.document_id: row.cluster_id for row in rows}
    partitions = {row.document_id: row.partition for row in rows}
    for document, copy in zip(originals, copies, strict=False):
        assert clusters[document.id] == clusters[copy.id] == min(document.id, copy.id)
        assert partitions[document.id] == partitions[copy.id]
    assert len(set(clusters.values())) == len(originals)


# --- the stage with the outline teacher --------------------------------------------------------


def test_every_part_is_written_and_the_metrics_count_it(site: Site) -> None:
    metrics = site.run()
    train, test = site.examples("train"), site.examples("test")
    tracks = Counter(example.track for example in test)
    assert metrics == {
        "num_documents": 12,
        "num_clusters": 12,
        "num_facts": len(train) / 6,
        "num_train": len(train),
        "num_validation": len(site.examples("validation")),
        "num_test_same_fact": tracks["same_fact"],
        "num_test_held_out": tracks["held_out"],
        "num_frozen": 0,
        "num_rejects": len(site.rejects()),
        **{f"num_train_{kind}": n for kind, n in Counter(e.kind for e in train).items()},
    }
    assert all(metrics[name] for name in metrics if name not in ("num_frozen", "num_rejects"))
    assert (site.out / "preferences.jsonl").read_text() == ""
    assert {e.kind for e in train} == {"factual", "howto", "definition", "code", "dialogue"}
    every = [e for name in ("train", "validation", "test") for e in site.examples(name)]
    assert len({example.id for example in every}) == len(every)


def test_evidence_is_the_documents_bytes(site: Site) -> None:
    site.run()
    texts = {document.id: document.text.encode() for document in site.documents}
    spans = [
        span
        for name in ("train", "validation", "test")
        for example in site.examples(name)
        for span in example.evidence
    ]
    assert len(spans) > 200
    for span in spans:
        assert texts[span.document_id][span.start : span.end] == span.text.encode() != b""


def test_train_and_same_fact_come_of_train_pages_and_held_out_of_test_pages(site: Site) -> None:
    site.run()
    partitions = site.partition_of()

    def pages(name: str, track: str | None) -> set[str]:
        rows = [example for example in site.examples(name) if example.track == track]
        assert rows
        return {partitions[span.document_id] for example in rows for span in example.evidence}

    assert pages("train", None) == {"train"}
    assert pages("validation", None) == {"validation"}
    assert pages("test", "same_fact") == {"train"}
    assert pages("test", "held_out") == {"test"}


ROWS = {
    "howto": ("howto",),
    "factual": ("clause", "topic", "question"),
    "definition": ("definition",),
    "code": ("code",),
    "dialogue": ("follow_up",),
}


def fits(kind: str, place: int, question: str) -> bool:
    forms = [writing.FORMS[row][place] for row in ROWS[kind]]
    return any(
        re.fullmatch(re.escape(form).replace(re.escape("{x}"), ".+"), question) for form in forms
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_wording_form_of_the_same_fact_test_occurs_nowhere_in_training(
    site: Site, seed: int
) -> None:
    site.run(seed=seed)
    held = examples.held_forms(seed, 1)
    trained = site.examples("train") + site.examples("validation")
    tested = [example for example in site.examples("test") if example.track == "same_fact"]
    for kind, (place,) in ((kind, tuple(held[kind])) for kind in tasks.KINDS):
        assert place > 0  # the plainest question is always trained
        assert [e for e in tested if e.kind == kind]
        assert all(fits(kind, place, e.question) for e in tested if e.kind == kind)
        assert not [e.question for e in trained if fits(kind, place, e.question)]
    # Every question tested there asks for a fact that is trained.
    facts = {(e.kind, e.answer, e.chunk_ids) for e in trained}
    assert {(e.kind, e.answer, e.chunk_ids) for e in tested} <= facts


def test_which_forms_are_held_out_follows_the_seed_and_the_kind() -> None:
    drawn = [examples.held_forms(seed, 1) for seed in range(30)]
    assert {place for held in drawn for places in held.values() for place in places} == set(
        range(1, 7)
    )
    assert any(len({tuple(places) for places in held.values()}) > 1 for held in drawn)
    assert all(len(places) == 3 for places in examples.held_forms(0, 3).values())


def test_messages_end_with_the_answer_and_a_dialogue_has_earlier_turns(site: Site) -> None:
    site.run()
    for example in site.examples("train"):
        *turns, question, answer = example.messages
        assert (question.role, question.content) == ("user", example.question)
        assert (answer.role, answer.content) == ("assistant", example.answer)
        assert [turn.role for turn in turns] == ["user", "assistant"] * (len(turns) // 2)
        assert bool(turns) == (example.kind == "dialogue")


def test_no_question_has_two_answers_and_none_is_asked_twice(site: Site) -> None:
    site.run()
    every = [e for name in ("train", "validation", "test") for e in site.examples(name)]
    asked = Counter(tuple(m.content for m in e.messages[:-1]) for e in every)
    assert max(asked.values()) == 1


def test_a_fact_on_two_pages_is_kept_once_and_a_contradiction_not_at_all(workspace: Path) -> None:
    documents = [page(name) for name in SUBJECTS]
    train = [d for d in documents if assign(documents)[d.id] == "train"]
    same = "\n\n## How to feed the trees\n\nAll trees are fed at noon with care.\n"
    other = "\n\n## What the moss eats\n\nThe moss eats {}, and nothing else.\n"
    for place, document in enumerate(train[:2]):
        text = document.text + same + other.format(["wood", "stone"][place])
        index = documents.index(document)
        documents[index] = document.model_copy(update={"text": text})
    site = Site(workspace / "site", documents)
    site.run()
    questions = Counter(e.question for e in site.examples("train"))
    assert questions["How do I feed the trees?"] == 1
    assert not [question for question in questions if "the moss eats" in question]
    reasons = site.reasons()
    # Two dialogues repeat or contradict each other too: only the headings are counted here.
    asked = Counter((reject.reason, reject.detail) for reject in site.rejects())
    assert asked["near duplicate", "How do I feed the trees?"] == 1
    assert asked["same question, different answers", "Can you say what the moss eats?"] == 2
    assert set(reasons) <= {
        *("near duplicate", "same question and answer", "same question, different answers"),
    }


def test_a_long_answer_that_is_trained_is_not_tested_as_held_out(workspace: Path) -> None:
    documents = [page(name) for name in SUBJECTS]
    partitions = assign(documents)
    shared = "Every tree of the garden is cut back before the first frost."
    for index, document in enumerate(documents):
        if partitions[document.id] in ("train", "test"):
            title = f"How to prune {document.url[17:20]} trees"
            text = document.text + f"\n\n## {title}\n\n{shared}\n"
            documents[index] = document.model_copy(update={"text": text})
    site = Site(workspace / "site", documents)
    site.run()
    held_out = [example for example in site.examples("test") if example.track == "held_out"]
    assert shared in {example.answer for example in site.examples("train")}
    assert held_out and shared not in {example.answer for example in held_out}
    assert site.reasons()["answer stands in train"] > 0


def test_maxima_hold_and_a_smaller_number_of_facts_is_part_of_a_larger(site: Site) -> None:
    def questions(**changes: Any) -> set[str]:
        site.run(**changes)
        return {example.question for example in site.examples("train")}

    few, more = questions(max_facts=10), questions(max_facts=20)
    assert len(few) == 60 and len(more) == 120 and few < more
    metrics = site.run(max_facts_per_page=2, num_same_fact=5, num_held_out=2, num_validation=1)
    assert metrics["num_test_same_fact"] == 5 and metrics["num_test_held_out"] == 2
    assert metrics["num_validation"] == 1
    per_page = Counter(
        document
        for document, _, _ in {
            (e.evidence[0].document_id, e.answer, e.kind) for e in site.examples("train")
        }
    )
    assert set(per_page.values()) == {2}
    assert {"over max_facts_per_page", "over num_same_fact"} <= set(site.reasons())


def test_an_edited_page_changes_only_its_own_examples(site: Site) -> None:
    site.run()
    before = {e.id: e for name in ("train", "test") for e in site.examples(name)}
    edited = next(d for d in site.documents if site.partition_of()[d.id] == "train")
    name = edited.url.split("/")[-1].removesuffix(".html")
    documents = [
        page(name, " It likes rain.") if document is edited else document
        for document in site.documents
    ]
    again = Site(site.folder, documents)
    again.run()
    after = {e.id: e for name in ("train", "test") for e in again.examples(name)}
    changed = [e for id, e in (before | after).items() if before.get(id) != after.get(id)]
    assert changed
    assert {e.evidence[0].document_id for e in changed} == {edited.id}


RUN = """
import sys, pathlib
from stages import llm, synthesize
from stages.core import config
from test_synthesize import NO_EMBEDDER, settings
folder, out = map(pathlib.Path, sys.argv[1:])
synthesize.run(settings(), llm.Outline(kind="outline"), NO_EMBEDDER, folder / "documents.jsonl",
    folder / "imported.jsonl", folder / "chunks.jsonl", folder / "chunks.jsonl",
    folder / "review.jsonl", folder / "testset.jsonl", out)
"""


def test_equal_inputs_give_equal_bytes_in_any_folder_and_with_any_hash_seed(site: Site) -> None:
    folder = site.folder / "elsewhere"
    folder.mkdir()
    environment = {**os.environ, "PYTHONHASHSEED": "4711", "PYTHONPATH": f"{ROOT}:{ROOT}/tests"}
    subprocess.run(
        [sys.executable, "-c", RUN, str(site.folder), str(folder / "out")],
        cwd=folder,
        env=environment,
        check=True,
    )
    site.run()
    assert store.digest(folder / "out") == store.digest(site.out)


def test_a_site_that_gives_no_question_is_one_clear_line(workspace: Path) -> None:
    document = page("apple").model_copy(update={"text": "Words without any order " * 40})
    data = document.text
    site = Site(workspace / "site", [page("apple")])
    chunk = chunks_of(page("apple"))[0].model_copy(
        update={"start": 0, "end": len(data), "text": data, "heading_path": ()}
    )
    store.write(site.folder / "documents.jsonl", [document])
    store.write(site.folder / "chunks.jsonl", [chunk])
    with pytest.raises(PipelineError, match=r"no training question came of its chunks .*no facts"):
        site.run()
    assert site.reasons() == {"no facts": 1}


def test_a_chunk_of_another_version_of_its_page_is_a_reject(site: Site) -> None:
    rows = list(store.read(site.folder / "chunks.jsonl", Chunk))
    rows[0] = rows[0].model_copy(update={"start": rows[0].start + 1, "end": rows[0].end + 1})
    rows[1] = rows[1].model_copy(update={"document_id": "unknown"})
    store.write(site.folder / "chunks.jsonl", rows)
    site.run()
    assert site.reasons()["not the document's text"] == 2


def test_shares_that_leave_nothing_to_train_are_refused() -> None:
    with pytest.raises(
        PipelineError, match=r"synthesize: .*validation_share and test_share below 1"
    ):
        settings(validation_share=0.5, test_share=0.5)


# --- reviews -----------------------------------------------------------------------------------


def test_reviews_are_applied_by_id_and_an_unknown_id_is_told(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.run()
    train = site.examples("train")
    accepted, edited, rejected = train[0], train[1], train[2]
    decisions = [
        {"example_id": accepted.id, "decision": "accept"},
        {"example_id": edited.id, "decision": "edit", "answer": "A better answer."},
        {"example_id": rejected.id, "decision": "reject"},
        {"example_id": "gone", "decision": "reject"},
    ]
    site.review.write_text("".join(json.dumps(decision) + "\n" for decision in decisions))
    notes: list[str] = []
    monkeypatch.setattr(progress, "note", notes.append)
    site.run()
    after = {example.id: example for example in site.examples("train")}
    assert after[accepted.id] == accepted
    assert after[edited.id].answer == after[edited.id].messages[-1].content == "A better answer."
    assert rejected.id not in after and len(after) == len(train) - 1
    assert site.reasons()["rejected in review"] == 1
    assert [note for note in notes if "1 decisions name no example" in note and "gone" in note]


@pytest.mark.parametrize(
    "row",
    [
        '{"example_id": "a", "decision": "edit"}',
        '{"example_id": "a", "decision": "reject", "answer": "x"}',
        '{"example_id": "a", "decision": "perhaps"}',
    ],
)
def test_a_review_that_says_nothing_clear_is_named_by_file_and_line(site: Site, row: str) -> None:
    site.review.write_text('{"example_id": "b", "decision": "accept"}\n' + row + "\n")
    with pytest.raises(PipelineError, match=r"review\.jsonl:2: "):
        site.run()


# --- the stage with a model --------------------------------------------------------------------


def fact(subject: str, evidence: str, **changes: Any) -> dict[str, Any]:
    row = {
        "kind": "factual",
        "history": [],
        "forms": [f"Wording {place} of {subject}?" for place in range(7)],
        "answer": f"It is about the {subject}.",
        "evidence": evidence,
    }
    return row | changes


def subject_of(call: Call, number: int) -> tuple[str, str]:
    """The page's subject and the chunk, of the prompt that the server was sent."""
    content = call.server.bodies[number - 1]["messages"][-1]["content"]
    head, _, chunk = content.partition("\n\n")
    return head.split("The ")[1].split(" ")[0], chunk


def test_replies_are_accepted_repaired_or_rejected_and_the_counts_reconcile(site: Site) -> None:
    def answer(call: Call, number: int) -> None:
        name, chunk = subject_of(call, number)
        if not chunk.startswith("# The"):
            call.reply('{"facts": []}')
            return
        evidence = f"The page about {name} says how the {name} grows."
        good = fact(name, evidence)
        match name:
            case "apple":
                call.reply("no JSON at all")
            case "birch":
                call.fail(400)
            case "cedar":
                call.reply(json.dumps({"facts": [good]}), finish_reason="length")
            case "daisy":
                call.reply("Here you are:\n```json\n" + json.dumps({"facts": [good]}) + "\n```")
            case "elder":  # the blanks of the copy differ
                call.reply(json.dumps([fact(name, evidence.replace(" ", "\n "))]))
            case "fern":
                bad = [
                    fact("fern a", "This sentence stands nowhere."),
                    fact("fern b", evidence, forms=["one", "two"]),
                    fact("fern c", evidence, kind="poem"),
                    fact("fern d", evidence, kind="dialogue"),
                    fact("fern e", evidence, answer="word " * 61),
                    "not a fact",
                ]
                call.reply(json.dumps({"facts": [*bad, good]}))
            case _:
                call.reply(json.dumps({"facts": [good]}))

    with serving(answer) as server:
        metrics = site.run(config(server.address), seed=3)
        assert len(server.bodies) == 24
    reasons = site.reasons()
    assert {reason: reasons[reason] for reason in reasons} == {
        "reply is not JSON facts": 1,
        "refused by the teacher": 1,
        "reply cut off": 1,
        "evidence not in the chunk": 1,
        "malformed fact": 4,
        "answer too long": 1,
        "no facts": 12,
    }
    every = [e for name in ("train", "validation", "test") for e in site.examples(name)]
    answers = {example.answer for example in every}
    assert answers == {f"It is about the {name}." for name in SUBJECTS[3:]}
    (elder,) = {e.evidence for e in every if "elder" in e.answer}
    assert elder[0].text == "The page about elder says how the elder grows."
    assert metrics["num_rejects"] == sum(reasons.values())


def test_too_many_unusable_replies_fail_the_stage(site: Site) -> None:
    said = pytest.raises(PipelineError, match=r"synthesize\.max_reject_rate: 24 of 24")
    with serving(steps(good)) as server, said:  # "A span." is no JSON
        site.run(config(server.address))
    assert site.reasons() == {"reply is not JSON facts": 24}


def test_a_killed_run_makes_no_stored_call_again(site: Site, workspace: Path) -> None:
    """kill -9 in the middle: what had reached the ledger is never asked for again."""
    enough = threading.Event()
    open_gate = threading.Event()

    def answer(call: Call, number: int) -> None:
        if number > 10:
            enough.set()
            open_gate.wait(60)
        name, chunk = subject_of(call, number)
        passage = next(line for line in chunk.splitlines() if line.strip())
        call.reply(json.dumps({"facts": [fact(f"{name} {passage}", passage)]}))

    script = RUN.replace('llm.Outline(kind="outline")', "config(ADDRESS)").replace(
        "from test_synthesize", "from chat import config\nfrom test_synthesize"
    )
    with serving(answer) as server:
        script = script.replace("ADDRESS", repr(server.address))
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(site.folder), str(site.out)],
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests"},
        )
        assert enough.wait(60)
        while len(stored(workspace)) < 10:  # the ten that were answered are on their way
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        paid = stored(workspace)
        before = len(server.bodies)
        open_gate.set()
        site.run(config(server.address))
        asked_again = [prompt_of(body) for body in server.bodies[before:]]
        assert len(paid) >= 10 and not set(asked_again) & paid
        # What was in flight at the kill, at most as many as run at once, is asked twice; no other.
        assert len(server.bodies) <= 24 + config(server.address).concurrency
        assert len(asked_again) == 24 - len(paid)
        site.run(config(server.address))
        assert len(server.bodies) == before + len(asked_again)


def stored(workspace: Path) -> set[str]:
    path = workspace / ".cache" / "ledger.db"
    if not path.exists():
        return set()
    ledger = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)
    try:
        rows = ledger.execute("SELECT request FROM calls").fetchall()
    except sqlite3.OperationalError:  # the table is just being made
        rows = []
    finally:
        ledger.close()
    return {prompt_of(json.loads(request)["body"]) for (request,) in rows}


def prompt_of(body: dict[str, Any]) -> str:
    return json.dumps(body["messages"])


# --- evidence ----------------------------------------------------------------------------------


@given(st.text(), st.text(min_size=1), st.text(), st.data())
def test_evidence_found_in_a_chunk_is_its_documents_bytes(
    before: str, text: str, after: str, data: st.DataObject
) -> None:
    document = (before + text + after).encode()
    start = len(before.encode())
    chunk = Chunk(
        id="c",
        document_id="d",
        start=start,
        end=start + len(text.encode()),
        heading_path=(),
        url="",
        text=text,
        num_tokens=1,
    )
    first = data.draw(st.integers(0, len(text)))
    last = data.draw(st.integers(first, len(text)))
    passage = text[first:last]
    for copied in (passage, "\n ".join(passage.split())):
        found = facts.ground(chunk, copied)
        assert (found is None) == (not passage.split())
        if found is not None:
            assert document[found.start : found.end] == found.text.encode()
            assert found.text.split() == passage.split()
    assert facts.ground(chunk, text + "x") is None


# --- the frozen test set -----------------------------------------------------------------------


def questions(rows: list[Example]) -> set[str]:
    """What is asked, whatever its letters and marks."""
    return {
        " / ".join(" ".join(re.findall(r"\w+", t.content.lower())) for t in turns)
        for turns in ([t for t in row.messages if t.role == "user"] for row in rows)
    }


def leaks(site: Site, kept: list[Example]) -> set[str]:
    """Frozen questions that are trained or validated on, and held-out pages that are trained on."""
    trained = [*site.examples("train"), *site.examples("validation")]
    held = frozen.held_pages(kept)
    pages = {p for p, part in site.partition_of().items() if part != "test"}
    evidence = {span.document_id for row in trained for span in row.evidence}
    return questions(kept) & questions(trained) | held & (pages | evidence)


def test_a_frozen_test_set_is_the_test_set_byte_for_byte(site: Site) -> None:
    site.run()
    before = (site.out / "test.jsonl").read_bytes(), (site.out / "train.jsonl").read_bytes()
    kept = site.freeze()
    metrics = site.run()
    after = (site.out / "test.jsonl").read_bytes(), (site.out / "train.jsonl").read_bytes()
    assert before == after
    assert metrics["num_frozen"] == len(kept)
    assert site.reasons()["asked in the frozen test set"] == len(kept)


@pytest.mark.parametrize("seed", range(1, 9))
def test_frozen_questions_and_their_pages_are_never_trained_under_any_seed(
    site: Site, seed: int
) -> None:
    site.run()
    kept = site.freeze()
    site.run(seed=seed, num_held_forms=2, num_same_fact=1, num_held_out=1)
    assert [row.id for row in site.examples("test")] == [row.id for row in kept]
    assert leaks(site, kept) == set()
    assert site.examples("train")


@pytest.mark.parametrize("seed", range(1, 5))
def test_the_facts_of_frozen_same_fact_questions_stay_trained_under_any_seed(
    site: Site, seed: int
) -> None:
    site.run(max_facts=20)
    kept = [row for row in site.freeze() if row.track == "same_fact"]
    site.run(seed=seed, max_facts=20)
    trained = {row.answer for row in site.examples("train")}
    learnt = [row.answer in trained for row in kept]
    # Another seed holds other wordings out, and one that is frozen may be all that a fact has.
    assert sum(learnt) >= 0.9 * len(learnt)


def test_without_the_held_pages_another_seed_would_train_them(site: Site) -> None:
    """The planted defect that the test above is for."""
    site.run()
    held = frozen.held_pages(site.freeze())
    arguments = (site.documents, 5, 0.1, 0.2, 0.7)
    ignored = {r.document_id: r.partition for r in partition.assign(*arguments)}
    assert {ignored[page] for page in held} & {"train", "validation"}
    minded = {r.document_id: r.partition for r in partition.assign(*arguments, held)}
    assert {minded[page] for page in held} == {"test"}


def test_a_new_page_that_is_nearly_a_held_one_is_held_with_it(site: Site) -> None:
    site.run()
    kept = site.freeze()
    original = next(d for d in site.documents if d.id in frozen.held_pages(kept))
    copies = [
        original.model_copy(update={"id": identify("copy", n), "url": f"http://site.test/copy{n}"})
        for n in range(5)
    ]
    again = Site(site.folder, [*site.documents, *copies])
    again.run(seed=3)
    assert {again.partition_of()[copy.id] for copy in copies} == {"test"}
    assert leaks(again, kept) == set()


def test_frozen_evidence_moves_with_an_edit_of_its_page(site: Site) -> None:
    site.run()
    kept = site.freeze()
    moved = kept[0].evidence[0].document_id
    documents = [
        d.model_copy(update={"text": "Preface – new.\n\n" + d.text, "headings": ()})
        if d.id == moved
        else d
        for d in site.documents
    ]
    store.write(site.folder / "documents.jsonl", documents)
    site.run()
    assert [row.id for row in site.examples("test")] == [row.id for row in kept]
    texts = {d.id: d.text.encode() for d in documents}
    for old, row in zip(kept, site.examples("test"), strict=True):
        for was, span in zip(old.evidence, row.evidence, strict=True):
            assert texts[span.document_id][span.start : span.end] == span.text.encode()
            assert (span.start == was.start) == (span.document_id != moved)


def test_a_frozen_question_without_its_page_or_evidence_is_a_reject_and_the_others_stay(
    site: Site,
) -> None:
    site.run()
    kept = site.freeze()
    gone, changed = list(dict.fromkeys(row.evidence[0].document_id for row in kept))[:2]
    documents = [
        d.model_copy(update={"text": "# Another page\n\nAbout nothing.", "headings": ()})
        if d.id == changed
        else d
        for d in site.documents
        if d.id != gone
    ]
    Site(site.folder, [])
    store.write(site.folder / "documents.jsonl", documents)
    store.write(
        site.folder / "chunks.jsonl",
        [c for d in documents if d.id != changed for c in chunks_of(d)],
    )
    store.write(site.testset, kept)
    site.run()
    stayed = [row for row in kept if row.evidence[0].document_id not in (gone, changed)]
    assert site.examples("test") == stayed
    reasons = site.reasons()
    lost = (
        reasons["frozen: its page is gone"],
        reasons["frozen: its evidence is gone from the page"],
    )
    assert sum(lost) == len(kept) - len(stayed)
    assert min(lost) > 0


def test_a_decision_on_a_frozen_question_does_not_count_and_is_told(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.run()
    kept = site.freeze()
    site.review.write_text(json.dumps({"example_id": kept[0].id, "decision": "reject"}))
    said: list[str] = []
    monkeypatch.setattr(progress, "note", said.append)
    site.run()
    assert site.examples("test") == kept
    assert any("1 decisions are about frozen questions" in line for line in said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: [*rows, rows[0]], r"testset\.jsonl:\d+: the id '\w+' stands in line 1 too"),
        (
            lambda rows: [rows[0].model_copy(update={"track": None})],
            r"testset\.jsonl:1: track: null: expected same_fact or held_out",
        ),
        (
            lambda rows: [rows[0].model_copy(update={"track": "gold"})],
            r"testset\.jsonl:1: track: gold: expected same_fact or held_out",
        ),
    ],
)
def test_a_broken_frozen_test_set_is_one_line(site: Site, change: Any, said: str) -> None:
    site.run()
    store.write(site.testset, change(site.freeze()))
    with pytest.raises(PipelineError, match=said):
        site.run()


def test_a_frozen_test_set_survives_other_chunks(site: Site) -> None:
    site.run()
    kept = site.freeze()
    before = (site.out / "test.jsonl").read_bytes()
    whole = [
        Chunk(
            id=identify(document.id, document.text),
            document_id=document.id,
            start=0,
            end=len(document.text.encode()),
            heading_path=(),
            url=document.url,
            text=document.text,
            num_tokens=1,
        )
        for document in site.documents
    ]
    store.write(site.folder / "chunks.jsonl", whole)
    site.run()
    trained = {id for row in site.examples("train") for id in row.chunk_ids}
    assert trained <= {chunk.id for chunk in whole}
    assert (site.out / "test.jsonl").read_bytes() == before
    assert leaks(site, kept) == set()


def test_no_earlier_turn_of_a_trained_dialogue_asks_a_frozen_question(site: Site) -> None:
    site.run()
    kept = site.freeze()
    asked = next(row.question for row in kept if len(row.messages) == 2)
    chunk = chunks_of(site.documents[0])[0]
    said = {"answer": "It is.", "evidence": chunk.text}
    dialogue = fact(
        "it",
        chunk.text,
        answer="It is.",
        kind="dialogue",
        history=[{"question": asked.upper(), **said}],
    )
    row = facts.Fact(
        id="f",
        chunks=(chunk,),
        written=facts.Written.model_validate(dialogue | {"evidence": [chunk.text]}),
        evidence=(),
        call_id="c",
    )
    parts: Any = {"train": [row], "validation": [], "test": []}
    sizes = examples.Sizes(None, None, None)
    composed, unused = examples.compose(parts, 0, 1, sizes, kept)
    assert composed == {"train": [], "validation": [], "test": []}
    assert {reject.reason for reject in unused} == {"asked in the frozen test set"}
    planted, _ = examples.compose(parts, 0, 1, sizes, [])
    assert len(planted["train"]) == 6


@timing(deadline=None)
@given(NAMES, st.integers(0, 99), st.integers(0, 99))
def test_held_pages_leave_a_small_site_something_to_train_and_validate(
    names: list[str], seed: int, other: int
) -> None:
    documents = [page(name) for name in names]
    held = {id for id, part in assign(documents, seed).items() if part == "test"}
    rows = partition.assign(documents, other, 0.1, 0.2, 0.7, held)
    partitions = {row.document_id: row.partition for row in rows}
    assert all(partitions[id] == "test" for id in held)
    free = len(documents) - len(held)
    wanted = {"train", "validation"} if free > 1 else {"train"} if free else set()
    assert wanted <= set(partitions.values())
    same = partition.assign(documents, seed, 0.1, 0.2, 0.7, held)
    assert {row.document_id: row.partition for row in same} == assign(documents, seed)


@pytest.mark.parametrize("mark", ["\u2028", "\x85"])
def test_a_mark_that_some_take_for_the_end_of_a_line_is_part_of_a_frozen_row(
    site: Site, mark: str
) -> None:
    site.run()
    first, *others = site.freeze()
    rows = [first.model_copy(update={"answer": f"One{mark}two"}), *others]
    store.write(site.testset, rows)
    assert frozen.read(site.testset) == rows


@given(st.binary(max_size=60), st.integers(0, 60), st.data())
def test_evidence_is_found_at_its_nearest_place(text: bytes, start: int, data: Any) -> None:
    plain = text.decode("latin-1")
    if not plain:
        return
    at = data.draw(st.integers(0, len(plain) - 1))
    wanted = plain[at : at + 3]
    span = Evidence(document_id="d", start=start, end=start + len(wanted.encode()), text=wanted)
    places = [n for n in range(len(plain)) if plain.startswith(wanted, n)]
    encoded = [len(plain[:n].encode()) for n in places]
    found = frozen._nearest(plain.encode(), span)
    assert found in encoded
    assert abs(found - start) == min(abs(place - start) for place in encoded)
