"""Leaks that were planted are found, clean splits raise few alarms, and neither takes long."""

import random
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_answer_embedding import MINILM
from test_synthesize_grounding import PARAPHRASED, of_pythons_manual, sections

from stages.answer import embedding
from stages.answer.lexical import STOPWORDS
from stages.core.records import identify
from stages.llm import outline
from stages.synthesize import leakage
from stages.synthesize.curation import Pair

ROOT = Path(__file__).parent.parent
PYTHON_DOC = Path("/usr/share/doc/python3-doc/html/library")

# What the manual says on two pages in different words, as found by hand: real leaks of its splits.
SAID_TWICE = (
    "You want the tuned model to answer from retrieved chunks.",
    "Leave such pages out of the source.",
    "This manual, built to HTML, served on the machine itself",
    "What the teacher writes questions and answers about.",
    "Tokens are counted offline with the tokenizer of the configured model",
    "The tuned model as merged safetensors with its tokenizer.",
    "The headings above the chunk, the outermost first.",
    "The loss on the validation examples at the end.",
    "A tokenizer and a small Llama, both made from the documents assigned to train",
    "The sort of the example, such as `factual` or `dialogue`.",
    "The trainer that Docent launches; it reads one YAML file",
    "The system in which the tuned model answers with the retrieved chunks in its prompt.",
    "DVC cannot see that a site on the web has changed",
    "Ends the server that `up` started.",
    'Run `python -m stages search "',
    "You want the untuned model to answer from retrieved chunks.",
    "With the model before instruction tuning and the retrieved chunks",
    "With the model after instruction tuning and the retrieved chunks",
    "With the best sentences of the best retrieved chunks, word for word",
    "What a test question measures: `same_fact` or `held_out`.",
    "A span of a document whose text is exactly the document's bytes",
    "The model, or the program without a model, that writes questions",
    "The states of the optimizer, the gradients and the weights.",
    "Runs every combination of the given values",
)


class Fact:
    """A fact with its page and its seven wordings."""

    def __init__(self, page: str, fact: outline.writing.Fact) -> None:
        self.page = page
        self.forms = fact.forms
        self.answer = fact.answer
        self.kind = fact.kind
        self.earlier = tuple(turn.forms[0] for turn in fact.history)

    def row(self, form: int, answer: str = "", question: str = "", id: str = "") -> Pair:
        question = question or self.forms[form]
        answer = answer or self.answer
        id = id or identify(self.page, form, question, answer, self.earlier)
        return Pair(id, question, answer, self.kind, self.page, self.earlier)


def facts_of_this_manual() -> list[Fact]:
    """Without the reference of keys, which restates what other pages say."""
    found = []
    for path in sorted((ROOT / "docs").glob("*.md")):
        text = path.read_text()
        for above, part in sections(path.stem, text):
            for fact in outline.write(outline.Page(above[0], above, "", part)):
                found.append(Fact(path.name, fact))
    return found


def divide(facts: Sequence[Fact], seed: int) -> tuple[list[Fact], list[Fact]]:
    """By page: four fifths and the rest."""
    held = {fact.page for fact in facts if int(identify(seed, fact.page), 16) % 5 == 0}
    return [f for f in facts if f.page not in held], [f for f in facts if f.page in held]


def trained(facts: Iterable[Fact]) -> list[Pair]:
    """In three of the seven wordings: more of them take time and change no figure."""
    return [fact.row(form) for fact in facts for form in (0, 2, 4)]


def words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


# --- planted leaks -----------------------------------------------------------------------------

SYNONYMS = {
    "begins": "starts",
    "holds": "contains",
    "keeps": "retains",
    "stands": "is found",
    "stand": "are found",
    "needs": "requires",
    "asks": "requests",
    "takes": "accepts",
    "runs": "executes",
    "starts": "launches",
    "makes": "produces",
    "made": "produced",
    "shows": "displays",
    "several": "multiple",
    "every": "each",
    "because": "as",
    "since": "because",
    "so that": "which means that",
    "cannot": "is unable to",
    "before": "prior to",
    "only": "just",
    "longest": "maximum",
    "how many": "the number of",
    "question": "query",
    "questions": "queries",
    "folder": "directory",
    "written": "stored",
    "chosen": "selected",
    "much": "a lot",
    "well": "properly",
}


