"""The kinds of examples beyond plain facts: open questions, passages in the prompt, several pages,
the author's own words, preferences; what the outline teacher cannot write, a named teacher does."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from chat import Call, config, serving
from hypothesis import given
from hypothesis import strategies as st
from test_synthesize import CONTEXT, NO_EMBEDDER, ROOT, SHARES, SUBJECTS, Site, page, workspace

from stages import synthesize
from stages.answer import embedding, prompt
from stages.answer.prompt import NOT_FOUND
from stages.core import progress, store
from stages.core.errors import PipelineError
from stages.core.records import Preference
from stages.synthesize import preferences, tasks

assert workspace  # the fixture, which every test here uses


@pytest.fixture
def site(workspace: Path) -> Site:
    return Site(workspace / "site", [page(name) for name in SUBJECTS])


def shares(**changes: float) -> dict[str, Any]:
    return {"shares": SHARES | changes}


# --- open questions ----------------------------------------------------------------------------


def test_open_questions_are_about_names_that_stand_in_no_document(site: Site) -> None:
    site.run(**shares(unanswerable=1.0))
    texts = "".join(document.text for document in site.documents)
    for part in ("train", "test"):
        open_ones = [e for e in site.examples(part) if e.kind == "unanswerable"]
        assert open_ones, part
        for example in open_ones:
            assert example.answer == NOT_FOUND
            assert example.evidence == ()
            [name] = set(re.findall(r"(\w+\.\w+)", example.question))
            assert name not in texts
            assert name.split(".")[0] in SUBJECTS


def test_open_questions_have_held_out_wordings_and_pages_like_all_others(site: Site) -> None:
    site.run(**shares(unanswerable=1.0))
    train, test = site.examples("train"), site.examples("test")
    trained = {example.question for example in train}
    tracks = {e.track for e in test if e.kind == "unanswerable"}
    assert tracks == {"same_fact", "held_out"}
    assert not trained & {example.question for example in test}


def test_a_smaller_share_of_open_questions_is_part_of_a_larger(site: Site) -> None:
    asked = []
    for fraction in (0.3, 0.8):
        site.run(**shares(unanswerable=fraction))
        asked.append({e.question for e in site.examples("train") if e.kind == "unanswerable"})
    assert asked[0] < asked[1]


# --- passages in the prompt --------------------------------------------------------------------


def test_a_question_with_passages_has_the_prompt_of_service_with_the_evidence_in_it(
    site: Site,
) -> None:
    site.run(**shares(raft=1.0))
    raft = [example for example in site.examples("train") if example.kind == "raft"]
    assert len(raft) > 50
    partitions = site.partition_of()
    for example in raft:
        system, *_, last = example.messages
        assert system.role == "system"
        assert system.content.startswith(prompt.INSTRUCTION)
        assert prompt.count(system.content) <= CONTEXT["context_tokens"]
        assert example.evidence[0].text in system.content
        assert last.content == example.answer
        for other in SUBJECTS:  # no page is shown that is not trained on
            if partitions[page(other).id] != "train":
                assert f"The page about {other}" not in system.content


def test_passages_without_the_answer_are_answered_by_saying_so(site: Site) -> None:
    site.run(**shares(raft=1.0, raft_absent=0.5))
    raft = [example for example in site.examples("train") if example.kind == "raft"]
    absent = [example for example in raft if example.answer == NOT_FOUND]
    assert 0.3 < len(absent) / len(raft) < 0.7
    plain = {e.question: e for e in site.examples("train") if e.kind not in ("raft", "dialogue")}
    for example in absent:
        assert plain[example.question].evidence[0].text not in example.messages[0].content
        assert example.evidence == ()


def test_without_the_right_passage_the_test_above_would_fail(site: Site) -> None:
    """The planted defect: passages chosen as if every answer were absent."""
    site.run(**shares(raft=1.0, raft_absent=1.0))
    raft = [example for example in site.examples("train") if example.kind == "raft"]
    plain = {e.question: e for e in site.examples("train") if e.kind not in ("raft", "dialogue")}
    assert not any(plain[e.question].evidence[0].text in e.messages[0].content for e in raft)


# --- a named teacher ---------------------------------------------------------------------------


def forms(subject: str) -> list[str]:
    return [f"{subject}, form {place}?" for place in range(len(tasks.FORMS))]


def sort_of(body: dict[str, Any]) -> str:
    """Which kind of call the request is, by its schema."""
    schema = body["response_format"]["json_schema"]["schema"]["properties"]
    keys = {"answered": "answerable", "answer": "repair", "worth": "worth", "grade": "grade"}
    for key, sort in keys.items():
        if key in schema:
            return sort
    fact = schema["facts"]["items"]["properties"]
    if "history" in fact:
        return "facts"
    if "question" in fact:
        return "style"
    return "multihop" if "evidence" in fact else "unanswerable"


def sentence_of(chunk: str) -> str:
    """A line of the chunk that says something."""
    return next(line for line in chunk.splitlines() if line.startswith(("The ", "- **")))


def teacher(call: Call, number: int) -> None:
    """Says of each chunk what one of its lines says."""
    body = call.server.bodies[number - 1]
    text = body["messages"][-1]["content"]
    names = re.findall(r"^Page: The (\w+)", text, re.MULTILINE)
    topic = f"the {' and the '.join(names)} {'root' if '**' in text else 'page'}"
    match sort_of(body):
        case "repair":
            call.reply(json.dumps({"answer": sentence_of(text.partition("Evidence:")[2])}))
        case "facts":
            said = sentence_of(text)
            row = {
                "kind": "factual",
                "history": [],
                "forms": forms(f"What does the manual tell of {topic}"),
            }
            wrong = "The iris has 7 legs." if "iris" in said else said
            call.reply(json.dumps({"facts": [row | {"answer": wrong, "evidence": said}]}))
        case "multihop":
            spans = [sentence_of(chunk) for chunk in text.split("\n\n---\n\n")]
            row = {"forms": forms(f"What do the manuals tell of {topic}"), "evidence": spans}
            call.reply(json.dumps({"facts": [row | {"answer": " ".join(spans)}]}))
        case "unanswerable":
            call.reply(json.dumps({"facts": [{"forms": forms(f"The price of {text[-60:]}")}]}))
        case "worth":
            call.reply(json.dumps({"worth": "## Keys of" not in text}))
        case "grade":
            grade = 2 if "iris" in text.casefold() else 4
            call.reply(json.dumps({"reason": "so it seems", "grade": grade}))
        case "answerable":
            known = "apple" in text.partition("Question:")[2]
            call.reply(json.dumps({"answered": known}))
        case "style":
            row = {"question": f"What do you think of the {names[0]}?"}
            call.reply(json.dumps({"facts": [row | {"evidence": sentence_of(text)}]}))


def test_a_named_teacher_writes_what_the_outline_teacher_cannot(site: Site) -> None:
    with serving(teacher) as server:
        metrics = site.run(
            config(server.address), **shares(multihop=1.0, unanswerable=1.0, style=1.0)
        )
        calls = [sort_of(body) for body in server.bodies]
        site.run(config(server.address), **shares(multihop=1.0, unanswerable=1.0, style=1.0))
        assert len(server.bodies) == len(calls), "a rerun pays nothing"
    assert {"facts", "multihop", "unanswerable", "answerable", "style", "repair"} == set(calls)
    assert metrics["num_train_multihop"] > 0
    train = site.examples("train")
    partitions = site.partition_of()
    for example in train:
        if example.kind == "multihop":
            pages = {span.document_id for span in example.evidence}
            assert len(pages) == 2 == len(example.chunk_ids)
            assert {partitions[name] for name in pages} == {"train"}
        if example.kind == "style":
            assert example.answer == example.evidence[0].text


def test_a_wrong_answer_is_put_right_once_and_left_out_where_that_fails(site: Site) -> None:
    def stubborn(call: Call, number: int) -> None:
        if sort_of(call.server.bodies[number - 1]) == "repair":
            call.reply(json.dumps({"answer": "The iris has 9 legs."}))
        else:
            teacher(call, number)

    with serving(teacher) as server:
        site.run(config(server.address))
    every = [e for part in ("train", "validation", "test") for e in site.examples(part)]
    assert site.reasons()["not supported by its evidence"] == 0
    assert [e for e in every if "iris" in e.answer]
    assert not [e for e in every if "legs" in e.answer]
    fresh = Site(site.folder.parent / "stubborn", site.documents)
    with serving(stubborn) as server:
        fresh.run(config(server.address))
        repairs = [b for b in server.bodies if sort_of(b) == "repair"]
    assert fresh.reasons()["not supported by its evidence"] == len(repairs) > 0


def test_an_open_question_that_another_passage_answers_is_a_reject(site: Site) -> None:
    with serving(teacher) as server:
        site.run(config(server.address), **shares(unanswerable=1.0))
    asked = [e for part in ("train", "test") for e in site.examples(part)]
    assert site.reasons()["unanswerable: answered elsewhere"] > 0
    assert not [e for e in asked if e.kind == "unanswerable" and "apple" in e.question]
    assert [e for e in asked if e.kind == "unanswerable"]


def test_the_prompt_is_the_one_of_the_configuration_and_names_its_hash(site: Site) -> None:
    from test_synthesize import PROMPTS

    texts = PROMPTS | {"persona": "a pirate", "facts": "Be $persona, in $num_forms ways. $other"}
    with serving(teacher) as server:
        site.run(config(server.address), prompts=texts)
        asked = [body for body in server.bodies if sort_of(body) == "facts"]
        said = {body["messages"][0]["content"] for body in asked}
    assert said == {"Be a pirate, in 7 ways. $other"}
    one, other = tasks.Prompts(**PROMPTS).hashes, tasks.Prompts(**texts).hashes
    assert set(one) == {*get_args(tasks.Sort), "answerable", "grade"}
    assert one["style"] != other["style"], "the persona is part of each"


def test_a_kind_of_which_there_is_none_is_told_with_its_reason(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(progress, "note", said.append)
    site.run(**shares(multihop=0.5, code=0.0))
    assert "multihop: none, since the outline teacher does not write it" in said
    assert "code: none, since synthesize.shares.code is 0" in said
    assert any(line.startswith("factual: train ") for line in said)


# --- which chunks ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"skip_headings": ["^Keys of"]}, "skipped by heading"),
        ({"skip_text": ["make water"]}, "skipped by text"),
        ({"min_chunk_words": 45}, "fewer words than min_chunk_words"),
    ],
)
def test_chunks_are_left_out_before_any_call(
    site: Site, changes: dict[str, Any], reason: str
) -> None:
    with serving(teacher) as server:
        site.run(config(server.address), **changes)
        calls = [sort_of(body) for body in server.bodies].count("facts")
    left_out = site.reasons()[reason]
    assert left_out == 12
    assert calls == 24 - left_out


def test_a_chunk_that_the_teacher_finds_worth_no_question_is_asked_nothing_else(site: Site) -> None:
    with serving(teacher) as server:
        site.run(config(server.address), judge_chunks=True)
        calls = Counter(map(sort_of, server.bodies))
        facts = [b["messages"][-1]["content"] for b in server.bodies if sort_of(b) == "facts"]
    assert calls["worth"] == 24
    assert calls["facts"] == 24 - site.reasons()["not worth questions"] == 12
    assert not any("## Keys of" in text for text in facts)


def test_a_plan_counts_the_calls_that_judge_chunks(site: Site) -> None:
    from test_synthesize import settings

    for judged in (False, True):
        planned = synthesize.plan(
            settings(judge_chunks=judged),
            config("http://127.0.0.1:9"),
            site.folder / "documents.jsonl",
            site.folder / "chunks.jsonl",
        )
        assert Counter(task.sort for task in planned)["worth"] == 24 * judged


# --- which facts -------------------------------------------------------------------------------


def test_a_fact_below_the_least_grade_is_a_reject_with_the_reason_given(site: Site) -> None:
    with serving(teacher) as server:
        site.run(config(server.address), min_grade=3)
    every = [e for part in ("train", "validation", "test") for e in site.examples(part)]
    graded = [row for row in site.rejects() if row.reason == "graded 2, below min_grade"]
    assert graded and all("so it seems" in row.detail for row in graded)
    assert every and not [e for e in every if "iris" in e.question]


@pytest.mark.parametrize("said", ["no idea", '{"grade": "best"}', "[]"])
def test_a_fact_without_a_readable_grade_is_a_counted_reject(site: Site, said: str) -> None:
    def mute(call: Call, number: int) -> None:
        body = call.server.bodies[number - 1]
        if sort_of(body) == "grade" and "apple" in body["messages"][-1]["content"]:
            call.reply(said)
        else:
            teacher(call, number)

    with serving(mute) as server:
        site.run(config(server.address), min_grade=2)
    assert site.reasons()["without a grade"] > 0


@pytest.fixture
def minilm(site: Site) -> embedding.Config:
    """The graph is the checkout's: torch takes seconds to make it anew."""
    from test_answer_embedding import MINILM

    graphs = ROOT / ".cache/embedders"
    graphs.mkdir(parents=True, exist_ok=True)
    Path(".cache").mkdir(exist_ok=True)
    Path(".cache/embedders").symlink_to(graphs)
    return MINILM


