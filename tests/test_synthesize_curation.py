"""Rows that are left out, each with its reason, and those that are kept."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from stages.answer.prompt import NOT_FOUND
from stages.core.records import Evidence, Example, Message, Reject
from stages.llm import outline
from stages.synthesize import curation
from stages.synthesize.curation import Pair

ROOT = Path(__file__).parent.parent

LEANING = (
    "What does the text above say about tokens?",
    "According to the passage, how many workers are started?",
    "What is described in this section?",
    "Which of the following commands starts the server?",
    "What does the passage mention about retries?",
    "Based on the given context, what is the default port?",
    "What is the main idea of this document?",
    "How does the code above work?",
    "What is the purpose of the example below?",
    "What happens in the above example?",
    "What is mentioned here about the cache?",
    "As described above, how is the index built?",
    "What does it do?",
    "How do I change it?",
    "Why is this needed?",
    "Where are they stored?",
    "What are its limits?",
    "How is that configured?",
    "When should these be used?",
    "How can I stop them?",
    "Who maintains it?",
    "What does this option do?",
    "Which command does the author mention in the text?",
    "In the passage, which port is used?",
    "What does this error mean?",
    "What is the topic of this page?",
    "What does the excerpt state about GPUs?",
    "How many tables does the document list?",
    "From the text, what can be learned about chunks?",
    "Does it support GPUs?",
    "What are the two options mentioned in the text?",
    "Summarize the paragraph above.",
    "What is shown in the figure below?",
    "How do you use those?",
    "What is his role?",
)
STANDING = (
    "What does `make demo` do?",
    "How do I start the server and stop it again?",
    "What is the default of the key `index.b`?",
    "How long does it take to train the demo?",
    "Is it possible to crawl a site without robots.txt?",
    "Tell me this: which sources can be chosen?",
    "Could you explain this to me: how is a chunk cut?",
    "I came across the term “chunk”. What is that?",
    "What happens to the text of a page that is too short?",
    "How are headings kept in a document?",
    "Which pages are rejected, and where are they listed?",
    "When the crawl stops, how do I resume it?",
    "What does Docent do with links that leave the site?",
    "Does DVC know when its outputs are gone?",
    "How many passages of a document stand in the prompt?",
    "How do I cut a document into sections?",
    "What is a context window?",
    "How do I compare two runs with their metrics?",
    "What should I know about the page “The teacher”?",
    "Where does the server keep its log?",
    "What is the difference between a chunk and a passage?",
    "How can users be kept from seeing pages that are not theirs?",
    "What does the option --json do to its output?",
    "Why does a stage run although nothing changed in it?",
    "What do I do when an environment is broken and I want to rebuild it?",
    "How is the table of results printed?",
    "What does the key `chunk.context` mean?",
    "How much does it cost to use a language model as the teacher?",
    "Which section of the YAML file configures the trainer?",
    "In which file does the stage `crawl` write what it rejects?",
)


def row(question: str, answer: str, **changes: object) -> Pair:
    plain = Pair(f"{question} {answer}", question, answer, kind="factual", page="p")
    return replace(plain, **changes)  # type: ignore[arg-type]


# --- rows by themselves ------------------------------------------------------------------------


@pytest.mark.parametrize("question", LEANING)
def test_a_question_that_leans_on_a_text_is_left_out(question: str) -> None:
    assert curation.leans(question, has_antecedent=False)


@pytest.mark.parametrize("question", STANDING)
def test_a_question_that_stands_alone_is_kept(question: str) -> None:
    assert not curation.leans(question, has_antecedent=False)


def test_a_later_turn_may_say_it_and_may_not_lean_on_a_text() -> None:
    assert curation.leans("And how do I stop it?", has_antecedent=False)
    assert not curation.leans("And how do I stop it?", has_antecedent=True)
    assert curation.leans("And what does the passage say of it?", has_antecedent=True)


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("Which port is used?", "As an AI language model, I have no access to it.", "refusal"),
        ("Which port is used?", "I'm sorry, but that is unclear.", "refusal"),
        ("Which port is used?", "I cannot answer that.", "refusal"),
        ("Which port is used?", "The passage does not mention a port.", "refusal"),
        ("Which port is used?", "The port is not specified in the given context.", "refusal"),
        ("Which port is used?", "Not specified.", "refusal"),
        ("How do I sign in?", "Click here to sign in to your account.", "boilerplate"),
        ("Who made it for Acme?", "© 2024 Acme. All rights reserved.", "boilerplate"),
        ("What does Acme store?", "We use cookies to improve your visit.", "boilerplate"),
        ("How are cookies kept?", "Read about it in our cookie policy.", "boilerplate"),
        ("What does the cache do?", "It caches.", "answer too short"),
        ("What does the cache do?", "The cache.", "answer repeats the question"),
        ("What is the cache of the server?", "The server's cache.", "answer repeats the question"),
        ("What does `run` do?", "Run `run`.", "answer repeats the question"),
        ("Which port is used?", "8080", None),
        ("Which file is read?", "`.env`", None),
        ("Is the cache kept?", "Yes.", "answer too short"),
        ("Is the cache kept?", "Yes, the cache is kept.", None),
        ("Is the cache or the index kept?", "The cache is kept.", None),
        ("What does the server not keep?", "It cannot answer requests of guests.", None),
        ("How long is a cookie kept?", "A cookie of the session is kept for an hour.", None),
        ("What can the outline teacher not do?", "It cannot combine two pages.", None),
    ],
)
def test_an_answer_that_says_nothing_is_left_out_with_its_reason(
    question: str, answer: str, reason: str | None
) -> None:
    assert curation.flaw(row(question, answer), 3) == reason


def test_a_refusal_is_the_right_answer_to_what_the_documents_leave_open() -> None:
    assert curation.flaw(row("Which port is used?", NOT_FOUND, kind="unanswerable"), 3) is None


def test_what_the_outline_teacher_writes_leans_on_nothing_and_refuses_nothing() -> None:
    rows = []
    for path in sorted((ROOT / "docs").glob("*.md")):
        text = path.read_text()
        for place, fact in enumerate(
            outline.write(outline.Page(path.stem, (path.stem,), "", text))
        ):
            earlier = tuple(turn.forms[0] for turn in fact.history)
            for number, form in enumerate(fact.forms):
                id = f"{path.stem} {place} {number}"
                rows.append(Pair(id, form, fact.answer, fact.kind, path.stem, earlier))
    kept, rejects = curation.sift(rows, 1)
    reasons = Counter(reject.reason for reject in rejects)
    print(f"\n{len(rows)} rows, {len(kept)} kept, {dict(reasons)}")
    assert len(rows) > 3_000
    assert len(rejects) < 0.01 * len(rows)


# --- rows beside each other --------------------------------------------------------------------


def test_an_exact_duplicate_is_left_out_whatever_its_letters_and_marks() -> None:
    rows = [
        row("What is a chunk?", "A part of a document."),
        row("what is a chunk", "A part of a document!"),
        row("What is a chunk?", "A part of a page."),
        row("What is a chunk?", "A part of a document.", id="d", earlier=("What is split?",)),
    ]
    kept, rejects = curation.exact(rows)
    assert kept == [rows[0], rows[2], rows[3]]
    assert rejects == [Reject(id=rows[1].id, reason="exact duplicate", detail="what is a chunk")]


LONG = "The embedded server answers on the routes of TGI and streams its tokens to many clients."


def test_a_near_duplicate_is_left_out_and_one_with_another_number_is_not() -> None:
    rows = [
        row("What does the embedded server do?", LONG),
        row("What does the embedded server do?", LONG.replace("many", "all")),
        row("What does the embedded server do?", LONG.replace("many clients", "80 clients")),
        row("What does the embedded server do?", LONG.replace("TGI", "OpenAI")),
        row("What is the default of `index.b`?", "The default of `index.b` is `0.75`."),
        row("What is the default of `index.k`?", "The default of `index.k` is `0.75`."),
    ]
    kept, rejects = curation.near(rows, seed=0, threshold=0.8)
    assert [reject.id for reject in rejects] == [rows[1].id]
    assert len(kept) == 5


def vectors(of: dict[str, tuple[float, ...]]) -> Callable[[Sequence[str]], NDArray[np.float64]]:
    return lambda texts: np.array([of[text.split("\n")[0]] for text in texts])


def test_a_semantic_duplicate_is_left_out_from_the_threshold_on() -> None:
    rows = [
        row("How is it begun?", "Run the first command."),
        row("How do I start?", "Execute the initial command."),
        row("How do I start 2?", "Execute the 2nd command."),
        row("How do I stop?", "End it."),
    ]
    embed = vectors(
        {
            "How is it begun?": (1, 0, 0),
            "How do I start?": (0.95, 0.05, 0),
            "How do I start 2?": (1, 0, 0),
            "How do I stop?": (0, 2, 0),
        }
    )
    kept, rejects = curation.semantic(rows, embed, 0.9)
    assert [reject.id for reject in rejects] == [rows[1].id]
    assert curation.semantic(rows, embed, 0.9999)[1] == []
    assert curation.semantic([], embed, 0.9) == ([], [])
    assert len(kept) == 3


WORDS = st.lists(
    st.sampled_from(
        ["the", "server", "cache", "index", "of", "a", "is", "kept", "stops", "7", "`a.b`", "it"]
    ),
    min_size=1,
    max_size=9,
).map(" ".join)


@st.composite
def pairs(draw: st.DrawFn) -> list[Pair]:
    drawn = draw(st.lists(st.tuples(WORDS, WORDS, st.sampled_from("pqr")), max_size=25))
    return [
        Pair(id=str(n), question=question, answer=answer, kind="factual", page=page)
        for n, (question, answer, page) in enumerate(drawn)
    ]


def embed_by_letters(texts: Sequence[str]) -> NDArray[np.float64]:
    return np.array([[text.count(letter) for letter in "acdeikorstx"] for text in texts]) + 0.01


STEPS: dict[str, Callable[[list[Pair]], curation.Curated[Pair]]] = {
    "sift": lambda rows: curation.sift(rows, 2),
    "exact": curation.exact,
    "near": lambda rows: curation.near(rows, 0, 0.8),
    "semantic": lambda rows: curation.semantic(rows, embed_by_letters, 0.95),
    "balance": lambda rows: curation.balance(rows, 0, 3),
}


@pytest.mark.parametrize("step", STEPS)
@given(rows=pairs())
def test_what_comes_in_is_kept_or_rejected_in_its_order(step: str, rows: list[Pair]) -> None:
    kept, rejects = STEPS[step](rows)
    ids = {row.id for row in kept}
    assert [row for row in rows if row.id in ids] == kept
    assert [row.id for row in rows if row.id not in ids] == [reject.id for reject in rejects]
    # What is kept is kept again.
    assert STEPS[step](kept) == (kept, [])


@given(pairs(), st.integers(0, 9))
def test_a_balance_by_page_chooses_a_part_of_a_larger_one(rows: list[Pair], seed: int) -> None:
    kept = [curation.balance(rows, seed, most)[0] for most in (*range(6), None)]
    for smaller, larger in itertools.pairwise(kept):
        assert {row.id for row in smaller} <= {row.id for row in larger}
    assert kept[-1] == rows
    for most, chosen in enumerate(kept[:-1]):
        sizes = Counter(row.page for row in rows)
        assert Counter(row.page for row in chosen) == {
            page: min(most, size) for page, size in sizes.items() if most
        }


def test_the_choice_of_a_balance_does_not_follow_the_ids() -> None:
    texts = [(f"What is key {n}?", f"The {n}th key.") for n in range(20)]
    first = [row(*text, id=f"a{n}") for n, text in enumerate(texts)]
    again = [row(*text, id=f"b{99 - n}") for n, text in enumerate(texts)]
    chosen = [
        {kept.question for kept in curation.balance(rows, 1, 7)[0]} for rows in (first, again)
    ]
    assert chosen[0] == chosen[1]
    assert chosen[0] != {kept.question for kept in curation.balance(first, 2, 7)[0]}


def test_an_example_is_a_row_with_its_page_and_its_earlier_questions() -> None:
    messages = [
        ("user", "What is X?"),
        ("assistant", "A."),
        ("user", "And Y?"),
        ("assistant", "B."),
    ]
    example = Example(
        id="e",
        kind="dialogue",
        track=None,
        messages=tuple(Message(role=role, content=text) for role, text in messages),  # type: ignore[arg-type]
        question="And Y?",
        answer="B.",
        chunk_ids=("c",),
        evidence=(Evidence(document_id="d", start=0, end=1, text="B"),),
        call_id="k",
    )
    expected = Pair("e", "And Y?", "B.", "dialogue", "d", ("What is X?",))
    assert curation.pair(example) == expected