def reworded(rng: random.Random, answer: str) -> str:
    """Other words where the list has one, the clauses exchanged, the articles left out."""
    text = answer
    for word in rng.sample(sorted(SYNONYMS), 20):
        text = re.sub(rf"\b{word}\b", SYNONYMS[word], text)
    clauses = re.split(r"(?<=\w)[,;] ", text.rstrip("."))
    if len(clauses) > 1:
        clauses = [*clauses[1:], clauses[0]]
    text = ", ".join(clauses)
    text = re.sub(r"\b([Tt]he|an?) (?=[a-z])", lambda m: "" if rng.random() < 0.5 else m[0], text)
    return f"{text[0].upper()}{text[1:]}."


def shortened(rng: random.Random, answer: str) -> str:
    """Its first clause, where that says enough."""
    clause = re.split(r"(?:[,;:] | so that | because | since )", answer)[0]
    return clause + "." if len(clause.split()) >= 4 else answer


def edited(rng: random.Random, text: str) -> str:
    """One word left out or exchanged, as on a page's older version."""
    found = text.split()
    place = rng.randrange(len(found))
    if not re.fullmatch(r"[a-z]+[.,]?", found[place]):
        return text
    new = [] if rng.random() < 0.5 else [rng.choice(["new", "current", "given", "usual"])]
    return " ".join([*found[:place], *new, *found[place + 1 :]])


def asked_otherwise(rng: random.Random, fact: Fact) -> str:
    """What the documents say of what the question is about, in no wording that was trained."""
    said = [word for word in fact.forms[0].rstrip("?").split() if word.lower() not in STOPWORDS]
    rng.shuffle(said)
    return f"What do the documents tell of {' and '.join(said)}?"


Planted = dict[str, list[Pair]]


def plant(facts: Sequence[Fact], seed: int) -> Planted:
    rng = random.Random(seed)
    telling = [fact for fact in facts if len(fact.answer.split()) >= 5 or "`" in fact.answer]
    chosen = rng.sample(telling, 150)
    return {
        "another wording": [f.row(6, id=f"w{n}") for n, f in enumerate(chosen)],
        "paraphrase": [f.row(6, reworded(rng, f.answer), id=f"p{n}") for n, f in enumerate(chosen)],
        "shared fact": [
            f.row(6, shortened(rng, f.answer), asked_otherwise(rng, f), id=f"f{n}")
            for n, f in enumerate(chosen)
        ],
        "near-duplicate page": [
            f.row(0, edited(rng, f.answer), edited(rng, f.forms[0]), id=f"d{n}")
            for n, f in enumerate(chosen)
        ],
    }


def answered_alike() -> tuple[list[Pair], list[Pair]]:
    """People's paraphrases: train has the page's own words, the test an answer in others."""
    train, held = [], []
    for n, (question, answer, evidence) in enumerate(PARAPHRASED):
        asked = f"I would like to know this: {question}"
        train.append(Pair(f"t{n}", asked, evidence, "factual", "p"))
        held.append(Pair(f"h{n}", question, answer, "factual", "q"))
    return train, held


def caught(train: Sequence[Pair], planted: Planted) -> dict[str, float]:
    shares = {}
    for sort, rows in planted.items():
        leaks = leakage.check(train, rows, [])
        shares[sort] = len({leak.test_id for leak in leaks}) / len(rows)
    return shares


def alarms(train: Sequence[Pair], held: Sequence[Pair]) -> list[leakage.Leak]:
    """One for each row that is said to leak."""
    found = {leak.test_id: leak for leak in leakage.check(train, held, [])}
    return list(found.values())