def reworded(call: Call, number: int) -> None:
    """Says each thing twice, in questions of other words."""
    text = call.server.bodies[number - 1]["messages"][-1]["content"]
    said = sentence_of(text)
    topic = re.findall(r"^Page: The (\w+)", text, re.MULTILINE)[0]
    topic += " root" if "**" in text else ""
    asked = (f"What does the manual tell of the {topic}", f"What is said about the {topic} in it")
    row = {"kind": "factual", "history": [], "answer": said, "evidence": said}
    call.reply(json.dumps({"facts": [row | {"forms": forms(question)} for question in asked]}))


def test_the_same_in_other_words_is_left_out_by_its_meaning(
    site: Site, minilm: embedding.Config
) -> None:
    for embedder, some in ((NO_EMBEDDER, False), (minilm, True)):
        with serving(reworded) as server:
            site.run(config(server.address), embedder, semantic_duplicate_threshold=0.8)
        assert (site.reasons()["semantic duplicate"] > 0) == some


def test_a_held_out_question_that_training_gives_away_by_its_meaning_fails_the_stage(
    site: Site, minilm: embedding.Config
) -> None:
    with serving(teacher) as server:
        site.run(config(server.address), max_leak_rate=0.0)
        with pytest.raises(PipelineError, match=r"max_leak_rate: 0\.0: .*near in meaning"):
            site.run(
                config(server.address),
                minilm,
                max_leak_rate=0.0,
                semantic_duplicate_threshold=1.0,
                semantic_leak_threshold=0.6,
            )