def clean(train: Sequence[Fact], held: Sequence[Fact]) -> list[Pair]:
    """Rows of held pages, but for what the manual says twice: in the same words, or by hand."""
    pages = {fact.page for fact in train}
    known = words("\n".join((ROOT / "docs" / page).read_text() for page in sorted(pages)))
    asked = {words(form) for fact in train for form in fact.forms}
    rows = []
    for place, fact in enumerate(held):
        row = fact.row(place % 6)
        commands = [words(code) for code in re.findall(r"`([^`]+)`", fact.answer)]
        if words(row.answer) in known or words(row.question) in asked:
            continue
        if any(len(command.split()) > 1 and command in known for command in commands):
            continue
        if not row.answer.startswith(SAID_TWICE):
            rows.append(row)
    return rows


@pytest.fixture(scope="module")
def manual() -> list[Fact]:
    return facts_of_this_manual()


def test_of_planted_leaks_90_percent_are_caught(manual: list[Fact]) -> None:
    train, _ = divide(manual, 0)
    shares = caught(trained(train), plant(train, 0))
    known, held = answered_alike()
    shares["people's paraphrase"] = caught([*trained(train), *known], {"": held})[""]
    print(f"\n{'planted':<22}{'caught':>8}")
    for sort, share in shares.items():
        print(f"{sort:<22}{share:>8.3f}")
    assert len(shares) == 5
    assert sum(shares.values()) / 5 >= 0.9, shares
    assert shares.pop("people's paraphrase") >= 0.75, shares
    assert min(shares.values()) >= 0.9, shares


def test_of_clean_splits_by_page_2_percent_at_most_raise_an_alarm(manual: list[Fact]) -> None:
    num_rows = 0
    found: list[leakage.Leak] = []
    for seed in range(4):
        train, held = divide(manual, seed)
        rows = clean(train, held)
        num_rows += len(rows)
        found += alarms(trained(train), rows)
    print(f"\n{num_rows} clean rows, {len(found)} alarms: {len(found) / num_rows:.3f}")
    print(*(f"  {leak.kind}, {leak.share}: {leak.question}" for leak in found), sep="\n")
    # A fact that is new on two pages is a real leak of these splits: it belongs to SAID_TWICE.
    assert num_rows > 500
    assert len(found) <= 0.02 * num_rows