def test_a_pattern_that_is_none_is_one_line() -> None:
    from test_synthesize import settings

    with pytest.raises(Exception, match=r"synthesize\.skip_text.*expected a regular expression"):
        settings(skip_text=["("])


# --- preferences -------------------------------------------------------------------------------


def test_each_fact_gives_a_pair_of_its_answer_and_a_wrong_one(site: Site) -> None:
    metrics = site.run(**shares(preferences=1.0))
    pairs = list(store.read(site.out / "preferences.jsonl", Preference))
    by_id = {example.id: example for example in site.examples("train")}
    assert len(pairs) == metrics["num_facts"]
    for pair in pairs:
        assert by_id[pair.example_id].answer == pair.chosen != pair.rejected


@given(st.text(min_size=1))
def test_a_wrong_answer_is_never_the_right_one(answer: str) -> None:
    wrong = [*preferences._other_number(answer), *preferences._opposite(answer)]
    assert answer not in wrong


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        ("It is on.", "It is not on."),
        ("It cannot fail.", "It can fail."),
        ("Pages are not read.", "Pages are read."),
    ],
)
def test_the_opposite_is_said_with_one_word_more_or_less(answer: str, wrong: str) -> None:
    assert preferences._opposite(answer) == [wrong]


# --- formats -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["chat", "alpaca", "completion", "question_answer"])
def test_every_format_of_the_configuration_is_written_for_every_partition(
    site: Site, kind: str
) -> None:
    section = yaml.safe_load((ROOT / f"conf/synthesize/formats/{kind}.yaml").read_text())
    site.run(formats={"mine": section})
    for part in ("train", "validation", "test"):
        rows = (site.out / f"formats/mine/{part}.jsonl").read_text().splitlines()
        assert [json.loads(row)["id"] for row in rows] == [e.id for e in site.examples(part)]