@pytest.mark.slow
def test_by_meaning_90_percent_of_peoples_paraphrases_are_caught_too(
    manual: list[Fact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the threshold and the embedder of conf/, on the pairs and the clean rows of above."""
    monkeypatch.chdir(tmp_path)
    threshold = yaml.safe_load((ROOT / "conf/synthesize/default.yaml").read_text())
    least = threshold["semantic_leak_threshold"]
    train, _ = divide(manual, 0)
    known, held = answered_alike()
    with embedding.open(MINILM) as embedder:
        assert embedder
        leaks = leakage.check([*trained(train), *known], held, [], embedder.texts, least)
        assert len({leak.test_id for leak in leaks}) >= 0.9 * len(held)
        num_rows = num_alarms = 0
        for seed in range(4):
            train, others = divide(manual, seed)
            rows = clean(train, others)
            found = leakage.check(trained(train), rows, [], embedder.texts, least)
            num_rows += len(rows)
            num_alarms += len({leak.test_id for leak in found})
    assert num_alarms <= 0.02 * num_rows


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON_DOC.exists(), reason="Debian's python3-doc is not installed")
def test_another_manual_raises_no_alarm(manual: list[Fact]) -> None:
    others = [
        Pair(f"o{n}", question, answer, "factual", page)
        for n, (page, question, answer, _) in enumerate(of_pythons_manual())
    ]
    assert len(others) > 1_500
    assert len(alarms(trained(manual), others)) <= 0.002 * len(others)


@pytest.mark.parametrize("rule", ["_facts", "_questions"])
def test_a_check_without_one_of_its_rules_is_found_out(
    manual: list[Fact], monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    monkeypatch.setattr(leakage._Train, rule, lambda self, text: iter(()))
    train, _ = divide(manual, 0)
    shares = caught(trained(train), plant(train, 0))
    known, held = answered_alike()
    shares["people's paraphrase"] = caught([*trained(train), *known], {"": held})[""]
    assert min(shares.values()) < 0.75, shares


def test_a_check_that_minds_no_subject_is_found_out(
    manual: list[Fact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leakage, "SUBJECT_SHARE", 0.0)
    train, held = divide(manual, 0)
    rows = clean(train, held)
    assert len(alarms(trained(train), rows)) > 0.02 * len(rows)


# --- wordings of trained facts -----------------------------------------------------------------


def scrambled(rng: random.Random, question: str) -> str:
    """The same wording in other letters, marks and order, with another small word."""
    found = [*question.rstrip("?.").split(), rng.choice(["please", "the", "of", "is"])]
    rng.shuffle(found)
    return " ".join(found).upper()


def test_a_trained_wording_and_its_trivial_variants_are_caught_and_a_held_form_is_not(
    manual: list[Fact],
) -> None:
    rng = random.Random(0)
    train = trained(manual)
    held = [fact.row(6) for fact in manual]
    exact = [fact.row(2, id=f"e{n}") for n, fact in enumerate(manual)]
    varied = [
        fact.row(2, question=scrambled(rng, fact.forms[2]), id=f"v{n}")
        for n, fact in enumerate(manual)
    ]
    shares = {
        name: len(leakage.check(train, [], rows)) / len(rows)
        for name, rows in (("held form", held), ("exact", exact), ("varied", varied))
    }
    print(f"\n{shares}")
    assert shares["exact"] == 1
    assert shares["varied"] >= 0.9
    assert shares["held form"] <= 0.02


def pair(question: str, answer: str, id: str = "", earlier: tuple[str, ...] = ()) -> Pair:
    return Pair(id or f"{question} {answer}", question, answer, "factual", "p", earlier)


@pytest.mark.parametrize(
    ("question", "answer", "leaks"),
    [
        ("how do i convert CSV to JSON", "Run `c2j`.", True),
        ("To JSON, how do I convert the CSV?", "Run `c2j`.", True),
        ("How do I convert JSON to CSV?", "Use the other tool.", False),
        ("Which tool converts CSV to JSON?", "Run `c2j`.", False),
        ("Why do I convert CSV to JSON?", "Run `c2j`.", False),
        ("How do I not convert CSV to JSON?", "Run `c2j`.", False),
    ],
)
def test_a_variant_keeps_its_words_its_question_word_and_its_answer(
    question: str, answer: str, leaks: bool
) -> None:
    train = [pair("How do I convert CSV to JSON?", "Run `c2j`.", "t")]
    assert bool(leakage.check(train, [], [pair(question, answer)])) == leaks


def test_a_dialogue_leaks_with_all_its_turns_only() -> None:
    train = [pair("And how do I stop it?", "Run `down`.", "t", ("How do I start the server?",))]
    again = pair("And how do I stop it?", "Run `down`.", "s", ("how do I start the server",))
    other = pair("And how do I stop it?", "Run `down`.", "o", ("How do I start the crawl?",))
    assert [leak.test_id for leak in leakage.check(train, [], [again, other])] == ["s"]


# --- single kinds ------------------------------------------------------------------------------

COPIED = (
    "The server keeps each reply for an hour in a ledger that survives a crash and is never sent"
)


@pytest.mark.parametrize(
    ("question", "answer", "kinds"),
    [
        ("Which ledger does it have?", COPIED + " elsewhere.", {"long overlap", "many shingles"}),
        (
            "How long does the server keep a reply?",
            "In its ledger for 60 minutes.",
            {"near question"},
        ),
        ("How long are replies kept by servers?", "A reply is kept for an hour.", {"same fact"}),
        ("What does the crawl do?", "It follows the links of a site.", set()),
    ],
)
def test_each_kind_of_leak_is_named(question: str, answer: str, kinds: set[str]) -> None:
    train = [
        pair("How long does the server of Acme keep replies?", COPIED + ".", "t"),
        *(pair(f"What is thing {n} for?", f"Thing {n} is for use {n * 7}.") for n in range(40)),
    ]
    found = {leak.kind for leak in leakage.check(train, [pair(question, answer, "h")], [])}
    assert kinds <= found, found
    assert bool(kinds) == bool(found), found


def test_the_same_question_about_another_key_is_no_leak() -> None:
    train = [pair(f"What is the default of `key.n{n}`?", "The default is `7`.") for n in range(30)]
    held = [pair("What is the default of `key.m`?", "The default is `7`.", "h")]
    assert leakage.check(train, held, []) == []


def by_topic(texts: Sequence[str]) -> NDArray[np.float64]:
    """A stand-in for an embedding: which of the topics a text is about."""
    return np.array([[("port" in t) + 0.0, ("cache" in t) + 0.0, 0.01] for t in texts])


def test_a_row_near_in_meaning_is_a_leak_where_an_embedding_is_given() -> None:
    train = [pair("Which port is it?", "8080", "t"), pair("Where is the cache?", "In `.cache`.")]
    held = [pair("On what port does one listen?", "The number 8080 it is.", "h")]
    assert leakage.check(train, held, []) == []
    (leak,) = leakage.check(train, held, [], by_topic, 0.9)
    assert (leak.kind, leak.test_id, leak.train_id, leak.share) == ("near in meaning", "h", "t", 1)


def test_the_offending_pairs_are_told_in_one_line() -> None:
    train = [
        pair(f"What does part {n} do?", f"Part {n} turns wheel {n}.", f"t{n}") for n in range(9)
    ]
    same = [pair(row.question.upper(), row.answer, f"s{n}") for n, row in enumerate(train)]
    leaks = leakage.check(train, [], same)
    assert leakage.tell(leaks, 2) == (
        "9 test questions leak into train: "
        "same_fact s0 ~ train t0 (same wording, 1.00: WHAT DOES PART 0 DO?); "
        "same_fact s1 ~ train t1 (same wording, 1.00: WHAT DOES PART 1 DO?); and 7 more"
    )
    assert leakage.tell(leaks[:1], 2) == (
        "1 test question leaks into train: "
        "same_fact s0 ~ train t0 (same wording, 1.00: WHAT DOES PART 0 DO?)"
    )


WORDS = st.lists(
    st.sampled_from(
        ["the", "server", "cache", "index", "keeps", "of", "7", "`a.b`", "not", "crawl"]
    ),
    min_size=1,
    max_size=14,
).map(" ".join)
ROWS = st.lists(st.tuples(WORDS, WORDS), max_size=12)


@given(ROWS, ROWS, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_no_leak(
    known: list[tuple[str, str]], asked: list[tuple[str, str]], rng: random.Random
) -> None:
    train = [pair(*texts, id=f"t{n}") for n, texts in enumerate(known)]
    held = [pair(*texts, id=f"h{n}") for n, texts in enumerate(asked)]
    first = leakage.check(train, held, held)
    rng.shuffle(train)
    rng.shuffle(held)
    again = leakage.check(train, held, held)
    assert [(x.test_id, x.kind, x.share) for x in first] == [
        (x.test_id, x.kind, x.share) for x in again
    ]


@given(ROWS)
def test_a_wording_that_is_trained_always_leaks(known: list[tuple[str, str]]) -> None:
    train = [pair(*texts, id=f"t{n}") for n, texts in enumerate(known)]
    leaks = leakage.check(train, [], train)
    assert {leak.test_id for leak in leaks} == {row.id for row in train}


@pytest.mark.slow
def test_twenty_thousand_rows_are_checked_against_two_thousand(manual: list[Fact]) -> None:
    rng = random.Random(0)
    vocabulary = sorted({word for fact in manual for word in fact.answer.split()})

    def made(count: int, name: str) -> list[Pair]:
        return [
            pair(
                f"What does the {rng.choice(vocabulary)} of {rng.choice(vocabulary)} do?",
                " ".join(rng.choices(vocabulary, k=rng.randrange(6, 40))) + ".",
                f"{name}{n}",
            )
            for n in range(count)
        ]

    train = [*trained(manual), *made(20_000, "t")][:20_000]
    held = [*(fact.row(6) for fact in manual), *made(2_000, "h")][:2_000]
    began = time.monotonic()
    leaks = leakage.check(train, held, [])
    print(f"\n{len(train)} x {len(held)} rows: {time.monotonic() - began:.1f} s")
    kinds = Counter(leak.kind for leak in leaks)
    assert {"same fact", "near question"} <= kinds.keys()
